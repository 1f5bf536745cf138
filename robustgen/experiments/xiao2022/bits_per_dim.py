"""Bits per dimension of flows of images."""

from typing import Any

from robustgen.experiments.ahmed2017.heldout_table import Budget
from robustgen.experiments.ahmed2017.likelihoods import measured
from robustgen.experiments.ahmed2017.trained_models import TrainedModels, described
from robustgen.experiments.experiment import Cell, Column, Experiment, Measurement, Row
from robustgen.experiments.training_cache import TrainingCache, shuffled
from robustgen.experiments.xiao2022.recipes import RECIPES, XIAO_2022

__all__ = ["EXPERIMENT"]

BUDGETS = {"smoke": Budget("digits", 300, 100), "cpu": Budget("", 20_000, 1_000), "full": Budget("")}
_PUBLISHED = {  # Dinh et al. 2017; Kingma and Dhariwal 2018; MNIST: as Chen et al. 2019 quote both
    "real-nvp": {"mnist": 1.06, "cifar10-jpeg": 3.49},
    "glow": {"mnist": 1.05, "cifar10-jpeg": 3.35},
}


class _Table(Experiment):
    name = "xiao-2022/bits-per-dim"
    n_classes = 0  # log C of a classifier says nothing of these losses
    title = "likelihood of flows"
    question = "How many bits does a flow need for a pixel?"
    finding = (
        "Bits a dimension: Glow {glow|mnist} on MNIST, {glow|fashion-mnist} on Fashion-MNIST, {glow|cifar10-jpeg} on "
        "CIFAR-10 (JPEG); RealNVP {real-nvp|mnist}, {real-nvp|fashion-mnist}, {real-nvp|cifar10-jpeg}."
    )
    source = f"Not in {XIAO_2022}; the papers of the models"
    metric = "bits a dimension of test images, 8-bit pixels, a bound by uniform dequantization"
    rows = (
        Row(key="real-nvp", title="RealNVP", published=_PUBLISHED["real-nvp"]),
        Row(key="glow", title="Glow", published=_PUBLISHED["glow"]),
    )
    columns = (
        Column("mnist", "MNIST"),
        Column("fashion-mnist", "Fashion-MNIST"),
        Column("cifar10-jpeg", "CIFAR-10 (JPEG)"),
    )
    seeds = 1
    notes = (
        "Published: much larger networks, trained far longer on accelerators; CIFAR-10 without JPEG.",
        "A pixel that says nothing of the others needs 8 bits if all levels are alike.",
    )

    def describe(self, scale: str) -> str:
        return BUDGETS[scale].describe()

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        b = BUDGETS[scale]
        recipes = described(RECIPES[scale], (cell.row,))
        return {"data": b.data or cell.column, "n_train": b.n_train, "n_test": b.n_test, "recipes": recipes}

    def measure(self, cell: Cell, scale: str, cache: TrainingCache) -> Measurement:
        b = BUDGETS[scale]
        data = b.data or cell.column
        train = shuffled(cache.images(data, "train")).first(b.n_train or 2**62)
        test = shuffled(cache.images(data, "test")).first(b.n_test or 2**62)
        trained = TrainedModels(cache, RECIPES[scale], train, cell.seed)
        model = trained.model(cell.row)
        _, numbers = measured(model, cache.put(test)[0])
        return Measurement(value=numbers["bits a dimension"]["value"], numbers=numbers, history=trained.history)


EXPERIMENT = _Table()
