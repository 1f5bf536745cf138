"""What a foreign attack may see of a model: its logits and their gradient in x, and nothing that it could change."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from robustgen.model import Model, logits_of
from robustgen.turns import RandomStream

__all__ = ["Guest", "foreign_random", "naming_library"]


class Guest(nn.Module):
    """A stand-in for ``model`` with a mode, hooks and one idle parameter of its own.

    A library puts it in train mode, moves, freezes or zeroes it, or calls ``backward()``: none of that reaches the
    model, whose weights get no gradient either, also where the model is a function that the caller cannot freeze.

    Args:
        model: x -> logits.
        x: (N, ...) any inputs; on their device is the idle parameter, by which libraries choose where to compute.
        decode: from the library's inputs to the model's, differentiable.

    ``forwards`` and ``backwards`` count rows, whichever samples they belong to; ``errors`` are those of the model.
    """

    def __init__(self, model: Model, x: Tensor, decode: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self._hidden = (model,)  # a module in a tuple is no submodule
        self._decode = decode
        self.idle = nn.Parameter(x.new_zeros(()))
        self.forwards = self.backwards = 0
        self.errors: list[Exception] = []
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self._decode(x)
        if torch.is_grad_enabled() and x.requires_grad:
            logits: Tensor = _Isolated.apply(x, self)
            return logits
        with torch.no_grad():
            return self.query(x.detach())

    def query(self, x: Tensor) -> Tensor:
        """The model's own answer, counted."""
        self.forwards += len(x)
        with self.failing():
            logits = logits_of(self._hidden[0](x))
            if len(logits) != len(x):
                raise ValueError(f"the model returned {len(logits)} rows of logits for {len(x)} inputs")
        return logits

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Keep what the model raises inside."""
        try:
            yield
        except Exception as error:
            self.errors.append(error)
            raise


class _Isolated(torch.autograd.Function):
    """Logits whose backward pass stops at x: the graph inside is differentiated in x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, guest: Guest) -> Tensor:
        with torch.enable_grad():
            ctx.leaf = x.detach().requires_grad_(True)
            ctx.logits = guest.query(ctx.leaf)
        ctx.guest = guest
        return ctx.logits.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        ctx.guest.backwards += len(ctx.leaf)
        gradient = None
        if ctx.logits.requires_grad:  # kept for the next class: DeepFool asks for the gradient of each
            (gradient,) = torch.autograd.grad(ctx.logits, ctx.leaf, upstream, retain_graph=True, allow_unused=True)
        with ctx.guest.failing():
            if gradient is None:
                raise ValueError("the model's logits do not depend on x through differentiable operations")
        return gradient, None


@contextmanager
def naming_library(who: str, guest: Guest) -> Iterator[None]:
    """Say of exceptions of a library's own that they are its; those of the ``guest``'s model pass as they are.

    A TypeError or ValueError stays one, anything else is a RuntimeError.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        origin: BaseException | None = error
        while origin is not None and origin not in guest.errors:
            origin = origin.__cause__ or origin.__context__
        if origin is not None:
            raise
        kind = next((k for k in (TypeError, ValueError) if isinstance(error, k)), RuntimeError)
        raise kind(f"{who} failed: {type(error).__name__}: {error}") from error


@contextmanager
def foreign_random(seed: int) -> Iterator[None]:
    """Seed the global random numbers of torch, NumPy and Python, and restore them afterwards; threads take turns."""
    with RandomStream(seed).drawing():
        of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002 - the one that libraries use
        try:
            np.random.seed(seed % 2**32)  # noqa: NPY002
            random.seed(seed)
            yield
        finally:
            np.random.set_state(of_numpy)  # noqa: NPY002
            random.setstate(of_python)
