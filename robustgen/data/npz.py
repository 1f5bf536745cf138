"""Data sets in NumPy's ``.npz`` files, read and written without pickle."""

import io
import math
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from robustgen.data.array import ArrayDataset
from robustgen.files import write_bytes

__all__ = ["array_names", "load_npz", "numbered", "pixels", "read_arrays", "save_npz", "whole_numbers"]

_KEYS = ("x", "y", "classes", "ids", "layout", "preprocessing")
_AS_IS = "as is"  # the layout of what save_npz wrote


def load_npz(path: str | Path, *, layout: str | None = None, ignore: int | None = None) -> ArrayDataset:
    """Read ``x`` and, where present, ``y``, ``classes``, ``ids`` and ``preprocessing`` from an ``.npz`` file.

    ``x`` is uint8, or floats in [0, 1] (kept as float32): images (N, H, W), (N, C, H, W) or (N, H, W, C), or float
    vectors (N, D). ``y`` holds integer labels (N,). Without ``classes`` (strings) these must be 0..C-1, each of them
    there, and the classes are called "0", "1", ...

    Args:
        path: the file.
        layout: of four dimensions: "NCHW", or "NHWC" for channels last. The file may say so itself, in an array
            ``layout``; :func:`save_npz` does. None: where one of the two places holds 1 or 3, that is the channels;
            otherwise fewer channels than columns are taken for channels first, and what is left is refused.
        ignore: a label that says "of no class" (255, -1): examples that have it are left out, and a warning counts
            them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, not an .npz file, arrays far larger than the file, an object array (those are pickled,
            and refused), no ``x``, channels that may be first or last, labels with a gap, or values that
            :class:`ArrayDataset` refuses; it names the file.
    """
    path = Path(path)
    arrays = read_arrays(path, _KEYS, needed="x")
    try:
        dataset = ArrayDataset(
            x=torch.from_numpy(np.ascontiguousarray(pixels(arrays, layout))),
            classes=tuple(map(str, arrays["classes"].reshape(-1))) if "classes" in arrays else (),
            name=path.name,
            ids=whole_numbers(arrays["ids"], "ids", "ids") if "ids" in arrays else None,
            preprocessing=tuple(map(str, arrays["preprocessing"].reshape(-1))) if "preprocessing" in arrays else (),
        )
        return _labelled(dataset, whole_numbers(arrays["y"], "y", "labels"), ignore) if "y" in arrays else dataset
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {str(error).removeprefix(f'{path.name}: ')}") from None


def pixels(arrays: dict[str, np.ndarray], layout: str | None) -> np.ndarray:
    """``x`` of the arrays, uint8 or float32, channels first; ``layout`` as in :func:`load_npz`."""
    x = arrays["x"]
    if x.dtype != np.uint8:
        if x.dtype.kind != "f":
            raise ValueError(f"x is {x.dtype}; pixels must be uint8, or floats in [0, 1]")
        x = x.astype(np.float32)
    said = layout or (str(arrays["layout"]) if "layout" in arrays else None)
    if said not in (None, "NCHW", "NHWC", _AS_IS):
        raise ValueError(f"layout must be 'NCHW' or 'NHWC', got {said!r}")
    if said == _AS_IS:
        return x
    if x.ndim == 3:
        return x[:, None]
    return x.transpose(0, 3, 1, 2) if x.ndim == 4 and (said or _layout(x.shape)) == "NHWC" else x


def _layout(shape: tuple[int, ...]) -> str:
    """Where the channels of images (N, A, B, D) are, if their shape says so."""
    first, last = shape[1] in (1, 3), shape[3] in (1, 3)
    if last and not first:
        return "NHWC"
    if (first and not last) or shape[1] < shape[3]:
        return "NCHW"
    raise ValueError(
        f"x {shape} may have its channels first or last: add an array 'layout' that says 'NCHW' or 'NHWC' to the file "
        "(Python also: layout='NCHW')"
    )


def whole_numbers(values: np.ndarray, name: str, what: str) -> torch.Tensor:
    """The array called ``name`` as int64; ValueError where its ``what`` are no integers."""
    if values.dtype.kind not in "iu":
        raise ValueError(f"{name} is {values.dtype}; {what} must be integers")
    return torch.from_numpy(values.astype(np.int64))


def _labelled(dataset: ArrayDataset, y: torch.Tensor, ignore: int | None) -> ArrayDataset:
    """The data set with labels ``y`` (N,), without the examples whose label is ``ignore``."""
    if ignore is not None and y.shape == (len(dataset),):
        kept = (y != ignore).nonzero().squeeze(1)
        left_out = f"left out {len(y) - len(kept)} of {len(y)} examples, labelled {ignore}"
        warnings.warn(f"{dataset.name}: {left_out}", stacklevel=3)
        dataset, y = dataset.subset(kept), y[kept]
    return replace(dataset, y=y, classes=dataset.classes or numbered(y))


def numbered(y: torch.Tensor) -> tuple[str, ...]:
    """The classes "0", "1", ... of labels that are 0..C-1, each of them there."""
    present = y.unique().tolist()
    for label, found in enumerate(present):
        if found != label:
            gap = f" but none of {label}..{found - 1}" if found > label + 1 else f" but no {label}" if found > 0 else ""
            raise ValueError(
                f"y has the label {found}{gap}: name every class in an array 'classes', in the order of the labels; if "
                f"{found} says of no class, leave its examples out of the file (Python also: ignore={found})"
            )
    return tuple(map(str, present))


def save_npz(path: str | Path, dataset: ArrayDataset) -> None:
    """Write a data set as ``.npz`` (all but the sources), whole or not at all.

    Args:
        path: the file to write.
        dataset: what is written.

    Raises:
        OSError: the disk is full or not writable.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_npz(f"{folder}/mine.npz", ArrayDataset(torch.rand(4, 3), torch.arange(4), tuple("abcd")))
    ...     load_npz(f"{folder}/mine.npz")
    ArrayDataset('mine.npz', 4 x (3,) float32, 4 classes)
    """
    arrays = {
        "x": dataset.x.cpu().numpy(),
        "ids": dataset.ids.cpu().numpy(),
        "classes": np.array(dataset.classes, dtype=np.str_),
        "preprocessing": np.array(dataset.preprocessing, dtype=np.str_),
        "layout": np.array(_AS_IS),
    }
    if dataset.y is not None:
        arrays["y"] = dataset.y.cpu().numpy()
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


_ROOM, _RATIO = 2**30, 100  # what a file may unpack to: so many bytes, or more in proportion to its size
_DAMAGE = (ValueError, EOFError, OSError, KeyError, RuntimeError, OverflowError, zipfile.BadZipFile, zlib.error)


def array_names(path: Path) -> list[str]:
    """What the arrays of the file are called; nothing where it is no such file."""
    if path.suffix != ".npz" or not path.is_file():
        return []
    try:
        with zipfile.ZipFile(path) as archive:
            return [info.filename.removesuffix(".npy") for info in archive.infolist()]
    except _DAMAGE:
        return []


def read_arrays(path: Path, names: Sequence[str], needed: str) -> dict[str, np.ndarray]:
    """Those of the arrays called ``names`` that are there, each read once its size is known to be as its header says.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, not an .npz file, arrays far larger than the file, an object array (those are pickled,
            and refused), or none called ``needed``; it names the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:  # np.load would also take .npy and bare pickles
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            unpacked = sum(members[key].file_size for key in names if key in members)
            fits = unpacked <= max(_ROOM, _RATIO * path.stat().st_size)
            arrays = {key: _array(archive, members[key]) for key in names if key in members and fits}
    except _DAMAGE as error:
        if "bject arrays" in str(error):
            raise ValueError(f"{path}: holds an object array; those are pickled, and refused") from None
        raise ValueError(f"{path}: not a complete .npz file ({error})") from None
    if not fits:
        raise ValueError(
            f"{path}: {unpacked / 2**30:.0f} GiB unpacked, more than {_RATIO} times the file: if that is meant, write "
            "it with np.savez, not np.savez_compressed"
        )
    if needed not in arrays:
        raise ValueError(f"{path}: no array {needed!r}; it holds {', '.join(map(repr, members)) or 'nothing'}")
    return arrays


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename} is compressed otherwise than NumPy does it")
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(file)
        held = info.file_size - file.tell()
    if math.prod(shape) == 0 and max(shape) > 2**31:
        raise ValueError(f"{info.filename}: {shape} holds nothing and claims to be large")
    if not dtype.hasobject and math.prod(shape) * dtype.itemsize != held:
        raise ValueError(f"{info.filename}: {held} bytes for {shape} of {dtype}")
    with archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
