"""The 1,797 handwritten digits that scikit-learn carries: real images, 8x8, no download."""

import numpy as np
import torch

from robustgen.data.array import ArrayDataset
from robustgen.data.splits import split as split_dataset

__all__ = ["digits"]

_TEST_FRACTION = 0.2


def digits(split: str = "train", seed: int = 0) -> ArrayDataset:
    """The test half of the UCI optical digits (Alpaydin and Kaynak, 1998), uint8 (N, 1, 8, 8), labels 0..9.

    Grey values 0..16 become round(v * 255 / 16). scikit-learn has no official split: ``seed`` draws a stratified one.

    Args:
        split: "train" (1,438), "test" (359) or "all" (1,797, in scikit-learn's order, whatever the seed).

    Raises:
        ValueError: another split.

    >>> digits("test")
    ArrayDataset('digits/test', 359 x (1, 8, 8) uint8, 10 classes)
    """
    from sklearn.datasets import load_digits

    if split not in ("train", "test", "all"):
        raise ValueError(f"digits: unknown split {split!r}; known: train, test, all")
    bunch = load_digits()
    everything = ArrayDataset(
        x=torch.from_numpy(np.rint(bunch.images * 255 / 16).astype(np.uint8))[:, None],  # (1797, 1, 8, 8)
        y=torch.from_numpy(bunch.target.astype(np.int64)),
        classes=tuple(map(str, range(10))),
        name=f"digits/{split}",
    )
    if split == "all":
        return everything
    return split_dataset(everything, (1 - _TEST_FRACTION, _TEST_FRACTION), seed)[split == "test"]
