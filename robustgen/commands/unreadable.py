"""Files that cannot be read: each is told and counted, the others are used, and the command fails at its end."""

from collections.abc import Callable

__all__ = ["Unreadable"]

_REPORTED = 20  # by a line each; further ones are counted


class Unreadable:
    """What could not be read so far, each file once, however often it is tried.

    Args:
        tell: called with a kind and a line, what the user is to know meanwhile.
        strict: stop at the first such file.
    """

    def __init__(self, tell: Callable[[str, object], None], strict: bool = False) -> None:
        self.strict = strict
        self._tell = tell
        self._found: set[str] = set()

    def __len__(self) -> int:
        return len(self._found)

    @property
    def skip(self) -> Callable[[ValueError], None] | None:
        """What takes the error of a file; None where it is to be raised."""
        return None if self.strict else self._add

    def _add(self, error: ValueError) -> None:
        if str(error) in self._found:
            return
        self._found.add(str(error))
        if len(self) <= _REPORTED:
            self._tell("skipped", error)
        if len(self) == _REPORTED + 1:
            self._tell("skipped", "further files that cannot be read are counted")

    def finish(self) -> None:
        """RuntimeError where there are any."""
        if self._found:
            files = "1 file" if len(self) == 1 else f"{len(self)} files"
            raise RuntimeError(f"{files} could not be read, the others are used")
