"""Would a stronger attack change an evaluation, is every success real, does the attack that it trusts work?"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from robustgen.attacks import PGD, Attack, AttackResult
from robustgen.attacks.losses import LOSSES
from robustgen.evaluation.binarization import binarization_test
from robustgen.evaluation.chunks import Job, Outcome
from robustgen.evaluation.indicators import indicators_of_failure
from robustgen.evaluation.kept import Keep, anew
from robustgen.evaluation.masking import GRADIENT_ATTACKS, NOT_RUN, VIOLATED, MaskingTest, above, at_most
from robustgen.evaluation.stages import ALONE, passes
from robustgen.evaluation.verifier import LEVELS, verify
from robustgen.model import Model

__all__ = ["PROBED", "diagnose", "price_and_pieces", "probe_jobs"]

PROBED = 200  # examples that the probes and the verifier see
TRACED = 20  # examples that are attacked one by one

_LOSSES = {f"probe: {loss}": loss for loss in LOSSES}
_STEPS, _RESTARTS, _WHOLE = "probe: twice the steps", "probe: twice the restarts", "probe: every step"


def probe_jobs(pgd: PGD, n: int) -> dict[str, Job]:
    """What :func:`diagnose` needs besides the attacks of the report, on the first ``n`` examples at most."""
    n = min(n, PROBED)
    jobs = {label: Job(replace(pgd, loss=loss), n) for label, loss in _LOSSES.items()}
    jobs[_STEPS] = Job(replace(pgd, steps=2 * pgd.steps), n)
    jobs[_RESTARTS] = Job(replace(pgd, restarts=2 * pgd.restarts), n)
    jobs[_WHOLE] = Job(replace(pgd, early_stop=False), n, n)
    return jobs


def diagnose(
    model: Model,
    x: Tensor,
    y: Tensor,
    attacks: Mapping[str, Attack],
    found: Mapping[str, Outcome],
    done: Mapping[str, AttackResult],
    clean: Tensor,
    pgd: PGD,
    span: float,
    keep: Keep = anew,
) -> list[MaskingTest]:
    """The probes, the verifier, the 8-bit check, the six indicators and the binarization test.

    Args:
        x, y: the examples of the report, (N, ...) and (N,).
        attacks, found: those of the report and what they found, by name.
        done: what the jobs of :func:`probe_jobs` found, by name.
        clean: bool (N,), classified correctly without attack.
        pgd: what the probes vary; its eps, norm and bounds are the threat model.
        span: an eps that holds the whole input space.
        keep: by which what is found of single inputs is kept.
    """
    tests = _probes(torch.stack([clean, *(~r.success for r in found.values())]).all(0), done)
    tests.append(_verified(found))
    tests.append(_eight_bit(model, x, y, pgd, done[_WHOLE]))
    label, attack = _questioned(attacks, pgd)
    few = slice(0, TRACED)
    indicators = indicators_of_failure(
        model,
        x[few],
        y[few],
        attack,
        eps=pgd.eps,
        norm=pgd.norm,
        bounds=pgd.bounds,
        loss=getattr(attack, "loss", "ce"),
        unbounded=replace(attack, eps=span),
        seed=pgd.seed,
        keep=keep,
    )
    binarized = binarization_test(model, x[few], attack, eps=pgd.eps, seed=pgd.seed, keep=keep).to_test()
    return [*tests, *(replace(t, name=f"{label}: {t.name}") for t in (*indicators, binarized))]


def price_and_pieces(attacks: Mapping[str, Attack], pgd: PGD, n: int) -> tuple[float, int]:
    """What :func:`diagnose` asks about single inputs: passes of the model for each piece that is kept, and pieces."""
    return ALONE * passes(_questioned(attacks, pgd)[1]), 2 * min(n, TRACED)


def _questioned(attacks: Mapping[str, Attack], pgd: PGD) -> tuple[str, Attack]:
    """The attack that a reader would trust most, with its name."""
    usable = {k: a for k, a in attacks.items() if isinstance(a, GRADIENT_ATTACKS) and a.eps == pgd.eps}
    return max(usable.items(), key=lambda item: getattr(item[1], "steps", 1), default=("PGD", pgd))


def _probes(standing: Tensor, done: Mapping[str, AttackResult]) -> list[MaskingTest]:
    """Whether stronger attacks take more than two standard errors off the report's worst case, bool (N,)."""

    def probe(name: str, title: str, labels: list[str], advice: str) -> MaskingTest:
        left = torch.stack([~done[label].success for label in labels])
        worst = standing[: left.shape[1]]
        return at_most(name, ("the report", worst), (f"with {title}", worst & left.all(0)), advice)

    losses = probe(
        "another loss breaks nothing more",
        f"PGD on {', '.join(LOSSES)}",
        list(_LOSSES),
        "Add attacks with the other losses to the report: one loss alone is weak on this network.",
    )
    each = ", ".join(f"{loss} {(~done[label].success).double().mean():.1%}" for label, loss in _LOSSES.items())
    return [
        replace(losses, detail=f"{losses.detail}; PGD leaves, by loss: {each}"),
        probe(
            "twice the steps break nothing more",
            "PGD of twice the steps",
            [_STEPS],
            "Take more steps until the accuracy stays.",
        ),
        probe(
            "twice the restarts break nothing more",
            "PGD of twice the restarts",
            [_RESTARTS],
            "Take more restarts until the accuracy stays.",
        ),
    ]


def _verified(found: Mapping[str, Outcome]) -> MaskingTest:
    name = "every success is verified"
    advice = (
        "Do not trust the attack that made them: its projection, its bookkeeping or its copy of the model is wrong."
    )
    claims = torch.cat([o.rejected[(o.success & o.attacked) | o.rejected] for o in found.values()])
    if not len(claims):
        return MaskingTest(name, NOT_RUN, "no attack claims a success", advice=advice)
    test = above(name, claims, "rejected", 0.0, advice)
    reasons = [f"{label} at {reason}" for label, o in found.items() for reason in o.reasons]
    if not reasons:
        return test
    # One vote, or the last bit of a logit, may be lost to chance; a point outside the ball may not.
    unsound = any("outside" in r or "NaN" in r or "instead" in r for r in reasons)
    return replace(test, verdict=VIOLATED if unsound else test.verdict, detail=f"{test.detail}; {reasons[0]}")


def _eight_bit(model: Model, x: Tensor, y: Tensor, pgd: PGD, whole: AttackResult) -> MaskingTest:
    name = "successes survive 8-bit rounding"
    advice = "State that the numbers hold for real-valued inputs, or attack on the grid of 8-bit values."
    x, y = x[: len(whole.success)], y[: len(whole.success)]
    level = (x.double() - pgd.bounds[0]) / (pgd.bounds[1] - pgd.bounds[0]) * LEVELS
    if not bool(((level - level.round()).abs() < 1e-3).all()):
        return MaskingTest(name, NOT_RUN, "the inputs are not 8-bit", advice=advice)
    checked = verify(
        model,
        x,
        whole.x_adv.to(x.device),
        y,
        eps=pgd.eps,
        norm=pgd.norm,
        bounds=pgd.bounds,
        rounding=True,
        seed=pgd.seed,
    )
    assert checked.rounded is not None
    # Linf is rounded towards x; in the other norms the length may grow by a little, which is stated
    test = at_most(name, ("PGD rounded", ~checked.rounded.fooled.cpu()), ("PGD", ~checked.accepted.cpu()), advice)
    longest = (checked.rounded.distance / pgd.eps).max().item()
    return replace(test, detail=f"{test.detail}; largest norm after rounding {longest:.3g} eps")
