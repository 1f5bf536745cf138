"""The binarization test: does an attack find an adversarial example that is known to be there?

Zimmermann, Brendel, Tramer and Carlini, "Increasing Confidence in Adversarial Robustness Evaluations", 2022, section 4
and algorithm 1. For each input the last layer of the network is replaced by a linear read-out of two classes that tells
points well inside the eps-ball (class 0) from one point on its surface (class 1). That point is an adversarial example
of the new classifier at the input; an attack that fails to find it, or another, cannot be trusted where it fails on the
network itself.

Three choices differ from the paper's reference code. The read-out is the regularised linear discriminant, in closed
form, instead of logistic regression. Where it does not separate the points the input is left out, and counted, which
happens where the features are few. And the point on the surface is one of the ball's extremes where it has any (a
corner for Linf, few coordinates for L1), because a random point of its surface is hardly farther than the inner ones.

What the test cannot see: masking behind the layer that is replaced, such as a saturated output.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from robustgen import counter_rng
from robustgen.attacks import Attack
from robustgen.attacks.ball import Ball, perturbation_norm
from robustgen.checks import check_images, check_positive
from robustgen.evaluation.kept import Keep, anew
from robustgen.evaluation.masking import HOLDS, NOT_RUN, VIOLATED, MaskingTest, paired
from robustgen.evaluation.verifier import verify
from robustgen.layers import logits_call, uncompiled, watching
from robustgen.model import Model, logits_of, naming_inputs, untouched

__all__ = ["Binarization", "binarization_test"]

NAME = "the attack finds examples that are known to be there"
ADVICE = "Strengthen the attack (more steps, another loss, usable gradients) until it passes on the binarized networks."
REQUIRED = 0.95  # of the inputs, as in the paper
TOO_EASY = 0.5  # share of the inputs that random points solve, from which on a success says little
INNER_RADIUS = 0.95  # of eps, as in the paper
CLOSENESS = 0.7  # where the decision is made, from the outermost inner point (0) to the point on the surface (1)
RIDGE = 1.0  # of the mean variance of the features, added to each: with less, read-outs hang on kinks of the network
SPARSE = 4  # coordinates that an extreme point of the L1 ball moves


@dataclass(frozen=True)
class Binarization:
    """What :func:`binarization_test` found.

    Attributes:
        feasible: bool (N,), inputs for which there is such a classifier.
        found: bool (N,), the attack found an adversarial example, and it was verified.
        random: bool (N,), random points found one.
        features: what the read-out reads.
    """

    feasible: Tensor
    found: Tensor
    random: Tensor
    features: str

    def to_test(self) -> MaskingTest:
        """Violated where the attack misses more than one of the feasible inputs and more than 5 %."""
        n = int(self.feasible.sum())
        if not n:
            why = f"no linear read-out of the {self.features} separates the points of the ball"
            return MaskingTest(NAME, NOT_RUN, why, advice=ADVICE)
        found, by_chance = self.found[self.feasible], self.random[self.feasible]
        miss, error = paired(REQUIRED - found.double())
        chance = by_chance.double().mean().item()
        detail = (
            f"{int(found.sum())} of {n} found, random points {int(by_chance.sum())}; {len(self.feasible) - n} inputs "
            f"without a read-out of the {self.features}"
        )
        violated = miss > 0 and int((~found).sum()) > 1
        verdict = VIOLATED if violated else NOT_RUN if chance > TOO_EASY else HOLDS
        if verdict == NOT_RUN:
            detail = f"too easy to tell: {detail}"
        return MaskingTest(NAME, verdict, detail, miss, error, n, ADVICE)


def binarization_test(
    model: Model, x: Tensor, attack: Attack, *, eps: float, points: int = 200, seed: int = 0, keep: Keep = anew
) -> Binarization:
    """Run ``attack`` on a binarized ``model`` at each input by itself; the model is left untouched.

    The read-out takes the place of the last ``nn.Linear`` if its output is the logits, and is put on top of the logits
    otherwise. It costs, for each input, one run of the attack and ``2 * points`` forward passes.

    Args:
        x: float (N, ...) in the attack's bounds. A few dozen inputs are enough.
        attack: untargeted; its norm and bounds are the ball's.
        eps: radius of the ball, also for the attack.
        points: inner points for each read-out, and random points as the baseline.
        seed: of the points.
        keep: by which what is found at each input is kept; see :mod:`robustgen.evaluation.kept`.

    Raises:
        TypeError, ValueError: as the attack; eps or points out of range, or a targeted attack.

    >>> from robustgen.attacks import PGD
    >>> model = nn.Sequential(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3))
    >>> found = binarization_test(model, torch.full((3, 40), 0.5), PGD(steps=20), eps=0.1)
    >>> found.features, found.to_test().verdict
    ('features before 2', 'holds')
    """
    x = check_images(x, attack.bounds).detach()
    if attack.targeted:
        raise ValueError("the binarization test needs an untargeted attack")
    check_positive(eps=eps)
    if points < 2:
        raise ValueError(f"points must be at least 2, got {points}")
    model = uncompiled(model) if isinstance(model, nn.Module) else model  # compiled code runs no hooks
    layer = _last_linear(model, x[:2]) if len(x) else None

    def test(k: int) -> dict[str, Tensor]:
        one = _OneInput(x[k : k + 1], eps, attack, counter_rng.derive_seed(seed, k))
        classifier = one.classifier(model, layer, points)
        if classifier is None:
            return {"outcome": torch.zeros(3, dtype=torch.bool)}
        by_chance = one.verified(classifier, torch.cat([one.inside(points // 2), one.extremes(points // 2)]))
        return {"outcome": torch.tensor([True, one.falls(classifier), by_chance])}

    outcomes = [keep(f"binarization-{k:03d}", ["outcome"], partial(test, k))["outcome"] for k in range(len(x))]
    feasible, found, random = torch.stack(outcomes).T if outcomes else torch.zeros(3, 0, dtype=torch.bool)
    return Binarization(feasible, found, random, "logits" if layer is None else f"features before {layer}")


class _OneInput:
    """The ball around one input (1, ...) and its points, drawn by counter-based numbers."""

    def __init__(self, x: Tensor, eps: float, attack: Attack, seed: int) -> None:
        self.x, self.eps, self.attack, self.seed = x, eps, attack, seed

    def _ball(self, n: int) -> tuple[Ball, Tensor]:
        x = self.x.expand(n, *self.x.shape[1:]).contiguous()
        radius = torch.full((n,), self.eps, dtype=torch.float64, device=x.device)
        return Ball(x, radius, self.attack.norm, self.attack.bounds), torch.arange(n, device=x.device)

    def inside(self, n: int, stream: int = 0) -> Tensor:
        """Uniform in the ball, (n, ...)."""
        ball, i = self._ball(n)
        return ball.uniform(i, self.seed, i, (stream,))

    def extremes(self, n: int, stream: int = 1) -> Tensor:
        """Random corners (Linf), points of the sphere (L2), points of the L1 sphere with few coordinates, (n, ...).

        A coordinate that would leave the bounds goes the other way.
        """
        ball, i = self._ball(n)
        x, norm = ball.x, self.attack.norm
        delta = counter_rng.normal(self.seed, i, tuple(x.shape[1:]), (stream,), torch.float64)
        if norm == "Linf":
            delta = delta.sign()
        if norm == "L1":
            size = delta.flatten(1)
            least = size.abs().topk(min(SPARSE, size.shape[1]), dim=1).values[:, -1:]
            delta = (size.sign() * (size.abs() >= least)).reshape(delta.shape)
        delta = delta * (self.eps / perturbation_norm(delta, norm)).reshape(-1, *[1] * (x.ndim - 1))
        low, high = self.attack.bounds
        out = (x + delta < low) | (x + delta > high)
        return ball.project(i, (x + torch.where(out, -delta, delta)).to(x.dtype))

    def classifier(self, model: Model, layer: str | None, points: int) -> "_Binarized | None":
        """The network with a read-out that has an adversarial example at the input; None where there is none."""
        spread = torch.cat([self.inside(points // 2, 2), self.extremes(points // 2, 4)])
        inner = torch.cat([self.x, self.x + INNER_RADIUS * (spread - self.x)])
        surface = self.extremes(1, 3)
        built = _Binarized(model, layer)
        with torch.no_grad(), untouched(built, self.seed):
            features = torch.cat([built.features(part) for part in torch.cat([inner, surface]).split(256)])
        if not built.fit(features[:-1].double(), features[-1].double()):
            return None
        return built if self.verified(built, surface) and not self.verified(built, self.x) else None

    def falls(self, classifier: "_Binarized") -> bool:
        y = torch.zeros(1, dtype=torch.int64, device=self.x.device)
        return self.verified(classifier, self.attack.run(classifier, self.x, y, eps=self.eps).x_adv)

    def verified(self, classifier: "_Binarized", z: Tensor) -> bool:
        """Whether one of ``z`` (n, ...) is in the ball and of class 1."""
        y = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        norm, bounds = self.attack.norm, self.attack.bounds
        return bool(
            verify(classifier, self.x.expand_as(z), z, y, eps=self.eps, norm=norm, bounds=bounds).accepted.any()
        )


class _Binarized(nn.Module):
    """``model`` up to its ``layer`` (None: all of it) and a linear read-out of two classes."""

    def __init__(self, model: Model, layer: str | None) -> None:
        super().__init__()
        self.model, self.layer = model, layer

    def features(self, z: Tensor) -> Tensor:
        """What goes into the layer, or the logits, (n, D)."""
        if self.layer is None or not isinstance(self.model, nn.Module):
            return logits_of(self.model(z))
        kept: list[Tensor] = []
        handle = self.model.get_submodule(self.layer).register_forward_pre_hook(lambda _, given: kept.append(given[0]))
        try:
            self.model(z)
        finally:
            handle.remove()
        return kept[-1]

    def fit(self, inner: Tensor, surface: Tensor) -> bool:
        """The read-out from features (n, D) of class 0 and one (D,) of class 1; whether it separates them."""
        mean = inner.mean(0)
        spread, gap = (inner - mean) / len(inner) ** 0.5, surface - mean
        ridge = RIDGE * spread.square().sum() / min(spread.shape)
        if not bool(ridge > 0) or not bool(ridge.isfinite()):
            return False
        # (S'S + r I)^-1 gap by the matrix inversion lemma: there may be many more features than points
        small = spread @ spread.T + ridge * torch.eye(len(spread), dtype=spread.dtype, device=spread.device)
        direction = gap - spread.T @ torch.linalg.solve(small, spread @ gap)
        highest = ((inner - mean) @ direction).max()
        reach = gap @ direction - highest
        if not bool(reach > 0):
            return False
        self.mean, self.direction = mean, direction / reach
        self.threshold = highest / reach + CLOSENESS
        return True

    def forward(self, z: Tensor) -> Tensor:
        value = (self.features(z).double() - self.mean) @ self.direction - self.threshold
        return torch.stack([-value, value], 1)


def _last_linear(model: Model, x: Tensor) -> str | None:
    """The name of the ``nn.Linear`` whose output is the logits; None where there is none."""
    if not isinstance(model, nn.Module):
        return None
    linears = {name: module for name, module in model.named_modules() if name and isinstance(module, nn.Linear)}
    with torch.no_grad(), untouched(model), naming_inputs(x), watching(linears) as calls:
        logits = logits_of(model(x))
    found = logits_call(calls, logits)
    return found.name if found is not None and found.given.ndim == 2 else None
