"""HopSkipJumpAttack: the nearest adversarial example from the model's decisions alone.

Chen, Jordan and Wainwright, "HopSkipJumpAttack: A Query-Efficient Decision-Based Attack", 2020: algorithm 1 (binary
search to the boundary), equations 9 and 16 (the gradient's direction, with a baseline), algorithm 2 (the whole).
"""

import itertools
import math
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from robustgen import counter_rng
from robustgen.attacks.ball import column, perturbation_norm
from robustgen.attacks.minimal_norm import MinimalNormAttack
from robustgen.attacks.problem import Problem
from robustgen.attacks.queries import Query, Search
from robustgen.checks import check_images, check_integers
from robustgen.fingerprint import fingerprint

__all__ = ["HopSkipJump"]

_Asking: TypeAlias = Generator[Query, Any, Tensor]


@dataclass(frozen=True, kw_only=True)
class HopSkipJump(MinimalNormAttack):
    """Walk along the decision boundary towards x. Of the logits it uses only which class they predict.

    From an adversarial point, however far: search the line to x for the boundary, ask the model about points around
    there to learn on which side the boundary rises, jump that way, and again. It begins from ``starts`` or, where none
    of them fools the model, from points drawn uniformly in the bounds until one does. A network that predicts the
    target (or, untargeted, another class) nowhere among them is not attacked: give starts.

    Args:
        n_queries: decisions asked for each sample, in all; the clean one and, for a stochastic model, the votes on
            what was found are on top. Every sample that is not misclassified from the start uses all of them.
        directions: B_0, points asked about at the first iteration; at iteration t it is B_0 * sqrt(t).
        starts: points (K, ...) in the bounds to begin from, each sample from the nearest that fools the model, for
            instance a few inputs of each class: targeted attacks hardly ever begin without.

    The others are those of :class:`~robustgen.attacks.MinimalNormAttack`.

    >>> linear = torch.nn.Linear(2, 2, bias=False)
    >>> _ = linear.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    >>> result = HopSkipJump(n_queries=1000).run(linear, torch.tensor([[0.75, 0.5]]), torch.tensor([0]))
    >>> result.success.item(), round(result.distance.item(), 2), result.backwards.item()  # 0.25 / sqrt(2)
    (True, 0.18, 0)
    """

    norms = ("L2", "Linf")

    candidates: int = field(init=False, default=1)  # settings of gradients, which it does not take
    eot_samples: int = field(init=False, default=1)
    n_queries: int = 5000
    directions: int = 100
    starts: Tensor | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integers(directions=self.directions)
        if self.starts is not None:
            check_images(self.starts, self.bounds, "starts")

    def describe(self) -> dict[str, Any]:
        starts = None if self.starts is None else fingerprint({"starts": self.starts})
        described = super().describe() | {"starts": starts}
        return {k: v for k, v in described.items() if k not in ("candidates", "eot_samples")}

    def _search(self, problem: Problem, i: Tensor, run: int) -> Search:
        return _Walk(self, problem).run(i)


class _Walk:
    """The search of one batch. Rows ``i`` (n,) go in step; one whose queries are used up is told "no" from then on."""

    def __init__(self, attack: HopSkipJump, problem: Problem) -> None:
        self.attack, self.problem, self.norm = attack, problem, attack.norm
        self.left = torch.full_like(problem.y, attack.n_queries)
        size = max(2, problem.x[:1].numel())
        # The paper's threshold, and in few dimensions, where it is coarse, a part in a thousand.
        self.threshold = min(size**-1.5 if self.norm == "L2" else size**-2.0, 1e-3)
        self.size, self.halvings = size, math.ceil(-math.log2(self.threshold))

    def run(self, i: Tensor) -> Search:
        i, z = yield from self.start(i)
        for iteration in itertools.count(1):
            more = self.left[i] > 0
            i, z = i[more], z[more]
            if not len(i):
                return
            z = yield from self.to_boundary(i, z)
            z = yield from self.jump(i, z, (yield from self.uphill(i, z, iteration)), iteration)

    def ask(self, i: Tensor, z: Tensor) -> _Asking:
        """Whether ``z`` (n, ...) is adversarial, bool (n,): one query of each row that has one left."""
        answer = torch.zeros_like(i, dtype=torch.bool)
        can = (self.left[i] > 0).nonzero().squeeze(1)
        if len(can):
            self.left[i[can]] -= 1
            logits = yield self.problem.logits(i[can], z[can])
            self.problem.record(i[can], z[can], logits)
            answer[can] = self.problem.fools(i[can], logits)
        return answer

    def start(self, i: Tensor) -> Generator[Query, Any, tuple[Tensor, Tensor]]:
        """The rows for which an adversarial point was found, and the points: the nearest start, or a random draw."""
        x, low, high = self.problem.x[i], *self.attack.bounds
        pool = x[:0] if self.attack.starts is None else self.attack.starts.to(x)
        if pool.shape[1:] != x.shape[1:]:
            raise ValueError(f"starts have shape {tuple(pool.shape[1:])}, inputs {tuple(x.shape[1:])}")
        far = x.new_zeros(len(i), len(pool), dtype=torch.float64)
        for k, point in enumerate(pool):
            far[:, k] = perturbation_norm(point - x, self.norm)
        order = far.argsort(dim=1, stable=True)
        z, begun = x.clone(), torch.zeros_like(i, dtype=torch.bool)
        for attempt in range(self.attack.n_queries):
            rows = (~begun).nonzero().squeeze(1)
            if not len(rows):
                break
            if attempt < len(pool):
                point = pool[order[rows, attempt]]
            else:
                ids, shape = self.problem.ids[i[rows]], tuple(x.shape[1:])
                draw = counter_rng.uniform(self.attack.seed, ids, shape, (0, attempt), x.dtype)
                point = (low + (high - low) * draw).clamp(low, high)
            hit = yield from self.ask(i[rows], point)
            z[rows[hit]] = point[hit]
            begun[rows[hit]] = True
        return i[begun], z[begun]

    def to_boundary(self, i: Tensor, z: Tensor) -> _Asking:
        """The point nearest to x, up to the threshold, that is still adversarial between x and ``z`` (algorithm 1)."""
        x, far = self.problem.x[i], z
        low, high = torch.zeros_like(i, dtype=torch.float64), torch.ones_like(i, dtype=torch.float64)
        for _ in range(self.halvings):
            middle = (low + high) / 2
            point = self.between(x, far, middle)
            hit = yield from self.ask(i, point)
            z = torch.where(column(hit, z) > 0, point, z)
            low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
        return z

    def between(self, x: Tensor, z: Tensor, share: Tensor) -> Tensor:
        """The point at ``share`` (n,) of the way from x to z: on the line for L2, clipped to the box for Linf."""
        delta = z - x
        if self.norm == "L2":
            delta = delta * column(share, x)
        else:
            limit = column(share * perturbation_norm(delta, "Linf"), x)
            delta = torch.minimum(torch.maximum(delta, -limit), limit)
        return (x + delta).clamp(*self.attack.bounds)

    def uphill(self, i: Tensor, z: Tensor, iteration: int) -> _Asking:
        """The direction (n, ...), not scaled, into the adversarial side at ``z`` on the boundary (equation 16)."""
        low, high = self.attack.bounds
        distance = perturbation_norm(z - self.problem.x[i], self.norm)
        probe = (distance / self.size).clamp(min=torch.finfo(z.dtype).eps * (high - low)).to(z.dtype)
        count = math.ceil(self.attack.directions * math.sqrt(iteration))
        signed, plain, mean = torch.zeros_like(z), torch.zeros_like(z), z.new_zeros(len(z))
        for b in range(count):
            u = counter_rng.normal(self.attack.seed, self.problem.ids[i], tuple(z.shape[1:]), (iteration, b), z.dtype)
            point = (z + _scaled(u, probe, "L2")).clamp(low, high)
            u = (point - z) / column(probe, z)  # what the bounds left of it
            phi = 2 * (yield from self.ask(i, point)).to(z.dtype) - 1
            signed += column(phi, u) * u
            plain += u
            mean += phi / count
        # Where all answers agree the baseline would cancel them.
        baseline = torch.where(mean.abs() < 1 - 0.5 / count, mean, 0.0)
        return signed - column(baseline, plain) * plain

    def jump(self, i: Tensor, z: Tensor, direction: Tensor, iteration: int) -> _Asking:
        """From ``z`` by the longest step of a halving series that lands on the adversarial side; else none."""
        step = perturbation_norm(z - self.problem.x[i], self.norm) / math.sqrt(iteration)
        landed = torch.zeros_like(i, dtype=torch.bool)
        for _ in range(self.halvings):
            rows = (~landed & (self.left[i] > 0)).nonzero().squeeze(1)
            if not len(rows):
                break
            point = (z[rows] + _scaled(direction[rows], step[rows], self.norm)).clamp(*self.attack.bounds)
            hit = yield from self.ask(i[rows], point)
            z = z.index_copy(0, rows[hit], point[hit])
            landed[rows[hit]] = True
            step = step / 2
        return z


def _scaled(direction: Tensor, size: Tensor, norm: str) -> Tensor:
    """The step of norm ``size`` (n,) along ``direction``: its signs for Linf."""
    if norm == "Linf":
        return direction.sign() * column(size, direction)
    return direction * column(size / perturbation_norm(direction, "L2").clamp(min=1e-300), direction)
