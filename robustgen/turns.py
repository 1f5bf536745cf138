"""Threads take turns at what only one of them may use at a time: a model, and torch's global random state.

Whoever queries a model puts it in eval mode, freezes it and may hang hooks on it; a second thread would find it so, or
put it back half-way. So a thread takes all the modules that it needs at once, and others wait. Nothing is kept on the
modules themselves: they can be copied and saved as ever.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["RANDOM_STATE", "RandomStream", "seeded", "taking_turns"]

RANDOM_STATE = object()  # stands for torch's global random state among the things that threads take turns at

_changed = threading.Condition()
_holders: dict[int, list[int]] = {}  # id of a thing -> the thread that has it, and how many times over
_waiting: dict[int, set[int]] = {}  # a thread -> ids of the things that it waits for, in the order of their coming


@contextmanager
def taking_turns(*things: object) -> Iterator[None]:
    """Inside, no other thread is in here with one of ``things``, nor with a submodule of one that is an ``nn.Module``.

    All are taken at once, by one thread as often as it likes, so that two threads cannot each have what the other
    waits for, unless they take more inside. Who came first is first.

    Raises:
        RuntimeError: just that: waiting would never end.

    >>> net = nn.Sequential(nn.Linear(2, 2))
    >>> with taking_turns(net), taking_turns(net[0]):
    ...     pass
    """
    keys = {id(part) for thing in things for part in (thing.modules() if isinstance(thing, nn.Module) else (thing,))}
    me = threading.get_ident()
    with _changed:
        _waiting[me] = keys
        try:
            while _ahead(me):
                if _in_a_circle(me):
                    raise RuntimeError("two threads each wait for a model that the other uses: run them one by one")
                _changed.wait()
        finally:
            del _waiting[me]
        for key in keys:
            _holders.setdefault(key, [me, 0])[1] += 1
    try:
        yield
    finally:
        with _changed:
            for key in keys:
                _holders[key][1] -= 1
                if not _holders[key][1]:
                    del _holders[key]
            _changed.notify_all()


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
