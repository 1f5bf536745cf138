"""Where, how strongly and with how much noise to fortify: a sweep on validation images of Fashion-MNIST.

The source argues for several fortified layers and isolates neither place nor weight nor noise. Every network here is
trained with PGD and judged under PGD on images that it was not trained on and that no table tests on.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from robustgen.attacks import FGSM, PGD, Attack
from robustgen.evaluation.chunks import Job, run_jobs
from robustgen.evaluation.robustness import NoAttack
from robustgen.experiments.experiment import (
    Cell,
    Column,
    Experiment,
    Measurement,
    Row,
    accuracies,
    epochs_of,
)
from robustgen.experiments.lamb2018.classifier_tables import FASHION
from robustgen.experiments.lamb2018.recipes import Budget, Recipe, step_cost, train_recipe
from robustgen.experiments.training_cache import TrainingCache

__all__ = ["EPS", "EXPERIMENT", "PLAIN", "SCALES", "best"]

EPS = 0.1
SCALES = {
    "smoke": FASHION["smoke"],
    "cpu": replace(FASHION["cpu"], n_train=10_000, epochs=6, n_test=2000, restarts=2),
    "full": replace(FASHION["full"], n_train=50_000, n_test=10_000, restarts=10),
}
PLAIN = Recipe(activation="leaky_relu").against("pgd", EPS)
NO_NOISE, USUAL_NOISE = ("0",), ("0.1",)


def _row(layers: str, weight: float, reduction: str, columns: tuple[str, ...] | None = None) -> Row:
    return Row(
        key=f"{layers.replace(' ', '-')}-{reduction}-{weight:g}",
        title=f"{layers}, {'mean of squares' if reduction == 'mean' else 'relative squares'}, lambda {weight:g}",
        columns=columns,
        data=replace(PLAIN, layers=layers, lambda_rec=weight, lambda_adv=weight, reduction=reduction),
    )


def _attacks(budget: Budget) -> dict[str, Attack]:
    pgd = PGD(eps=EPS, steps=budget.steps, restarts=budget.restarts)
    return {"clean": NoAttack(), "FGSM": FGSM(eps=EPS), "PGD": pgd}


class _Sweep(Experiment):
    name = "lamb-2018/sweep"
    title = "placement x weight x noise of fortified layers, Fashion-MNIST"
    question = "Where, how strongly and with how much noise should a network be fortified?"
    finding = (
        "Adversarial training: {none|0}, with a quarter more epochs {none-more|0}. Last layer fortified with lambda 3: "
        "{last-mean-3|0}. First and last with lambda 0.03: {first-and-last-mean-0.03|0.1}, at "
        "{first-and-last-mean-0.03|0.1|cost} times the cost."
    )
    source = "no counterpart in the source, which recommends several layers (section 2.5) without a measurement"
    metric = f"accuracy under PGD with restarts at eps {EPS:g} on validation images, %"
    columns = (Column("0", "noise 0"), Column("0.1", "noise 0.1"), Column("0.3", "noise 0.3"))
    seeds = 1
    rows = (
        Row(key="none", title="adversarial training", columns=NO_NOISE, data=PLAIN),
        Row(
            key="none-more",
            title="adversarial training, a quarter more epochs",
            columns=NO_NOISE,
            data=replace(PLAIN, more_epochs=1.25),
        ),
        Row(
            key="none-relu",
            title="adversarial training, ReLU",
            columns=NO_NOISE,
            data=replace(PLAIN, activation="relu"),
        ),
        Row(key="last-no-loss", title="last, no autoencoder losses", data=replace(PLAIN, layers="last")),
        *(_row("last", weight, "mean") for weight in (0.3, 3.0, 10.0)),
        *(_row("last", weight, "relative") for weight in (0.1, 0.3, 1.0)),
        _row("middle", 0.3, "relative"),
        # Convolutional autoencoders make a step several times as expensive: one noise level.
        *(_row("first and last", weight, "mean", USUAL_NOISE) for weight in (0.03, 0.3)),
        _row("first and last", 0.3, "relative", USUAL_NOISE),
        _row("all", 0.03, "mean", USUAL_NOISE),
    )
    notes = (
        "cost: multiplications of a training step over those of plain adversarial training. Autoencoders on first and "
        "middle layers are convolutional.",
    )

    def describe(self, scale: str) -> str:
        return f"{SCALES[scale]}; validation images are training images that were not trained on"

    def recipe(self, cell: Cell) -> Recipe:
        """What the cell trains."""
        recipe: Recipe = self.row(cell.row).data
        return replace(recipe, noise_std=float(cell.column))

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        attacks = {name: attack.describe() for name, attack in _attacks(SCALES[scale]).items()}
        return {"recipe": self.recipe(cell).record(), "budget": asdict(SCALES[scale]), "attacks": attacks}

    def measure(self, cell: Cell, scale: str, cache: TrainingCache) -> Measurement:
        budget = SCALES[scale]
        images = cache.images(budget.data, "train")
        train = images.first(budget.n_train)
        n = min(budget.n_test, len(images) - len(train))
        x, y = cache.put(images.subset(torch.arange(len(images) - n, len(images))))
        recipe = self.recipe(cell)
        net, history = train_recipe(recipe, budget, cell.seed, cache, train)
        jobs = {name: Job(attack, n) for name, attack in _attacks(budget).items()}
        done = run_jobs(jobs, net, x, y, torch.arange(n), batch_size=500, title=cell.name)
        numbers = accuracies({name: ~result.success for name, result in done.items()})
        cost = step_cost(recipe, budget, train) / step_cost(PLAIN, budget, train)
        numbers["cost"] = {"value": cost, "n": 1}
        return Measurement(value=numbers["PGD"]["value"], numbers=numbers, history=epochs_of(history))


def best(kept: Mapping[str, dict[str, Any]], most: float = 1.1) -> Cell:
    """The fortified cell of the highest accuracy under PGD on the validation images; ties go to the first.

    Among those whose step costs at most ``most`` times that of plain training: the others would have to be compared
    with plain training of several times the length.
    """
    fortified = [
        r
        for r in kept.values()
        if EXPERIMENT.row(r["row"]).data.lambda_adv > 0 and r["numbers"]["cost"]["value"] <= most
    ]
    chosen = max(fortified, key=lambda record: record["value"])
    return Cell(chosen["row"], chosen["column"], chosen["seed"])


EXPERIMENT = _Sweep()
