"""Masked autoregressive flow, and its inverse.

Papamakarios, Pavlakou and Murray, "Masked Autoregressive Flow for Density Estimation", NIPS 2017, equations 3 to 5;
Kingma, Salimans, Jozefowicz et al., "Improving Variational Inference with Inverse Autoregressive Flow", NIPS 2016.
"""

import math

import torch
from torch import Tensor, nn

from robustgen.checks import check_integers
from robustgen.generative.blocks.made import MADE, MADEColumns
from robustgen.generative.flows.base import Flow, Logit
from robustgen.generative.flows.transform import Chain, Transform

__all__ = ["MAF", "InverseAutoregressive", "MaskedAutoregressive"]

_BOUND = 5.0  # of a log scale: inputs unlike any that the network saw neither overflow nor lose their digits


class MaskedAutoregressive(Transform):
    """y_i = (x_i - m_i) exp(-s_i), with m_i and s_i, in [-5, 5], of the x before x_i; x (N, ...) of any shape.

    At the start y = x. From x to y all numbers go at once. The inverse takes one after the other, each hidden unit
    computed once (:class:`~robustgen.generative.blocks.made.MADEColumns`), where D passes through the network would do
    the same.

    Args:
        dim: D, the numbers in an x.
        width: units of a hidden layer.
        layers: hidden ones.
        backwards: "before" is behind: the last number comes first.

    >>> step, x = MaskedAutoregressive(dim=4, width=8), torch.randn(3, 4)
    >>> y, log_det = step(x)
    >>> torch.allclose(step.inverse(y), x, atol=1e-5), log_det.shape
    (True, torch.Size([3]))
    """

    def __init__(self, dim: int, width: int, layers: int = 1, backwards: bool = False) -> None:
        super().__init__()
        self.made, self.backwards = MADE(dim, width, layers=layers), backwards
        nn.init.zeros_(self.made.last.weight)  # random scales of several steps would multiply
        nn.init.zeros_(self.made.last.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._at_once(x)

    def inverse(self, y: Tensor) -> Tensor:
        return self._in_turn(y)[0]

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._in_turn(y)

    def _at_once(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y and log |det dy/dx|."""
        v = self._ordered(x.flatten(1))
        m, a = self.made(v).to(v.dtype).unbind(1)  # from autocast's, in which sums of log scales lose their digits
        s = _bounded(a, x.new_tensor(_BOUND))
        return self._ordered((v - m) * (-s).exp()).view_as(x), -s.sum(1)

    def _in_turn(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """x and log |det dy/dx|."""
        columns, bound = MADEColumns(self.made, len(y)), y.new_tensor(_BOUND)
        x: list[Tensor] = []
        log_scales = []
        with torch.autocast(y.device.type, enabled=False):
            for number in self._ordered(y.flatten(1)).T.contiguous().unbind(0):
                m, a = columns(*x[-1:])
                log_scales.append(_bounded(a, bound))
                x.append(torch.addcmul(m, number, log_scales[-1].exp()))
        return self._ordered(torch.stack(x, 1)).view_as(y), -torch.stack(log_scales).sum(0)

    def _ordered(self, v: Tensor) -> Tensor:
        return v.flip(1) if self.backwards else v


class InverseAutoregressive(MaskedAutoregressive):
    """:class:`MaskedAutoregressive` the other way round: at once from noise to data, one by one from data to noise.

    For densities that are drawn from and scored at their own draws alone, as in :func:`reverse_kl`.

    >>> step, eps = InverseAutoregressive(dim=4, width=8), torch.randn(3, 4)
    >>> x, log_det = step.inverse_and_log_det(eps)
    >>> again, same = step(x)
    >>> torch.allclose(again, eps, atol=1e-5), torch.allclose(log_det, same, atol=1e-5)
    (True, True)
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, log_det = self._in_turn(x)
        return y, -log_det

    def inverse(self, y: Tensor) -> Tensor:
        return self._at_once(y)[0]

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x, log_det = self._at_once(y)
        return x, -log_det


def _bounded(a: Tensor, bound: Tensor) -> Tensor:
    return bound * torch.tanh(a / bound)  # tensors: torch takes longer over Python's numbers than over a column


class MAF(Flow):
    """Masked autoregressive steps over all numbers of an image, every second one through them backwards.

    Samples cost about as much as ``flow_steps`` passes through a network, but number after number.

    Args:
        shape: (C, H, W).
        flow_steps: autoregressive ones.
        width: units of a hidden layer.
        layers: hidden ones of a step.
        alpha: of the :class:`Logit` before them; the paper's for MNIST is 1e-6.
        levels, dequantization, quantization: see :class:`Flow`.

    Raises:
        TypeError, ValueError: an argument that is out of range.

    >>> maf = MAF((1, 4, 4), flow_steps=2, width=16).eval()
    >>> x = torch.ones(3, 1, 4, 4)
    >>> maf.log_prob(x).shape, maf.sample(2).shape
    (torch.Size([3]), torch.Size([2, 1, 4, 4]))
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        flow_steps: int = 5,
        width: int = 512,
        layers: int = 1,
        alpha: float = 1e-6,
        levels: int = 256,
        dequantization: str = "uniform",
        quantization: str | None = None,
    ) -> None:
        super().__init__(shape, levels, dequantization, quantization)
        check_integers(flow_steps=flow_steps, width=width, layers=layers)
        self.flow_steps, self.width, self.layers, self.alpha = flow_steps, width, layers, alpha
        dim = math.prod(self.shape)
        steps = (MaskedAutoregressive(dim, width, layers, backwards=t % 2 == 1) for t in range(flow_steps))
        self.transform = Chain(Logit(alpha), *steps)
