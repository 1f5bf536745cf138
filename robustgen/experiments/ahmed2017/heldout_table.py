"""What tables of held-out classes share: a row is a class, a column a detector, a cell the numbers of both."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from scipy.stats import spearmanr

from robustgen.data import ArrayDataset
from robustgen.detectors import Detector
from robustgen.evaluation import heldout_class
from robustgen.experiments.ahmed2017.compared_detectors import DETECTORS, compared_detector
from robustgen.experiments.ahmed2017.recipes import Recipe
from robustgen.experiments.ahmed2017.trained_models import TrainedModels, described
from robustgen.experiments.experiment import Cell, Experiment, Kept, Measurement, counted
from robustgen.experiments.training_cache import TrainingCache, shuffled

__all__ = [
    "AHMED_2017",
    "A_FIFTH",
    "CALIBRATION",
    "FPR",
    "Budget",
    "HeldoutTable",
    "Make",
    "as_measurement",
    "correlations_by_sign",
    "means_over_rows",
    "published_correlation",
]

AHMED_2017 = 'Ahmed, "Generative Models for Natural Images", 2017'
FPR = 0.05
CALIBRATION = 0.1  # share of the training images that thresholds come from
Published = Mapping[str, Mapping[str, float]]  # column -> row -> number
Make: TypeAlias = Callable[[ArrayDataset], Detector]
_NUMBERS = {
    "aupr": "AUPR",
    "aupr_trapezoid": "AUPR, trapezoids",
    "aupr_davis_goadrich": "AUPR, Davis and Goadrich",
    "aupr_negated": "AUPR, other sign",
    "auroc": "AUROC",
    "auroc_negated": "AUROC, other sign",
    "fpr95": "FPR95",
    "prevalence": "prevalence",
    "chance": "chance",
    "minimum": "lowest attainable",
}
A_FIFTH = "AUPR, a fifth of the anomalies"
_FLAGGED = f"flagged at {FPR:.0%}"


@dataclass(frozen=True)
class Budget:
    """Data of a scale: name, and how many training and test images (0: all)."""

    data: str
    n_train: int = 0
    n_test: int = 0

    def describe(self) -> str:
        """In words."""
        counts = f"{self.n_train or 'all'} training images before any is left out, {self.n_test or 'all'} test images"
        return f"{self.data}, {counts}" if self.data else counts


def as_measurement(found: Mapping[str, Any], history: Mapping[str, list[float]], value: str = "aupr") -> Measurement:
    """A cell, its number that called ``value``, of what :mod:`robustgen.evaluation.heldout` found, in percent.

    A table's ``further`` numbers are by the name that readers see.
    """
    n = found["n_id"] + found["n_ood"]
    numbers = counted({title: found[key] for key, title in _NUMBERS.items()}, n)
    numbers |= counted(found.get("further", {}), n)
    numbers |= counted({_FLAGGED: found["flagged"]}, found["n_ood"])
    numbers |= counted({"false alarms": found["false_alarms"]}, found["n_id"])
    for name, sanity in found["sanity"].items():
        shown = {f"{name} images: AUROC": sanity["auroc"], f"{name} images: {_FLAGGED}": sanity["flagged"]}
        numbers |= counted(shown, sanity["n_ood"])
    fifth = found.get("fifth_of_anomalies")
    if fifth:
        numbers |= counted({A_FIFTH: fifth["aupr"]}, fifth["n_id"] + fifth["n_ood"])
    return Measurement(value=found[value], numbers=numbers, history=history)


def means_over_rows(kept: Kept, number: str, n_rows: int) -> dict[str, float]:
    """The mean of a number of each column that has a cell, of all test images and of seed 0, in each of its rows."""
    found: dict[str, list[float]] = {}
    for record in kept.values():
        if record["seed"] == 0 and not DETECTORS[record["column"]].n_test:
            found.setdefault(record["column"], []).append(record["numbers"][number]["value"])
    return {key: statistics.mean(values) for key, values in found.items() if len(values) == n_rows}


class HeldoutTable(Experiment):
    """A subclass states rows (key: the class), columns (key: the detector), budgets and recipes.

    Attributes:
        value: the number of the table.
        protocol: what ``evaluate`` does, in a word.
        budgets, recipes: of each scale.
    """

    metric = "AUPR in percent (average precision), the held-out class positive"
    value = "aupr"
    protocol = "held-out class"
    budgets: Mapping[str, Budget]
    recipes: Mapping[str, dict[str, Recipe]]
    seeds = 1
    as_lines = True
    levels: tuple[str, ...] = ("prevalence", "lowest attainable")

    def describe(self, scale: str) -> str:
        return self.budgets[scale].describe()

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        b, made = self.budgets[scale], compared_detector(cell.column, scale)
        return {
            "data": b.data,
            "n_train": b.n_train,
            "n_test": made.n_test or b.n_test,
            "drawn": bool(made.n_test),
            "calibration": CALIBRATION,
            "protocol": self.protocol,
            "heldout": cell.row,
            "fpr": FPR,
            "contender": made.describe(),  # as kept cells call it
            "recipes": described(self.recipes[scale], made.models),
        }

    def measure(self, cell: Cell, scale: str, cache: TrainingCache) -> Measurement:
        made = compared_detector(cell.column, scale)
        train, test = self.data(cell, scale, cache)
        trained: list[TrainedModels] = []

        def make(images: ArrayDataset) -> Detector:
            trained.append(TrainedModels(cache, self.recipes[scale], images, cell.seed))
            return made.make(trained[-1])

        judged = shuffled(test).first(made.n_test) if made.n_test else test
        found = self.evaluate(make, train, judged, cell, cache)
        return as_measurement(found, trained[-1].history, self.value)

    def data(self, cell: Cell, scale: str, cache: TrainingCache) -> tuple[ArrayDataset, ArrayDataset]:
        """Training and test images, of all classes."""
        b = self.budgets[scale]
        return cache.images(b.data, "train", b.n_train), cache.images(b.data, "test", b.n_test)

    def evaluate(
        self, make: Make, train: ArrayDataset, test: ArrayDataset, cell: Cell, cache: TrainingCache
    ) -> dict[str, Any]:
        """The numbers of a cell, by the table's protocol."""
        return heldout_class(make, train, test, heldout=cell.row, seed=cell.seed, fpr=FPR, calibration=CALIBRATION)


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
