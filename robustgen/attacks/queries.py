"""The model under attack: the only place that asks it, and counts what it was asked."""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from robustgen.attacks.losses import LOSSES
from robustgen.checks import warn_user
from robustgen.model import Model, check_rows_alone, is_stochastic, kl_divergence, logits_of, naming_inputs
from robustgen.turns import RandomStream

__all__ = ["Answered", "Journal", "Oracle", "Query", "Search", "gaps"]


@dataclass(frozen=True)
class Query:
    """What a search yields to ask the model at ``z`` (n, ...), the points of its rows ``i`` (n,).

    ``y`` (n,) are the labels that a gradient is about, ``beside`` (n, k) the classes of its logit gaps or the logits
    from which to diverge. Queries of the same ``kind`` are answered together: ("logits",), ("verdict",), ("gradient",
    loss, targeted, samples), ("joint", loss, targeted, samples), ("rivals", k, samples), ("divergence",).
    """

    i: Tensor
    z: Tensor
    y: Tensor
    beside: Tensor
    kind: tuple[Any, ...]


# Yields queries and is sent their answers: logits (n, C), or logits and gradients.
Search: TypeAlias = Generator[Query, Any, None]
# A part of a search that ends with three tensors (n, ...).
Answered: TypeAlias = Generator[Query, Any, tuple[Tensor, Tensor, Tensor]]


def gaps(logits: Tensor, y: Tensor, rivals: Tensor) -> Tensor:
    """How far each of ``rivals`` (n, k) is behind ``y`` (n,), (n, k); -1 is the class that is highest, y apart."""
    top = logits.detach().scatter(1, y[:, None], float("-inf")).argmax(1, keepdim=True)
    return logits.gather(1, y[:, None]) - logits.gather(1, torch.where(rivals < 0, top, rivals))


class Journal(Protocol):
    """Answers of a model in the order in which they were given: a search that is run again need not ask for them."""

    def recall(self) -> tuple[Tensor, ...] | None:
        """The next answer that is known; None from where on none is."""

    def keep(self, answer: tuple[Tensor, ...]) -> None:
        """Add an answer."""


class Oracle:
    """Answers queries about samples of ``x`` (N, ...), at most ``slots`` rows in one pass of the model.

    ``stochastic``: whether two passes differ; ``draws``: whether one draws from torch's global generators, which then
    give it the numbers of ``seed``. ``forwards`` and ``backwards`` (N,): passes for each sample (the first look at four
    of them is not counted). Searches may be answered by ``searched``, a prepared copy of the model; verdicts never are.

    ``free`` (N, ...), bool, or None: the elements that may differ from x; the model sees the others as they are in x.
    ``thorough``: look eight times for a difference, not two, and refuse a model whose logits for an input depend on the
    other inputs in its batch. What a ``journal`` knows the model is not asked again; one that draws is not kept in it.
    ``watch`` is told of the forwards and backwards of what it is asked.
    """

    def __init__(
        self,
        model: Model,
        x: Tensor,
        slots: int,
        *,
        seed: int = 0,
        free: Tensor | None = None,
        thorough: bool = True,
        journal: Journal | None = None,
        watch: Callable[[int, int], None] | None = None,
    ) -> None:
        self.model = self.searched = model
        self.x, self.slots, self.free = x, slots, free
        self.draws, self._stream = True, RandomStream(seed)
        self.journal: Journal | None = None
        self._watch = watch
        self.forwards = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self.backwards = torch.zeros_like(self.forwards)
        few = x[:4].clone()
        version = few._version
        with naming_inputs(few):
            self.first = self._forward(model, few)
        if few._version != version:
            raise ValueError("the model changes its input in place: let its first layer work on a copy")
        passes = 8 if thorough else 2
        self.stochastic = is_stochastic(lambda: self._forward(model, few), passes, self.first)
        self.draws = self.stochastic or self._stream.drawn
        if thorough and not self.stochastic:
            check_rows_alone(lambda z: self._forward(model, z), few)
        self.journal = None if self.draws else journal

    @property
    def prepared(self) -> bool:
        """Whether searches are answered by a copy."""
        return self.searched is not self.model

    def seen(self, i: Tensor, z: Tensor) -> Tensor:
        """``z`` (n, ...) of the rows ``i`` as the model sees it: as in x where elements are not free."""
        return z if self.free is None else torch.where(self.free[i], z, self.x[i])

    def verdict(self, i: Tensor, z: Tensor) -> Tensor:
        """The model's own logits (n, C) at ``z``, without gradient."""
        self.forwards[i] += 1
        return torch.cat([self._forward(self.model, part) for part in self.seen(i, z).split(self.slots)])

    def _random(self) -> AbstractContextManager[None]:
        """Where the model may draw."""
        return self._stream.drawing() if self.draws else nullcontext()

    def answer(self, queries: Sequence[Query]) -> list[Any]:
        """One answer for each query; those of one kind share their passes."""
        answers: list[Any] = [None] * len(queries)
        for kind in dict.fromkeys(query.kind for query in queries):
            chosen = [k for k, query in enumerate(queries) if query.kind == kind]
            sizes = [len(queries[k].i) for k in chosen]
            rows = [torch.cat([getattr(queries[k], name) for k in chosen]) for name in ("i", "z", "y", "beside")]
            parts = zip(*(t.split(self.slots) for t in rows), strict=True)
            found = [self._answer(kind, *part) for part in parts]
            columns = [torch.cat(column).split(sizes) for column in zip(*found, strict=True)]
            for k, row in zip(chosen, zip(*columns, strict=True), strict=True):
                answers[k] = row[0] if kind[0] in ("logits", "verdict") else row
        return answers

    def _answer(self, kind: tuple[Any, ...], i: Tensor, z: Tensor, y: Tensor, beside: Tensor) -> tuple[Tensor, ...]:
        if kind[0] == "logits":
            self.forwards[i] += 1
            return (self._forward(self.searched, self.seen(i, z)),)
        if kind[0] == "verdict":
            return (self.verdict(i, z),)
        if kind[0] == "gradient":
            _, loss, targeted, samples = kind
            logits, (direction,) = self._differentiate(i, z, lambda v: [LOSSES[loss](v, y, targeted)], samples)
            return logits, direction
        if kind[0] == "divergence":
            logits, (direction,) = self._differentiate(i, z, lambda v: [kl_divergence(beside, v)], 1)
            return logits, direction
        if kind[0] == "joint":
            _, loss, targeted, samples = kind
            logits, gradients = self._differentiate(
                i, z, lambda v: [LOSSES[loss](v[:, :-1], y, targeted), -v[:, -1]], samples
            )
        else:
            logits, gradients = self._differentiate(i, z, lambda v: list((-gaps(v, y, beside)).unbind(1)), kind[2])
        return logits, torch.stack(gradients, 1)

    def _tell(self, forwards: int, backwards: int) -> None:
        if self._watch is not None:
            self._watch(forwards, backwards)

    def _known_or(self, ask: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What the journal knows, or else the answer, which it then keeps."""
        if self.journal is None:
            return ask()
        answer = self.journal.recall()
        if answer is None:
            answer = tuple(t.contiguous() for t in ask())  # laid out as it will be when it is read
            self.journal.keep(answer)
        return tuple(t.to(self.forwards.device) for t in answer)

    def _forward(self, model: Model, z: Tensor) -> Tensor:
        def ask() -> tuple[Tensor, ...]:
            with torch.no_grad(), self._random():
                found = logits_of(model(z))
            self._tell(len(z), 0)
            return (found,)

        (logits,) = self._known_or(ask)
        if len(logits) != len(z):
            raise ValueError(f"the model returned {len(logits)} rows of logits for {len(z)} inputs")
        return logits

    def _differentiate(
        self, i: Tensor, z: Tensor, values: Callable[[Tensor], list[Tensor]], samples: int
    ) -> tuple[Tensor, list[Tensor]]:
        """Mean logits (n, C) and the mean gradient (n, ...) of each of ``values(logits)``, (n,) every one."""
        self.forwards[i] += samples
        logits, *gradients = self._known_or(partial(self._slopes, i, z, values, samples))
        self.backwards[i] += samples * len(gradients)
        return logits, gradients

    def _slopes(
        self, i: Tensor, z: Tensor, values: Callable[[Tensor], list[Tensor]], samples: int
    ) -> tuple[Tensor, ...]:
        total_logits: Tensor | None = None
        totals: list[Tensor] = []
        for _ in range(samples):
            with torch.enable_grad(), self._random():
                leaf = z.detach().clone().requires_grad_(True)
                logits = logits_of(self.searched(self.seen(i, leaf)))
                if not logits.requires_grad:
                    raise ValueError("the model's logits do not depend on x through differentiable operations")
                ascents = [value.sum() for value in values(logits)]
                gradients = [
                    torch.autograd.grad(a, leaf, allow_unused=True, retain_graph=k < len(ascents))[0]
                    for k, a in enumerate(ascents, 1)
                ]
            self._tell(len(z), len(z) * len(gradients))
            if any(g is None for g in gradients):
                raise ValueError("the model's logits do not depend on x through differentiable operations")
            totals = [t + g for t, g in zip(totals, gradients, strict=True)] if totals else gradients
            total_logits = logits.detach() if total_logits is None else total_logits + logits.detach()
        if not all(bool(t.isfinite().all()) for t in totals):
            warn_user("the model's gradient is NaN or Inf for some inputs; they cannot be attacked by it")
            totals = [torch.where(t.isfinite(), t, 0.0) for t in totals]
        assert total_logits is not None
        return total_logits / samples, *totals
