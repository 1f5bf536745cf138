"""Auto-PGD: projected gradient ascent with momentum whose step size follows the progress of each sample.

Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
2020, section 3 and algorithm 1. With z = Proj(x_k + size * direction),

    x_{k+1} = Proj(x_k + 0.75 * (z - x_k) + 0.25 * (x_k - x_{k-1})),

and at the checkpoints w_j the step is halved, and the best point so far taken up again, where too few steps went up
(condition 1) or nothing better came of this step size (condition 2).

L1: Croce and Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers", 2021, section 3: sparse
steps without momentum; how sparse is read off the best point; and larger balls first (the multi-eps scheme). Where the
paper and its released code differ, the code is followed, but for the random start: projected noise, as there, is so
sparse that steps on the few steepest coordinates, once at their bounds, never undo its wrong ones.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from robustgen.attacks.ball import Ball
from robustgen.attacks.base import Attack
from robustgen.attacks.losses import LOSSES
from robustgen.attacks.problem import Problem
from robustgen.attacks.queries import Search

__all__ = ["APGD"]


@dataclass(frozen=True, kw_only=True)
class APGD(Attack):
    """PGD that needs no step size: it begins with large steps and shortens them, for each sample by itself.

    Args:
        steps: gradient steps in one restart.
        restarts: runs, each on the samples that still stand.
        random_start: begin at a point drawn uniformly in the ball instead of at x. Restarts after the first are
            always random.
        loss: "ce" (the direction of the cross-entropy), "margin" (highest other logit less the true one) or "dlr" (the
            same over the spread of the logits).
        rho: share of the steps since the last checkpoint that must have gone up for the step size to stay, in [0, 1].
            L1 has another rule, without it.
        multi_eps: L1 only. Spend 30 % of the steps each (rounded down) in the balls of three times and twice eps, whose
            best points are then projected on the next smaller one. No point found there counts and no sample leaves;
            each of the two takes a forward more. l1-AutoAttack has it so.
        eot_samples: passes of a stochastic model that a gradient averages.

    The others are those of :class:`~robustgen.attacks.Attack`. The run goes on from the point of highest loss; of all
    points visited, the start included, the one of lowest margin is returned.

    Raises:
        ValueError: as every attack, rho outside [0, 1], or multi_eps with a norm other than L1.

    >>> linear = torch.nn.Linear(2, 2, bias=False)
    >>> _ = linear.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    >>> x, y = torch.tensor([[0.75, 0.5]]), torch.tensor([0])
    >>> [APGD(eps=eps, norm=norm).run(linear, x, y).success.item() for norm, eps in [("Linf", 0.13), ("L1", 0.26)]]
    [True, True]
    """

    norms = ("Linf", "L2", "L1")

    steps: int = 100
    restarts: int = 1
    random_start: bool = True
    loss: str = "ce"
    rho: float = 0.75
    multi_eps: bool = False
    eot_samples: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options(self.rho, self.multi_eps, self.norm)

    def _search(self, problem: Problem, i: Tensor, run: int) -> Search:
        stages = plan(problem.ball, self.steps, self.multi_eps)
        random = self.random_start or run
        x = stages[0][0].uniform(i, self.seed, problem.ids[i], (run,)) if random else problem.x[i]
        yield from climb(problem, i, x, self.loss, stages, self.rho, self.eot_samples)


def check_options(rho: float, multi_eps: bool, norm: str) -> None:
    if not 0 <= rho <= 1:
        raise ValueError(f"rho must be in [0, 1], got {rho}")
    if multi_eps and norm != "L1":
        raise ValueError(f"multi_eps is for norm L1, not {norm!r}")


def plan(ball: Ball, steps: int, multi_eps: bool) -> list[tuple[Ball, int]]:
    """The balls to search one after the other, ``ball`` the last, and the steps in each."""
    share = 3 * steps // 10
    if not multi_eps or not share:
        return [(ball, steps)]
    wider = [(Ball(ball.x, k * ball.eps, ball.norm, ball.bounds, ball.reach), share) for k in (3, 2)]
    return [*wider, (ball, steps - 2 * share)]


def climb(
    problem: Problem,
    i: Tensor,
    x: Tensor,
    loss: str,
    stages: list[tuple[Ball, int]],
    rho: float,
    eot_samples: int,
    towards: Tensor | None = None,
) -> Search:
    """One run from ``x`` (n, ...) for the rows ``i`` up the loss, through the balls of :func:`plan`.

    What it visits in the last ball is recorded. ``towards`` (n,): classes whose targeted loss to climb, in place of
    what the problem is about.
    """
    aim, targeted = (problem.y[i], problem.targeted) if towards is None else (towards, True)
    for stage, (ball, steps) in enumerate(stages):
        if stage:
            x = ball.project(i, x)
        pace: _SparsePace | _HalvingPace
        if ball.norm == "L1":
            # after a larger ball, steps begin as sparse as what was found there
            pace = _SparsePace(ball, i, steps, x if stage else ball.x[i])
        else:
            pace = _HalvingPace(ball, i, steps, rho)
        run = _Run.start(x)
        counts = ball is problem.ball
        for k in range(steps):
            logits, gradient = yield problem.gradient(i, run.x, loss, eot_samples, None if towards is None else aim)
            rose = run.see(LOSSES[loss](logits, aim, targeted), gradient)
            stays = problem.record(i, run.x, logits) if counts else torch.ones_like(rose)
            run.resume(pace.check(k, problem.x[i], run, rose))
            if not bool(stays.all()):
                i, aim, run = i[stays], aim[stays], run.rows(stays)
                pace.keep(stays)
            if not len(i):
                return
            run.move(pace.next(k, ball, i, run))
        logits = yield problem.logits(i, run.x)
        if counts:
            problem.record(i, run.x, logits)
        run.see(LOSSES[loss](logits, aim, targeted), run.gradient)
        x = run.best_x


@dataclass
class _Run:
    """Where each of n samples is and was, each field with a row for each sample."""

    x: Tensor
    last_x: Tensor
    value: Tensor  # the loss at x
    gradient: Tensor
    best_x: Tensor
    best_value: Tensor
    best_gradient: Tensor

    @classmethod
    def start(cls, x: Tensor) -> "_Run":
        lowest = x.new_full((len(x),), float("-inf"))
        return cls(x, x, lowest, torch.zeros_like(x), x, lowest, torch.zeros_like(x))

    def see(self, value: Tensor, gradient: Tensor) -> Tensor:
        """Take in the loss (n,) and the gradient at x; where the loss is higher than at the point before, bool (n,)."""
        rose, better = value > self.value, value > self.best_value
        self.value, self.gradient = value, gradient
        self.best_value = torch.where(better, value, self.best_value)
        better = _like(better, self.x)
        self.best_x = torch.where(better, self.x, self.best_x)
        self.best_gradient = torch.where(better, gradient, self.best_gradient)
        return rose

    def resume(self, again: Tensor | None) -> None:
        """Go back to the best point, at rest, in the rows ``again`` (n,)."""
        if again is None:
            return
        self.value = torch.where(again, self.best_value, self.value)
        again = _like(again, self.x)
        self.x, self.gradient = (
            torch.where(again, best, now) for best, now in ((self.best_x, self.x), (self.best_gradient, self.gradient))
        )
        self.last_x = torch.where(again, self.best_x, self.last_x)

    def move(self, x: Tensor) -> None:
        self.x, self.last_x = x, self.x

    def rows(self, keep: Tensor) -> "_Run":
        return _Run(*(getattr(self, f.name)[keep] for f in fields(self)))


class _HalvingPace:
    """Step sizes of algorithm 1 of 2020 (Linf and L2), one for each row of the run."""

    def __init__(self, ball: Ball, i: Tensor, steps: int, rho: float) -> None:
        self.checks, self.rho, self.last_check = _checkpoints(steps), rho, 0
        self.size = 2 * ball.eps[i]
        self.rises = torch.zeros_like(i)
        self.halved = torch.zeros_like(i, dtype=torch.bool)
        self.best = torch.full_like(self.size, float("inf"))  # at the checkpoint before

    def check(self, k: int, x: Tensor, run: _Run, rose: Tensor) -> Tensor | None:
        """With x_k seen: at a checkpoint, halve the step of the rows that are returned, bool (n,)."""
        if k == 0:
            self.best = run.best_value
            return None
        self.rises += rose
        if k not in self.checks:
            return None
        few = self.rises < self.rho * (k - self.last_check)  # condition 1
        idle = ~self.halved & (run.best_value <= self.best)  # condition 2
        self.halved = few | idle
        self.size = torch.where(self.halved, self.size / 2, self.size)
        self.rises, self.best, self.last_check = torch.zeros_like(self.rises), run.best_value, k
        return self.halved

    def next(self, k: int, ball: Ball, i: Tensor, run: _Run) -> Tensor:
        """x_{k+1}: a step with momentum, the first one without."""
        z = ball.project(i, run.x + ball.step(i, run.gradient, self.size))
        return z if k == 0 else ball.project(i, run.x + 0.75 * (z - run.x) + 0.25 * (run.x - run.last_x))

    def keep(self, rows: Tensor) -> None:
        self.size, self.rises, self.halved, self.best = (
            t[rows] for t in (self.size, self.rises, self.halved, self.best)
        )


class _SparsePace:
    """Step sizes and sparsities of l1-APGD of 2021, one for each row of the run.

    At every check (each 4 % of the steps) it sets how many coordinates a step moves: the non-zero elements of the best
    perturbation over 1.5; before the first check those of the perturbation at ``start`` over 1.5, or a fifth of all
    where there is none. Where that number no longer falls by 5 %, the step, eps at first, is shortened by 1.5 down to
    eps / 10; where it does, the step is eps again, from the best point.
    """

    def __init__(self, ball: Ball, i: Tensor, steps: int, start: Tensor) -> None:
        self.every = max(1, 4 * steps // 100)
        self.largest = ball.eps[i].double()
        self.size = self.largest
        count, whole = _changed(start, ball.x[i]), max(1, ball.x[:1].numel())
        self.spread = torch.where(count > 0, count / 1.5, 0.2 * whole).clamp(min=1)
        self.count = torch.where(count > 0, count, whole)  # non-zero elements at the check before

    def check(self, k: int, x: Tensor, run: _Run, rose: Tensor) -> Tensor | None:
        """With x_k seen: at a check, set sparsity and step; the rows that got sparser, bool (n,)."""
        if k == 0 or k % self.every:
            return None
        count = _changed(run.best_x, x)
        sparser = count < 0.95 * self.count
        self.size = torch.where(sparser, self.largest, torch.maximum(self.size / 1.5, self.largest / 10))
        self.count, self.spread = count, (count / 1.5).clamp(min=1)
        return sparser

    def next(self, k: int, ball: Ball, i: Tensor, run: _Run) -> Tensor:
        """x_{k+1}: one sparse step, the bounds left to the projection.

        Steps as long as these, led past the coordinates at a bound, would spill over into flat ones: with the bounds
        left out a point whose steepest coordinates are all at their bounds is a point of rest, as it should be.
        """
        slopes = run.gradient.flatten(1).count_nonzero(1)  # the length goes to coordinates that have one
        spread = torch.minimum(self.spread, slopes).clamp(min=1)
        return ball.project(i, run.x + ball.step(i, run.gradient, self.size, spread=spread))

    def keep(self, rows: Tensor) -> None:
        self.largest, self.size, self.count, self.spread = (
            t[rows] for t in (self.largest, self.size, self.count, self.spread)
        )


def _checkpoints(steps: int) -> set[int]:
    """The w_j = ceil(p_j N) of 2020, section 3: p_1 = 0.22 and p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06).

    In whole hundredths: sums of binary fractions round up to one step more.

    >>> sorted(_checkpoints(100))
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    found, p, gap = set(), 22, 22
    while p <= 100:
        found.add(-(-p * steps // 100))
        gap = max(gap - 3, 6)
        p += gap
    return found


def _changed(z: Tensor, x: Tensor) -> Tensor:
    """How many elements of ``z`` differ from those of ``x``, float64 (n,)."""
    return (z != x).flatten(1).sum(1).double()


def _like(flags: Tensor, x: Tensor) -> Tensor:
    return flags.reshape(-1, *[1] * (x.ndim - 1))
