"""How attacks are executed: many samples in a fixed number of slots, on the model or on a prepared copy of it.

A search of a few samples is a generator that yields its queries (a wave). All waves in flight are asked together, and
when samples leave theirs, solved or at the end, others that wait enter: further samples, and further runs (restarts,
targets) of those that still stand. So batches stay full however fast samples fall.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustgen.attacks.problem import Problem
from robustgen.attacks.queries import Journal, Query, Search
from robustgen.checks import check_integers, plain_fields

__all__ = ["Engine", "run_searches"]


@dataclass(frozen=True, kw_only=True)
class Engine:
    """How an attack is executed; what it looks for does not depend on it, nor, up to rounding, what it finds.

    Args:
        slots: inputs in one pass of the model, and so what memory it takes.
        prepare: search on a copy of the model with batch norms folded and in channels-last layout, where there is one
            that agrees with the model: see :func:`~robustgen.attacks.prepare.prepare`. Every success is verified on
            the model itself.
        precision: of the searches: "float32", or "bfloat16", which needs ``prepare`` (inputs stay float32, successes
            are verified in float32).
        journal: of the model's answers, where they are kept in case the search is killed; a stochastic model's are not.
        watch: told of the passes of the model as they are made, so many forwards and backwards of one input each.

    Raises:
        TypeError: slots is not an integer.
        ValueError: slots below 1, or an unknown precision.
    """

    slots: int = 256
    prepare: bool = True
    precision: str = "float32"
    journal: Journal | None = None
    watch: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        plain_fields(self)
        check_integers(slots=self.slots)
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be 'float32' or 'bfloat16', got {self.precision!r}")
        if self.precision != "float32" and not self.prepare:
            raise ValueError(f"precision {self.precision!r} is that of a prepared copy: it needs prepare=True")


class _Wave:
    """One run of the search of some rows, at its next query (None: at its end)."""

    def __init__(self, run: int, rows: Tensor, search: Search) -> None:
        self.run, self.rows, self.search = run, rows, search
        self.query: Query | None = None
        self.send(None)

    def send(self, answer: Any) -> None:
        try:
            self.query = self.search.send(answer)
        except StopIteration:
            self.query = None


def run_searches(problem: Problem, search: Callable[[Tensor, int], Search], runs: int) -> None:
    """Let every active row have its ``runs`` of ``search(rows, run)``, one after the other while it stands."""
    slots = problem.oracle.slots
    waiting: deque[tuple[int, Tensor]] = deque([(0, problem.active())])
    waves: list[_Wave] = []
    while waiting or waves:
        free = slots - sum(len(wave.query.i) for wave in waves if wave.query)
        while waiting and (not waves or 4 * free >= slots):  # not in dribs and drabs: every wave has a cost of its own
            run, rows = _next(waiting, max(1, free))
            wave = _Wave(run, rows, search(rows, run))
            waves.append(wave)
            free -= len(rows)
        asked = [wave for wave in waves if wave.query is not None]
        answers = problem.oracle.answer([wave.query for wave in asked if wave.query])
        for wave, answer in zip(asked, answers, strict=True):
            wave.send(answer)
        for wave in [wave for wave in waves if wave.query is None]:
            waves.remove(wave)
            left = wave.rows[~problem.solved[wave.rows]] if problem.early_stop else wave.rows
            if wave.run + 1 < runs and len(left):
                waiting.append((wave.run + 1, left))


def _next(waiting: deque[tuple[int, Tensor]], room: int) -> tuple[int, Tensor]:
    """At most ``room`` of the rows that wait longest, all for the same run."""
    run, rows = waiting.popleft()
    while waiting and waiting[0][0] == run and len(rows) < room:
        rows = torch.cat([rows, waiting.popleft()[1]])
    if len(rows) > room:
        waiting.appendleft((run, rows[room:]))
    return run, rows[:room]
