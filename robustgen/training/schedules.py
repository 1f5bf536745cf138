"""What changes in the course of a training: the learning rate, the radius of its attack, the objective itself."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from robustgen.checks import check_integers, plain_arguments, plain_fields
from robustgen.training.batches import Batch
from robustgen.training.objective import Objective, describe

__all__ = ["SCHEDULES", "FirstThen", "WarmUp", "cosine", "cyclic"]


def cosine(progress: float) -> float:
    """The factor of the learning rate at a progress in [0, 1): from 1 down to 0, a half cosine.

    Loshchilov and Hutter, "SGDR", 2017, equation 5, without restarts.

    >>> [round(cosine(t), 2) for t in (0, 0.5, 1)]
    [1.0, 0.5, 0.0]
    """
    return 0.5 * (1 + math.cos(math.pi * progress))


def cyclic(progress: float, peak: float = 0.3) -> float:
    """In straight lines from 0 up to 1 at ``peak`` and down to 0 (Smith, "Cyclical Learning Rates", 2017).

    >>> [round(cyclic(t), 2) for t in (0, 0.15, 0.3, 0.65, 1)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    return progress / peak if progress < peak else (1 - progress) / (1 - peak)


SCHEDULES: dict[str, Callable[[float], float] | None] = {"constant": None, "cosine": cosine, "cyclic": cyclic}


@dataclass(frozen=True)
class WarmUp:
    """The ``attack`` of an objective, with eps * (step + 1) / steps in its first ``steps`` steps and eps after them.

    At the full radius from the first step on, adversarial training on MNIST at Linf 0.3 may never leave the loss of a
    network that predicts nothing, log(number of classes).

    Args:
        attack: one of :mod:`robustgen.attacks`; a step length of None grows with eps.
        steps: of the trainer, >= 1.

    Raises:
        TypeError, ValueError: a number of steps that is none.

    >>> from robustgen.attacks import PGD
    >>> [WarmUp(PGD(eps=0.4), 4).at_step(step).eps for step in (0, 1, 3, 9)]
    [0.1, 0.2, 0.4, 0.4]
    """

    attack: Any
    steps: int

    def __post_init__(self) -> None:
        plain_fields(self)
        check_integers(steps=self.steps)

    def at_step(self, step: int) -> Any:
        """The attack of this step."""
        share = min(1.0, (step + 1) / self.steps)
        return replace(self.attack, eps=self.attack.eps * share)

    def describe(self) -> dict[str, Any]:
        """The attack's settings, and over how many steps it grows."""
        return describe(self.attack) | {"warm_up_steps": self.steps}


class FirstThen:
    """``first`` for ``steps`` steps of the trainer, ``then`` afterwards, as when training begins with single steps.

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
