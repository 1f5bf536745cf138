"""What an experiment is: a table or figure of a source, its published numbers, and how one of its cells is measured."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor

from robustgen.checks import nearest
from robustgen.training.collapse import COLLAPSED, is_at_chance

if TYPE_CHECKING:
    from robustgen.experiments.training_cache import TrainingCache

__all__ = [
    "LAMB_2018",
    "SCALES",
    "Cell",
    "Column",
    "Experiment",
    "Kept",
    "KeptOf",
    "Measurement",
    "Row",
    "accuracies",
    "check_scale",
    "counted",
    "epochs_of",
]

SCALES = ("smoke", "cpu", "full")
Kept: TypeAlias = Mapping[str, dict[str, Any]]  # cells by name, as cells.read_cells reads them
KeptOf: TypeAlias = "Callable[[Experiment], Kept]"
LAMB_2018 = 'Lamb, "Generative Models: A Critical Review", 2018'


def check_scale(scale: str) -> None:
    """ValueError for a scale that does not exist."""
    if scale not in SCALES:
        raise ValueError(f"unknown scale {scale!r}; known: {', '.join(SCALES)}")


@dataclass(frozen=True)
class Column:
    """One column of a table; ``key`` names it in files and on the command line."""

    key: str
    title: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table.

    Attributes:
        key: its name in files and on the command line.
        title: as readers see it.
        published: the source's number for each column that it prints.
        columns: those that the row is measured in; None: all.
        note: what a reader has to know.
        missing: why it is not measured; empty for a row that is.
        data: further settings of the row, which the experiment understands.
    """

    key: str
    title: str
    published: Mapping[str, float] = field(default_factory=dict)
    columns: tuple[str, ...] | None = None
    note: str = ""
    missing: str = ""
    data: Any = None


@dataclass(frozen=True, order=True)
class Cell:
    """One row, one column, one seed: what is measured at a time and kept in a line of its own."""

    row: str
    column: str
    seed: int

    @property
    def name(self) -> str:
        """As on the command line.

        >>> Cell("fortified", "fgsm-0.3", 2).name
        'fortified--fgsm-0.3--seed2'
        """
        return f"{self.row}--{self.column}--seed{self.seed}"

    @classmethod
    def parse(cls, name: str) -> "Cell":
        """The cell called ``name``; ValueError for a name of another form."""
        found = re.fullmatch(r"(.+)--(.+)--seed(\d+)", name)
        if found is None:
            raise ValueError(f"a cell is named row--column--seedN, not {name!r}")
        return cls(found[1], found[2], int(found[3]))


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a cell gave.

    Attributes:
        value: the number of the table, in the unit of the experiment.
        numbers: everything measured: {name: {"value": ..., "n": examples behind it}}.
        verdicts: tests of the measurement itself, each with name, verdict and detail (see ``MaskingTest``).
        history: {name: one number an epoch}, of the training behind it.
    """

    value: float
    numbers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    history: Mapping[str, list[float]] = field(default_factory=dict)


def counted(values: Mapping[str, float], n: int) -> dict[str, dict[str, float]]:
    """``numbers`` that all come from n examples."""
    return {name: {"value": value, "n": n} for name, value in values.items()}


def accuracies(standing: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """``numbers``: the share, in percent, of examples that still stand against each attack, bool (n,) each."""
    return {name: {"value": 100 * s.double().mean().item(), "n": len(s)} for name, s in standing.items()}


def epochs_of(history: list[dict[str, float]]) -> dict[str, list[float]]:
    """``history``: one list an entry, of what a trainer logged in every epoch."""
    left_out = ("epoch", "step", COLLAPSED)  # what has collapsed is read off the losses, of older cells too
    everywhere = [name for name in history[0] if all(name in row for row in history) and name not in left_out]
    return {name: [round(row[name], 6) for row in history] for name in everywhere}


class Experiment(ABC):
    """A table or figure. A subclass or instance states the attributes and says how a cell is measured.

    Attributes:
        name: "source/what", as on the command line and under results/.
        title: one line.
        question: what the table asks, in plain words.
        finding: what came out, with places for numbers of the cells, see :func:`robustgen.experiments.summary.fill`.
        source: title, author, year and place of the published numbers.
        metric: what ``value`` is, with its unit.
        rows, columns: of the table.
        seeds: how many are due.
        digits: of the table's numbers behind the point.
        as_lines: the table is drawn with a line for each column, and the mean and median over rows at its end.
        levels: numbers that every column of a row shares, drawn as lines of their own in such a table.
        notes: what a reader has to know of the whole.
        n_classes: of the classifiers behind the cells; what one that has learned nothing is told by.
    """

    name: str
    title: str
    question: str = ""
    finding: str = ""
    source: str
    metric: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    seeds: int = 3
    digits: int = 2
    as_lines: bool = False
    levels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    n_classes: int = 10

    @abstractmethod
    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        """All that the cell's numbers depend on, JSON-able; a kept cell with other settings is measured anew."""

    @abstractmethod
    def measure(self, cell: Cell, scale: str, cache: "TrainingCache") -> Measurement:
        """Train, attack, score: whatever the cell needs."""

    def describe(self, scale: str) -> str:
        """Data, sizes and epochs at ``scale``, in one line for readers."""
        return ""

    def remarks(self, kept: Kept, kept_of: KeptOf) -> str:
        """What the kept cells say together, in Markdown, for an experiment that compares its rows.

        Args:
            kept_of: the kept cells of another experiment, at the same scale.
        """
        return ""

    def conclusion(self, kept: Kept, kept_of: KeptOf) -> str:
        """What came out besides ``finding``, in a sentence, where that takes more than means of cells.

        Args:
            kept: with those that have collapsed.
            kept_of: as for :meth:`remarks`.
        """
        return ""

    def has_collapsed(self, record: Mapping[str, Any]) -> bool:
        """Whether the network of a kept cell has learned nothing, by the losses of its last epoch of training."""
        last = {name: values[-1] for name, values in record["history"].items() if values}
        return is_at_chance(last, self.n_classes)

    def living(self, kept: Kept) -> dict[str, dict[str, Any]]:
        """The kept cells but for those that have collapsed, which no mean and no verdict counts."""
        return {name: record for name, record in kept.items() if not self.has_collapsed(record)}

    def row(self, key: str) -> Row:
        """The row called ``key``; ValueError for another."""
        known = {row.key: row for row in self.rows}
        if key not in known:
            raise ValueError(f"{self.name} has no row {key!r}; {nearest(key, known)}")
        return known[key]

    def cells(self, seeds: int | None = None) -> list[Cell]:
        """All cells that are measured, seed by seed, so that a table that grows is whole for its first seeds."""
        return [
            Cell(row, column, seed)
            for seed in range(self.seeds if seeds is None else seeds)
            for row, column in self._places()
        ]

    def is_measured(self, row: Row, column: str) -> bool:
        """Whether the row has a cell in this column, kept or due."""
        return not row.missing and (row.columns is None or column in row.columns)

    def _places(self) -> list[tuple[str, str]]:
        """Row and column of all that is measured."""
        return [(row.key, c.key) for row in self.rows for c in self.columns if self.is_measured(row, c.key)]

    def sorted(self, cells: Iterable[Cell]) -> list[Cell]:
        """Those of ``cells`` that the experiment has, of whatever seed, in the order of :meth:`cells`."""
        order = {place: k for k, place in enumerate(self._places())}
        own = [cell for cell in cells if (cell.row, cell.column) in order and cell.seed >= 0]
        return sorted(own, key=lambda cell: (cell.seed, order[cell.row, cell.column]))

    def cell(self, name: str) -> Cell:
        """The cell called ``name``; ValueError where the experiment has none."""
        cell = Cell.parse(name)
        if not self.sorted([cell]):
            such = [f"; one of its cells is {cell.name!r}" for cell in self.cells(1)[:1]]
            raise ValueError(f"{self.name} has no cell {name!r}{''.join(such)}")
        return cell
