"""Which attacks an evaluation runs, cheap ones first."""

from typing import Any, NamedTuple

from robustgen.attacks import APGD, FGSM, PGD, Attack, AutoAttack, NoiseSearch

__all__ = ["SUITES", "Stage", "suite_of"]

SUITES = ("quick", "standard", "thorough")


class Stage(NamedTuple):
    """An attack of a suite; ``on_standing``: only on what all before it left."""

    attack: Attack
    on_standing: bool = False


def suite_of(
    name: str, eps: float, norm: str, bounds: tuple[float, float], seed: int, *, stochastic: bool = False
) -> dict[str, Stage]:
    """The attacks of the suite ``name`` by their names in the report.

    - "quick": noise, FGSM, PGD with 40 steps on the cross-entropy and on the margin, each on every example.
    - "standard": noise, FGSM and PGD-40 on every example; then the parts of :class:`~robustgen.attacks.AutoAttack`
      ("standard", or "rand" for a stochastic model), each on what all before it left standing.
    - "thorough": the same with the "plus" version, and PGD with 200 steps and 10 restarts on the margin.

    >>> list(suite_of("standard", 0.3, "Linf", (0.0, 1.0), 0))
    ['noise', 'FGSM', 'PGD-40', 'APGD-CE', 'APGD-T', 'FAB-T', 'Square']
    """
    common: dict[str, Any] = {"eps": eps, "norm": norm, "bounds": bounds, "seed": seed}
    draws = 20 if stochastic else 1
    stages = {
        "noise": Stage(NoiseSearch(**common, n_queries=20)),
        "FGSM": Stage(FGSM(**common, eot_samples=draws)),
        "PGD-40": Stage(PGD(**common, steps=40, eot_samples=draws)),
    }
    if name == "quick":
        return stages | {"PGD-40 margin": Stage(PGD(**common, steps=40, loss="margin", eot_samples=draws))}
    if stochastic:
        version = "rand"
    else:
        version = {"standard": "standard", "thorough": "plus"}[name]
    stages |= {_title(part): Stage(part, True) for part in AutoAttack(**common, version=version).parts()}
    if name == "thorough":
        strong = PGD(**common, steps=200, restarts=10, loss="margin", eot_samples=draws)
        stages["PGD-200 margin, 10 restarts"] = Stage(strong, True)
    return stages


def _title(part: Attack) -> str:
    """The part's usual name: with its loss, or "T" for targeted."""
    if isinstance(part, APGD):
        return f"APGD-{part.loss.upper()}"
    inner = getattr(part, "attack", part)
    targeted = getattr(inner, "n_targets", None) is not None
    return f"{type(inner).__name__.removesuffix('T')}{'-T' if targeted else ''}"
