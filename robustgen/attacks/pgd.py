"""Projected gradient descent.

Madry, Makelov, Schmidt, Tsipras and Vladu, "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018,
section 2.1: x_{t+1} = Proj(x_t + alpha * sign(grad_x L(theta, x_t, y))); for L2 the gradient over its norm, for L1
a sparse step (:meth:`~robustgen.attacks.ball.Ball.step`).
"""

from dataclasses import dataclass

import torch

from robustgen.attacks.base import Attack
from robustgen.attacks.problem import Problem

__all__ = ["PGD"]


@dataclass(frozen=True, kw_only=True)
class PGD(Attack):
    """Steps of fixed length up the loss, each projected back on the ball.

    Args:
        steps: gradient steps in one restart.
        step_size: length of a step; None means 2.5 * eps / steps, with the eps of each sample.
        restarts: runs, each on the samples that still stand.
        random_start: begin at a point drawn uniformly in the ball instead of at x. Restarts after the first are
            always random.
        loss: "ce" (the direction of the cross-entropy), "margin" (highest other logit less the true one) or "dlr" (the
            same over the spread of the logits).
        eot_samples: passes of a stochastic model that a gradient averages.

    The others are those of :class:`~robustgen.attacks.Attack`. Of all points visited, the start included, the one of
    lowest margin is returned.

    >>> import torch
    >>> linear = torch.nn.Linear(2, 2, bias=False)
    >>> _ = linear.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    >>> result = PGD(eps=0.25, steps=5).run(linear, torch.tensor([[0.75, 0.5]]), torch.tensor([0]))
    >>> result.success.item(), round(result.distance.item(), 2) <= 0.25
    (True, True)
    """

    norms = ("Linf", "L2", "L1")

    steps: int = 40
    step_size: float | None = None
    restarts: int = 1
    random_start: bool = True
    loss: str = "ce"
    eot_samples: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step_size is not None and not 0 < self.step_size < float("inf"):
            raise ValueError(f"step_size must be a finite number > 0, got {self.step_size}")

    def _search(self, problem: Problem) -> None:
        ball = problem.ball
        alpha = 2.5 * ball.eps / self.steps if self.step_size is None else torch.full_like(ball.eps, self.step_size)
        for restart in range(self.restarts):
            i = problem.active()
            if not len(i):
                return
            x = problem.x[i]
            if self.random_start or restart:
                x = ball.uniform(i, self.seed, problem.ids[i], (restart,))
            for _ in range(self.steps):
                logits, gradient = problem.gradient(i, x, self.loss, self.eot_samples)
                stays = problem.record(i, x, logits)
                i, x, gradient = i[stays], x[stays], gradient[stays]
                if not len(i):
                    break
                x = ball.project(i, x + ball.step(gradient, alpha[i], at=x))
            else:
                problem.record(i, x, problem.logits(i, x))
