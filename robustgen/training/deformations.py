"""Random deformations that leave a drawn sign what it is, and an objective that trains on deformed images.

Simard, Steinkraus and Platt, "Best Practices for Convolutional Neural Networks Applied to Visual Document Analysis",
ICDAR 2003: affine maps and elastic fields. Their fields are smoothed pixel noise; here they are noise on a coarse grid,
interpolated, which is one small tensor an image. Stroke width and contrast are this library's additions.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustgen.checks import check_integers, plain_fields
from robustgen.training.batches import Batch
from robustgen.training.objective import Objective, describe

__all__ = ["CropAndFlip", "Deformations", "OnDeformed"]


@dataclass(frozen=True, kw_only=True)
class Deformations:
    """Each image of a batch moved, bent, thickened or thinned, and lit, at random and on its own.

    The drawing is taken to be bright on black: what comes in from outside the image is 0. Random numbers come from
    torch's global generator, which the trainer seeds at each step.

    Args:
        rotation: largest angle, in degrees.
        scale: largest |log factor|, of width and height separately.
        shear: largest shift of a row, in its distance from the centre.
        shift: largest move along each axis, as a share of the image's size.
        bend: standard deviation of the elastic field, as a share of the image's size.
        bend_grid: points of the coarse grid along each axis, at least 2; more make shorter waves.
        thickness: largest share of the way to each pixel's brightest (or darkest) neighbour in 3x3.
        gamma: largest |log exponent| of the pixel values.
        noise: standard deviation of the noise on each pixel; values are cut at 0 and 1.

    Raises:
        ValueError: a value that is negative, or no grid.

    >>> x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> Deformations()(x).shape
    torch.Size([4, 1, 8, 8])
    >>> still = Deformations(rotation=0, scale=0, shear=0, shift=0, bend=0, thickness=0, gamma=0, noise=0)
    >>> torch.allclose(still(x), x, atol=1e-5)
    True
    """

    rotation: float = 15.0
    scale: float = 0.15
    shear: float = 0.25
    shift: float = 0.08
    bend: float = 0.04
    bend_grid: int = 5
    thickness: float = 0.7
    gamma: float = 0.3
    noise: float = 0.05

    def __post_init__(self) -> None:
        plain_fields(self)
        for name, value in asdict(self).items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be a finite number >= 0, got {value}")
        if self.bend_grid < 2:
            raise ValueError(f"bend_grid must be at least 2 points along each axis, got {self.bend_grid}")

    def __call__(self, x: Tensor) -> Tensor:
        """Deformed images of x (N, C, H, W) in [0, 1], of the same shape and range."""
        x = F.grid_sample(x, self._positions(x), align_corners=False)
        x = self._stroke(x)
        x = x.clamp(0, 1) ** torch.exp(self.gamma * _uniform(x, len(x), 1, 1, 1))
        return (x + self.noise * torch.randn_like(x)).clamp(0, 1)

    def describe(self) -> dict[str, Any]:
        """Every setting, JSON-able."""
        return {"deformations": type(self).__name__} | asdict(self)

    def _positions(self, x: Tensor) -> Tensor:
        """Where each pixel of the result is read, (N, H, W, 2), the image reaching from -1 to 1."""
        n, _, height, width = x.shape
        angle = math.radians(self.rotation) * _uniform(x, n)
        cos, sin, shear = angle.cos(), angle.sin(), self.shear * _uniform(x, n)
        across, down = torch.exp(self.scale * _uniform(x, 2, n))
        columns = (cos * across, (cos * shear - sin) * down, sin * across, (sin * shear + cos) * down)
        linear = torch.stack(columns, 1).view(n, 2, 2)  # rotation @ shear @ scaling
        affine = torch.cat([linear, 2 * self.shift * _uniform(x, n, 2, 1)], dim=2)
        knots = 2 * self.bend * torch.randn(n, 2, self.bend_grid, self.bend_grid, dtype=x.dtype, device=x.device)
        field = F.interpolate(knots, (height, width), mode="bicubic", align_corners=True)
        return F.affine_grid(affine, [n, 1, height, width], align_corners=False) + field.permute(0, 2, 3, 1)

    def _stroke(self, x: Tensor) -> Tensor:
        change = self.thickness * _uniform(x, len(x), 1, 1, 1)
        thicker, thinner = F.max_pool2d(x, 3, 1, 1), -F.max_pool2d(-x, 3, 1, 1)
        return x + change.clamp(min=0) * (thicker - x) + change.clamp(max=0) * (x - thinner)


@dataclass(frozen=True, kw_only=True)
class CropAndFlip:
    """Each image of a batch shifted, zeros coming in, and mirrored with probability 1/2: the usual for photos.

    He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", 2016, section 4.2. Random numbers come from
    torch's global generator, which the trainer seeds at each step.

    Args:
        pad: largest shift along each axis, in pixels, >= 0.

    Raises:
        ValueError: a negative shift; at the call, no images, or a shift of more than a quarter of them.

    >>> x = torch.ones(8, 1, 8, 8)
    >>> moved = CropAndFlip(pad=2)(x)
    >>> moved.shape == x.shape, bool((moved.sum((1, 2, 3)) >= 36).all())
    (True, True)
    """

    pad: int = 4

    def __post_init__(self) -> None:
        plain_fields(self)
        check_integers(0, pad=self.pad)

    def __call__(self, x: Tensor) -> Tensor:
        """Images of x (N, C, H, W), of the same shape."""
        if x.ndim != 4:
            raise ValueError(f"CropAndFlip takes images (N, C, H, W), got shape {tuple(x.shape)}")
        n, channels, height, width = x.shape
        if 4 * self.pad > min(height, width):
            raise ValueError(
                f"images of {height}x{width} pixels are too small to be shifted by up to {self.pad}: train without"
            )
        padded = F.pad(x, (self.pad,) * 4)
        top, left = torch.randint(2 * self.pad + 1, (2, n, 1), device=x.device)
        rows = top + torch.arange(height, device=x.device)  # (n, height)
        columns = left + torch.arange(width, device=x.device)
        mirrored = torch.rand(n, 1, device=x.device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
        which = torch.arange(n, device=x.device).view(n, 1, 1, 1)
        channel = torch.arange(channels, device=x.device).view(1, channels, 1, 1)
        return padded[which, channel, rows[:, None, :, None], columns[:, None, None, :]]

    def describe(self) -> dict[str, Any]:
        """Every setting, JSON-able."""
        return {"deformations": type(self).__name__} | asdict(self)


class OnDeformed:
    """An objective on deformed images in training; validation sees the images as they are.

    Args:
        objective: what is minimised, such as :class:`ClassifierObjective`.
        deformations: of the images.

    >>> from robustgen.training import ClassifierObjective
    >>> OnDeformed(ClassifierObjective(), Deformations(rotation=30)).describe()["deformations"]["rotation"]
    30
    """

    def __init__(self, objective: Objective, deformations: Deformations | CropAndFlip) -> None:
        self.objective, self.deformations = objective, deformations

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        if model.training:
            batch = batch._replace(x=self.deformations(batch.x))
        return self.objective(model, batch, step)

    def describe(self) -> dict[str, Any]:
        """Every setting, JSON-able."""
        return {"objective": describe(self.objective), "deformations": self.deformations.describe()}


def _uniform(x: Tensor, *shape: int) -> Tensor:
    """Uniform numbers in [-1, 1) of the type and on the device of x."""
    return 2 * torch.rand(shape, dtype=x.dtype, device=x.device) - 1
