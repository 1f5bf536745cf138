"""Checkpoints: whole or not at all, whatever kills the writer; safetensors and JSON, no pickle.

``run_dir/checkpoints/step-00000123/`` holds ``config.json``, ``model.safetensors``, ``training_state.safetensors`` and
``training_state.json``, of which the latter two are missing where there is no state, as in a model saved alone. It is
written aside, fsynced, renamed, and only then made current by atomically replacing the
one-line file ``run_dir/checkpoints/latest``; older ones are removed after that, save for the one that ``best`` names.
"""

import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from robustgen.checks import plain
from robustgen.files import (
    load_tensors,
    part_name,
    read_json,
    save_tensors,
    sync_directory,
    write_bytes,
    write_json,
)
from robustgen.locks import alone
from robustgen.structure import check_structure
from robustgen.training.metrics import best_row

__all__ = [
    "Checkpoint",
    "best_checkpoint",
    "epochs_done",
    "holds_run",
    "keep_as_best",
    "latest_checkpoint",
    "load_checkpoint",
    "pack",
    "save_checkpoint",
    "unpack",
]

FORMAT = 1
_STATE = ("training_state.safetensors", "training_state.json")
_NAME = re.compile(r"step-\d{8,}(-again)?")
_UNFINISHED = re.compile(r"\.robustgen-[0-9a-f]{16}\.part|\.step-\d{8,}(-again)?\.\d+\.part")  # the latter of before


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        path: its directory.
        step: completed steps.
        model_state: the weights to use (with EMA, the averages), on the CPU; ``robustgen.files.load_state`` puts them
            into a module and names every tensor that does not fit.
        training_state: nested dicts, lists, tensors and scalars: what a resumed run needs beside the weights.
        config: JSON-able description of the run.
    """

    path: Path
    step: int
    model_state: dict[str, Tensor]
    training_state: dict[str, Any]
    config: dict[str, Any]


def save_checkpoint(
    run_dir: str | Path,
    step: int,
    model_state: Mapping[str, Tensor],
    training_state: Mapping[str, Any],
    config: Mapping[str, Any],
) -> Path:
    """Write a checkpoint, make it the latest, and keep only it, the one before and the best.

    Args:
        run_dir: made if missing.
        step: completed steps, >= 0.
        model_state: a state dict of tensors; tied ones are stored once.
        training_state: nested dicts, lists and tuples of tensors and JSON scalars; empty: no run goes on from here.
        config: JSON-able.

    Returns:
        The checkpoint's directory.

    Raises:
        OSError: the disk is full or not writable; the checkpoint before is still the latest and whole.
        TypeError: a training state or a config that JSON and tensors cannot hold.
        ValueError: the run's ``checkpoints`` is a link.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as run:
    ...     path = save_checkpoint(run, 7, {"w": torch.ones(2)}, {"lr": 0.1}, {"seed": 0})
    ...     path.name, load_checkpoint(run).model_state
    ('step-00000007', {'w': tensor([1., 1.])})
    """
    root = Path(run_dir) / "checkpoints"
    if root.is_symlink():  # of a run from elsewhere: what it leads to is not to be changed
        raise ValueError(f"{root} is a link, and a run keeps its checkpoints itself: copy the run")
    before = None
    try:
        with alone(root, wait=True):
            _remove(root, _UNFINISHED.fullmatch)  # left by a writer that was killed: no other is in here
            before, best = latest_checkpoint(run_dir), _named(root / "best")
            path = root / f"step-{step:08d}"
            if path in (before, best):
                path = root / f"{path.name}-again"  # the latest is never touched, not even to write it anew
            _write(path, step, model_state, training_state, config)
            write_bytes(root / "latest", f"{path.name}\n".encode())
            _remove(root, _NAME.fullmatch, keep=(path, before, best))
    except OSError as error:
        kept = f"the last good one is {before}" if before else "there is none before it"
        line = f"the checkpoint of step {step} could not be written ({error.strerror}); {kept}"
        raise OSError(error.errno, line, str(root)) from error
    return path


def _write(
    path: Path,
    step: int,
    model_state: Mapping[str, Tensor],
    training_state: Mapping[str, Any],
    config: Mapping[str, Any],
) -> None:
    aside = path.with_name(part_name())
    tensors: dict[str, Tensor] = {}
    packed = pack(training_state, tensors)
    try:
        aside.mkdir()
        write_json(aside / "config.json", {"format": FORMAT, "step": step, "config": dict(config)})
        save_tensors(aside / "model.safetensors", model_state)
        if training_state:
            save_tensors(aside / _STATE[0], tensors)
            write_json(aside / _STATE[1], packed)
        _discard(path)  # renamed by a killed writer and never made the latest
        os.rename(aside, path)
    except BaseException:
        _discard(aside)
        raise
    sync_directory(path.parent)


def latest_checkpoint(run_dir: str | Path) -> Path | None:
    """The directory of the latest checkpoint in ``run_dir``, or None if there is none.

    Raises:
        ValueError: the ``latest`` file names no checkpoint.
    """
    return _named(Path(run_dir) / "checkpoints" / "latest")


def best_checkpoint(run_dir: str | Path) -> Path | None:
    """The directory of the checkpoint that a run kept as its best, or None if it keeps none.

    Raises:
        ValueError: the ``best`` file names no checkpoint, or one that is not the history's best, or is missing.
    """
    pointer = Path(run_dir) / "checkpoints" / "best"
    named, latest = _named(pointer), latest_checkpoint(run_dir)
    best = None if latest is None else _best_epoch(latest)
    if latest is None or best is None:
        return named
    epoch, step = best
    if _head(latest)["step"] == step:
        return latest  # where the run was killed before it was named, too
    if named is None:
        raise ValueError(f"{pointer}: is missing; it names the checkpoint of the best epoch, {epoch}, at step {step}")
    if (other := _head(named)["step"]) != step:
        raise ValueError(f"{pointer}: names the checkpoint at step {other}; the best epoch is {epoch}, at step {step}")
    return named


def epochs_done(run_dir: str | Path) -> tuple[int, int] | None:
    """How many epochs of a training run are behind its latest checkpoint, and how many it was to have.

    None where there is no checkpoint, or one without the state of a training.
    """
    latest = latest_checkpoint(run_dir)
    history = None if latest is None else _history(latest)
    if latest is None or history is None:
        return None
    config = _head(latest)["config"]
    check_structure(config, {"epochs": int}, latest / "config.json", "config")
    return len(history), config["epochs"]


def _best_epoch(checkpoint: Path) -> tuple[int, int] | None:
    """The epoch and step of the best row of a checkpoint's history; None where the run keeps no best."""
    entry, history = _head(checkpoint)["config"].get("best"), _history(checkpoint)
    if entry is None or not history:
        return None
    if not all(isinstance(row.get(entry), int | float) for row in history):
        raise ValueError(f"{checkpoint / _STATE[1]}: history lacks numbers called {entry!r}")
    row = best_row(history, entry)
    return int(row["epoch"]), int(row["step"])


def _history(checkpoint: Path) -> list[dict[str, float]] | None:
    """The history in a checkpoint, without its tensors; None in one of no training."""
    path = checkpoint / _STATE[1]
    if _without_state(checkpoint):
        return None
    packed = read_json(path, {"dict": [list]})
    try:
        for key, value in packed["dict"]:
            if key == "history":
                rows: list[dict[str, float]] = unpack(value, {})
                check_structure(rows, [{"epoch": int, "step": int}], path, "history")
                return rows
    except (RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not the state of a training ({error})") from None
    return None


def keep_as_best(checkpoint: Path) -> None:
    """Name a checkpoint the best of its run: it is kept from now on, and the best before is not."""
    write_bytes(checkpoint.parent / "best", f"{checkpoint.name}\n".encode())


def _named(pointer: Path) -> Path | None:
    """The checkpoint that a one-line file names, or None where there is no such file."""
    if not pointer.is_file():
        return None
    with open(pointer, "rb") as file:
        name = file.read(80).decode("utf-8", errors="replace").strip()
    if not _NAME.fullmatch(name) or not (pointer.parent / name).is_dir():
        raise ValueError(f"{pointer}: names {name!r}, which is not a checkpoint there")
    return pointer.parent / name


def load_checkpoint(run_dir: str | Path, *, best: bool = False) -> Checkpoint:
    """Load the latest checkpoint of ``run_dir``, to the CPU.

    Args:
        best: load the one that the run kept as its best, where it kept one.

    Raises:
        FileNotFoundError: there is no checkpoint, or one of its files is missing.
        ValueError: a truncated or foreign file, named, or a checkpoint of another format version.
    """
    path = (best_checkpoint(run_dir) if best else None) or latest_checkpoint(run_dir)
    if path is None:
        raise FileNotFoundError(f"{run_dir}: no checkpoint here")
    head, state = _head(path), {} if _without_state(path) else _state(path)
    return Checkpoint(path, head["step"], load_tensors(path / "model.safetensors"), state, head["config"])


def _without_state(checkpoint: Path) -> bool:
    """Whether it was saved without a training state; one that lacks only one of the two files is damaged."""
    return not any((checkpoint / name).exists() for name in _STATE)


def _state(checkpoint: Path) -> dict[str, Any]:
    tensors, packed = load_tensors(checkpoint / _STATE[0]), read_json(checkpoint / _STATE[1])
    try:
        state: dict[str, Any] = unpack(packed, tensors)
        check_structure(state, dict, "it")
    except (RecursionError, ValueError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else error
        raise ValueError(f"{checkpoint / _STATE[1]}: {reason}") from None
    return state


def holds_run(directory: str | Path) -> bool:
    """Whether the latest checkpoint there is of a training run, not of a model saved alone; False without any."""
    path = latest_checkpoint(directory)
    return path is not None and "epochs" in _head(path)["config"]


def _head(path: Path) -> dict[str, Any]:
    """The config.json of a checkpoint; ValueError for another format."""
    head: dict[str, Any] = read_json(path / "config.json", dict)
    if head.get("format") != FORMAT:
        found = head.get("format")
        raise ValueError(f"{path / 'config.json'}: checkpoint format {found}, this robustgen reads format {FORMAT}")
    check_structure(head, {"step": range(2**62), "config": dict}, path / "config.json")
    return head


def _remove(root: Path, ours: Callable[[str], object], keep: tuple[Path | None, ...] = ()) -> None:
    """Remove what has a name of ``ours``, and nothing else that somebody may have put there."""
    for path in root.iterdir():
        if ours(path.name) and path not in keep:
            _discard(path)


def _discard(path: Path) -> None:
    """Remove a directory, a file or a link, if it is there and can be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def pack(value: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """Return ``value`` as JSON, with its tensors moved into ``tensors`` under their path.

    Dicts (of str or int keys), lists, tuples, tensors, numbers, strings, bools and None, nested at will; floats are
    exact, also NaN and Inf.

    Raises:
        TypeError: anything else, named by its path.

    >>> import torch
    >>> tensors = {}
    >>> pack({0: (1.5, torch.ones(2))}, tensors)
    {'dict': [[0, {'tuple': [1.5, {'tensor': '0.1'}]}]]}
    >>> tensors
    {'0.1': tensor([1., 1.])}
    """
    value = plain(value)  # a learning rate, say, of NumPy
    if isinstance(value, Tensor):
        name = path or "tensor"
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        if not all(isinstance(key, (str, int)) for key in value):
            raise TypeError(f"training state {path!r} has keys that are neither str nor int")
        return {"dict": [[key, pack(item, tensors, _join(path, key))] for key, item in value.items()]}
    if isinstance(value, (tuple, list)):
        items = [pack(item, tensors, _join(path, i)) for i, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"training state {path!r} is a {type(value).__name__}, which neither JSON nor a tensor can hold")


def unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What :func:`pack` was given; ValueError where a tensor is missing, or for what ``pack`` never writes."""
    if isinstance(packed, list):
        return [unpack(item, tensors) for item in packed]
    if not isinstance(packed, dict):
        return packed
    kind, value = next(iter(packed.items()), ("", None))
    if len(packed) == 1 and kind == "tensor" and isinstance(value, str):
        if value not in tensors:
            raise ValueError(f"the training state lacks its tensor {value!r}")
        return tensors[value]
    if len(packed) == 1 and kind == "dict" and isinstance(value, list) and all(map(_is_entry, value)):
        return {key: unpack(item, tensors) for key, item in value}
    if len(packed) == 1 and kind == "tuple" and isinstance(value, list):
        return tuple(unpack(item, tensors) for item in value)
    if len(packed) == 1 and kind == "float" and value in ("nan", "inf", "-inf"):
        return float(value)
    raise ValueError(f"not a training state: an object of {', '.join(map(repr, packed)) or 'nothing'}")


def _is_entry(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], (str, int))


def _join(path: str, key: str | int) -> str:
    return f"{path}.{key}" if path else str(key)
