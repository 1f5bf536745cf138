"""Nearest neighbours in two latent dimensions: what they say of the class, with and without autoregressive layers."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from robustgen.experiments.ahmed2017.heldout_table import AHMED_2017
from robustgen.experiments.ahmed2017.likelihoods import BUDGETS, trained_on
from robustgen.experiments.ahmed2017.recipes import MNIST, Recipe
from robustgen.experiments.ahmed2017.trained_models import described
from robustgen.experiments.experiment import Cell, Column, Experiment, Measurement, Row, counted
from robustgen.experiments.training_cache import TrainingCache

__all__ = ["EXPERIMENT", "neighbour_errors"]

NEIGHBOURS = (1, 5, 25)
OF_THE_TABLE = 5
LONGER = {"smoke": 1, "cpu": 6, "full": 1}  # than in the other tables, in epochs


def neighbour_errors(
    known: tuple[Tensor, Tensor], asked: tuple[Tensor, Tensor], neighbours: tuple[int, ...]
) -> dict[int, float]:
    """Errors, in percent, of the majority of the k nearest known points, for each k; of equal votes the lowest label.

    Args:
        known, asked: points (N, D) and labels (N,).

    >>> points = torch.tensor([[0.0], [1.0], [10.0]]), torch.tensor([0, 0, 1])
    >>> neighbour_errors(points, (torch.tensor([[9.0], [2.0]]), torch.tensor([1, 1])), (1, 3))
    {1: 50.0, 3: 100.0}
    """
    z, y = known
    wrong = dict.fromkeys(neighbours, 0)
    for points, labels in zip(asked[0].split(500), asked[1].split(500), strict=True):
        nearest = torch.cdist(points, z).topk(max(neighbours), largest=False).indices  # (B, k), nearest first
        votes = torch.nn.functional.one_hot(y[nearest], int(y.max()) + 1)  # (B, k, classes)
        for k in neighbours:
            wrong[k] += int((votes[:, :k].sum(1).argmax(1) != labels).sum())
    return {k: 100 * count / len(asked[0]) for k, count in wrong.items()}


class _Table(Experiment):
    name = "ahmed-2017/latent-knn"
    title = "nearest neighbours in two latent dimensions"
    question = "Do two latent dimensions of a PixelVAE tell the digits apart better than those of a VAE?"
    finding = "Error in percent of 5 nearest neighbours: VAE {vae|error}, PixelVAE {pixelvae|error}."
    source = f"{AHMED_2017}, section 2.4.1"
    metric = f"error in percent of the {OF_THE_TABLE} nearest training latents on test images"
    rows = (
        Row(key="vae", title="VAE", published={"error": 22.9}),
        Row(key="pixelvae", title="PixelVAE", published={"error": 7.2}),
    )
    columns = (Column("error", "k-NN error, %"),)
    seeds = 1
    notes = (
        "Latents are posterior means. The source states neither k nor the split.",
        f"At scale `cpu` both are trained for {LONGER['cpu']} times the epochs of the other tables.",
    )

    def describe(self, scale: str) -> str:
        return BUDGETS[scale].describe()

    def _recipes(self, cell: Cell, scale: str) -> dict[str, Recipe]:
        recipe = MNIST[scale][cell.row]
        options = {**recipe.options, "latent_dim": 2}
        return {cell.row: replace(recipe, options=options, epochs=LONGER[scale] * recipe.epochs)}

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        b, recipes = BUDGETS[scale], described(self._recipes(cell, scale), (cell.row,))
        data = {"data": b.data, "n_train": b.n_train, "n_test": b.n_test, "drawn": bool(b.n_test)}
        return data | {"neighbours": NEIGHBOURS, "recipes": recipes}

    def measure(self, cell: Cell, scale: str, cache: TrainingCache) -> Measurement:
        trained, test = trained_on(BUDGETS[scale], self._recipes(cell, scale), cache, cell.seed)
        model: Any = trained.model(cell.row)
        with torch.no_grad():
            known, asked = (
                (torch.cat([model.latents(x) for x in images.split(500)]), labels)
                for images, labels in map(cache.put, (trained.train, test))
            )
        errors = neighbour_errors(known, asked, NEIGHBOURS)
        numbers = counted({f"error of {k} nearest, %": error for k, error in errors.items()}, len(test))
        return Measurement(value=errors[OF_THE_TABLE], numbers=numbers, history=trained.history)


EXPERIMENT = _Table()
