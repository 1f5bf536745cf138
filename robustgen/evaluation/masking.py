"""Tests for gradient masking: signs that an attack is weak rather than the network robust.

Lamb, "Generative Models: A Critical Review", 2018, section 2.6.2 (black-box attacks are a subset of white-box ones, an
unbounded attack must succeed, many small steps beat one large one), after Athalye, Carlini and Wagner, "Obfuscated
Gradients Give a False Sense of Security", 2018; and, on one fixed network, accuracy must fall as eps grows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from robustgen.attacks import (
    APGD,
    APGDT,
    FGSM,
    MIFGSM,
    PGD,
    AtEps,
    Attack,
    HopSkipJump,
    NoiseSearch,
    Square,
    TransferAttack,
)
from robustgen.attacks.minimal_norm import MinimalNormAttack

__all__ = [
    "GRADIENT_ATTACKS",
    "HOLDS",
    "NOT_RUN",
    "VERDICTS",
    "VIOLATED",
    "MaskingTest",
    "above",
    "at_most",
    "found_alone",
    "monotone",
    "paired",
    "reaches_zero",
    "run_masking_tests",
]

VERDICTS = HOLDS, VIOLATED, NOT_RUN = "holds", "violated", "not run"


@dataclass(frozen=True)
class MaskingTest:
    """One verdict with the numbers behind it.

    Attributes:
        name: what must hold.
        verdict: "holds", "violated" (beyond two standard errors) or "not run".
        detail: the numbers in one sentence, or why the test was not run.
        difference: by how much it is violated, in accuracy (negative: with room to spare); None if not run.
        standard_error: of the difference, paired over examples.
        n: examples.
        advice: what to do where it is violated, in one sentence.
    """

    name: str
    verdict: str
    detail: str
    difference: float | None = None
    standard_error: float | None = None
    n: int = 0
    advice: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def paired(difference: Tensor) -> tuple[float, float]:
    """Mean of a difference (N,) between two outcomes on the same examples, and its standard error."""
    d = difference.double()
    error = d.std().item() / len(d) ** 0.5 if len(d) > 1 else 0.0
    return d.mean().item(), error


def _verdict(excess: float, error: float) -> str:
    return VIOLATED if excess > 0 and excess > 2 * error else HOLDS


def above(name: str, values: Tensor, what: str, threshold: float, advice: str) -> MaskingTest:
    """The mean of ``values`` (N,), a share or a measure in [0, 1] named ``what``, must not exceed a threshold."""
    excess, error = paired(values.double() - threshold)
    limit = f", at most {threshold:g}" if threshold else ""
    detail = f"{what}: {excess + threshold:.3g}{limit} (n = {len(values)}, standard error {error:.2g})"
    return MaskingTest(name, _verdict(excess, error), detail, excess, error, len(values), advice)


def at_most(name: str, stronger: tuple[str, Tensor], weaker: tuple[str, Tensor], advice: str = "") -> MaskingTest:
    """Accuracy under the first attack must be at most that under the second.

    Args:
        stronger, weaker: (name of the attack, bool (N,) which examples still stand), on the same examples.
    """
    (strong_name, strong), (weak_name, weak) = stronger, weaker
    excess, error = paired(strong.double() - weak.double())
    detail = (
        f"{strong_name} leaves {strong.double().mean():.1%}, {weak_name} {weak.double().mean():.1%} "
        f"(difference {100 * excess:+.1f} points, standard error {100 * error:.1f})"
    )
    return MaskingTest(name, _verdict(excess, error), detail, excess, error, len(strong), advice)


def reaches_zero(name: str, standing: Tensor, advice: str = "") -> MaskingTest:
    """An attack without a bound must leave nothing standing, up to two standard errors."""
    excess, error = paired(standing)
    detail = f"{standing.double().mean():.1%} of {len(standing)} still stand (standard error {100 * error:.1f} points)"
    return MaskingTest(name, _verdict(excess, error), detail, excess, error, len(standing), advice)


def monotone(name: str, eps: Sequence[float], standing: Sequence[Tensor], advice: str = "") -> MaskingTest:
    """Accuracy must not rise from one eps to the next; the worst step decides."""
    steps = [paired(b.double() - a.double()) for a, b in pairwise(standing)]
    worst = max(range(len(steps)), key=lambda k: steps[k][0] - 2 * steps[k][1])
    excess, error = steps[worst]
    path = ", ".join(f"{s.double().mean():.1%} at {e:.3g}" for e, s in zip(eps, standing, strict=True))
    detail = (
        f"{path}; largest step {100 * excess:+.1f} points, from {eps[worst]:.3g} to {eps[worst + 1]:.3g} "
        f"(standard error {100 * error:.1f})"
    )
    return MaskingTest(name, _verdict(excess, error), detail, excess, error, len(torch.atleast_1d(standing[0])), advice)


def found_alone(name: str, weaker: tuple[str, Tensor], stronger: tuple[str, Tensor], advice: str) -> MaskingTest:
    """No example may fall to the weaker attack alone; per example, where :func:`at_most` compares the totals."""
    (weak_name, weak), (strong_name, strong) = weaker, stronger
    alone = strong & ~weak
    excess, error = paired(alone)
    detail = (
        f"{int(alone.sum())} of {len(alone)} fall to {weak_name} and not to {strong_name} "
        f"(standard error {100 * error:.1f} points)"
    )
    return MaskingTest(name, _verdict(excess, error), detail, excess, error, len(alone), advice)


GRADIENT_ATTACKS = (FGSM, MIFGSM, PGD, APGD, APGDT)
BLACK_BOX_ATTACKS = (TransferAttack, Square, NoiseSearch, HopSkipJump)
BETTER_GRADIENTS = (
    "The gradients mislead: attack a differentiable approximation (bpda), average over draws (eot_samples), or rely on "
    "Square and transfer."
)


def run_masking_tests(
    attacks: Mapping[str, Attack],
    standing: Mapping[str, Tensor],
    eps: float,
    unbounded: Tensor | None,
    curve: Sequence[tuple[float, Tensor]] | None,
    why_none: str = "switched off",
) -> list[MaskingTest]:
    """All tests that these outcomes allow; the others are listed as not run.

    Args:
        attacks: by name.
        standing: bool (N,) for each attack: what it left.
        eps: of the threat model; attacks at another one are not compared.
        unbounded: bool (n,), what PGD without a bound left; None: not run.
        curve: (eps, bool (n,)) in the order of eps; None: not run.
        why_none: why those that are None were not run.
    """

    searches = {name: a.attack if isinstance(a, AtEps) else a for name, a in attacks.items() if a.eps == eps}

    def group(*kinds: type) -> dict[str, Tensor]:
        return {name: standing[name] for name, search in searches.items() if isinstance(search, kinds)}

    def compare(
        name: str,
        strong_title: str,
        strong: dict[str, Tensor],
        weak_title: str,
        weak: dict[str, Tensor],
        advice: str,
        by_example: bool = False,
    ) -> None:
        missing = strong_title if not strong else weak_title if not weak else None
        if missing:
            why = f"no {missing} attack was run at eps {eps:g}"
            tests.append(MaskingTest(name, NOT_RUN, why, advice=advice))
            return
        if len(next(iter(strong.values()))) < 2:
            tests.append(MaskingTest(name, NOT_RUN, "one example has no standard error", advice=advice))
            return
        one, two = (
            (next(iter(side)) if len(side) == 1 else title, torch.stack(list(side.values())).all(0))
            for title, side in ((strong_title, strong), (weak_title, weak))
        )
        tests.append(found_alone(name, two, one, advice) if by_example else at_most(name, one, two, advice))

    tests: list[MaskingTest] = []
    black, blind = group(TransferAttack), group(*BLACK_BOX_ATTACKS)
    white = {k: v for k, v in group(*GRADIENT_ATTACKS, MinimalNormAttack).items() if k not in blind}
    name = "white-box is at least as strong as black-box"
    compare(name, "white-box", white, "black-box (surrogate)", black, BETTER_GRADIENTS)
    name = "no example falls to black-box attacks alone"
    compare(name, "white-box", white, "black-box", blind, BETTER_GRADIENTS, by_example=True)
    name = "PGD is at least as strong as FGSM"
    more_steps = "The steps of PGD lead astray: shorten them or take more, and look at the gradients."
    compare(name, "PGD", group(PGD), "FGSM", group(FGSM), more_steps)
    name = "gradients are at least as strong as noise"
    compare(name, "white-box", white, "noise", group(NoiseSearch), BETTER_GRADIENTS)
    name, advice = (
        "unbounded PGD breaks everything",
        "No number of this report counts until an unbounded attack succeeds.",
    )
    if unbounded is None:
        tests.append(MaskingTest(name, NOT_RUN, why_none, advice=advice))
    else:
        tests.append(reaches_zero(name, unbounded, advice))
    name, advice = "accuracy falls as eps grows", "PGD loses its way in larger balls: take more steps and restarts."
    if curve is None:
        tests.append(MaskingTest(name, NOT_RUN, why_none, advice=advice))
    else:
        tests.append(monotone(name, [eps for eps, _ in curve], [s for _, s in curve], advice))
    return tests
