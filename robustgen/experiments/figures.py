"""The figures of the page of results, each drawn from the kept cells of one table."""

from pathlib import Path
from statistics import fmean

from robustgen.experiments.catalogue import find
from robustgen.experiments.cells import cells_path, read_cells
from robustgen.experiments.dot_plot import Series, dot_plot
from robustgen.experiments.experiment import Experiment
from robustgen.experiments.summary import Group, summarise

__all__ = ["CAPTIONS", "draw_figures"]

SCALE = "cpu"
CAPTIONS = {  # file: title, and how to read the figure
    "recipes": (
        "What the training recipes give",
        "Each row is a network trained by `robustgen train --recipe NAME`. The disc counts: accuracy under the "
        "strongest attacks.",
    ),
    "one-step-against-many": (
        "MNIST: under one gradient step, and under many",
        "Each row is a network trained on FGSM at eps 0.3. High accuracy under that single step (rings) says nothing "
        "of accuracy under PGD (discs).",
    ),
    "held-out-digit": (
        "A digit of MNIST held out of the training",
        "Each row is a detector that has never seen one of the ten digits and has to find it. "
        "Rows that say classifier know the labels of the trained digits.",
    ),
    "fortified-or-not": (
        "Fashion-MNIST: fortified or not, with the same compute",
        "Robust accuracy (discs) can be bought with clean accuracy (rings): compare both.",
    ),
    "certified-by-radius": (
        "MNIST: certified accuracy by radius",
        "Each row is a network behind noise of 0.5, and each mark a lower bound: no attack of that L2 norm can get "
        "accuracy below it.",
    ),
}
_DETECTORS = (
    "dcgan",
    "pixelcnn",
    "pixelvae",
    "ebm",
    "pixelcnn-complexity",
    "pca",
    "vae",
    "vae-dose",
    "vae-reconstruction",
    "mahalanobis",
    "nearest",
    "max-softmax",
    "k-nearest-features",
    "distortion",
    "contrastive",
    "contrastive-distortion",
    "deformed-k-nearest",
    "deformed-distortion",
)


def draw_figures(out: Path) -> dict[str, str]:
    """The SVG document of each figure in ``CAPTIONS``, from the cells kept under ``out``."""
    drawn = (_recipes(out), _attacks(out), _held_out_digit(out), _same_compute(out), _certified(out))
    return dict(zip(CAPTIONS, drawn, strict=True))


class _Table:
    """The numbers of a table, for its figure."""

    def __init__(self, name: str, out: Path) -> None:
        self.experiment: Experiment = find(name)
        self.groups = summarise(self.experiment, read_cells(out, self.experiment, SCALE))

    @property
    def source(self) -> str:
        """Of the numbers, below the plot."""
        return f"drawn from {cells_path(Path('results'), self.experiment, SCALE).as_posix()}"

    def group(self, row: str, column: str) -> Group:
        """What is measured of a row and column; an empty group where nothing is."""
        return self.groups.get((row, column), Group())

    def titles(self, column: str) -> list[str]:
        """Of all rows, with how many of their seeds have collapsed."""
        titles = []
        for row in self.experiment.rows:
            group = self.group(row.key, column)
            n, lost = len(group.values) + len(group.collapsed), len(group.collapsed)
            titles.append(row.title + (f" ({lost} of {n} collapsed)" if lost else ""))
        return titles

    def series(self, label: str, column: str, name: str) -> Series:
        """One of the numbers of a column, of all rows that have it, means over seeds with their standard deviations."""
        groups = [self.group(row.key, column) for row in self.experiment.rows]
        values = [Group(values=group.numbers.get(name, [])) for group in groups]
        return Series(label, [v.mean for v in values], [v.sd for v in values])


def _recipes(out: Path) -> str:
    table = _Table("recipes/standard", out)
    rows = table.experiment.rows
    return dot_plot(
        CAPTIONS["recipes"][0],
        "accuracy on test images, percent",
        table.titles("standard"),
        [
            table.series("under the standard suite of attacks", "standard", "standard"),
            table.series("without an attack", "standard", "clean"),
            Series("under attack, published", [row.published.get("standard") for row in rows]),
        ],
        source=table.source,
    )


def _attacks(out: Path) -> str:
    table, column = _Table("lamb-2018/table-2.1", out), "fgsm-0.3"
    titles = table.titles(column)
    series = [
        table.series("PGD, many steps", column, "PGD 0.3"),
        table.series("FGSM, a single step", column, "FGSM 0.3"),
        table.series("FGSM of another network", column, "transfer FGSM 0.3"),
    ]
    measured = [k for k in range(len(titles)) if series[0].values[k] is not None]
    return dot_plot(
        CAPTIONS["one-step-against-many"][0],
        "accuracy under attack at eps 0.3, percent; bars: standard deviations over seeds",
        [titles[k] for k in measured],
        [Series(s.label, [s.values[k] for k in measured], [s.spreads[k] for k in measured]) for s in series],
        source=table.source,
    )


def _held_out_digit(out: Path) -> str:
    table = _Table("ahmed-2017/table-4.1", out)
    rows = table.experiment.rows
    ours = {key: _of_all_rows([table.group(row.key, key).mean for row in rows]) for key in _DETECTORS}
    published = {key: _of_all_rows([row.published.get(key) for row in rows]) for key in _DETECTORS}
    titles = {column.key: column.title for column in table.experiment.columns}
    order = sorted(_DETECTORS, key=lambda key: ours[key][0] or 0.0)
    return dot_plot(
        CAPTIONS["held-out-digit"][0],
        "area under the precision-recall curve, percent; chance is 10",
        [titles[key] for key in order],
        [
            Series("mean over the ten digits", [ours[key][0] for key in order]),
            Series("worst digit", [ours[key][1] for key in order]),
            Series("mean, published", [published[key][0] for key in order]),
        ],
        source=table.source,
    )


def _of_all_rows(values: list[float | None]) -> tuple[float | None, float | None]:
    """Mean and lowest; None where a row has no value."""
    known = [value for value in values if value is not None]
    return (fmean(known), min(known)) if len(known) == len(values) else (None, None)


def _same_compute(out: Path) -> str:
    table = _Table("lamb-2018/confirmation", out)
    return dot_plot(
        CAPTIONS["fortified-or-not"][0],
        "accuracy on test images, percent; bars: standard deviations over seeds",
        table.titles("pgd"),
        [
            table.series("under PGD with restarts, eps 0.1", "pgd", "PGD restarts 0.1"),
            table.series("without an attack", "pgd", "clean"),
        ],
        source=table.source,
        limits=(50, 80),
    )


def _certified(out: Path) -> str:
    table = _Table("guarantees/certified-accuracy", out)
    columns = table.experiment.columns
    return dot_plot(
        CAPTIONS["certified-by-radius"][0],
        "certified accuracy on test images, percent; bars: standard deviations over seeds",
        table.titles(columns[0].key),
        [
            table.series(f"radius {c.title.removeprefix('L2 ')}", c.key, f"certified at {c.title.removeprefix('L2 ')}")
            for c in columns
        ],
        source=table.source,
    )
