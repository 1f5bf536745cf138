"""Fast adaptive boundary attack (FAB), and its targeted form FAB-T.

Croce and Hein, "Minimally distorted Adversarial Examples with a Fast Adaptive Boundary Attack", 2020, algorithm 1. With
pi the nearest of the linearised faces between the true class and another, and C the box of the bounds,

    x_{i+1} = Proj_C((1 - alpha) * (x_i + eta * d_i) + alpha * (x + eta * d)),

where d_i and d lead from x_i and from x to the nearest point of pi inside C, and alpha = min(|d_i| / (|d_i| + |d|),
alpha_max) (equation 9) draws the iterate to x. A point that fools is taken back towards x: x + beta * (x_i - x). FAB-T,
from Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
2020, section 6, linearises the face of one class at a time.
"""

import sys
from collections.abc import Generator
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from robustgen import counter_rng
from robustgen.attacks.ball import column, perturbation_norm
from robustgen.attacks.losses import margin, rounding
from robustgen.attacks.minimal_norm import MinimalNormAttack
from robustgen.attacks.problem import Problem
from robustgen.attacks.queries import Query, Search
from robustgen.checks import check_integers

__all__ = ["FAB", "step_to_hyperplane"]

_FINAL_STEPS = 3  # of the search between the nearest point found and x, algorithm 1


@dataclass(frozen=True, kw_only=True)
class FAB(MinimalNormAttack):
    """Projections on the linearised decision boundary, drawn towards the original point.

    Every step is a forward and a backward pass for each class considered, and a forward at the new point. In the end
    three forward passes look for the boundary between the nearest point found and x, where a line through the margins
    at the ends has it (the paper's final search), but no nearer to the end that does not fool than a tenth: on the
    boundary itself nothing is fooled.

    Args:
        steps: of one run.
        restarts: runs; those after the first begin at a random point half as far from x as the nearest point found.
        n_targets: None, FAB: every step considers all other classes, with C - 1 backward passes. A number, FAB-T: that
            many runs (C - 1 if there are fewer), each towards one class with one backward pass a step, the most likely
            class first. Any wrong class is a success. With ``targeted=True`` there is one class to reach, ``y``: every
            step goes towards the face between it and the class that is highest at the moment.
        alpha_max: largest weight of the point near x, in [0, 1].
        eta: by how much a step goes beyond the hyperplane, at least 1.
        beta: what part of its distance to x a point that fools keeps for the next step, in (0, 1].

    The others are those of :class:`~robustgen.attacks.minimal_norm.MinimalNormAttack`, without ``candidates``.

    Raises:
        ValueError: as every attack, or an option outside its range.

    >>> linear = torch.nn.Linear(2, 2, bias=False)
    >>> _ = linear.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    >>> x, y = torch.tensor([[0.75, 0.5]]), torch.tensor([0])
    >>> [round(FAB(norm=norm, steps=10).run(linear, x, y).distance.item(), 2) for norm in ("L1", "L2", "Linf")]
    [0.25, 0.18, 0.13]
    """

    norms = ("Linf", "L2", "L1")

    candidates: int = field(init=False, default=sys.maxsize)
    steps: int = 100
    restarts: int = 1
    n_targets: int | None = None
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_targets is not None:
            check_integers(n_targets=self.n_targets)
            object.__setattr__(self, "candidates", self.n_targets)
        if not 0 <= self.alpha_max <= 1:
            raise ValueError(f"alpha_max must be in [0, 1], got {self.alpha_max}")
        if not 1 <= self.eta < float("inf"):
            raise ValueError(f"eta must be a finite number >= 1, got {self.eta}")
        if not 0 < self.beta <= 1:
            raise ValueError(f"beta must be in (0, 1], got {self.beta}")

    def describe(self) -> dict[str, Any]:
        """The attack's name and every hyperparameter, as JSON-able values."""
        return {k: v for k, v in super().describe().items() if k != "candidates"}

    def _search(self, problem: Problem, i: Tensor, run: int) -> Search:
        rivals = problem.y[i, None] if self.targeted else (yield from self._candidates(problem, i))
        at_once = 1 if self.n_targets else rivals.shape[1]
        rows = _Run.start(problem, i, rivals)
        for restart in range(self.restarts):
            for first in range(0, rivals.shape[1], at_once):
                rows.z = self._random_start(problem, rows, (restart, first)) if restart else rows.x
                for _ in range(self.steps):
                    rows = yield from self._step(problem, rows, slice(first, first + at_once))
                    if not len(rows.i):
                        return
        yield from self._final_search(problem, rows)

    def _step(self, problem: Problem, run: "_Run", faces: slice) -> Generator[Query, Any, "_Run"]:
        """To x_{i+1}, and back by ``beta`` where it fools; the rows that are left."""
        logits, gap, gradients = yield from self._gaps(problem, run.i, run.z, run.rivals[:, faces])
        stays, _ = run.see(problem, logits, self.norm)
        # a gap of rounding errors counts as none, and a step that closed it would not move: see Problem.fools
        gap = gap.double() + rounding(logits)[:, None].double()
        run = run.rows(stays)
        run.z = self._next(run, gap[stays], gradients[stays])
        stays, fools = run.see(problem, (yield problem.logits(run.i, run.z)), self.norm)
        back = column(torch.where(fools, self.beta, 1.0), run.z)
        run.z = torch.where(back < 1, run.x + back * (run.z - run.x), run.z)
        return run.rows(stays)

    def _next(self, run: "_Run", gap: Tensor, gradients: Tensor) -> Tensor:
        nearest = self._face_distances(run.z, gap.abs(), gradients).argmin(1)
        face = torch.arange(len(gap), device=gap.device), nearest
        gap, normal = gap[face], gradients[face].double()
        x, z = run.x.double(), run.z.double()
        step = step_to_hyperplane(run.z, normal, gap, self.norm, self.bounds)
        gap = gap + (normal * (z - x)).flatten(1).sum(1)
        step_from_x = step_to_hyperplane(run.x, normal, gap, self.norm, self.bounds)
        size, size_from_x = perturbation_norm(step, self.norm), perturbation_norm(step_from_x, self.norm)
        alpha = column((size / (size + size_from_x).clamp(min=1e-300)).clamp(max=self.alpha_max), x)
        if self.targeted:  # of several faces one is linearised; the way back from it would lead behind the others
            alpha = torch.where(column(run.nearest, x).isinf(), 0.0, alpha)
        mixed = (1 - alpha) * (z + self.eta * step) + alpha * (x + self.eta * step_from_x)
        return mixed.to(run.z.dtype).clamp(*self.bounds)

    def _random_start(self, problem: Problem, run: "_Run", stream: tuple[int, int]) -> Tensor:
        """A point half as far from x as the nearest that fools, or as the last point where none does."""
        shape, ids = tuple(run.x.shape[1:]), problem.ids[run.i]
        if self.norm == "Linf":
            way = 2 * counter_rng.uniform(self.seed, ids, shape, stream, run.x.dtype) - 1
        else:
            way = counter_rng.normal(self.seed, ids, shape, stream, run.x.dtype)
        last = perturbation_norm(run.z.double() - run.x.double(), self.norm)
        reach = torch.where(run.nearest.isinf(), last, run.nearest) / 2
        share = reach / perturbation_norm(way, self.norm).clamp(min=1e-300)
        return (run.x + column(share, way) * way).clamp(*self.bounds)

    def _final_search(self, problem: Problem, run: "_Run") -> Search:
        run = run.rows(run.nearest.isfinite())
        if not len(run.i):
            return
        logits = yield from problem.clean_logits(run.i)
        near, above = run.x, margin(logits, problem.y[run.i], self.targeted).double()
        for _ in range(_FINAL_STEPS):
            beyond = 2 * rounding(logits).double()  # on the boundary rounding errors would decide
            share = ((above + beyond) / (above - run.depth)).nan_to_num(0.5).clamp(0.1, 1.0)
            run.z = (near + column(share, near) * (run.nearest_x - near)).clamp(*self.bounds)
            logits = yield problem.logits(run.i, run.z)
            stays, fools = run.see(problem, logits, self.norm)
            above = torch.where(fools, above, margin(logits, problem.y[run.i], self.targeted).double())
            near = torch.where(fools.reshape(-1, *[1] * (near.ndim - 1)), near, run.z)
            run, near, above, logits = run.rows(stays), near[stays], above[stays], logits[stays]
            if not len(run.i):
                return


@dataclass
class _Run:
    """Where each of n samples is and what it found, each field with a row for each sample."""

    i: Tensor  # its row of the problem
    x: Tensor
    rivals: Tensor  # (n, k), the classes to head for
    z: Tensor
    nearest: Tensor  # distance of the nearest point that fools, the search's own: with an eps the problem keeps less
    nearest_x: Tensor
    depth: Tensor  # the margin there

    @classmethod
    def start(cls, problem: Problem, i: Tensor, rivals: Tensor) -> "_Run":
        x = problem.x[i]
        nowhere = torch.full_like(i, float("inf"), dtype=torch.float64)
        return cls(i, x, rivals, x, nowhere, x.clone(), nowhere)

    def see(self, problem: Problem, logits: Tensor, norm: str) -> tuple[Tensor, Tensor]:
        """Take in the logits at z; which rows have work left and which are fooled, bool (n,) both."""
        stays, fools = problem.record(self.i, self.z, logits), problem.fools(self.i, logits)
        size = perturbation_norm(self.z.double() - self.x.double(), norm)
        nearer = fools & (size < self.nearest)
        self.nearest = torch.where(nearer, size, self.nearest)
        self.nearest_x[nearer] = self.z[nearer]
        depth = margin(logits, problem.y[self.i], problem.targeted).double()
        self.depth = torch.where(nearer, depth, self.depth)
        return stays, fools

    def rows(self, keep: Tensor) -> "_Run":
        return self if bool(keep.all()) else _Run(*(getattr(self, f.name)[keep] for f in fields(self)))


def step_to_hyperplane(z: Tensor, normal: Tensor, gap: Tensor, norm: str, bounds: tuple[float, float]) -> Tensor:
    """The step d of least norm with normal . d = gap and z + d in the bounds; exact, by one sort of each row.

    Where no point of the box is on the hyperplane, d leads to the corner that comes nearest to it. Elements without
    influence do not move. The source's section 2 (the problem) and appendix (its solutions): all elements move towards
    the hyperplane, each until its bound stops it.

        L2: by t * |w_j|,   Linf: by t, with the one t that arrives,   L1: those of largest |w_j| first, all the way.

    Args:
        z: (n, ...) in the bounds.
        normal: (n, ...), of any length; where all of it is zero so is d.
        gap: (n,), of either sign.
        norm: "Linf", "L2" or "L1".

    Returns:
        float64 (n, ...).

    >>> z, normal, gap = torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, -2.0]]), torch.tensor([0.75])
    >>> for norm in ("Linf", "L2", "L1"):
    ...     print([round(d, 3) for d in step_to_hyperplane(z, normal, gap, norm, (0.0, 1.0))[0].tolist()])
    [0.25, -0.25]
    [0.15, -0.3]
    [0.0, -0.375]
    """
    slope, here = normal.double().flatten(1), z.double().flatten(1)
    steepest = slope.abs().amax(1, keepdim=True).clamp(min=1e-300)
    weight, need = slope.abs() / steepest, gap.double().abs()[:, None] / steepest
    way = slope.sign() * gap.double().sign()[:, None]
    low, high = (torch.tensor(b, dtype=z.dtype, device=z.device).double() for b in bounds)
    room = torch.where(way > 0, high - here, here - low).clamp(min=0)
    room = torch.where((way != 0) & (weight > _NONE), room, 0.0)
    weight = weight.clamp(min=_NONE)
    if norm == "L1":
        size = _one_by_one(weight, room, need)
    else:
        size = _together(weight, weight if norm == "L2" else torch.ones_like(weight), room, need)
    return (way * size).reshape(z.shape)


_NONE = 1e-100  # of the steepest slope: quotients by less would overflow


def _together(weight: Tensor, speed: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """min(t * speed, room), (n, D), with the t at which its weighted sum is ``need`` (n, 1).

    Over t the sum is piecewise linear and rising, with a break where an element is stopped.
    """
    breaks, order = (room / speed).sort(1)
    stopped = (weight * room).gather(1, order).cumsum(1)  # the part of the sum that no longer rises, after each break
    rate = (weight * speed).gather(1, order).flip(1).cumsum(1).flip(1)  # of the other part, before each break
    after = torch.nn.functional.pad(rate[:, 1:], (0, 1))
    piece = (stopped + breaks * after < need).sum(1, keepdim=True)  # the first break that is far enough
    last = piece.clamp(max=weight.shape[1] - 1)
    before = torch.nn.functional.pad(stopped[:, :-1], (1, 0)).gather(1, last)
    t = ((need - before) / rate.gather(1, last)).clamp(min=0)
    return torch.where(piece > last, room, torch.minimum(t * speed, room))


def _one_by_one(weight: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """The elements of largest weight filled up to their room until the weighted sum is ``need`` (n, 1), (n, D)."""
    weight, order = weight.sort(dim=1, descending=True, stable=True)
    room = room.gather(1, order)
    gain = weight * room
    left = (need - (gain.cumsum(1) - gain)).clamp(min=0)
    return torch.zeros_like(room).scatter(1, order, torch.minimum(room, left / weight))
