"""One way in: a data set by name or by path."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from robustgen.checks import nearest
from robustgen.data.array import ArrayDataset
from robustgen.data.digits import digits
from robustgen.data.folder import Background, class_names, folder_parts, load_folder
from robustgen.data.npz import load_npz
from robustgen.data.vision import VISION, load_vision
from robustgen.spacing import evenly_spaced

__all__ = ["canonical_name", "load"]

_NAMES = {name.replace("-", ""): name for name in ("digits", *VISION)}  # torchvision writes FashionMNIST


def load(
    source: str | Path,
    *,
    split: str = "test",
    root: str | Path | None = None,
    download: bool = False,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
    n: int | None = None,
    background: Background | None = None,
    layout: str | None = None,
    ignore: int | None = None,
) -> ArrayDataset:
    """Load a data set.

    Args:
        source: a name (digits, mnist, fashion-mnist, cifar10, svhn; torchvision's spellings too, in any case), else the
            path of an ``.npz`` file or of an image folder. ``./digits``, or a ``Path``, is always a path.
        split: "train" or "test" ("all" for digits). A folder that holds a folder ``train`` or ``test``, in any case, is
            read from the one asked for, and the classes of both together number the labels of each; any other path is a
            single set, and split is then ignored.
        root: where the named sets other than digits are kept, see :func:`load_vision`.
        download: fetch a missing named set into root.
        channels, size, background: for image folders, see :func:`load_folder`.
        layout, ignore: for ``.npz`` files, see :func:`load_npz`.
        n: at most n examples: the first of a named set, evenly spaced ones of a path (which may be sorted by class).

    Raises:
        FileNotFoundError: the set is not in root.
        ValueError: neither a known name nor a path, a name that needs a root without one, or data that cannot be used.

    >>> load("digits", n=100)
    ArrayDataset('digits/test', 100 x (1, 8, 8) uint8, 10 classes)
    >>> load("minst")
    Traceback (most recent call last):
    ValueError: unknown data set 'minst', and no such path exists; did you mean 'mnist'?
    """
    if n is not None and n < 0:
        raise ValueError(f"n must not be negative, got {n}")
    if source == "":  # as a path this would be the current folder
        raise ValueError("the name or path of the data set is empty")
    name = canonical_name(source)
    if name is None:
        path = Path(source).expanduser()
        if path.is_dir():
            dataset = _from_folder(path, split, channels=channels, size=size, n=n, background=background)
        else:
            dataset = _from_file(path, layout, ignore, n)
    elif name == "digits":
        dataset = digits(split)
    elif root is None:
        raise ValueError(f"{name}: pass --data-root, the folder that holds it in torchvision's layout")
    else:
        dataset = load_vision(name, root, split, download)
    return dataset if n is None else dataset.take(n)


def canonical_name(source: str | Path) -> str | None:
    """The name of a named data set, however it is spelled; None for a path."""
    return _NAMES.get(source.lower().replace("-", "").replace("_", "")) if isinstance(source, str) else None


def _from_folder(path: Path, split: str, **options: Any) -> ArrayDataset:
    parts = folder_parts(path)
    if not parts:
        return load_folder(path, **options)
    if split not in parts:
        there = " and ".join(repr(part.name) for part in parts.values())
        raise ValueError(f"{path}: no folder {split!r} in it, only {there}")
    if beside := [p.name for p in sorted(path.iterdir()) if p not in parts.values()]:
        warnings.warn(f"{path}: not read, beside {' and '.join(parts)}: {', '.join(beside[:5])}", stacklevel=3)
    if parts[split].is_symlink():
        warnings.warn(f"{parts[split]}: a link, followed to {parts[split].resolve()}", stacklevel=3)
    dataset = load_folder(parts[split], classes=class_names(parts.values()), **options)
    return replace(dataset, name=f"{path.resolve().name}/{split}")


def _from_file(path: Path, layout: str | None, ignore: int | None, n: int | None) -> ArrayDataset:
    if not path.is_file():
        hint = nearest(str(path), _NAMES.values())
        raise ValueError(f"unknown data set {str(path)!r}, and no such path exists; {hint}")
    if path.suffix != ".npz":
        raise ValueError(f"{path}: a data set is an .npz file or an image folder")
    dataset = load_npz(path, layout=layout, ignore=ignore)
    if n is None or n >= len(dataset):
        return dataset
    return dataset.subset(evenly_spaced(len(dataset), n))  # it may be sorted by class
