"""A guard for the training of energies with chains: it ends where the energies of data and negatives part."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from robustgen.checks import check_integers, check_positive, plain_fields
from robustgen.training import Batch, unwrap
from robustgen.training.distributed import World
from robustgen.training.overfitting import Judgement

__all__ = ["EnergyGuard"]


@dataclass(frozen=True, kw_only=True)
class EnergyGuard:
    """Ends the training of an energy where energies part, with the weights from before.

    Chains that no longer follow f let E f(negatives) - E f(data) grow without bound, the commonest way for an energy
    to fail. Between chains and data that have one density it is 0.
    A regularisation r of E f^2 holds the gap below 1 / r: above r = 1 / ``largest`` this guard has nothing to see.

    Args:
        largest: gap in nats, either way, above which energies have parted; weights within half of it are kept.
        every: steps between looks.

    Raises:
        ValueError: a value out of range.
    """

    largest: float = 20.0
    every: int = 50
    instead: ClassVar[None] = None

    def __post_init__(self) -> None:
        plain_fields(self)
        check_integers(every=self.every)
        check_positive(largest=self.largest)

    def judge(self, model: nn.Module, batch: Batch, step: int, world: World, highest: float) -> Judgement:
        gap = world.reduce(unwrap(model).gap.clone()).item() / world.size  # every process judges alike
        wrong = ""
        if not abs(gap) <= self.largest:
            wrong = (
                f"energies have parted at step {step}: those of negatives lie {gap:.3g} nats above those of data; "
                "train with a lower learning rate, more steps a chain or more regularisation"
            )
        return Judgement({"gap": gap}, -abs(gap), abs(gap) <= self.largest / 2, wrong)

    def describe(self) -> dict[str, Any]:
        return {"guard": "EnergyGuard", "largest": self.largest, "every": self.every}
