"""How robust a network is: accuracy per attack and in the worst case per example, with tests that the attacks work."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustgen.attacks import APGD, FGSM, PGD, AtEps, Attack, TransferAttack
from robustgen.attacks.minimal_norm import MinimalNormAttack
from robustgen.attacks.problem import Problem
from robustgen.attacks.queries import Oracle, Search
from robustgen.checks import check_evaluation, diameter, eps_spans_bounds, nearest, plain_arguments
from robustgen.evaluation.chunks import Job, Outcome, kept_under, run_jobs
from robustgen.evaluation.diagnostics import diagnose, probe_jobs
from robustgen.evaluation.doubts import at_chance, n_classes_of, raise_doubts
from robustgen.evaluation.kept import anew, kept_in
from robustgen.evaluation.masking import run_masking_tests
from robustgen.evaluation.robustness_report import AttackOutcome, RobustnessReport
from robustgen.evaluation.suites import SUITES, Stage, suite_of
from robustgen.model import Model, untouched

__all__ = ["NoAttack", "evaluate_robustness"]

PICTURES, PICTURED_FROM = 8, 64  # so many examples are shown, of so many whose adversarial inputs are kept
SWEEP = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # multiples of eps at which accuracy is measured on the one network


class NoAttack(Attack):
    """The clean verdict, by the rules of the attacks (a stochastic model is judged by the majority of its draws)."""

    norms = ("Linf", "L2", "L1")

    def _search(self, problem: Problem, i: Tensor, run: int) -> Search:
        yield from ()


@plain_arguments
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
    precision: str = "float32",
    name: str = "network",
    progress: bool = False,
) -> RobustnessReport:
    """Attack ``model`` at every (x, y) and report its accuracy, clean, per attack and in the worst case per example.

    Args:
        model: x (N, ...) in bounds -> logits (N, C).
        x: float (N, ...) in ``bounds``; y: int64 (N,), the true labels.
        attacks: by name, or a sequence named by class; default: the suite. Their own eps, norm and bounds count.
        suite: "quick" (the default), "standard" (AutoAttack) or "thorough"; see
            :func:`~robustgen.evaluation.suites.suite_of`.
        eps, norm, bounds: the threat model, used by the suite and the masking tests.
        ids: int64 (N,), what random numbers are keyed by; default arange(N).
        run_dir: keep what is done there, chunk by chunk, and the model's answers in the chunk under way, so that a kill
            costs seconds; ``resume=True`` continues such a run. The model must then be an nn.Module, so that another
            one is recognised. (A stochastic model, or an accelerator with attacks of many steps: a kill costs a chunk.)
        seed: of the attacks.
        surrogate: a substitute model; adds black-box transfer of FGSM and of PGD, and the white-against-black test.
        masking_tests: run the tests for gradient masking and the other diagnostics of the attacks. On the first
            ``sweep_examples`` examples: PGD at multiples of eps and without a bound (340 gradient steps each); on 200
            of these at most: PGD with three losses, with twice the steps and with twice the restarts, and to the end
            for the 8-bit check (320), and every success verified; on 20 of these, one by one: the six indicators of
            attack failure and the binarization test, of the attack with the most steps (two runs of it, one without a
            bound, and some 500 forward passes).
        batch_size: examples in one pass of the model.
        precision: of the attacks' searches, "float32" or "bfloat16". Every success is verified in float32 on the model;
            what a search in bfloat16 left standing is attacked again by the cheapest gradient attack in float32.
        name: of the network in the report.
        progress: show a progress bar.

    Warns:
        UserWarning: an eps that holds every input in the bounds (8 for 8/255), or a clean accuracy not above chance.

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
    x, y, ids, bounds = check_evaluation(x, y, ids, bounds, eps, batch_size)
    stages = _choose(attacks, suite, eps, norm, bounds, seed, model, x)
    if surrogate is not None:
        for kind in (FGSM, PGD):
            on_surrogate = kind(eps=eps, norm=norm, bounds=bounds, seed=seed)
            stages[f"transfer {kind.__name__}"] = Stage(TransferAttack(surrogate=surrogate, attack=on_surrogate))
    notes = raise_doubts([eps_spans_bounds(eps, norm, bounds, x[0].numel())])
    few = min(len(x), sweep_examples)
    pgd = PGD(eps=eps, norm=norm, bounds=bounds, seed=seed)
    span = diameter(bounds, norm, x[0].numel())
    sweep = {m * eps: f"sweep: {m * eps:.6g}" for m in SWEEP if m * eps < span} if masking_tests else {}
    jobs = {"clean": Job(NoAttack(norm=norm, bounds=bounds, seed=seed), len(x))}
    jobs |= _attack_jobs(stages, len(x), precision)
    chosen = {label: stage.attack for label, stage in stages.items()}
    jobs |= {label: Job(replace(pgd, eps=e), few) for e, label in sweep.items()}
    if masking_tests:
        jobs["unbounded"] = Job(replace(pgd, eps=span, steps=100), few)
        jobs |= probe_jobs(pgd, few)

    def doubt(label: str, outcome: Outcome) -> None:
        if label == "clean":  # said before the hours of attacks
            notes.extend(raise_doubts([at_chance(~outcome.success, y.cpu(), n_classes_of(model, x))]))

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
        finished=doubt,
    )

    clean = ~done["clean"].success
    found = {label: done[f"attack: {label}"] for label in chosen}
    curve = [(0.0, clean[:few]), *((e, ~done[label].success) for e, label in sweep.items())]
    masking = run_masking_tests(
        chosen,
        # what fell to an earlier attack is no success of one that was not run on it
        {label: ~(found[label].success & found[label].attacked) for label in chosen},
        eps=eps,
        unbounded=~done["unbounded"].success if masking_tests else None,
        curve=curve if sweep else None,
    )
    if masking_tests:
        keep = anew if run_dir is None else kept_in(kept_under(run_dir))
        masking += diagnose(model, x, y, chosen, found, done, clean, pgd, span, keep)
    shown = _to_show(clean, torch.stack([~r.success for r in found.values()]).all(0))
    return RobustnessReport(
        name=name,
        eps=eps,
        norm=norm,
        bounds=bounds,
        ids=ids.cpu(),
        y=y.cpu(),
        clean=clean,
        outcomes={
            label: AttackOutcome(attack.describe(), r.success, r.distance, r.forwards, r.backwards, r.attacked)
            for label, attack in chosen.items()
            for r in (found[label],)
        },
        curve=curve if sweep else [],
        masking=masking,
        examples=(x[shown.to(x.device)].cpu(), _first_successes(x, shown, list(found.values()))),
        shown=shown,
        notes=notes,
        seed=seed,
        wall_seconds=time.monotonic() - started,
    )


def _to_show(clean: Tensor, standing: Tensor) -> Tensor:
    """Rows, at most ``PICTURES``, that were right without attack: first those that fell, then those that stood."""
    right = clean[:PICTURED_FROM].nonzero().squeeze(1)
    fell = ~standing[right]
    return torch.cat([right[fell], right[~fell]])[:PICTURES]


def _first_successes(x: Tensor, rows: Tensor, found: Sequence[Outcome]) -> Tensor:
    """What the first attack that succeeded found at each of ``rows`` (n,), x where none did, (n, ...)."""
    pictures = x[rows.to(x.device)].cpu().clone()
    for outcome in reversed(found):
        broken = outcome.success[rows] & outcome.attacked[rows]
        pictures[broken] = outcome.x_adv[rows[broken]]
    return pictures


def _attack_jobs(stages: dict[str, Stage], n: int, precision: str) -> dict[str, Job]:
    """The jobs of the report's attacks; a search in bfloat16 adds a stage in float32."""
    common: dict[str, Any] = {"n": n, "keep": PICTURED_FROM, "checked": True}
    if precision != "float32":
        gradient = next((s.attack for s in stages.values() if isinstance(s.attack, PGD | APGD)), None)
        if gradient is None:
            raise ValueError(f"precision={precision!r} needs PGD or APGD among the attacks, to repeat it in float32")
        stages["float32 check"] = Stage(gradient, True)
    jobs: dict[str, Job] = {}
    for label, stage in stages.items():
        used = "float32" if label == "float32 check" else precision
        jobs[f"attack: {label}"] = Job(
            stage.attack, after=("clean", *jobs) if stage.on_standing else (), precision=used, **common
        )
    return jobs


def _choose(
    attacks: Mapping[str, Attack] | Sequence[Attack] | None,
    suite: str | None,
    eps: float,
    norm: str,
    bounds: tuple[float, float],
    seed: int,
    model: Model,
    x: Tensor,
) -> dict[str, Stage]:
    if attacks is not None and suite is not None:
        raise ValueError("pass attacks or a suite, not both")
    if attacks is None:
        suite = "quick" if suite is None else suite
        if suite not in SUITES:
            raise ValueError(f"unknown suite {suite!r}; {nearest(str(suite), SUITES)}")
        with untouched(model, seed=None):
            stochastic = Oracle(model, x[:4], slots=4, seed=seed).stochastic
        return suite_of(suite, eps, norm, bounds, seed, stochastic=stochastic)
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
    attacks = {k: AtEps(attack=a, eps=eps) if isinstance(a, MinimalNormAttack) else a for k, a in attacks.items()}
    for label, attack in attacks.items():
        if attack.norm != norm or attack.bounds != bounds or attack.targeted or not attack.early_stop:
            raise ValueError(
                f"attack {label!r} does not fit the threat model: it needs norm={norm!r}, bounds={bounds}, "
                "targeted=False and early_stop=True"
            )
        if attack.eps > eps * (1 + 1e-9):
            raise ValueError(f"attack {label!r} has eps {attack.eps:g}, above the threat model's {eps:g}")
    return {label: Stage(attack) for label, attack in attacks.items()}
