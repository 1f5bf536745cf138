"""What stands before a classifier to take a perturbation away: functions one after the other, images in, images out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from robustgen.checks import check_integers
from robustgen.generative import GenerativeModel

__all__ = ["Chain", "Purifier", "chain_length", "gradient_of"]


@runtime_checkable
class Chain(Protocol):
    """What :func:`robustgen.purify` takes: diffusion models as they are, the others behind a :class:`Purifier`.

    ``chain(depth, steps)`` returns the functions; each draws from torch's global random numbers, for each row its own,
    and the first takes images as ``check`` returns them. ``depth`` is how far they go, ``steps`` in how many steps.
    """

    def check(self, x: Tensor) -> Tensor:
        """x (N, C, H, W), if these are images that it purifies; TypeError or ValueError otherwise."""

    def chain(self, depth: Any, steps: int | None = None) -> Sequence[Callable[[Any], Any]]:
        """The functions."""


class Purifier(nn.Module, ABC):
    """A chain around a generative ``model``; a subclass is one paper.

    Attributes:
        exact: gradients through the chain are those of what it does. False: it has none that an attack could use, and
            those of the identity stand in for them (see :func:`robustgen.attacks.bpda`).
    """

    exact: bool = True

    def __init__(self, model: GenerativeModel) -> None:
        super().__init__()
        if not isinstance(model, GenerativeModel):
            raise TypeError(f"{type(self).__name__} is made of a generative model, got {type(model).__name__}")
        self.model = model

    def check(self, x: Tensor) -> Tensor:
        """x, in the dtype of the model; raises as :meth:`GenerativeModel.check` does."""
        return self.model.check(x)

    @abstractmethod
    def chain(self, depth: Any, steps: int | None = None) -> Sequence[Callable[[Any], Any]]:
        """See :class:`Chain`."""


def gradient_of(value: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The gradient of the sum of ``value``, (N, ...) -> (N,), there; differentiable where gradients are on.

    >>> x = torch.tensor([[3.0]], requires_grad=True)
    >>> slope = gradient_of(lambda x: x.pow(3).sum(1), x)
    >>> slope.item(), torch.autograd.grad(slope.sum(), x)[0].item()
    (27.0, 18.0)
    """
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        at = at if at.requires_grad else at.detach().requires_grad_()
        (found,) = torch.autograd.grad(value(at).sum(), at, create_graph=graph)
    return found


def chain_length(depth: int, steps: int | None) -> int:
    """``steps``, where there are at most ``depth``; all of them where it is None.

    Raises:
        TypeError, ValueError: no whole numbers from 1 on, or more steps.

    >>> chain_length(10, None), chain_length(10, 4)
    (10, 4)
    """
    steps = depth if steps is None else steps
    check_integers(depth=depth, steps=steps)
    if steps > depth:
        raise ValueError(f"a chain of depth={depth} has at most as many steps, not {steps}")
    return steps
