"""Attacks that look for the nearest adversarial input, put to the question whether there is one within eps."""

import copy
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from robustgen.attacks.base import AroundAttack, Attack
from robustgen.attacks.minimal_norm import Box, MinimalNormAttack
from robustgen.attacks.problem import Problem
from robustgen.attacks.queries import Search

__all__ = ["AtEps"]


@dataclass(frozen=True, kw_only=True)
class AtEps(AroundAttack):
    """Run a minimal-norm ``attack`` until it has found a point within ``eps`` of each sample.

    Args:
        attack: whose search runs; norm, bounds and the other common settings are its own.
        eps: radius of the ball.

    Of the points within eps the one of lowest margin is returned, x itself where the search saw none.

    >>> import torch
    >>> from robustgen.attacks import DDN
    >>> linear = torch.nn.Linear(2, 2, bias=False)
    >>> _ = linear.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    >>> x, y = torch.tensor([[0.75, 0.5]]), torch.tensor([0])  # 0.1768 away from the boundary
    >>> [AtEps(attack=DDN(), eps=eps).run(linear, x, y).success.item() for eps in (0.17, 0.18)]
    [False, True]
    """

    norms = ("Linf", "L2", "L1", "L0")

    attack: MinimalNormAttack

    def __post_init__(self) -> None:
        if not isinstance(self.attack, MinimalNormAttack):
            raise TypeError(f"AtEps needs a minimal-norm attack, got {type(self.attack).__name__}")
        super().__post_init__()
        Attack.__post_init__(self)

    def _search(self, problem: Problem, i: Tensor, run: int) -> Search:
        view = copy.copy(problem)  # the same samples and findings; searched without a ball, judged by eps
        view.ball = Box(problem.x, problem.ball.eps, self.norm, self.bounds, problem.ball.reach)
        view.length = self.attack._length
        return self.attack._search(view, i, run)

    def _runs(self, problem: Problem) -> int:
        return self.attack._runs(problem)

    def _length(self, delta: Tensor) -> Tensor:
        return self.attack._length(delta)

    def for_training(self) -> "AtEps":
        return replace(self, attack=replace(self.attack, early_stop=False))

    def describe(self) -> dict[str, Any]:
        """The attack's settings and the radius, as JSON-able values."""
        return {"attack": "AtEps", "eps": self.eps, "of": self.attack.describe()}
