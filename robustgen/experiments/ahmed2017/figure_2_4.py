"""Figure 2.4: what autoregressive layers do to a PixelVAE's likelihood, and to what its latents hold of it."""

from dataclasses import replace
from typing import Any

from robustgen.experiments.ahmed2017.heldout_table import AHMED_2017
from robustgen.experiments.ahmed2017.likelihoods import BUDGETS, measured, trained_on
from robustgen.experiments.ahmed2017.recipes import MNIST, Recipe
from robustgen.experiments.ahmed2017.trained_models import described
from robustgen.experiments.experiment import Cell, Column, Experiment, Measurement, Row
from robustgen.experiments.training_cache import TrainingCache

__all__ = ["EXPERIMENT"]

LAYERS = (0, 1, 2, 4)


class _Figure(Experiment):
    name = "ahmed-2017/figure-2.4"
    title = "PixelVAE and PixelCNN by the number of autoregressive layers"
    question = "What do autoregressive layers in the decoder do to the likelihood of a VAE?"
    finding = (
        "Bound in nats, lower is better: {0-layers|pixelvae} without such layers, {1-layers|pixelvae} with one, "
        "{2-layers|pixelvae} with two, {4-layers|pixelvae} with four; a Gated PixelCNN of four layers "
        "{4-layers|pixelcnn}."
    )
    source = f"{AHMED_2017}, Figure 2.4 (curves without printed numbers)"
    metric = "-log p(x) of test images in nats, a bound for PixelVAE; below, its reconstruction and KL"
    rows = tuple(
        Row(
            key=f"{n}-layers",
            title=f"{n} layer{'' if n == 1 else 's'}",
            data=n,
            columns=None if n else ("pixelvae",),
            note="" if n else "a VAE",
        )
        for n in LAYERS
    )
    columns = (Column("pixelvae", "PixelVAE"), Column("pixelcnn", "Gated PixelCNN"))
    seeds = 1
    notes = (
        "The source finds the largest drop of both the bound and the KL from none to one layer, and PixelVAE far ahead "
        "of a PixelCNN with as few layers. Every layer but the first is 3x3 at scale `cpu`.",
    )

    def describe(self, scale: str) -> str:
        return BUDGETS[scale].describe()

    def _recipes(self, cell: Cell, scale: str) -> dict[str, Recipe]:
        recipe = MNIST[scale][cell.column]
        layers = self.row(cell.row).data
        # GatedPixelCNN counts those that follow its first one.
        options = {**recipe.options, "layers": layers - 1 if cell.column == "pixelcnn" else layers}
        return {cell.column: replace(recipe, options=options, keep=())}

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        b, recipes = BUDGETS[scale], described(self._recipes(cell, scale), (cell.column,))
        return {"data": b.data, "n_train": b.n_train, "n_test": b.n_test, "recipes": recipes}

    def measure(self, cell: Cell, scale: str, cache: TrainingCache) -> Measurement:
        trained, test = trained_on(BUDGETS[scale], self._recipes(cell, scale), cache, cell.seed)
        value, numbers = measured(trained.model(cell.column), cache.put(test)[0])
        return Measurement(value=value, numbers=numbers, history=trained.history)


EXPERIMENT = _Figure()
