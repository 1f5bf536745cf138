"""How well a detector tells populations of inputs from in-distribution ones."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from robustgen.detectors import Detector
from robustgen.evaluation.metrics import detection_metrics
from robustgen.inputs import Inputs, count

__all__ = ["evaluate_detection", "rounded"]


def evaluate_detection(
    detector: Detector, x_id: Inputs, populations: Mapping[str, Inputs], *, network: str = "network", fpr: float = 0.05
) -> dict[str, Any]:
    """Score in-distribution inputs and every other population with a fitted, calibrated detector.

    Args:
        detector: higher scores are more anomalous.
        x_id: in-distribution inputs (N, ...), or a dict of them, on which it was neither fitted nor calibrated.
        populations: inputs by name; each in turn is the positive class.
        network: name in the report.
        fpr: nominal false-alarm rate of the flags.

    Returns:
        JSON-able: scores, and for each population AUROC, average precision with chance and prevalence, FPR95 and the
        share that is flagged. "in-distribution (false alarms)" reports the flags on ``x_id`` itself.

    Raises:
        ValueError: an empty population, or one that the detector does not take.
    """
    for name, x in {"in-distribution": x_id, **populations}.items():
        if not count(x):
            raise ValueError(f"population {name!r} is empty")
    known = detector.score(x_id).detach().cpu()
    entry: dict[str, Any] = {
        "network": network,
        "detector": type(detector).__name__,
        "fpr": fpr,
        "in_distribution": rounded(known),
        "false_alarms": detector.calibration.flag(known, fpr).double().mean().item(),
        "populations": {},
    }
    for name, x in populations.items():
        try:
            scores = detector.score(x).detach().cpu()
        except ValueError as error:
            raise ValueError(f"population {name!r}: {error}") from None
        entry["populations"][name] = {
            "n": count(x),
            "scores": rounded(scores),
            **detection_metrics(known, scores),
            "flagged": detector.calibration.flag(scores, fpr).double().mean().item(),
        }
    return entry


def rounded(scores: Tensor) -> list[float]:
    """Scores (N,) as a report keeps them: six digits."""
    return [float(f"{s:.6g}") for s in scores.tolist()]
