"""Which sign a published column has: rank correlations over held-out classes with both signs of our score."""

from collections.abc import Mapping

from scipy.stats import spearmanr

from robustgen.experiments.ahmed2017.compared_detectors import DETECTORS
from robustgen.experiments.experiment import Kept

__all__ = ["correlations_by_sign", "published_correlation"]

Published = Mapping[str, Mapping[str, float]]  # column -> row -> number


def published_correlation(published: Published, a: str, b: str) -> str:
    """A line about two published columns."""
    correlation = _correlation([(value, published[b][row]) for row, value in published[a].items()])
    return f"- published, {DETECTORS[a].title} and {DETECTORS[b].title}: {correlation:+.2f}"


def correlations_by_sign(kept: Kept, published: Published, ours: str, theirs: str) -> list[str]:
    """A line about one of our columns and a published one; none below three common rows."""
    cells = {r["row"]: r["numbers"] for r in kept.values() if r["column"] == ours and r["seed"] == 0}
    rows = [row for row in published[theirs] if row in cells]
    if len(rows) < 3:
        return []
    as_is, other = (
        _correlation([(cells[row][sign]["value"], published[theirs][row]) for row in rows])
        for sign in ("AUPR", "AUPR, other sign")
    )
    few = " (too few to decide)" if len(rows) < 6 else ""
    return [
        f"- our {DETECTORS[ours].title} and the published {DETECTORS[theirs].title}, {len(rows)} classes: "
        f"{as_is:+.2f} as it is, {other:+.2f} with the other sign{few}"
    ]


def _correlation(pairs: list[tuple[float, float]]) -> float:
    return float(spearmanr(*zip(*pairs, strict=True)).statistic)
