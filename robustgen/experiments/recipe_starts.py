"""Where the attack of training starts: clamped to the bounds of the pixels, or not."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from robustgen.attacks import PGD
from robustgen.data import split
from robustgen.experiments.experiment import Cell, Column, Experiment, Measurement, Row, accuracies, epochs_of
from robustgen.experiments.training_cache import TrainingCache
from robustgen.model import logits_of
from robustgen.training.recipes import Recipe, find

__all__ = ["EXPERIMENT"]

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


EXPERIMENT = RecipeStarts()
