"""Noise of which all versions can be asked: certificates that hold for sure, not with a probability.

Levine and Feizi, "Improved, Deterministic Smoothing for L1 Certified Robustness", ICML 2021, theorems 1 and 2.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from robustgen.checks import check_integers
from robustgen.counter_rng import integers
from robustgen.fortified.smoothing_noise import Uniform

__all__ = ["Splitting"]


@dataclass(frozen=True)
class Splitting(Uniform):
    """Each element says only between which of the thresholds s, s + w, s + 2 w, ... it lies, as the middle of the two.

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
