"""Adversarial weight perturbation: the gradient is taken where the weights are worst, not where they are.

Wu, Xia and Wang, "Adversarial Weight Perturbation Helps Robust Generalization", 2020: min_w max_v L(w + v) with
||v_l|| <= gamma * ||w_l|| in each layer l, v found by one step v_l = gamma * ||w_l|| * g_l / ||g_l|| (algorithm 1).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from robustgen.checks import plain_arguments
from robustgen.model import kept_buffers
from robustgen.training.batches import Batch
from robustgen.training.distributed import unwrap
from robustgen.training.objective import AdversarialObjective, Objective, describe
from robustgen.turns import seeded

__all__ = ["AWP"]


class AWP:
    """Any objective, minimised at weights moved against it, for ``Trainer``.

    A step costs two forward and backward passes of the objective: one at the weights w, whose gradient says where to
    move, and one at w + v, whose gradient is what the optimizer gets. Adversarial inputs are made once, at w (by an
    :class:`AdversarialObjective`; of any other objective, all is done twice). Both passes draw the same random numbers
    (dropout, noise), so v raises the very loss that is minimised. Moved are the trained parameters of more than one
    dimension, those of fortified layers too; biases and normalisation stay. After the call the weights are bitwise what
    they were, also on an exception.

    Buffers (the statistics of batch normalisation) move once a step, by the pass at w: they are those of the network
    that is kept. Under DistributedDataParallel g is averaged over all processes, so that each moves alike and the run
    equals that of one process. Validation is at w.

    Logged: what the objective logs, at w; ``loss`` is that at w + v, ``unperturbed_loss`` that at w.

    Args:
        objective: ``objective(model, batch, step) -> {"loss": scalar, ...}``.
        gamma: size of v relative to each layer's weights, finite and >= 0; 0.005 for the paper's TRADES, 0.01 for its
            adversarial training.

    Raises:
        ValueError: gamma out of range; at the call, a parameter with a gradient hook (``register_hook``).

    >>> from robustgen.training import ClassifierObjective
    >>> batch = Batch(torch.eye(4), torch.tensor([0, 1, 0, 1]), torch.arange(4))
    >>> found = AWP(ClassifierObjective(), gamma=0.1)(nn.Linear(4, 2), batch, step=0)
    >>> bool(found["loss"] > found["unperturbed_loss"])
    True
    """

    @plain_arguments
    def __init__(self, objective: Objective, *, gamma: float = 0.01) -> None:
        if not 0 <= gamma < float("inf"):
            raise ValueError(f"gamma must be a finite number >= 0, got {gamma}")
        self.objective, self.gamma = objective, gamma

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        if not torch.is_grad_enabled():
            return self.objective(model, batch, step)
        net, evaluate = unwrap(model), self._prepared(model, batch, step)
        weights = [p for p in net.parameters() if p.requires_grad]
        for name, weight in net.named_parameters():
            if weight._backward_hooks:  # when the gradient is found here, and when the trainer asks for it
                raise ValueError(f"AWP: a gradient hook on {name} would act twice")
        with seeded(None):
            found = evaluate(net)
        gradients = _gradients(found["loss"], weights)
        if net is not model:
            gradients = _averaged(gradients, weights, len(batch.ids))
        steps = [self._step(w, g) for w, g in zip(weights, gradients, strict=True)]
        with kept_buffers(net), _moved(weights, steps):
            loss = evaluate(model)["loss"]
            gradients = _gradients(loss, weights)
        logged = {name: torch.as_tensor(value).detach() for name, value in found.items()}
        logged["unperturbed_loss"] = logged["loss"]
        return logged | {"loss": _with_gradients(loss.detach(), weights, gradients)}

    def _prepared(self, model: nn.Module, batch: Batch, step: int) -> Callable[[nn.Module], dict[str, Tensor]]:
        """The objective as a function of the model, its adversarial inputs made beforehand."""
        objective = self.objective
        if isinstance(objective, AdversarialObjective):
            x, y = objective.inputs(model, batch, step)
            return lambda model: objective.losses(model, x, y)
        return lambda model: objective(model, batch, step)

    def _step(self, weight: Tensor, gradient: Tensor | None) -> Tensor | None:
        """v of one layer; None where it does not move."""
        if gradient is None or weight.ndim < 2:
            return None
        size = gradient.norm()
        return gradient * torch.where(size > 0, self.gamma * weight.detach().norm() / size, 0.0)

    def describe(self) -> dict[str, Any]:
        """Every setting, JSON-able."""
        return {"objective": "AWP", "gamma": self.gamma, "of": describe(self.objective)}


def _gradients(loss: Tensor, weights: Sequence[Tensor]) -> list[Tensor | None]:
    """d loss / d weights; None for a weight without influence. As by ``backward``, outside any autocast."""
    with torch.autocast(loss.device.type, enabled=False):
        return list(torch.autograd.grad(loss, weights, allow_unused=True))


def _averaged(gradients: Sequence[Tensor | None], weights: Sequence[Tensor], n: int) -> list[Tensor | None]:
    """The mean gradients over the examples of all processes, of which this one has ``n``."""
    total = weights[0].new_tensor(n)
    dist.all_reduce(total)
    means: list[Tensor | None] = []
    for gradient, weight in zip(gradients, weights, strict=True):
        mean = torch.zeros_like(weight) if gradient is None else gradient * (n / total)
        dist.all_reduce(mean)
        means.append(mean)
    return means


@contextmanager
def _moved(weights: Sequence[Tensor], steps: Sequence[Tensor | None]) -> Iterator[None]:
    """The weights, in place, ``steps`` away; in place, so that it holds however a model or objective reads them."""
    pairs = [(w, v, w.detach().clone()) for w, v in zip(weights, steps, strict=True) if v is not None]
    try:
        with torch.no_grad():
            for weight, v, _ in pairs:
                weight.add_(v)
        torch.clear_autocast_cache()  # it holds casts of the weights
        yield
    finally:
        with torch.no_grad():
            for weight, _, saved in pairs:
                weight.copy_(saved)
        torch.clear_autocast_cache()


def _with_gradients(value: Tensor, weights: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Tensor:
    """``value``, with these derivatives by the weights."""
    for weight, gradient in zip(weights, gradients, strict=True):
        if gradient is not None:  # the difference is exactly zero
            value = value + ((weight - weight.detach()) * gradient).sum().to(value.dtype)
    return value
