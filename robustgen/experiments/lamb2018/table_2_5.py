"""Table 2.5: Fashion-MNIST, white-box FGSM at eps 0.1 and 0.3 and PGD at eps 0.1."""

from robustgen.experiments.experiment import Row
from robustgen.experiments.lamb2018.classifier_table import FASHION, AttackColumn, ClassifierTable
from robustgen.experiments.lamb2018.recipes import FORTIFIED, Recipe

__all__ = ["EXPERIMENT"]

FGSM_01, FGSM_03, PGD_01 = "fgsm-0.1", "fgsm-0.3", "pgd-0.1"

EXPERIMENT = ClassifierTable(
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
