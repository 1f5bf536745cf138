"""The recipes that the library offers, each trained and attacked: what a user gets who types nothing else."""

from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from robustgen.data import split
from robustgen.evaluation import evaluate_robustness
from robustgen.experiments.cells import read_cells
from robustgen.experiments.experiment import (
    Cell,
    Column,
    Experiment,
    Kept,
    KeptOf,
    Measurement,
    Row,
    counted,
    epochs_of,
)
from robustgen.experiments.summary import fill, summarise
from robustgen.experiments.training_cache import TrainingCache
from robustgen.training.recipes import RECIPES, Recipe
from robustgen.training.recipes.recipe import uses

__all__ = ["EXPERIMENT", "measured_of"]

_SUITE = "standard"
_N_TEST = {"cifar10": 500}  # attacks on its larger network take longer
_PUBLISHED = {"mnist-fast": 82.9, "mnist-madry": 88.5, "mnist-trades": 92.8}  # those papers' networks under AutoAttack


@dataclass(frozen=True)
class RecipeTable(Experiment):
    """Every recipe under the standard suite."""

    name: str = "recipes/standard"
    title: str = "training recipes under the standard suite"
    question: str = "How robust is the network that a training recipe gives, with no setting changed?"
    source: str = (
        "networks of Wong et al., 2020, Madry et al., 2018, and Zhang et al., 2019, as Croce and Hein, "
        '"Reliable Evaluation of Adversarial Robustness", 2020, measured them'
    )
    metric: str = "accuracy under the standard suite, percent"
    columns: tuple[Column, ...] = (Column("standard", "standard suite"),)
    seeds: int = 1
    digits: int = 1
    rows: tuple[Row, ...] = tuple(
        Row(
            key=name,
            title=f"{name}, {recipe.norm} {recipe.radius}",
            published={"standard": _PUBLISHED[name]} if name in _PUBLISHED else {},
            data=recipe,
            missing="for an accelerator" if recipe.model == "resnet18" else "",
        )
        for name, recipe in RECIPES.items()
    )
    notes: tuple[str, ...] = (
        "Trained on nine tenths of the training images, as `robustgen train` does; attacked is the best epoch "
        "under a margin PGD on 500 of the tenth that is kept back. Test images are spaced evenly over the test set.",
        "CIFAR-10 is re-encoded as JPEG, which changes high frequencies.",
    )

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        recipe = self._recipe(cell, scale)
        return {"recipe": recipe.record(), "suite": _SUITE, "n_test": self._n_test(recipe, scale)}

    def measure(self, cell: Cell, scale: str, cache: TrainingCache) -> Measurement:
        recipe = self._recipe(cell, scale)
        name = "cifar10-jpeg" if recipe.data == "cifar10" else recipe.data
        train, held_back = split(cache.images(name, "train"), (0.9, 0.1), seed=0, stratified=True)
        network = recipe.network(cell.seed)
        history, core_seconds = cache.follow(recipe, network, train, held_back, seed=cell.seed)
        test, n = cache.images(name, "test"), self._n_test(recipe, scale)
        x, y = cache.put(test.subset(torch.arange(n) * len(test) // n))
        report = evaluate_robustness(
            network,
            x,
            y,
            suite=_SUITE,
            eps=recipe.eps,
            norm=recipe.norm,
            masking_tests=False,
            progress=cache.progress,
        )
        standing = {"clean": report.clean_accuracy, "standard": report.robust_accuracy}
        numbers = counted({name: 100 * share for name, share in standing.items()}, n)
        numbers |= counted({"core-minutes of training": core_seconds / 60}, len(train))
        return Measurement(value=numbers["standard"]["value"], numbers=numbers, history=epochs_of(history))

    def conclusion(self, kept: Kept, kept_of: KeptOf) -> str:
        groups = summarise(self, kept)
        said = [fill(f"{name} {{{name}|standard}}", self, groups) for name, _ in groups]
        left = [row.key for row in self.rows if (row.key, "standard") not in groups]
        return f"{'; '.join(said)}." + (f" Not measured: {', '.join(left)}." if left else "")

    def describe(self, scale: str) -> str:
        return "All training images but a tenth; 1,000 test images, 500 of CIFAR-10" if scale != "smoke" else ""

    def _recipe(self, cell: Cell, scale: str) -> Recipe:
        recipe: Recipe = self.row(cell.row).data
        if scale != "smoke":
            return recipe
        few: dict[str, Any] = {
            "single_step_epochs": min(1, recipe.single_step_epochs),
            "epochs": 2,
            "width": 4,
        } | ({"steps": 2} if uses("steps", recipe.method) else {})
        return recipe.derived(data="digits", shape=(1, 8, 8), warm_up_epochs=0, augment=False, **few)

    def _n_test(self, recipe: Recipe, scale: str) -> int:
        return 40 if scale == "smoke" else _N_TEST.get(recipe.data, 359 if recipe.data == "digits" else 1000)


EXPERIMENT = RecipeTable()


def measured_of(out: Path) -> dict[str, dict[str, Any]]:
    """What ``robustgen train --list-recipes`` shows, means over the seeds that are kept in ``out``."""
    found: dict[str, list[dict[str, Any]]] = {}
    for scale in ("cpu", "full"):
        for record in read_cells(out, EXPERIMENT, scale).values():
            found.setdefault(record["row"], []).append(record["numbers"])
    return {
        name: {
            "clean": round(mean(n["clean"]["value"] for n in numbers), 6),
            "robust": round(mean(n["standard"]["value"] for n in numbers), 6),
            "n": int(numbers[0]["standard"]["n"]),
            "core_minutes": round(mean(n["core-minutes of training"]["value"] for n in numbers), 6),
            "seeds": len(numbers),
        }
        for name, numbers in found.items()
    }
