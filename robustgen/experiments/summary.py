"""What the seeds of a table's cells say together, and sentences with these numbers in them."""

import re
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from robustgen.experiments.experiment import Experiment

__all__ = ["NOT_MEASURED", "Group", "Groups", "fill", "short", "summarise"]

NOT_MEASURED = "not measured"


@dataclass
class Group:
    """What all seeds of a row and column gave.

    Attributes:
        values: of the seeds whose networks have not collapsed.
        numbers: everything else that was measured on these, one value a seed.
        collapsed: seeds whose networks have learned nothing; they are in no mean.
    """

    values: list[float] = field(default_factory=list)
    numbers: dict[str, list[float]] = field(default_factory=dict)
    collapsed: list[int] = field(default_factory=list)

    @property
    def mean(self) -> float | None:
        """Over seeds; None where all have collapsed."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def sd(self) -> float | None:
        """The standard deviation; None for fewer than two seeds."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def number(self, name: str) -> float | None:
        """The mean of one of ``numbers``; None where no seed has it."""
        return statistics.fmean(self.numbers[name]) if name in self.numbers else None


Groups: TypeAlias = dict[tuple[str, str], Group]  # by row and column


def summarise(experiment: Experiment, kept: Mapping[str, dict[str, Any]]) -> Groups:
    """The kept cells of an experiment, over their seeds."""
    groups: Groups = {}
    for record in kept.values():
        group = groups.setdefault((record["row"], record["column"]), Group())
        if experiment.has_collapsed(record):
            group.collapsed.append(record["seed"])
            continue
        group.values.append(record["value"])
        for name, number in record["numbers"].items():
            group.numbers.setdefault(name, []).append(number["value"])
    return groups


def fill(text: str, experiment: Experiment, groups: Groups) -> str:
    """``text`` with numbers of the cells in it.

    ``{row|column}`` is the mean over seeds, and the published number behind it; ``{row|column|name}`` the mean of
    another of the cell's numbers. The row ``mean`` stands for the mean over all rows, ``worst`` for the lowest of them,
    where all are measured.

    Raises:
        ValueError: a row or a column that the experiment has not.
    """
    return re.sub(r"\{([^{}]+)\}", lambda found: _filled(experiment, groups, *found[1].split("|")), text)


def _filled(experiment: Experiment, groups: Groups, row: str, column: str, name: str = "") -> str:
    if column not in [c.key for c in experiment.columns]:
        raise ValueError(f"{experiment.name} has no column {column!r}")
    rows = experiment.rows if row in _OVER_ROWS else (experiment.row(row),)
    of_all = _OVER_ROWS.get(row, statistics.fmean)
    measured = [r for r in rows if experiment.is_measured(r, column)]
    found = [groups.get((r.key, column), Group()) for r in measured]
    ours = _of_all(of_all, [group.number(name) if name else group.mean for group in found])
    published = None if name else _of_all(of_all, [r.published.get(column) for r in rows])
    if ours is not None:
        said = short(ours)
    elif not measured and published is not None:
        return f"{short(published)} (published)"
    else:
        said = "collapsed" if any(group.collapsed for group in found) else NOT_MEASURED
    return said if published is None else f"{said} (published {short(published)})"


_OVER_ROWS: dict[str, Callable[[list[float]], float]] = {"mean": statistics.fmean, "worst": min}


def _of_all(combined: Callable[[list[float]], float], values: list[float | None]) -> float | None:
    """None where one of them is missing."""
    known = [value for value in values if value is not None]
    return combined(known) if known and len(known) == len(values) else None


def short(value: float) -> str:
    """One digit behind the point, two below ten.

    >>> short(90.412), short(1.034), short(-0.5)
    ('90.4', '1.03', '-0.50')
    """
    return f"{value:.{1 if abs(value) >= 10 else 2}f}"
