"""Decoupled direction and norm.

Rony, Hafemann, Oliveira, Ben Ayed, Sabourin and Granger, "Decoupling Direction and Norm for Efficient Gradient-Based L2
Adversarial Attacks and Defenses", 2019, algorithm 1: a step of length alpha up the loss gives the direction; the norm
is that of the last step times 1 - gamma if the last point was adversarial, else times 1 + gamma.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustgen.attacks.minimal_norm import MinimalNormAttack, annealed
from robustgen.attacks.problem import Problem
from robustgen.attacks.queries import Search
from robustgen.checks import check_positive

__all__ = ["DDN"]


@dataclass(frozen=True, kw_only=True)
class DDN(MinimalNormAttack):
    """Look for the direction and for the norm of the perturbation each on its own. L2 only.

    Lengths are in units of the span of the bounds, so that any bounds give the same search; the paper's rounding of
    pixels to 8 bits is left out.

    Args:
        steps: gradient steps: one each of forward and backward, and one last forward.
        step_size: of the first step; it falls to a hundredth on half a cosine (the paper's alpha, section 4).
        gamma: by what share the norm changes at a step.
        init_norm: norm of the first step.
        loss: "margin" (another logit less the true one) or "ce" (the paper's choice; its direction mixes all other
            classes where no logit stands out, and then does not lead to the nearest point; it heads for no candidate
            first).

    The others are those of :class:`~robustgen.attacks.minimal_norm.MinimalNormAttack`.

    >>> linear = torch.nn.Linear(2, 2, bias=False)
    >>> _ = linear.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    >>> result = DDN().run(linear, torch.tensor([[0.75, 0.5]]), torch.tensor([0]))  # 0.25 / sqrt(2) = 0.1768 away
    >>> result.success.item(), 0.1767 < result.distance.item() < 0.178
    (True, True)
    """

    norms = ("L2",)

    steps: int = 300
    step_size: float = 1.0
    gamma: float = 0.05
    init_norm: float = 1.0
    loss: str = "margin"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.gamma < 1:
            raise ValueError(f"gamma must be between 0 and 1, got {self.gamma}")
        check_positive(step_size=self.step_size, init_norm=self.init_norm)

    def _search(self, problem: Problem, i: Tensor, run: int) -> Search:
        x = problem.x[i]
        z = x
        norm = torch.full_like(problem.ball.eps[i], self.init_norm * self._span)
        anyone = torch.full_like(i, -1)
        rivals = (yield from self._first_rivals(problem, i)) if self.loss == "margin" else anyone
        for step in range(self.steps):
            if self.loss == "margin":
                logits, _, gradient = yield from self._uphill(
                    problem, i, z, rivals if 2 * step < self.steps else anyone
                )
            else:
                logits, gradient = yield problem.gradient(i, z, self.loss, self.eot_samples)
            problem.record(i, z, logits)
            fools = problem.fools(i, logits)
            alpha = self._span * annealed(self.step_size, self.step_size / 100, step, self.steps)
            direction = z - x + problem.ball.step(i, self._free(z, gradient), torch.full_like(norm, alpha))
            norm = norm * torch.where(fools, 1 - self.gamma, 1 + self.gamma)
            norm = norm.clamp(max=self._span * max(1, x[:1].numel()) ** 0.5)  # the whole box
            z = problem.ball.project(i, x + problem.ball.step(i, direction, norm))
        problem.record(i, z, (yield problem.logits(i, z)))
