"""Disjoint parts of a data set: by fraction, by held-out class, and the check that they are disjoint."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from numbers import Integral
from typing import Any, TypeVar

import torch
from torch import Tensor

from robustgen.checks import nearest
from robustgen.counter_rng import integers
from robustgen.data.array import ArrayDataset
from robustgen.data.tokens import TokenDataset

__all__ = ["check_disjoint", "drop_shared", "heldout_classes", "split"]

_Set = TypeVar("_Set", ArrayDataset, TokenDataset)

_CUT, _ORDER = 1, 2  # random streams: which part an example falls in, and where in the part


def split(dataset: _Set, fractions: Sequence[float], seed: int, stratified: bool = True) -> tuple[_Set, ...]:
    """Cut a data set at random into disjoint parts, each in random order: any n of one are a random sample.

    The cuts fall at round(N * (f_1 + ... + f_i)): fractions that sum to 1 leave nothing out, and a part of a whole
    number of examples has exactly that number. What is drawn depends on (seed, ids), not on the order of the examples.

    Args:
        dataset: images or tokens.
        fractions: of each part, positive, summing to at most 1.
        seed: of the draw.
        stratified: keep the class proportions in each part, to within rounding (labels are then needed).

    Raises:
        ValueError: bad fractions, or ``stratified`` without labels.

    >>> data = ArrayDataset(torch.rand(10, 2), torch.arange(10) % 2, ("even", "odd"))
    >>> train, test = split(data, (0.6, 0.4), seed=0)
    >>> len(train), train.y.bincount()
    (6, tensor([3, 3]))
    """
    if not fractions or not all(f > 0 for f in fractions) or math.fsum(fractions) > 1 + 1e-9:
        raise ValueError(f"fractions must be positive and sum to at most 1, got {tuple(fractions)}")
    if stratified and dataset.y is None:
        raise ValueError(f"{dataset.name}: a stratified split needs labels; pass stratified=False")
    order = _shuffled(dataset.ids, seed, _CUT)
    if stratified and dataset.y is not None:
        order = order[_interleaved(dataset.y[order]).argsort(stable=True)]
    cuts = [round(math.fsum(fractions[:i]) * len(dataset)) for i in range(len(fractions) + 1)]
    parts = [order[a:b] for a, b in pairwise(cuts)]
    return tuple(dataset.subset(part[_shuffled(dataset.ids[part], seed, _ORDER)]) for part in parts)


def _shuffled(ids: Tensor, seed: int, stream: int) -> Tensor:
    return integers(seed, ids, (), 2**62, (stream,)).argsort(stable=True)


def _interleaved(y: Tensor) -> Tensor:
    """Keys (N,) that spread each class evenly over [0, 1]: once sorted by them, every stretch is stratified."""
    keys = torch.empty(len(y), dtype=torch.float64, device=y.device)
    for label in y.unique():
        members = (y == label).nonzero().squeeze(1)
        keys[members] = (torch.arange(len(members), dtype=torch.float64, device=y.device) + 0.5) / len(members)
    return keys


def heldout_classes(dataset: ArrayDataset, classes: Sequence[int | str]) -> tuple[ArrayDataset, ArrayDataset]:
    """Take whole classes out of a data set, to stand for the unknown.

    Args:
        dataset: with labels.
        classes: labels or class names.

    Returns:
        ``(rest, heldout)``. The labels of ``rest`` are renumbered 0..C-k-1 in the old order (``rest.classes`` names
        them), so that a classifier can be trained on it; ``heldout`` keeps the original labels and classes.

    Raises:
        ValueError: no labels, an unknown class, or no class held out or none left.

    >>> data = ArrayDataset(torch.rand(3, 2), torch.arange(3), ("cat", "dog", "eel"))
    >>> rest, heldout = heldout_classes(data, ["dog"])
    >>> rest.classes, rest.y, heldout.y
    (('cat', 'eel'), tensor([0, 1]), tensor([1]))
    """
    if dataset.y is None:
        raise ValueError(f"{dataset.name}: holding classes out needs labels")
    out = {_label(dataset, c) for c in classes}
    if not 0 < len(out) < dataset.n_classes:
        raise ValueError(f"{dataset.name}: hold out at least one of the {dataset.n_classes} classes, and not all")
    kept = [label for label in range(dataset.n_classes) if label not in out]
    renumbered = torch.full((dataset.n_classes,), -1, device=dataset.y.device)
    renumbered[kept] = torch.arange(len(kept), device=dataset.y.device)
    y = renumbered[dataset.y]  # -1 where the class is held out
    inside = dataset.subset((y >= 0).nonzero().squeeze(1))
    rest = replace(inside, y=y[y >= 0], classes=tuple(dataset.classes[k] for k in kept))
    return rest, dataset.subset((y < 0).nonzero().squeeze(1))


def _label(dataset: ArrayDataset, which: int | str) -> int:
    if isinstance(which, str):
        if which not in dataset.classes:
            raise ValueError(f"{dataset.name}: unknown class {which!r}; {nearest(which, dataset.classes)}")
        return dataset.classes.index(which)
    if isinstance(which, bool) or not isinstance(which, Integral):
        raise TypeError(f"a class is given by its label, an int, or its name, a str; got {which!r}")
    if not 0 <= which < dataset.n_classes:
        raise ValueError(f"{dataset.name}: class {which} is outside [0, {dataset.n_classes})")
    return int(which)


def check_disjoint(*datasets: ArrayDataset | TokenDataset) -> None:
    """Refuse data sets that share an example: the same pixel values (or tokens), whatever the ids, labels and dtype.

    :func:`drop_shared` takes what is shared out of one of them.

    Args:
        *datasets: any number of them.

    Raises:
        ValueError: says how many examples of which set are also in which other one, and the first indices.

    >>> a, b = torch.zeros(2, 3), torch.tensor([[1.0, 1, 1], [0, 0, 0]])
    >>> check_disjoint(ArrayDataset(a, name="a"), ArrayDataset(b, name="b"))
    Traceback (most recent call last):
    ValueError: 2 of the 2 examples of a are also in b, first at indices 0, 1 of a: leave them out (Python: drop_shared)
    """
    digests = [_digests(d) for d in datasets]
    for (a, of_a), (b, of_b) in combinations(zip(datasets, digests, strict=True), 2):
        known = set(of_b)
        shared = [i for i, digest in enumerate(of_a) if digest in known]
        if shared:
            first = ", ".join(map(str, shared[:5]))
            raise ValueError(
                f"{len(shared)} of the {len(a)} examples of {a.name} are also in {b.name}, "
                f"first at indices {first} of {a.name}: leave them out (Python: drop_shared)"
            )


def drop_shared(dataset: ArrayDataset, *others: ArrayDataset) -> ArrayDataset:
    """``dataset`` without the examples that one of ``others`` holds too, and each of its own only once.

    For the training side: what is dropped from the test side changes what is measured.

    >>> a, b = torch.tensor([[0.0], [1.0], [1.0], [2 / 3]]), torch.tensor([[0.0]])
    >>> drop_shared(ArrayDataset(a), ArrayDataset(b)).ids
    tensor([1, 3])
    """
    seen = {digest for other in others for digest in _digests(other)}
    kept = []
    for i, digest in enumerate(_digests(dataset)):
        if digest not in seen:
            seen.add(digest)
            kept.append(i)
    return dataset.subset(torch.tensor(kept, dtype=torch.int64))


def _digests(dataset: ArrayDataset | TokenDataset) -> list[bytes]:
    """A 128-bit hash of each example."""
    return [
        hashlib.blake2b(row, digest_size=16).digest()
        for part in torch.arange(len(dataset)).split(4096)
        for row in _rows(dataset, part)
    ]


def _rows(dataset: ArrayDataset | TokenDataset, indices: Tensor) -> Any:
    """The tokens of each text, or the float32 values of each image, so that uint8 and float sets can be compared."""
    if isinstance(dataset, TokenDataset):
        return dataset.texts(indices)
    return (dataset.batch(indices)[0].flatten(1) + 0.0).cpu().numpy()  # -0.0 and 0.0 are the same value
