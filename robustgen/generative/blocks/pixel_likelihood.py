"""p(x | parameters) of independent pixels, where a network gives the parameters (N, parameters, H, W)."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustgen.checks import check_numbers
from robustgen.generative.blocks.gaussian import gaussian_log_prob

__all__ = ["Bernoulli", "Gaussian", "PixelLikelihood"]


class PixelLikelihood(nn.Module, ABC):
    """Given its parameters, every pixel is independent of the others.

    Attributes:
        parameters_per_pixel: channels of the feature map that a network must give.
    """

    parameters_per_pixel: int

    @abstractmethod
    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        """log p(x | parameters) in nats, (N,), of x (N, C, H, W)."""

    @abstractmethod
    def mean(self, parameters: Tensor) -> Tensor:
        """The expected image (N, C, H, W), in [0, 1]."""

    @abstractmethod
    def sample(self, parameters: Tensor, uniforms: Tensor) -> Tensor:
        """Images in [0, 1] from one uniform number a pixel and channel, (N, C, H, W) in [0, 1)."""


class Bernoulli(PixelLikelihood):
    """Binary pixels by their logits."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.parameters_per_pixel = channels

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        return (x * parameters - F.softplus(parameters)).flatten(1).sum(1)

    def mean(self, parameters: Tensor) -> Tensor:
        return parameters.sigmoid()

    def sample(self, parameters: Tensor, uniforms: Tensor) -> Tensor:
        return (uniforms >= (-parameters).sigmoid()).to(parameters.dtype)  # P(x = 0) <= u


class Gaussian(PixelLikelihood):
    """A density over all of R^D, in units of the [0, 1] scale: N(mean, scale^2) with one scale for all pixels.

    Args:
        channels: of the images.
        scale: the standard deviation, > 0; None: learned, from 0.5 on, with an 8-bit grey level as the lowest, since a
            density has no upper limit where data repeat exactly.
    """

    LOWEST = 1 / 255

    def __init__(self, channels: int, scale: float | None) -> None:
        super().__init__()
        if scale is not None:
            check_numbers(scale=scale)
        if scale is not None and not 0 < scale < float("inf"):
            raise ValueError(f"scale must be a finite number > 0, or None to learn it; got {scale}")
        self.parameters_per_pixel = channels
        start = torch.expm1(torch.tensor(0.5 - self.LOWEST)).log()  # the inverse of softplus
        self.raw_scale = nn.Parameter(start) if scale is None else None
        self.fixed_scale = scale

    @property
    def scale(self) -> Tensor | float:
        """The standard deviation."""
        if self.fixed_scale is not None:
            return self.fixed_scale
        return self.LOWEST + F.softplus(self.raw_scale)

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        log_scale = torch.as_tensor(self.scale).log().to(x)
        return gaussian_log_prob(x, parameters.sigmoid(), log_scale).flatten(1).sum(1)

    def mean(self, parameters: Tensor) -> Tensor:
        return parameters.sigmoid()

    def sample(self, parameters: Tensor, uniforms: Tensor) -> Tensor:
        """What lies outside [0, 1] is moved to its end: images have no values there."""
        noise = torch.special.ndtri(uniforms)
        return (parameters.sigmoid() + self.scale * noise).clamp(0, 1)
