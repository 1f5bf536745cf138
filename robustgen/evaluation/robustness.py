"""How robust a network is: accuracy per attack and in the worst case per example, with tests that the attacks work."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustgen.attacks import APGD, FGSM, PGD, AtEps, Attack, TransferAttack
from robustgen.attacks.minimal_norm import MinimalNormAttack
from robustgen.attacks.problem import Problem
from robustgen.attacks.queries import Oracle, Search
from robustgen.checks import check_evaluation, check_positive, diameter, eps_spans_bounds, nearest, plain_arguments
from robustgen.evaluation.chunks import Job, Outcome, any_process, kept_under, run_jobs, stages_of
from robustgen.evaluation.diagnostics import diagnose, price_and_pieces, probe_jobs
from robustgen.evaluation.doubts import at_chance, n_classes_of, raise_doubts
from robustgen.evaluation.kept import OutOfTime, anew, kept_in
from robustgen.evaluation.masking import NOT_RUN, MaskingTest, run_masking_tests
from robustgen.evaluation.robustness_report import AttackOutcome, RobustnessReport
from robustgen.evaluation.stages import Stages
from robustgen.evaluation.suites import SUITES, Stage, suite_of
from robustgen.evaluation.wall_clock import WallClock
from robustgen.model import Model, untouched
from robustgen.progress import showing

__all__ = ["NoAttack", "evaluate_robustness"]

DEFAULT_SUITE = "quick"
PICTURES, PICTURED_FROM = 8, 64  # so many examples are shown, of so many whose adversarial inputs are kept
NO_TIME = "the time was used up before"
DIAGNOSTICS = "diagnostics"  # the stage of what is done to single inputs, in the end
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
    class_names: Sequence[str] | None = None,
    progress: bool = False,
    max_minutes: float | None = None,
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
        class_names: of the labels 0, 1, ... in the report; default: their numbers.
        progress: show a progress bar, with about how long is left: see :mod:`robustgen.evaluation.stages`.
        max_minutes: stop when they are used up, with all that is done kept in ``run_dir``, and report what the attacks
            that were finished found: ``unfinished`` of the report and its ``notes`` say what is missing. The accuracy
            without attack is always measured. Resume it to finish: the report is then that of one that was not stopped.
            (Where a kill costs a chunk, the chunk under way is finished.)

    Warns:
        UserWarning: an eps that holds every input in the bounds (8 for 8/255), or a clean accuracy not above chance.

    Raises:
        TypeError, ValueError: as :meth:`robustgen.attacks.Attack.run`; an empty data set, an unknown suite, an attack
            in another norm, fewer ``class_names`` than labels, ``max_minutes`` that are not > 0 or have no ``run_dir``,
            a ``run_dir`` that holds another evaluation or one already begun without ``resume``.

    >>> import torch
    >>> model = torch.nn.Linear(4, 2)
    >>> x = torch.rand(20, 4); y = model(x).argmax(1)
    >>> report = evaluate_robustness(model, x, y, eps=0.05, masking_tests=False)
    >>> report.clean_accuracy, report.robust_accuracy <= 1
    (1.0, True)
    """
    began, wall = time.perf_counter(), WallClock(None if run_dir is None else kept_under(run_dir))
    if max_minutes is not None:
        check_positive(max_minutes=max_minutes)
        if run_dir is None:
            raise ValueError("max_minutes needs a run_dir, where what is done is kept")
    until = None if max_minutes is None else began + 60 * max_minutes
    x, y, ids, bounds = check_evaluation(x, y, ids, bounds, eps, batch_size)
    if class_names is not None and len(class_names) <= int(y.max()):
        raise ValueError(f"class_names holds {len(class_names)} names, and y has the label {int(y.max())}")
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
    jobs = {"clean": Job(NoAttack(norm=norm, bounds=bounds, seed=seed), len(x), named=True, needed=True)}
    jobs |= _attack_jobs(stages, len(x), precision)
    chosen = {label: stage.attack for label, stage in stages.items()}
    jobs |= {label: Job(replace(pgd, eps=e), few) for e, label in sweep.items()}
    if masking_tests:
        jobs["unbounded"] = Job(replace(pgd, eps=span, steps=100), few)
        jobs |= probe_jobs(pgd, few)

    done: dict[str, Outcome] = {}

    def take(label: str, outcome: Outcome) -> None:
        done[label] = outcome
        if label == "clean":  # said before the hours of attacks
            notes.extend(raise_doubts([at_chance(~outcome.success, y.cpu(), n_classes_of(model, x))]))

    def found_by() -> dict[str, Outcome]:
        return {label: done[f"attack: {label}"] for label in chosen if f"attack: {label}" in done}

    diagnosed: list[MaskingTest] | None = None
    partly: dict[str, tuple[int, int]] = {}
    with showing(progress), closing(stages_of(name, run_dir, until, wall)) as clock:
        if masking_tests:
            clock.expect(DIAGNOSTICS, *price_and_pieces(chosen, pgd, len(x)))
        try:
            run_jobs(
                jobs,
                model,
                x,
                y,
                ids,
                batch_size=batch_size,
                run_dir=run_dir,
                resume=resume,
                stages=clock,
                finished=take,
            )
            if masking_tests:
                clean = ~done["clean"].success
                keep = clock.each(anew if run_dir is None else kept_in(kept_under(run_dir)))
                about = partial(diagnose, model, x, y, chosen, found_by(), done, clean, pgd, span, keep)
                diagnosed = _in_time(clock, x.device, about)
        except OutOfTime as late:
            partly = late.partly

    clean, found = ~done["clean"].success, found_by()
    unfinished = _unfinished([*jobs, *([DIAGNOSTICS] if masking_tests else [])], done, diagnosed, partly)
    if unfinished:
        assert max_minutes is not None
        notes.append(_cut_short(max_minutes, chosen, found, unfinished))
    swept = bool(sweep) and all(label in done for label in sweep.values())
    curve = [(0.0, clean[:few]), *((e, ~done[label].success) for e, label in sweep.items())] if swept else []
    masking = run_masking_tests(
        {label: chosen[label] for label in found},
        # what fell to an earlier attack is no success of one that was not run on it
        {label: ~(outcome.success & outcome.attacked) for label, outcome in found.items()},
        eps=eps,
        unbounded=~done["unbounded"].success if "unbounded" in done else None,
        curve=curve if swept else None,
        why_none=NO_TIME if unfinished and masking_tests else "switched off",
    )
    if diagnosed is not None:
        masking += diagnosed
    elif masking_tests:
        masking.append(MaskingTest("the diagnostics of the attacks", NOT_RUN, NO_TIME))
    if not clean.any():  # where nothing stands, that attacks leave nothing shows nothing
        why = "no example is right without attack"
        masking = [MaskingTest(test.name, NOT_RUN, why, advice=test.advice) for test in masking]
    standing = torch.stack([clean, *(~r.success for r in found.values())]).all(0)
    shown = _to_show(clean, standing)
    predicted_clean = torch.where(clean, y.cpu(), done["clean"].predicted)
    predicted = _first_answers(predicted_clean, list(found.values()))
    return RobustnessReport(
        name=name,
        eps=eps,
        norm=norm,
        bounds=bounds,
        ids=ids.cpu(),
        y=y.cpu(),
        clean=clean,
        predicted_clean=predicted_clean,
        predicted=predicted,
        class_names=None if class_names is None else tuple(class_names),
        suite=None if attacks is not None else DEFAULT_SUITE if suite is None else suite,
        outcomes={
            label: AttackOutcome(attack.describe(), r.success, r.distance, r.forwards, r.backwards, r.attacked)
            for label, r in found.items()
            for attack in (chosen[label],)
        },
        curve=curve,
        masking=masking,
        examples=(x[shown.to(x.device)].cpu(), _first_successes(x, shown, list(found.values()))),
        shown=shown,
        notes=notes,
        unfinished=unfinished,
        seed=seed,
        wall_seconds=wall.keep(finished=not unfinished),
        stage_seconds=clock.seconds,
    )


def _in_time(
    clock: Stages, device: torch.device, diagnosis: Callable[[], list[MaskingTest]]
) -> list[MaskingTest] | None:
    """The diagnosis; None where one of the processes had no time for it."""
    found = None
    with suppress(OutOfTime), clock.running(DIAGNOSTICS):
        found = diagnosis()
    return None if any_process(clock, found is None, device) else found


def _unfinished(
    stages: Sequence[str], done: Mapping[str, Outcome], diagnosed: object, partly: Mapping[str, tuple[int, int]]
) -> dict[str, str]:
    """The stages that were not finished, by name, and how far they came."""
    missing = [label for label in stages if label not in done and not (label == DIAGNOSTICS and diagnosed is not None)]
    if missing == [DIAGNOSTICS]:
        return {DIAGNOSTICS: "not finished"}
    how_far = {label: f"stopped after {n} of {of} examples" for label, (n, of) in partly.items()}
    return {label.removeprefix("attack: "): how_far.get(label, "not begun") for label in missing}


def _cut_short(
    minutes: float, chosen: Mapping[str, Attack], found: Mapping[str, Outcome], unfinished: Mapping[str, str]
) -> str:
    """What a reader must know of an evaluation that was stopped."""
    left = [f"{label} ({unfinished[label]})" for label in chosen if label in unfinished]
    left += ["tests of the attacks"] if len(left) < len(unfinished) else []
    finished = ", ".join(found) if found else "none"
    line = f"cut short after {minutes:g} minutes: attacks finished: {finished}; left: {', '.join(left)}"
    if len(found) == len(chosen):
        return f"{line}; the accuracies are those of a finished evaluation"
    if not found:
        return f"{line}; no attack was finished, so the worst case is the accuracy without attack and no robustness"
    return (
        f"{line}; the worst case is an upper bound from the finished attacks alone: examples that only the others "
        "would break are counted as standing"
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


def _first_answers(predicted_clean: Tensor, found: Sequence[Outcome]) -> Tensor:
    """int64 (N,): the class that the model says at what the first attack that succeeded found, else without attack."""
    predicted = predicted_clean.clone()
    for outcome in reversed(found):
        broken = outcome.success & outcome.attacked
        predicted[broken] = outcome.predicted[broken]
    return predicted


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
        suite = DEFAULT_SUITE if suite is None else suite
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
