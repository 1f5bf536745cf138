"""Table 2.2: MNIST, white-box PGD at eps 0.1."""

from robustgen.experiments.experiment import Row
from robustgen.experiments.lamb2018.classifier_table import MNIST, AttackColumn, ClassifierTable
from robustgen.experiments.lamb2018.recipes import FORTIFIED, Recipe

__all__ = ["EXPERIMENT"]

PGD_01 = "pgd-0.1"

EXPERIMENT = ClassifierTable(
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
