"""Six indicators that an attack failed, rather than that the network withstood it.

Pintor, Demetrio, Sotgiu, Demontis, Carlini, Biggio and Roli, "Indicators of Attack Failure: Debugging and Improving
Optimization of Adversarial Examples", 2022, section 3: unavailable gradients, unstable predictions, silent success,
incomplete optimization, transfer failure and unconstrained attack failure. (A preprint of 2021 had the angle of the
loss curve's break point for the fourth and the rising stretches of the loss for the second.)

The paper judges one input; here an indicator is a share of the inputs, or their mean, and it is raised where that
exceeds its threshold by more than two standard errors. Inputs that the network gets wrong without attack do not count.
They are read off a trace: the loss and the gradient at every point that the attack asked a network about.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustgen import counter_rng
from robustgen.attacks.losses import LOSSES, fooled
from robustgen.checks import check_bounds, check_images, check_labels
from robustgen.evaluation.kept import Keep, anew
from robustgen.evaluation.masking import NOT_RUN, VIOLATED, MaskingTest, above
from robustgen.evaluation.verifier import verify
from robustgen.model import Model, logits_of, untouched

__all__ = ["AttackCall", "Loss", "Trace", "indicators_of_failure", "loss_function", "trace_attack"]

AttackCall = Callable[[Model, Tensor, Tensor], Tensor]  # (model, x, y) -> x_adv; every Attack is one
Loss = str | Callable[[Tensor, Tensor], Tensor]  # a name of robustgen.attacks' losses, or (logits, y) -> (N,)


@dataclass(frozen=True)
class Trace:
    """The path of an attack on one input.

    A path holds the points at which a gradient was taken, in their order, and the last point that was asked about.
    Where a gradient is the mean of several draws (expectation over transformation), each draw is a point.

    Attributes:
        losses: float64 (T,), what the attack ascends.
        gradient_norms: float64 (G,), L2 norm of the gradient in the input at every point where one was taken.
        fooling: (K, ...), the points, on the path or not, at which the network erred; whether they are in the ball is
            not asked here.
        x_adv: (...), what the attack returned.
    """

    losses: Tensor
    gradient_norms: Tensor
    fooling: Tensor
    x_adv: Tensor


_POINTS = ("fooling", "x_adv")  # on the device of the inputs


def loss_function(loss: Loss) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss (logits (N, C), y (N,)) -> (N,) of that name, or the function itself; ValueError for another name."""
    if not isinstance(loss, str):
        return loss
    if loss not in LOSSES:
        raise ValueError(f"unknown loss {loss!r}; known: {', '.join(LOSSES)}")
    named = LOSSES[loss]
    return lambda logits, y: named(logits, y, False)


def trace_attack(
    attack: AttackCall, model: Model, x: Tensor, y: Tensor, *, loss: Loss = "ce", keep: Keep = anew
) -> list[Trace]:
    """Run an untargeted attack on each input by itself and record what it asked ``model``, which is left untouched.

    Args:
        attack: (model, x, y) -> x_adv. It is handed a module around ``model`` that passes everything through.
        x: (N, ...); y: int64 (N,).
        loss: what the attack ascends, as a function of the logits; recorded only.
        keep: by which each trace is kept.

    >>> from robustgen.attacks import PGD
    >>> linear = nn.Linear(3, 2)
    >>> x = torch.full((1, 3), 0.5); y = linear(x).argmax(1)
    >>> (trace,) = trace_attack(PGD(eps=1e-4, steps=5, step_size=1e-5), linear, x, y)
    >>> len(trace.losses), len(trace.gradient_norms), len(trace.fooling)
    (6, 5, 0)
    """
    value = loss_function(loss)

    def trace(k: int) -> dict[str, Tensor]:
        recorder = _Recorder(model, y[k : k + 1], value)
        x_adv = attack(recorder, x[k : k + 1], y[k : k + 1])
        return vars(recorder.record.trace(x_adv[0].detach()))

    with untouched(model):
        found = [keep(f"trace-{k:03d}", Trace.__dataclass_fields__, partial(trace, k)) for k in range(len(x))]
    return [Trace(**{name: t.to(x.device) if name in _POINTS else t for name, t in one.items()}) for one in found]


class _Step:
    """One point that the attack asked about."""

    def __init__(self, loss: Tensor, with_gradient: bool) -> None:
        self.loss, self.with_gradient, self.norm = loss, with_gradient, torch.zeros_like(loss)


class _Record:
    """What was asked, by whomever: where an attack searches on a copy of its model, the copy writes in here too."""

    def __init__(self) -> None:
        self.steps: list[_Step] = []
        self.fooling: list[Tensor] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Record":
        return self

    def trace(self, x_adv: Tensor) -> Trace:
        path = [s for s in self.steps if s.with_gradient]
        norms = torch.stack([s.norm for s in path]) if path else torch.empty(0, dtype=torch.float64)
        if self.steps and not self.steps[-1].with_gradient:
            path.append(self.steps[-1])
        return Trace(
            torch.stack([s.loss for s in path]) if path else torch.empty(0, dtype=torch.float64),
            norms,
            torch.stack(self.fooling) if self.fooling else x_adv.new_empty(0, *x_adv.shape),
            x_adv,
        )


class _Recorder(nn.Module):
    """``model`` with a memory; every row it is asked about belongs to one input of class ``y`` (1,)."""

    def __init__(self, model: Model, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.y, self.loss, self.record = model, y, loss, _Record()

    def forward(self, z: Tensor) -> Any:
        output = self.model(z)
        logits = logits_of(output).detach()
        y = self.y.expand(len(z))
        followed = torch.is_grad_enabled() and z.requires_grad
        losses = self.loss(logits, y).double().cpu()
        self.record.fooling += z.detach()[fooled(logits, y)].unbind(0)
        steps = [_Step(loss, followed) for loss in losses]
        self.record.steps += steps
        if followed:
            z.register_hook(lambda gradient: _note(steps, gradient))
        return output


def _note(steps: list[_Step], gradient: Tensor) -> None:
    """The largest of the gradients taken at a point; several, where the attack differentiates several classes."""
    for step, norm in zip(steps, gradient.detach().double().flatten(1).norm(dim=1).cpu(), strict=True):
        step.norm = torch.maximum(step.norm, norm)


NEIGHBOURS = 100  # draws of the second indicator, and their spread, as in the paper's experiments
SPREAD = 8 / 255  # of the width of the bounds
UNSTABLE = 0.1
LAST_STEPS, UNFINISHED = 10, 0.05  # the fourth's; the paper's own code has these
CANDIDATE_VOTES = 25


class _Indicator(NamedTuple):
    name: str
    advice: str


GRADIENTS = _Indicator(
    "the attack's gradients are available",
    "Attack a differentiable approximation (bpda) or a loss that does not saturate, and add a black-box attack.",
)
STABLE = _Indicator(
    "predictions are stable around the inputs",
    "Average gradients over random draws (eot_samples) or smooth the network's response, and add a black-box attack.",
)
SILENT = _Indicator(
    "the attack returns what it finds",
    "Return the best point of the path, not the last one.",
)
COMPLETE = _Indicator(
    "the attack has converged",
    "Take more steps, or another step size.",
)
TRANSFER = _Indicator(
    "what fools the attacked model fools the network",
    "Attack the network itself, or a surrogate that follows it more closely.",
)
UNBOUNDED = _Indicator(
    "the attack succeeds without a bound",
    "Change the loss, the step size or the gradient until an unbounded attack succeeds; until then no number counts.",
)


def indicators_of_failure(
    model: Model,
    x: Tensor,
    y: Tensor,
    attack: AttackCall,
    *,
    eps: float,
    norm: str = "Linf",
    bounds: tuple[float, float] = (0.0, 1.0),
    loss: Loss = "ce",
    unbounded: AttackCall | None = None,
    surrogate: Model | None = None,
    seed: int = 0,
    keep: Keep = anew,
) -> list[MaskingTest]:
    """The six indicators of ``attack`` on ``model``, each as what must hold, with its numbers and what to do.

    With L the loss that the attack ascends and x_0, x_1, ..., x_T its path (:func:`trace_attack`), an input raises

    1. unavailable gradients: grad L(x_0) = 0 or is not finite; all inputs do where logits are not differentiable in x;
    2. unstable predictions: V > 0.1, V = min(1, mean over s of |L(x + d_s) - L(x)| / |L(x)|) over 100 draws of d_s,
       uniform in a cube of width 8/255 of the bounds (less, where the ball is smaller); |L(x)| = 0 counts as 1;
    3. silent success: what the attack returned does not fool, but a point it asked about is in the ball and does;
    4. incomplete optimization: the attack failed and the best loss so far rose over its last 10 points by more than
       0.05 of the range of the loss;
    5. transfer failure: what it returned fools ``surrogate`` and not ``model``;
    6. unconstrained attack failure: ``unbounded`` failed.

    It costs one run of the attack on each input by itself, one of ``unbounded`` on all, and 101 forward passes.

    Args:
        x: float (N, ...) in ``bounds``; y: int64 (N,). A few dozen inputs are enough.
        attack: an attack, or any (model, x, y) -> x_adv, untargeted.
        eps, norm, bounds: the threat model, for the verdicts.
        loss: what the attack ascends: "ce", "margin", "dlr", or a function (logits (N, C), y (N,)) -> (N,).
        unbounded: the same attack with an eps that spans the input space; without it the sixth is not run.
        surrogate: the model that the attack is shown instead of ``model``, such as a differentiable approximation of
            it; without it the fifth is not run.
        seed: of the draws of the second.
        keep: by which the attack's run on each input is kept; see :mod:`robustgen.evaluation.kept`.

    Raises:
        TypeError, ValueError: as the attack; an unknown loss.

    >>> from robustgen.attacks import PGD
    >>> linear = torch.nn.Linear(8, 3)
    >>> x = 0.3 + 0.4 * torch.rand(10, 8); y = linear(x).argmax(1)
    >>> found = indicators_of_failure(linear, x, y, PGD(eps=0.2), eps=0.2)
    >>> len(found), found[0].name, found[0].verdict
    (6, "the attack's gradients are available", 'holds')
    """
    bounds = check_bounds(bounds)
    x = check_images(x, bounds).detach()
    y = check_labels(y, len(x)).to(x.device)
    value = loss_function(loss)
    shown = model if surrogate is None else surrogate
    right = ~verify(model, x, x, y, eps=0.0, norm=norm, bounds=bounds).accepted
    x, y = x[right], y[right]
    names = (GRADIENTS, STABLE, SILENT, COMPLETE, TRANSFER, UNBOUNDED)
    if not len(x):
        return [_not_run(i, "no input is classified correctly without attack") for i in names]
    stable = _share(
        STABLE, _instability(shown, x, y, value, bounds, eps, norm, seed), "mean change of the loss", UNSTABLE
    )
    if not _differentiable(shown, x[:4]):
        detail = "the logits do not depend on x through differentiable operations"
        broken = MaskingTest(GRADIENTS.name, VIOLATED, detail, 1.0, 0.0, len(x), GRADIENTS.advice)
        return [broken, stable, *(_not_run(i, "the attack cannot run without gradients") for i in names[2:])]

    traces = trace_attack(attack, shown, x, y, loss=loss, keep=keep)
    x_adv = torch.stack([t.x_adv for t in traces])
    # Whether an attack optimises well is not a question of the last bit of its projection: verify() asks that one.
    near = eps + 1e-6 * (bounds[1] - bounds[0]) * x[0].numel() ** {"L2": 0.5, "L1": 1.0}.get(norm, 0.0)
    failed = ~verify(model, x, x_adv, y, eps=near, norm=norm, bounds=bounds).accepted
    tests = [_gradients(traces), stable]
    silent = failed.clone()
    for k in failed.nonzero().squeeze(1).tolist():
        silent[k] = _holds_a_success(traces[k].fooling, model, x[k], y[k], near, norm, bounds)
    tests.append(_share(SILENT, silent, "adversarial points that were found and not returned"))
    tests.append(_completeness(traces, failed))
    if surrogate is None:
        tests.append(_not_run(TRANSFER, "the attack is shown the network itself"))
    else:
        on_surrogate = verify(surrogate, x, x_adv, y, eps=near, norm=norm, bounds=bounds).accepted
        tests.append(_share(TRANSFER, on_surrogate & failed, "adversarial to the attacked model alone"))
    if unbounded is None:
        tests.append(_not_run(UNBOUNDED, "no unbounded attack was given"))
    else:
        far = verify(model, x, unbounded(shown, x, y), y, eps=float("inf"), norm=norm, bounds=bounds).accepted
        tests.append(_share(UNBOUNDED, ~far, "inputs that stand without a bound"))
    return tests


def _holds_a_success(
    points: Tensor, model: Model, x: Tensor, y: Tensor, eps: float, norm: str, bounds: tuple[float, float]
) -> bool:
    """Whether one of ``points`` (K, ...) is in the ball around ``x`` (...) and fools ``model``.

    A stochastic model is fooled where the point that wins most votes wins a second vote: of many, one is lucky.
    """
    if not len(points):
        return False
    rules: dict[str, Any] = {"eps": eps, "norm": norm, "bounds": bounds, "votes": CANDIDATE_VOTES}
    first = verify(model, x.expand_as(points), points, y.expand(len(points)), **rules)
    k = int(first.votes.nan_to_num(-1.0).argmax())
    again = verify(model, x[None], points[k : k + 1], y[None], seed=1, **rules)
    return bool(first.accepted[k] & again.accepted[0])


def _not_run(indicator: _Indicator, why: str) -> MaskingTest:
    return MaskingTest(indicator.name, NOT_RUN, why, advice=indicator.advice)


def _share(indicator: _Indicator, values: Tensor, what: str, threshold: float = 0.0) -> MaskingTest:
    return above(indicator.name, values, what, threshold, indicator.advice)


def _differentiable(model: Model, x: Tensor) -> bool:
    with torch.enable_grad(), untouched(model):
        leaf = x.clone().requires_grad_(True)
        logits = logits_of(model(leaf))
        return logits.requires_grad and torch.autograd.grad(logits.sum(), leaf, allow_unused=True)[0] is not None


def _instability(
    model: Model,
    x: Tensor,
    y: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    bounds: tuple[float, float],
    eps: float,
    norm: str,
    seed: int,
) -> Tensor:
    """V of the second indicator, float64 (N,)."""
    elements = max(1, x[:1].numel())
    reach = {"Linf": 2 * eps, "L2": eps * (12 / elements) ** 0.5, "L1": 4 * eps / elements}.get(norm, float("inf"))
    width = min(SPREAD * (bounds[1] - bounds[0]), reach)
    ids = torch.arange(len(x), device=x.device)
    change = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    with torch.no_grad(), untouched(model, seed):
        here = loss(logits_of(model(x)), y).double()
        for draw in range(NEIGHBOURS):
            noise = counter_rng.uniform(seed, ids, tuple(x.shape[1:]), (draw,), x.dtype) - 0.5
            there = loss(logits_of(model((x + width * noise).clamp(*bounds))), y).double()
            change += (there - here).abs() / NEIGHBOURS
    relative = change / torch.where(here == 0, 1.0, here.abs())
    return torch.where(relative.isfinite(), relative, 1.0).clamp(max=1)


def _gradients(traces: Sequence[Trace]) -> MaskingTest:
    first = [t.gradient_norms[0] for t in traces if len(t.gradient_norms)]
    if not first:
        return _not_run(GRADIENTS, "the attack takes no gradients")
    norms = torch.stack(first)
    return _share(GRADIENTS, ~((norms > 0) & norms.isfinite()), "inputs at which the first gradient is zero or NaN")


def _completeness(traces: Sequence[Trace], failed: Tensor) -> MaskingTest:
    if not any(len(t.gradient_norms) for t in traces):
        return _not_run(COMPLETE, "the attack takes no gradients")
    rising = [_still_rises(t.losses) for t in traces]
    unfinished = torch.tensor(rising, device=failed.device) & failed
    return _share(COMPLETE, unfinished, f"failed attacks whose loss still rises in the last {LAST_STEPS} points")


def _still_rises(losses: Tensor) -> bool:
    finite = losses[losses.isfinite()]
    if len(finite) < 2:
        return False
    best, span = finite.cummax(0).values, finite.max() - finite.min()
    return bool(best[-1] - best[-min(LAST_STEPS, len(best))] > UNFINISHED * span)
