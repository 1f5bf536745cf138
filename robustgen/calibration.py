"""Split-conformal calibration: from scores of unknown scale to p-values and false-alarm rates."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

__all__ = ["ConformalCalibration", "check_rate"]


@dataclass(frozen=True, eq=False, repr=False)
class ConformalCalibration:
    """Ranks a new score among n scores of in-distribution data; higher scores are more anomalous.

    The guarantee: for an in-distribution input, P(p_value <= a) <= a for every a, with any score and any n. It is an
    average over draws of the calibration set. It assumes that the calibration scores and the new one are exchangeable:
    the score was fixed before the calibration data were seen, and both come from the same source. It lapses when the
    model or the score was fitted on the calibration data, when the data drift or are correlated in time, and for
    inputs made by somebody who knows the detector. With one calibration set the false-alarm rate scatters around its
    mean k / (n + 1), k = floor(fpr (n + 1)), by sqrt(fpr (1 - fpr) / n) or so: it is Beta(k, n + 1 - k) for scores
    without ties (Vovk, "Conditional Validity of Inductive Conformal Predictors", 2012).

    Source: the marginal p-value of Bates, Candes, Lei, Romano and Sesia, "Testing for Outliers with Conformal
    p-values", 2023; Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005.

    Args:
        scores: (n,) tensor, array or list of finite or infinite numbers; kept sorted, in float64.

    Raises:
        ValueError: not 1-D, empty, or holding NaN.

    >>> calibration = ConformalCalibration([0.1, 0.2, 0.3, 0.4])
    >>> calibration.p_value([0.0, 0.3, 9.0])
    tensor([1.0000, 0.6000, 0.2000], dtype=torch.float64)
    >>> calibration.flag([0.0, 0.3, 9.0], fpr=0.2)
    tensor([False, False,  True])
    """

    scores: Tensor

    def __post_init__(self) -> None:
        scores = _read(self.scores, "calibration scores")
        if not len(scores):
            raise ValueError("calibration scores are empty")
        object.__setattr__(self, "scores", scores.sort().values)

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        return f"ConformalCalibration({len(self)} scores)"

    def p_value(self, scores: Tensor | ArrayLike) -> Tensor:
        """(1 + #{calibration score >= s}) / (n + 1) for each of ``scores`` (N,): float64 (N,) in [1 / (n + 1), 1].

        Raises:
            ValueError: not 1-D, or holding NaN, which has no rank and must not pass for normal.
        """
        s = _read(scores, "scores")
        below = torch.searchsorted(self.scores.to(s.device), s)  # calibration scores < s
        return (1 + len(self) - below).double() / (len(self) + 1)

    def threshold(self, fpr: float) -> float:
        """The score above which (strictly) an input is flagged: ``flag(s, fpr) == (s > threshold(fpr))``.

        Raises:
            ValueError: fpr outside (0, 1), or n too small for it: even the most anomalous input has p-value
                1 / (n + 1).
        """
        n = len(self)
        check_rate(fpr, n)
        k = math.floor(fpr * (n + 1))  # the largest k with k / (n + 1) <= fpr; the product may have rounded either way
        k += (k + 1) / (n + 1) <= fpr
        k -= k / (n + 1) > fpr
        return float(self.scores[n - k])

    def flag(self, scores: Tensor | ArrayLike, fpr: float = 0.05) -> Tensor:
        """``p_value(scores) <= fpr``, bool (N,): in-distribution inputs are flagged at a rate of at most ``fpr``.

        Raises:
            ValueError: as :meth:`p_value` and :meth:`threshold` do.
        """
        return _read(scores, "scores") > self.threshold(fpr)


def check_rate(fpr: float, n: int) -> None:
    """ValueError unless n calibration scores can give the false-alarm rate; see ConformalCalibration.threshold."""
    if not 0 < fpr < 1:
        raise ValueError(f"fpr must be in (0, 1), got {fpr}")
    if 1 / (n + 1) > fpr:
        needed = math.ceil(1 / fpr) - 1
        raise ValueError(
            f"{n} calibration scores cannot give a false-alarm rate of {fpr}: {needed} are needed, or a rate of "
            f"{1 / (n + 1):.2g} or more"
        )


def _read(scores: Tensor | ArrayLike, name: str) -> Tensor:
    if not isinstance(scores, Tensor):
        scores = torch.from_numpy(
            np.array(scores, dtype=np.float64, order="C")
        )  # a copy: torch warns of read-only ones
    s = scores.detach().double().contiguous()
    if s.ndim != 1:
        raise ValueError(f"{name} must be 1-D, one for each input; got shape {tuple(s.shape)}")
    if s.isnan().any():
        raise ValueError(f"{name} hold NaN")
    return s
