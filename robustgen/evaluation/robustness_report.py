"""What an evaluation found: per-example outcomes, accuracies with intervals, and how they are written and printed."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustgen.evaluation.detector_robustness_report import DetectorRobustness
from robustgen.evaluation.masking import HOLDS, NOT_RUN, VIOLATED, MaskingTest
from robustgen.evaluation.metrics import percent, proportion
from robustgen.evaluation.report import write_report
from robustgen.evaluation.report_pictures import encode_pictures
from robustgen.files import environment
from robustgen.printable import printable

__all__ = ["AttackOutcome", "RobustnessReport"]


@dataclass(frozen=True)
class AttackOutcome:
    """One attack: ``success`` and ``attacked``, bool (N,), ``distance``, ``forwards`` and ``backwards`` (N,).

    An example that was not attacked had fallen to an attack before, and counts as fallen.
    """

    settings: dict[str, Any]
    success: Tensor
    distance: Tensor
    forwards: Tensor
    backwards: Tensor
    attacked: Tensor

    @property
    def standing(self) -> Tensor:
        """bool (N,): still classified correctly."""
        return ~self.success


@dataclass
class RobustnessReport:
    """What :func:`evaluate_robustness` measured. Robust accuracies are upper bounds: a better attack can lower them.

    Attributes:
        name: of the network.
        eps, norm, bounds: the threat model.
        ids, y: int64 (N,).
        clean: bool (N,), classified correctly without attack.
        predicted_clean, predicted: int64 (N,), the class that the network says without attack, and at what the first
            attack that succeeded found; -1: none, as logits are not finite or a stochastic network has no one answer.
        outcomes: by attack name.
        class_names: of the labels 0, 1, ...
        suite: by which the attacks were chosen; None: by the user.
        curve: (eps, bool (n,) still standing under PGD) for each eps of the sweep, on the first n examples.
        masking: the tests for gradient masking and the other diagnostics of the attacks.
        examples: x and x_adv (n, ...) of a few inputs that were right without attack, for pictures: what the first
            attack that succeeded found, x where none did.
        shown: int64 (n,), which rows they are.
        notes: what a reader should doubt before any number.
        unfinished: the stages that an evaluation of limited time has not finished, and how far each came; those
            attacks are not among the outcomes.
        stage_seconds: what each stage took; of a resumed evaluation all its processes together.
        seed, environment, wall_seconds: how it was made.
    """

    name: str
    eps: float
    norm: str
    bounds: tuple[float, float]
    ids: Tensor
    y: Tensor
    clean: Tensor
    predicted_clean: Tensor
    predicted: Tensor
    outcomes: dict[str, AttackOutcome]
    class_names: tuple[str, ...] | None = None
    suite: str | None = None
    curve: list[tuple[float, Tensor]] = field(default_factory=list)
    masking: list[MaskingTest] = field(default_factory=list)
    examples: tuple[Tensor, Tensor] | None = None
    shown: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    notes: list[str] = field(default_factory=list)
    unfinished: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    environment: dict[str, Any] = field(default_factory=environment)
    wall_seconds: float = 0.0
    stage_seconds: dict[str, float] = field(default_factory=dict)

    @property
    def clean_accuracy(self) -> float:
        """Share of examples classified correctly."""
        return self.clean.double().mean().item()

    @property
    def standing(self) -> Tensor:
        """bool (N,): correct without attack and under every attack."""
        return torch.stack([self.clean, *(o.standing for o in self.outcomes.values())]).all(0)

    @property
    def robust_accuracy(self) -> float:
        """Share of examples that no attack broke: an upper bound on the true robust accuracy."""
        return self.standing.double().mean().item()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: threat model, every number with its interval, settings, per-example outcomes.

        Of equal evaluations it differs in ``wall_seconds`` and ``environment`` alone: what each stage took is no part.
        """
        return {
            "name": self.name,
            "class_names": None if self.class_names is None else list(self.class_names),
            "suite": self.suite,
            "threat_model": {"norm": self.norm, "eps": self.eps, "bounds": list(self.bounds)},
            "notes": self.notes,
            "unfinished": self.unfinished,
            "clean_accuracy": proportion(self.clean),
            "worst_case_accuracy": proportion(self.standing),
            "attacks": {
                name: {
                    "settings": o.settings,
                    "robust_accuracy": proportion(o.standing),
                    "n_attacked": int(o.attacked.sum()),
                    "mean_forwards": o.forwards.double().mean().item(),
                    "mean_backwards": o.backwards.double().mean().item(),
                }
                for name, o in self.outcomes.items()
            },
            "curve": [{"eps": eps} | proportion(standing) for eps, standing in self.curve],
            "masking_tests": [test.to_dict() for test in self.masking],
            "per_example": {
                "ids": self.ids.tolist(),
                "labels": self.y.tolist(),
                "clean_correct": self.clean.tolist(),
                "predicted": {"clean": _classes(self.predicted_clean), "worst_case": _classes(self.predicted)},
                "attacked": {name: o.attacked.tolist() for name, o in self.outcomes.items()},
                "broken_by": {name: o.success.tolist() for name, o in self.outcomes.items()},
                "distance": {name: [round(d, 6) for d in o.distance.tolist()] for name, o in self.outcomes.items()},
            },
            "pictures": self._pictures(),
            "seed": self.seed,
            "environment": self.environment,
            "wall_seconds": round(self.wall_seconds, 2),
        }

    def _pictures(self) -> dict[str, Any]:
        found = {} if self.examples is None else encode_pictures(*self.examples, self.bounds)
        which = {
            "ids": self.ids[self.shown].tolist(),
            "fell": (~self.standing[self.shown]).tolist(),
            "labels": self.y[self.shown].tolist(),
            "predicted": _classes(self.predicted[self.shown]),
        }
        return found | which if found else {}

    def save(
        self, directory: str | Path, *, command: str | None = None, guarded: DetectorRobustness | None = None
    ) -> Path:
        """Write ``report.json`` and ``report.html``, with ``guarded`` beside it; returns the path of the page."""
        report = {
            "title": f"Robustness of {self.name}",
            "command": command,
            "seed": self.seed,
            "wall_seconds": round(self.wall_seconds, 1),
            "stage_seconds": self.stage_seconds | ({} if guarded is None else guarded.stage_seconds),
            "environment": self.environment,
            "networks": [self.to_dict()],
            "detector_robustness": [] if guarded is None else [guarded.to_dict()],
        }
        return write_report(report, directory)

    def __str__(self) -> str:
        def line(name: str, hits: Tensor, attacked: int) -> str:
            value, interval = percent(proportion(hits)).split(" ", 1)
            left = f"   attacked: the {attacked} still standing" if attacked < len(hits) else ""
            return f"  {name:<28}{value:>7}   {interval}{left}"

        rows = [f"{self.name}: {len(self.y)} examples, {self.norm} eps {self.eps:g} (95 % Wilson intervals)"]
        rows += [f"  doubt: {note}" for note in self.notes]
        rows.append(line("clean", self.clean, len(self.y)))
        rows += [line(name, o.standing, int(o.attacked.sum())) for name, o in self.outcomes.items()]
        rows.append(line("worst case (upper bound)", self.standing, len(self.y)))
        for t in self.masking:
            if t.verdict == VIOLATED:
                rows += [f"  masking test, {t.name}: {t.verdict} - {t.detail}", f"    {t.advice}"]
        if hold := [t.name for t in self.masking if t.verdict == HOLDS]:
            rows.append(f"  masking tests that hold: {'; '.join(hold)}")
        if not_run := [f"{t.name} ({t.detail})" for t in self.masking if t.verdict == NOT_RUN]:
            rows.append(f"  masking tests not run: {'; '.join(not_run)}")
        return printable("\n".join(rows))


def _classes(predicted: Tensor) -> list[int | None]:
    return [None if k < 0 else k for k in predicted.tolist()]
