"""What a random defence is worth: under attacks that know it, and where the attacker may try again or knows the seed.

Athalye, Carlini and Wagner, "Obfuscated Gradients Give a False Sense of Security", ICML 2018 (gradients averaged over
draws, and others in the place of those that are missing); Tramer, Carlini, Brendel and Madry, "On Adaptive Attacks to
Adversarial Example Defenses", NeurIPS 2020 (nothing counts without an attack on the defence as it is); Lucas,
Jagielski, Tramer, Bauer and Carlini, "Randomness in ML Defenses Helps Persistent Attackers and Hinders Evaluators",
2023 (who may submit again needs one lucky draw).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustgen.attacks import APGD, PGD, Attack, Engine, Square
from robustgen.checks import check_evaluation, check_integers, check_seed, eps_spans_bounds, nearest
from robustgen.counter_rng import derive_seed
from robustgen.evaluation.doubts import at_chance, n_classes_of, raise_doubts
from robustgen.evaluation.kept import anew, kept_of
from robustgen.evaluation.random_defence_report import RandomDefenceReport
from robustgen.evaluation.random_defence_rows import (
    ADAPTIVE,
    BLACK_BOX,
    CLEAN,
    OBLIVIOUS,
    ONE_SEED,
    STAND_IN,
    WORST,
    DefenceRow,
)
from robustgen.evaluation.report_pictures import encode_picture
from robustgen.evaluation.verifier import verify
from robustgen.evaluation.wall_clock import WallClock
from robustgen.fingerprint import fingerprint, model_fingerprint
from robustgen.fortified import Purified
from robustgen.model import Model, is_stochastic, logits_of, untouched
from robustgen.progress import showing, track
from robustgen.training.distributed import current_world
from robustgen.turns import seeded

__all__ = ["ATTACKS", "KEPT", "random_defence"]

ATTACKS = ("pgd", "apgd", "bpda", "surrogate", "square")
KEPT = "draws"  # the directory of finished parts
_CHOICE, _VERDICT, _FIXED, _PICTURE = range(1, 5)  # what seeds are for
_PICTURES = 4
_BOUNDS = (0.0, 1.0)
_PIECE = ("x_adv", "answers", "fixed", "undefended", "rejected")


class _Plan(NamedTuple):
    """An attack on ``view``; its points are judged by draws of the defence."""

    label: str
    kind: str
    view: Model
    attack: Attack | None


def random_defence(
    model: Purified,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: str = "Linf",
    k: int = 10,
    draws: int = 50,
    eot: int = 20,
    steps: int = 40,
    attacks: Sequence[str] | None = None,
    surrogate_steps: int | None = None,
    surrogate: Model | None = None,
    n_queries: int = 500,
    ids: Tensor | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    seed: int = 0,
    batch_size: int = 250,
    name: str = "the purified network",
    progress: bool = False,
) -> RandomDefenceReport:
    """Attack a purified classifier, and count what is left of each input in many draws.

    Of each attack's point for an input, ``draws`` draws that no attack has seen say how often the defence is right: in
    one draw, in the vote of ``k``, and in all of ``k``, which is what counts where the attacker may submit again. The
    worst case takes the worst point of each input, and judges it by draws of its own. Where the draws are those of one
    seed that the attacker knows, the defence is a fixed network, and is attacked as one. Behind the network alone,
    attacked by itself, that says what the removal of perturbations gives, and what randomness does.

    Where several processes work together (``torch.distributed``), each takes a share of the parts, and all return the
    same.

    Args:
        model: what :func:`robustgen.purify` gave.
        x, y: (N, C, H, W) in [0, 1], int64 (N,).
        eps, norm: the threat model.
        k: draws of a vote, and tries of an attacker who may submit again.
        draws: of each verdict, at least k.
        eot: draws that each gradient averages (expectation over transformation).
        steps: of PGD and APGD.
        attacks: some of "pgd" and "apgd" (through the whole chain or, where it has no gradient, with that of the
            identity), "bpda" (PGD with the identity in the place of the chain's gradient), "surrogate" (PGD through a
            chain of fewer steps) and "square" (no gradient). Default: all that make sense. "pgd" or "apgd" must be
            among them: a purified accuracy without them says nothing. APGD on the classifier alone and APGD on the
            defence with a known seed always run.
        surrogate_steps: of that chain; default: a quarter of the steps.
        surrogate: another network; adds APGD on it, transferred.
        n_queries: of Square.
        ids: int64 (N,), by which inputs are told, and attacks keyed; default arange(N).
        run_dir: where finished parts are kept, ``batch_size`` inputs of an attack each; with ``resume`` they are read.
        seed: of attacks and verdicts.
        progress: show a bar.

    Warns:
        UserWarning: eot=1 on a defence that draws; an eps that holds every input.

    Raises:
        TypeError: no purified classifier.
        ValueError: no input, an unknown attack, none through the defence, fewer draws than k, a number out of range, a
            ``run_dir`` of another evaluation, or whatever attacks refuse.

    >>> from robustgen.fortified import purify
    >>> from robustgen.generative import Denoiser
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    >>> x = torch.rand(4, 1, 8, 8)
    >>> defence = purify(model, Denoiser((1, 8, 8), width=4).eval(), depth=0.3)
    >>> report = random_defence(defence, x, model(x).argmax(1), eps=0.1, attacks=["pgd"], eot=2, steps=3, draws=10)
    >>> report.worst.one_draw <= report.rows["clean"].one_draw
    True
    """
    world, wall = current_world(), WallClock(None if run_dir is None else Path(run_dir) / KEPT)
    if not isinstance(model, Purified):
        raise TypeError(f"random_defence takes what robustgen.purify gives, got {type(model).__name__}")
    x, y, ids, _ = check_evaluation(x, y, ids, _BOUNDS, eps, batch_size)
    check_integers(k=k, draws=draws, eot=eot, steps=steps, n_queries=n_queries)
    check_seed(seed)
    if draws < k:
        raise ValueError(f"draws={draws} cannot say what k={k} draws do: take as many at least")
    chosen = _chosen(attacks, model, surrogate_steps)
    with torch.no_grad(), untouched(model, derive_seed(seed)):
        stochastic = is_stochastic(lambda: model(x[:4]))
    doubts = [eps_spans_bounds(eps, norm, _BOUNDS, x[0].numel())]
    if not stochastic:
        k, draws, eot = 1, 1, 1
    elif eot == 1:
        doubts.append("eot=1 follows the gradient of one draw: of a random defence that is no adaptive attack")
    notes = raise_doubts(doubts)
    fixed = model.fixed(derive_seed(seed, _FIXED))
    common: dict[str, Any] = {"eps": eps, "norm": norm, "bounds": _BOUNDS, "seed": seed}
    plans = {"clean": _Plan("clean", CLEAN, model, None)}
    for key, label, network in (
        ("oblivious", "the network alone", model.model),
        ("transfer", "another network", surrogate),
    ):
        if network is not None:
            far = APGD(**common, steps=steps, early_stop=False)  # it cannot know when the defence falls
            plans[key] = _Plan(f"APGD-{steps} on {label}", OBLIVIOUS, network, far)
    plans |= _through(model, chosen, common | {"steps": steps, "eot_samples": eot}, surrogate_steps)
    if "square" in chosen:
        square = Square(**common, n_queries=n_queries)
        plans["square"] = _Plan(f"Square, {n_queries} queries", BLACK_BOX, model, square)
    if stochastic:
        plans["seed"] = _Plan(f"APGD-{steps} on draws of one seed", ONE_SEED, fixed, APGD(**common, steps=steps))

    def piece(plan: _Plan, rows: Tensor) -> dict[str, Tensor]:
        few, labels = x[rows], y[rows]
        points, rejected = few, torch.zeros_like(labels, dtype=torch.bool)
        if plan.attack is not None:
            points = plan.attack(plan.view, few, labels, ids=ids[rows], engine=Engine(slots=batch_size))
            found = verify(model.model, few, points, labels, eps=eps, norm=norm, bounds=_BOUNDS)
            rejected = found.votes.isnan()  # outside the ball or the bounds
            points = torch.where(rejected.view(-1, 1, 1, 1), few, points)
        return {
            "x_adv": points.cpu(),
            "answers": model.answers(points, draws, seed=derive_seed(seed, _CHOICE)).cpu(),
            "fixed": _right(fixed, points, labels),
            "undefended": _right(model.model, points, labels),
            "rejected": rejected.cpu(),
        }

    plan_of_all = {
        "network": model_fingerprint(model.model),
        "purifier": model.config | {"weights": model_fingerprint(model.purifier)},
        "examples": fingerprint({"x": x, "y": y, "ids": ids}),
        "attacks": {label: plan.attack and plan.attack.describe() for label, plan in plans.items()},
        "settings": {"draws": draws, "seed": seed, "batch size": batch_size, "surrogate steps": surrogate_steps},
        "surrogate": model_fingerprint(surrogate) if isinstance(surrogate, nn.Module) else repr(surrogate),
    }
    chunks = torch.arange(len(x), device=x.device).split(batch_size)
    with world.alone(None if run_dir is None else Path(run_dir), x.device), showing(progress):
        keep = wall.each(anew if run_dir is None else kept_of(Path(run_dir), KEPT, plan_of_all, resume, world))

        def shared(
            works: Mapping[str, Callable[[Tensor], dict[str, Tensor]]], entries: Sequence[str]
        ) -> dict[str, dict[str, Tensor]]:
            """What each of ``works`` makes of all inputs; the processes take turns at their parts."""
            turns = [(f"{key}-{c:06d}", partial(of, few)) for key, of in works.items() for c, few in enumerate(chunks)]
            own = track(turns[world.rank :: world.size], name)
            made = {f"{part}/{entry}": t for part, make in own for entry, t in keep(part, entries, make).items()}
            made = world.union(made)

            def whole(key: str, entry: str) -> Tensor:
                return torch.cat([made[f"{key}-{c:06d}/{entry}"] for c in range(len(chunks))])

            return {key: {entry: whole(key, entry) for entry in entries} for key in works}

        pieces = shared({"clean": partial(piece, plans["clean"])}, _PIECE)

        def row(key: str) -> DefenceRow:
            plan, found = plans[key], pieces[key]
            settings = {} if plan.attack is None else plan.attack.describe()
            return DefenceRow(
                plan.label, plan.kind, settings, found["answers"], y.cpu(), k, int(found["rejected"].sum())
            )

        notes += raise_doubts(
            [at_chance(row("clean").vote, y.cpu(), n_classes_of(model, x))]
        )  # before hours of attacks
        pieces |= shared({key: partial(piece, plan) for key, plan in plans.items() if key != "clean"}, _PIECE)
        rows = {key: row(key) for key in plans}
        # the worst point of each input by one set of draws, how bad it is by another: of many, one is bad by chance
        attacked = [key for key in rows if key != "clean"]
        fewest = torch.stack([rows[key].right.sum(1) for key in attacked]).argmin(0)
        hardest = torch.stack([pieces[key]["x_adv"] for key in attacked])[fewest, torch.arange(len(x))].to(x.device)

        def again(chunk: Tensor) -> dict[str, Tensor]:
            return {"answers": model.answers(hardest[chunk], draws, seed=derive_seed(seed, _VERDICT)).cpu()}

        answers = shared({"worst": again}, ("answers",))["worst"]["answers"]
    return RandomDefenceReport(
        name=name,
        purifier=dict(model.config) | {"exact": model.exact, "stochastic": stochastic},
        eps=eps,
        norm=norm,
        eot=eot,
        k=k,
        draws=draws,
        ids=ids.cpu(),
        y=y.cpu(),
        rows=rows | {"worst": DefenceRow("worst point of each input", WORST, {}, answers, y.cpu(), k)},
        fixed=torch.stack([found["fixed"] for found in pieces.values()]).all(0),
        undefended=torch.stack([found["undefended"] for found in pieces.values()]).all(0),
        undefended_clean=pieces["clean"]["undefended"],
        notes=notes,
        pictures=_pictures(model, x[:_PICTURES], hardest[:_PICTURES], seed),
        seed=seed,
        wall_seconds=wall.keep(finished=True),
    )


def _chosen(attacks: Sequence[str] | None, model: Purified, surrogate_steps: int | None) -> Sequence[str]:
    """The attacks that run; ValueError where that would say nothing of the defence."""
    able = {"bpda": model.exact, "surrogate": model.exact and (surrogate_steps is not None or _fewer(model) > 0)}
    if attacks is None:
        return [name for name in ATTACKS if able.get(name, True)]
    for name in attacks:
        if name not in ATTACKS:
            raise ValueError(f"unknown attack {name!r}; {nearest(name, ATTACKS)}")
    if "pgd" not in attacks and "apgd" not in attacks:
        raise ValueError(
            "a purified accuracy without an attack on the purifier says nothing: attacks must hold pgd or apgd"
        )
    if not model.exact and {"bpda", "surrogate"} & set(attacks):
        raise ValueError("this purifier has no gradient of its own: pgd and apgd put the identity in its place already")
    if "surrogate" in attacks and not able["surrogate"]:
        raise ValueError("this chain has no fewer steps to take a gradient of: leave surrogate out")
    return attacks


def _through(
    model: Purified, chosen: Sequence[str], settings: dict[str, Any], surrogate_steps: int | None
) -> dict[str, _Plan]:
    """The attacks by gradients of the defence, or by what stands in for them."""
    steps, draws = settings["steps"], settings["eot_samples"]
    by = f"-{steps}, mean of {draws} draws" if draws > 1 else f"-{steps}"
    behind = "" if model.exact else ", identity for the gradient"
    fewer = _fewer(model) if surrogate_steps is None else surrogate_steps
    found = {}
    if "pgd" in chosen:
        found["pgd"] = _Plan(f"PGD{by}{behind}", ADAPTIVE, model, PGD(**settings))
    if "apgd" in chosen:
        found["apgd"] = _Plan(f"APGD{by}{behind}", ADAPTIVE, model, APGD(**settings))
    if "bpda" in chosen:
        view = model.with_identity_gradient()
        found["bpda"] = _Plan(f"PGD{by}, identity for the gradient", STAND_IN, view, PGD(**settings))
    if "surrogate" in chosen:
        label = f"PGD{by}, gradient of {fewer} step{'s' if fewer > 1 else ''}"
        found["surrogate"] = _Plan(label, STAND_IN, model.with_gradient_of(fewer), PGD(**settings))
    return found


def _fewer(model: Purified) -> int:
    """A quarter of the steps of a chain; 0 where it has only one.

    Of its functions some may be no steps, such as the first; the shortest chain has them too.
    """
    try:
        shortest = len(model.purifier.chain(model.depth, 1))
    except ValueError:  # it has no steps to choose
        return 0
    steps = 1 + model.length - shortest
    return max(1, steps // 4) if steps > 1 else 0


@torch.no_grad()
def _right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """bool (N,): a network without chance, or of one seed, is right."""
    with untouched(model):
        logits = logits_of(model(x))
    return (logits.isfinite().all(1) & (logits.argmax(1) == y)).cpu()


@torch.no_grad()
def _pictures(model: Purified, x: Tensor, x_adv: Tensor, seed: int) -> list[dict[str, Any]]:
    """Images and the attacks' worst points, each with what one draw of the purifier makes of it."""
    if x.shape[1] not in (1, 3):
        return []
    with untouched(model), seeded(derive_seed(seed, _PICTURE)):
        shown = {"image": x, "purified": model.purify(x)}
        shown |= {"attacked": x_adv, "attacked, purified": model.purify(x_adv)}
    return [{name: encode_picture(t[i].clamp(0, 1)) for name, t in shown.items()} for i in range(len(x))]
