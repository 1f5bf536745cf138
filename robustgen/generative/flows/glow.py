"""Kingma and Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions", NeurIPS 2018."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustgen.checks import check_integers, nearest
from robustgen.generative.flows.base import Flow, Logit
from robustgen.generative.flows.coupling import Coupling, zeroed
from robustgen.generative.flows.transform import ActNorm, Chain, MultiScale, Squeeze, Transform, squeezed_shapes

__all__ = ["Glow", "InvertibleConv"]

_COUPLINGS = ("affine", "additive")


class InvertibleConv(Transform):
    """A 1 x 1 convolution with the kernel W = L (U + diag(s)), of which log |det W| = sum log s (section 3.2, equations
    10 and 11).

    L has ones on its diagonal, U zeros; s > 0 is kept as its logarithm. W begins as a random rotation, whose rows and
    signs are chosen so that the paper's fixed permutation P and the signs of s are not needed.

    >>> conv, x = InvertibleConv(4), torch.randn(2, 4, 3, 3)
    >>> y, log_det = conv(x)
    >>> torch.allclose(conv.inverse(y), x, atol=1e-5), torch.allclose(log_det, 9 * conv.kernel().logdet(), atol=1e-4)
    (True, True)
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(channels, channels))[0]
        _, lower, upper = torch.linalg.lu(rotation)
        upper = upper * upper.diagonal().sign()  # of whole columns: still a rotation
        self.lower = nn.Parameter(lower.tril(-1))
        self.upper = nn.Parameter(upper.triu(1))
        self.log_diagonal = nn.Parameter(upper.diagonal().log())

    def singular(self) -> bool:
        """Whether s has become 0."""
        return bool((self.log_diagonal.exp() == 0).any())

    def _factors(self) -> tuple[Tensor, Tensor]:
        diagonal = self.log_diagonal.exp()
        if not self.training and self.singular():
            raise ValueError("the kernel of an invertible 1 x 1 convolution is singular: take weights from before that")
        one = torch.eye(len(diagonal), dtype=diagonal.dtype, device=diagonal.device)
        return self.lower.tril(-1) + one, self.upper.triu(1) + diagonal.diag()

    def kernel(self) -> Tensor:
        """W (C, C)."""
        lower, upper = self._factors()
        return lower @ upper

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        points = math.prod(x.shape[2:])
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 has too few digits for 256 levels
            y = F.conv2d(x, self.kernel()[..., None, None])
        singular = self.log_diagonal.exp() == 0
        log_det = self.log_diagonal.masked_fill(singular, -torch.inf).sum()  # ends a training, with no wait for a GPU
        return y, (points * log_det).expand(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        """Raises ValueError in eval mode where the kernel is singular, as :meth:`forward` does."""
        lower, upper = (factor.double() for factor in self._factors())
        one = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
        inverse = torch.linalg.solve_triangular(lower, one, upper=False, unitriangular=True)
        inverse = torch.linalg.solve_triangular(upper, inverse, upper=True)
        return F.conv2d(y, inverse.to(y.dtype)[..., None, None])


def _network(inputs: int, width: int, outputs: int) -> nn.Module:
    """3 x 3, 1 x 1 and 3 x 3 convolutions (section 5), of which the last begins at zero (section 3.3)."""
    first, second = nn.Conv2d(inputs, width, 3, padding=1), nn.Conv2d(width, width, 1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), zeroed(nn.Conv2d(width, outputs, 3, padding=1)))


class Glow(Flow):
    """At each scale a squeeze and steps of actnorm, an invertible 1 x 1 convolution and a coupling of halves.

    What leaves at a scale is scaled and shifted as the rest says: the normal distribution that the authors' program
    learns of it.

    Args:
        shape: of an image, (channels, height, width); the sides must be even ``scales`` times over.
        levels, dequantization, quantization: see :class:`~robustgen.generative.flows.base.Flow`.
        scales: how often the sides are halved; the paper's L.
        flow_steps: at each scale; the paper's K.
        width: features of the couplings' networks.
        coupling: "affine", or "additive" (no scales).
        alpha: of the :class:`~robustgen.generative.flows.base.Logit` in front; None: without one, as in the paper. With
            it digits on black are learned many times faster; photographs are learned faster without.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range, sides that cannot be halved so often.

    >>> model = Glow((1, 8, 8), levels=2, flow_steps=2, width=8)
    >>> model.log_prob(torch.zeros(5, 1, 8, 8)).shape, model.to_noise(torch.zeros(5, 1, 8, 8))[0].shape
    (torch.Size([5]), torch.Size([5, 64]))
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        levels: int = 256,
        dequantization: str = "uniform",
        quantization: str | None = None,
        scales: int = 2,
        flow_steps: int = 8,
        width: int = 32,
        coupling: str = "affine",
        alpha: float | None = 1e-6,
    ) -> None:
        super().__init__(shape, levels, dequantization, quantization)
        check_integers(flow_steps=flow_steps, width=width)
        if coupling not in _COUPLINGS:
            raise ValueError(f"unknown coupling {coupling!r}; {nearest(coupling, _COUPLINGS)}")
        self.scales, self.flow_steps, self.width, self.coupling, self.alpha = scales, flow_steps, width, coupling, alpha
        shapes = squeezed_shapes(self.shape, scales)
        parts = []
        for channels, _, _ in shapes:
            steps = [layer for _ in range(flow_steps) for layer in self._step(channels)]
            leaving = [] if channels == shapes[-1][0] else [self._coupling(channels, "affine", deep=False)]
            parts.append(Chain(Squeeze(), *steps, *leaving))
        logit = [] if alpha is None else [Logit(alpha)]
        self.transform = Chain(*logit, MultiScale(parts, shapes))

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """(channels * height * width,): what left at the first scale comes first."""
        return (self.dimensions,)

    def check_weights(self) -> None:
        """FloatingPointError where a 1 x 1 convolution has become singular; a training asks before it saves."""
        if any(isinstance(layer, InvertibleConv) and layer.singular() for layer in self.modules()):
            raise FloatingPointError("the kernel of an invertible 1 x 1 convolution is singular")

    def _step(self, channels: int) -> list[Transform]:
        return [ActNorm(channels), InvertibleConv(channels), self._coupling(channels, self.coupling)]

    def _coupling(self, channels: int, kind: str, deep: bool = True) -> Coupling:
        half = channels // 2
        outputs = half if kind == "additive" else channels
        network = _network(half, self.width, outputs) if deep else zeroed(nn.Conv2d(half, outputs, 3, padding=1))
        return Coupling(network, half, kind == "additive")
