"""Detection metrics. Everywhere a higher score means more anomalous and the anomalous side is the positive class.

Each side is sorted once, and the counts of both at the anomalous scores give every metric; equal scores enter together,
so ties are exact. Scores are 1-D tensors, arrays or lists, read as float64; +-Inf is a score like any other (a
likelihood can be zero), NaN is an error.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

__all__ = [
    "AUPR",
    "RocCurve",
    "aupr_davis_goadrich",
    "aupr_trapezoid",
    "auroc",
    "average_precision",
    "detection_metrics",
    "fpr_at_tpr",
    "percent",
    "proportion",
    "roc_curve",
    "weighted_aurocs",
    "wilson_interval",
]

Scores: TypeAlias = "Tensor | ArrayLike"
_Array: TypeAlias = "np.ndarray[Any, Any]"


class AUPR(float):
    """An area under the precision-recall curve in (0, 1], with what it is to be compared with.

    Attributes:
        prevalence: share of positives, P / (N + P); what a random ranking reaches in the limit of many samples.
        chance: the exact expected value for a random ranking without ties of as many negatives and positives.
        minimum: the lowest value that any ranking of as many negatives and positives attains, which is not 0.

    >>> average_precision([0.1, 0.2, 0.3], [0.4])
    AUPR(1.0000, prevalence=0.2500, chance=0.5208, minimum=0.2500)
    """

    prevalence: float
    chance: float
    minimum: float

    def __new__(cls, value: float, prevalence: float, chance: float, minimum: float) -> "AUPR":
        area = super().__new__(cls, value)
        area.prevalence, area.chance, area.minimum = prevalence, chance, minimum
        return area

    def __getnewargs__(self) -> tuple[float, float, float, float]:  # type: ignore[override] # so that it can be copied
        return float(self), self.prevalence, self.chance, self.minimum

    def __repr__(self) -> str:
        levels = f"prevalence={self.prevalence:.4f}, chance={self.chance:.4f}, minimum={self.minimum:.4f}"
        return f"AUPR({float(self):.4f}, {levels})"


@dataclass(frozen=True, eq=False)
class RocCurve:
    """Rates of the rule ``score >= threshold``, float64 arrays (K + 1,) for K distinct scores.

    Attributes:
        fpr: share of in-distribution samples flagged, rising from 0 to 1.
        tpr: share of anomalous samples flagged, rising from 0 to 1.
        thresholds: falling; the first is infinite and flags nothing.
    """

    fpr: _Array
    tpr: _Array
    thresholds: _Array


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

    Precision depends on the prevalence of anomalies in the samples, which
    the result carries together with the chance level ``[H_n + (n - H_n) (P - 1) / (n - 1)] / n``, where n = N + P and
    H_n is the harmonic number: the item at rank i is positive with probability P / n, and then 1 + (i - 1) (P - 1) /
    (n - 1) positives are expected among the first i (Bestgen, "Exact Expected Average Precision of the Random Baseline
    for System Evaluation", 2015). Its minimum, all anomalies ranked last, is the mean of i / (N + i) over i = 1 .. P.

    Args:
        scores_id, scores_ood: (N,) in-distribution and (P,) anomalous scores, higher = more anomalous.

    Raises:
        ValueError: either is empty, not 1-D, or holds NaN.

    >>> average_precision([0.0, 1.0], [1.0, 2.0])
    AUPR(0.8333, prevalence=0.5000, chance=0.6806, minimum=0.4167)
    """
    return _Counts(scores_id, scores_ood).average_precision()


def aupr_trapezoid(scores_id: Scores, scores_ood: Scores) -> AUPR:
    """Area under the precision-recall curve by trapezoids, from (recall 0, precision 1), as many libraries report it.

    Straight lines between precision-recall points are not attainable and
    flatter the detector (Davis and Goadrich, "The Relationship Between Precision-Recall and ROC Curves", 2006): prefer
    :func:`average_precision`. Its chance level is the mean of that of the average precision and the prevalence; its
    minimum is half the prevalence, reached where all anomalies share the last rank.

    Args:
        scores_id, scores_ood: (N,) in-distribution and (P,) anomalous scores, higher = more anomalous.

    Raises:
        ValueError: either is empty, not 1-D, or holds NaN.

    >>> aupr_trapezoid([0.0, 1.0], [1.0, 2.0])
    AUPR(0.9167, prevalence=0.5000, chance=0.5903, minimum=0.2500)
    """
    return _Counts(scores_id, scores_ood).aupr_trapezoid()


def aupr_davis_goadrich(scores_id: Scores, scores_ood: Scores) -> float:
    """Area under the precision-recall curve in (0, 1] through the points that mixing two thresholds attains.

    Between neighbours the counts of true and false positives grow in
    proportion, and precision is (TP + d) / (TP + FP + c d) at d more true positives, c the inverse precision among
    those that enter: Davis and Goadrich, "The Relationship Between Precision-Recall and ROC Curves", 2006, section 4,
    integrated in closed form. With all of P anomalies behind N others it is 1 - (N / P) ln((N + P) / N).

    Args:
        scores_id, scores_ood: (N,) in-distribution and (P,) anomalous scores, higher = more anomalous.

    Raises:
        ValueError: either is empty, not 1-D, or holds NaN.

    >>> round(aupr_davis_goadrich([0.0, 1.0], [1.0, 2.0]), 4)
    0.8873
    """
    return _Counts(scores_id, scores_ood).aupr_davis_goadrich()


def fpr_at_tpr(scores_id: Scores, scores_ood: Scores, tpr: float = 0.95) -> float:
    """The smallest false positive rate of any threshold that finds at least ``tpr`` of the anomalies; in [0, 1].

    The positive class is the
    anomalous one (libraries differ in this). No interpolation: the rate is one that a threshold attains.

    Args:
        scores_id, scores_ood: (N,) in-distribution and (P,) anomalous scores, higher = more anomalous.
        tpr: rate of anomalies that must be found, in (0, 1].

    Raises:
        ValueError: either is empty, not 1-D, or holds NaN, or ``tpr`` is outside (0, 1].

    >>> fpr_at_tpr([0.0, 1.0, 2.0, 3.0], [2.5, 4.0, 5.0, 6.0])
    0.25
    """
    return _Counts(scores_id, scores_ood).fpr_at_tpr(tpr)


def roc_curve(scores_id: Scores, scores_ood: Scores) -> RocCurve:
    """The ROC curve with a point at every distinct score, from (0, 0) to (1, 1).

    Args:
        scores_id, scores_ood: (N,) in-distribution and (P,) anomalous scores, higher = more anomalous.

    Raises:
        ValueError: either is empty, not 1-D, or holds NaN.

    >>> roc_curve([0.0, 1.0], [1.0, 2.0])
    RocCurve(fpr=array([0. , 0. , 0.5, 1. ]), tpr=array([0. , 0.5, 1. , 1. ]), thresholds=array([inf, 2., 1., 0.]))
    """
    negative, positive = _sorted(scores_id, "scores_id"), _sorted(scores_ood, "scores_ood")
    thresholds = np.unique(np.concatenate([negative, positive]))[::-1]
    return RocCurve(
        fpr=np.append(0, _at_least(negative, thresholds)) / len(negative),
        tpr=np.append(0, _at_least(positive, thresholds)) / len(positive),
        thresholds=np.append(np.inf, thresholds),
    )


def weighted_aurocs(scores_id: Scores, scores_ood: Scores, weights_id: ArrayLike, weights_ood: ArrayLike) -> _Array:
    """The AUROC of each of R versions of the samples, (R,): bootstrap draws, for one, which say how sure it is.

    Versions of two scores by the same weights are paired: their difference says how sure one is to beat the other.

    Args:
        scores_id, scores_ood: (N,) in-distribution and (P,) anomalous scores, higher = more anomalous.
        weights_id, weights_ood: (R, N) and (R, P), how often each sample counts.

    Raises:
        ValueError: scores as for :func:`auroc`, or weights of other shapes.

    >>> weighted_aurocs([0.0, 1.0], [1.0, 2.0], [[1, 1], [0, 2]], [[1, 1], [2, 0]])
    array([0.875, 0.5  ])
    """
    negative, positive = _read(scores_id, "scores_id"), _read(scores_ood, "scores_ood")
    weights, counts = np.asarray(weights_id, dtype=np.float64), np.asarray(weights_ood, dtype=np.float64)
    if (weights.shape, counts.shape) != ((len(weights), len(negative)), (len(weights), len(positive))):
        raise ValueError(
            f"weights of {len(negative)} and {len(positive)} scores are (R, N) and (R, P), got {weights.shape} and "
            f"{counts.shape}"
        )
    order = negative.argsort()
    below = np.concatenate([np.zeros((len(weights), 1)), weights[:, order].cumsum(1)], 1)  # the sum of the k lowest
    ends = [np.searchsorted(negative[order], positive, side) for side in ("left", "right")]  # half a pair for each tie
    wins = sum((counts * below[:, k]).sum(1) for k in ends)
    return wins / (2 * below[:, -1] * counts.sum(1))


def detection_metrics(scores_id: Scores, scores_ood: Scores) -> dict[str, float | int]:
    """Every area and rate of this file from one sort of each side, JSON-able, with what they are compared with.

    ``chance`` and ``minimum`` are those of the average precision.

    Args:
        scores_id, scores_ood: (N,) in-distribution and (P,) anomalous scores, higher = more anomalous.

    Raises:
        ValueError: either is empty, not 1-D, or holds NaN.

    >>> for name, value in detection_metrics([0.0, 1.0], [1.0, 2.0]).items():
    ...     print(f"{name} {value:.4g}")
    auroc 0.875
    average_precision 0.8333
    chance 0.6806
    minimum 0.4167
    aupr_trapezoid 0.9167
    aupr_trapezoid_chance 0.5903
    aupr_davis_goadrich 0.8873
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
        "minimum": step.minimum,
        "aupr_trapezoid": trapezoid,
        "aupr_trapezoid_chance": trapezoid.chance,
        "aupr_davis_goadrich": counts.aupr_davis_goadrich(),
        "prevalence": step.prevalence,
        "fpr_at_95_tpr": counts.fpr_at_tpr(0.95),
        "n_id": counts.n_negative,
        "n_ood": counts.n_positive,
    }


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Confidence interval (low, high) in [0, 1] of a rate of which ``successes`` of ``n`` trials were seen.

    Args:
        successes, n: counts.
        confidence: with which the interval holds the rate, in (0, 1).

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


def proportion(hits: Tensor) -> dict[str, Any]:
    """The proportion of True in ``hits``, bool (n,) with n > 0, with its 95 % Wilson interval and n."""
    low, high = wilson_interval(int(hits.sum()), len(hits))
    return {"value": hits.double().mean().item(), "low": low, "high": high, "n": len(hits)}


def percent(found: dict[str, Any] | None) -> str:
    """What :func:`proportion` returned, as text; None is a proportion of no examples.

    >>> percent({"value": 0.5, "low": 0.095, "high": 0.905, "n": 2}), percent(None)
    ('50.0% [9.5%, 90.5%]', 'of none')
    """
    return "of none" if found is None else f"{found['value']:.1%} [{found['low']:.1%}, {found['high']:.1%}]"


class _Counts:
    """How many samples lie at or above each distinct anomalous score, int64 (K,), from the highest score down.

    Nothing but these scores matters to an area: between two of them only false positives enter.

    Attributes:
        true_positives, false_positives: anomalous and in-distribution samples at or above it.
        above: in-distribution samples above it.
        entering: anomalous samples that have this score.
    """

    def __init__(self, scores_id: Scores, scores_ood: Scores) -> None:
        negative, positive = _sorted(scores_id, "scores_id"), _sorted(scores_ood, "scores_ood")
        self.n_negative, self.n_positive = len(negative), len(positive)
        first = np.flatnonzero(np.append(True, positive[1:] != positive[:-1]))[::-1]  # of each group of ties
        thresholds = positive[first]
        self.true_positives: _Array = self.n_positive - first
        self.false_positives = _at_least(negative, thresholds)
        self.above = self.n_negative - np.searchsorted(negative, thresholds, side="right")
        self.entering = np.diff(self.true_positives, prepend=0)

    def auroc(self) -> float:
        halves = 2 * self.n_negative - self.false_positives - self.above  # half a pair for each tie, a whole for a win
        return int((self.entering * halves).sum()) / (2 * self.n_negative * self.n_positive)

    def average_precision(self) -> AUPR:
        value = (self.entering * self._precision()).sum() / self.n_positive
        last = np.arange(1, self.n_positive + 1)
        return self._aupr(value, self._chance, (last / (last + self.n_negative)).sum() / self.n_positive)

    def aupr_trapezoid(self) -> AUPR:
        hits, alarms = self._before()
        before = np.divide(hits, alarms, out=np.ones(len(hits)), where=alarms > 0)
        value = (self.entering * (self._precision() + before) / 2).sum() / self.n_positive
        # E[precision just above a positive] telescopes to the prevalence; the trapezoid averages it with the step
        return self._aupr(value, (self._chance + self._prevalence()) / 2, self._prevalence() / 2)

    def aupr_davis_goadrich(self) -> float:
        hits, alarms = self._before()
        c = 1 + (self.false_positives - self.above) / self.entering
        growth = np.divide(c * self.entering, alarms, out=np.zeros(len(hits)), where=alarms > 0)
        area = self.entering / c + (hits - alarms / c) / c * np.log1p(growth)
        return min(float(area.sum() / self.n_positive), 1.0)

    def fpr_at_tpr(self, tpr: float) -> float:
        if not 0 < tpr <= 1:
            raise ValueError(f"tpr must be in (0, 1], got {tpr}")
        first = np.searchsorted(self.true_positives / self.n_positive, tpr)
        return int(self.false_positives[first]) / self.n_negative

    def _before(self) -> tuple[_Array, _Array]:
        """True positives, and all samples, above each score."""
        hits = self.true_positives - self.entering
        return hits, hits + self.above

    def _precision(self) -> _Array:
        return self.true_positives / (self.true_positives + self.false_positives)

    def _prevalence(self) -> float:
        return self.n_positive / (self.n_negative + self.n_positive)

    @cached_property
    def _chance(self) -> float:
        n = self.n_negative + self.n_positive
        harmonic = float((1 / np.arange(1, n + 1)).sum())
        return (harmonic + (n - harmonic) * (self.n_positive - 1) / (n - 1)) / n

    def _aupr(self, value: float, chance: float, minimum: float) -> AUPR:
        return AUPR(min(float(value), 1.0), self._prevalence(), chance, float(minimum))  # the sum may round above 1


def _at_least(ascending: _Array, thresholds: _Array) -> _Array:
    """How many of the sorted scores are at or above each threshold."""
    return len(ascending) - np.searchsorted(ascending, thresholds)


def _sorted(scores: Scores, name: str) -> _Array:
    """The scores, float64 (N,), ascending."""
    return np.sort(_read(scores, name))


def _read(scores: Scores, name: str) -> _Array:
    """The scores, float64 (N,)."""
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
