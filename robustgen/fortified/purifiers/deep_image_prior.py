"""A network that has seen no image but this one, fitted to it and stopped early: what is regular comes first.

Ulyanov, Vedaldi and Lempitsky, "Deep Image Prior", CVPR 2018, sections 2 and 3 (early stopping).
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustgen.checks import ROUNDING, check_images, check_integers, check_positive, check_shape

__all__ = ["DeepImagePrior"]


class DeepImagePrior(nn.Module):
    """f_theta(z) after ``depth`` steps of Adam on |f_theta(z) - x|^2 from random theta and z, of each image by itself.

    f is a small decoder: 3x3 convolutions with normalisation at a quarter, a half and the whole of the size. Nothing is
    learned beforehand. A derivative through the fit would be of no use to an attack: the identity stands in for it.

    Args:
        shape: (channels, height, width).
        width: channels inside.
        lr: of Adam.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    >>> [fit] = DeepImagePrior((1, 8, 8), width=4).chain(depth=2)
    >>> fit(torch.rand(3, 1, 8, 8)).shape
    torch.Size([3, 1, 8, 8])
    """

    exact = False

    def __init__(self, shape: tuple[int, ...], width: int = 16, lr: float = 0.01) -> None:
        super().__init__()
        self.shape = check_shape(shape)
        check_integers(width=width)
        check_positive(lr=lr)
        self.width, self.lr = width, lr
        self.config = {"shape": self.shape, "width": width, "lr": lr}

    def check(self, x: Tensor) -> Tensor:
        """x (N, *shape), if it is in [0, 1]; TypeError or ValueError otherwise."""
        x = check_images(x, (0.0, 1.0), rounding=ROUNDING)
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"this DeepImagePrior is of images {self.shape}, got {tuple(x.shape[1:])}")
        return x

    def chain(self, depth: int, steps: int | None = None) -> Sequence[Callable[[Tensor], Tensor]]:
        """One function: the fit of ``depth`` steps; ValueError for other ``steps``, which would be another depth."""
        check_integers(depth=depth)
        if steps not in (None, depth):
            raise ValueError(f"a fit of depth={depth} has as many steps, not {steps}: say another depth")
        return [lambda x: self._fit(x, depth)]

    def _fit(self, x: Tensor, steps: int) -> Tensor:
        n, x = len(x), x.detach()
        channels, height, breadth = self.shape
        sizes = [(max(1, -(-height // part)), max(1, -(-breadth // part))) for part in (4, 2, 1)]
        planes = [self.width] * 4 + [channels]
        z = torch.randn(n, self.width, *sizes[0], dtype=x.dtype, device=x.device)
        weights = [  # of each image its own
            (torch.randn(n, b, a, 3, 3, dtype=x.dtype, device=x.device) / math.sqrt(9 * a)).requires_grad_()
            for a, b in pairwise(planes)
        ]
        with torch.enable_grad():
            adam = torch.optim.Adam(weights, lr=self.lr)
            for _ in range(steps):
                adam.zero_grad()
                (self._decode(z, weights, sizes) - x).square().sum().backward()
                adam.step()
        return self._decode(z, weights, sizes).detach()

    def _decode(self, h: Tensor, weights: list[Tensor], sizes: list[tuple[int, int]]) -> Tensor:
        for k, weight in enumerate(weights):
            if k:
                h = F.leaky_relu(F.layer_norm(h, h.shape[1:]), 0.2)
            if k in (1, 2):
                h = F.interpolate(h, size=sizes[k], mode="bilinear", align_corners=False)
            h = _convolved(h, weight)
        return h.sigmoid()


def _convolved(h: Tensor, weight: Tensor) -> Tensor:
    """Each image (N, A, H, W) by its own kernels (N, B, A, 3, 3)."""
    found = F.conv2d(h.flatten(0, 1)[None], weight.flatten(0, 1), padding=1, groups=len(h))
    return found.unflatten(1, weight.shape[:2])[0]
