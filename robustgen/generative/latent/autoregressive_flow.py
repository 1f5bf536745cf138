"""One inverse autoregressive step, and the networks that it may use.

Kingma, Salimans, Jozefowicz et al., "Improving Variational Inference with Inverse Autoregressive Flow", NIPS 2016,
equations 13 and 14 (the gated step).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustgen.generative.blocks.masked_conv import MaskedConv2d

__all__ = ["InverseAutoregressiveStep", "MaskedConvNet"]

_GATE_BIAS = 2.0  # sigmoid(2) = 0.88: at the start a step changes little


class MaskedConvNet(nn.Module):
    """As :class:`~robustgen.generative.blocks.made.MADE`, for z that is a map (channels, height, width).

    The order is that of a raster, of each pixel channel by channel.

    Args:
        shape: (channels, height, width), D = their product.
        width: features; rounded up to a multiple of the channels.
        context: H.
    """

    def __init__(self, shape: tuple[int, int, int], width: int, context: int) -> None:
        super().__init__()
        channels, height, columns = shape
        width = channels * -(-width // channels)
        self.shape = shape
        self.first = MaskedConv2d(channels, width, 3, "A", channels)
        self.context = nn.Linear(context, width * height * columns, bias=False)
        self.last = MaskedConv2d(width, 2 * channels, 3, "B", channels)

    def forward(self, z: Tensor, context: Tensor) -> Tensor:
        y = self.first(z.unflatten(1, self.shape))
        y = self.last(F.elu(y + self.context(context).view_as(y)))
        return torch.stack([y[:, 0::2].flatten(1), y[:, 1::2].flatten(1)], 1)


class InverseAutoregressiveStep(nn.Module):
    """z_i -> g_i z_i + (1 - g_i) m_i, where gate g_i = sigmoid(s_i) and m_i are functions of the z before z_i.

    Args:
        network: gives m and s (N, 2, D) of z (N, D) and a context.
        backwards: "before" is behind: the last dimension comes first.

    >>> from robustgen.generative.blocks.made import MADE
    >>> step = InverseAutoregressiveStep(MADE(3, 8, 2), backwards=False)
    >>> z, log_gate = step(torch.zeros(4, 3), torch.zeros(4, 2))
    >>> z.shape, bool((log_gate < 0).all())
    (torch.Size([4, 3]), True)
    """

    def __init__(self, network: nn.Module, backwards: bool) -> None:
        super().__init__()
        self.network, self.backwards = network, backwards

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """The new z (N, D) and log g (N, D), whose sum over D is the log determinant of the Jacobian."""
        if self.backwards:
            z = z.flip(1)
        m, s = self.network(z, context).unbind(1)
        s = s + _GATE_BIAS
        gate = s.sigmoid()
        z, log_gate = gate * z + (1 - gate) * m, F.logsigmoid(s)
        return (z.flip(1), log_gate.flip(1)) if self.backwards else (z, log_gate)
