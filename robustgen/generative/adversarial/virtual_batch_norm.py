"""Virtual batch normalisation: the batch of the statistics is a fixed one, and the example itself.

Salimans et al., "Improved Techniques for Training GANs", 2016, section 3.5. The reference batch goes through the
network with every batch, so each layer sees its reference activations under the present weights. It is kept in the
model, which makes the network's output a function of each example alone.
"""

import torch
from torch import Tensor, nn

__all__ = ["VirtualBatchNorm", "WithReference"]


class VirtualBatchNorm(nn.Module):
    """Normalises (R + N, C, H, W), of which the first R are the reference batch; scale and shift for each channel.

    The moments of an example are 1 / (R + 1) times its own plus R / (R + 1) times those of the reference batch, which
    is itself normalised by its own alone.

    Args:
        channels: C.
        reference: R.
    """

    def __init__(self, channels: int, reference: int) -> None:
        super().__init__()
        self.reference = reference
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, h: Tensor) -> Tensor:
        r = self.reference
        first = h.mean((2, 3), keepdim=True)  # (R + N, C, 1, 1)
        second = h.square().mean((2, 3), keepdim=True)
        moments = []
        for own in (first, second):
            shared = own[:r].mean(0, keepdim=True)
            moments.append(torch.cat([shared.expand_as(own[:r]), (own[r:] + r * shared) / (r + 1)]))
        mean, square = moments
        return (h - mean) * (square - mean.square() + 1e-5).rsqrt() * self.weight + self.bias

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, reference={self.reference}"


class WithReference(nn.Module):
    """Calls ``network`` on the reference batch and x together and returns its output for x.

    Args:
        network: with :class:`VirtualBatchNorm` layers in place of batch norms.
        reference: (R, ...), a fixed batch of what the network is called on; kept as a buffer.

    >>> net = WithReference(nn.Sequential(nn.Conv2d(1, 2, 3), VirtualBatchNorm(2, 8)), torch.rand(8, 1, 6, 6))
    >>> x = torch.rand(3, 1, 6, 6)
    >>> torch.allclose(net(x)[:1], net(x[:1]), atol=1e-5)
    True
    """

    reference: Tensor

    def __init__(self, network: nn.Module, reference: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("reference", reference)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(torch.cat([self.reference.to(x), x]))[len(self.reference) :]
