"""What was scored, kept small while it streams by: counts, a histogram, the most and the least anomalous inputs."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustgen.evaluation.metrics import wilson_interval
from robustgen.evaluation.report_pictures import encode_picture
from robustgen.inputs import Inputs

__all__ = ["ScoreSummary"]

_KEPT = 8  # inputs at either end
_BINS = 50
_SHOWN = (0.005, 0.995)  # quantiles between which the histogram lies
_DIGITS = 1024  # a score's distance from the threshold is kept to one of so many parts


class ScoreSummary:
    """Of a stream of scores, whatever their scale and number.

    A score is counted by its distance from the threshold, rounded as a short floating-point number: what lies near the
    threshold is kept finely, what lies far away coarsely, and on which side it lies exactly.

    Args:
        data: name of what is scored.
        detector: what the detector is.
        fpr: nominal false-alarm rate of the flags.
        threshold: a score above it is flagged.
        n_calibration: scores that it comes from.

    >>> found = ScoreSummary("mine", "Detector()", fpr=0.1, threshold=2.0, n_calibration=9)
    >>> found.add(["a", "b"], torch.rand(2, 5), torch.tensor([1.0, 3.0]), torch.tensor([0.5, 0.1]),
    ...           torch.tensor([False, True]))
    >>> entry = found.to_dict()
    >>> entry["n"], entry["flagged"]["value"], entry["most"][0]["input"], entry["least"][0]["input"]
    (2, 0.5, 'b', 'a')
    """

    def __init__(self, data: str, detector: str, *, fpr: float, threshold: float, n_calibration: int) -> None:
        self._about = {"data": data, "detector": detector, "fpr": fpr, "n_calibration": n_calibration}
        self._threshold = threshold
        self._centre = threshold if math.isfinite(threshold) else 0.0
        self._counts: Counter[tuple[float, int]] = Counter()  # (mantissa in parts, exponent) of the distance
        self._n = self._flagged = 0
        self._least: list[tuple[float, dict[str, Any]]] = []
        self._most: list[tuple[float, dict[str, Any]]] = []

    def add(self, names: Sequence[str | int], x: Inputs, scores: Tensor, p_values: Tensor, flags: Tensor) -> None:
        """A batch: ``names`` and ``x`` of B inputs, their scores, p-values and flags, each (B,).

        Of x, images (B, C, H, W) in [0, 1] give pictures.
        """
        scores = scores.detach().double().cpu()
        self._n += len(scores)
        self._flagged += int(flags.sum())
        mantissas, exponents = np.frexp(scores.numpy() - self._centre)
        parts = np.ceil(np.abs(mantissas) * _DIGITS) * np.sign(mantissas)  # Inf stays
        self._counts.update(zip(parts.tolist(), exponents.tolist(), strict=True))

        def row(k: int) -> dict[str, Any]:
            score = scores[k].item()
            found = {"input": names[k], "score": score if math.isfinite(score) else None}
            picture = encode_picture(x[k]) if isinstance(x, Tensor) else None
            shown = {} if picture is None else {"picture": picture}
            return found | {"p_value": float(p_values[k]), "flag": bool(flags[k])} | shown

        for kept, sign in ((self._most, -1), (self._least, 1)):
            keys = sign * scores
            for k in torch.argsort(keys, stable=True)[:_KEPT].tolist():
                if len(kept) < _KEPT or keys[k] < kept[-1][0]:
                    kept.append((keys[k].item(), row(k)))
                    kept.sort(key=lambda item: item[0])
                    del kept[_KEPT:]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: the entry of a report's "scores"."""
        low, high = wilson_interval(self._flagged, self._n) if self._n else (0.0, 0.0)
        flagged = {"value": self._flagged / self._n, "low": low, "high": high, "n": self._n} if self._n else None
        return (
            self._about
            | {
                "n": self._n,
                "flagged": flagged,
                "threshold": self._threshold if math.isfinite(self._threshold) else None,
                "histogram": self._histogram(),
                "most": [row for _, row in self._most[: -(-self._n // 2)]],  # of few inputs none is shown twice
                "least": [row for _, row in self._least[: self._n // 2]],
            }
        )

    def _histogram(self) -> dict[str, Any] | None:
        """Bins of equal width with an edge at the threshold, each open below and closed above; how many lie beyond."""
        found = sorted(
            (math.ldexp(part / _DIGITS, e) if math.isfinite(part) else part, n) for (part, e), n in self._counts.items()
        )
        distances = np.array([d for d, _ in found])
        counts = np.array([n for _, n in found])
        finite = np.isfinite(distances)
        if not finite.any():
            return None
        cumulated = np.cumsum(counts[finite])
        low, high = (distances[finite][np.searchsorted(cumulated, q * cumulated[-1])] for q in _SHOWN)
        low, high = min(low, 0.0), max(high, 0.0)
        width = (high - low) / _BINS or 1.0
        first, last = math.floor(low / width) - (low == 0), math.ceil(high / width)
        bins = np.ceil(distances[finite] / width) - 1 - first
        inside = (bins >= 0) & (bins < last - first)
        binned = np.bincount(bins[inside].astype(int), counts[finite][inside], minlength=last - first)
        beyond = {
            "below": int(counts[finite][bins < 0].sum() + counts[distances == -math.inf].sum()),
            "above": int(counts[finite][bins >= last - first].sum() + counts[distances == math.inf].sum()),
        }
        edges = [self._centre + width * k for k in range(first, last + 1)]
        return {"edges": edges, "counts": [int(n) for n in binned]} | beyond
