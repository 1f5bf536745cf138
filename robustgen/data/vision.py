"""MNIST, Fashion-MNIST, CIFAR-10 and SVHN, in the layout of ``torchvision.datasets`` and read by torchvision's code.

torchvision is wrapped closely, because it says "Dataset not found or corrupted" for whatever is wrong.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustgen.checks import nearest
from robustgen.data.array import ArrayDataset
from robustgen.turns import warnings_set_to

__all__ = ["load_vision"]

_DIGITS = tuple(map(str, range(10)))
_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def load_vision(name: str, root: str | Path, split: str = "test", download: bool = False) -> ArrayDataset:
    """One of torchvision's data sets as uint8 (N, C, H, W), ids being the index in its split.

    CIFAR-10 is distributed as Python pickles: torchvision unpickles them, after it has checked their MD5 sums.

    Args:
        name: "mnist", "fashion-mnist", "cifar10" or "svhn".
        root: the folder that holds ``MNIST/raw``, ``FashionMNIST/raw``, ``cifar-10-batches-py`` or ``*_32x32.mat``.
        split: "train" or "test".
        download: fetch what is missing into root; without it the network is never used.

    Raises:
        FileNotFoundError: the data set is not in root; says what was looked for.
        ValueError: an unknown name or split, or a truncated or corrupt file, which it names.
        OSError: the download failed.
    """
    if name not in VISION:
        raise ValueError(f"unknown data set {name!r}; {nearest(name, VISION)}")
    if split not in ("train", "test"):
        raise ValueError(f"{name}: unknown split {split!r}; known: train, test")
    kind, read, classes = VISION[name]
    try:
        x, y = read(kind, Path(root), split)
    except FileNotFoundError:
        if not download:
            raise
        _download(name, kind, Path(root), split)
        x, y = read(kind, Path(root), split)
    return ArrayDataset(x, y, classes, f"{name}/{split}")


def _open(kind: str, root: Path, split: str, download: bool = False) -> Any:
    from torchvision import datasets

    part: dict[str, Any] = {"split": split} if kind == "SVHN" else {"train": split == "train"}
    with warnings_set_to("ignore"):  # NumPy deprecations about how the old CIFAR-10 pickles spell a dtype
        return getattr(datasets, kind)(str(root), **part, download=download)


def _download(name: str, kind: str, root: Path, split: str) -> None:
    try:
        _open(kind, root, split, download=True)
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        raise OSError(f"{name}: the download into {root} failed ({' '.join(str(error).split())})") from None


def _must_exist(path: Path, kind: str, root: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{kind} not found in {root}: no {path}; put it there, or pass --download to fetch it")
    return path


def _mnist(kind: str, root: Path, split: str) -> tuple[Tensor, Tensor]:
    from torchvision.datasets.mnist import read_image_file, read_label_file

    stem = root / kind / "raw" / ("train" if split == "train" else "t10k")
    parts = ("images-idx3-ubyte", "labels-idx1-ubyte")
    files = [_must_exist(stem.with_name(f"{stem.name}-{part}"), kind, root) for part in parts]
    x, y = _idx(files[0], read_image_file), _idx(files[1], read_label_file)
    if len(x) != len(y):
        raise ValueError(f"{files[1]}: {len(y)} labels for {len(x)} images")
    return x[:, None], y


def _idx(path: Path, read: Callable[[str], Tensor]) -> Tensor:
    try:
        return read(str(path))
    except (AssertionError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        raise ValueError(f"{path}: truncated, or not an IDX file (a download is unpacked with gunzip)") from None


def _cifar10(kind: str, root: Path, split: str) -> tuple[Tensor, Tensor]:
    folder = _must_exist(root / "cifar-10-batches-py", kind, root)
    data = _checked(folder, kind, root, split)
    return torch.from_numpy(data.data.transpose(0, 3, 1, 2).copy()), torch.tensor(data.targets)


def _svhn(kind: str, root: Path, split: str) -> tuple[Tensor, Tensor]:
    file = _must_exist(root / f"{split}_32x32.mat", kind, root)
    data = _checked(file, kind, root, split)
    return torch.from_numpy(np.ascontiguousarray(data.data)), torch.from_numpy(data.labels.reshape(-1))


def _checked(path: Path, kind: str, root: Path, split: str) -> Any:
    try:
        return _open(kind, root, split)
    except RuntimeError:
        raise ValueError(f"{path}: incomplete or corrupt (by MD5 sum); delete it and fetch it again") from None


VISION: dict[str, tuple[str, Callable[[str, Path, str], tuple[Tensor, Tensor]], tuple[str, ...]]] = {
    "mnist": ("MNIST", _mnist, _DIGITS),
    "fashion-mnist": ("FashionMNIST", _mnist, _CLOTHES),
    "cifar10": ("CIFAR10", _cifar10, _OBJECTS),
    "svhn": ("SVHN", _svhn, _DIGITS),
}
