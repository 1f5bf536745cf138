"""The arrays of NumPy's ``.npz`` files, read without pickle and without believing what the file says of its size."""

import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

__all__ = ["array_names", "read_arrays"]

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
