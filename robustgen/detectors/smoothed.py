"""Alarms that no attacker can take back, for any detector: the median of its scores under Gaussian noise.

Chiang, Curry, Abdelkader, Kumar, Dickerson and Goldstein, "Detection as Regression: Certified Object Detection by
Median Smoothing", NeurIPS 2020, lemma 1: a percentile p of the noisy scores at x' is at least the percentile
Phi(Phi^-1(p) - |x' - x| / sigma) at x.
"""

import copy
import math
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustgen.binomial import check_level, lower_bound, upper_bound
from robustgen.checks import check_integers
from robustgen.counter_rng import content_ids, derive_seed
from robustgen.detectors.base import Detector, check_radius
from robustgen.detectors.loading import detector_classes
from robustgen.fortified.smoothing_noise import Gaussian, noisy_versions
from robustgen.model import untouched
from robustgen.structure import check_arguments, check_structure

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SmoothedDetector"]


class SmoothedDetector(Detector):
    """score(x) = the median of n scores of ``detector`` at x + sigma * noise.

    The draws are functions of ``seed`` and of the input's own content. What :meth:`certified_flag` and
    :meth:`certified_p_value` say holds for each input with probability 1 - ``alpha`` over the draws at the input and at
    what it is changed to, so that an attacker must not know the seed; both of the two p-values together with
    probability 1 - 2 ``alpha``.

    Args:
        detector: of inputs (N, ...) of floats; fitted or not. Its own calibration is not used.
        sigma: standard deviation of the noise, in units of the input.
        n: draws for each input.
        alpha: probability with which a certificate may be wrong.
        seed: of the draws, and saved with the detector. None: drawn from the system, kept in memory alone; a detector
            that is loaded again draws another.
        batch_size: noisy inputs scored at once.

    Raises:
        TypeError: no detector.
        ValueError: a value out of range.

    >>> from robustgen.detectors import MeanBrightness
    >>> x = torch.rand(200, 1, 4, 4, generator=torch.Generator().manual_seed(0)) / 2
    >>> detector = SmoothedDetector(MeanBrightness(), sigma=0.5, n=200).fit(x[:100]).calibrate(x[100:])
    >>> detector.certified_flag(torch.ones(1, 1, 4, 4), fpr=0.05, radius=0.5)
    tensor([True])
    """

    def __init__(
        self,
        detector: Detector,
        sigma: float,
        n: int = 1000,
        *,
        alpha: float = 0.001,
        seed: int | None = 0,
        batch_size: int = 256,
    ) -> None:
        if not isinstance(detector, Detector):
            raise TypeError(f"SmoothedDetector takes a detector, got {type(detector).__name__}")
        super().__init__(detector.model, batch_size)
        self.detector = copy.copy(detector)  # which is given what this one has learned, and keeps nothing of its own
        self.statistics_ = detector.statistics_
        self.noise = Gaussian(sigma)
        check_integers(n=n)
        if seed is not None:
            check_integers(0, seed=seed)
        self._key = secrets.randbits(63) if seed is None else seed
        check_level(alpha)
        self.sigma, self.n, self.alpha, self.seed = sigma, n, alpha, seed
        self.fit_on_fresh = detector.fit_on_fresh  # type: ignore[misc]

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, the detector by its name and its own."""
        inside = {"name": type(self.detector).__name__, "config": self.detector.config}
        return super().config | {"detector": inside}

    @classmethod
    def _from_settings(cls, settings: dict[str, Any], model: Any, path: Path) -> "Self":
        own = {name: value for name, value in settings.items() if name != "detector"}
        check_arguments(cls, own, path, "config", after=1)
        check_structure(settings, {"detector": {"name": str, "config": dict}}, path, "config")
        inside = settings["detector"]
        kinds = detector_classes()
        if inside["name"] not in kinds or kinds[inside["name"]] is cls:
            raise ValueError(f"{path}: config.detector.name: no detector {inside['name']!r}")
        detector = kinds[inside["name"]]._from_settings(inside["config"], model, path)
        try:
            return cls(detector, **own)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: not the settings of a {cls.__name__} ({error})") from None

    def _fit(self, batches: Iterable[tuple[Any, Tensor | None]]) -> dict[str, Tensor]:
        return self.detector._fit(batches)

    @property
    def _inside(self) -> Detector:
        self.detector.statistics_ = self.statistics
        return self.detector

    def _check_scores(self, x: Any) -> None:
        self._inside._check_scores(x)

    def _score(self, x: Tensor) -> Tensor:
        return torch.stack([self._noisy_scores(*pair).median() for pair in self._keyed(x)])

    def _keyed(self, x: Tensor) -> Iterable[tuple[Tensor, int]]:
        contents = content_ids(x)  # not of every bit: a score would jump at each, and have no gradient
        return zip(x, (derive_seed(self._key, content) for content in contents.tolist()), strict=True)

    def _noisy_scores(self, one: Tensor, key: int) -> Tensor:
        """Scores (n,) of noisy versions of one input."""
        inside, versions = self._inside, noisy_versions(self.noise, one, self.n, self.batch_size, key)
        return torch.cat([inside._score(torch.cat(blocks)) for blocks in versions])

    def _fixed_scores(self) -> list[float] | None:
        return None if self.seed is None else super()._fixed_scores()  # another secret, other scores

    def has_bound(self, norm: str = "L2") -> bool:
        self.lipschitz(norm)  # its errors
        return True

    def _at_least(self, share: float, level: float) -> int:
        """So many of n scores, or more, are among the ``share`` of all with probability 1 - level."""
        from scipy.stats import binom

        found = int(binom.ppf(level, self.n, share))
        while found > 0 and binom.cdf(found - 1, self.n, share) > level:
            found -= 1
        return found

    def score_bounds(self, x: Any, radius: float, norm: str = "L2") -> tuple[Tensor, Tensor]:
        check_radius(radius)
        self.lipschitz(norm)  # its errors
        x = torch.cat(list(self._as_batches(x)))
        reach = radius * (math.sqrt(x[0].numel()) if norm == "Linf" and len(x) else 1.0) / self.sigma
        middle, level = (self.n + 1) // 2, self.alpha / 2  # torch's median: the lower of two
        least = lower_bound(torch.tensor([middle]), self.n, level)  # the median is at least this percentile ...
        most = upper_bound(torch.tensor([middle - 1]), self.n, level)  # ... and at most this one
        low = float(torch.special.ndtr(torch.special.ndtri(least) - reach))
        high = float(torch.special.ndtr(torch.special.ndtri(most) + reach))
        below, above = (self._at_least(share, level) for share in (low, 1 - high))
        bounds = x.new_full((2, len(x)), math.inf, dtype=torch.float64)
        bounds[0] = -math.inf
        seed = 0 if "draws" in self.statistics else None
        with torch.no_grad(), untouched(self.model, seed):
            for k, pair in enumerate(self._keyed(x.to(self._device))):
                ordered = self._noisy_scores(*pair).double().sort().values
                if below > 0:
                    bounds[0, k] = ordered[below - 1]
                if above > 0:
                    bounds[1, k] = ordered[self.n - above]
        return bounds[0], bounds[1]
