"""Projected gradient descent.

Madry, Makelov, Schmidt, Tsipras and Vladu, "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018,
section 2.1: x_{t+1} = Proj(x_t + alpha * sign(grad_x L(theta, x_t, y))); for L2 the gradient over its norm, for L1
a sparse step (:meth:`~robustgen.attacks.ball.Ball.step`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from robustgen import counter_rng
from robustgen.attacks.base import Attack, check_start
from robustgen.attacks.problem import Problem
from robustgen.attacks.queries import Query, Search
from robustgen.checks import check_positive

__all__ = ["PGD", "Visited", "ascend"]


class Visited:
    """Which points each of N rows has been at, by a 64-bit hash of their bits: a search that goes in a circle is seen.

    Steps of a fixed length along the sign of the gradient take few different values, and on a robust sample they soon
    come back to a point where they were. What follows is known then: the circle again.

    Two points of a search of a thousand steps share a hash by accident with probability below 1e-13; a search would
    end early then.

    >>> seen, row = Visited(torch.zeros(1)), torch.tensor([0])
    >>> [seen.again(row, torch.tensor([[value]])).item() for value in (0.5, 0.25, 0.5)]
    [False, False, True]
    """

    def __init__(self, rows: Tensor) -> None:
        self.hashes = torch.empty(len(rows), 0, dtype=torch.int64, device=rows.device)
        self.keys = torch.empty(0, dtype=torch.int64, device=rows.device)

    def again(self, i: Tensor, x: Tensor) -> Tensor:
        """Whether the rows ``i`` (n,) have been at ``x`` (n, ...) before, bool (n,); takes x down."""
        bits = (x.contiguous() + 0.0).flatten(1)  # 0.0 and -0.0 are one point
        words = bits.view(torch.int32 if bits.dtype == torch.float32 else torch.int64).long()
        if len(self.keys) != words.shape[1]:
            one = torch.zeros(1, dtype=torch.int64, device=x.device)
            self.keys = counter_rng.integers(0, one, (words.shape[1],), 1 << 62)[0] * 2 + 1
        found = (words * self.keys).sum(1)  # wraps
        known = (self.hashes[i] == found[:, None]).any(1)
        new = torch.zeros(len(self.hashes), 1, dtype=torch.int64, device=x.device)
        new[i, 0] = found
        self.hashes = torch.cat([self.hashes, new], 1)
        return known


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
        start_in_bounds: whether a random start is clamped to the bounds before its gradient is taken. False is for
            training (``early_stop=False``); such a start is no candidate for what is returned.

    The others are those of :class:`~robustgen.attacks.Attack`. Of all points visited, the start included, the one of
    lowest margin is returned. For Linf a sample whose search comes back to a point where it has been is done with that
    restart: it would go round in a circle.

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
    start_in_bounds: bool = True

    def describe(self) -> dict[str, Any]:
        """The attack's name and every hyperparameter, as JSON-able values."""
        described = super().describe()
        if self.start_in_bounds:
            del described["start_in_bounds"]  # cells and runs were kept before there was a choice
        return described

    def __post_init__(self) -> None:
        super().__post_init__()
        check_start(self.start_in_bounds, self.early_stop)
        if self.step_size is not None:
            check_positive(step_size=self.step_size)

    def _search(self, problem: Problem, i: Tensor, run: int) -> Search:
        ball = problem.ball
        alpha = 2.5 * ball.eps / self.steps if self.step_size is None else torch.full_like(ball.eps, self.step_size)
        random, steps = self.random_start or run > 0, self.steps
        draw = partial(ball.uniform, i, self.seed, problem.ids[i], (run,), in_bounds=self.start_in_bounds)
        x = draw() if random else problem.x[i]

        def ask(i: Tensor, x: Tensor) -> Query:
            return problem.gradient(i, x, self.loss, self.eot_samples)

        def move(i: Tensor, x: Tensor, logits: Tensor, gradient: Tensor) -> Tensor:
            return ball.project(i, x + ball.step(i, gradient, alpha[i], at=x))

        if random and not self.start_in_bounds:
            x, steps = move(i, x, *(yield ask(i, x))), steps - 1
        repeats = self.norm == "Linf" and problem.early_stop and not problem.oracle.stochastic
        yield from ascend(problem, i, x, steps, ask, move, Visited(problem.y) if repeats else None)


def ascend(
    problem: Problem,
    i: Tensor,
    x: Tensor,
    steps: int,
    ask: Callable[[Tensor, Tensor], Query],
    move: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    visited: Visited | None = None,
) -> Search:
    """``steps`` times from ``x`` (n, ...) to ``move(rows, x, *answer to ask(rows, x))``, every point recorded."""
    for _ in range(steps):
        logits, slope = yield ask(i, x)
        stays = problem.record(i, x, logits)
        if visited is not None:
            stays &= ~visited.again(i, x)
        i, x = i[stays], x[stays]
        if not len(i):
            return
        x = move(i, x, logits[stays], slope[stays])
    problem.record(i, x, (yield problem.verdict(i, x)), own=True)
