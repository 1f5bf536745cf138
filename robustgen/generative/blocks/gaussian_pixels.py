"""A Gaussian density of pixels, given a feature map that holds logits of its means.

Kingma and Welling, "Auto-Encoding Variational Bayes", ICLR 2014, appendix C.2, with one scale for all pixels; Rybkin,
Daniilidis and Levine, "Simple and Effective VAE Training with Calibrated Decoders", ICML 2021, section 4.1: learned.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustgen.generative.blocks.gaussian import gaussian_log_prob

__all__ = ["GaussianPixels"]

_LOWEST = 1 / 255  # a grey level of 8-bit images: the density of data that repeat exactly has no upper limit


class GaussianPixels(nn.Module):
    """N(mean, scale^2) for each pixel and channel: a density over all of R^D, per unit of the [0, 1] scale.

    Args:
        channels: of the images.
        scale: the standard deviation, > 0; None: learned, from 0.5 on and above 1 / 255.

    Attributes:
        parameters_per_pixel: channels of the feature map that a network must give.

    Raises:
        ValueError: a scale out of range.

    >>> x = torch.full((1, 1, 1, 1), 0.5)
    >>> GaussianPixels(1, scale=1.0).log_prob(x, torch.zeros(1, 1, 1, 1))
    tensor([-0.9189])
    """

    def __init__(self, channels: int, scale: float | None) -> None:
        super().__init__()
        if scale is not None and not 0 < scale < float("inf"):
            raise ValueError(f"scale must be a finite number > 0, or None to learn it; got {scale}")
        self.parameters_per_pixel = channels
        start = torch.expm1(torch.tensor(0.5 - _LOWEST)).log()  # where softplus is 0.5 - _LOWEST
        self.raw_scale = nn.Parameter(start) if scale is None else None
        self.fixed_scale = scale

    @property
    def scale(self) -> Tensor | float:
        """The standard deviation."""
        return self.fixed_scale if self.raw_scale is None else _LOWEST + F.softplus(self.raw_scale)

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        """log density in nats, (N,), of images x (N, C, H, W)."""
        log_scale = torch.as_tensor(self.scale).log().to(x)
        return gaussian_log_prob(x, parameters.sigmoid(), log_scale).flatten(1).sum(1)

    def mean(self, parameters: Tensor) -> Tensor:
        """The expected image (N, C, H, W), in [0, 1]."""
        return parameters.sigmoid()

    def sample(self, parameters: Tensor, uniforms: Tensor) -> Tensor:
        """Images (N, C, H, W) of uniform numbers; what falls outside [0, 1] is moved to its end."""
        return (parameters.sigmoid() + self.scale * torch.special.ndtri(uniforms)).clamp(0, 1)
