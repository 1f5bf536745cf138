"""Fast gradient sign method.

Goodfellow, Shlens and Szegedy, "Explaining and Harnessing Adversarial Examples", 2015, section 4:
x + eps * sign(grad_x L(theta, x, y)); for L2 the gradient over its norm, for L1
a sparse step (:meth:`~robustgen.attacks.ball.Ball.step`).
"""

from dataclasses import dataclass

from torch import Tensor

from robustgen.attacks.base import Attack
from robustgen.attacks.problem import Problem
from robustgen.attacks.queries import Search

__all__ = ["FGSM"]


@dataclass(frozen=True, kw_only=True)
class FGSM(Attack):
    """One step of length eps up the loss, then into the bounds.

    Args:
        loss: "ce" (the direction of the cross-entropy), "margin" (highest other logit less the true one) or "dlr" (the
            same over the spread of the logits).
        eot_samples: passes of a stochastic model that a gradient averages.

    The others are those of :class:`~robustgen.attacks.Attack`.

    >>> import torch
    >>> linear = torch.nn.Linear(2, 2, bias=False)
    >>> _ = linear.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    >>> FGSM(eps=0.25)(linear, torch.tensor([[0.75, 0.5]]), torch.tensor([0]))
    tensor([[0.5000, 0.7500]])
    """

    norms = ("Linf", "L2", "L1")

    loss: str = "ce"
    eot_samples: int = 1

    def _search(self, problem: Problem, i: Tensor, run: int) -> Search:
        x = problem.x[i]
        _, gradient = yield problem.gradient(i, x, self.loss, self.eot_samples)
        x = problem.ball.project(i, x + problem.ball.step(i, gradient, problem.ball.eps[i], at=x))
        problem.record(i, x, (yield problem.logits(i, x)))
