"""Attacks that know the detector: fool the classifier and stay under the detector's threshold.

Carlini and Wagner, "Adversarial Examples Are Not Easily Detected: Bypassing Ten Detection Methods", 2017 (one loss made
of both: "sum" and "max"); Bryniarski, Hingun, Pachuca, Wang and Carlini, "Evading Adversarial Example Detection
Defenses with Orthogonal Projected Gradient Descent", 2022, section 4 ("selective": whichever of the two is not yet
fooled; "orthogonal": that, at right angles to the gradient of the other).
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from robustgen.attacks.ball import Ball, column, perturbation_norm
from robustgen.attacks.base import Attack
from robustgen.attacks.losses import fooled, margin
from robustgen.attacks.minimal_norm import annealed
from robustgen.attacks.problem import LowestMargin, Problem
from robustgen.attacks.queries import Oracle, Search
from robustgen.model import Model, logits_of

__all__ = ["JointAttack"]

FORMULATIONS = ("sum", "max", "selective", "orthogonal", "score")


@dataclass(frozen=True, kw_only=True)
class JointAttack(Attack):
    """PGD on a classifier with a detector beside it: a success is misclassified AND has a score within the threshold.

    Args:
        score: x (N, ...) -> (N,), higher = more anomalous, differentiable in x; ``detector.score`` for instance.
        threshold: scores up to it pass. It must have been fixed beforehand on clean data that this attack does not see,
            as ``detector.threshold(fpr)`` is.
        formulation: what a step ascends. With g the gradient of the classifier's loss and d that which lowers the
            score:

            - "sum": g / |g| + weight * d / |d|; the unit lengths take the place of losses in units of their own.
            - "max": g or d, whichever's condition is further from met, margin / clean margin against
              (score - threshold) / |threshold|.
            - "selective": g until the classifier is fooled, then d.
            - "orthogonal": the same, less its part along the other of the two.
            - "score": d alone, and only the score decides: makes an input of no class, an out-of-distribution one,
              look in-distribution. ``y`` is not looked at.
        weight: of the score in "sum".
        steps: gradient steps in one restart, of length eps / 2 at first, falling to a hundredth of it on half a cosine.
        restarts, random_start, loss, eot_samples: as in :class:`~robustgen.attacks.PGD`.

    The others are those of :class:`~robustgen.attacks.Attack`. Where it fails the point returned is, of those that
    fool the classifier, the one of lowest score, else the one of lowest margin. With ``early_stop=False`` the search
    goes on below the threshold, and the success of lowest score is returned: its scores are an attacker's at every
    threshold, those of an attack that stops are at this one only.

    Raises:
        ValueError: an unknown formulation, a negative weight, a threshold that is NaN;
            at the call, scores that are not (N,).

    >>> linear = torch.nn.Linear(2, 2, bias=False)
    >>> _ = linear.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    >>> attack = JointAttack(eps=0.25, score=lambda x: (x[:, 0] - 0.7).abs(), threshold=0.02)
    >>> x_adv = attack(linear, torch.tensor([[0.75, 0.6]]), torch.tensor([0]))
    >>> linear(x_adv).argmax(1).item(), bool((x_adv[0, 0] - 0.7).abs() <= 0.02)
    (1, True)
    """

    norms = ("Linf", "L2", "L1")

    score: Callable[[Tensor], Tensor]
    threshold: float
    formulation: str = "selective"
    weight: float = 1.0
    steps: int = 100
    restarts: int = 1
    random_start: bool = True
    loss: str = "ce"
    eot_samples: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.formulation not in FORMULATIONS:
            raise ValueError(f"unknown formulation {self.formulation!r}; known: {', '.join(FORMULATIONS)}")
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"weight must be a finite number >= 0, got {self.weight}")
        if self.threshold != self.threshold:
            raise ValueError("threshold must be a number, got nan")

    def _view(self, model: Model) -> Model:
        """The classifier and the detector as one model: x -> logits and score (N, C + 1)."""

        def outputs(x: Tensor) -> Tensor:
            logits, score = logits_of(model(x)), self.score(x)
            if score.shape != (len(x),):
                raise ValueError(f"score must return one number for each input, shape ({len(x)},), not {score.shape}")
            for name, part in (("model's logits do", logits), ("score does", score)):
                if x.requires_grad and not part.requires_grad:
                    raise ValueError(f"the {name} not depend on x through differentiable operations")
            dtype = torch.promote_types(logits.dtype, score.dtype)  # a score must not be rounded below the threshold
            return torch.cat([logits.to(dtype), score[:, None].to(dtype)], 1)

        return outputs

    def _problem(
        self, oracle: Oracle, x: Tensor, y: Tensor, ids: Tensor, radius: Tensor, reach: Tensor | None = None
    ) -> Problem:
        return _Guarded(self, oracle, x, y, ids, Ball(x, radius, self.norm, self.bounds, reach), **self._rules)

    def _search(self, problem: Problem, i: Tensor, run: int) -> Search:
        ball = problem.ball
        x = ball.uniform(i, self.seed, problem.ids[i], (run,)) if self.random_start or run else problem.x[i]
        yield from problem.clean_logits(i)
        for step in range(self.steps):
            outputs, slopes = yield problem.joint_gradients(i, x, self.loss, self.eot_samples)
            stays = problem.record(i, x, outputs)
            i, x, outputs, slopes = i[stays], x[stays], outputs[stays], slopes[stays]
            if not len(i):
                return
            direction = self._direction(outputs, problem.clean[i], problem.y[i], *slopes.unbind(1))
            size = annealed(1.0, 0.01, step, self.steps) * (ball.eps[i] / 2)
            x = ball.project(i, x + self._of_size(direction, size))
        problem.record(i, x, (yield problem.logits(i, x)))

    def _of_size(self, direction: Tensor, size: Tensor) -> Tensor:
        """``direction`` (n, ...) of norm ``size`` (n,); for Linf of that root mean square.

        Its signs alone would be a poor step here: where two conditions pull, the way between them is narrow.
        """
        if self.norm == "Linf":
            size = size * max(1, direction[:1].numel()) ** 0.5
        length = perturbation_norm(direction, "L1" if self.norm == "L1" else "L2").clamp(min=1e-300)
        return (direction.double() * column(size.double() / length, direction.double())).to(direction.dtype)

    def _direction(self, outputs: Tensor, clean: Tensor, y: Tensor, up: Tensor, down: Tensor) -> Tensor:
        """Where to step (n, ...), from ``outputs`` (n, C + 1) here and at x and the two slopes (n, ...)."""
        if self.formulation == "score":
            return down
        if self.formulation == "sum":
            return _unit(up) + self.weight * _unit(down)
        logits, score = outputs[:, :-1], outputs[:, -1]
        if self.formulation == "max":
            left = margin(logits, y, self.targeted) / margin(clean[:, :-1], y, self.targeted).abs().clamp(min=1e-12)
            classifier_first = left > (score - self.threshold) / max(abs(self.threshold), 1e-12)
        else:
            classifier_first = ~fooled(logits, y, self.targeted)
        if self.formulation == "orthogonal":
            up, down = _without(up, down), _without(down, up)
        return torch.where(column(classifier_first, up) > 0, up, down)

    def describe(self) -> dict[str, Any]:
        """The attack's name and every hyperparameter, as JSON-able values; of the score, what it is called."""
        settings = {f.name: getattr(self, f.name) for f in fields(self)}
        name = getattr(self.score, "__qualname__", type(self.score).__name__)
        return {"attack": "JointAttack"} | settings | {"score": name}


class _Guarded(LowestMargin):
    """Outputs are logits and a score; solved is what is misclassified and has a score within the threshold."""

    def __init__(self, attack: JointAttack, *args: Any, **rules: Any) -> None:
        self.attack = attack
        super().__init__(*args, **rules)

    def _fooled(self, i: Tensor, outputs: Tensor) -> Tensor:
        passes = outputs[:, -1] <= self.attack.threshold
        return passes if self.attack.formulation == "score" else passes & super()._fooled(i, outputs[:, :-1])

    def _distance(self, i: Tensor, outputs: Tensor) -> Tensor:
        """By the score, -2 to -1 for a success and to 1 for what fools the classifier only; then by the margin."""
        excess = (outputs[:, -1].double() - self.attack.threshold).nan_to_num(float("inf"))
        success = -1 - _squashed(-excess)
        if self.attack.formulation == "score":
            return torch.where(self._fooled(i, outputs), success, _squashed(excess))
        left = _squashed(super()._distance(i, outputs[:, :-1]))
        closest = torch.where(super()._fooled(i, outputs[:, :-1]), _squashed(excess), 1 + left)
        return torch.where(self._fooled(i, outputs), success, closest)

    def _check_clean(self, outputs: Tensor) -> None:
        if not bool(outputs[:, -1].isfinite().all()):
            raise ValueError("the score is NaN or Inf for clean inputs")
        if self.attack.formulation != "score":
            super()._check_clean(outputs[:, :-1])


def _squashed(v: Tensor) -> Tensor:
    """Numbers >= 0 in [0, 1), in their order; Inf is 1."""
    v = v.double().clamp(min=0)
    return torch.where(v.isinf(), 1.0, v / (1 + v))


def _unit(v: Tensor) -> Tensor:
    """``v`` (n, ...) of L2 norm 1, by way of float64: gradients may be tiny; zero stays zero."""
    return (v.double() / column(perturbation_norm(v, "L2").clamp(min=1e-300), v.double())).to(v.dtype)


def _without(v: Tensor, other: Tensor) -> Tensor:
    """``v`` (n, ...) less its part along ``other``."""
    unit = _unit(other)
    return v - column((v * unit).flatten(1).sum(1), v) * unit
