"""An attack of another library under the contract of ours: what it returns is checked, never trusted."""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from robustgen.attacks.adapters.guest import Guest, foreign_random
from robustgen.attacks.ball import perturbation_norm
from robustgen.attacks.base import Attack
from robustgen.attacks.problem import Problem
from robustgen.attacks.queries import Search
from robustgen.checks import warn_user

__all__ = ["ForeignAttack", "accepted"]


@dataclass(frozen=True, kw_only=True)
class ForeignAttack(Attack):
    """What the adapters have in common; a subclass runs the library in :meth:`_points` and names it in ``_of``.

    Every sample gets the one point that the library returns for it. A point outside the ball or the bounds by more
    than rounding error, one with NaN or Inf, and one of another dtype are not used: x is returned and a warning counts
    them. Rounding error is projected off. Success is the verdict of the model on what is left.

    The library sees a stand-in for the model. Its global random numbers are seeded with ``seed``, so a run can be
    repeated, but the promise of other attacks that a sample's result does not depend on its batch does not hold. Nor
    does the library drop solved samples: ``early_stop`` only spares those that are misclassified from the start. It is
    called once for each distinct eps. Rows that it queries are counted and shared out evenly over the samples.
    """

    takes_mask = False

    def _search(self, problem: Problem, i: Tensor, run: int) -> Search:
        i = i[~problem.solved[i]]  # some libraries never return from a sample that is misclassified already
        z = problem.x[i]
        for eps, rows in self._groups(problem, i):
            z[rows] = self._attack(problem, i[rows], eps)
        if len(i):
            problem.record(i, z, (yield problem.logits(i, z)))

    def _groups(self, problem: Problem, i: Tensor) -> list[tuple[float, Tensor]]:
        """Each radius > 0 and the rows of ``i`` that have it; of a search without a limit, infinity and all rows."""
        if problem.length is not None:
            return [(math.inf, torch.arange(len(i), device=i.device))] if len(i) else []
        eps = problem.ball.eps[i]
        return [(e, (eps == e).nonzero().squeeze(1)) for e in eps.unique().tolist() if e > 0]

    def _attack(self, problem: Problem, i: Tensor, eps: float) -> Tensor:
        """The points (n, ...) that the library finds for samples ``i`` and that pass."""
        model = problem.oracle.model

        def guest(decode: Callable[[Tensor], Tensor] = lambda x: x) -> Guest:
            hired.append(Guest(model, problem.x, decode))
            return hired[-1]

        hired: list[Guest] = []
        with torch.enable_grad(), foreign_random(self.seed):
            z = self._points(guest, problem.x[i], problem.y[i], eps)
        problem.oracle.forwards[i] += _shares(sum(g.forwards for g in hired), i)
        problem.oracle.backwards[i] += _shares(sum(g.backwards for g in hired), i)
        return accepted(problem, i, z, str(self._of()["attack"]))

    @abstractmethod
    def _points(self, guest: Callable[..., Guest], x: Tensor, y: Tensor, eps: float) -> Any:
        """What the library returns for ``x`` (n, ...), in the space of ``x``; ``guest(decode)`` makes its model."""

    @abstractmethod
    def _of(self) -> dict[str, Any]:
        """Name of the library's attack, version and hyperparameters, as JSON-able values."""

    def describe(self) -> dict[str, Any]:
        """The library's attack with its hyperparameters, and those common to all attacks, as JSON-able values."""
        common = {field.name: getattr(self, field.name) for field in fields(Attack)}
        return {"attack": type(self).__name__, "of": self._of()} | common


def accepted(problem: Problem, i: Tensor, z: Any, who: str) -> Tensor:
    """``z`` (n, ...) where it is a legal perturbation of samples ``i``, and x where it is not; a warning counts those.

    ``who`` is what the warning calls the source. The tolerance is the rounding error of computing x + delta in
    float32, which libraries do in parts for float64 too; what lies within it is projected, so that the result is legal
    in exact arithmetic.
    """
    x, ball = problem.x[i], problem.ball
    if not isinstance(z, Tensor) or z.shape != x.shape or z.dtype != x.dtype:
        got = f"{tuple(z.shape)} {z.dtype}" if isinstance(z, Tensor) else type(z).__name__
        _warn_unused(who, f"{got} returned for {tuple(x.shape)} {x.dtype}")
        return x
    z = z.detach().to(x.device)
    broken = ~z.isfinite().flatten(1).all(1)
    z = _where(broken, x, z)
    rounding = 16 * torch.finfo(torch.float32).eps * max(map(abs, ball.bounds))
    inside = z.clamp(*ball.bounds)
    stray = perturbation_norm(z.double() - inside.double(), "Linf")
    excess = torch.zeros_like(stray)
    if problem.length is None:
        n_elements = max(1, x[:1].numel())
        rounding_of_norm = rounding * {"Linf": 1.0, "L2": n_elements**0.5, "L1": float(n_elements)}[ball.norm]
        excess = perturbation_norm(inside.double() - x.double(), ball.norm) - ball.eps[i]
        inside = _where(excess > 0, ball.project(i, inside), inside)
        excess = torch.where(excess > rounding_of_norm, excess, 0.0)
    stray = torch.where(stray > rounding, stray, 0.0)
    unused = broken | (stray > 0) | (excess > 0)
    if bool(unused.any()):
        reasons = [f"{int(broken.sum())} with NaN or Inf"] if bool(broken.any()) else []
        for size, place in ((stray, "the bounds"), (excess, f"the {ball.norm} ball")):
            if bool((size > 0).any()):
                reasons.append(f"{int((size > 0).sum())} outside {place} by up to {size.max().item():.3g}")
        _warn_unused(who, f"{int(unused.sum())} of {len(i)} points: {', '.join(reasons)}")
    return _where(unused, x, inside)


def _warn_unused(who: str, what: str) -> None:
    warn_user(f"{who}: not used, the clean inputs are kept: {what}")


def _where(rows: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(rows.reshape(-1, *[1] * (a.ndim - 1)), a, b)


def _shares(total: int, i: Tensor) -> Tensor:
    """``total`` split over the samples ``i`` (n,) as evenly as whole numbers allow."""
    each, left = divmod(total, len(i))
    return each + (torch.arange(len(i), device=i.device) < left).to(i.dtype)
