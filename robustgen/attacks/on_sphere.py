"""Projected gradient descent that never leaves the sphere on which its input lies: errors on the data manifold.

The attack of Gilmer, Metz, Faghri, Schoenholz, Raghu, Wattenberg and Goodfellow, "Adversarial Spheres", 2018, which
constrains the iterates of PGD to the norm of the input. Here the steps run along great circles (the exponential map of
the sphere; Absil, Mahony and Sepulchre, "Optimization Algorithms on Matrix Manifolds", 2008, section 5.4), so that
their length and the distance to the input have closed forms and no iterate has to be pulled back on the sphere.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustgen import counter_rng
from robustgen.attacks.ball import Ball
from robustgen.attacks.base import Attack
from robustgen.attacks.pgd import ascend
from robustgen.attacks.problem import Problem
from robustgen.attacks.queries import Query, Search
from robustgen.checks import check_positive

__all__ = ["SpherePGD"]


@dataclass(frozen=True, kw_only=True)
class SpherePGD(Attack):
    """Steps of fixed length up the loss along the sphere about the origin through each input.

    What it returns has the norm of its input up to the rounding of the input's dtype, and lies within L2 distance
    (chord) eps of it; ``eps >= 2 * norm`` leaves the whole sphere open. Set ``bounds`` to hold the sphere: where they
    cut it, a step that would leave them is not taken but halved, and the attack is weak there.

    Args:
        norm: "L2" only.
        steps: gradient steps in one restart.
        step_size: length of a step, measured along the sphere; None means 2.5 / steps of the way to the farthest point
            that eps allows.
        restarts: runs, each on the samples that still stand.
        random_start: begin in a random direction from x, at an angle drawn uniformly from those that eps allows,
            instead of at x. Restarts after the first are always random.
        loss: "ce" (the direction of the cross-entropy) or "margin" (highest other logit less the true one).
        eot_samples: passes of a stochastic model that a gradient averages.

    The others are those of :class:`~robustgen.attacks.Attack`. Of all points visited, the start included, the one of
    lowest margin is returned.

    >>> linear = torch.nn.Linear(2, 2, bias=False)
    >>> _ = linear.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    >>> x, y = torch.tensor([[0.8, 0.6]]), torch.tensor([0])
    >>> result = SpherePGD(eps=0.25, steps=5).run(linear, x, y)
    >>> result.success.item(), result.x_adv.norm().item(), round(result.distance.item(), 2) <= 0.25
    (True, 1.0, True)
    """

    norms = ("L2",)
    takes_mask = False

    norm: str = "L2"
    steps: int = 40
    step_size: float | None = None
    restarts: int = 1
    random_start: bool = True
    loss: str = "ce"
    eot_samples: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step_size is not None:
            check_positive(step_size=self.step_size)

    def _search(self, problem: Problem, i: Tensor, run: int) -> Search:
        cap = _Cap(problem.ball)
        x = problem.x[i]
        if self.random_start or run:
            start = cap.random(i, self.seed, problem.ids[i], (run,))
            x = torch.where(cap.in_bounds(start), start, x)
        turn = 2.5 * cap.angle / self.steps if self.step_size is None else self.step_size / cap.radius

        def ask(i: Tensor, x: Tensor) -> Query:
            return problem.gradient(i, x, self.loss, self.eot_samples)

        def move(i: Tensor, x: Tensor, logits: Tensor, gradient: Tensor) -> Tensor:
            moved = cap.step(i, x, gradient, turn[i])
            inside = cap.in_bounds(moved)
            turn[i] = torch.where(inside.flatten(), turn[i], turn[i] / 2)
            return torch.where(inside, moved, x)

        yield from ascend(problem, i, x, self.steps, ask, move)


class _Cap:
    """The points of the ball around x (N, ...) that have the norm of x: all within ``angle`` (N,) of x.

    Works on flat float64 rows (n, D) and gives back points in the shape and dtype of x.
    """

    def __init__(self, ball: Ball) -> None:
        self.shape, self.dtype, self.bounds = ball.x.shape[1:], ball.x.dtype, ball.bounds
        self.x = ball.x.double().flatten(1)
        self.radius = self.x.norm(dim=1).clamp(min=1e-300)
        rounding = 16 * torch.finfo(torch.float64).eps * self.radius  # of sines and cosines, below
        chord = (ball.radius - rounding).clamp(min=0)
        self.angle = 2 * torch.asin((chord / (2 * self.radius)).clamp(max=1))

    def step(self, i: Tensor, z: Tensor, gradient: Tensor, turn: Tensor) -> Tensor:
        """From ``z`` (n, ...) by the angle ``turn`` (n,) up the gradient, then straight back to the cap's rim."""
        here = _unit(z.double().flatten(1))
        uphill = _across(gradient.double().flatten(1), here)
        turn = torch.where(uphill.any(1), turn, 0.0)[:, None]
        there = torch.cos(turn) * here + torch.sin(turn) * uphill
        centre = _unit(self.x[i])
        direction = _across(there, centre)
        angle = torch.atan2((there * direction).sum(1), (there * centre).sum(1))
        return self._point(i, direction, torch.minimum(angle, self.angle[i]))

    def random(self, i: Tensor, seed: int, ids: Tensor, stream: tuple[int, ...]) -> Tensor:
        """In a uniform direction from x, at a uniform angle, by counter-based numbers."""
        gaussian = counter_rng.normal(seed, ids, tuple(self.x.shape[1:]), (*stream, 0), torch.float64)
        share = counter_rng.uniform(seed, ids, (), (*stream, 1), torch.float64)
        return self._point(i, _across(gaussian, _unit(self.x[i])), share * self.angle[i])

    def in_bounds(self, z: Tensor) -> Tensor:
        """Which points are, bool (n, 1, ...)."""
        return (z == z.clamp(*self.bounds)).flatten(1).all(1).reshape(-1, *[1] * len(self.shape))

    def _point(self, i: Tensor, direction: Tensor, angle: Tensor) -> Tensor:
        """The point at ``angle`` (n,) from x along the great circle in a ``direction`` (n, D); x where that is zero."""
        angle = torch.where(direction.any(1), angle, 0.0)[:, None]
        z = torch.cos(angle) * self.x[i] + torch.sin(angle) * self.radius[i, None] * direction
        return z.to(self.dtype).reshape(-1, *self.shape)


def _unit(v: Tensor) -> Tensor:
    return v / v.norm(dim=1, keepdim=True).clamp(min=1e-300)


def _across(v: Tensor, unit: Tensor) -> Tensor:
    """The part of each ``v`` (n, D) at right angles to ``unit``, as a unit vector; zero where nothing is left of it.

    Subtracted twice: where v is almost parallel, the first remainder is mostly rounding error, the second is not.
    What is left of a v that is parallel in exact arithmetic is rounding error alone, and counts as nothing.
    """
    size = v.norm(dim=1, keepdim=True)
    for _ in range(2):
        v = v - (v * unit).sum(1, keepdim=True) * unit
    noise = 4 * torch.finfo(v.dtype).eps * size
    return torch.where(v.norm(dim=1, keepdim=True) > noise, _unit(v), 0.0)
