"""Threads take turns at what only one of them may use: a model, and what there is once a process.

Whoever queries a model puts it in eval mode, freezes it and may hang hooks on it; a second thread would find it so, or
put it back half-way. So a thread takes all the modules that it needs at once, and others wait. Nothing is kept on the
modules themselves: they can be copied and saved as ever.

A model that hands its own forward pass to other threads must not use this library in them: they would wait for the
thread that waits for them.
"""

import functools
import os
import threading
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = [
    "CUDNN",
    "RANDOM_STATE",
    "DeadlockError",
    "RandomStream",
    "seeded",
    "taking_turns",
    "training_alone",
    "warnings_set_to",
]

RANDOM_STATE = object()  # stands for torch's global random state among the things that threads take turns at
CUDNN = object()  # for its switches
_WARNINGS = object()  # for Python's list of filters

_changed = threading.Condition()
_holders: dict[int, list[int]] = {}  # id of a thing -> the thread that has it, and how many times over
_trainers: dict[int, list[int]] = {}  # likewise, of those that train
_waiting: dict[int, set[int]] = {}  # a thread -> ids of the things that it waits for, in the order of their coming


class DeadlockError(Exception):
    """Two threads each wait for what the other has."""


@contextmanager
def taking_turns(*things: object) -> Iterator[None]:
    """Inside, no other thread is in here with one of ``things``, or with a module or parameter that is part of one.

    Modules are looked for in what is called with them too: bound methods, partial functions, closures. All are taken at
    once, by one thread as often as it likes, so that two threads cannot each have what the other waits for, unless
    they take more inside. Who came first is first.

    Raises:
        DeadlockError: they did, and waiting would never end.

    >>> net = nn.Sequential(nn.Linear(2, 2))
    >>> with taking_turns(net), taking_turns(lambda x: net[0](x)):
    ...     pass
    """
    keys = {key for thing in things for key in _keys(thing)}
    me = threading.get_ident()
    with _changed:
        _waiting[me] = keys
        try:
            while _ahead(me):
                if _in_a_circle(me):
                    raise DeadlockError("two threads each wait for a model that the other uses: run them one by one")
                _changed.wait()
        finally:
            del _waiting[me]
            _changed.notify_all()  # who queued behind this one need not, where it gave up
        _take(_holders, keys, me)
    try:
        yield
    finally:
        with _changed:
            _give_back(_holders, keys)
            _changed.notify_all()


@contextmanager
def training_alone(model: nn.Module) -> Iterator[None]:
    """Inside, no other thread trains ``model`` or a part of it: it would find the wrong modes and frozen parameters.

    It is not made to wait, as trainings are long; others may still attack the model or score with it, between steps.

    Raises:
        RuntimeError: another thread does.
    """
    keys, me = set(_keys(model)), threading.get_ident()
    with _changed:
        if any(_trainers[key][0] != me for key in keys & _trainers.keys()):
            raise RuntimeError("another thread trains this network or a part of it: train one after the other")
        _take(_trainers, keys, me)
    try:
        yield
    finally:
        with _changed:
            _give_back(_trainers, keys)


def _take(table: dict[int, list[int]], keys: set[int], thread: int) -> None:
    for key in keys:
        table.setdefault(key, [thread, 0])[1] += 1


def _give_back(table: dict[int, list[int]], keys: set[int]) -> None:
    for key in keys:
        table[key][1] -= 1
        if not table[key][1]:
            del table[key]


def _keys(thing: object, depth: int = 3) -> Iterator[int]:
    """The ids of all modules in ``thing`` and of their tensors; of a thing that stands for something its own."""
    if isinstance(thing, nn.Module):
        for module in thing.modules():
            yield id(module)
            yield from (id(t) for t in (*module._parameters.values(), *module._buffers.values()) if t is not None)
    elif type(thing) is object:
        yield id(thing)
    elif depth:
        for part in _called_with(thing):
            yield from _keys(part, depth - 1)


def _called_with(thing: object) -> list[object]:
    """What a callable calls, or holds as its model."""
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    cells = [cell for cell in getattr(thing, "__closure__", None) or () if cell != types.CellType()]  # else not yet set
    parts = [getattr(thing, "__self__", None), getattr(thing, "model", None), *(cell.cell_contents for cell in cells)]
    return [part for part in parts if part is not None]


def _ahead(thread: int) -> set[int]:
    """The threads that ``thread`` waits for: who has what it wants, and who came before it and wants that too.

    The latter only where it has nothing itself, which they in turn may be waiting for.
    """
    wanted = _waiting.get(thread, set())
    found = {_holders[key][0] for key in wanted if key in _holders}
    if all(holder != thread for holder, _ in _holders.values()):
        for other, things in _waiting.items():
            if other == thread:
                break
            if wanted & things:
                found.add(other)
    return found - {thread}


def _in_a_circle(thread: int) -> bool:
    """Whether one of those that ``thread`` waits for waits, in the end, for it."""
    seen: set[int] = set()
    ahead = _ahead(thread)
    while ahead:
        if thread in ahead:
            return True
        seen |= ahead
        ahead = set().union(*(_ahead(other) for other in ahead)) - seen
    return False


class RandomStream:
    """Random numbers of torch's global generators that are this stream's own.

    Inside ``with stream.drawing():`` what draws from the global generators, of the CPU and of every GPU in use, draws
    the numbers of ``seed``, from where the last such block ended. Before and after, the global random state is as if
    nobody had drawn. Other threads with a stream wait meanwhile.

    Attributes:
        drawn: whether anything has been drawn since the stream began.

    >>> stream, before = RandomStream(0), torch.get_rng_state()
    >>> with stream.drawing():
    ...     first = torch.rand(2)
    >>> with stream.drawing():
    ...     second = torch.rand(2)
    >>> torch.equal(torch.cat([first, second]), torch.rand(4, generator=torch.Generator().manual_seed(0)))
    True
    >>> torch.equal(before, torch.get_rng_state()), stream.drawn
    (True, True)
    """

    def __init__(self, seed: int) -> None:
        self.seed, self.drawn = seed, False
        self._states: dict[int, Tensor] = {}  # by GPU; -1 is the CPU

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Draw from this stream inside; see the class."""
        with seeded(None if self._states else self.seed):
            _restore(self._states)
            before = _states()
            try:
                yield
            finally:
                self._states = _states()
                self.drawn |= any(not torch.equal(s, before.get(k, s)) for k, s in self._states.items())


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Whatever is drawn inside, from ``seed`` on, leaves torch's random state as it was; threads take turns."""
    with taking_turns(RANDOM_STATE):
        before = _states()
        try:
            if seed is not None:
                torch.default_generator.manual_seed(seed)  # torch.manual_seed takes far longer
                for k in _gpus():
                    torch.cuda.default_generators[k].manual_seed(seed)
            yield
        finally:
            _restore(before)


@contextmanager
def warnings_set_to(action: Literal["ignore", "error"], category: type[Warning] = Warning) -> Iterator[None]:
    """Warnings of ``category`` are ignored or raised inside; threads take turns, as Python has one list of filters."""
    with taking_turns(_WARNINGS), warnings.catch_warnings():
        warnings.simplefilter(action, category)
        yield


def _forget() -> None:
    """In a forked process: the other threads are not there, nor what they had."""
    global _changed
    _changed = threading.Condition()
    for table in (_holders, _trainers, _waiting):
        table.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _gpus() -> range:
    return range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)


def _states() -> dict[int, Tensor]:
    return {-1: torch.get_rng_state()} | {k: torch.cuda.get_rng_state(k) for k in _gpus()}


def _restore(states: dict[int, Tensor]) -> None:
    for k, state in states.items():
        if k < 0:
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, k)
