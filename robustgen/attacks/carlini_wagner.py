"""The attacks of Carlini and Wagner.

Carlini and Wagner, "Towards Evaluating the Robustness of Neural Networks", 2017: L2 in section VI-A (minimise the
squared distance plus c * f over w, with x' = (tanh(w) + 1) / 2), f of its equation 6, the search for c of section V-C;
Linf in section VI-C (the sum of max(|delta| - tau, 0) in place of the distance, with tau brought down between runs).
Adam: Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015, algorithm 1.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustgen.attacks.ball import column, perturbation_norm
from robustgen.attacks.losses import margin
from robustgen.attacks.minimal_norm import MinimalNormAttack, annealed
from robustgen.attacks.problem import Problem
from robustgen.attacks.queries import Query, Search
from robustgen.checks import check_integers, check_positive

__all__ = ["CarliniWagner"]


@dataclass(frozen=True, kw_only=True)
class CarliniWagner(MinimalNormAttack):
    """Minimise distance + c * max(margin, -confidence) where no point leaves the bounds; search for c. L2, Linf.

    L2: every run begins at x with a new c: ten times the last until one run succeeds, a tenth until one fails, then the
    mean of the two. Linf: every run goes on from the nearest point found so far. A run that found nothing raises c
    tenfold; one that found a point within tau sets tau to 0.9 of its distance or, if that lies below a tau that failed,
    to the mean of the two; one that found points only beyond tau has failed at it. (The paper lowers tau by 0.9 to the
    first failure, and so stops up to a tenth short; it doubles c.) Lengths are in units of the span of the bounds.

    Args:
        steps: of Adam in one run: one each of forward and backward, and one last forward.
        search_steps: runs. None means 9 for L2, 12 for Linf.
        initial_c: weight of the margin in the first run.
        learning_rate: of Adam; it falls to a hundredth over a run on half a cosine (in the paper it is constant, which
            leaves the search to swing around the boundary at that distance). None means 0.05 for L2, 0.01 for Linf.
        confidence: by how much another logit must lead (kappa); points that lead by less do not count.

    The others are those of :class:`~robustgen.attacks.minimal_norm.MinimalNormAttack`.

    >>> linear = torch.nn.Linear(2, 2, bias=False)
    >>> _ = linear.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    >>> result = CarliniWagner(steps=100).run(linear, torch.tensor([[0.75, 0.5]]), torch.tensor([0]))  # 0.1768 away
    >>> result.success.item(), 0.1767 < result.distance.item() < 0.18
    (True, True)
    """

    norms = ("L2", "Linf")

    steps: int = 500
    search_steps: int | None = None
    initial_c: float = 1e-3
    learning_rate: float | None = None
    confidence: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.search_steps is not None:
            check_integers(search_steps=self.search_steps)
        for field in ("initial_c", "learning_rate"):
            if getattr(self, field) is not None:
                check_positive(**{field: getattr(self, field)})
        if not 0 <= self.confidence < float("inf"):
            raise ValueError(f"confidence must be a finite number >= 0, got {self.confidence}")

    def _search(self, problem: Problem, i: Tensor, run: int) -> Search:
        x = problem.x[i]
        start = x
        c = torch.full_like(problem.ball.eps[i], self.initial_c)
        tau = torch.full_like(c, self._span)
        low, high = torch.zeros_like(c), torch.full_like(c, float("inf"))  # of c (L2), of tau (Linf): failed, succeeded
        nearest = torch.full_like(c, float("inf"))
        rivals = yield from self._first_rivals(problem, i)
        for _ in range(self.search_steps or (9 if self.norm == "L2" else 12)):
            z, settled = yield from self._run(problem, i, start, c, tau, rivals)
            if self.norm == "L2":
                fails = settled.isinf()
                low, high = torch.where(fails, c, low), torch.where(fails, high, c)
                c = torch.where(high.isinf(), 10 * c, torch.where(low == 0, c / 10, (low + high) / 2))
                continue
            size = perturbation_norm(z.double() - x.double(), self.norm)
            size = torch.where(size > 0, size, float("inf"))  # nothing found yet
            start, nearest = torch.where(_mask(size < nearest, z), z, start), torch.minimum(nearest, size)
            low = torch.where(settled.isfinite() & (settled > tau), torch.maximum(low, tau), low)
            c = torch.where(settled.isinf(), 10 * c, c)
            tau = torch.where(settled.isinf(), tau, torch.maximum(0.9 * nearest, (low + nearest) / 2))

    def _run(
        self, problem: Problem, i: Tensor, start: Tensor, c: Tensor, tau: Tensor, rivals: Tensor
    ) -> Generator[Query, Any, tuple[Tensor, Tensor]]:
        """One run of Adam from ``start`` (n, ...): its nearest success (else ``start``); how near a settled one is.

        Settled: in the second half of the run. The first steps of Adam are long whatever c is, and may cross the
        boundary though the minimum is on this side of it.
        """
        x, nearest, anyone = problem.x[i], start, torch.full_like(i, -1)
        found, settled = torch.full_like(c, float("inf")), torch.full_like(c, float("inf"))
        w = self._to_variable(start)
        rate = torch.full_like(c, self.learning_rate or (0.05 if self.norm == "L2" else 0.01))
        if self.norm == "Linf":  # a step moves an element by half of this: keep it well below tau
            rate = torch.minimum(rate, 0.2 * tau / self._span)
        first, second = torch.zeros_like(w), torch.zeros_like(w)
        for step in range(self.steps + 1):
            z = self._from_variable(w)
            if step == self.steps:
                logits = yield problem.logits(i, z)
            else:
                logits, gap, ascent = yield from self._uphill(
                    problem, i, z, rivals if 2 * step < self.steps else anyone
                )
            size = perturbation_norm(z.double() - x.double(), self.norm)
            leads = margin(logits, problem.y[i], self.targeted) <= -self.confidence
            counts = problem.fools(i, logits) & leads
            problem.record(i[counts], z[counts], logits[counts])
            closer = counts & (size < found)
            found, nearest = torch.where(closer, size, found), torch.where(_mask(closer, z), z, nearest)
            if 2 * step >= self.steps:
                settled = torch.where(counts, torch.minimum(settled, size), settled)
            if step == self.steps:
                break
            pull = column(c, z) * torch.where(_mask(gap > -self.confidence, z), ascent, 0.0)
            slope = (self._distance_slope(z - x, tau) - pull) * (1 - torch.tanh(w) ** 2) * self._span / 2
            first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
            mean, square = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
            w = w - column(rate * annealed(1.0, 0.01, step, self.steps), w) * mean / (square.sqrt() + 1e-12)
        return nearest, settled

    def _distance_slope(self, delta: Tensor, tau: Tensor) -> Tensor:
        """Gradient of what stands for the distance, of the perturbation in units of the span."""
        if self.norm == "L2":
            return 2 * delta / self._span**2
        return torch.where(delta.abs() > column(tau, delta), delta.sign(), 0.0) / self._span

    def _to_variable(self, z: Tensor) -> Tensor:
        # At the bounds themselves w is infinite and has no gradient; this near to them it moves.
        return torch.atanh((2 * (z - self.bounds[0]) / self._span - 1).clamp(-1 + 1e-4, 1 - 1e-4))

    def _from_variable(self, w: Tensor) -> Tensor:
        return (self.bounds[0] + self._span * (torch.tanh(w) + 1) / 2).clamp(*self.bounds)


def _mask(rows: Tensor, like: Tensor) -> Tensor:
    """``rows`` (n,), bool, shaped to choose among those of ``like`` (n, ...)."""
    return rows.reshape(-1, *[1] * (like.ndim - 1))
