"""Noise behind which a classifier's vote changes slowly, and how slowly: from a share of votes to a radius."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustgen.checks import check_positive
from robustgen.counter_rng import derive_seed

__all__ = ["Gaussian", "SmoothingNoise", "Uniform", "noisy_versions"]

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
