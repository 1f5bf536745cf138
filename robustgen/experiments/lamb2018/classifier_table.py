"""Tables of classifiers under attack: a row is a recipe, a column the attack that it is trained and tested with."""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor, nn

from robustgen.attacks import PGD
from robustgen.data import ArrayDataset
from robustgen.experiments.experiment import (
    LAMB_2018,
    Cell,
    Column,
    Experiment,
    Measurement,
    Row,
    accuracies,
    epochs_of,
)
from robustgen.experiments.lamb2018.attack_suite import describe_attack_suite, masking_tests, run_attack_suite
from robustgen.experiments.lamb2018.recipes import Budget, Recipe, example_sets, train_recipe
from robustgen.experiments.training_cache import TrainingCache

__all__ = ["CIFAR", "FASHION", "MNIST", "AttackColumn", "ClassifierTable", "surrogate"]

SURROGATE = Recipe()  # what the black-box attacker trains
STAND_INS = (0.25, 1.0)  # widths of ramps beside the one that the network was trained with

SMOKE = Budget(data="digits", n_train=300, width=8, epochs=3, train_steps=2, n_test=60, n_few=30, steps=3, restarts=2)


def budgets(data: str, **changes: Any) -> dict[str, Budget]:
    """The usual three: digits for the smoke run, a part of the training set at "cpu", all of it at "full"."""
    return {
        "smoke": SMOKE,
        "cpu": replace(Budget(data=data, n_train=20_000), **changes),
        "full": Budget(data=data, n_train=0, width=64, epochs=10, train_steps=7),
    }


MNIST = budgets("mnist", n_train=50_000, epochs=5)
FASHION = budgets("fashion-mnist")
CIFAR = {
    "smoke": SMOKE,
    "cpu": Budget(
        data="cifar10-jpeg",
        n_train=10_000,
        network="resnet",
        width=8,
        epochs=8,
        batch_size=64,
        lr=4e-3,
        n_test=1000,
        n_few=250,
        restarts=5,
    ),
    "full": Budget(
        data="cifar10-jpeg", n_train=0, network="resnet", width=32, epochs=60, batch_size=128, train_steps=7
    ),
}


@dataclass(frozen=True)
class AttackColumn(Column):
    """Trained and tested with ``attack`` ("fgsm" or "pgd") at ``eps``."""

    attack: str
    eps: float

    @property
    def outcome(self) -> str:
        """The number of the attack suite that is the table's: PGD begins at the clean input, as the source says."""
        return f"FGSM {self.eps:g}" if self.attack == "fgsm" else f"PGD clean start {self.eps:g}"


class ClassifierTable(Experiment):
    """Accuracy, in percent, of each row's recipe under the attack that it was trained with.

    Args:
        rows: ``data`` of each is its :class:`Recipe`, without the attack, which the column gives.
        eps: all those of the source for this data; every network is attacked at each of them.
        scales: the budget of each scale.
    """

    metric = "accuracy under attack, %"
    columns: tuple[AttackColumn, ...]

    def __init__(
        self,
        name: str,
        title: str,
        place: str,
        rows: tuple[Row, ...],
        columns: tuple[AttackColumn, ...],
        eps: tuple[float, ...],
        scales: Mapping[str, Budget],
        question: str,
        finding: str,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.name, self.title, self.rows, self.columns = name, title, rows, columns
        self.question, self.finding = question, finding
        self.source = f"{LAMB_2018}, {place}"
        self.eps, self.scales, self.notes = eps, scales, notes

    def describe(self, scale: str) -> str:
        return str(self.scales[scale])

    def attack_of(self, cell: Cell) -> AttackColumn:
        """What the cell's network is trained with, and tested with for the table's number."""
        return next(c for c in self.columns if c.key == cell.column)

    def recipe(self, cell: Cell) -> Recipe:
        """What the cell trains."""
        trained_with = self.attack_of(cell)
        recipe: Recipe = self.row(cell.row).data
        return recipe.against(trained_with.attack, trained_with.eps)

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        return {
            "recipe": self.recipe(cell).record(),
            "budget": asdict(self.scales[scale]),
            "attacks": describe_attack_suite(self.eps, self.scales[scale], self.row(cell.row).data.noise_at_test),
            "surrogate": SURROGATE.record(),
        }

    def measure(self, cell: Cell, scale: str, cache: TrainingCache) -> Measurement:
        budget = self.scales[scale]
        train, test = example_sets(budget, cache)
        recipe = self.recipe(cell)
        net, history = train_recipe(recipe, budget, cell.seed, cache, train)
        x, y = cache.put(test)
        standing = run_attack_suite(
            net,
            x,
            y,
            eps=self.eps,
            budget=budget,
            surrogate=surrogate(budget, cell.seed, cache, train),
            stochastic=recipe.noise_at_test,
            progress=cache.progress,
            title=cell.name,
        )
        numbers = accuracies(standing)
        if recipe.encoding:
            numbers |= accuracies(_other_stand_ins(net, x[: budget.n_few], y[: budget.n_few], self.eps, budget.steps))
        return Measurement(
            value=numbers[self.attack_of(cell).outcome]["value"],
            numbers=numbers,
            verdicts=[test.to_dict() for test in masking_tests(standing, self.eps)],
            history=epochs_of(history),
        )


def _other_stand_ins(net: nn.Module, x: Tensor, y: Tensor, eps: tuple[float, ...], steps: int) -> dict[str, Tensor]:
    """PGD through other smooth stand-ins for the encoding: a network can learn to hide from the one it trained with."""
    standing = {}
    for width in STAND_INS:
        other = copy.deepcopy(net)
        other[0].backward_width = width
        for e in eps:
            standing[f"PGD {e:g}, ramps of {width:g}"] = ~PGD(eps=e, steps=steps).run(other, x, y).success
    return standing


def surrogate(budget: Budget, seed: int, cache: TrainingCache, train: ArrayDataset) -> nn.Module:
    """The attacker's own network: trained plainly on the same data, from other initial weights."""
    return train_recipe(SURROGATE, budget, 1000 + seed, cache, train)[0]
