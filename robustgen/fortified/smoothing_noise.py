"""Noise behind which a classifier's vote changes slowly, and how slowly: from a share of votes to a radius.

Most draw it, and certify with a probability; :class:`Splitting` has versions that can all be asked, for sure.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustgen.checks import check_integers, check_positive
from robustgen.counter_rng import derive_seed, integers

__all__ = ["Gaussian", "SmoothingNoise", "Splitting", "Uniform", "noisy_versions"]

_BLOCK = 100  # draws that have a random stream of their own, so that no count depends on how many fit in a batch


@dataclass(frozen=True)
class SmoothingNoise(ABC):
    """Noise of standard deviation ``sigma`` in every element of an input, in its units.

    Attributes:
        norm: of the change of the input that a vote stands.
    """

    norm: ClassVar[str]
    sigma: float

    def __post_init__(self) -> None:
        check_positive(sigma=self.sigma)

    @abstractmethod
    def draw(self, x: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
        """n noisy versions (n, ...) of one input x (...)."""

    @abstractmethod
    def radius(self, share: Tensor) -> Tensor:
        """How long a change may be, in ``norm``, behind which a class with at least ``share`` (N,) of the votes still
        has the majority: float64 (N,), 0 where it has none."""

    @abstractmethod
    def share(self, radius: float) -> float:
        """The share that a radius takes; 1 where no share is enough."""


@dataclass(frozen=True)
class Gaussian(SmoothingNoise):
    """N(0, sigma^2 I): L2 radius sigma * Phi^-1(share).

    Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing", 2019, theorem 1 with
    p_B = 1 - p_A; no smaller radius is possible from the share alone.

    >>> Gaussian(0.5).radius(torch.tensor([0.5, 0.8413447]))
    tensor([0.0000, 0.5000], dtype=torch.float64)
    """

    norm: ClassVar[str] = "L2"

    def draw(self, x: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
        noise = torch.randn((n, *x.shape), generator=generator, dtype=x.dtype, device=x.device)
        return noise.mul_(self.sigma).add_(x)

    def radius(self, share: Tensor) -> Tensor:
        return self.sigma * torch.special.ndtri(share.double()).clamp(min=0)

    def share(self, radius: float) -> float:
        return 0.5 * (1 + math.erf(radius / self.sigma / math.sqrt(2)))


@dataclass(frozen=True)
class Uniform(SmoothingNoise):
    """Uniform on [-b, b], b = sigma * sqrt(3), independently in each element: L1 radius 2 b (share - 1/2).

    Lee, Yuan, Chang and Jaakkola, "Tight Certificates of Adversarial Robustness for Randomly Smoothed Classifiers",
    2019; Yang, Duan, Hu, Salman, Razenshteyn and Li, "Randomized Smoothing of All Shapes and Sizes", 2020.

    >>> Uniform(1 / 3**0.5).radius(torch.tensor([0.5, 0.75, 1.0]))
    tensor([0.0000, 0.5000, 1.0000], dtype=torch.float64)
    """

    norm: ClassVar[str] = "L1"

    @property
    def half_width(self) -> float:
        """b."""
        return self.sigma * math.sqrt(3)

    def draw(self, x: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
        noise = torch.rand((n, *x.shape), generator=generator, dtype=x.dtype, device=x.device)
        return noise.mul_(2).sub_(1).mul_(self.half_width).add_(x)

    def radius(self, share: Tensor) -> Tensor:
        return 2 * self.half_width * (share.double() - 0.5).clamp(min=0)

    def share(self, radius: float) -> float:
        return min(1.0, 0.5 + radius / (2 * self.half_width))


def noisy_versions(noise: SmoothingNoise, x: Tensor, n: int, batch_size: int, *key: int) -> Iterator[list[Tensor]]:
    """n noisy versions of one input x (...), functions of ``key`` alone: as many blocks (at most 100, ...) at a time as
    ``batch_size`` holds, one at least.

    A generator of the CPU takes 32 bits of a seed: two of a million blocks may well be alike. That two of the hundred
    of one input are is less likely than one in a hundred thousand, which no certificate feels.
    """
    blocks, at_once = -(-n // _BLOCK), max(1, batch_size // _BLOCK)
    for start in range(0, blocks, at_once):
        numbers = range(start, min(start + at_once, blocks))
        seeds = [derive_seed(*key, number) for number in numbers]
        drawn = [noise.draw(x, _BLOCK, torch.Generator(x.device).manual_seed(seed)) for seed in seeds]
        drawn[-1] = drawn[-1][: n - numbers[-1] * _BLOCK]
        yield drawn


@dataclass(frozen=True)
class Splitting(Uniform):
    """Noise of which all versions can be asked: certificates that hold for sure, not with a probability.

    Levine and Feizi, "Improved, Deterministic Smoothing for L1 Certified Robustness", ICML 2021, theorems 1 and 2.

    Each element says only between which of the thresholds s, s + w, s + 2 w, ... it lies, as the middle of the two.

    Elements are whole multiples of 1 / levels in [0, 1], the width w = 2 sigma sqrt(3) is one too, and the thresholds
    lie half a level beside them: there are ``versions`` = w * levels places for s. A change of an element by d levels
    passes a threshold in d of them, so that an input looks another in at most |x - x'|_1 / w of all: the share of the
    votes for a class moves by no more, however s differs from element to element. By how much is drawn once, from the
    seed; all elements then move together through the places, and a majority is counted, not estimated.

    Attributes:
        sigma: rounded, so that w is whole levels.
        levels: of the elements above 0; 255 for 8-bit images. Certificates are of changes by whole levels.
        seed: of the thresholds.

    >>> noise = Splitting(sigma=0.5 / 3**0.5, levels=2)  # w = 1: a threshold at 1/4 or at 3/4
    >>> noise.versions, sorted(torch.cat(list(noise.all_versions(torch.tensor([0.5]), 9))).flatten().tolist())
    (2, [0.375, 0.625])
    """

    levels: int = 255
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integers(levels=self.levels)
        if not self.versions:
            least = 0.5 / self._versions_of_one
            raise ValueError(
                f"sigma={self.sigma:g} is less than splitting noise of {self.levels} levels can have: take more than "
                f"{least:.2g}"
            )
        object.__setattr__(self, "sigma", self.versions / self._versions_of_one)  # of a width in whole levels

    @property
    def versions(self) -> int:
        """How many places there are for the thresholds."""
        return round(self.sigma * self._versions_of_one)

    @property
    def _versions_of_one(self) -> float:
        return 2 * math.sqrt(3) * self.levels

    def check(self, x: Tensor) -> None:
        """ValueError unless elements are whole levels in [0, 1]."""
        steps = x.double() * self.levels
        if bool(((steps - steps.round()).abs() > 1e-3).any()) or bool((x < 0).any()) or bool((x > 1).any()):
            raise ValueError(
                f"splitting noise is of inputs in whole {self.levels}ths of [0, 1], as 8-bit images are in 255ths: "
                "round them, or say how many with levels="
            )

    def all_versions(self, x: Tensor, at_once: int) -> Iterator[Tensor]:
        """Every noisy version of one input x (...), ``at_once`` (n, ...) at a time."""
        for places in torch.arange(self.versions, device=x.device).split(at_once):
            yield self._at(x, places)

    def draw(self, x: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
        """Versions at random places; their gradient is as if they were x itself, which they follow in steps."""
        places = torch.randint(self.versions, (n,), generator=generator, device=x.device)
        return x + (self._at(x.detach(), places) - x.detach())

    def _at(self, x: Tensor, places: Tensor) -> Tensor:
        shape = tuple(x.shape)
        own = integers(self.seed, torch.zeros(1, dtype=torch.int64, device=x.device), shape, self.versions)
        low = (own + places.view(-1, *[1] * x.ndim)) % self.versions  # thresholds are half a level above these
        steps = (x.double() * self.levels).round().long()
        # the last threshold below: steps - 1 - (steps - 1 - low) mod w, and half a level
        below = steps - 1 - (steps - 1 - low).remainder(self.versions) + 0.5
        above = below + self.versions
        return ((below.clamp(min=0) + above.clamp(max=self.levels)) / (2 * self.levels)).to(x.dtype)

    def radius_between(self, first: Tensor, second: Tensor) -> Tensor:
        """Up to which L1 length a class with ``first`` (N,) votes of all keeps more than one with ``second``:
        float64 (N,)."""
        return (first - second).double() / (2 * self.levels)
