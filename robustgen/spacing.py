"""Which rows stand for a long list: evenly spaced ones, since what is sorted by class begins with one class."""

import torch
from torch import Tensor

__all__ = ["evenly_spaced"]


def evenly_spaced(length: int, n: int) -> Tensor:
    """At most n indices of ``range(length)``, int64, the first and (of two or more) the last among them.

    >>> evenly_spaced(10, 4)
    tensor([0, 3, 6, 9])
    """
    n = min(n, length)
    if length <= 2**24:  # float32 holds each of them; kept runs know their data by what it gives
        return torch.linspace(0, length - 1, n).round().long()
    return torch.arange(n) * (length - 1) // max(1, n - 1)
