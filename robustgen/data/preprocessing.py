"""What was done to pixels, as a fingerprint: populations that went different ways are told apart by the way."""

import torch
from torch import Tensor

from robustgen.data.array import ArrayDataset

__all__ = ["check_same_preprocessing", "preprocessing_fingerprint"]


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
