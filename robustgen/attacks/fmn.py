"""Fast minimum-norm attack.

Pintor, Roli, Brendel and Biggio, "Fast Minimum-norm Adversarial Attacks through Adaptive Norm Constraints", 2021,
algorithm 1: gradient steps projected on an eps-ball, whose radius is adapted to bring its surface to the decision
boundary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustgen.attacks.ball import Ball, column, perturbation_norm
from robustgen.attacks.minimal_norm import DUAL, MinimalNormAttack, annealed
from robustgen.attacks.problem import Problem
from robustgen.attacks.queries import Search
from robustgen.checks import check_positive

__all__ = ["FMN"]


@dataclass(frozen=True, kw_only=True)
class FMN(MinimalNormAttack):
    """Steps up the margin inside a ball that shrinks while it holds an adversarial point and else grows.

    Before the first success the radius is where the linearised margin vanishes, and by ``gamma`` more: on the boundary
    itself the class is still the old one, and a linear model would be taken there for ever. L0 counts
    elements, see :func:`~robustgen.attacks.minimal_norm.length`; its radius starts at one element and changes by one at
    least. For L0 and L1 the projection is that on the ball cut with the bounds, not first on one and then on the other:
    so an element that the bounds stop makes room for the next.

    Args:
        steps: gradient steps: one each of forward and backward, and one last forward.
        step_size: of the first step, an L2 norm in units of the span of the bounds; it falls to a hundredth on half a
            cosine. None means 1, for Linf and L0 10: the step must reach the ball's corners, whose elements weigh
            alike.
        gamma: by what share the radius changes at the first step; it falls to a fiftieth on half a cosine.

    The others are those of :class:`~robustgen.attacks.minimal_norm.MinimalNormAttack`.

    >>> linear = torch.nn.Linear(2, 2, bias=False)
    >>> _ = linear.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    >>> x, y = torch.tensor([[0.75, 0.5]]), torch.tensor([0])
    >>> [round(FMN(norm=norm).run(linear, x, y).distance.item(), 2) for norm in ("L0", "L1", "L2", "Linf")]
    [1.0, 0.25, 0.18, 0.13]
    """

    norms = ("Linf", "L2", "L1", "L0")

    steps: int = 300
    step_size: float | None = None
    gamma: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.gamma < 1:
            raise ValueError(f"gamma must be between 0 and 1, got {self.gamma}")
        if self.step_size is not None:
            check_positive(step_size=self.step_size)

    def _search(self, problem: Problem, i: Tensor, run: int) -> Search:
        x = problem.x[i]
        z = x
        first = self._span * (self.step_size or (10.0 if self.norm in ("Linf", "L0") else 1.0))
        radius = torch.zeros_like(problem.ball.eps[i])
        nearest = torch.full_like(radius, float("inf"))  # this search's own: with an eps, the problem keeps less
        rivals, anyone = (yield from self._first_rivals(problem, i)), torch.full_like(i, -1)
        for step in range(self.steps):
            logits, gap, gradient = yield from self._uphill(problem, i, z, rivals if 2 * step < self.steps else anyone)
            problem.record(i, z, logits)
            fools, size = problem.fools(i, logits), perturbation_norm(z.double() - x.double(), self.norm)
            nearest = torch.where(fools, torch.minimum(nearest, size), nearest)
            gamma = annealed(self.gamma, self.gamma / 50, step, self.steps)
            if self.norm == "L0":
                radius = _next_count(radius, nearest, fools, gamma, x[:1].numel())
            else:
                gradient = self._free(z, gradient)
                radius = self._next_radius(radius, nearest, fools, gamma, size, gap.double(), gradient)
            ascent = column(torch.full_like(radius, annealed(first, first / 100, step, self.steps)), gradient)
            unit = gradient.double() / column(perturbation_norm(gradient, "L2").clamp(min=1e-300), gradient.double())
            z = _project(x, z + ascent * unit.to(z.dtype), radius, self.norm, self.bounds)
        problem.record(i, z, (yield problem.logits(i, z)))

    def _next_radius(
        self, radius: Tensor, nearest: Tensor, fools: Tensor, gamma: float, size: Tensor, gap: Tensor, gradient: Tensor
    ) -> Tensor:
        whole = self._span * (1 if self.norm == "Linf" else max(1, gradient[:1].numel()))  # no ball needs to be larger
        slope = perturbation_norm(gradient, DUAL[self.norm]).clamp(min=1e-300)
        linear = (size + gap.clamp(min=0) / slope).clamp(max=whole)
        outwards = torch.where(nearest.isinf(), linear, radius) * (1 + gamma)
        return torch.where(fools, torch.minimum(radius * (1 - gamma), nearest), outwards)


def _next_count(radius: Tensor, nearest: Tensor, fools: Tensor, gamma: float, elements: int) -> Tensor:
    """L0: whole numbers, at least one element up or down (section 2.1 of the paper)."""
    fewer = torch.minimum(torch.minimum((radius * (1 - gamma)).floor(), radius - 1), nearest)
    more = torch.maximum((radius * (1 + gamma)).floor(), radius + 1)
    return torch.where(fools, fewer, more).clamp(1, max(1, elements))


def _project(x: Tensor, z: Tensor, radius: Tensor, norm: str, bounds: tuple[float, float]) -> Tensor:
    """``z`` (n, ...) moved into the balls of ``radius`` (n,) around ``x`` and into the bounds."""
    if norm != "L0":
        return Ball(x, radius, norm, bounds).project(torch.arange(len(x), device=x.device), z)
    delta, inside = (z - x).flatten(1), z.clamp(*bounds)
    # Keeping an element instead of undoing it saves this much squared distance to z: keep those that save the most.
    saved = delta**2 - (z - inside).flatten(1) ** 2
    order = saved.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter(1, order, torch.arange(order.shape[1], device=x.device).expand_as(order))
    return torch.where((rank < radius[:, None]).reshape(x.shape), inside, x)
