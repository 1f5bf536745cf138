"""Files of weights that are not loaded: what a file is, told by its first bytes, and what to do."""

import zipfile
from pathlib import Path

__all__ = ["foreign_format", "is_archive", "is_pickled", "is_weights"]

_SAVE_AS = "; save the weights as .safetensors, by safetensors.torch.save_file"
_ARCHIVE = b"PK\x03\x04"
_PICKLES = (_ARCHIVE, b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def is_pickled(path: Path) -> bool:
    """Whether a file that torch.save wrote, or another pickle or archive, is here: what safetensors never is.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"w": torch.zeros(2)}, f"{folder}/w.pth")
    ...     is_pickled(Path(folder) / "w.pth")
    True
    """
    head = _head(path)
    return head[8:9] != b"{" and head.startswith(_PICKLES)


def is_weights(path: Path) -> bool:
    """Whether the file begins as one of weights does: as what torch.save writes, or as safetensors."""
    return is_pickled(path) or _head(path)[8:9] == b"{"


def is_archive(path: Path) -> bool:
    """Whether the file is a zip archive, as what torch.save writes today."""
    return _head(path).startswith(_ARCHIVE)


def foreign_format(path: Path) -> str | None:
    """What the file is and what to do, where its first bytes tell and no weights are read from it; None otherwise."""
    head = _head(path)
    if head[8:9] == b"{":  # safetensors: eight bytes of length, then JSON
        return None
    if head.startswith(_ARCHIVE):
        return _archive(path)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "an HDF5 file (Keras writes such)" + _SAVE_AS
    if head.startswith(b"GGUF"):
        return "a GGUF file" + _SAVE_AS
    if head.startswith(b"\x08") and (path.suffix == ".onnx" or head[2:3] == b"\x12"):  # its first two fields
        return "an ONNX graph" + _SAVE_AS
    return None


def _archive(path: Path) -> str | None:
    """The same of a zip archive: a state dict of torch.save is one, a network with its code another."""
    if path.suffix in (".npz", ".keras"):
        return f"a {path.suffix} archive, not weights" + _SAVE_AS
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except Exception as error:  # of the many that damaged archives come to
        return f"a damaged or incomplete archive ({error})"
    names = {part.filename.partition("/")[2] for part in parts}
    if "constants.pkl" in names:
        return f"a network of torch.jit with its code; save torch.jit.load({str(path)!r}).state_dict() by torch.save"
    if "archive_format" in names:
        return f"a network of torch.export; save torch.export.load({str(path)!r}).state_dict by torch.save"
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):  # it may unpack to any size
        return "a compressed archive, which torch.save does not write"
    return None


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(16)
