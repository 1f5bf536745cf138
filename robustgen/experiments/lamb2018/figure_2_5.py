"""Figure 2.5: a fortified network on Fashion-MNIST, trained with PGD at several eps for five epochs each.

The figure asks whether attacks without a bound succeed. Its values are not in the text; each network is trained and
tested at the eps of its row, and then attacked at every eps of the figure.
"""

from dataclasses import replace

from robustgen.experiments.experiment import Cell, Row
from robustgen.experiments.lamb2018.classifier_table import FASHION, AttackColumn, ClassifierTable
from robustgen.experiments.lamb2018.recipes import FORTIFIED

__all__ = ["EXPERIMENT"]

EPS = (0.03, 0.1, 0.2, 0.3, 0.5, 1.0)


class _Figure(ClassifierTable):
    def attack_of(self, cell: Cell) -> AttackColumn:
        return AttackColumn(cell.column, "", "pgd", float(cell.row))


EXPERIMENT = _Figure(
    "lamb-2018/figure-2.5",
    "Fashion-MNIST, PGD training at several eps: do unbounded attacks succeed?",
    "Figure 2.5",
    tuple(
        Row(key=f"{e:g}", title=f"trained and tested at eps {e:g}", note="the figure prints no numbers", data=FORTIFIED)
        for e in EPS
    ),
    (AttackColumn("pgd", "PGD at the same eps, clean start", "pgd", 0.0),),
    eps=EPS,
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
