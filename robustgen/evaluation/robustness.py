"""How robust a network is: accuracy per attack and in the worst case per example, with tests that the attacks work."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustgen.attacks import FGSM, PGD, Attack, NoiseSearch, TransferAttack
from robustgen.attacks.problem import Problem
from robustgen.checks import check_bounds, check_ids, check_images, check_labels, nearest
from robustgen.evaluation.chunks import PICTURES, Job, run_jobs
from robustgen.evaluation.masking import MaskingTest, run_masking_tests
from robustgen.evaluation.metrics import wilson_interval
from robustgen.evaluation.report import encode_pictures, write_report
from robustgen.files import environment
from robustgen.model import Model

__all__ = ["SUITES", "AttackOutcome", "RobustnessReport", "evaluate_robustness"]

SWEEP = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # multiples of eps at which accuracy is measured on the one network


def _quick(eps: float, norm: str, bounds: tuple[float, float], seed: int) -> dict[str, Attack]:
    common: dict[str, Any] = {"eps": eps, "norm": norm, "bounds": bounds, "seed": seed}
    return {
        "noise": NoiseSearch(**common, n_queries=20),
        "FGSM": FGSM(**common),
        "PGD-40": PGD(**common, steps=40),
        "PGD-40 margin": PGD(**common, steps=40, loss="margin"),
    }


SUITES = {"quick": _quick}


class _NoAttack(Attack):
    """The clean verdict, by the rules of the attacks (a stochastic model is judged by the majority of its draws)."""

    def _search(self, problem: Problem) -> None:
        pass


@dataclass(frozen=True)
class AttackOutcome:
    """One attack on every example: ``success`` bool (N,), ``distance`` (N,), ``forwards`` and ``backwards`` (N,)."""

    settings: dict[str, Any]
    success: Tensor
    distance: Tensor
    forwards: Tensor
    backwards: Tensor

    @property
    def standing(self) -> Tensor:
        """bool (N,): still classified correctly."""
        return ~self.success


def _share(hits: Tensor) -> dict[str, float | int]:
    """A proportion with its 95 % Wilson interval."""
    low, high = wilson_interval(int(hits.sum()), len(hits))
    return {"value": hits.double().mean().item(), "low": low, "high": high, "n": len(hits)}


@dataclass
class RobustnessReport:
    """What :func:`evaluate_robustness` measured. Robust accuracies are upper bounds: a better attack can lower them.

    Attributes:
        name: of the network.
        eps, norm, bounds: the threat model.
        ids, y: int64 (N,).
        clean: bool (N,), classified correctly without attack.
        outcomes: by attack name.
        curve: (eps, bool (n,) still standing under PGD) for each eps of the sweep, on the first n examples.
        masking: the tests for gradient masking.
        examples: x and worst-case x_adv of the first few inputs, for pictures.
        seed, environment, wall_seconds: how it was made.
    """

    name: str
    eps: float
    norm: str
    bounds: tuple[float, float]
    ids: Tensor
    y: Tensor
    clean: Tensor
    outcomes: dict[str, AttackOutcome]
    curve: list[tuple[float, Tensor]] = field(default_factory=list)
    masking: list[MaskingTest] = field(default_factory=list)
    examples: tuple[Tensor, Tensor] | None = None
    seed: int = 0
    environment: dict[str, Any] = field(default_factory=environment)
    wall_seconds: float = 0.0

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
        """JSON-able: threat model, every number with its interval, settings, per-example outcomes."""
        return {
            "name": self.name,
            "threat_model": {"norm": self.norm, "eps": self.eps, "bounds": list(self.bounds)},
            "clean_accuracy": _share(self.clean),
            "worst_case_accuracy": _share(self.standing),
            "attacks": {
                name: {
                    "settings": o.settings,
                    "robust_accuracy": _share(o.standing),
                    "mean_forwards": o.forwards.double().mean().item(),
                    "mean_backwards": o.backwards.double().mean().item(),
                }
                for name, o in self.outcomes.items()
            },
            "curve": [{"eps": eps} | _share(standing) for eps, standing in self.curve],
            "masking_tests": [test.to_dict() for test in self.masking],
            "per_example": {
                "ids": self.ids.tolist(),
                "labels": self.y.tolist(),
                "clean_correct": self.clean.tolist(),
                "broken_by": {name: o.success.tolist() for name, o in self.outcomes.items()},
                "distance": {name: [round(d, 6) for d in o.distance.tolist()] for name, o in self.outcomes.items()},
            },
            "pictures": {} if self.examples is None else encode_pictures(*self.examples, self.bounds),
            "seed": self.seed,
            "environment": self.environment,
            "wall_seconds": round(self.wall_seconds, 2),
        }

    def save(self, directory: str | Path, *, command: str | None = None) -> Path:
        """Write ``report.json`` and ``report.html`` to ``directory``; returns the path of the page."""
        report = {
            "title": f"Robustness of {self.name}",
            "command": command,
            "seed": self.seed,
            "wall_seconds": round(self.wall_seconds, 1),
            "environment": self.environment,
            "networks": [self.to_dict()],
        }
        return write_report(report, directory)

    def __str__(self) -> str:
        def line(name: str, hits: Tensor) -> str:
            s = _share(hits)
            return f"  {name:<28}{s['value']:>7.1%}   [{s['low']:.1%}, {s['high']:.1%}]"

        rows = [f"{self.name}: {len(self.y)} examples, {self.norm} eps {self.eps:g} (95 % Wilson intervals)"]
        rows.append(line("clean", self.clean))
        rows += [line(name, o.standing) for name, o in self.outcomes.items()]
        rows.append(line("worst case (upper bound)", self.standing))
        rows += [f"  masking test, {t.name}: {t.verdict} - {t.detail}" for t in self.masking]
        return "\n".join(rows)


def evaluate_robustness(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    attacks: Mapping[str, Attack] | Sequence[Attack] | None = None,
    suite: str | None = None,
    eps: float,
    norm: str = "Linf",
    bounds: tuple[float, float] = (0.0, 1.0),
    ids: Tensor | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    seed: int = 0,
    surrogate: Model | None = None,
    masking_tests: bool = True,
    sweep_examples: int = 500,
    batch_size: int = 250,
    name: str = "network",
    progress: bool = False,
) -> RobustnessReport:
    """Attack ``model`` at every (x, y) and report its accuracy, clean, per attack and in the worst case per example.

    Args:
        model: x (N, ...) in bounds -> logits (N, C).
        x: float (N, ...) in ``bounds``; y: int64 (N,), the true labels.
        attacks: by name, or a sequence named by class; default: the suite. Their own eps, norm and bounds count.
        suite: "quick" (the default): noise, FGSM, PGD with 40 steps on the cross-entropy and on the margin.
        eps, norm, bounds: the threat model, used by the suite and the masking tests.
        ids: int64 (N,), what random numbers are keyed by; default arange(N).
        run_dir: keep the outcome of every finished chunk there; ``resume=True`` continues such a run. The model must
            then be an nn.Module, so that another one is recognised.
        seed: of the attacks.
        surrogate: a substitute model; adds black-box transfer of FGSM and of PGD, and the white-against-black test.
        masking_tests: run the tests for gradient masking: PGD at multiples of eps and without a bound, on the first
            ``sweep_examples`` examples.
        batch_size: examples in a chunk.
        name: of the network in the report.
        progress: show a progress bar.

    Raises:
        TypeError, ValueError: as :meth:`robustgen.attacks.Attack.run`; an empty data set, an unknown suite, an attack
            in another norm, a ``run_dir`` that holds another evaluation or one already begun without ``resume``.

    >>> import torch
    >>> model = torch.nn.Linear(4, 2)
    >>> x = torch.rand(20, 4); y = model(x).argmax(1)
    >>> report = evaluate_robustness(model, x, y, eps=0.05, masking_tests=False)
    >>> report.clean_accuracy, report.robust_accuracy <= 1
    (1.0, True)
    """
    started = time.monotonic()
    bounds = check_bounds(bounds)
    x = check_images(x, bounds).detach()
    y = check_labels(y, len(x)).to(x.device)
    ids = check_ids(ids, len(x), x.device)
    if not len(x):
        raise ValueError("the data set is empty: nothing to evaluate")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if not 0 < eps < float("inf"):
        raise ValueError(f"eps must be a finite number > 0, got {eps}")
    chosen = _choose(attacks, suite, eps, norm, bounds, seed)
    if surrogate is not None:
        for kind in (FGSM, PGD):
            on_surrogate = kind(eps=eps, norm=norm, bounds=bounds, seed=seed)
            chosen[f"transfer {kind.__name__}"] = TransferAttack(surrogate=surrogate, attack=on_surrogate)
    few = min(len(x), sweep_examples)
    pgd = PGD(eps=eps, norm=norm, bounds=bounds, seed=seed)
    span = (bounds[1] - bounds[0]) * (1 if norm == "Linf" else x[0].numel() ** 0.5)
    sweep = {m * eps: f"sweep: {m * eps:.6g}" for m in SWEEP if m * eps < span} if masking_tests else {}
    jobs = {"clean": Job(_NoAttack(norm=norm, bounds=bounds, seed=seed), len(x))}
    jobs |= {f"attack: {label}": Job(attack, len(x)) for label, attack in chosen.items()}
    jobs |= {label: Job(replace(pgd, eps=e), few) for e, label in sweep.items()}
    if masking_tests:
        jobs["unbounded"] = Job(replace(pgd, eps=span, steps=100), few)
    done = run_jobs(
        jobs,
        model,
        x,
        y,
        ids,
        batch_size=batch_size,
        run_dir=run_dir,
        resume=resume,
        progress=progress,
        title=name,
    )

    clean = ~done["clean"].success
    found = {label: done[f"attack: {label}"] for label in chosen}
    curve = [(0.0, clean[:few]), *((e, ~done[label].success) for e, label in sweep.items())]
    pictures = x[:PICTURES].cpu().clone()
    for label in reversed(chosen):  # of the first attack that succeeded
        broken = found[label].success[:PICTURES]
        pictures[broken] = found[label].x_adv[broken]
    return RobustnessReport(
        name=name,
        eps=eps,
        norm=norm,
        bounds=bounds,
        ids=ids.cpu(),
        y=y.cpu(),
        clean=clean,
        outcomes={
            label: AttackOutcome(attack.describe(), r.success, r.distance, r.forwards, r.backwards)
            for label, attack in chosen.items()
            for r in (found[label],)
        },
        curve=curve if sweep else [],
        masking=run_masking_tests(
            chosen,
            {label: ~found[label].success for label in chosen},
            eps=eps,
            unbounded=~done["unbounded"].success if masking_tests else None,
            curve=curve if sweep else None,
        ),
        examples=(x[:PICTURES].cpu(), pictures),
        seed=seed,
        wall_seconds=time.monotonic() - started,
    )


def _choose(
    attacks: Mapping[str, Attack] | Sequence[Attack] | None,
    suite: str | None,
    eps: float,
    norm: str,
    bounds: tuple[float, float],
    seed: int,
) -> dict[str, Attack]:
    if attacks is not None and suite is not None:
        raise ValueError("pass attacks or a suite, not both")
    if attacks is None:
        if (suite or "quick") not in SUITES:
            raise ValueError(f"unknown suite {suite!r}; {nearest(str(suite), SUITES)}")
        return SUITES[suite or "quick"](eps, norm, bounds, seed)
    if not isinstance(attacks, Mapping):
        named: dict[str, Attack] = {}
        for attack in attacks:
            label, k = type(attack).__name__, 2
            while label in named:
                label, k = f"{type(attack).__name__} {k}", k + 1
            named[label] = attack
        attacks = named
    if not attacks:
        raise ValueError("no attacks given")
    for label, attack in attacks.items():
        if attack.norm != norm or attack.bounds != bounds or attack.targeted or not attack.early_stop:
            raise ValueError(
                f"attack {label!r} does not fit the threat model: it needs norm={norm!r}, bounds={bounds}, "
                "targeted=False and early_stop=True"
            )
        if attack.eps > eps * (1 + 1e-9):
            raise ValueError(f"attack {label!r} has eps {attack.eps:g}, above the threat model's {eps:g}")
    return dict(attacks)
