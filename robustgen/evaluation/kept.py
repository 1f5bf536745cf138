"""What a killed evaluation finds again on disk: pieces, each made once, and a model's answers to the running attack.

An attack that is killed asks again only for the last of these answers. Searches are deterministic, so that with the
same answers they come to the same point; nothing of a search itself is kept. When answers are written is decided by a
clock, on which no result depends.
"""

import json
import re
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from itertools import count, takewhile
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from robustgen.files import load_tensors, read_json, save_tensors, write_json
from robustgen.training.distributed import World

__all__ = ["DiskJournal", "Keep", "Make", "OutOfTime", "anew", "kept_in", "kept_of"]

Make: TypeAlias = Callable[[], dict[str, Tensor]]
Keep: TypeAlias = Callable[[str, Collection[str], Make], dict[str, Tensor]]  # name, its tensors, how to make them


def anew(name: str, tensors: Collection[str], make: Make) -> dict[str, Tensor]:
    """What ``make`` makes; nothing is kept."""
    return make()


def kept_in(directory: Path) -> Keep:
    """What was made under a name is kept in ``directory``, which must belong to one evaluation."""

    def keep(name: str, tensors: Collection[str], make: Make) -> dict[str, Tensor]:
        path = directory / f"{name}.safetensors"
        if not path.exists():
            save_tensors(path, make())
        found = load_tensors(path)
        if found.keys() != set(tensors):
            raise ValueError(f"{path}: holds {', '.join(found) or 'nothing'}, not {', '.join(tensors)}")
        return found

    return keep


def kept_of(run_dir: Path, part: str, plan: Mapping[str, Any], resume: bool, world: World | None = None) -> Keep:
    """Pieces in ``run_dir/part``, all of this ``plan``, which processes of one ``world`` may share.

    Raises:
        ValueError: there are some already (without ``resume``), or of another plan.
    """
    directory, wanted = run_dir / part, json.loads(json.dumps(plan))
    path, world = directory / "plan.json", World() if world is None else world
    if not world.exists(path):
        if world.rank == 0:
            write_json(path, wanted)
    elif not resume:
        raise ValueError(f"{run_dir} already holds {part}: resume (--resume), or choose another directory")
    else:
        found = read_json(path, dict)
        different = [name for name in wanted if found.get(name) != wanted[name]]
        if different:
            verb = "differ" if different[1:] or different[0].endswith("s") else "differs"
            raise ValueError(f"{run_dir} holds {part} of another evaluation: {', '.join(different)} {verb}")
    return kept_in(directory)


class OutOfTime(Exception):
    """The time that an evaluation was given is used up; what it has done is kept.

    ``partly``: how many examples the stage that was broken off has done, and of how many, by its name.
    """

    def __init__(self, partly: dict[str, tuple[int, int]] | None = None) -> None:
        super().__init__("the time of this evaluation is used up; what it has done is kept, resume it")
        self.partly = partly or {}


EVERY = 5.0  # seconds
HELD = 2**26  # bytes, at most in memory


class DiskJournal:
    """Answers in files ``<path>.answers-<number>.safetensors``; see :class:`robustgen.attacks.queries.Journal`.

    ``out_of_time``: whether the search is to be broken off, by OutOfTime once all its answers are written.
    """

    def __init__(self, path: Path, out_of_time: Callable[[], bool] = lambda: False) -> None:
        self.path, self.out_of_time = path, out_of_time
        self.files = 0  # read or written
        self.known: deque[tuple[Tensor, ...]] = deque()
        self.new: list[tuple[Tensor, ...]] = []
        self.size, self.written = 0, time.monotonic()

    def _file(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.answers-{number:06d}.safetensors")

    def recall(self) -> tuple[Tensor, ...] | None:
        """The next answer of those that were written before; None from where on there is none."""
        if not self.known and not self.new and self._file(self.files).exists():
            self.known.extend(_unpacked(self._file(self.files)))
            self.files += 1
            self.written = time.monotonic()
        return self.known.popleft() if self.known else None

    def keep(self, answer: tuple[Tensor, ...]) -> None:
        """Add an answer; all new ones are written every few seconds.

        Raises:
            OutOfTime: the search is to be broken off.
        """
        self.new.append(tuple(t.detach().cpu().clone() for t in answer))  # the search may go on to change it
        self.size += sum(t.numel() * t.element_size() for t in answer)
        late = self.out_of_time()
        if late or self.size >= HELD or time.monotonic() - self.written >= EVERY:
            save_tensors(self._file(self.files), _packed(self.new))
            self.files += 1
            self.new, self.size, self.written = [], 0, time.monotonic()
        if late:
            raise OutOfTime

    def discard(self) -> None:
        """Remove its files: the attack has come to its end."""
        files = list(takewhile(Path.exists, map(self._file, count())))
        for file in reversed(files):  # what is left of them is a beginning
            with suppress(OSError):
                file.unlink()


def _packed(answers: list[tuple[Tensor, ...]]) -> dict[str, Tensor]:
    return {f"{k:08d}.{j}": t for k, answer in enumerate(answers) for j, t in enumerate(answer)}


def _unpacked(path: Path) -> list[tuple[Tensor, ...]]:
    answers: dict[int, dict[int, Tensor]] = {}
    for name, tensor in load_tensors(path).items():
        found = re.fullmatch(r"(\d{8})\.(\d+)", name)
        if found is None:
            raise ValueError(f"{path}: holds {name!r}, not a model's answers")
        answers.setdefault(int(found[1]), {})[int(found[2])] = tensor
    return [tuple(answer[j] for j in sorted(answer)) for _, answer in sorted(answers.items())]
