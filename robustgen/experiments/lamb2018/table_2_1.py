"""Table 2.1: MNIST, white-box FGSM at eps 0.3, with the ablations of its caption; and eps 0.1 of the text below it."""

from dataclasses import replace

from robustgen.experiments.experiment import Row
from robustgen.experiments.lamb2018.classifier_table import MNIST, AttackColumn, ClassifierTable
from robustgen.experiments.lamb2018.recipes import FORTIFIED, Recipe

__all__ = ["EXPERIMENT"]

FGSM_03, FGSM_01 = "fgsm-0.3", "fgsm-0.1"

ROWS = (
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

EXPERIMENT = ClassifierTable(
    "lamb-2018/table-2.1",
    "MNIST, white-box FGSM",
    "Table 2.1, its caption and the text below it",
    ROWS,
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
