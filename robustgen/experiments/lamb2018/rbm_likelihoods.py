"""Likelihoods of restricted Boltzmann machines: estimates of log Z against the exact one."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustgen.counter_rng import derive_seed
from robustgen.experiments.ahmed2017.recipes import Recipe
from robustgen.experiments.ahmed2017.trained_models import TrainedModels, described
from robustgen.experiments.experiment import LAMB_2018, Cell, Column, Experiment, Measurement, Row, counted
from robustgen.experiments.training_cache import TrainingCache
from robustgen.generative import RBM

__all__ = ["EXPERIMENT"]

_CHAINS, _CHAINS_AN_IMAGE = 100, 10  # of AIS, of RAISE
_TRAININGS: dict[str, tuple[str, dict[str, Any]]] = {
    "cd1": ("CD-1", {"method": "cd"}),
    "cd10": ("CD-10", {"method": "cd", "k": 10}),
    "pcd": ("PCD, 100 chains", {"method": "pcd"}),
}
_METHODS = {"exact": "exact", "ais": "AIS", "raise": "RAISE"}
_STEPS = (10, 100, 1000)


@dataclass(frozen=True)
class _Budget:
    """Images, hidden units and epochs; 0 images: all."""

    data: str
    n_train: int
    n_test: int
    hidden: int
    epochs: int


BUDGETS = {
    "smoke": _Budget("digits", 300, 50, 6, 2),
    "cpu": _Budget("digits", 0, 300, 16, 40),
    "full": _Budget("mnist", 0, 1000, 16, 40),
}


def _recipes(b: _Budget) -> dict[str, Recipe]:
    options = {"hidden": b.hidden, "quantization": "nearest"}
    return {
        name: Recipe(model="RBM", options=options | own, epochs=b.epochs, batch_size=20)
        for name, (_, own) in _TRAININGS.items()
    }


class _Table(Experiment):
    name = "lamb-2018/rbm-likelihoods"
    title = "likelihoods of Boltzmann machines, estimated and exact"
    question = "Do AIS and RAISE find the likelihood of a restricted Boltzmann machine, and from which side?"
    finding = (
        "PCD: exact {pcd|exact} nats; of that AIS is off by {pcd|ais-10|less exact}, {pcd|ais-100|less exact}, "
        "{pcd|ais-1000|less exact} and RAISE by {pcd|raise-10|less exact}, {pcd|raise-100|less exact}, "
        "{pcd|raise-1000|less exact} with 10, 100 and 1000 steps. CD-1: exact {cd1|exact}; CD-10 {cd10|exact}."
    )
    source = f"{LAMB_2018}, section 1.2.2, which names both estimates and prints no numbers"
    metric = "log p of test images with pixels of 0 and 1, nats"
    n_classes = 0  # log C of a classifier says nothing of these losses
    rows = tuple(Row(key=key, title=title) for key, (title, _) in _TRAININGS.items())
    columns = (
        Column("exact", "exact"),
        *(Column(f"{m}-{k}", f"{_METHODS[m]}, {k} steps") for m in ("ais", "raise") for k in _STEPS),
    )
    notes = (
        f"AIS: {_CHAINS} chains, from pixels as often on as in the training images; on average too low a log Z, hence "
        f"too high a likelihood. RAISE: {_CHAINS_AN_IMAGE} chains for each image; on average too low for images of "
        "the machine itself, which test images need not be.",
        "Few hidden units, so that the exact sum is at hand: estimates of larger machines may be further off.",
    )

    def describe(self, scale: str) -> str:
        b = BUDGETS[scale]
        images = f"{b.n_train or 'all'} training and {b.n_test} test images"
        return f"{b.data}, {images}, {b.hidden} hidden units, {b.epochs} epochs"

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        b = BUDGETS[scale]
        chains = {"chains": _CHAINS, "chains an image": _CHAINS_AN_IMAGE}
        data = {"data": b.data, "n_train": b.n_train, "n_test": b.n_test}
        return data | chains | {"method": cell.column, "recipes": described(_recipes(b), (cell.row,))}

    def measure(self, cell: Cell, scale: str, cache: TrainingCache) -> Measurement:
        b = BUDGETS[scale]
        train = cache.drawn(b.data, "train", b.n_train)
        test = cache.drawn(b.data, "test", b.n_test)
        trained = TrainedModels(cache, _recipes(b), train, cell.seed)
        rbm = trained.model(cell.row)
        assert isinstance(rbm, RBM)
        numbers = _measured(rbm, cache.put(test)[0], cell)
        history = trained.history if cell.column == "exact" else {}
        return Measurement(value=numbers["log p"], numbers=counted(numbers, len(test)), history=history)


@torch.no_grad()
def _measured(rbm: RBM, x: Tensor, cell: Cell) -> dict[str, float]:
    exact = rbm.log_partition().value
    at_exact = rbm.log_likelihood(x, exact)
    method, _, steps = cell.column.partition("-")
    generator = torch.Generator(x.device).manual_seed(derive_seed(cell.seed, 1))
    if method == "exact":
        return {"log p": at_exact.mean().item(), "log Z": exact}
    if method == "raise":
        options: dict[str, Any] = {"steps": int(steps), "chains": _CHAINS_AN_IMAGE, "generator": generator}
        found = rbm.raise_log_likelihood(x, **options)
        below = {"share of images below exact, %": 100 * (found < at_exact).double().mean().item()}
    else:
        log_z = rbm.log_partition("ais", steps=int(steps), chains=_CHAINS, generator=generator)
        found = rbm.log_likelihood(x, log_z)
        below = {"standard error": log_z.standard_error, "effective samples": log_z.effective_samples}
    return {"log p": found.mean().item(), "less exact": (found - at_exact).mean().item()} | below


EXPERIMENT = _Table()
