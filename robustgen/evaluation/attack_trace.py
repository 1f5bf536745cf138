"""What an attack did on the way: the loss and the gradient at every point it asked a network about."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from robustgen.attacks.losses import LOSSES, fooled
from robustgen.evaluation.kept import Keep, anew
from robustgen.model import Model, logits_of, untouched

__all__ = ["AttackCall", "Loss", "Trace", "loss_function", "trace_attack"]

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
