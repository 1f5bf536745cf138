"""Where two values of JSON differ, leaf by leaf: what an error says of settings that are not those of before."""

import json
from typing import Any

__all__ = ["differences"]

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
