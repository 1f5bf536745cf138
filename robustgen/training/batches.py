"""Batches: one view on every kind of in-memory data, and the order in which an epoch goes through it."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from robustgen.checks import check_labels
from robustgen.counter_rng import derive_seed
from robustgen.fingerprint import fingerprint
from robustgen.inputs import Inputs, are_inputs, count, each, evenly_spaced, named, parted, rows

__all__ = ["Batch", "Source", "as_source", "epoch_order"]


class Batch(NamedTuple):
    """What an objective is handed.

    Attributes:
        x: (B, ...), uint8 pixels already scaled to float32 in [0, 1]; or a dict of the model's keyword arguments.
        y: int64 labels (B,), or None.
        ids: int64 (B,), the index of each example in the data set.
    """

    x: Any  # Inputs; most objectives take a tensor alone
    y: Tensor | None
    ids: Tensor


class Source:
    """Data of a known length, read by index; made by :func:`as_source`."""

    def __init__(self, length: int, read: Callable[[Tensor], tuple[Inputs, Tensor | None]], fixed: bool = True) -> None:
        if length == 0:
            raise ValueError("the data set is empty")
        self._length, self._read, self._fixed = length, read, fixed

    def __len__(self) -> int:
        return self._length

    def batch(self, indices: Tensor) -> tuple[Inputs, Tensor | None]:
        """x (B, ...) and y (B,) or None of the examples at ``indices`` (B,); uint8 x becomes float32 in [0, 1]."""
        x, y = self._read(indices)
        if isinstance(x, Tensor) and x.dtype == torch.uint8:
            x = x.to(torch.float32).div_(255)
        return x, y

    def sample(self, n: int) -> tuple[Inputs, Tensor | None]:
        """At most n examples, evenly spaced: a folder sorted by class begins with one class."""
        return self.batch(evenly_spaced(self._length, n))

    def fingerprint(self) -> str | None:
        """Of a sample of the data; None for a map-style Dataset, which may augment at random."""
        if not self._fixed:
            return None
        x, y = self.sample(500)
        tensors = {f"x.{name}" if name else "x": t for name, t in named(x).items()}
        return fingerprint(tensors if y is None else tensors | {"y": y})

    def fetch(self, indices: Tensor, device: torch.device) -> Batch:
        """The batch at ``indices`` (B,) on ``device``."""
        x, y = self.batch(indices)
        for t in named(x).values():
            if t.is_floating_point() and not bool(t.isfinite().all()):
                bad = indices[~t.isfinite().flatten(1).all(1)] if t.ndim > 1 else indices[~t.isfinite()]
                raise ValueError(f"the data hold NaN or Inf, first in example {int(bad[0])}")
        if y is not None:
            check_labels(y, count(x))
        return Batch(each(x, lambda t: t.to(device)), None if y is None else y.to(device), indices.to(device))


def as_source(data: Any) -> Source:
    """See ``data`` as a :class:`Source`.

    Args:
        data: inputs, a tuple (x,) or (x, y) of inputs and labels, a ``TensorDataset``, an object with ``__len__`` and
            ``batch(indices) -> (x, y)``, a map-style ``torch.utils.data.Dataset`` (its items are collated), or a
            ``DataLoader``. Inputs are a tensor, a NumPy array, or a dict of these, which are the model's keyword
            arguments; "labels" or "label" in such a dict are y.

            Integers of NumPy, other than uint8, become int64; floats stay as they are. A DataLoader stands for its data
            set, in the order of that, put together by its ``collate_fn``: shuffling, batch size, workers and
            ``drop_last`` are not heeded, so that scores line up with the data set.

    Raises:
        TypeError: none of these.
        ValueError: empty, or x and y of different lengths; a DataLoader that draws examples in a way of its own; when
            it is read, items of different shapes.

    >>> x, y = as_source((torch.tensor([[0], [255]], dtype=torch.uint8), torch.tensor([3, 7]))).batch(torch.tensor([1]))
    >>> x, y
    (tensor([[1.]]), tensor([7]))
    >>> tokens = {"input_ids": torch.tensor([[5, 6], [7, 0]]), "attention_mask": torch.tensor([[1, 1], [1, 0]])}
    >>> as_source(tokens | {"labels": torch.tensor([0, 1])}).batch(torch.tensor([1]))
    ({'input_ids': tensor([[7, 0]]), 'attention_mask': tensor([[1, 0]])}, tensor([1]))
    """
    if isinstance(data, Source):
        return data
    if isinstance(data, DataLoader):
        return _of_loader(data)
    if isinstance(data, TensorDataset):
        data = data.tensors
    if are_inputs(data):
        data = (data,)
    if isinstance(data, (tuple, list)) and len(data) in (1, 2) and are_inputs(data[0]):
        x, y = parted(data[0], data[1] if len(data) == 2 else None)
        if y is not None:
            check_labels(y, count(x))
        return Source(count(x), lambda i: (rows(x, i), None if y is None else rows(y, i)))
    if hasattr(data, "__len__") and _reads_by_index(data):
        return Source(len(data), data.batch)
    if isinstance(data, (tuple, list)) or not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise TypeError(
            f"cannot read {type(data).__name__} as data: pass a tensor x, a tuple (x, y) of tensors, a dict of tensors "
            "by the names of the model's arguments, a map-style Dataset, a DataLoader, or an object with __len__ and "
            "batch(indices)"
        )
    return Source(len(data), lambda i: _collated(data, i, default_collate), fixed=False)


def epoch_order(n: int, batch_size: int, seed: int, epoch: int) -> tuple[Tensor, ...]:
    """The batches of an epoch as index tensors: a permutation of range(n), a function of (seed, epoch) alone.

    The fewest batches of at most ``batch_size`` whose sizes differ by at most one, so that no epoch ends in a batch
    of one example (batch normalisation cannot train on it) and none is left out.

    >>> [len(batch) for batch in epoch_order(10, 4, seed=0, epoch=0)]
    [4, 3, 3]
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
    return torch.randperm(n, generator=generator).tensor_split(-(-n // batch_size))


def _reads_by_index(data: object) -> bool:
    """Whether ``data.batch`` takes indices; that of a ``datasets.Dataset`` takes a batch size."""
    batch = getattr(data, "batch", None)
    return callable(batch) and "batch_size" not in inspect.signature(batch).parameters


def _of_loader(loader: DataLoader[Any]) -> Source:
    """The examples that a DataLoader goes through."""
    data: Any = loader.dataset
    if isinstance(data, IterableDataset) or loader.batch_sampler is None:
        raise TypeError("the DataLoader's examples have no index: it must make the batches of a map-style Dataset")
    how: Any = loader.batch_sampler
    how = how.sampler if type(how) is BatchSampler else how
    shuffled = isinstance(how, RandomSampler) and not how.replacement and how.num_samples == len(data)
    if not shuffled and not isinstance(how, SequentialSampler):
        raise ValueError(
            f"the DataLoader picks its examples by a {type(how).__name__}: pass one that goes through all of its data "
            "set, which may be a torch.utils.data.Subset"
        )
    if loader.collate_fn is default_collate and not isinstance(data, tuple | list):
        return as_source(data)
    return Source(len(data), lambda i: _collated(data, i, loader.collate_fn), fixed=False)


def _collated(dataset: Any, indices: Tensor, collate: Callable[[list[Any]], Any]) -> tuple[Inputs, Tensor | None]:
    items = [dataset[i] for i in indices.tolist()]
    if collate is default_collate:
        _require_one_shape(items, indices)
    try:
        batch = collate(items)
    except (TypeError, RuntimeError):
        if collate is not default_collate:
            raise
        batch = None
    if are_inputs(batch):
        batch = (batch,)
    fits = isinstance(batch, (tuple, list)) and len(batch) in (1, 2) and all(map(are_inputs, batch))
    if not fits or (len(batch) == 2 and isinstance(batch[1], Mapping)):
        raise TypeError(
            "the data set's items must be tensors x or pairs (x, y), x a tensor or a dict of tensors by the names of "
            "the model's arguments; PIL images need a ToTensor transform"
        )
    return parted(*batch)


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
    parts = item.values() if isinstance(item, Mapping) else item if isinstance(item, tuple | list) else [item]
    return " and ".join(str(tuple(getattr(part, "shape", ()))) for part in parts)
