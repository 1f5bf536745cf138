"""Tables 2.1 to 2.5 and figure 2.5: classifiers, fortified and not, under the attack that each was trained with."""

from dataclasses import replace

from robustgen.experiments.experiment import Cell, Row
from robustgen.experiments.lamb2018.classifier_table import CIFAR, FASHION, MNIST, AttackColumn, ClassifierTable
from robustgen.experiments.lamb2018.recipes import FORTIFIED, Recipe

__all__ = ["FIGURE_2_5", "TABLE_2_1", "TABLE_2_2", "TABLE_2_3", "TABLE_2_4", "TABLE_2_5"]

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
