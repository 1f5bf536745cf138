"""What a file's JSON must look like, written as JSON is; one line names the file and the field that differs.

And where two values of JSON differ, leaf by leaf: what an error says of settings that are not those of before.
"""

import inspect
import json
import math
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

from robustgen.checks import nearest

__all__ = ["POSITIVE", "SHARE", "SIZE", "Between", "check_arguments", "check_size", "check_structure", "differences"]


@dataclass(frozen=True)
class Between:
    """A number from ``low`` to ``high``."""

    low: float
    high: float


SHARE = Between(0, 1)
SIZE = range(2**20)  # of a layer, an image, a number of layers: a larger one in a file would only fill the memory
POSITIVE = range(1, 2**20)
_LONG = {"layers": range(1, 1001), "prior_layers": range(1, 1001), "blocks": range(1, 1001)}  # each is built
_LONG |= {"resolutions": range(1, 1001), "flow_steps": range(1, 1001), "flow_blocks": range(1, 1001)}
_LONG |= {"terms": range(1, 1001), "draws": range(1, 1001)}  # each is computed
_TAKE_TIME = ("sample_steps", "importance_samples", "proposals")
_LONG |= dict.fromkeys(_TAKE_TIME, range(1, 100_001)) | {"steps": range(100_001)}
_INPUT = 2**26
_INT64 = range(-(2**63), 2**63)
_WORDS = {str: "a string", int: "a whole number", float: "a finite number", bool: "true or false", dict: "an object"}
_WORDS |= {list: "a list", type(None): "null"}


def check_size(shape: Sequence[int], source: str | Path, field: str) -> None:
    """ValueError where an input of ``shape``, read from ``source``, has more values than any that is meant.

    >>> check_size([1, 100_000, 100_000], "run.json", "network.shape")
    Traceback (most recent call last):
    ValueError: run.json: network.shape is of 10000000000 values, more than an input may have (67108864)
    """
    if math.prod(shape) > _INPUT:
        raise ValueError(f"{source}: {field} is of {math.prod(shape)} values, more than an input may have ({_INPUT})")


def check_structure(value: Any, structure: Any, source: str | Path, field: str = "") -> None:
    """ValueError unless ``value``, read from the file ``source``, is built as ``structure`` says.

    Args:
        structure: a type (``str``, ``int``, ``float`` for any finite number, ``bool``, ``dict``, ``list``, a tensor) or
            a union of types; ``object`` for anything; a ``range`` of whole numbers; :class:`Between` two numbers;
            ``[s]`` for a list of s; ``{str: s}`` for an object of s under any names; ``{"name": s, "other?": s}`` for
            one with these names, of which ``other`` may be missing (further ones are not looked at); a tuple of
            structures, one of which fits.
        field: where in the file ``value`` stands.

    >>> check_structure({"a": [1, "2"]}, {"a": [int]}, "run.json")
    Traceback (most recent call last):
    ValueError: run.json: a[1] must be a whole number, not "2"
    """
    if isinstance(structure, tuple):
        _check_one_of(value, structure, source, field)
    elif isinstance(structure, list):
        _check_type(value, list, source, field)
        for i, item in enumerate(value):
            check_structure(item, structure[0], source, f"{field}[{i}]")
    elif isinstance(structure, dict):
        _check_type(value, dict, source, field)
        if str in structure:
            structure = dict.fromkeys(value, structure[str])
        for name, part in structure.items():
            where = f"{field}.{name.removesuffix('?')}".lstrip(".")
            if name.removesuffix("?") in value:
                check_structure(value[name.removesuffix("?")], part, source, where)
            elif not name.endswith("?"):
                raise ValueError(f"{source}: lacks {where}")
    else:
        _check_type(value, structure, source, field)


def check_arguments(
    make: Callable[..., Any],
    values: Mapping[str, Any],
    source: str | Path,
    field: str,
    *,
    after: int = 0,
    whole: Any = int,
) -> None:
    """ValueError unless ``values``, read from ``source``, are arguments of ``make``, of the types that it states.

    Args:
        after: so many arguments of ``make`` come from elsewhere.
        whole: what an ``int`` may be.

    >>> def make(model, width: int = 3): ...
    >>> check_arguments(make, {"width": "3"}, "detector.json", "config", after=1)
    Traceback (most recent call last):
    ValueError: detector.json: config.width must be a whole number, not "3"
    """
    known = {p.name: p.annotation for p in list(inspect.signature(make).parameters.values())[after:]}
    for name in values:
        if name not in known:
            raise ValueError(f"{source}: {field}.{name} is no argument of {make.__name__}; {nearest(name, known)}")
    wholes = {name: _LONG.get(name, whole) for name in known}  # no weights bear out how many of these there are
    structure = {f"{name}?": _of_annotation(annotation, wholes[name]) for name, annotation in known.items()}
    check_structure(values, structure, source, field)


def _of_annotation(annotation: Any, whole: Any) -> Any:
    """The structure that an argument's annotation states; anything, where it states something else."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is int:
        return whole
    if annotation in (str, float, bool, None, type(None)):
        return annotation
    if origin in (UnionType, typing.Union):
        return tuple(_of_annotation(one, whole) for one in arguments)
    if origin in (list, tuple, Sequence):
        return [_of_annotation(arguments[0], whole)]
    return object


def _check_one_of(value: Any, structures: tuple[Any, ...], source: str | Path, field: str) -> None:
    """The first of the structures that is of the kind of ``value`` says what is wrong."""
    alike = [s for s in structures if _fits(value, _kind(s))]
    if not alike:
        raise ValueError(_wrong(value, " or ".join(_word(_kind(s)) for s in structures), source, field))
    check_structure(value, alike[0], source, field)


def _check_type(value: Any, kind: Any, source: str | Path, field: str) -> None:
    if not _fits(value, kind):
        raise ValueError(_wrong(value, _word(kind), source, field))


def _kind(structure: Any) -> Any:
    return type(structure) if isinstance(structure, dict | list) else type(None) if structure is None else structure


def _fits(value: Any, kind: Any) -> bool:
    if kind is object:
        return True
    if isinstance(kind, UnionType):
        return any(_fits(value, one) for one in kind.__args__)
    if kind is None:
        return value is None
    if isinstance(value, bool):  # an int to Python
        return kind is bool
    if kind is int:
        kind = _INT64
    if isinstance(kind, range):
        return isinstance(value, int) and value in kind
    if isinstance(kind, Between):
        return isinstance(value, int | float) and kind.low <= value <= kind.high
    if kind is float:
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max  # NaN is not
    return isinstance(value, kind)


def _word(kind: Any) -> str:
    if isinstance(kind, UnionType):
        return " or ".join(_word(one) for one in kind.__args__)
    if isinstance(kind, range):
        return f"a whole number from {kind[0]} to {kind[-1]}"
    if isinstance(kind, Between):
        return f"a number from {kind.low:g} to {kind.high:g}"
    return _WORDS.get(kind, f"a {getattr(kind, '__name__', kind)}".lower())


def _wrong(value: Any, wanted: str, source: str | Path, field: str) -> str:
    if isinstance(value, str):
        shown = f'"{value[:40]}..."' if len(value) > 40 else f'"{value}"'
    elif isinstance(value, int | float) and not isinstance(value, bool):
        shown = f"{value:g}" if abs(value) < 1e300 else "so large a number"
    elif isinstance(value, bool):
        shown = str(value).lower()
    else:
        shown = _word(type(value))
    return f"{source}: {field or 'it'} must be {wanted}, not {shown}"


_LONGEST = 100  # characters of a value that is shown
_MISSING = object()


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """A line for each leaf that is another one: where it is, what it was and what it is now.

    Of long values the part is shown that differs.

    Args:
        path: of the values themselves.

    >>> differences({"loss": {"beta": 6.0, "name": "trades"}}, {"loss": {"beta": 2.0, "name": "trades"}})
    ['loss.beta was 6.0, now 2.0']
    >>> differences({"a": [1, 2]}, {"a": [1, 3], "b": None})
    ['a[1] was 2, now 3', 'b was missing, now null']
    """
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for name in dict.fromkeys([*old, *new])
            for line in differences(old.get(name, _MISSING), new.get(name, _MISSING), f"{path}.{name}".lstrip("."))
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            line for i, pair in enumerate(zip(old, new, strict=True)) for line in differences(*pair, f"{path}[{i}]")
        ]
    if old == new:
        return []
    texts = ["missing" if value is _MISSING else json.dumps(value) for value in (old, new)]
    start = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
    before, now = (_around(text, start) for text in texts)
    return [f"{path} was {before}, now {now}"]


def _around(text: str, start: int) -> str:
    """The text, or where it is long some of it that begins a little before ``start``."""
    if len(text) <= _LONGEST:
        return text
    first = max(0, min(start - _LONGEST // 4, len(text) - _LONGEST))
    end = "..." if first + _LONGEST < len(text) else ""
    return f"{'...' if first else ''}{text[first : first + _LONGEST]}{end}"
