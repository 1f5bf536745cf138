"""A labelled set of images (or vectors) held as one tensor: a batch is one ``index_select``.

What was done to pixels is a fingerprint: populations that went different ways are told apart by the way.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from robustgen.checks import ROUNDING, check_ids, check_images, check_labels
from robustgen.inputs import evenly_spaced

__all__ = ["ArrayDataset", "check_same_preprocessing", "preprocessing_fingerprint", "require_nonempty"]

_Set = TypeVar("_Set", bound=Any)


@dataclass(frozen=True, eq=False, repr=False)
class ArrayDataset(Dataset[Any]):
    """Pixels, labels and where each example came from; nothing is copied, and the tensors are not to be modified.

    A ``torch.utils.data.Dataset``, of which a ``DataLoader`` makes batches. ``data[i]`` is one example, (x, y) or x
    without labels; ``images()`` and ``labels()`` are all of them; ``first``, ``take`` and ``subset`` give smaller sets.

    Args:
        x: uint8 images (N, C, H, W), or float32 (N, ...) in [0, 1]. Values at most 1e-6 outside, as rounding leaves
            them where pixels went through a normalisation and back, are set to the bound.
        y: int64 labels (N,) in [0, len(classes)), or None.
        classes: the name of each label: strings, none empty, none twice.
        name: what reports and errors call this set.
        ids: int64 (N,), the index of each example in the original set, kept by every subset; default ``arange(N)``.
        sources: the file of each example, for sets read from files.
        preprocessing: what was done to the pixels of the original files, step by step, in words.

    Raises:
        TypeError: x is neither uint8 nor float32, y or ids are not int64, or a class name is not a string.
        ValueError: a shape does not fit, a label is outside [0, len(classes)), a class name is empty or occurs twice,
            or a float is NaN or outside [0, 1].

    >>> pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(3, 1, 1, 1)
    >>> data = ArrayDataset(pixels, torch.tensor([0, 0, 1]), classes=("dark", "light"), name="grey")
    >>> data
    ArrayDataset('grey', 3 x (1, 1, 1) uint8, 2 classes)
    >>> x, y = data.images(), data.labels()
    >>> x.flatten(), y
    (tensor([0.0000, 0.2000, 1.0000]), tensor([0, 0, 1]))
    >>> x, y = data[1]
    >>> x.shape, y
    (torch.Size([1, 1, 1]), tensor(0))
    """

    x: Tensor
    y: Tensor | None = None
    classes: tuple[str, ...] = ()
    name: str = "data"
    ids: Tensor = None
    sources: tuple[str, ...] | None = None
    preprocessing: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.x, Tensor) and self.x.dtype == torch.uint8:
            if self.x.ndim != 4:
                raise ValueError(f"{self.name}: uint8 x must be images (N, C, H, W), got shape {tuple(self.x.shape)}")
        elif check_images(self.x, (0.0, 1.0), f"{self.name}: x", ROUNDING).dtype != torch.float32:
            raise TypeError(f"{self.name}: x must be uint8 or float32, got {self.x.dtype}")
        else:
            object.__setattr__(self, "x", _clamped(self.x))
        _check_classes(self.classes, self.name)
        if self.y is not None:
            if not self.n_classes and len(self):
                raise ValueError(f"{self.name}: labels without classes: pass classes, the name of each label")
            check_labels(self.y, len(self), self.n_classes, f"{self.name}: y")
        if self.sources is not None and len(self.sources) != len(self):
            raise ValueError(f"{self.name}: {len(self.sources)} sources for {len(self)} examples")
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "preprocessing", tuple(self.preprocessing))
        object.__setattr__(self, "ids", check_ids(self.ids, len(self), self.x.device))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Tensor | tuple[Tensor, Tensor]:
        """Example ``index`` as :meth:`batch` gives it: x (...) and y, or x alone where there are no labels.

        Raises:
            TypeError: the index is no integer, such as a slice: see :meth:`subset`.
            IndexError: outside [-N, N).
        """
        i = range(len(self))[operator.index(index)]
        x, y = self.batch(torch.tensor([i]))
        return x[0] if y is None else (x[0], y[0])

    def __repr__(self) -> str:
        labels = "no labels" if self.y is None else f"{self.n_classes} classes"
        kind = str(self.x.dtype).removeprefix("torch.")
        return f"ArrayDataset({self.name!r}, {len(self)} x {tuple(self.x.shape[1:])} {kind}, {labels})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example."""
        return tuple(self.x.shape[1:])

    @property
    def n_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """The examples at ``indices`` (B,): x float32 (B, ...) in [0, 1], fresh memory, and y int64 (B,) or None.

        Raises:
            TypeError: indices are not an int64 tensor.
            IndexError: an index outside [0, N).
        """
        indices = self._check(indices)
        y = None if self.y is None else self.y.index_select(0, indices)
        return _unit(self.x.index_select(0, indices)), y

    def images(self) -> Tensor:
        """All of x as a new float32 tensor (N, ...) in [0, 1]."""
        return _unit(self.x.clone())

    def labels(self) -> Tensor:
        """All of y, int64 (N,); ValueError where the set has no labels."""
        if self.y is None:
            raise ValueError(f"{self.name}: the data set has no labels")
        return self.y

    def subset(self, indices: Tensor) -> "ArrayDataset":
        """The examples at ``indices`` (B,), in that order, with their ids; raises as :meth:`batch` does."""
        indices = self._check(indices)
        return replace(
            self,
            x=self.x.index_select(0, indices),
            y=None if self.y is None else self.y.index_select(0, indices),
            ids=self.ids.index_select(0, indices),
            sources=None if self.sources is None else tuple(self.sources[i] for i in indices.tolist()),
        )

    def take(self, n: int) -> "ArrayDataset":
        """n examples, evenly spaced, so that a set sorted by class keeps its shares; all of them where there are fewer.

        Raises:
            ValueError: a negative n.

        >>> ArrayDataset(torch.rand(10, 2), name="noise").take(4).ids
        tensor([0, 3, 6, 9])
        """
        return self.subset(evenly_spaced(len(self), self._at_most(n)))

    def first(self, n: int) -> "ArrayDataset":
        """The first n examples, for sets in random order; otherwise as :meth:`take`."""
        return self.subset(torch.arange(self._at_most(n)))

    def _at_most(self, n: int) -> int:
        if n < 0:
            raise ValueError(f"n must not be negative, got {n}")
        return min(n, len(self))

    def _check(self, indices: Tensor) -> Tensor:
        if not isinstance(indices, Tensor) or indices.dtype != torch.int64 or indices.ndim != 1:
            raise TypeError("indices must be an int64 tensor (B,)")
        return indices.to(self.x.device)


def require_nonempty(dataset: _Set) -> _Set:
    """Return ``dataset``, of any kind; ValueError if it holds no example.

    >>> require_nonempty(ArrayDataset(torch.zeros(0, 2), name="mine"))
    Traceback (most recent call last):
    ValueError: mine: the data set is empty
    """
    if len(dataset) == 0:
        raise ValueError(f"{dataset.name}: the data set is empty")
    return dataset


def _check_classes(classes: Sequence[str], name: str) -> None:
    if isinstance(classes, str):
        raise TypeError(f"{name}: classes must be a sequence of names, got the string {classes!r}")
    for one in classes:
        if not isinstance(one, str):
            raise TypeError(f"{name}: class names must be strings, got {one!r}")
        if not one.strip():
            raise ValueError(f"{name}: the class name {one!r} is empty")
    if len(set(classes)) != len(classes):
        twice = next(one for one in classes if list(classes).count(one) > 1)
        raise ValueError(f"{name}: the class name {twice!r} occurs twice")


def _clamped(x: Tensor) -> Tensor:
    """x in [0, 1], itself where it is."""
    if not x.numel():
        return x
    low, high = x.detach().aminmax()
    return x if low >= 0 and high <= 1 else x.clamp(0, 1)


def _unit(x: Tensor) -> Tensor:
    return x.to(torch.float32).div_(255) if x.dtype == torch.uint8 else x


def preprocessing_fingerprint(dataset: ArrayDataset) -> str:
    """Shape, the values that pixels take, and the recorded steps, in words; equal for images made alike.

    The values are measured, not believed: "binary", "8-bit" (multiples of 1 / 255) or "continuous".

    >>> from robustgen.data import digits
    >>> preprocessing_fingerprint(digits())
    '(1, 8, 8), 8-bit, as read'
    >>> preprocessing_fingerprint(ArrayDataset(torch.ones(2, 3), preprocessing=("centred",)))
    '(3,), binary, centred'
    """
    steps = ", ".join(dataset.preprocessing) or "as read"
    return f"{tuple(dataset.x.shape[1:])}, {_values(dataset.x)}, {steps}"


def check_same_preprocessing(reference: ArrayDataset, *others: ArrayDataset) -> str:
    """The :func:`preprocessing_fingerprint` that all have.

    Args:
        reference, *others: the data sets that are compared.

    Raises:
        ValueError: one has another; says which and what both are.

    >>> check_same_preprocessing(ArrayDataset(torch.ones(2, 3), name="a"), ArrayDataset(torch.rand(2, 3), name="b"))
    Traceback (most recent call last):
    ValueError: b is preprocessed otherwise than a: (3,), continuous, as read; not (3,), binary, as read
    """
    expected = preprocessing_fingerprint(reference)
    for other in others:
        found = preprocessing_fingerprint(other)
        if found != expected:
            raise ValueError(f"{other.name} is preprocessed otherwise than {reference.name}: {found}; not {expected}")
    return expected


def _values(x: Tensor) -> str:
    binary, on_grid = True, True
    for part in x.split(4096):  # of large sets a part at a time
        scaled = part if part.dtype == torch.uint8 else part * 255
        binary &= bool(((scaled == 0) | (scaled == 255)).all())
        on_grid &= part.dtype == torch.uint8 or bool(((scaled - scaled.round()).abs() < 1e-3).all())
    return "binary" if binary else "8-bit" if on_grid else "continuous"
