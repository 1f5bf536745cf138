"""Targeted Auto-PGD (APGD-T): one run towards each of the most likely other classes.

Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
2020, section 5: algorithm 1 on the targeted difference-of-logits ratio, equation 7, for the nine classes that follow
the true one in the clean logits.
"""

from dataclasses import dataclass

from torch import Tensor

from robustgen.attacks.apgd import check_options, climb, plan
from robustgen.attacks.base import Attack
from robustgen.attacks.problem import Problem
from robustgen.attacks.queries import Search
from robustgen.checks import check_integers

__all__ = ["APGDT"]


@dataclass(frozen=True, kw_only=True)
class APGDT(Attack):
    """:class:`~robustgen.attacks.APGD` towards several classes in turn; any wrong class is a success.

    Which classes, the logits at x decide. With ``targeted=True`` there is one class to reach, ``y``, and the attack is
    ``APGD(loss="dlr", targeted=True)``.

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
        check_integers(n_targets=self.n_targets)
        check_options(self.rho, self.multi_eps, self.norm)

    def _runs(self, problem: Problem) -> int:
        return self.restarts * self._count(problem)

    def _count(self, problem: Problem) -> int:
        return 1 if self.targeted else min(self.n_targets, problem.clean.shape[1] - 1)

    def _search(self, problem: Problem, i: Tensor, run: int) -> Search:
        restart, rank = divmod(run, self._count(problem))
        towards = problem.y[i]
        if not self.targeted:
            logits = (yield from problem.clean_logits(i)).scatter(1, towards[:, None], float("-inf"))
            towards = logits.argsort(dim=1, descending=True, stable=True)[:, rank]
        stages, x = plan(problem.ball, self.steps, self.multi_eps), problem.x[i]
        if self.random_start or restart:
            x = stages[0][0].uniform(i, self.seed, problem.ids[i], (restart, rank))
        yield from climb(problem, i, x, "dlr", stages, self.rho, self.eot_samples, towards)
