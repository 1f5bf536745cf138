"""Guards that put back the weights from before something went wrong; one against catastrophic overfitting.

Wong, Rice and Kolter, "Fast is better than free: Revisiting adversarial training", 2020, section 5: within a few steps
a network trained with a single-step attack may learn to stand against that attack alone; robust accuracy under PGD, on
a batch of the training data, tells, and the weights from before are kept. Going on with a multi-step attack from there
is this library's addition.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from robustgen.checks import check_integers, plain_fields
from robustgen.model import evaluating, logits_of
from robustgen.structure import check_structure
from robustgen.training.batches import Batch
from robustgen.training.distributed import World
from robustgen.training.objective import Objective, describe

__all__ = ["Guard", "Judgement", "OverfittingGuard", "Watch"]


class Judgement(NamedTuple):
    """What a guard says of the weights.

    Attributes:
        row: what to log.
        level: the higher, the better; the guard is told the highest so far.
        good: whether these weights are to be put back, should the next be bad.
        wrong: what is wrong, one line; "": nothing.
    """

    row: dict[str, float]
    level: float
    good: bool
    wrong: str


class Guard(Protocol):
    """What a trainer asks, every so many steps, about the weights.

    Attributes:
        every: steps between checks.
        instead: the objective to go on with once weights were put back; None ends the run.
    """

    @property
    def every(self) -> int: ...

    @property
    def instead(self) -> Objective | None: ...

    def judge(self, model: nn.Module, batch: Batch, step: int, world: World, highest: float) -> Judgement:
        """After ``step`` completed steps, the last of them on ``batch``; ``highest`` of all levels so far, or 0."""

    def describe(self) -> dict[str, Any]:
        """Every setting, JSON-able."""


@dataclass(frozen=True, kw_only=True)
class OverfittingGuard:
    """Acts when the network of a :class:`Trainer` stands against the attack it is trained with and no other.

    Every so many steps the batch just trained on is attacked, in eval mode. Overfitting is declared where accuracy
    under the strong attack is both more than ``drop`` below and less than half of what it was at its highest and of
    what it is under the weak attack. The trainer then warns, puts back the weights of the last check that was at most
    half a drop below the highest, and from there goes on with the objective ``instead`` for the rest of the steps, or
    without one ends the run; resumed, such a run is at its end. A network that never was robust does not fall, and is
    not noticed.

    Logged with each epoch, as of the last check: ``guard_weak_accuracy`` and ``guard_strong_accuracy``; once the guard
    has acted also ``kept_step``, the step whose weights were put back.

    Args:
        weak: the attack of the objective, callable ``attack(model, x, y, *, ids) -> x_adv``.
        strong: one that is not fooled by a masked gradient as easily: PGD with several steps.
        every: steps between checks.
        drop: of accuracy, in (0, 1).
        instead: the objective to go on with, one whose attack takes several steps; None ends the run.

    Raises:
        ValueError: a value out of range.
    """

    weak: Any
    strong: Any
    every: int = 50
    drop: float = 0.2
    instead: Objective | None = None

    def __post_init__(self) -> None:
        plain_fields(self)
        check_integers(every=self.every)
        if not 0 < self.drop < 1:
            raise ValueError(f"drop must be in (0, 1), got {self.drop}")

    def accuracies(self, model: nn.Module, batch: Batch, step: int, world: World) -> tuple[float, float]:
        """Accuracy under the weak and under the strong attack, over the shares of ``batch`` of all processes."""
        if batch.y is None:
            raise ValueError("OverfittingGuard needs labels: pass data as (x, y)")
        ids = batch.ids + step * 2**32
        hits = []
        for attack in (self.weak, self.strong):
            with torch.enable_grad():
                x_adv = attack(model, batch.x, batch.y, ids=ids).detach()
            with evaluating(model), torch.no_grad():
                hits.append((logits_of(model(x_adv)).argmax(1) == batch.y).sum())
        counts = world.reduce(torch.stack([*hits, torch.full_like(hits[0], len(ids))])).tolist()
        return counts[0] / counts[2], counts[1] / counts[2]

    def judge(self, model: nn.Module, batch: Batch, step: int, world: World, highest: float) -> Judgement:
        weak, strong = self.accuracies(model, batch, step, world)
        row = {"guard_weak_accuracy": weak, "guard_strong_accuracy": strong}
        highest = max(highest, strong)
        before, wrong = min(highest, weak), ""
        if strong < before - self.drop and strong < before / 2:  # a small batch alone may cost a drop of 0.2
            wrong = (
                f"catastrophic overfitting at step {step}: accuracy {weak:.1%} under the attack of training, "
                f"{strong:.1%} under the guard's, which was {highest:.1%}"
            )
        return Judgement(row, strong, strong >= highest - self.drop / 2, wrong)

    def describe(self) -> dict[str, Any]:
        """Every setting, JSON-able."""
        attacks = {"weak": self.weak, "strong": self.strong}
        described = {name: describe(attack) for name, attack in attacks.items()}
        described |= {"every": self.every, "drop": self.drop}
        return described | ({} if self.instead is None else {"instead": describe(self.instead)})


class Watch:
    """A guard at work in one run; part of the run's state.

    Args:
        tensors: what to keep and put back, by name.
    """

    _STATE: ClassVar = {"row": dict, "highest": float, "kept": {str: Tensor}, "kept_step": int, "fired": str}

    def __init__(self, guard: Guard, tensors: Callable[[], dict[str, Tensor]]) -> None:
        self.guard, self.tensors = guard, tensors
        self.row: dict[str, float] = {}  # what to log
        self.highest = 0.0
        self.kept: dict[str, Tensor] = {}
        self.kept_step = 0
        self.fired = ""  # why, once it has

    def look(self, model: nn.Module, batch: Batch, step: int, world: World) -> bool:
        """Check after ``step`` completed steps: has the guard put back weights from before?"""
        if self.fired or step % self.guard.every:
            return False
        found = self.guard.judge(model, batch, step, world, self.highest)
        self.row, self.highest = dict(found.row), max(self.highest, found.level)
        if found.wrong:
            then = "ends with" if self.guard.instead is None else "goes on with a multi-step attack from"
            self.fired = f"{found.wrong}; the run {then} the weights of step {self.kept_step}"
            self.row["kept_step"] = self.kept_step
            with torch.no_grad():
                for name, tensor in self.tensors().items():
                    tensor.copy_(self.kept[name])
            return True
        if found.good:
            self.keep(step)
        return False

    def keep(self, step: int) -> None:
        """The weights after ``step`` completed steps are those to put back; a run begins with it."""
        self.kept, self.kept_step = {k: t.detach().clone() for k, t in self.tensors().items()}, step

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs."""
        return {name: getattr(self, name) for name in self._STATE}

    def restore(self, state: dict[str, Any]) -> None:
        """As it was when ``state`` was taken; ValueError for anything else."""
        check_structure(state, self._STATE, "watch")
        if state["kept"] and state["kept"].keys() != self.tensors().keys():
            raise ValueError("watch.kept holds other tensors than the network")
        for name in self._STATE:
            setattr(self, name, state[name])
