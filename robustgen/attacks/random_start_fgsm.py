"""The fast gradient sign method from a random start, the attack inside fast adversarial training.

Wong, Rice and Kolter, "Fast is better than free: Revisiting adversarial training", 2020, algorithm 3: from a point
drawn uniformly in the ball, one step alpha * sign(grad_x' L(theta, x', y)) with alpha = 1.25 * eps, projected on the
ball.
"""

from dataclasses import dataclass

from torch import Tensor

from robustgen.attacks.base import Attack, check_start
from robustgen.attacks.problem import Problem
from robustgen.attacks.queries import Search
from robustgen.checks import check_positive

__all__ = ["RandomStartFGSM"]


@dataclass(frozen=True, kw_only=True)
class RandomStartFGSM(Attack):
    """One step up the cross-entropy from a point drawn uniformly in the ball, then into the ball and the bounds.

    Made for training; a network that stands against it may fall to :class:`PGD` altogether (see
    :class:`~robustgen.training.OverfittingGuard`).

    Args:
        alpha: length of the step as a multiple of eps, > 0; above 2 the start no longer matters.
        start_in_bounds: whether the start is clamped to the bounds before its gradient is taken. False is for training
            (``early_stop=False``) on data with many pixels at a bound, where the clamp takes half of the noise away and
            training soon overfits its attack.

    The others are those of :class:`~robustgen.attacks.Attack`. The end of the step is returned, never the start.

    >>> import torch
    >>> linear = torch.nn.Linear(2, 2, bias=False)
    >>> _ = linear.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    >>> RandomStartFGSM(eps=0.25, alpha=2.0)(linear, torch.tensor([[0.75, 0.5]]), torch.tensor([0]))
    tensor([[0.5000, 0.7500]])
    """

    norms = ("Linf", "L2", "L1")

    alpha: float = 1.25
    start_in_bounds: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(alpha=self.alpha)
        check_start(self.start_in_bounds, self.early_stop)

    def _search(self, problem: Problem, i: Tensor, run: int) -> Search:
        ball = problem.ball
        x = ball.uniform(i, self.seed, problem.ids[i], (), in_bounds=self.start_in_bounds)
        _, gradient = yield problem.gradient(i, x, "ce")
        x = ball.project(i, x + ball.step(i, gradient, self.alpha * ball.eps[i], at=x))
        problem.record(i, x, (yield problem.logits(i, x)))
