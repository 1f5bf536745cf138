"""An attack that grows to its full radius while training begins.

At the full radius from the first step on, adversarial training on MNIST at Linf 0.3 may never leave the loss of a
network that predicts nothing, log(number of classes).
"""

from dataclasses import dataclass, replace
from typing import Any

from robustgen.checks import check_integers, plain_fields
from robustgen.training.objective import describe

__all__ = ["WarmUp"]


@dataclass(frozen=True)
class WarmUp:
    """The ``attack`` of an objective, with eps * (step + 1) / steps in its first ``steps`` steps and eps after them.

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
