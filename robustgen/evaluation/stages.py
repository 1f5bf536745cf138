"""The stages of an evaluation: how long each took, about how long is left, and whether the time for them is used up.

The estimate of what is left. The price of an example in a stage is the passes of the model that the settings of its
attack allow, a gradient counting as ``GRADIENT`` of them; an example that is attacked by itself, and so fills no batch,
counts as ``ALONE`` examples. Examples that have fallen, or were misclassified from the start, are not counted. Then

- a stage of which a twentieth is measured takes for each further example what its examples took so far;
- any other takes its price times what a pass has taken, over all that this process has measured.

Attacks end early where they succeed, in the stages that were measured as in those to come: what a pass takes is a mean
over both kinds of examples, and nothing more than "about" is claimed.
"""

import math
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from robustgen.attacks import Attack, HopSkipJump, NoiseSearch, Square
from robustgen.evaluation.kept import Keep, Make, OutOfTime
from robustgen.evaluation.wall_clock import WallClock
from robustgen.files import read_json, write_json
from robustgen.progress import bar

__all__ = ["ALONE", "GRADIENT_FREE", "Stages", "asked", "passes"]

GRADIENT_FREE = (NoiseSearch, Square, HopSkipJump)
BACKWARD = 2  # forward passes that a backward one costs, about
GRADIENT = 1 + BACKWARD
ALONE = 10
OWN = 0.05  # of a stage: from there on it is judged by itself
EVERY = 5.0  # seconds between two writes of what the stages took


def asked(attack: Attack) -> int:
    """How often one part of an attack may ask about an example, by its settings."""
    inner = getattr(attack, "attack", attack)
    budgets = (getattr(inner, name, 1) for name in ("steps", "search_steps", "restarts", "n_targets", "n_queries"))
    return math.prod(budget for budget in budgets if isinstance(budget, int) and budget > 0)


def passes(attack: Attack) -> int:
    """The price of an example, in passes of the model.

    >>> from robustgen.attacks import PGD
    >>> passes(PGD(steps=40, restarts=2)), passes(NoiseSearch(n_queries=20))
    (240, 20)
    """

    def price(part: Attack) -> int:
        inner = getattr(part, "attack", part)
        each = 1 if isinstance(inner, GRADIENT_FREE) else GRADIENT * int(getattr(inner, "eot_samples", 1))
        return asked(part) * each

    return sum(map(price, attack.parts()))


@dataclass
class _Stage:
    price: float  # passes, of an example
    examples: float
    done: float = 0.0
    measured: float = 0.0  # of these, in this process
    seconds: float = 0.0  # that they took
    ended: bool = False


class Stages:
    """Keeps the time of an evaluation's stages, and shows one bar of all of them.

    Args:
        title: of the evaluation.
        file: where seconds are kept, so that a resumed evaluation adds up; None: nowhere.
        until: when its time is used up, on the clock of ``time.perf_counter``; None: never.
        wall: of the whole evaluation, kept whenever these are; where it is idle, its stages take nothing either.
    """

    def __init__(
        self, title: str, file: Path | None = None, until: float | None = None, wall: WallClock | None = None
    ) -> None:
        self.title, self.until = title, until
        self._wall = WallClock() if wall is None else wall
        self._stages: dict[str, _Stage] = {}
        self._begun: dict[str, None] = {}  # in their order
        self._file, self._before = file, dict[str, float]()
        self._name = ""  # of the stage under way
        self._asked = 0.0  # passes since its last example that is done
        self._note = ""
        self._started = self._began = self._written = self._looked = time.perf_counter()
        self._bar = bar(title, 1.0, logged=True)

    def close(self) -> None:
        """The end of the bar."""
        self._bar.close()

    def recall(self) -> None:
        """Read what was kept of the evaluation that is resumed."""
        if self._file is not None and self._file.exists():
            self._before = read_json(self._file, {str: float})

    @property
    def seconds(self) -> dict[str, float]:
        """What each stage has taken, in all processes that worked at this evaluation one after the other."""
        if self._wall.idle:
            return self._before
        names = dict.fromkeys([*self._before, *self._begun])
        now = {name: self._stages[name].seconds for name in self._begun}
        return {name: round(self._before.get(name, 0.0) + now.get(name, 0.0), 2) for name in names}

    @property
    def out_of_time(self) -> bool:
        """Whether the time is used up."""
        return self.until is not None and time.perf_counter() >= self.until

    def expect(self, name: str, price: float, examples: int) -> None:
        """A stage will search for so many examples at this price in passes; may be said again until it begins."""
        self._stages[name] = _Stage(price, examples)

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """The stage is under way; its seconds count and are kept, also where it is broken off."""
        self._name, self._note, self._asked, self._began = name, "", 0.0, time.perf_counter()
        self._begun[name] = None
        self._show()
        try:
            yield
            self._stages[name].ended = True
            self._stages[name].done = self._stages[name].examples
            self._show()
        finally:
            self._measure()
            self._name = ""
            self._keep()

    def ask(self, forwards: int, backwards: int) -> None:
        """The model has made so many passes, each about one example of the stage under way."""
        self._asked += forwards + BACKWARD * backwards
        if time.perf_counter() - self._written >= EVERY:
            self._measure()
            self._keep()
        if time.perf_counter() - self._looked > 0.1:
            self._show()

    def advance(self, examples: int, *, measured: bool = True, note: str = "") -> None:
        """So many examples of the stage under way are done; not ``measured``: they were done before."""
        stage = self._stages[self._name]
        stage.done += examples
        self._asked, self._note = 0.0, note
        if measured:
            self._wall.work()
            self._measure()
            stage.measured += examples
        else:
            self._began = time.perf_counter()
        if time.perf_counter() - self._written >= EVERY:
            self._keep()
        self._show()

    def each(self, keep: Keep) -> Keep:
        """``keep`` where each piece is an example of the stage under way; OutOfTime before one that is to be made."""

        def kept(name: str, tensors: Collection[str], make: Make) -> dict[str, Tensor]:
            made = False

            def in_time() -> dict[str, Tensor]:
                nonlocal made
                if self.out_of_time:
                    raise OutOfTime
                made = True
                return make()

            found = keep(name, tensors, in_time)
            self.advance(1, measured=made)
            return found

        return kept

    def left(self) -> float | None:
        """About how many seconds; None while nothing is measured."""
        spent = {name: stage.seconds for name, stage in self._stages.items()}
        measured = {name: stage.measured for name, stage in self._stages.items()}
        rest = {name: stage.examples - stage.done for name, stage in self._stages.items() if not stage.ended}
        if self._name:
            part = min(self._asked / self._stages[self._name].price, rest.get(self._name, 0.0))
            spent[self._name] += time.perf_counter() - self._began
            measured[self._name] += part
            rest[self._name] = rest.get(self._name, 0.0) - part
        done = sum(stage.price * measured[name] for name, stage in self._stages.items())
        if not done:
            return None
        a_pass = sum(spent.values()) / done

        def each(name: str) -> float:
            stage = self._stages[name]
            by_itself = measured[name] > 0 and measured[name] >= OWN * stage.examples
            return spent[name] / measured[name] if by_itself else stage.price * a_pass

        return sum(examples * each(name) for name, examples in rest.items())

    def _measure(self) -> None:
        now = time.perf_counter()
        self._stages[self._name].seconds += now - self._began
        self._began = now

    def _keep(self) -> None:
        self._written = time.perf_counter()
        if not self._wall.idle:
            self._wall.keep()
            if self._file is not None:
                write_json(self._file, self.seconds)

    def _show(self) -> None:
        if self._bar.disable:
            return
        self._looked = time.perf_counter()
        if (left := self.left()) is not None:
            self._bar.n = self._looked - self._started
            self._bar.total = self._bar.n + left
        self._bar.set_description_str(f"{self.title}, {self._name.removeprefix('attack: ')}", refresh=False)
        self._bar.set_postfix_str(self._note, refresh=False)
        self._bar.update(0)
