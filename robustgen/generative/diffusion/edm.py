"""Diffusion without a schedule in training: noise of any level, taken away along the flow of its probability.

Karras, Aittala, Aila and Laine, "Elucidating the Design Space of Diffusion-Based Generative Models", NeurIPS 2022: the
preconditioning (table 1) is that of :class:`Denoiser`, the noise in training log-normal (section 5), the samples by
Heun's method at the times of equation 5 (algorithm 1).
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from robustgen.checks import check_numbers, check_positive
from robustgen.generative.diffusion.base import chain_times
from robustgen.generative.diffusion.denoiser import Denoiser
from robustgen.generative.diffusion.guidance import ClassConditional
from robustgen.generative.diffusion.unet import UNet
from robustgen.training import Batch

__all__ = ["EDM"]


class EDM(ClassConditional, Denoiser):
    """A :class:`Denoiser` of nearly no noise up to nothing but noise, whose flow draws images in few steps.

    There is no ``log_prob``: :class:`ScoreSDE` has that of the flow. Samples are better with an average of weights:
    ``--ema 0.999``, or ``fit(..., ema=0.999)``. Noise is in units of pixels in [0, 1], half of the paper's.

    Args:
        shape: (C, H, W).
        sigma_min, sigma_max: least and largest noise of a sample's steps.
        sigma_data: standard deviation of a pixel about 1/2.
        log_sigma_mean, log_sigma_std: of the logarithm of the noise in training, which is normal.
        rho: how much shorter steps at little noise are.
        classes, label_dropout, guidance: see :class:`ClassConditional`.
        sample_steps: of Heun's method; each but the last asks the network twice.
        width, levels, patch: of the :class:`UNet`; by default 250,000 parameters, on patches of 2 x 2 pixels.

    Raises:
        TypeError, ValueError: a value of the wrong type or out of range.

    >>> model = EDM((1, 8, 8), width=4, sample_steps=3).eval()
    >>> model.sample(2).shape, model.denoise(torch.zeros(2, 1, 8, 8), 0.5).shape
    (torch.Size([2, 1, 8, 8]), torch.Size([2, 1, 8, 8]))
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        sigma_min: float = 0.001,
        sigma_max: float = 40.0,
        sigma_data: float = 0.4,
        log_sigma_mean: float = -1.9,
        log_sigma_std: float = 1.2,
        rho: float = 7.0,
        classes: int = 0,
        label_dropout: float = 0.1,
        guidance: float = 1.0,
        sample_steps: int = 18,
        width: int = 24,
        levels: int = 3,
        patch: int = 2,
    ) -> None:
        check_numbers(log_sigma_mean=log_sigma_mean)
        check_positive(log_sigma_std=log_sigma_std, rho=rho)
        noise: dict[str, float] = {"sigma_min": sigma_min, "sigma_max": sigma_max, "sigma_data": sigma_data}
        Denoiser.__init__(self, shape, width=width, levels=levels, patch=patch, sample_steps=sample_steps, **noise)
        self._set_classes(classes, label_dropout, guidance)
        self.network = UNet(shape[0], shape[0], width, levels, patch, classes)
        self.log_sigma_mean, self.log_sigma_std, self.rho = log_sigma_mean, log_sigma_std, rho

    def noised(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Each image with noise, and how much: (N, ...) and (N,); by torch's global random numbers."""
        normal = torch.randn(len(x), dtype=x.dtype, device=x.device)
        level = (self.log_sigma_mean + self.log_sigma_std * normal).exp()
        return x + level[:, None, None, None] * torch.randn_like(x), level

    def training_step(self, batch: Batch, step: int, **given: Any) -> dict[str, Tensor]:
        return super().training_step(batch, step, y=self._labels(batch), **given)

    def noise_error(self, x: Tensor, noise: Tensor, position: float, y: Tensor | None = None) -> Tensor:
        normal = torch.special.ndtri(torch.tensor(position, dtype=torch.float64)).item()
        level = x.new_full((len(x),), math.exp(self.log_sigma_mean + self.log_sigma_std * normal))
        denoised = self._denoise(x + level[:, None, None, None] * noise, level, y=y)
        return self.weight(level) * (denoised - x).square().flatten(1).sum(1)

    def sigmas(self) -> list[float]:
        """Noise of a sample's steps, from 0 and ``sigma_min`` up to ``sigma_max``: ``sample_steps`` + 1 numbers."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        grid = torch.linspace(low, high, self.sample_steps, dtype=torch.float64, device="cpu").pow(self.rho)
        return [0.0, *grid.tolist()]

    def _step(self, x: Tensor, sigma: float, lower: float, **given: Any) -> Tensor:
        """Heun's method on dx / dsigma = (x - D(x, sigma)) / sigma; Euler's down to no noise at all, which is D."""

        def slope(x: Tensor, sigma: float) -> Tensor:
            return (x - self._denoise(x, torch.full((len(x),), sigma, device=x.device, dtype=x.dtype), **given)) / sigma

        first = slope(x, sigma)
        ahead = x + (lower - sigma) * first
        return ahead if lower == 0 else x + (lower - sigma) * (first + slope(ahead, lower)) / 2

    def _sample_of(self, n: int, y: Tensor | None, generator: torch.Generator | None) -> Tensor:
        options: dict[str, Any] = {"generator": generator, "device": self.device, "dtype": self.dtype}
        x = 0.5 + self.sigma_max * torch.randn(n, *self.shape, **options)
        for sigma, lower in pairwise(reversed(self.sigmas())):
            x = self._step(x, sigma, lower, y=y, guidance=self.guidance)
        return x.clamp(0, 1)

    def chain(self, depth: Any, steps: int | None = None) -> list[Callable[[Tensor], Tensor]]:
        """Functions that, one after the other, put noise on images and take it away again.

        As :meth:`Diffusion.chain`, with states that are images with noise of :meth:`sigmas` and a way back without
        noise. Classes are not told.

        Args:
            depth: which of :meth:`sigmas` the noise is, from 1 to ``sample_steps``.
            steps: of the way back, at most ``depth``, over equal distances in the list; None: all of them.

        Raises:
            TypeError, ValueError: a depth or a number of steps out of range.
        """
        levels = [self.sigmas()[t] for t in chain_times(depth, steps, self.sample_steps)]
        back = [partial(self._step, sigma=sigma, lower=lower) for sigma, lower in pairwise(levels)]
        return [lambda x: x + levels[0] * torch.randn_like(x), *back]
