"""Invertible maps, and the density that a chain of them gives.

Rezende and Mohamed, "Variational Inference with Normalizing Flows", ICML 2015, equations 5 to 7: log p(x) is the log
density of the noise and the log determinants, summed.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from robustgen.generative.blocks.gaussian import gaussian_log_prob

__all__ = ["Chain", "Density", "Transform"]


class Transform(nn.Module, ABC):
    """An invertible map of x (N, ...), in the direction from data to noise; each row alone."""

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y, which may have another shape, and log |det dy/dx| (N,)."""

    @abstractmethod
    def inverse(self, y: Tensor) -> Tensor:
        """The x of ``y``."""


class Chain(Transform):
    """Several transforms, one after another.

    >>> import torch
    >>> chain = Chain()
    >>> y, log_det = chain(torch.ones(2, 3))
    >>> log_det.tolist(), bool((chain.inverse(y) == 1).all())
    ([0.0, 0.0], True)
    """

    def __init__(self, *transforms: Transform) -> None:
        super().__init__()
        self.transforms = nn.ModuleList(transforms)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x))
        for transform in self.transforms:
            x, log_det = transform(x)
            total = total + log_det
        return x, total

    def inverse(self, y: Tensor) -> Tensor:
        for transform in reversed(self.transforms):
            y = transform.inverse(y)
        return y


class Density(nn.Module):
    """log p(z) of vectors z (N, D) anywhere in R^D: standard normal noise behind ``transform``.

    What latent flows and densities of hidden states are made of; images in [0, 1] have
    :class:`~robustgen.generative.flows.base.Flow`.

    Args:
        transform: a :class:`Transform` of vectors.
        dim: D.

    >>> import torch
    >>> density = Density(Chain(), dim=2)
    >>> round(float(density.log_prob(torch.zeros(1, 2))), 4)  # -log(2 pi)
    -1.8379
    """

    def __init__(self, transform: Transform, dim: int) -> None:
        super().__init__()
        self.transform, self.dim = transform, dim

    def to_noise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The noise eps (N, D) of z (N, D), and log |det d eps/dz| (N,)."""
        eps, log_det = self.transform(z)
        return eps, log_det

    def from_noise(self, eps: Tensor) -> Tensor:
        """The z (N, D) of eps (N, D)."""
        return self.transform.inverse(eps)

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) (N,) in nats."""
        eps, log_det = self.to_noise(z)
        return gaussian_log_prob(eps).sum(1) + log_det
