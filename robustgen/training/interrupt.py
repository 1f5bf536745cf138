"""Ctrl-C and SIGTERM that wait for the end of a step."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

__all__ = ["Interrupt", "Stopped", "deferred_interrupt"]


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, raised where the state of a run is whole."""


class Interrupt:
    """The handler: the first signal sets ``requested``, Ctrl-C after it raises KeyboardInterrupt at once.

    A second SIGTERM changes nothing: a process group and a supervisor may each send one for the same stop.
    """

    def __init__(self) -> None:
        self.requested = False

    def __call__(self, signum: int, frame: Any) -> None:
        if self.requested and signum == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.requested:
            os.write(2, b"\nstopping after this step; Ctrl-C stops at once\n")  # print is not reentrant
        self.requested = True


@contextmanager
def deferred_interrupt() -> Iterator[Interrupt]:
    """Inside, SIGINT and SIGTERM only leave a note; one that nobody has acted on raises KeyboardInterrupt at the end.

    Changes nothing outside the main thread (Python delivers signals there alone), where SIGINT is ignored, or where
    SIGTERM is or has a handler of the caller's own.
    """
    interrupt = Interrupt()
    with ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            if callable(signal.getsignal(signal.SIGINT)):
                stack.enter_context(_handled(signal.SIGINT, interrupt))
            handler = signal.getsignal(signal.SIGTERM)
            if handler in (signal.SIG_DFL, signal.default_int_handler) or isinstance(handler, Interrupt):
                stack.enter_context(_handled(signal.SIGTERM, interrupt))
        yield interrupt
    if interrupt.requested:
        raise KeyboardInterrupt


@contextmanager
def _handled(signum: signal.Signals, handler: Interrupt) -> Iterator[None]:
    previous = signal.signal(signum, handler)
    try:
        yield
    finally:
        signal.signal(signum, previous)
