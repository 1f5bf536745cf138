"""Table 2.4: CIFAR-10, white-box FGSM at eps 0.03."""

from robustgen.experiments.experiment import Row
from robustgen.experiments.lamb2018.classifier_table import CIFAR, AttackColumn, ClassifierTable
from robustgen.experiments.lamb2018.recipes import Recipe

__all__ = ["EXPERIMENT"]

FGSM = "fgsm-0.03"

EXPERIMENT = ClassifierTable(
    "lamb-2018/table-2.4",
    "CIFAR-10 (JPEG), white-box FGSM at eps 0.03",
    "Table 2.4",
    (
        Row(key="adversarial", title="adversarial training", published={FGSM: 79.34}, data=Recipe()),
        Row(
            key="quantized",
            title="quantized inputs, adversarial training",
            published={FGSM: 53.53},
            data=Recipe(encoding="quantized"),
        ),
        Row(
            key="one-hot",
            title="one-hot inputs, adversarial training",
            published={FGSM: 68.76},
            data=Recipe(encoding="one-hot"),
        ),
        Row(
            key="thermometer",
            title="thermometer inputs, adversarial training",
            published={FGSM: 80.97},
            data=Recipe(encoding="thermometer"),
        ),
        Row(
            key="input-autoencoder",
            title="autoencoder on the input, loss in hidden states",
            published={FGSM: 79.77},
            data=Recipe(layers="auto", on_input=True, lambda_rec=0.1, lambda_adv=0.1),
        ),
        Row(
            key="fortified",
            title="fortified (two layers)",
            published={FGSM: 81.80},
            data=Recipe(layers="auto", lambda_rec=0.1, lambda_adv=0.1),
        ),
    ),
    (AttackColumn(FGSM, "FGSM 0.03", "fgsm", 0.03),),
    eps=(0.03, 0.3),
    question="Do fortified layers make adversarial training on CIFAR-10 more accurate under FGSM at eps 0.03?",
    finding=(
        "Adversarial training {adversarial|fgsm-0.03}, fortified {fortified|fgsm-0.03}. Under PGD at eps 0.03: "
        "{adversarial|fgsm-0.03|PGD 0.03} and {fortified|fgsm-0.03|PGD 0.03}."
    ),
    scales=CIFAR,
    notes=("The images are CIFAR-10 re-encoded as JPEG, which changes high frequencies.",),
)
