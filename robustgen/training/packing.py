"""Nested state (an optimizer's, say) as JSON beside a flat dict of tensors, and back: exact, and without pickle."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from robustgen.checks import plain

__all__ = ["pack", "unpack"]


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
