"""Exponential moving average of the trained weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

__all__ = ["EMA", "check_decay"]


def check_decay(ema: float | None) -> None:
    """ValueError unless it is a decay in [0, 1), or None for no average."""
    if ema is not None and not 0 <= ema < 1:
        raise ValueError(f"ema must be a decay in [0, 1), got {ema}")


class EMA:
    """average <- decay * average + (1 - decay) * weights after each step; after the first step it is the weights.

    The rule of ``torch.optim.swa_utils.AveragedModel``, kept as tensors beside the model and not as a deep copy of it:
    a copy doubles buffers, and hooks in it would still point into the original. Buffers are the model's own.
    """

    def __init__(self, weights: Sequence[Tensor], decay: float) -> None:
        self.weights = list(weights)
        self.averages = [w.detach().clone() for w in weights]
        self._blend = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self, first: bool) -> None:
        if first:
            _copy(self.averages, self.weights)
        else:
            self._blend(self.averages, self.weights, None)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model holds the averages inside, its own weights again afterwards, also on an exception."""
        live = [w.detach().clone() for w in self.weights]
        try:
            _copy(self.weights, self.averages)
            yield
        finally:
            _copy(self.weights, live)

    def apply(self) -> None:
        """Give the averages to the model."""
        _copy(self.weights, self.averages)


@torch.no_grad()
def _copy(into: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for target, value in zip(into, values, strict=True):
        target.copy_(value)
