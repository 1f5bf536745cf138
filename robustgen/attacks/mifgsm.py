"""Momentum iterative fast gradient sign method.

Dong, Liao, Pang, Su, Zhu, Hu and Li, "Boosting Adversarial Attacks with Momentum", 2018, algorithm 1:
g_{t+1} = mu * g_t + grad_x L / |grad_x L|_1 (equation 6), x_{t+1} = x_t + alpha * sign(g_{t+1}) (equation 7); for L2
the momentum over its norm (equation 10).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustgen.attacks.base import Attack
from robustgen.attacks.pgd import ascend
from robustgen.attacks.problem import Problem
from robustgen.attacks.queries import Query, Search
from robustgen.checks import check_positive

__all__ = ["MIFGSM"]


@dataclass(frozen=True, kw_only=True)
class MIFGSM(Attack):
    """Steps of fixed length along an accumulated gradient, from x; made to transfer better than :class:`PGD`.

    Args:
        steps: gradient steps.
        decay: mu, what is kept of the momentum at each step, >= 0; 0 is iterated FGSM.
        step_size: length of a step; None means eps / steps, with the eps of each sample.
        loss: "ce" (the direction of the cross-entropy) or "margin" (highest other logit less the true one).
        eot_samples: passes of a stochastic model that a gradient averages.

    The others are those of :class:`~robustgen.attacks.Attack`. Of all points visited, x included, the one of lowest
    margin is returned.

    >>> linear = torch.nn.Linear(2, 2, bias=False)
    >>> _ = linear.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    >>> MIFGSM(eps=0.25, steps=2)(linear, torch.tensor([[0.75, 0.5]]), torch.tensor([0]))
    tensor([[0.5000, 0.7500]])
    """

    steps: int = 10
    decay: float = 1.0
    step_size: float | None = None
    loss: str = "ce"
    eot_samples: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.decay < float("inf"):
            raise ValueError(f"decay must be a finite number >= 0, got {self.decay}")
        if self.step_size is not None:
            check_positive(step_size=self.step_size)

    def _search(self, problem: Problem, i: Tensor, run: int) -> Search:
        ball = problem.ball
        alpha = ball.eps / self.steps if self.step_size is None else torch.full_like(ball.eps, self.step_size)
        momentum = torch.zeros_like(problem.x)

        def ask(i: Tensor, x: Tensor) -> Query:
            return problem.gradient(i, x, self.loss, self.eot_samples)

        def move(i: Tensor, x: Tensor, logits: Tensor, gradient: Tensor) -> Tensor:
            momentum[i] = self.decay * momentum[i] + _of_sum_one(gradient)
            return ball.project(i, x + ball.step(i, momentum[i], alpha[i]))

        yield from ascend(problem, i, problem.x[i], self.steps, ask, move)


def _of_sum_one(gradient: Tensor) -> Tensor:
    """``gradient`` (n, ...) over its L1 norm, in float64 on the way: gradients may be tiny; zero stays zero."""
    size = gradient.double().flatten(1).abs().sum(1).clamp(min=1e-300)
    return (gradient.double() / size.reshape(-1, *[1] * (gradient.ndim - 1))).to(gradient.dtype)
