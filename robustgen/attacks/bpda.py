"""Backward pass differentiable approximation: gradients through a module that has none.

Athalye, Carlini and Wagner, "Obfuscated Gradients Give a False Sense of Security: Circumventing Defenses to Adversarial
Examples", 2018, section 4.1: g(x) forwards, the gradient of a differentiable stand-in s(x), close to g(x), backwards
(4.1.1: s(x) = x).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["bpda"]


def bpda(module: nn.Module, backward: Callable[[Tensor], Tensor] | None = None) -> nn.Module:
    """``module`` with the gradient of ``backward`` at the same input; its own output is unchanged.

    For what attacks cannot differentiate (a quantizer, a JPEG, a step function):
    ``model = nn.Sequential(bpda(quantize), network)``.

    Args:
        module: x -> tensor of floats.
        backward: a differentiable x -> tensor of the same shape, evaluated only where gradients are on; None means the
            identity. Its parameters get gradients, those of ``module`` do not.

    Returns:
        An ``nn.Module`` that holds ``module`` and, if it is a module too, ``backward``: parameters, state dict, train
        and eval reach both.

    Raises:
        TypeError: module is not an nn.Module, backward is not callable; at the call, outputs that are not tensors of
            floats.
        ValueError: at a call with gradients on, outputs of different shapes.

    >>> class Round(nn.Module):
    ...     def forward(self, x):
    ...         return x.round()
    >>> x = torch.tensor([0.2, 0.7], requires_grad=True)
    >>> y = bpda(Round(), backward=torch.sin)(x)
    >>> y.detach(), torch.equal(torch.autograd.grad(y.sum(), x)[0], x.cos())
    (tensor([0., 1.]), True)
    """
    return _ApproximatedBackward(module, backward)


class _ApproximatedBackward(nn.Module):
    def __init__(self, module: nn.Module, backward: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise TypeError(f"bpda needs an nn.Module, got {type(module).__name__}")
        if backward is not None and not callable(backward):
            raise TypeError(f"backward must be callable, got {type(backward).__name__}")
        self.module, self.backward = module, backward
        self.training = module.training  # each submodule keeps its own flag

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return self.module(x)
        stand_in = x if self.backward is None else self.backward(x)
        with torch.no_grad():
            output = self.module(x.detach())
        for name, y in (("module", output), ("backward", stand_in)):
            if not isinstance(y, Tensor) or not y.is_floating_point():
                what = y.dtype if isinstance(y, Tensor) else type(y).__name__
                raise TypeError(f"{name} must return a tensor of floats, got {what}")
        if output.shape != stand_in.shape:
            which = "backward (the identity)" if self.backward is None else "backward"
            raise ValueError(
                f"module returns shape {tuple(output.shape)} and {which} {tuple(stand_in.shape)}; "
                "give a backward that returns the module's shape"
            )
        return _Substitute.apply(output, stand_in)


class _Substitute(torch.autograd.Function):
    """The first argument, with the gradient flowing to the second."""

    generate_vmap_rule = True

    @staticmethod
    def forward(output: Tensor, stand_in: Tensor) -> Tensor:
        return output.clone()  # not a view: an in-place activation may follow

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient
