"""Attacks that look for the nearest adversarial input instead of any within a given radius."""

import math
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from robustgen.attacks.ball import Ball, column, perturbation_norm
from robustgen.attacks.base import Attack
from robustgen.attacks.losses import margin
from robustgen.attacks.problem import Nearest, Problem
from robustgen.attacks.queries import Answered, Oracle, Query, gaps
from robustgen.checks import check_integers

__all__ = ["DUAL", "Box", "MinimalNormAttack", "annealed"]

DUAL = {"Linf": "L1", "L2": "L2", "L1": "Linf"}


@dataclass(frozen=True, kw_only=True)
class MinimalNormAttack(Attack):
    """What all attacks without an eps have in common; a subclass adds its hyperparameters and ``_search``.

    The search space is the box of the bounds. Of all points that the model was asked about, the one of smallest norm
    that fools it is returned, and x itself where none does (``success`` is False there) or where x already does
    (distance 0). What counts must fool by more than the rounding error of the logits, so that the verdict holds in any
    batch. ``eps=`` at the call, a number or (N,), is a limit: points farther than that do not count; the search does
    not see it.

    Args:
        candidates: classes among which the one to head for in the first half of the steps is chosen, those of highest
            logit at x: the one whose face is nearest in the linearised model (DeepFool's equation 8), which is often
            not the one of highest logit. It costs a forward and so many backward passes. 1: head for the highest logit,
            wherever that is.
        eot_samples: passes of a stochastic model that a gradient averages.
        early_stop: a nearest point is never known to be found, so no sample stops at its first success. True: those
            misclassified from the start take no work. False: they run every step too, and are returned unchanged.

    The others are those of :class:`~robustgen.attacks.Attack`. With a stochastic model a point counts when the majority
    of ``votes`` fresh draws is fooled on the way and again at the end; x is returned where the second vote fails.
    Points that win the first by more than four in five are preferred to nearer ones that do not.
    ``attack.eps`` is infinite.
    """

    eps: float = field(init=False, default=0.0)
    norm: str = "L2"
    candidates: int = 9
    eot_samples: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integers(candidates=self.candidates)
        object.__setattr__(self, "eps", math.inf)

    def _problem(
        self, oracle: Oracle, x: Tensor, y: Tensor, ids: Tensor, radius: Tensor, reach: Tensor | None = None
    ) -> Problem:
        if reach is not None and self.norm == "Linf" and bool(((reach > 0) & (reach != column(radius, reach))).any()):
            raise ValueError(
                f"{type(self).__name__} looks for the nearest point: eps of each element is for PGD and the like"
            )
        box = Box(x, radius, self.norm, self.bounds)
        return Nearest(oracle, x, y, ids, box, length=self._length, **self._rules)

    def _length(self, delta: Tensor) -> Tensor:
        return perturbation_norm(delta, self.norm)

    def _warn_of_units(self, eps: float, elements: int) -> None:
        """A limit may be as wide as one likes."""

    def _runs(self, problem: Problem) -> int:
        return 1  # restarts, where there are any, begin at what was found before

    def _first_rivals(self, problem: Problem, i: Tensor) -> Generator[Query, Any, Tensor]:
        """The class to head for in the first half of the steps, (n,); -1: whichever is highest at the moment."""
        x = problem.x[i]
        if self.targeted or self.candidates == 1 or not len(i):
            return torch.full_like(i, -1)
        rivals = yield from self._candidates(problem, i)
        if rivals.shape[1] == 1:
            return torch.full_like(i, -1)
        logits, gradients = yield problem.rival_gradients(i, x, rivals, self.eot_samples)
        nearest = self._face_distances(x, gaps(logits, problem.y[i], rivals), gradients).argmin(1, keepdim=True)
        return rivals.gather(1, nearest).squeeze(1)

    def _candidates(self, problem: Problem, i: Tensor) -> Generator[Query, Any, Tensor]:
        logits = yield from problem.clean_logits(i)
        others = logits.scatter(1, problem.y[i, None], float("-inf"))
        return others.topk(min(self.candidates, logits.shape[1] - 1), dim=1).indices

    def _face_distances(self, z: Tensor, gaps: Tensor, gradients: Tensor) -> Tensor:
        """How far from ``z`` linear models with these ``gradients`` (n, k, ...) close the ``gaps`` (n, k)."""
        gaps = gaps.double().clamp(min=0)
        if self.norm == "L0":  # elements go to their bounds, those that do most first
            low, high = self.bounds
            room = torch.where(gradients > 0, high - z[:, None], z[:, None] - low)
            reach = (room * gradients.abs()).flatten(2).sort(2, descending=True).values.double().cumsum(2)
            return (reach <= gaps[:, :, None]).sum(2).double()
        dual = perturbation_norm(gradients.flatten(0, 1), DUAL[self.norm]).reshape(gaps.shape)
        return torch.where(dual > 0, gaps / dual.clamp(min=1e-300), float("inf"))

    def _uphill(self, problem: Problem, i: Tensor, z: Tensor, rivals: Tensor) -> Answered:
        """Logits (n, C) at ``z``, how far the rivals (n,) are behind, and the gradient (n, ...) that closes the gap."""
        if self.targeted:
            logits, gradient = yield problem.gradient(i, z, "margin", self.eot_samples)
            return logits, margin(logits, problem.y[i], True), gradient
        logits, gradients = yield problem.rival_gradients(i, z, rivals[:, None], self.eot_samples)
        return logits, gaps(logits, problem.y[i], rivals[:, None]).squeeze(1), gradients.squeeze(1)

    def _gaps(self, problem: Problem, i: Tensor, z: Tensor, rivals: Tensor) -> Answered:
        """Logits (n, C), how far each rival is behind (n, k) and the gradient (n, k, ...) that closes each gap."""
        if self.targeted:
            logits, gap, gradient = yield from self._uphill(problem, i, z, rivals)
            return logits, gap[:, None], gradient[:, None]
        logits, gradients = yield problem.rival_gradients(i, z, rivals, self.eot_samples)
        return logits, gaps(logits, problem.y[i], rivals), gradients

    def _free(self, z: Tensor, gradient: Tensor) -> Tensor:
        """``gradient`` (n, ...) without the elements of ``z`` that stand at a bound and would leave it."""
        low, high = self.bounds
        near = 16 * torch.finfo(z.dtype).eps * max(abs(low), abs(high))  # rounding must not decide who stands there
        low, high = low + near, high - near
        return torch.where(((z <= low) & (gradient < 0)) | ((z >= high) & (gradient > 0)), 0.0, gradient)

    @property
    def _span(self) -> float:
        """Of the bounds: the unit in which step sizes and first guesses are given."""
        return self.bounds[1] - self.bounds[0]

    def describe(self) -> dict[str, Any]:
        """The attack's name and every hyperparameter, as JSON-able values; there is no eps among them."""
        return {k: v for k, v in super().describe().items() if k != "eps"}


class Box(Ball):
    """The bounds alone; ``eps`` (N,) is no limit to the search, only to what counts in the end."""

    def __init__(
        self, x: Tensor, eps: Tensor, norm: str, bounds: tuple[float, float], reach: Tensor | None = None
    ) -> None:
        self.x, self.norm, self.bounds, self.eps, self.reach = x, norm, bounds, eps, reach

    def project(self, i: Tensor, z: Tensor) -> Tensor:
        """``z`` (n, ...) moved into the bounds."""
        return z.clamp(*self.bounds)


def annealed(first: float, last: float, step: int, steps: int) -> float:
    """From ``first`` (step 0) to ``last`` (step ``steps`` - 1) on half a cosine (Loshchilov and Hutter, "SGDR", 2017).

    >>> annealed(1.0, 0.0, 0, 5), round(annealed(1.0, 0.0, 2, 5), 3), annealed(1.0, 0.0, 4, 5)
    (1.0, 0.5, 0.0)
    """
    return last + (first - last) * (1 + math.cos(math.pi * step / max(1, steps - 1))) / 2
