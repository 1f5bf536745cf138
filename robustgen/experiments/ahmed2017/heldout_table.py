"""What tables of held-out classes share: a row is a class, a column a detector, a cell ten numbers of both."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from robustgen.data import ArrayDataset
from robustgen.evaluation import anomalous_class, heldout_class
from robustgen.experiments.ahmed2017.contenders import contender
from robustgen.experiments.ahmed2017.recipes import Recipe, described
from robustgen.experiments.ahmed2017.trained import Trained
from robustgen.experiments.experiment import Cell, Experiment, Measurement, counted
from robustgen.experiments.workshop import Workshop

__all__ = ["AHMED_2017", "Budget", "HeldoutTable", "as_measurement"]

AHMED_2017 = 'Ahmed, "Generative Models for Natural Images", 2017'
FPR = 0.05
PROTOCOLS = {"held-out class": (heldout_class, "heldout"), "anomalous class": (anomalous_class, "anomaly")}
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
    "flagged": f"flagged at {FPR:.0%}",
}


@dataclass(frozen=True)
class Budget:
    """Data of a scale: name, and how many training and test images (0: all)."""

    data: str
    n_train: int = 0
    n_test: int = 0


def as_measurement(found: Mapping[str, Any], history: Mapping[str, list[float]]) -> Measurement:
    """A cell, of what a function of :mod:`robustgen.evaluation.heldout` gave, in percent."""
    n = found["n_id"] + found["n_ood"]
    numbers = counted({title: found[key] for key, title in _NUMBERS.items()}, n)
    numbers |= counted({"false alarms": found["false_alarms"]}, found["n_id"])
    for name, sanity in found["sanity"].items():
        numbers |= counted(
            {f"{name} images: {_NUMBERS[key]}": sanity[key] for key in ("auroc", "flagged")}, sanity["n_ood"]
        )
    fifth = found.get("fifth_of_anomalies")
    if fifth:
        numbers |= counted({"AUPR, a fifth of the anomalies": fifth["aupr"]}, fifth["n_id"] + fifth["n_ood"])
    return Measurement(value=found["aupr"], numbers=numbers, history=history)


class HeldoutTable(Experiment):
    """A subclass states rows (key: the class), columns (key: the contender), budgets, recipes and the protocol."""

    metric = "AUPR in percent (average precision), the held-out class positive"
    protocol = "held-out class"
    budgets: Mapping[str, Budget]
    recipes: Mapping[str, dict[str, Recipe]]
    seeds = 1
    as_lines = True
    levels = ("prevalence", "lowest attainable")

    def describe(self, scale: str) -> str:
        b = self.budgets[scale]
        return f"{b.data}, {b.n_train or 'all'} training images before a class is left out, {b.n_test or 'all'} test images"

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        b, made = self.budgets[scale], contender(cell.column, scale)
        return {
            "data": b.data,
            "n_train": b.n_train,
            "n_test": made.n_test or b.n_test,
            "protocol": self.protocol,
            "heldout": cell.row,
            "fpr": FPR,
            "contender": made.describe(),
            "recipes": described(self.recipes[scale], made.models),
        }

    def data(self, scale: str, workshop: Workshop) -> tuple[ArrayDataset, ArrayDataset]:
        """Training and test images, all classes."""
        b = self.budgets[scale]
        return workshop.images(b.data, "train", b.n_train), workshop.images(b.data, "test", b.n_test)

    def measure(self, cell: Cell, scale: str, workshop: Workshop) -> Measurement:
        made = contender(cell.column, scale)
        train, test = self.data(scale, workshop)
        trained: list[Trained] = []

        def make(images: ArrayDataset) -> Any:
            trained.append(Trained(workshop, self.recipes[scale], images, cell.seed))
            return made.make(trained[0])

        evaluate, which = PROTOCOLS[self.protocol]
        test = test.take(made.n_test) if made.n_test else test
        found = evaluate(make, train, test, **{which: cell.row}, seed=cell.seed, fpr=FPR)
        return as_measurement(found, trained[0].history)
