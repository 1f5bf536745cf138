"""Progress on a terminal: one kind of bar, for what takes longer than two seconds, with about how long is left.

Whoever has a ``progress`` argument or the switch ``--quiet`` says with :func:`showing` whether what runs inside shows
bars; nothing else decides it, so that no function has to hand it on. Code of one's own may say so too::

    with robustgen.progress.showing():
        detector.calibrate(x)
"""

import os
import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from tqdm import tqdm

__all__ = ["bar", "showing", "time_left", "track"]

DELAY = 2.0  # seconds: what is done sooner shows no bar
EVERY = 0.2  # seconds between two looks of a bar
LOGGED = 60.0  # the same where stderr is no terminal, for the few bars that are written there
_FORMAT = "{desc}: {percentage:3.0f}%|{bar:20}| {left}{postfix}"

_T = TypeVar("_T")
_shown: ContextVar[bool] = ContextVar("progress is shown", default=False)


@contextmanager
def showing(progress: bool = True) -> Iterator[None]:
    """Inside, in this thread, there are bars or there are none."""
    token = _shown.set(progress)
    try:
        yield
    finally:
        _shown.reset(token)


def time_left(seconds: float) -> str:
    """In words no more precise than an estimate is.

    >>> [time_left(s) for s in (3, 44, 238, 9000)]
    ['a few seconds left', 'about 40 s left', 'about 4 min left', 'about 2.5 h left']
    """
    if seconds < 7.5:
        return "a few seconds left"
    if seconds < 90:
        return f"about {5 * round(seconds / 5) if seconds < 22.5 else 10 * round(seconds / 10)} s left"
    if seconds < 5400:
        return f"about {round(seconds / 60)} min left"
    return f"about {round(seconds / 1800) / 2:g} h left"


class _Bar(tqdm):
    """The field ``left`` of its format is :func:`time_left`, by the mean rate so far."""

    @property
    def format_dict(self) -> dict[str, Any]:
        found = super().format_dict
        n, total, elapsed = found["n"], found["total"], found["elapsed"]
        if total is None:
            return found | {"left": f"{n} done"}
        if n >= total:
            return found | {"left": "done"}
        return found | {"left": time_left(elapsed * (total / n - 1)) if n > 0 else "..."}


def bar(title: str, total: float | None, *, logged: bool = False) -> _Bar:
    """A bar on stderr, to be updated and closed; it shows nothing before ``DELAY``, nor where none is asked for.

    Args:
        title: what is under way.
        total: of it; None where nobody knows.
        logged: show it where stderr is no terminal too, now and then.
    """
    first = os.environ.get("RANK", "0") == "0"  # under torchrun one process speaks
    terminal = sys.stderr.isatty()
    return _Bar(
        total=total,
        desc=title,
        file=sys.stderr,
        disable=not (_shown.get() and first and (terminal or logged)),
        delay=DELAY,
        mininterval=EVERY if terminal else LOGGED,
        miniters=0,
        leave=None,
        bar_format=_FORMAT,
    )


def track(items: Iterable[_T], title: str, total: int | None = None) -> Iterator[_T]:
    """The items one by one, with a bar of how many are done; without ``total`` it is their number, where they have one.

    >>> list(track([1, 2], "counting"))
    [1, 2]
    """
    if not _shown.get():  # a score is asked for thousands of times
        yield from items
        return
    if total is None and isinstance(items, Sized):
        total = len(items)
    with bar(title, total) as shown:
        for item in items:
            yield item
            shown.update()
