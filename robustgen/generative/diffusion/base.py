"""What diffusion models with a schedule of discrete steps share: noise that is added, and taken away step by step.

Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020; Song, Meng and Ermon, "Denoising
Diffusion Implicit Models", ICLR 2021, section 4.2 (samples through some of the steps only).
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from robustgen.checks import check_images, check_integers, check_positive
from robustgen.generative.base import GenerativeModel
from robustgen.generative.diffusion.noise_schedule import NoiseSchedule

__all__ = ["Diffusion", "chain_times"]


def chain_times(depth: int, steps: int | None, trained: int) -> list[int]:
    """The times of a chain of ``steps`` from ``depth`` to 0, at equal distances; without a number, every one.

    Raises:
        TypeError, ValueError: a depth outside 1 ... ``trained``, or more steps than depth.

    >>> chain_times(10, 3, trained=100)
    [10, 7, 3, 0]
    """
    check_integers(depth=depth, **({} if steps is None else {"steps": steps}))
    if depth > trained:
        raise ValueError(f"depth={depth} is more than the {trained} steps that were trained")
    steps = depth if steps is None else steps
    if steps > depth:
        raise ValueError(f"a chain of {steps} steps does not fit between 0 and {depth}: take at most {depth}")
    return [round(i * depth / steps) for i in range(steps, -1, -1)]


class Diffusion(GenerativeModel):
    """A model p(u_s | u_t), s < t, of what a :class:`NoiseSchedule` made of u_0 = scale (2 x - 1), x (N, C, H, W).

    A subclass gives ``_predict`` and ``_reverse``, and a schedule. Random numbers are the global ones, or those of the
    generator that is given.

    Attributes:
        schedule: of the noise.
        scale: of states; 1 but for subclasses that say otherwise.
        sample_steps: steps of a sample, at most those of the schedule; others are left out.
    """

    schedule: NoiseSchedule
    scale: float = 1.0
    sample_steps: int

    @abstractmethod
    def _predict(self, u: Tensor, t: int) -> Tensor:
        """u_0 (N, ...) that the model expects of u_t, with a graph where gradients are on."""

    @abstractmethod
    def _reverse(self, u: Tensor, t: int, s: int, generator: torch.Generator | None = None) -> Tensor:
        """u_s drawn from the model of u_s given u_t, s < t, with a graph where gradients are on."""

    def times(self, depth: int, steps: int | None = None) -> list[int]:
        """The times of a chain of ``steps`` from ``depth`` to 0; see :func:`chain_times`, which raises."""
        return chain_times(depth, steps, self.schedule.steps)

    def chain(self, depth: int, steps: int | None = None) -> list[Callable[[Tensor], Tensor]]:
        """Functions that, one after the other, diffuse images to ``depth`` and take the noise away again.

        The first takes images in [0, 1], the last returns images, not clamped; between them are states. Each draws
        from the global random numbers and is differentiable.

        Args:
            depth: t, from 1 to the schedule's steps.
            steps: of the way back; see :meth:`times`.

        Raises:
            TypeError, ValueError: as :meth:`times` says.
        """
        times = self.times(depth, steps)
        back = [partial(self._reverse, t=t, s=s) for t, s in pairwise(times)]
        return [partial(self._diffuse, t=depth), *back[:-1], lambda u: self._image(back[-1](u))]

    def _state(self, x: Tensor) -> Tensor:
        return self.scale * (2 * x - 1)

    def _image(self, u: Tensor) -> Tensor:
        return (u / self.scale + 1) / 2

    @torch.no_grad()
    def edit(self, x: Tensor, depth: int, steps: int | None = None) -> Tensor:
        """Images (N, *shape) in [0, 1] that the model makes of x, strokes for one, by diffusing it and coming back.

        Meng et al., "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations", ICLR 2022. The
        larger the depth, the more they look like data and the less like x.

        Args:
            depth, steps: see :meth:`chain`.

        Raises:
            TypeError, ValueError: no images of this shape in [0, 1], or a depth or steps as :meth:`times` says.
        """
        u = self.check(x)
        for function in self.chain(depth, steps):
            u = function(u)
        return u.clamp(0, 1)

    def _diffuse(self, x: Tensor, t: int) -> Tensor:
        u = self._state(x)
        return self.schedule.diffuse(u, torch.full((len(u),), t), torch.randn_like(u))

    @property
    def sigma_min(self) -> float:
        """Noise of the first step, as standard deviation of pixels in [0, 1]."""
        return self.schedule.sigmas()[1].item() / (2 * self.scale)

    @property
    def sigma_max(self) -> float:
        """Noise of the last step, as standard deviation of pixels in [0, 1]."""
        return self.schedule.sigmas()[-1].item() / (2 * self.scale)

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """What is expected of images (N, ...) in [0, 1] behind Gaussian noise of standard deviation ``sigma``.

        Carlini et al., "(Certified!!) Adversarial Robustness for Free!", ICLR 2023, algorithm 1. Differentiable; not
        clamped to [0, 1].

        Raises:
            TypeError: no floats, or a sigma that is no number.
            ValueError: NaN or Inf, images of another shape, or noise below half of the first step's or above the last.
        """
        x = self._of_its_shape(check_images(x))
        check_positive(sigma=sigma)
        low, high = self.sigma_min, self.sigma_max
        if not low / 2 <= sigma <= high * (1 + 1e-6):
            raise ValueError(f"noise of this {type(self).__name__} is from {low:.3g} to {high:.3g}, got {sigma=:g}")
        return self._denoise(x, sigma)

    def _denoise(self, x: Tensor, sigma: float) -> Tensor:
        """At the step whose noise is nearest."""
        t = 1 + int((self.schedule.sigmas()[1:].log() - math.log(2 * self.scale * sigma)).abs().argmin())
        kept = self.schedule.alpha_bars[t].sqrt().item()
        return self._image(self._predict(kept * self._state(x), t))

    def _drawn(self, n: int, generator: torch.Generator | None, **given: Any) -> Tensor:
        """n samples; ``given`` is what ``_reverse`` is told besides."""
        options: dict[str, Any] = {"generator": generator, "device": self.device, "dtype": self.dtype}
        u = torch.randn(n, *self.shape, **options)
        for t, s in pairwise(self.times(self.schedule.steps, self.sample_steps)):
            u = self._reverse(u, t, s, generator, **given)
        return self._image(u).clamp(0, 1)

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        return self._drawn(n, generator)
