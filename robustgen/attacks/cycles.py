"""Recognises a search that goes round in a circle.

Steps of a fixed length along the sign of the gradient take few different values, and on a robust sample they soon come
back to a point where they were. What follows is known then: the circle again.
"""

import torch
from torch import Tensor

from robustgen import counter_rng

__all__ = ["Visited"]


class Visited:
    """Which points each of N rows has been at, by a 64-bit hash of their bits.

    Two points of a search of a thousand steps share a hash by accident with probability below 1e-13; a search would
    end early then.

    >>> seen, row = Visited(torch.zeros(1)), torch.tensor([0])
    >>> [seen.again(row, torch.tensor([[value]])).item() for value in (0.5, 0.25, 0.5)]
    [False, False, True]
    """

    def __init__(self, rows: Tensor) -> None:
        self.hashes = torch.empty(len(rows), 0, dtype=torch.int64, device=rows.device)
        self.keys = torch.empty(0, dtype=torch.int64, device=rows.device)

    def again(self, i: Tensor, x: Tensor) -> Tensor:
        """Whether the rows ``i`` (n,) have been at ``x`` (n, ...) before, bool (n,); takes x down."""
        bits = (x.contiguous() + 0.0).flatten(1)  # 0.0 and -0.0 are one point
        words = bits.view(torch.int32 if bits.dtype == torch.float32 else torch.int64).long()
        if len(self.keys) != words.shape[1]:
            one = torch.zeros(1, dtype=torch.int64, device=x.device)
            self.keys = counter_rng.integers(0, one, (words.shape[1],), 1 << 62)[0] * 2 + 1
        found = (words * self.keys).sum(1)  # wraps
        known = (self.hashes[i] == found[:, None]).any(1)
        new = torch.zeros(len(self.hashes), 1, dtype=torch.int64, device=x.device)
        new[i, 0] = found
        self.hashes = torch.cat([self.hashes, new], 1)
        return known
