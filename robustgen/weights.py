"""Weights in a file: safetensors, or a state dict that ``torch.save`` wrote, of which tensors alone are read.

And the network that they belong to, built again from the settings that another file holds.
"""

import pickle
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from robustgen.files import check_state, foreign_format, is_archive, is_pickled, is_weights, load_tensors
from robustgen.turns import seeded

__all__ = ["ENTRIES", "read_weights", "rebuild", "unwrapped"]

# where the state dict is in a file that holds more
ENTRIES = ("state_dict", "model_state_dict", "model_state", "model", "net", "ema", "state_dict_ema", "model_ema")
_OF_TORCH = (".pt", ".pth", ".bin", ".ckpt")  # what files of torch.save are called
_WRAPPERS = {"module.": "DataParallel", "_orig_mod.": "torch.compile"}

_MORE_THAN_TENSORS = "holds {what}, which is more than tensors, can run code and is not loaded. "
_KEEP_WEIGHTS = (
    "Where you trust it, keep its weights, in Python: import torch; "
    "torch.save(torch.load({path!r}, weights_only=False).state_dict(), {converted!r}) "
    "(of a dict: the entry that is the state dict)"
)
_NO_PART = "No network needs it: get a file of the weights alone from a source that you trust"
_VALUES = ("argparse.Namespace", "collections.defaultdict", "pathlib.PosixPath", "datetime.datetime")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors by name, on the CPU, of a .safetensors file or of a state dict that ``torch.save`` wrote.

    A pickle is read by ``torch.load(weights_only=True)`` and by nothing else. A dict that holds more than the state
    dict has it under one of ``ENTRIES``. What torch writes today is not read but mapped, so it takes no memory.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another format, damaged, a pickle of more than tensors, several state dicts or none.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"epoch": 3, "model": {"w": torch.zeros(2)}}, f"{folder}/w.pth")
    ...     read_weights(f"{folder}/w.pth")
    {'w': tensor([0., 0.])}
    """
    path = Path(path)
    if path.is_file() and path.suffix in _OF_TORCH and foreign_format(path) is None and not is_weights(path):
        raise ValueError(f"{path}: neither a state dict of torch.save nor a safetensors file")
    if not path.is_file() or not is_pickled(path):
        return load_tensors(path)
    if (what := foreign_format(path)) is not None:
        raise ValueError(f"{path}: {what}")
    return _state_dict(_unpickled(path), path)


def _unpickled(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of protocols and sparse tensors: what is wrong is an error here
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive(path))
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named is None:
            raise ValueError(f"{path}: damaged, or a pickle that torch.save did not write") from None
        line = _MORE_THAN_TENSORS.format(what=named[1])
        converted = str(path.with_suffix(".state.pt"))
        line += _KEEP_WEIGHTS.format(path=str(path), converted=converted) if _is_a_value(named[1]) else _NO_PART
        raise ValueError(f"{path}: {line}") from None
    except Exception as error:  # whatever a damaged pickle comes to
        reason = str(error).splitlines()[0].split(". ")[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: damaged, or a pickle that torch.save did not write ({reason})") from None


def _is_a_value(name: str) -> bool:
    """Whether this is a class that checkpoints hold: a network's, or one of the standard library's plain values."""
    room = name.partition(".")[0].strip("_")
    return name in _VALUES or room not in {"builtin", *(known.strip("_") for known in sys.stdlib_module_names)}


def _state_dict(found: Any, path: Path) -> dict[str, Tensor]:
    """The state dict that ``found`` is, or that it holds under one of ``ENTRIES``."""
    if not isinstance(found, Mapping):
        raise ValueError(f"{path}: holds a {type(found).__name__}, not a state dict")
    held = [name for name in ENTRIES if isinstance(found.get(name), Mapping)]
    if len(held) > 1:
        keep = f"torch.save(torch.load({str(path)!r}, weights_only=True)[{held[0]!r}], {held[0] + '.pt'!r})"
        raise ValueError(f"{path}: holds several state dicts, {', '.join(held)}: keep the one you mean, {keep}")
    state = found[held[0]] if held else found
    where = f"the entry {held[0]!r} of {path}" if held else str(path)
    if not state:
        raise ValueError(f"{where}: no tensors")
    if not held and not any(isinstance(value, Tensor) for value in state.values()):
        keys = ", ".join(str(key) for key in list(state)[:8])
        raise ValueError(f"{path}: no state dict, nor one under {', '.join(ENTRIES)}; it holds {keys}")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"{where}: {name} is a {type(value).__name__}, where a state dict has tensors by name")
        if value.layout != torch.strided or value.device.type != "cpu":
            kind = "a tensor without values" if value.is_meta else f"of layout {value.layout}"
            raise ValueError(f"{where}: {name} is {kind}, weights are dense tensors")
    return dict(state)


def unwrapped(tensors: Mapping[str, Tensor], names: Iterable[str], source: str | Path) -> dict[str, Tensor]:
    """The tensors without the prefix that ``DataParallel`` or ``torch.compile`` gave to each; a warning says so.

    ``names``: of the network's own tensors. A prefix that all of them have is theirs and stays.

    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     unwrapped({"module.w": torch.zeros(1)}, ["w"], "w.pth")
    {'w': tensor([0.])}
    """
    found, own, removed = dict(tensors), list(names), []
    while prefix := next((p for p in _WRAPPERS if _all_have(p, found) and not _all_have(p, own)), None):
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
        removed.append(prefix)
    if removed:
        by = " and ".join(_WRAPPERS[prefix] for prefix in removed)
        warnings.warn(f"{source}: names without the prefix {''.join(removed)!r}, which {by} gave them", stacklevel=2)
    return found


def _all_have(prefix: str, names: Collection[str]) -> bool:
    return bool(names) and all(name.startswith(prefix) for name in names)


_Network = TypeVar("_Network", bound=nn.Module)


def rebuild(
    make: Callable[[], _Network], tensors: Mapping[str, Tensor], *, settings: str | Path, weights: str | Path
) -> _Network:
    """The module that ``make`` builds from what the file ``settings`` says, with the ``tensors`` of ``weights``.

    It is built without memory first and compared: settings that the weights do not bear out could ask for any amount.

    Raises:
        ValueError: settings of which nothing can be built, or tensors that do not fit, each named.

    >>> rebuild(lambda: nn.Linear(10**6, 10**6), {}, settings="run.json", weights="w.safetensors")
    Traceback (most recent call last):
    ValueError: w.safetensors does not fit this network: missing weight; missing bias
    """
    with seeded(None):
        with torch.device("meta"):
            try:
                plan = make()
            except Exception as error:  # whatever a constructor makes of values that nobody chose
                reason = f" ({error})" if isinstance(error, TypeError | ValueError) else ""
                raise ValueError(f"{settings}: no network has these settings{reason}") from None
        check_state(plan, tensors, weights)
        module = make()
    module.load_state_dict(tensors)
    return module
