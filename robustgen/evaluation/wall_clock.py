"""How long an evaluation took, in all the calls that worked at it.

A call that is killed outright loses the seconds since something was last kept; one that is interrupted loses none.
"""

import time
from collections.abc import Collection
from pathlib import Path

from torch import Tensor

from robustgen.evaluation.kept import Keep, Make
from robustgen.files import read_json, write_json
from robustgen.structure import Between
from robustgen.training.distributed import current_world

__all__ = ["WallClock"]

_STRUCTURE = {"seconds": Between(0, 1e12), "finished": bool}


class WallClock:
    """Seconds of an evaluation in all its calls; to read a finished one again adds none.

    Args:
        directory: of what is kept of the evaluation, where the first process keeps the seconds too; None: nowhere.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     took = WallClock(Path(directory)).keep(finished=True)
    ...     took == WallClock(Path(directory)).seconds
    True
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._began, self._before, self.idle = time.perf_counter(), 0.0, False
        self._file = None if directory is None else directory / "wall_clock.json"
        if self._file is not None and self._file.exists():
            found = read_json(self._file, _STRUCTURE)
            self._before, self.idle = found["seconds"], found["finished"]

    @property
    def seconds(self) -> float:
        """So far, to the hundredth."""
        return self._before if self.idle else round(self._before + time.perf_counter() - self._began, 2)

    def work(self) -> None:
        """Something is made that a finished evaluation would have had: this call counts."""
        self.idle = False

    def keep(self, *, finished: bool = False) -> float:
        """Write the seconds, and whether they are all; only once the directory is known to be of this evaluation."""
        seconds = self.seconds
        if self._file is not None and not self.idle and current_world().rank == 0:
            write_json(self._file, {"seconds": seconds, "finished": finished})
        return seconds

    def each(self, keep: Keep) -> Keep:
        """``keep``, and with each piece that is made the seconds, also where the making is broken off."""

        def kept(name: str, tensors: Collection[str], make: Make) -> dict[str, Tensor]:
            def made() -> dict[str, Tensor]:
                self.work()
                try:
                    return make()
                finally:
                    self.keep()

            return keep(name, tensors, made)

        return kept
