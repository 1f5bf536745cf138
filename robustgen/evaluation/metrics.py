"""Detection metrics. Everywhere a higher score means more anomalous and the anomalous side is the positive class.

One sort of all scores gives the counts from which every metric follows; equal scores enter together, so ties are
exact. Scores are 1-D tensors, arrays or lists, read as float64; +-Inf is a score like any other (a likelihood can be
zero), NaN is an error.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

__all__ = [
    "AUPR",
    "RocCurve",
    "aupr_trapezoid",
    "auroc",
    "average_precision",
    "detection_metrics",
    "fpr_at_tpr",
    "roc_curve",
    "wilson_interval",
]

Scores: TypeAlias = "Tensor | ArrayLike"


class AUPR(float):
    """An area under the precision-recall curve in (0, 1], with what it is to be compared with.

    Attributes:
        prevalence: share of positives, P / (N + P); what a random ranking reaches in the limit of many samples.
        chance: the exact expected value for a random ranking without ties of as many negatives and positives.

    >>> average_precision([0.1, 0.2, 0.3], [0.4])
    AUPR(1.0000, prevalence=0.2500, chance=0.5208)
    """

    prevalence: float
    chance: float

    def __new__(cls, value: float, prevalence: float, chance: float) -> "AUPR":
        area = super().__new__(cls, value)
        area.prevalence, area.chance = prevalence, chance
        return area

    def __getnewargs__(self) -> tuple[float, float, float]:  # type: ignore[override] # so that it can be copied
        return float(self), self.prevalence, self.chance

    def __repr__(self) -> str:
        return f"AUPR({float(self):.4f}, prevalence={self.prevalence:.4f}, chance={self.chance:.4f})"


@dataclass(frozen=True, eq=False)
class RocCurve:
    """Rates of the rule ``score >= threshold``, float64 arrays (K + 1,) for K distinct scores.

    Attributes:
        fpr: share of in-distribution samples flagged, rising from 0 to 1.
        tpr: share of anomalous samples flagged, rising from 0 to 1.
        thresholds: falling; the first is infinite and flags nothing.
    """

    fpr: np.ndarray[Any, Any]
    tpr: np.ndarray[Any, Any]
    thresholds: np.ndarray[Any, Any]


def auroc(scores_id: Scores, scores_ood: Scores) -> float:
    """Area under the ROC curve in [0, 1]: P(ood > id) + P(ood = id) / 2 over all pairs; chance is 0.5.

    Args:
        scores_id, scores_ood: (N,) in-distribution and (P,) anomalous scores, higher = more anomalous.

    Raises:
        ValueError: either is empty, not 1-D, or holds NaN.

    Source: the Mann-Whitney statistic; Hanley and McNeil, "The meaning and use of the area under a receiver operating
    characteristic (ROC) curve", 1982. Counted in integers: ``auroc(a, b) + auroc(b, a) == 1`` exactly.

    >>> auroc([0.0, 1.0], [1.0, 2.0])
    0.875
    """
    return _Counts(scores_id, scores_ood).auroc()


def average_precision(scores_id: Scores, scores_ood: Scores) -> AUPR:
    """Average precision, the step-wise area under the precision-recall curve: sum of (R_k - R_k-1) precision_k.

    Arguments and errors as for :func:`auroc`. Precision depends on the prevalence of anomalies in the samples, which
    the result carries together with the chance level ``[H_n + (n - H_n) (P - 1) / (n - 1)] / n``, where n = N + P and
    H_n is the harmonic number: the item at rank i is positive with probability P / n, and then 1 + (i - 1) (P - 1) /
    (n - 1) positives are expected among the first i (Bestgen, "Exact Expected Average Precision of the Random Baseline
    for System Evaluation", 2015).

    >>> average_precision([0.0, 1.0], [1.0, 2.0])
    AUPR(0.8333, prevalence=0.5000, chance=0.6806)
    """
    return _Counts(scores_id, scores_ood).average_precision()


def aupr_trapezoid(scores_id: Scores, scores_ood: Scores) -> AUPR:
    """Area under the precision-recall curve by trapezoids, from (recall 0, precision 1), as many libraries report it.

    Arguments and errors as for :func:`auroc`. Straight lines between precision-recall points are not attainable and
    flatter the detector (Davis and Goadrich, "The Relationship Between Precision-Recall and ROC Curves", 2006): prefer
    :func:`average_precision`. Its chance level is the mean of that of the average precision and the prevalence.

    >>> aupr_trapezoid([0.0, 1.0], [1.0, 2.0])
    AUPR(0.9167, prevalence=0.5000, chance=0.5903)
    """
    return _Counts(scores_id, scores_ood).aupr_trapezoid()


def fpr_at_tpr(scores_id: Scores, scores_ood: Scores, tpr: float = 0.95) -> float:
    """The smallest false positive rate of any threshold that finds at least ``tpr`` of the anomalies; in [0, 1].

    Arguments and errors as for :func:`auroc`; also ValueError for ``tpr`` outside (0, 1]. The positive class is the
    anomalous one (libraries differ in this). No interpolation: the rate is one that a threshold attains.

    >>> fpr_at_tpr([0.0, 1.0, 2.0, 3.0], [2.5, 4.0, 5.0, 6.0])
    0.25
    """
    return _Counts(scores_id, scores_ood).fpr_at_tpr(tpr)


def roc_curve(scores_id: Scores, scores_ood: Scores) -> RocCurve:
    """The ROC curve with a point at every distinct score, from (0, 0) to (1, 1).

    Arguments and errors as for :func:`auroc`.

    >>> roc_curve([0.0, 1.0], [1.0, 2.0])
    RocCurve(fpr=array([0. , 0. , 0.5, 1. ]), tpr=array([0. , 0.5, 1. , 1. ]), thresholds=array([inf, 2., 1., 0.]))
    """
    counts = _Counts(scores_id, scores_ood)
    return RocCurve(
        fpr=np.append(0, counts.false_positives) / counts.n_negative,
        tpr=np.append(0, counts.true_positives) / counts.n_positive,
        thresholds=np.append(np.inf, counts.thresholds),
    )


def detection_metrics(scores_id: Scores, scores_ood: Scores) -> dict[str, float | int]:
    """Every metric of this file from one sort, JSON-able, with prevalence and chance levels.

    Arguments and errors as for :func:`auroc`.

    ``chance`` is that of the average precision.

    >>> for name, value in detection_metrics([0.0, 1.0], [1.0, 2.0]).items():
    ...     print(f"{name} {value:.4g}")
    auroc 0.875
    average_precision 0.8333
    chance 0.6806
    aupr_trapezoid 0.9167
    aupr_trapezoid_chance 0.5903
    prevalence 0.5
    fpr_at_95_tpr 0.5
    n_id 2
    n_ood 2
    """
    counts = _Counts(scores_id, scores_ood)
    step, trapezoid = counts.average_precision(), counts.aupr_trapezoid()
    return {
        "auroc": counts.auroc(),
        "average_precision": step,
        "chance": step.chance,
        "aupr_trapezoid": trapezoid,
        "aupr_trapezoid_chance": trapezoid.chance,
        "prevalence": step.prevalence,
        "fpr_at_95_tpr": counts.fpr_at_tpr(0.95),
        "n_id": counts.n_negative,
        "n_ood": counts.n_positive,
    }


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Confidence interval (low, high) in [0, 1] of a rate of which ``successes`` of ``n`` trials were seen.

    Raises:
        ValueError: n < 1, successes outside [0, n], or confidence outside (0, 1).

    Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", 1927. It assumes
    independent trials, and unlike the normal interval stays informative at rates of 0 and 1.

    >>> low, high = wilson_interval(0, 100)
    >>> low, round(high, 4)
    (0.0, 0.037)
    """
    from scipy.stats import binomtest  # slow to import

    if n < 1 or not 0 <= successes <= n or not 0 < confidence < 1:
        raise ValueError(f"need n >= 1, 0 <= successes <= n, 0 < confidence < 1; got {successes}, {n}, {confidence}")
    interval = binomtest(int(successes), int(n)).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


class _Counts:
    """Samples at or above each distinct score, int64 (K,), from the highest score down."""

    def __init__(self, scores_id: Scores, scores_ood: Scores) -> None:
        negative, positive = _read(scores_id, "scores_id"), _read(scores_ood, "scores_ood")
        self.n_negative, self.n_positive = len(negative), len(positive)
        scores = np.concatenate([negative, positive])  # (n,)
        order = np.argsort(scores)[::-1]
        scores = scores[order]
        last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))  # (K,) last member of each group of ties
        self.thresholds = scores[last]
        self.true_positives = np.cumsum(order >= self.n_negative)[last]
        self.false_positives = last + 1 - self.true_positives

    def auroc(self) -> float:
        width = np.diff(self.false_positives, prepend=0)
        height = self.true_positives + np.append(0, self.true_positives[:-1])  # twice the mean height
        return int((width * height).sum()) / (2 * self.n_negative * self.n_positive)

    def average_precision(self) -> AUPR:
        value = (np.diff(self.true_positives, prepend=0) * self._precision()).sum() / self.n_positive
        return self._aupr(value, self._chance())

    def aupr_trapezoid(self) -> AUPR:
        precision = self._precision()
        height = (precision + np.append(1.0, precision[:-1])) / 2
        value = (np.diff(self.true_positives, prepend=0) * height).sum() / self.n_positive
        # E[precision just above a positive] telescopes to the prevalence; the trapezoid averages it with the step
        return self._aupr(value, (self._chance() + self._prevalence()) / 2)

    def fpr_at_tpr(self, tpr: float) -> float:
        if not 0 < tpr <= 1:
            raise ValueError(f"tpr must be in (0, 1], got {tpr}")
        first = np.searchsorted(self.true_positives / self.n_positive, tpr)
        return int(self.false_positives[first]) / self.n_negative

    def _precision(self) -> np.ndarray[Any, Any]:
        return self.true_positives / (self.true_positives + self.false_positives)

    def _prevalence(self) -> float:
        return self.n_positive / (self.n_negative + self.n_positive)

    def _chance(self) -> float:
        n = self.n_negative + self.n_positive
        harmonic = float((1 / np.arange(1, n + 1)).sum())
        return (harmonic + (n - harmonic) * (self.n_positive - 1) / (n - 1)) / n

    def _aupr(self, value: float, chance: float) -> AUPR:
        return AUPR(min(float(value), 1.0), self._prevalence(), chance)  # the sum may round to just above 1


def _read(scores: Scores, name: str) -> np.ndarray[Any, Any]:
    if isinstance(scores, Tensor):
        scores = scores.detach().cpu().double().numpy()
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name} must be 1-D, one score for each sample; got shape {array.shape}")
    if not len(array):
        raise ValueError(f"{name} is empty")
    if np.isnan(array).any():
        raise ValueError(f"{name} holds NaN")
    return array
