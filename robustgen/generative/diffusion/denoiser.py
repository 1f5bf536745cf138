"""A denoiser of every noise level, for randomized smoothing before a network that has never seen noise.

Salman, Sun, Yang, Kapoor and Kolter, "Denoised Smoothing: A Provable Defense for Pretrained Classifiers", NeurIPS 2020
(squared error; and the classifier's own clean answer as a second aim); Karras, Aittala, Aila and Laine, "Elucidating
the Design Space of Diffusion-Based Generative Models", NeurIPS 2022, table 1 (one network for all noise levels, its
input, output and loss in units of their standard deviations).
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustgen.checks import check_images, check_integers, check_numbers, check_positive
from robustgen.generative.base import GenerativeModel
from robustgen.generative.diffusion.unet import UNet, check_network
from robustgen.model import logits_of, untouched
from robustgen.training import Batch, unwrap

__all__ = ["Denoiser", "DenoisingObjective"]


class Denoiser(GenerativeModel):
    """D(x + sigma n, sigma) ~ E[x | x + sigma n], n ~ N(0, I), for every sigma in [sigma_min, sigma_max].

    With c = sigma^2 + sigma_data^2, D(v, sigma) = c_skip v + c_out F(c_in v, log(sigma) / 4), where c_skip =
    sigma_data^2 / c, c_out = sigma sigma_data / sqrt(c), c_in = 1 / sqrt(c), and v is centred at 1/2. The loss is
    |D - x|^2 / c_out^2, of sigma drawn log-uniformly.

    ``sample`` follows the denoiser from noise at ``sigma_max`` down in ``sample_steps`` steps; since that is not much
    noise, its images are rough.

    Args:
        shape: (channels, height, width).
        sigma_min, sigma_max: least and largest noise, as standard deviation of pixels in [0, 1].
        width: channels of the U-Net at full resolution; 12: 66,000 parameters.
        levels: its resolutions.
        patch: the U-Net sees images of patches of so many pixels squared as channels: quicker by as much, and as many
            parameters. Height and width must be multiples of it.
        sigma_data: standard deviation of a pixel about 1/2.
        sample_steps: of ``sample``.

    Raises:
        TypeError, ValueError: a value of the wrong type or out of range.

    >>> model = Denoiser((1, 8, 8), width=4).eval()
    >>> model.denoise(torch.zeros(2, 1, 8, 8), 0.5).shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        sigma_min: float = 0.1,
        sigma_max: float = 1.0,
        width: int = 12,
        levels: int = 3,
        patch: int = 1,
        sigma_data: float = 0.4,
        sample_steps: int = 20,
    ) -> None:
        super().__init__(shape)
        check_network(self.shape, width, levels, patch)
        check_integers(sample_steps=sample_steps)
        check_positive(sigma_min=sigma_min, sigma_max=sigma_max, sigma_data=sigma_data)
        if sigma_min > sigma_max:
            raise ValueError(f"sigma_min={sigma_min} is above sigma_max={sigma_max}")
        self.sigma_min, self.sigma_max, self.sigma_data = sigma_min, sigma_max, sigma_data
        self.width, self.levels, self.patch, self.sample_steps = width, levels, patch, sample_steps
        self.network = UNet(shape[0], shape[0], width, levels, patch)

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Images of ``shape`` (N, ...), whose noise of standard deviation ``sigma`` (one, or (N,)) is taken away.

        Differentiable; not clamped to [0, 1].

        Raises:
            TypeError: no floats.
            ValueError: NaN or Inf, images of another shape, or a sigma outside of what was trained.
        """
        x = self._of_its_shape(check_images(x))
        level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))
        low, high = self.sigma_min * (1 - 1e-6), self.sigma_max * (1 + 1e-6)
        if len(x) and not bool(((level >= low) & (level <= high)).all()):
            raise ValueError(
                f"this {type(self).__name__} is of noise from {self.sigma_min:g} to {self.sigma_max:g}, got "
                f"{float(level.max()):g}: train one with another sigma_min or sigma_max"
            )
        return self._denoise(x, level)

    def _ask(self, u: Tensor, noise: Tensor) -> Tensor:
        """What the network says of images (N, ...), how noisy they are (N,)."""
        return self.network(u, noise)

    def chain(self, depth: float, steps: int | None = None) -> list[Callable[[Tensor], Tensor]]:
        """Functions that, one after the other, add noise of standard deviation ``depth`` and take it away again.

        In one step, which leaves E[x | x + noise], or in several along the flow that ``sample`` follows; see
        :meth:`robustgen.generative.diffusion.base.Diffusion.chain`.

        Raises:
            TypeError, ValueError: a depth outside of what was trained, or no whole number of steps.
        """
        check_numbers(depth=depth)
        if not self.sigma_min <= depth <= self.sigma_max:
            trained = f"from {self.sigma_min:g} to {self.sigma_max:g}, as was trained"
            raise ValueError(f"depth is a standard deviation {trained}, got {depth:g}")
        check_integers(steps=1 if steps is None else steps)
        back = [partial(self._step, sigma=a, lower=b) for a, b in pairwise(self._levels(depth, steps or 1))]
        return [lambda x: x + depth * torch.randn_like(x), *back]

    def _levels(self, highest: float, steps: int) -> list[float]:
        """From the ``highest`` noise down to none."""
        return [*torch.logspace(math.log10(highest), math.log10(self.sigma_min), steps).tolist(), 0.0]

    def _step(self, x: Tensor, sigma: float, lower: float) -> Tensor:
        """Euler's method on the flow that keeps p(x; sigma)."""
        denoised = self._denoise(x, torch.full((len(x),), sigma, device=x.device, dtype=x.dtype))
        return denoised + (x - denoised) * (lower / sigma)

    def _denoise(self, x: Tensor, level: Tensor, **given: Any) -> Tensor:
        """``given``: what ``_ask`` is told besides."""
        s = level[:, None, None, None]
        c = s.square() + self.sigma_data**2
        v = x - 0.5
        found = self._ask(v / c.sqrt(), level.log() / 4, **given)
        return 0.5 + v * self.sigma_data**2 / c + found * s * self.sigma_data / c.sqrt()

    def noised(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Each image with noise, and how much: (N, ...) and (N,); by torch's global random numbers."""
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        level = (low + (high - low) * torch.rand(len(x), dtype=x.dtype, device=x.device)).exp()
        return x + level[:, None, None, None] * torch.randn_like(x), level

    def weight(self, level: Tensor) -> Tensor:
        """1 / c_out^2."""
        return (level.square() + self.sigma_data**2) / (level * self.sigma_data).square()

    def loss(self, denoised: Tensor, x: Tensor, level: Tensor) -> Tensor:
        """Mean of |D - x|^2 / c_out^2, in which every noise level counts alike."""
        return (self.weight(level) * (denoised - x).square().flatten(1).mean(1)).mean()

    def training_step(self, batch: Batch, step: int, **given: Any) -> dict[str, Tensor]:
        noisy, level = self.noised(batch.x)
        denoised = self._denoise(noisy, level, **given)
        return {
            "loss": self.loss(denoised, batch.x, level),
            "squared_error": (denoised - batch.x).square().mean().detach(),
        }

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        options: dict[str, Any] = {"generator": generator, "device": self.device, "dtype": self.dtype}
        scale = math.hypot(self.sigma_max, self.sigma_data)
        x = 0.5 + scale * torch.randn(n, *self.shape, **options)
        for sigma, lower in pairwise(self._levels(self.sigma_max, self.sample_steps)):
            x = self._step(x, sigma, lower)
        return x.clamp(0, 1)


class DenoisingObjective:
    """Trains a :class:`Denoiser` so that a classifier answers its images as it answers the clean ones.

    loss = ``weight`` * CE(f(D(x + noise)), argmax f(x)) + the denoiser's own; no labels are used, and f stays as it is.

    Args:
        classifier: f, x (N, ...) -> logits (N, C); it is kept in eval mode and frozen.
        weight: of the first term.

    Raises:
        ValueError: a weight that is not a positive number.
    """

    def __init__(self, classifier: nn.Module, weight: float = 1.0) -> None:
        check_positive(weight=weight)
        self.classifier, self.weight = classifier, weight

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        own: Any = unwrap(model)
        x = own.check(batch.x)
        noisy, level = own.noised(x)
        denoised = own._denoise(noisy, level)
        with untouched(self.classifier, None):
            with torch.no_grad():
                answers = logits_of(self.classifier(x)).argmax(1)
            consistency = F.cross_entropy(logits_of(self.classifier(denoised)), answers)
        error = own.loss(denoised, x, level)
        return {
            "loss": error + self.weight * consistency,
            "error": error.detach(),
            "consistency": consistency.detach(),
        }

    def describe(self) -> dict[str, Any]:
        """JSON-able; the model's config says the rest."""
        return {"objective": "DenoisingObjective", "weight": self.weight}
