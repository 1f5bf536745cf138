"""Batches: one view on every kind of in-memory data, and the order in which an epoch goes through it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import TensorDataset, default_collate

from robustgen.checks import check_labels
from robustgen.counter_rng import derive_seed
from robustgen.fingerprint import fingerprint
from robustgen.spacing import evenly_spaced

__all__ = ["Batch", "Source", "as_source", "epoch_order"]


class Batch(NamedTuple):
    """What an objective is handed.

    Attributes:
        x: (B, ...), uint8 pixels already scaled to float32 in [0, 1].
        y: int64 labels (B,), or None.
        ids: int64 (B,), the index of each example in the data set.
    """

    x: Tensor
    y: Tensor | None
    ids: Tensor


class Source:
    """Data of a known length, read by index; made by :func:`as_source`."""

    def __init__(self, length: int, read: Callable[[Tensor], tuple[Tensor, Tensor | None]], fixed: bool = True) -> None:
        if length == 0:
            raise ValueError("the data set is empty")
        self._length, self._read, self._fixed = length, read, fixed

    def __len__(self) -> int:
        return self._length

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """x (B, ...) and y (B,) or None of the examples at ``indices`` (B,); uint8 x becomes float32 in [0, 1]."""
        x, y = self._read(indices)
        return (x.to(torch.float32).div_(255) if x.dtype == torch.uint8 else x), y

    def sample(self, n: int) -> tuple[Tensor, Tensor | None]:
        """At most n examples, evenly spaced: a folder sorted by class begins with one class."""
        return self.batch(evenly_spaced(self._length, n))

    def fingerprint(self) -> str | None:
        """Of a sample of the data; None for a map-style Dataset, which may augment at random."""
        if not self._fixed:
            return None
        x, y = self.sample(500)
        return fingerprint({"x": x} if y is None else {"x": x, "y": y})

    def fetch(self, indices: Tensor, device: torch.device) -> Batch:
        """The batch at ``indices`` (B,) on ``device``."""
        x, y = self.batch(indices)
        if x.is_floating_point() and not bool(x.isfinite().all()):
            bad = indices[~x.isfinite().flatten(1).all(1)] if x.ndim > 1 else indices[~x.isfinite()]
            raise ValueError(f"the data hold NaN or Inf, first in example {int(bad[0])}")
        if y is not None:
            check_labels(y, len(x))
        return Batch(x.to(device), None if y is None else y.to(device), indices.to(device))


def as_source(data: Any) -> Source:
    """See ``data`` as a :class:`Source`.

    Args:
        data: a tensor x, a tuple (x,) or (x, y) of tensors, a ``TensorDataset``, an object with ``__len__`` and
            ``batch(indices) -> (x, y)``, or a map-style ``torch.utils.data.Dataset`` (its items are collated).

    Raises:
        TypeError: none of these (a ``DataLoader``: pass its ``.dataset``).
        ValueError: empty, or x and y of different lengths; when it is read, items of different shapes.

    >>> x, y = as_source((torch.tensor([[0], [255]], dtype=torch.uint8), torch.tensor([3, 7]))).batch(torch.tensor([1]))
    >>> x, y
    (tensor([[1.]]), tensor([7]))
    """
    if isinstance(data, Source):
        return data
    if isinstance(data, TensorDataset):
        data = data.tensors
    if isinstance(data, Tensor):
        data = (data,)
    if isinstance(data, (tuple, list)) and len(data) in (1, 2) and isinstance(data[0], Tensor):
        x, y = data[0], data[1] if len(data) == 2 else None
        if y is not None:
            check_labels(y, len(x))
        return Source(len(x), lambda i: (_rows(x, i), None if y is None else _rows(y, i)))
    if hasattr(data, "__len__") and callable(getattr(data, "batch", None)):
        return Source(len(data), data.batch)
    if isinstance(data, (tuple, list)) or not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise TypeError(
            f"cannot train on {type(data).__name__}: pass a tensor x, a tuple (x, y) of tensors, a map-style Dataset "
            "(a DataLoader's .dataset), or an object with __len__ and batch(indices)"
        )
    return Source(len(data), lambda i: _collated(data, i), fixed=False)


def epoch_order(n: int, batch_size: int, seed: int, epoch: int) -> tuple[Tensor, ...]:
    """The batches of an epoch as index tensors: a permutation of range(n), a function of (seed, epoch) alone.

    The fewest batches of at most ``batch_size`` whose sizes differ by at most one, so that no epoch ends in a batch
    of one example (batch normalisation cannot train on it) and none is left out.

    >>> [len(batch) for batch in epoch_order(10, 4, seed=0, epoch=0)]
    [4, 3, 3]
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
    return torch.randperm(n, generator=generator).tensor_split(-(-n // batch_size))


def _rows(tensor: Tensor, indices: Tensor) -> Tensor:
    return tensor.index_select(0, indices.to(tensor.device))


def _collated(dataset: Any, indices: Tensor) -> tuple[Tensor, Tensor | None]:
    items = [dataset[i] for i in indices.tolist()]
    _require_one_shape(items, indices)
    try:
        batch = default_collate(items)
    except (TypeError, RuntimeError):
        batch = None
    if isinstance(batch, Tensor):
        return batch, None
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)):
        raise TypeError("the data set's items must be tensors x or pairs (x, y); PIL images need a ToTensor transform")
    return batch[0], batch[1]


def _require_one_shape(items: list[Any], indices: Tensor) -> None:
    shapes = [_shapes_of(item) for item in items]
    for i, found in zip(indices.tolist(), shapes, strict=True):
        if found != shapes[0]:
            raise ValueError(
                f"the data set's items differ: item {int(indices[0])} has shape {shapes[0]}, item {i} has {found}; "
                "bring them to one shape, by a transform"
            )


def _shapes_of(item: Any) -> str:
    """The shape of an item, or those of its parts."""
    parts = item if isinstance(item, tuple | list) else [item]
    return " and ".join(str(tuple(getattr(part, "shape", ()))) for part in parts)
