"""One way in: a data set by name or by path."""

import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from robustgen.checks import nearest
from robustgen.data.array import ArrayDataset
from robustgen.data.digits import digits
from robustgen.data.folder import class_names, folder_images, folder_parts, load_folder, part_of_folder
from robustgen.data.image_files import ImageFiles, Remarks
from robustgen.data.image_reader import Background, ImageReader, image_suffixes
from robustgen.data.npz import load_npz
from robustgen.data.table import Table, is_table
from robustgen.data.tokens import holds_tokens
from robustgen.data.vision import VISION, load_vision

__all__ = ["canonical_name", "image_files", "load", "names_images", "path_of"]

_NAMES = {name.replace("-", ""): name for name in ("digits", *VISION)}  # torchvision writes FashionMNIST


def load(
    source: str | Path,
    *,
    split: str = "test",
    root: str | Path | None = None,
    download: bool = False,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
    fit: str | None = None,
    n: int | None = None,
    background: Background | None = None,
    layout: str | None = None,
    ignore: int | None = None,
    skip: Callable[[ValueError], None] | None = None,
) -> ArrayDataset:
    """Load a data set.

    Args:
        source: a name (digits, mnist, fashion-mnist, cifar10, svhn; torchvision's spellings too, in any case), else the
            path of an ``.npz`` file, of a table (``.csv``, ``.parquet``, ``.npy``, see :class:`Table`), of an image
            folder, of an image, or of a list of images: a ``.txt`` file with one path a line, seen from its own folder
            (``@list`` where it ends otherwise). ``./digits``, or a ``Path``, is always a path.
        split: "train" or "test" ("all" for digits). A folder that holds a folder ``train`` or ``test``, in any case, is
            read from the one asked for, and the classes of both together number the labels of each; any other path is a
            single set, and split is then ignored.
        root: where the named sets other than digits are kept, see :func:`load_vision`.
        download: fetch a missing named set into root.
        channels, size, fit, background: of images in files, see :class:`ImageReader`.
        layout, ignore: for ``.npz`` files, see :func:`load_npz`; layout for ``.npy`` too.
        skip: called with the error of each image file that cannot be read, which is then left out; None raises it.
        n: at most n examples: the first of a named set, whose classes are mixed; evenly spaced ones of a path.

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
        path = path_of(source)
        if path.is_dir():
            options: dict[str, Any] = {"channels": channels, "size": size, "fit": fit, "background": background}
            dataset = _from_folder(path, split, n=n, skip=skip, **options)
        elif (files := image_files(source, split, ImageReader(channels, size, fit, background))) is not None:
            dataset = _from_images(files, n, skip)
        else:
            dataset = _from_file(path, layout, ignore, n)
    elif name == "digits":
        dataset = digits(split)
    elif root is None:
        raise ValueError(f"{name}: pass --data-root, the folder that holds it in torchvision's layout")
    else:
        dataset = load_vision(name, root, split, download)
    return dataset if n is None else dataset.first(n)


def canonical_name(source: str | Path) -> str | None:
    """The name of a named data set, however it is spelled; None for a path."""
    return _NAMES.get(source.lower().replace("-", "").replace("_", "")) if isinstance(source, str) else None


def path_of(source: str | Path) -> Path:
    """The path that is meant; ``@`` before it says that it is a list."""
    return Path(source.removeprefix("@") if isinstance(source, str) else source).expanduser()


def names_images(source: str | Path) -> bool:
    """Whether these are images in files: a folder, a list or a single one."""
    path = path_of(source)
    if canonical_name(source) is not None:
        return False
    return path.is_dir() or (path.is_file() and (_is_list(source) or path.suffix.lower() in image_suffixes()))


def _is_list(source: str | Path) -> bool:
    return str(source).startswith("@") or path_of(source).suffix.lower() == ".txt"


def image_files(source: str | Path, split: str, reader: ImageReader) -> ImageFiles | None:
    """The image files of a folder or a list, or the one, that ``source`` names, not read yet; None for other data.

    Raises:
        ValueError: no images there, or a list that is no text or names no file at all.
    """
    path = path_of(source)
    if not names_images(source):
        return None
    if path.is_dir():
        part = part_of_folder(path, split)
        files = folder_images(part, reader)
        return files if part == path else replace(files, name=f"{path.resolve().name}/{split}")
    return _listed(path, reader) if _is_list(source) else ImageFiles(path.parent, (path.name,), path.name, reader)


def _listed(path: Path, reader: ImageReader) -> ImageFiles:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a list of images, which is text (UTF-8) with one path a line") from None
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise ValueError(f"{path}: the list is empty; it has one path of an image a line")
    if not any(os.path.isfile(path.parent / name) for name in names):  # Path.is_file raises for a name that is too long
        raise ValueError(
            f"{path}: read as a list of images, one path a line, and none of its {len(names)} lines names a file "
            f"(the first: {names[0][:40]!r}); `robustgen train char-lm` trains a model of text"
        )
    return ImageFiles(path.parent, names, path.name, reader)


def _from_images(files: ImageFiles, n: int | None, skip: Callable[[ValueError], None] | None) -> ArrayDataset:
    chosen, ids = files.evenly(n)
    remarks = Remarks()
    dataset = chosen.array(remarks, ids, skip)
    if line := remarks.line():
        warnings.warn(f"{files.name}: {line}", stacklevel=3)
    return dataset


def _from_folder(path: Path, split: str, **options: Any) -> ArrayDataset:
    part = part_of_folder(path, split)
    if part == path:
        return load_folder(path, **options)
    dataset = load_folder(part, classes=class_names(folder_parts(path).values()), **options)
    return replace(dataset, name=f"{path.resolve().name}/{split}")


def _from_file(path: Path, layout: str | None, ignore: int | None, n: int | None) -> ArrayDataset:
    if not path.is_file():
        hint = nearest(str(path), _NAMES.values())
        raise ValueError(f"unknown data set {str(path)!r}, and no such path exists; {hint}")
    if is_table(path):
        dataset = Table(path, layout).read()
    elif holds_tokens(path):
        raise ValueError(f"{path}: holds tokens: load_tokens reads them")
    elif path.suffix == ".npz":
        dataset = load_npz(path, layout=layout, ignore=ignore)
    else:
        raise ValueError(
            f"{path}: a data set is an .npz file, a table (.csv, .parquet, .npy), an image folder, an image, or a .txt "
            "list of images"
        )
    return dataset if n is None else dataset.take(n)
