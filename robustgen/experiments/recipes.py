"""The recipes that the library offers, trained and attacked: as they are, and with another start of their attack."""

from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from robustgen.attacks import PGD
from robustgen.data import split
from robustgen.evaluation import evaluate_robustness
from robustgen.experiments.cells import read_cells
from robustgen.experiments.experiment import (
    LAMB_2018,
    Cell,
    Column,
    Experiment,
    Kept,
    KeptOf,
    Measurement,
    Row,
    accuracies,
    counted,
    epochs_of,
)
from robustgen.experiments.summary import fill, summarise
from robustgen.experiments.training_cache import TrainingCache
from robustgen.model import logits_of
from robustgen.training.recipes import RECIPES, Recipe, find
from robustgen.training.recipes.recipe import uses

__all__ = ["STANDARD", "STARTS", "measured_of"]

_SUITE = "standard"
_N_TEST = {"cifar10": 500}  # attacks on its larger network take longer
_PUBLISHED = {  # those papers' networks under AutoAttack; the best network of Table 2.5 under PGD
    "mnist-fast": {"standard": 82.9},
    "mnist-madry": {"standard": 88.5},
    "mnist-trades": {"standard": 92.8},
    "fashion-mnist-madry": {"pgd": 79.5},
}
_UNDER_PGD = ("fashion-mnist-madry",)


def _pgd(recipe: Recipe) -> PGD:
    """That of the thesis, from a random start."""
    return PGD(eps=recipe.eps, steps=40, step_size=2.5 * recipe.eps / 40)


@dataclass(frozen=True)
class RecipeTable(Experiment):
    """Every recipe under the standard suite."""

    name: str = "recipes/standard"
    title: str = "training recipes under the standard suite"
    question: str = "How robust is the network that a training recipe gives, with no setting changed?"
    source: str = (
        "networks of Wong et al., 2020, Madry et al., 2018, and Zhang et al., 2019, as Croce and Hein, "
        '"Reliable Evaluation of Adversarial Robustness", 2020, measured them; PGD: '
        f"{LAMB_2018}, Table 2.5"
    )
    metric: str = "accuracy under the standard suite, percent"
    columns: tuple[Column, ...] = (Column("standard", "standard suite"), Column("pgd", "PGD-40"))
    seeds: int = 1
    digits: int = 1
    rows: tuple[Row, ...] = tuple(
        Row(
            key=name,
            title=f"{name}, {recipe.norm} {recipe.radius}",
            published=_PUBLISHED.get(name, {}),
            columns=("standard", "pgd") if name in _UNDER_PGD else ("standard",),
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
        attacked = {"attack": _pgd(recipe).describe()} if cell.column == "pgd" else {"suite": _SUITE}
        return {"recipe": recipe.record(), **attacked, "n_test": self._n_test(recipe, scale)}

    def measure(self, cell: Cell, scale: str, cache: TrainingCache) -> Measurement:
        recipe = self._recipe(cell, scale)
        name = "cifar10-jpeg" if recipe.data == "cifar10" else recipe.data
        train, held_back = split(cache.images(name, "train"), (0.9, 0.1), seed=0, stratified=True)
        network = recipe.network(cell.seed)
        history, core_seconds = cache.follow(recipe, network, train, held_back, seed=cell.seed)
        test, n = cache.images(name, "test"), self._n_test(recipe, scale)
        x, y = cache.put(test.subset(torch.arange(n) * len(test) // n))
        if cell.column == "pgd":
            with torch.no_grad():
                answers = {"clean": network(x), "pgd": network(_pgd(recipe)(network, x, y))}
            standing = {name: (logits.argmax(1) == y).double().mean().item() for name, logits in answers.items()}
        else:
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
        return Measurement(value=numbers[cell.column]["value"], numbers=numbers, history=epochs_of(history))

    def conclusion(self, kept: Kept, kept_of: KeptOf) -> str:
        groups = summarise(self, kept)
        said = [
            fill(f"{name} {{{name}|{column}}}" + (" under PGD" if column == "pgd" else ""), self, groups)
            for name, column in groups
            if column in ("standard", "pgd")
        ]
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


STANDARD = RecipeTable()


def measured_of(out: Path) -> dict[str, dict[str, Any]]:
    """What ``robustgen train --list-recipes`` shows, means over the seeds that are kept in ``out``."""
    found: dict[str, list[dict[str, Any]]] = {}
    for scale in ("cpu", "full"):
        for record in read_cells(out, STANDARD, scale).values():
            if record["column"] == "standard":
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


_DIGITS = {"epochs": 60}
_MNIST = {"epochs": 6, "warm_up_epochs": 2}
_CIFAR = {"epochs": 6, "width": 16}
_N_TRAIN = {"digits": 0, "mnist": 20_000, "cifar10": 5000}


@dataclass(frozen=True)
class RecipeStarts(Experiment):
    """Each method with either start, nothing else differing."""

    name: str = "recipes/starts"
    title: str = "the start of the attack in training, clamped to the pixels' bounds or not"
    question: str = "Does it matter whether the random start of the attack in training is clamped to the bounds?"
    finding: str = (
        "Free and clamped start, under PGD: digits, one step {digits-fast|free}, {digits-fast|clamped}; digits, PGD-7 "
        "{digits-madry|free}, {digits-madry|clamped}; MNIST, one step {mnist-fast|free}, {mnist-fast|clamped}."
    )
    source: str = 'the free start: Wong et al., "Fast is better than free", 2020; multi-step codes clamp'
    metric: str = "accuracy under a margin PGD of 50 steps from 3 starts, percent"
    columns: tuple[Column, ...] = (Column("free", "in the ball alone"), Column("clamped", "clamped to the bounds"))
    digits: int = 1
    rows: tuple[Row, ...] = (
        Row(key="digits-fast", title="digits 0.15, one step", data=(find("digits-fast"), _DIGITS)),
        Row(key="digits-madry", title="digits 0.15, PGD-7", data=(find("digits-madry"), _DIGITS)),
        Row(
            key="digits-mart",
            title="digits 0.15, MART",
            data=(find("digits-madry").derived(method="mart"), _DIGITS),
        ),
        Row(key="mnist-fast", title="MNIST 0.3, one step", data=(find("mnist-fast"), _MNIST)),
        Row(
            key="mnist-madry",
            title="MNIST 0.3, PGD-7",
            data=(find("mnist-fast").derived(method="madry", steps=7), _MNIST),
        ),
        Row(
            key="mnist-mart",
            title="MNIST 0.3, MART",
            data=(find("mnist-fast").derived(method="mart", steps=7), _MNIST),
        ),
        Row(key="cifar10-fast", title="CIFAR-10 (JPEG) 8/255, one step", data=(find("cifar10-fast"), _CIFAR)),
        Row(
            key="cifar10-madry",
            title="CIFAR-10 (JPEG) 8/255, PGD-7",
            data=(find("cifar10-madry"), _CIFAR),
        ),
        Row(
            key="trades",
            title="TRADES",
            missing="its attack starts from Gaussian noise of 0.001, of which a bound takes nothing away",
        ),
    )
    notes: tuple[str, ...] = (
        "Trained on all digits but a tenth, on 20,000 images of MNIST, on 5,000 of CIFAR-10: short trainings, to "
        "compare the two columns. The guard against overfitting is off, so that it does not hide what a start does; "
        "the last epoch counts, not the best.",
        "Evaluation always starts inside ball and bounds.",
    )

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        recipe = self._recipe(cell, scale)
        n_train, n_test = self._sizes(recipe, scale)
        return {"recipe": recipe.record(), "n_train": n_train, "n_test": n_test}

    def measure(self, cell: Cell, scale: str, cache: TrainingCache) -> Measurement:
        recipe = self._recipe(cell, scale)
        n_train, n_test = self._sizes(recipe, scale)
        name = "cifar10-jpeg" if recipe.data == "cifar10" else recipe.data
        train, _ = split(cache.images(name, "train", n_train), (0.9, 0.1), seed=0, stratified=True)
        network = recipe.network(cell.seed)
        trainer = recipe.trainer(
            len(train), seed=cell.seed, guard=None, val_objective=None, best=None, progress=cache.progress
        )
        history = trainer.fit(network, train)
        network.eval()
        x, y = cache.put(cache.images(name, "test", n_test))
        attack = PGD(eps=recipe.eps, norm=recipe.norm, steps=50, restarts=3, loss="margin", seed=cell.seed)
        with torch.no_grad():
            clean = logits_of(network(x)).argmax(1) == y
        numbers = accuracies({"clean": clean, "PGD": ~attack.run(network, x, y).success})
        return Measurement(value=numbers["PGD"]["value"], numbers=numbers, history=epochs_of(history))

    def describe(self, scale: str) -> str:
        return "500 test images, 359 of digits, evenly spaced" if scale != "smoke" else ""

    def _recipe(self, cell: Cell, scale: str) -> Recipe:
        recipe, changes = self.row(cell.row).data
        recipe = recipe.derived(start_in_bounds=cell.column == "clamped", **changes)
        few: dict[str, Any] = {"data": "digits", "shape": (1, 8, 8), "epochs": 2, "width": 4, "augment": False}
        return replace(recipe, **few) if scale == "smoke" else recipe

    def _sizes(self, recipe: Recipe, scale: str) -> tuple[int, int]:
        return (200, 40) if scale == "smoke" else (_N_TRAIN[recipe.data], 359 if recipe.data == "digits" else 500)


STARTS = RecipeStarts()
