"""Data sets in NumPy's ``.npz`` files, read and written without pickle."""

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustgen.data.array import ArrayDataset
from robustgen.files import write_bytes

__all__ = ["load_npz", "save_npz"]

_KEYS = ("x", "y", "classes", "ids", "layout", "preprocessing")


def load_npz(path: str | Path) -> ArrayDataset:
    """Read ``x`` and, where present, ``y``, ``classes``, ``ids`` and ``preprocessing`` from an ``.npz`` file.

    ``x`` is uint8, or floats in [0, 1] (kept as float32): images (N, H, W), (N, C, H, W) or (N, H, W, C), or float
    vectors (N, D). Four dimensions are read as channels last where the last one is 1 or 3 and the second is neither.
    ``y`` holds integer labels (N,); without ``classes`` (strings) the classes are called "0", "1", ... A file that
    :func:`save_npz` wrote says so in ``layout``, and its x is taken as it is.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, not an .npz file, an object array (those are pickled, and refused), no ``x``, or values
            that :class:`ArrayDataset` refuses; it names the file.
    """
    path = Path(path)
    arrays = _read(path)
    x = arrays["x"]
    if x.dtype != np.uint8:
        if x.dtype.kind != "f":
            raise ValueError(f"{path}: x is {x.dtype}; pixels must be uint8, or floats in [0, 1]")
        x = x.astype(np.float32)
    if "layout" not in arrays:
        x = _channels_first(x)
    y = arrays.get("y")
    if y is not None and y.dtype.kind not in "iu":
        raise ValueError(f"{path}: y is {y.dtype}; labels must be integers")
    ids = arrays.get("ids")
    try:
        return ArrayDataset(
            x=torch.from_numpy(np.ascontiguousarray(x)),
            y=None if y is None else torch.from_numpy(y.astype(np.int64)),
            classes=_classes(arrays.get("classes"), y),
            name=path.name,
            ids=None if ids is None else torch.from_numpy(ids.astype(np.int64)),
            preprocessing=tuple(map(str, arrays.get("preprocessing", ()))),
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {str(error).removeprefix(f'{path.name}: ')}") from None


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:  # np.load would also take .npy and bare pickles
            held = [name.removesuffix(".npy") for name in archive.namelist()]
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in _KEYS if key in held}
    except (ValueError, EOFError, OSError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise ValueError(f"{path}: holds an object array; those are pickled, and refused") from None
        raise ValueError(f"{path}: not a complete .npz file ({error})") from None
    if "x" not in arrays:
        raise ValueError(f"{path}: no array 'x'; it holds {', '.join(map(repr, held)) or 'nothing'}")
    return arrays


def _channels_first(x: np.ndarray) -> np.ndarray:
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[3] in (1, 3) and x.shape[1] not in (1, 3):
        return x.transpose(0, 3, 1, 2)
    return x


def _classes(names: Any, y: Any) -> tuple[str, ...]:
    if names is not None:
        return tuple(map(str, names.reshape(-1)))
    return tuple(map(str, range(int(y.max()) + 1))) if y is not None and y.size else ()


def save_npz(path: str | Path, dataset: ArrayDataset) -> None:
    """Write a data set as ``.npz`` (all but the sources), whole or not at all.

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
        "layout": np.array("as is"),
    }
    if dataset.y is not None:
        arrays["y"] = dataset.y.cpu().numpy()
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_bytes(path, buffer.getvalue())
