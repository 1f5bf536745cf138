"""Locks on files and directories: freed when their process ends, however it ends.

Where the system or the file system has no such locks nothing is locked, and everything else goes on.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None  # type: ignore[assignment]

__all__ = ["alone", "lock"]


def lock(handle: int, *, wait: bool) -> bool:
    """Lock an open file or directory until it is closed; whether it is locked now.

    Raises:
        BlockingIOError: another handle has the lock, of whatever process, and ``wait`` is False.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        return False
    return True


_ATTEMPTS = 10_000  # to lock a directory that others may be removing


class _Held(threading.local):
    directories: frozenset[Path] = frozenset()


_held = _Held()  # by this thread


@contextmanager
def alone(directory: Path, *, wait: bool) -> Iterator[None]:
    """Inside, this thread is the only one of all processes that is in here for ``directory``.

    The directory is made if it is missing, and if nothing was written there removed again. A thread that is in may
    enter again: a command holds its run, and the training in it the same directory.

    Args:
        wait: until another one has left; False: refuse.

    Raises:
        BlockingIOError: another process or thread is in, and ``wait`` is False.
    """
    place, before = directory.resolve(), _held.directories
    if fcntl is None or place in before:
        yield
        return
    missing = not directory.exists()
    try:
        handle = _locked(directory, wait)
    except BlockingIOError:
        line = f"{directory} is in use by another process: wait for its end, or choose another directory"
        raise BlockingIOError(line) from None
    _held.directories = before | {place}
    try:
        yield
    finally:
        _held.directories = before
        if missing:
            with suppress(OSError):  # not empty
                directory.rmdir()
        os.close(handle)  # and with it the lock, as when the process dies


def _locked(directory: Path, wait: bool) -> int:
    """A handle of the directory that has the lock; the directory may be removed by others until then."""
    if directory.is_file():
        raise NotADirectoryError(f"{directory} is no directory: name another one")
    for attempt in range(_ATTEMPTS):
        try:
            directory.mkdir(parents=True, exist_ok=True)
            handle = os.open(directory, os.O_RDONLY)
        except (FileExistsError, FileNotFoundError) as error:  # removed by another one meanwhile
            if attempt + 1 == _ATTEMPTS:
                raise OSError(error.errno, "cannot be made", str(directory)) from None
            continue
        with ExitStack() as stack:
            stack.callback(os.close, handle)
            lock(handle, wait=wait)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(directory), os.fstat(handle)):
                    stack.pop_all()
                    return handle
    raise BlockingIOError(f"{directory} is removed and made again by another process")
