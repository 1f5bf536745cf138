"""What attacks on a guarded classifier found: per-example outcomes, rates with intervals, how they are written."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustgen.evaluation.detection import rounded
from robustgen.evaluation.metrics import auroc, percent, proportion
from robustgen.evaluation.report import write_report
from robustgen.evaluation.report_tables import detector_robustness_table
from robustgen.files import environment
from robustgen.printable import printable

__all__ = ["CertifiedAlarms", "DetectorRobustness", "GuardedOutcome", "ReverseOutcome"]


@dataclass(frozen=True)
class GuardedOutcome:
    """One attack on every example: ``fooled`` bool (N,), misclassified there, and ``scores`` float64 (N,) there."""

    settings: dict[str, Any]
    fooled: Tensor
    scores: Tensor


@dataclass(frozen=True)
class ReverseOutcome:
    """Out-of-distribution inputs: their scores ``before`` and ``after`` an attack that lowers them, float64 (M,)."""

    settings: dict[str, Any]
    before: Tensor
    after: Tensor


@dataclass(frozen=True)
class CertifiedAlarms:
    """What no change up to eps can take back: bounds of the scores there, ``lowest`` and ``highest`` float64 (N,) of
    the examples, ``lowest_ood`` (M,) of the out-of-distribution inputs where there are any.
    """

    lowest: Tensor
    highest: Tensor
    lowest_ood: Tensor | None = None


@dataclass
class DetectorRobustness:
    """What :func:`evaluate_detector_robustness` measured. A better attack can only make the detector look worse.

    Attributes:
        name: of the network; ``detector``: what it is.
        eps, norm, bounds: the threat model.
        fpr, threshold, n_calibration: scores above the threshold are flagged; it comes from so many calibration scores.
        ids, y: int64 (N,).
        clean: bool (N,), classified correctly without attack.
        scores: float64 (N,), without attack.
        outcomes: by attack name.
        reverse: of out-of-distribution inputs, where there were any.
        certified: of a detector with a bound in ``norm``.
        notes: what a reader should doubt before any number.
        stage_seconds: what each attack took; of a resumed evaluation all its processes together.
        seed, environment, wall_seconds: how it was made.
    """

    name: str
    detector: str
    eps: float
    norm: str
    bounds: tuple[float, float]
    fpr: float
    threshold: float
    n_calibration: int
    ids: Tensor
    y: Tensor
    clean: Tensor
    scores: Tensor
    outcomes: dict[str, GuardedOutcome]
    reverse: ReverseOutcome | None = None
    certified: CertifiedAlarms | None = None
    notes: list[str] = field(default_factory=list)
    seed: int = 0
    environment: dict[str, Any] = field(default_factory=environment)
    wall_seconds: float = 0.0
    stage_seconds: dict[str, float] = field(default_factory=dict)

    @property
    def flagged(self) -> Tensor:
        """bool (N,): flagged without attack, a false alarm."""
        return self.scores > self.threshold

    @property
    def clean_accuracy(self) -> float:
        """Share of examples classified correctly, flagged or not."""
        return self.clean.double().mean().item()

    @property
    def guarded_accuracy(self) -> float:
        """Share of examples at which no attack, nor x itself, is misclassified and unflagged: an upper bound."""
        return (~self._broken(self.worst_case)).double().mean().item()

    @property
    def worst_case(self) -> GuardedOutcome:
        """The union of all attacks: of each example's points that fool, or else of all, the one of lowest score."""
        fooled = torch.stack([o.fooled for o in self.outcomes.values()])  # (A, N)
        scores = torch.stack([o.scores for o in self.outcomes.values()])
        lowest = torch.where(fooled | ~fooled.any(0), scores, float("inf")).amin(0)
        return GuardedOutcome({}, fooled.any(0), lowest)

    def rates(self, outcome: GuardedOutcome) -> dict[str, Any]:
        """What an attack achieved: shares with intervals (None: of no example) and the AUROC.

        - ``success``: fooled the classifier alone, of the examples classified correctly without attack.
        - ``flagged``: of these successes, the true positive rate at the threshold.
        - ``evaded``: fooled and not flagged, of the examples classified correctly without attack.
        - ``guarded_accuracy``: of all examples, neither x nor the attack's point is misclassified and unflagged.
        - ``auroc``: of the scores of all clean examples against those of the successes.
        """
        adversarial = self.clean & outcome.fooled
        flagged = outcome.scores > self.threshold
        return {
            "success": _share(outcome.fooled[self.clean]),
            "flagged": _share(flagged[adversarial]),
            "evaded": _share((adversarial & ~flagged)[self.clean]),
            "guarded_accuracy": proportion(~self._broken(outcome)),
            "auroc": auroc(self.scores, outcome.scores[adversarial]) if adversarial.any() else None,
        }

    def _broken(self, outcome: GuardedOutcome) -> Tensor:
        return (outcome.fooled & (outcome.scores <= self.threshold)) | (~self.clean & ~self.flagged)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: threat model, threshold, every rate with its interval, settings, per-example outcomes."""
        return {
            "name": self.name,
            "detector": self.detector,
            "threat_model": {"norm": self.norm, "eps": self.eps, "bounds": list(self.bounds)},
            "notes": self.notes,
            "fpr": self.fpr,
            "threshold": self.threshold,
            "n_calibration": self.n_calibration,
            "clean": {
                "accuracy": proportion(self.clean),
                "false_alarms": proportion(self.flagged),
                "correct_and_unflagged": proportion(self.clean & ~self.flagged),
            },
            "attacks": {label: {"settings": o.settings} | self.rates(o) for label, o in self.outcomes.items()},
            "worst_case": self.rates(self.worst_case),
            "out_of_distribution": self._reverse_rates(),
            "certified": self._certified_rates(),
            "per_example": {
                "ids": self.ids.tolist(),
                "labels": self.y.tolist(),
                "clean_correct": self.clean.tolist(),
                "clean_scores": rounded(self.scores),
                "fooled_by": {label: o.fooled.tolist() for label, o in self.outcomes.items()},
                "scores": {label: rounded(o.scores) for label, o in self.outcomes.items()},
            },
            "seed": self.seed,
            "environment": self.environment,
            "wall_seconds": round(self.wall_seconds, 2),
        }

    def _certified_rates(self) -> dict[str, Any] | None:
        """Shares that no attack can push further: ``flagged`` at every point of the ball, of all examples, which is a
        lower bound of guarded accuracy too; ``quiet`` at none; out-of-distribution inputs at their lowest scores.
        """
        if self.certified is None:
            return None
        found: dict[str, Any] = {
            "flagged": proportion(self.certified.lowest > self.threshold),
            "quiet": proportion(self.certified.highest <= self.threshold),
            "out_of_distribution": None,
        }
        if self.certified.lowest_ood is not None:
            found["out_of_distribution"] = {
                "flagged": proportion(self.certified.lowest_ood > self.threshold),
                "auroc": auroc(self.scores, self.certified.lowest_ood),
            }
        return found

    def _reverse_rates(self) -> dict[str, Any] | None:
        if self.reverse is None:
            return None

        def rates(scores: Tensor) -> dict[str, Any]:
            found = {"flagged": proportion(scores > self.threshold), "auroc": auroc(self.scores, scores)}
            return found | {"scores": rounded(scores)}

        before, after = rates(self.reverse.before), rates(self.reverse.after)
        return {"settings": self.reverse.settings, "before": before, "after": after}

    def save(self, directory: str | Path, *, command: str | None = None) -> Path:
        """Write ``report.json`` and ``report.html`` to ``directory``; returns the path of the page."""
        report = {
            "title": f"The detector of {self.name} under attack",
            "command": command,
            "seed": self.seed,
            "wall_seconds": round(self.wall_seconds, 1),
            "stage_seconds": self.stage_seconds,
            "environment": self.environment,
            "networks": [],
            "detector_robustness": [self.to_dict()],
        }
        return write_report(report, directory)

    def __str__(self) -> str:
        entry = self.to_dict()
        head, rows = detector_robustness_table(entry)
        threat = f"{self.norm} eps {self.eps:g}"
        lines = [
            f"{self.name} guarded by {self.detector}: {len(self.y)} examples, {threat} (95 % Wilson intervals)",
            f"  clean accuracy {percent(entry['clean']['accuracy'])}; threshold {self.threshold:.6g} for a nominal "
            f"{self.fpr:.1%} false alarms, from {self.n_calibration} calibration scores",
        ]
        lines += [f"  doubt: {note}" for note in self.notes]
        cells = [head, *([str(c) for c in row] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for row in cells:
            lines.append("  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())
        return printable("\n".join(lines))


def _share(hits: Tensor) -> dict[str, Any] | None:
    return proportion(hits) if len(hits) else None
