"""Tables 2.1 to 2.5 and figure 2.5: classifiers under attack. A row is a recipe, a column what attacks it."""

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
from robustgen.experiments.lamb2018.recipes import FORTIFIED, Budget, Recipe, example_sets, train_recipe
from robustgen.experiments.training_cache import TrainingCache

__all__ = [
    "CIFAR",
    "FASHION",
    "FIGURE_2_5",
    "MNIST",
    "TABLE_2_1",
    "TABLE_2_2",
    "TABLE_2_3",
    "TABLE_2_4",
    "TABLE_2_5",
    "AttackColumn",
    "ClassifierTable",
    "surrogate",
]

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


FGSM_003, FGSM_01, FGSM_03, PGD_01 = "fgsm-0.03", "fgsm-0.1", "fgsm-0.3", "pgd-0.1"

# of table 2.1 with its caption, and of the text below it, at eps 0.1
_ABLATIONS = (
    Row(
        key="adversarial",
        title="adversarial training, ReLU",
        published={FGSM_03: 96.36},
        note="also printed: 95.60 (Madry et al. 2017), 96.17 (Buckman et al. 2018)",
        data=Recipe(),
    ),
    Row(
        key="adversarial-leaky",
        title="adversarial training, leaky ReLU",
        published={FGSM_03: 99.2},
        note="the caption's remark; no row of the printed table",
        columns=(FGSM_03,),
        data=Recipe(activation="leaky_relu"),
    ),
    Row(
        key="no-rec",
        title="adversarial training, layers without autoencoder losses",
        published={FGSM_03: 96.47},
        note='the source\'s "No-Rec", which it does not define',
        columns=(FGSM_03,),
        data=Recipe(layers="last"),
    ),
    Row(
        key="quantized",
        title="quantized inputs, adversarial training",
        published={FGSM_03: 96.29},
        columns=(FGSM_03,),
        data=Recipe(encoding="quantized"),
    ),
    Row(
        key="one-hot",
        title="one-hot inputs, adversarial training",
        published={FGSM_03: 96.22},
        columns=(FGSM_03,),
        data=Recipe(encoding="one-hot"),
    ),
    Row(
        key="thermometer",
        title="thermometer inputs, adversarial training",
        published={FGSM_03: 95.84},
        columns=(FGSM_03,),
        data=Recipe(encoding="thermometer"),
    ),
    Row(
        key="fortified-rec",
        title="fortified, without L_adv",
        published={FGSM_03: 96.46},
        columns=(FGSM_03,),
        data=Recipe(layers="last", lambda_rec=0.1),
    ),
    Row(
        key="fortified",
        title="fortified",
        published={FGSM_03: 97.97, FGSM_01: 98.34},
        data=FORTIFIED,
    ),
    Row(
        key="fortified-tanh",
        title="fortified, tanh autoencoder",
        note="the caption says that it helps slightly; no number is printed",
        columns=(FGSM_03,),
        data=replace(FORTIFIED, autoencoder_activation="tanh"),
    ),
    Row(
        key="fortified-leaky",
        title="fortified, leaky ReLU network",
        note="control for the caption's remark",
        columns=(FGSM_03,),
        data=replace(FORTIFIED, activation="leaky_relu"),
    ),
    Row(
        key="fortified-noisy",
        title="fortified, noise at test too",
        note="as in released code; gradients averaged over 8 draws, PGD on the first images only",
        columns=(FGSM_03,),
        data=replace(FORTIFIED, noise_at_test=True),
    ),
    Row(
        key="hidden-matching",
        title="adversarial hidden-state matching (A3T)",
        published={FGSM_01: 96.10},
        columns=(FGSM_01,),
        data=Recipe(layers="last", matching=0.1),
    ),
)

TABLE_2_1 = ClassifierTable(
    "lamb-2018/table-2.1",
    "MNIST, white-box FGSM",
    "Table 2.1, its caption and the text below it",
    _ABLATIONS,
    (AttackColumn(FGSM_03, "FGSM 0.3", "fgsm", 0.3), AttackColumn(FGSM_01, "FGSM 0.1", "fgsm", 0.1)),
    eps=(0.1, 0.3),
    question="Does a fortified layer make adversarial training on MNIST more accurate under single-step FGSM?",
    finding=(
        "FGSM at eps 0.3: adversarial training {adversarial|fgsm-0.3}, fortified {fortified|fgsm-0.3}. The same "
        "networks under PGD at eps 0.3: {adversarial|fgsm-0.3|PGD 0.3} and {fortified|fgsm-0.3|PGD 0.3}."
    ),
    scales=MNIST,
    notes=("High accuracy under FGSM is not robustness: compare the PGD columns of the same networks.",),
)

TABLE_2_2 = ClassifierTable(
    "lamb-2018/table-2.2",
    "MNIST, white-box PGD",
    "Table 2.2",
    (
        Row(key="adversarial", title="adversarial training, ReLU", published={PGD_01: 96.98}, data=Recipe()),
        Row(
            key="adversarial-leaky",
            title="adversarial training, leaky ReLU",
            note="control",
            data=Recipe(activation="leaky_relu"),
        ),
        Row(key="no-rec", title="layers without autoencoder losses", note="control", data=Recipe(layers="last")),
        Row(
            key="fortified",
            title="fortified",
            published={PGD_01: 98.09},
            data=FORTIFIED,
        ),
    ),
    (AttackColumn(PGD_01, "PGD 0.1, clean start", "pgd", 0.1),),
    eps=(0.1, 0.3),
    question="Does a fortified layer make adversarial training on MNIST more accurate under PGD at eps 0.1?",
    finding=(
        "Adversarial training {adversarial|pgd-0.1}, layers without autoencoder losses {no-rec|pgd-0.1}, "
        "fortified {fortified|pgd-0.1}. Fortified under PGD at eps 0.3: {fortified|pgd-0.1|PGD 0.3}."
    ),
    scales=MNIST,
)

TABLE_2_3 = ClassifierTable(
    "lamb-2018/table-2.3",
    "CIFAR-10 (JPEG), white-box FGSM at eps 0.3",
    "Table 2.3",
    (
        Row(key="adversarial", title="adversarial training", published={FGSM_03: 79.57}, data=Recipe()),
        Row(
            key="fortified",
            title="fortified (two layers)",
            published={FGSM_03: 80.47},
            data=Recipe(layers="auto", lambda_rec=0.1, lambda_adv=0.1),
        ),
    ),
    (AttackColumn(FGSM_03, "FGSM 0.3", "fgsm", 0.3),),
    eps=(0.03, 0.3),
    question=(
        "How accurate are networks for CIFAR-10 under FGSM at eps 0.3, where images can be turned into one another?"
    ),
    finding=(
        "Adversarial training {adversarial|fgsm-0.3}, fortified {fortified|fgsm-0.3}. Adversarial training under "
        "PGD at eps 0.03: {adversarial|fgsm-0.3|PGD 0.03}."
    ),
    scales=CIFAR,
    notes=(
        "The images are CIFAR-10 re-encoded as JPEG, which changes high frequencies.",
        "At eps 0.3 images can be turned into one another: accuracy there can only mean that the single step fails.",
    ),
)

TABLE_2_4 = ClassifierTable(
    "lamb-2018/table-2.4",
    "CIFAR-10 (JPEG), white-box FGSM at eps 0.03",
    "Table 2.4",
    (
        Row(key="adversarial", title="adversarial training", published={FGSM_003: 79.34}, data=Recipe()),
        Row(
            key="quantized",
            title="quantized inputs, adversarial training",
            published={FGSM_003: 53.53},
            data=Recipe(encoding="quantized"),
        ),
        Row(
            key="one-hot",
            title="one-hot inputs, adversarial training",
            published={FGSM_003: 68.76},
            data=Recipe(encoding="one-hot"),
        ),
        Row(
            key="thermometer",
            title="thermometer inputs, adversarial training",
            published={FGSM_003: 80.97},
            data=Recipe(encoding="thermometer"),
        ),
        Row(
            key="input-autoencoder",
            title="autoencoder on the input, loss in hidden states",
            published={FGSM_003: 79.77},
            data=Recipe(layers="auto", on_input=True, lambda_rec=0.1, lambda_adv=0.1),
        ),
        Row(
            key="fortified",
            title="fortified (two layers)",
            published={FGSM_003: 81.80},
            data=Recipe(layers="auto", lambda_rec=0.1, lambda_adv=0.1),
        ),
    ),
    (AttackColumn(FGSM_003, "FGSM 0.03", "fgsm", 0.03),),
    eps=(0.03, 0.3),
    question="Do fortified layers make adversarial training on CIFAR-10 more accurate under FGSM at eps 0.03?",
    finding=(
        "Adversarial training {adversarial|fgsm-0.03}, fortified {fortified|fgsm-0.03}. Under PGD at eps 0.03: "
        "{adversarial|fgsm-0.03|PGD 0.03} and {fortified|fgsm-0.03|PGD 0.03}."
    ),
    scales=CIFAR,
    notes=("The images are CIFAR-10 re-encoded as JPEG, which changes high frequencies.",),
)

TABLE_2_5 = ClassifierTable(
    "lamb-2018/table-2.5",
    "Fashion-MNIST, white-box",
    "Table 2.5",
    (
        Row(
            key="defense-gan",
            title="Defense-GAN",
            published={FGSM_03: 89.60},
            missing="searches the latent space of a GAN for each image, which this library does not have yet",
        ),
        Row(
            key="deep-image-prior",
            title="Deep Image Prior",
            note="discussed beside the table, without a number",
            missing="an untrained network fitted to each image, which this library does not have yet",
        ),
        Row(
            key="adversarial",
            title="adversarial training, ReLU",
            published={FGSM_01: 86.14, FGSM_03: 90.66, PGD_01: 77.49},
            data=Recipe(),
        ),
        Row(
            key="adversarial-leaky",
            title="adversarial training, leaky ReLU",
            published={FGSM_01: 89.10, FGSM_03: 88.8, PGD_01: 77.90},
            data=Recipe(activation="leaky_relu"),
        ),
        Row(
            key="fortified",
            title="fortified",
            published={FGSM_01: 89.86, FGSM_03: 91.31, PGD_01: 79.54},
            data=FORTIFIED,
        ),
    ),
    (
        AttackColumn(FGSM_01, "FGSM 0.1", "fgsm", 0.1),
        AttackColumn(FGSM_03, "FGSM 0.3", "fgsm", 0.3),
        AttackColumn(PGD_01, "PGD 0.1, clean start", "pgd", 0.1),
    ),
    eps=(0.1, 0.3),
    question="Does a fortified layer make adversarial training on Fashion-MNIST more accurate under FGSM and PGD?",
    finding=(
        "PGD at eps 0.1: adversarial training {adversarial|pgd-0.1}, fortified {fortified|pgd-0.1}. FGSM at eps "
        "0.3: {adversarial|fgsm-0.3} and {fortified|fgsm-0.3}; these two networks under PGD at eps 0.3: "
        "{adversarial|fgsm-0.3|PGD 0.3} and {fortified|fgsm-0.3|PGD 0.3}."
    ),
    scales=FASHION,
    notes=(
        "In the source accuracy rises with eps. Each number there is another network, trained on that very attack: "
        "compare here the FGSM columns of one network with its PGD columns.",
    ),
)

_EPS = (0.03, 0.1, 0.2, 0.3, 0.5, 1.0)


class _AtOwnEps(ClassifierTable):
    """Each network is trained and tested at the eps of its row, and then attacked at every eps of the figure."""

    def attack_of(self, cell: Cell) -> AttackColumn:
        return AttackColumn(cell.column, "", "pgd", float(cell.row))


# a fortified network, trained with PGD at several eps for five epochs each; the figure's values are not in the text
FIGURE_2_5 = _AtOwnEps(
    "lamb-2018/figure-2.5",
    "Fashion-MNIST, PGD training at several eps: do unbounded attacks succeed?",
    "Figure 2.5",
    tuple(
        Row(key=f"{e:g}", title=f"trained and tested at eps {e:g}", note="the figure prints no numbers", data=FORTIFIED)
        for e in _EPS
    ),
    (AttackColumn("pgd", "PGD at the same eps, clean start", "pgd", 0.0),),
    eps=_EPS,
    question="Does an attack without a bound break a fortified network that is trained with PGD?",
    finding=(
        "Trained and tested at eps 0.1: {0.1|pgd}; at 0.3: {0.3|pgd}; at 1: {1|pgd}. Trained at 0.1, under PGD without "
        "a bound: {0.1|pgd|PGD unbounded}."
    ),
    scales={
        "smoke": FASHION["smoke"],
        "cpu": replace(FASHION["cpu"], n_train=10_000, epochs=5, n_test=2000, n_few=500),
        "full": replace(FASHION["full"], epochs=5),
    },
)
