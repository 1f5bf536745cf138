"""Table 2.3: CIFAR-10, white-box FGSM at eps 0.3."""

from robustgen.experiments.experiment import Row
from robustgen.experiments.lamb2018.classifier_table import CIFAR, AttackColumn, ClassifierTable
from robustgen.experiments.lamb2018.recipes import Recipe

__all__ = ["EXPERIMENT"]

FGSM = "fgsm-0.3"

EXPERIMENT = ClassifierTable(
    "lamb-2018/table-2.3",
    "CIFAR-10 (JPEG), white-box FGSM at eps 0.3",
    "Table 2.3",
    (
        Row(key="adversarial", title="adversarial training", published={FGSM: 79.57}, data=Recipe()),
        Row(
            key="fortified",
            title="fortified (two layers)",
            published={FGSM: 80.47},
            data=Recipe(layers="auto", lambda_rec=0.1, lambda_adv=0.1),
        ),
    ),
    (AttackColumn(FGSM, "FGSM 0.3", "fgsm", 0.3),),
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
