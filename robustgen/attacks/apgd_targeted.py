"""Targeted Auto-PGD (APGD-T): one run towards each of the most likely other classes.

Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
2020, section 5: algorithm 1 on the targeted difference-of-logits ratio, equation 7, for the nine classes that follow
the true one in the clean logits.
"""

import copy
from dataclasses import dataclass

from torch import Tensor

from robustgen.attacks.apgd import check_options, climb, plan
from robustgen.attacks.base import Attack
from robustgen.attacks.problem import Problem

__all__ = ["APGDT"]


@dataclass(frozen=True, kw_only=True)
class APGDT(Attack):
    """:class:`~robustgen.attacks.APGD` towards several classes in turn; any wrong class is a success.

    Which classes, the logits at x decide, at the cost of one forward. With ``targeted=True`` there is one class to
    reach, ``y``, and the attack is ``APGD(loss="dlr", targeted=True)``.

    Args:
        n_targets: how many classes are tried, C - 1 if there are fewer; the most likely first, each for the samples
            that still stand.
        steps: gradient steps in one run.
        restarts: runs towards each class.
        random_start, rho, multi_eps, eot_samples: as in :class:`~robustgen.attacks.APGD`.

    The others are those of :class:`~robustgen.attacks.Attack`. Of all points visited, the one of lowest margin is
    returned.

    Raises:
        ValueError: as every attack, n_targets below 1, rho outside [0, 1], or multi_eps with a norm other than
            L1.

    >>> import torch
    >>> linear = torch.nn.Linear(2, 3, bias=False)
    >>> _ = linear.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
    >>> result = APGDT(eps=0.13).run(linear, torch.tensor([[0.75, 0.5]]), torch.tensor([0]))
    >>> result.success.item(), linear(result.x_adv).argmax(1).item()
    (True, 1)
    """

    norms = ("Linf", "L2", "L1")

    n_targets: int = 9
    steps: int = 100
    restarts: int = 1
    random_start: bool = True
    rho: float = 0.75
    multi_eps: bool = False
    eot_samples: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.n_targets, int) or self.n_targets < 1:
            raise ValueError(f"n_targets must be a whole number, at least 1; got {self.n_targets}")
        check_options(self.rho, self.multi_eps, self.norm)

    def _search(self, problem: Problem) -> None:
        targets = problem.y[:, None] if self.targeted else self._likely(problem)
        # the same problem with other labels to ascend: whatever leaves the true class is still what is recorded
        aim = copy.copy(problem)
        aim.targeted = True
        stages = plan(problem.ball, self.steps, self.multi_eps)
        for restart in range(self.restarts):
            for rank in range(targets.shape[1]):
                aim.y = targets[:, rank]
                i = problem.active()
                if not len(i):
                    return
                x = problem.x[i]
                if self.random_start or restart:
                    x = stages[0][0].uniform(i, self.seed, problem.ids[i], (restart, rank))
                climb(problem, aim, i, x, "dlr", stages, self.rho, self.eot_samples)

    def _likely(self, problem: Problem) -> Tensor:
        """The classes to try, most likely first, (N, k); rows that need no work have the label itself."""
        i = problem.active()
        logits = problem.logits(i, problem.x[i]).scatter(1, problem.y[i, None], float("-inf"))
        k = min(self.n_targets, logits.shape[1] - 1)
        targets = problem.y[:, None].repeat(1, k)
        targets[i] = logits.argsort(dim=1, descending=True, stable=True)[:, :k]
        return targets
