"""Ctrl-C that waits for the end of a step."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Interrupt", "Stopped", "deferred_interrupt"]


class Stopped(KeyboardInterrupt):
    """Ctrl-C, raised where the state of a run is whole."""


class Interrupt:
    """The handler: the first SIGINT sets ``requested``, a second one raises KeyboardInterrupt at once."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self, signum: int, frame: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        os.write(2, b"\nstopping after this step; Ctrl-C again stops at once\n")  # print is not reentrant


@contextmanager
def deferred_interrupt() -> Iterator[Interrupt]:
    """Inside, SIGINT only leaves a note; one that nobody has acted on raises KeyboardInterrupt at the end.

    Changes nothing outside the main thread (Python delivers signals there alone) or where SIGINT is ignored.
    """
    interrupt = Interrupt()
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield interrupt
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, previous)
    if interrupt.requested:
        raise KeyboardInterrupt
