"""One objective after the other in one run, as when training begins with single steps and goes on with several."""

from typing import Any

from torch import Tensor, nn

from robustgen.checks import check_integers, plain_arguments
from robustgen.training.batches import Batch
from robustgen.training.objective import Objective, describe

__all__ = ["FirstThen"]


class FirstThen:
    """``first`` for ``steps`` steps of the trainer, ``then`` afterwards.

    Args:
        first, then: two objectives; an entry that only one of them logs is missing in epochs of the other.
        steps: >= 1.

    Raises:
        TypeError, ValueError: a number of steps that is none.

    >>> import torch
    >>> from robustgen.training import ClassifierObjective
    >>> both = FirstThen(ClassifierObjective(label_smoothing=0.1), ClassifierObjective(), steps=10)
    >>> batch = Batch(torch.tensor([[2.0, 0.0]]), torch.tensor([0]), torch.arange(1))
    >>> [round(both(nn.Identity(), batch, step)["loss"].item(), 3) for step in (9, 10)]
    [0.227, 0.127]
    """

    @plain_arguments
    def __init__(self, first: Objective, then: Objective, *, steps: int) -> None:
        check_integers(steps=steps)
        self.first, self.then, self.steps = first, then, steps

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        return (self.first if step < self.steps else self.then)(model, batch, step)

    def describe(self) -> dict[str, Any]:
        """Both objectives' settings, and when the second begins."""
        return {"first": describe(self.first), "then": describe(self.then), "steps": self.steps}
