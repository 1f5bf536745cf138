"""Everything written to disk: whole or not at all, without pickle.

And what a file of weights is that is not loaded, told by its first bytes, and what to do.
"""

import json
import os
import platform
import secrets
import stat
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from robustgen.fingerprint import fingerprint
from robustgen.locks import lock
from robustgen.structure import check_structure

__all__ = [
    "check_state",
    "environment",
    "foreign_format",
    "is_archive",
    "is_pickled",
    "is_weights",
    "load_state",
    "load_tensors",
    "parse_json",
    "part_name",
    "read_json",
    "save_tensors",
    "sweep",
    "sync_directory",
    "write_bytes",
    "write_json",
    "writing",
]


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path`` whole or not at all, see :func:`writing`."""
    with writing(path) as file:
        file.write(data)


@contextmanager
def writing(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write, aside, that is fsynced and moved to ``path`` in the end; not where the writer fails.

    What writers that were killed have left in the directory is removed.

    Raises:
        OSError: the disk is full or not writable; what stood at ``path`` is still there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    try:
        with _part(path.parent) as (aside, file):
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
    except OSError as error:
        named = error.filename
        if error.errno is None or (named is not None and not str(named).endswith(".part")):  # of another file
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # the file that was asked for
    sync_directory(path.parent)


def part_name() -> str:
    """The name of a file or directory that is not finished; nobody can foresee it."""
    return f".robustgen-{secrets.token_hex(8)}.part"


@contextmanager
def _part(directory: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new file in ``directory``, locked while somebody is in here, so that no :func:`sweep` takes it."""
    with ExitStack() as stack:
        swept = True
        while swept:
            aside = directory / part_name()
            file = stack.enter_context(open(aside, "xb"))  # new: no planted link is followed, nothing overwritten
            if lock(file.fileno(), wait=True):
                stack.callback(os.close, os.dup(file.fileno()))  # keeps the lock when the file is closed
            swept = not aside.exists()  # before it was locked
        try:
            yield aside, file
        finally:
            with suppress(OSError):  # moved, or on a file system that lets nothing be removed
                aside.unlink()


def sweep(directory: Path) -> None:
    """Remove unfinished files from ``directory`` whose writers are dead: those that no one has locked."""
    for path in directory.glob(".robustgen-*.part"):
        with suppress(OSError):  # live, gone, not ours to remove, or no file
            handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
            try:
                if lock(handle, wait=False) and stat.S_ISREG(os.fstat(handle).st_mode):
                    path.unlink()
            finally:
                os.close(handle)


def sync_directory(path: Path) -> None:
    """Make a rename inside ``path`` durable (a no-op where directories cannot be opened)."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: str | Path, value: Any, indent: int | None = 1) -> None:
    """Write ``value`` as JSON, atomically; NaN and Inf are refused (ValueError): they are not JSON."""
    write_bytes(path, (json.dumps(value, indent=indent, allow_nan=False) + "\n").encode())


def read_json(path: str | Path, structure: Any = object, at_most: int = 2**26) -> Any:
    """Read a JSON file that holds what ``structure`` says, see :func:`~robustgen.structure.check_structure`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not complete JSON (NaN is none), nested too deep, of more than ``at_most`` bytes, or of another
            structure; it names the file.
    """
    path = Path(path)
    if not path.is_file():  # neither a folder nor a pipe
        raise FileNotFoundError(f"{path}: no such file")
    with open(path, "rb") as file:
        data = file.read(at_most + 1)
    if len(data) > at_most:
        raise ValueError(f"{path}: more than {at_most // 2**20} MiB, which no such file has")
    return parse_json(data, path, structure)


def parse_json(data: bytes, source: str | Path, structure: Any = object) -> Any:
    """The JSON value in ``data``, read from ``source``, which holds what ``structure`` says.

    Raises:
        ValueError: not complete JSON (NaN is none), nested too deep, or of another structure; it names ``source``.

    >>> parse_json(b'{"a": 1}', "run.json", {"a": int})
    {'a': 1}
    """
    try:
        found = json.loads(data.decode("utf-8"), parse_constant=_no_number)
    except RecursionError:
        raise ValueError(f"{source}: no JSON of ours (nested too deep)") from None
    except ValueError as error:
        raise ValueError(f"{source}: not a complete JSON value ({error})") from None
    check_structure(found, structure, source)
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Save tensors as safetensors, atomically.

    safetensors refuses shared storage and non-contiguous layouts, so each tensor is made contiguous and a tensor that
    is another one (same memory, shape and strides; tied weights) is stored once and recorded as an alias. A fingerprint
    of them goes into the file.
    """
    from safetensors.torch import save

    unique: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        key = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and key in seen:
            aliases[name] = seen[key]
            continue
        seen[key] = name
        copy = tensor.to("cpu").contiguous()
        unique[name] = copy.clone() if copy.data_ptr() == tensor.data_ptr() else copy
    about = json.dumps({"aliases": aliases, "fingerprint": fingerprint(unique)})
    write_bytes(path, save(unique, metadata={"robustgen": about}))  # one entry: of several the order is random


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """Load what ``save_tensors`` wrote, or any safetensors file, to the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, changed since it was written, or not safetensors.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if (what := foreign_format(path)) is not None:
        raise ValueError(f"{path}: {what}")
    if is_pickled(path):
        raise ValueError(f"{path}: a pickle, where a safetensors file belongs")
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            about = json.loads((file.metadata() or {}).get("robustgen", "null"))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a complete safetensors file ({error})") from None
    if about is None:  # another program's
        return tensors
    check_structure(about, {"fingerprint": str, "aliases": {str: str}}, path, "its metadata")
    if about["fingerprint"] != fingerprint(tensors) or not tensors.keys() >= set(about["aliases"].values()):
        raise ValueError(f"{path}: damaged, its tensors are not those that were written")
    return tensors | {name: tensors[of] for name, of in about["aliases"].items()}


def load_state(module: nn.Module, tensors: Mapping[str, Tensor], source: str | Path = "the checkpoint") -> None:
    """Load ``tensors`` into ``module``, all or nothing.

    Raises:
        ValueError: as :func:`check_state` does; the module is then unchanged.
    """
    check_state(module, tensors, source)
    module.load_state_dict(tensors)


def check_state(module: nn.Module, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """ValueError unless ``tensors`` fit ``module``: it names every missing, unexpected and misshapen one."""
    own = module.state_dict()
    problems = [f"missing {name}" for name in own if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in own]
    both = [(name, tensors[name], own[name]) for name in own if name in tensors]
    problems += [
        f"{name} is {tuple(found.shape)}, the network has {tuple(kept.shape)}"
        for name, found, kept in both
        if found.shape != kept.shape
    ]
    problems += [
        f"{name} is {found.dtype}, the network has {kept.dtype}"
        for name, found, kept in both
        if not _of_one_kind(found, kept)
    ]
    if problems:
        raise ValueError(f"{source} does not fit this network: {_shortened(problems)}")


def _of_one_kind(a: Tensor, b: Tensor) -> bool:
    """Whether both are whole numbers, fractions or complex: no other cast keeps what a weight is."""
    return (a.is_floating_point(), a.is_complex()) == (b.is_floating_point(), b.is_complex())


def _shortened(problems: list[str], most: int = 20) -> str:
    left = len(problems) - most
    return "; ".join(problems[:most]) + (f"; and {left} more" if left > 0 else "")


def environment() -> dict[str, str | int]:
    """Versions, hardware and thread count, for every report."""
    import numpy
    import torchvision

    from robustgen import __version__

    return {
        "robustgen": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": numpy.__version__,
        "platform": sys.platform,
        "cpu": _cpu_name(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


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
