"""A guard for the training of energies with chains: it ends where the energies of data and negatives part."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from robustgen.checks import check_integers, check_numbers, plain_fields
from robustgen.training import Batch, unwrap
from robustgen.training.distributed import World
from robustgen.training.overfitting import Judgement

__all__ = ["EnergyGuard", "energy_overlap", "follow"]

_KEPT = 0.95  # of a moving average, in a step


def energy_overlap(on_data: Tensor, on_samples: Tensor) -> Tensor:
    """1 - |2 AUROC - 1| of two sets of energies (N,), (M,): 1 where they lie alike, 0 where one is all above the other.

    >>> import torch
    >>> energy_overlap(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0])).item()
    0.0
    """
    above = (on_samples[:, None] > on_data).float().mean() + 0.5 * (on_samples[:, None] == on_data).float().mean()
    return 1 - (2 * above - 1).abs()


def follow(average: Tensor, on_data: Tensor, on_samples: Tensor) -> Tensor:
    """The overlap of two sets of energies, after moving the average of overlaps towards it, in place."""
    found = energy_overlap(on_data.detach(), on_samples.detach())
    average += (1 - _KEPT) * (found - average)
    return found


@dataclass(frozen=True, kw_only=True)
class EnergyGuard:
    """Ends the training of an energy where energies part, with the weights from before.

    An energy fails most often so: chains no longer follow f, and f learns to tell them from data instead of a density.
    Between chains and data that have one density the overlap of their energies is 1, whatever the scale of f. The model
    keeps a moving average of it, in its buffer ``overlap``.

    Args:
        least: overlap in [0, 1) below which energies have parted; weights at four times it or more are kept. 0: the
            guard has nothing to see.
        every: steps between looks.

    Raises:
        ValueError: a value out of range.
    """

    least: float = 0.02
    every: int = 50
    instead: ClassVar[None] = None

    def __post_init__(self) -> None:
        plain_fields(self)
        check_integers(every=self.every)
        check_numbers(least=self.least)
        if not 0 <= self.least < 1:
            raise ValueError(f"least must be in [0, 1), got {self.least}")

    def judge(self, model: nn.Module, batch: Batch, step: int, world: World, highest: float) -> Judgement:
        overlap = world.reduce(unwrap(model).overlap.clone()).item() / world.size  # every process judges alike
        wrong = ""
        if not overlap >= self.least:
            wrong = (
                f"energies have parted at step {step}: those of negatives and of data overlap by {overlap:.3f} of 1; "
                "train with a lower learning rate, more steps a chain, adjusted or persistent chains; or without this "
                "guard, for better samples from an energy that is no log density"
            )
        return Judgement({"overlap_of_late": overlap}, overlap, overlap >= 4 * self.least, wrong)

    def describe(self) -> dict[str, Any]:
        return {"guard": "EnergyGuard", "least": self.least, "every": self.every}
