"""The contract of every attack: an object of hyperparameters that is called with a model, inputs and labels."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustgen.attacks.ball import Ball, column, perturbation_norm
from robustgen.attacks.engine import Engine, run_searches
from robustgen.attacks.losses import LOSSES
from robustgen.attacks.prepare import prepare
from robustgen.attacks.problem import LowestMargin, Problem
from robustgen.attacks.queries import Oracle, Search
from robustgen.checks import (
    check_bounds,
    check_ids,
    check_images,
    check_integers,
    check_labels,
    check_numbers,
    eps_spans_bounds,
    plain_fields,
    warn_user,
)
from robustgen.model import Model, untouched
from robustgen.turns import taking_turns

__all__ = ["AroundAttack", "Attack", "AttackResult"]


@dataclass(frozen=True)
class AttackResult:
    """What an attack found on a batch.

    Attributes:
        x_adv: (N, ...) in the ball and the bounds; the iterate of lowest margin where the attack failed.
        success: bool (N,). Untargeted: the prediction differs from y (also where it did before the attack), or the
            logits are not finite.
            Targeted: it is the target. For a stochastic model: in the majority of fresh draws.
        distance: float64 (N,), norm of x_adv - x.
        forwards, backwards: int64 (N,), queries of the model for each sample.
    """

    x_adv: Tensor
    success: Tensor
    distance: Tensor
    forwards: Tensor
    backwards: Tensor


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """Hyperparameters common to all attacks; a subclass adds its own and :meth:`_search`.

    Args:
        eps: radius of the ball, in units of the input (0.3 of a [0, 1] pixel range). A tensor (N,) given at the call
            overrides it for each sample; zero is allowed.
        norm: of the ball; a norm that the attack does not support is a ValueError.
        targeted: ``y`` holds the classes to reach instead of the true ones to leave.
        bounds: lowest and highest value of the input space.
        early_stop: a sample that is solved, or misclassified from the start, takes no further work (the latter is
            returned unchanged). False, for adversarial training: every sample runs every step.
        seed: of all random numbers. They depend on (seed, id of the sample) only, not on the batch.
        votes: fresh draws of a stochastic model of which a success needs the majority.

    The model, an ``nn.Module`` or any callable x -> logits, is queried in eval mode with frozen parameters and is
    left exactly as it was; the global random state is not advanced. A callable that is no module is called as it is:
    put the network inside it in eval mode first.
    """

    norms: ClassVar[tuple[str, ...]] = ("Linf", "L2")
    takes_mask: ClassVar[bool] = True

    eps: float = 0.3
    norm: str = "Linf"
    targeted: bool = False
    bounds: tuple[float, float] = (0.0, 1.0)
    early_stop: bool = True
    seed: int = 0
    votes: int = 9

    def __post_init__(self) -> None:
        plain_fields(self)
        name = type(self).__name__
        if self.norm not in self.norms:
            raise ValueError(f"{name} supports norm {' or '.join(self.norms)}, not {self.norm!r}")
        if isinstance(self.eps, Tensor):
            raise TypeError("eps must be a number; a tensor (N,) goes to the call")
        check_numbers(eps=self.eps)
        if not 0 <= self.eps < float("inf"):
            raise ValueError(f"eps must be a finite number >= 0, got {self.eps}")
        object.__setattr__(self, "bounds", check_bounds(self.bounds))
        loss = getattr(self, "loss", "ce")
        if loss not in LOSSES:
            raise ValueError(f"unknown loss {loss!r}; known: {', '.join(LOSSES)}")
        counts = ("votes", "steps", "restarts", "eot_samples", "n_queries")
        check_integers(**{name: getattr(self, name, 1) for name in counts})
        check_integers(-(2**63), seed=self.seed)

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        *,
        ids: Tensor | None = None,
        eps: Tensor | float | None = None,
        mask: Tensor | None = None,
        engine: Engine | None = None,
    ) -> Tensor:
        """Adversarial inputs (N, ...); see :meth:`run`."""
        return self.run(model, x, y, ids=ids, eps=eps, mask=mask, engine=engine).x_adv

    def run(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        *,
        ids: Tensor | None = None,
        eps: Tensor | float | None = None,
        mask: Tensor | None = None,
        engine: Engine | None = None,
    ) -> AttackResult:
        """Attack ``model`` at ``x`` (N, ...) with labels ``y`` (N,); N may be any number.

        Args:
            ids: int64 (N,), what random numbers are keyed by; default ``arange(N)``.
            eps: number or tensor (N,) that replaces the attack's own; for Linf also (N, ...), one for each element.
            mask: bool, (N, ...) or what broadcasts to it: the elements that may change. The others keep the values that
                they have in x.
            engine: how it is executed; default: :class:`~robustgen.attacks.Engine` with its defaults, but on the model
                as it is where ``early_stop=False``: in training, a copy at every step would not pay.

        Raises:
            TypeError: x is not a float32 / float64 tensor, y or ids not int64, or the model does not return logits.
            ValueError: shapes that do not fit or that the model does not take, NaN / Inf / out-of-bounds inputs, labels
                outside [0, C), a negative eps, NaN logits on clean inputs, a model that changes its input in place, one
                whose logits for an input depend on the rest of its batch, or one that is not differentiable in x where
                the attack needs it.
        """
        x = check_images(x, self.bounds).detach()
        y = check_labels(y, len(x)).to(x.device)
        ids = check_ids(ids, len(x), x.device)
        radius, reach = self._limits(x, self.eps if eps is None else eps, mask)
        if engine is None and len(x):  # evaluations say it themselves
            self._warn_of_units(radius.max().item(), x[0].numel())
        if not len(x):
            empty = torch.zeros_like(y)
            return AttackResult(x.clone(), empty.bool(), radius, empty, empty.clone())
        with (
            taking_turns(model, *self._asked_too()),
            torch.inference_mode(False),
            torch.no_grad(),
            untouched(model, None),
        ):
            x, y, ids, radius = (t.clone() if t.is_inference() else t for t in (x, y, ids, radius))
            engine = engine or Engine(prepare=self.early_stop)
            oracle = Oracle(
                self._view(model),
                x,
                engine.slots,
                seed=self.seed,
                free=None if reach is None else reach > 0,
                thorough=self.early_stop,  # in training little hangs on it, and it would be asked at every step
                journal=engine.journal,
                watch=engine.watch,
            )
            problem = self._problem(oracle, x, y, ids, radius, reach)
            problem.begin()
            if engine.prepare and not oracle.draws and len(problem.active()):
                oracle.searched = prepare(oracle.model, x[:4], precision=engine.precision).model
            for part in self.parts():
                if not len(problem.active()):
                    break
                run_searches(problem, partial(part._search, problem), part._runs(problem))
            problem.finish()
        distance = self._length(problem.best_x - x)
        return AttackResult(problem.best_x, problem.solved, distance, oracle.forwards, oracle.backwards)

    def for_training(self) -> "Attack":
        """The same attack with ``early_stop=False``: every sample runs every step."""
        return replace(self, early_stop=False)

    def _limits(self, x: Tensor, eps: Tensor | float, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The radius of each ball, float64 (N,), and how far each element may go, (N, ...), where that differs."""
        radius = torch.as_tensor(eps, dtype=torch.float64, device=x.device).detach()
        if radius.ndim > 1 and self.norm != "Linf":
            raise ValueError(f"eps of each element is for norm Linf, not {self.norm}; a mask says which may change")
        if radius.shape not in ((), (len(x),), x.shape):
            each = f" or {tuple(x.shape)}" if self.norm == "Linf" else ""
            raise ValueError(f"eps must be a number or have shape ({len(x)},){each}, got {tuple(radius.shape)}")
        if not bool((radius >= 0).all()) or (eps is not self.eps and bool(radius.isinf().any())):
            raise ValueError("eps must be finite and >= 0 for every sample")
        reach = radius if radius.shape == x.shape else None
        radius = radius.expand(len(x)).clone() if reach is None else radius.flatten(1).amax(1)
        if mask is not None:
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                raise TypeError("mask must be a bool tensor: True where an element may change")
            try:
                free = mask.to(x.device).expand(x.shape)
            except RuntimeError:
                raise ValueError(
                    f"mask has shape {tuple(mask.shape)}, which does not fit x, {tuple(x.shape)}"
                ) from None
            within = column(radius, x.double()) if self.norm == "Linf" else x.new_tensor(math.inf, dtype=torch.float64)
            reach = torch.where(free, within if reach is None else reach, 0.0)
        if reach is not None and not self.takes_mask:
            raise ValueError(f"{type(self).__name__} takes no mask and no eps of each element")
        return radius, reach

    def _warn_of_units(self, eps: float, elements: int) -> None:
        line = None
        if self.norm != "L0" and eps < math.inf:
            line = eps_spans_bounds(eps, self.norm, self.bounds, elements)
        if line is not None:
            warn_user(line)

    def _asked_too(self) -> list[object]:
        """What the attack asks besides the model, such as a score or a surrogate."""
        found: list[object] = []
        for own in fields(self):
            value = getattr(self, own.name, None)
            found += value._asked_too() if isinstance(value, Attack) else [value] if callable(value) else []
        return found

    def _view(self, model: Model) -> Model:
        """What is asked in place of the model."""
        return model

    def _problem(
        self, oracle: Oracle, x: Tensor, y: Tensor, ids: Tensor, radius: Tensor, reach: Tensor | None = None
    ) -> Problem:
        """Where to search and what to keep: the ball of ``radius`` (N,) and the point of lowest margin."""
        ball = Ball(x, radius, self.norm, self.bounds, reach)
        return LowestMargin(oracle, x, y, ids, ball, **self._rules)

    @property
    def _rules(self) -> dict[str, Any]:
        return {"targeted": self.targeted, "early_stop": self.early_stop, "votes": self.votes}

    def _length(self, delta: Tensor) -> Tensor:
        return perturbation_norm(delta, self.norm)

    def parts(self) -> Sequence["Attack"]:
        """The attacks of which this one consists, in their order, each on the samples that still stand."""
        return (self,)

    def _runs(self, problem: Problem) -> int:
        """How many searches a sample that stands gets, one after the other."""
        return getattr(self, "restarts", 1)

    @abstractmethod
    def _search(self, problem: Problem, i: Tensor, run: int) -> Search:
        """Look for adversarial inputs of the rows ``i`` and hand every candidate to ``problem.record``."""

    def describe(self) -> dict[str, Any]:
        """The attack's name and every hyperparameter, as JSON-able values."""
        return {"attack": type(self).__name__} | asdict(self)


def check_start(in_bounds: bool, early_stop: bool) -> None:
    """ValueError for an attack of an evaluation that starts outside the bounds, where no input can be."""
    if early_stop and not in_bounds:
        raise ValueError("start_in_bounds=False is for training: set early_stop=False")


@dataclass(frozen=True, kw_only=True)
class AroundAttack(Attack):
    """Takes norm, bounds and the other common settings over from ``attack``; a subclass may take its eps over too.

    What it takes over is declared with ``field(init=False)``.
    """

    attack: Attack
    norm: str = field(init=False)
    targeted: bool = field(init=False)
    bounds: tuple[float, float] = field(init=False)
    early_stop: bool = field(init=False)
    seed: int = field(init=False)
    votes: int = field(init=False)

    def __post_init__(self) -> None:
        own = {f.name for f in fields(self) if f.init}
        for common in fields(Attack):
            if common.name not in own:
                object.__setattr__(self, common.name, getattr(self.attack, common.name))
