"""Telling models apart: a short name for the exact value of some tensors, and what a model says to a few inputs.

A name sees what a model holds in tensors. What else it does, such as by a temperature that is a plain attribute, shows
in its answers alone; these differ in their last digits between machines, and are kept as numbers.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robustgen.layers import uncompiled
from robustgen.model import is_stochastic

__all__ = ["answers", "fingerprint", "model_fingerprint", "same_answers"]

_CLOSE = 3e-3  # in units of the largest answer: above the rounding of TF32, far below what another model says


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Hex digest (32 characters, BLAKE2b) of names, dtypes, shapes and bytes; order, device and layout do not matter.

    >>> fingerprint({"a": torch.zeros(2)}) == fingerprint({"a": torch.zeros(2).double()})
    False
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.dequantize() if tensor.is_quantized else tensor
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def model_fingerprint(model: nn.Module) -> str:
    """The fingerprint of all parameters and buffers, those that ``state_dict`` leaves out included, of what else is in
    it (packed weights of quantised layers, extra state), of the repr, and of each dict ``config`` that the model or a
    part of it has.

    The last two tell networks apart whose tensors are the same: another activation, another noise level, and what no
    repr shows, such as how a generative model quantizes pixels. Plain attributes are not looked at, as they may be
    caches and counters: see :func:`answers`. A compiled network has the fingerprint of the network inside.
    """
    model = uncompiled(model)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    known = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    other = {name: value for name, value in model.state_dict().items() if name not in known}
    configs = {name: c for name, m in model.named_modules() if isinstance(c := getattr(m, "config", None), dict)}
    settings = json.dumps(configs, sort_keys=True, default=lambda value: type(value).__name__) if configs else ""
    architecture = torch.tensor(list((repr(model) + settings).encode()), dtype=torch.uint8)
    return fingerprint(tensors | _tensors_in(other, "state") | {"repr": architecture})


def _tensors_in(value: Any, name: str) -> dict[str, Tensor]:
    """The tensors in nested containers, and one of the text of what is none."""
    if isinstance(value, Tensor):
        return {name: value}
    if isinstance(value, Mapping):
        value = {str(key): part for key, part in value.items()}
    elif isinstance(value, tuple | list):
        value = {str(k): part for k, part in enumerate(value)}
    else:
        plain = isinstance(value, bool | int | float | str | bytes | torch.dtype | None)
        return {name: torch.tensor(list((repr(value) if plain else type(value).__name__).encode()), dtype=torch.uint8)}
    return {n: t for key, part in value.items() for n, t in _tensors_in(part, f"{name}.{key}").items()}


def answers(ask: Callable[[], Tensor], passes: int = 8) -> list[float] | None:
    """What ``ask`` returns (any shape), as JSON-able numbers; None where it is not the same each time, or it fails.

    ``ask`` makes a pass of a model on fixed inputs, and is asked ``passes`` times. NaN and infinity, which JSON has
    not, become zeros.

    >>> answers(lambda: torch.ones(2)), answers(lambda: torch.rand(2)), answers(lambda: torch.ones(3) @ torch.ones(2))
    ([1.0, 1.0], None, None)
    """
    try:
        with torch.no_grad():
            first = ask()
            if is_stochastic(ask, passes, first):
                return None
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
        return None
    return first.detach().double().nan_to_num(0.0, 0.0, 0.0).flatten().tolist()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def same_answers(kept: object, now: list[float] | None) -> bool:
    """Whether :func:`answers` read from a file and those of a model here may be of one model, on two machines.

    >>> same_answers([1.0, 100.0], [1.1, 100.0]), same_answers([1.0, 100.0], [2.0, 100.0]), same_answers(None, None)
    (True, False, True)
    """
    if now is None or not isinstance(kept, list):
        return kept is now
    if len(kept) != len(now) or not all(_is_number(value) for value in kept):
        return False
    close = _CLOSE * max(map(abs, now), default=0.0)
    return all(abs(a - b) <= close for a, b in zip(kept, now, strict=True))
