"""A recipe: everything that decides how strong a trained classifier becomes, as plain values."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import nn

from robustgen.attacks import FGSM, KLPGD, PGD, Attack, RandomStartFGSM
from robustgen.checks import check_flags, check_integers, check_positive, nearest, plain_fields
from robustgen.data import ArrayDataset
from robustgen.networks import build
from robustgen.training.classification import ClassificationLoss
from robustgen.training.deformations import CropAndFlip, OnDeformed
from robustgen.training.ema import check_decay
from robustgen.training.mart import Mart
from robustgen.training.objective import ClassifierObjective, Objective, RobustAccuracy
from robustgen.training.overfitting import OverfittingGuard
from robustgen.training.schedules import SCHEDULES, FirstThen, WarmUp
from robustgen.training.trades import Trades
from robustgen.training.trainer import Trainer
from robustgen.turns import seeded

__all__ = ["BEST", "METHODS", "Make", "Recipe", "classifier", "not_used", "uses"]

_STEPS = ("steps", "step_size", "start_in_bounds")
#: How a network is trained, and what of an attack and its loss each method uses beside the ball and its warm-up.
#: ``pgd`` and ``fgsm``: clean_weight * CE(x) + CE(x_adv); the others chose attack and loss.
METHODS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "fgsm": ("clean_weight",),
    "pgd": (*_STEPS, "clean_weight"),
    "fast": ("start_in_bounds",),
    "madry": (*_STEPS, "single_step_epochs"),
    "trades": ("steps", "step_size", "beta", "single_step_epochs"),  # its attack has a start of its own
    "mart": (*_STEPS, "beta", "single_step_epochs"),
}
_BALL = ("eps", "norm", "warm_up_epochs")
_OF_ATTACKS = {*_BALL, *(name for used in METHODS.values() for name in used)}
_OPTIMIZERS = ("adam", "sgd")
BEST = "val_adv_accuracy"  # the entry of the history by which the best epoch is told

#: An objective from an attack, the weight of its clean half and a loss in place of both halves.
Make = Callable[[Attack | None, float, ClassificationLoss | None], Objective]


def classifier(attack: Attack | None, clean_weight: float, loss: ClassificationLoss | None) -> Objective:
    """The objective of a network without fortified layers."""
    return ClassifierObjective(attack, clean_weight, loss=loss)


def uses(name: str, method: str, single_step_epochs: int = 0) -> bool:
    """Whether a training by ``method`` has a use for the value of a recipe that is called ``name``.

    >>> uses("steps", "madry"), uses("steps", "fast"), uses("eps", "plain"), uses("lr", "plain")
    (True, False, False, True)
    """
    if name not in _OF_ATTACKS:
        return True
    single_steps = single_step_epochs > 0 and "single_step_epochs" in METHODS[method] and name in METHODS["fast"]
    return single_steps or name in METHODS[method] or (name in _BALL and method != "plain")


def _n_watched(held_back: ArrayDataset) -> int:
    return min(1000, len(held_back) // 2)


def not_used(name: str, called: str, method: str) -> str:
    """A line that a training by ``method`` has no use for a value, ``called`` as the reader knows it, and which has."""
    methods = [other for other in METHODS if uses(name, other)]
    whose = "adversarial training" if name in _BALL else f"{', '.join(methods[:-1])} and {methods[-1]}"
    return f"{called} is of {whose}, this training is {method if method == 'plain' else f'by {method}'}"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a classifier is trained; what is not said is a plain default, and no recommendation.

    Args:
        name: as on the command line; empty for settings that are no recipe of ours.
        data, shape, n_classes: which data it is for: a name of :func:`robustgen.data.load`, (C, H, W), classes.
        method: one of ``METHODS``.
        eps, norm: of the attack in training, of pixels in [0, 1].
        model, width, activation: of the network, see :func:`robustgen.networks.build`.
        steps, step_size: of the multi-step attacks; None: 2.5 * eps / steps. ``METHODS`` says which these are.
        start_in_bounds: whether the attack's random start is clamped to the bounds, see :class:`RandomStartFGSM`.
        clean_weight: of "fgsm" and "pgd"; None is 1.
        beta: of "trades" and "mart"; None is their papers'.
        single_step_epochs: epochs of "fast" that come first, with a multi-step method.
        warm_up_epochs: over which eps grows from 0.
        epochs, batch_size, lr, schedule, optimizer, weight_decay, ema: of the :class:`Trainer`; sgd has Nesterov's
            momentum 0.9.
        augment: train on images shifted by up to 4 pixels and mirrored (:class:`CropAndFlip`).

    Raises:
        TypeError, ValueError: a value out of range, an unknown name, or settings that do not go together.

    >>> Recipe(method="madry", eps=0.1, epochs=5).trainer(1000).epochs
    5
    """

    name: str = ""
    data: str = ""
    shape: tuple[int, ...] = ()
    n_classes: int = 0
    method: str = "plain"
    eps: float = 0.3
    norm: str = "Linf"
    model: str = "convnet"
    width: int | None = None
    activation: str = "relu"
    steps: int = 7
    step_size: float | None = None
    start_in_bounds: bool = True
    clean_weight: float | None = None
    beta: float | None = None
    single_step_epochs: int = 0
    warm_up_epochs: int = 0
    epochs: int = 10
    batch_size: int = 128
    lr: float = 1e-3
    schedule: str = "constant"
    optimizer: str = "adam"
    weight_decay: float = 0.0
    ema: float | None = None
    augment: bool = False

    def __post_init__(self) -> None:
        plain_fields(self)
        check_integers(epochs=self.epochs, batch_size=self.batch_size, steps=self.steps)
        check_integers(0, single_step_epochs=self.single_step_epochs, warm_up_epochs=self.warm_up_epochs)
        check_flags(start_in_bounds=self.start_in_bounds, augment=self.augment)
        check_positive(lr=self.lr, eps=self.eps)
        check_decay(self.ema)
        for kind, known in {
            "method": tuple(METHODS),
            "schedule": tuple(SCHEDULES),
            "optimizer": _OPTIMIZERS,
        }.items():
            if (name := getattr(self, kind)) not in known:
                raise ValueError(f"unknown {kind} {name!r}; {nearest(name, known)}")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"weight_decay must be a finite number >= 0, got {self.weight_decay}")
        for field in fields(self):
            unused = not uses(field.name, self.method, self.single_step_epochs)
            if unused and getattr(self, field.name) != field.default:
                raise ValueError(not_used(field.name, field.name, self.method))
        for name in ("single_step_epochs", "warm_up_epochs"):
            if (first := getattr(self, name)) > self.epochs:
                raise ValueError(f"{name}={first} is longer than the training of {self.epochs} epochs")

    @property
    def adversarial(self) -> bool:
        """Whether there is an attack in training."""
        return self.method != "plain"

    @property
    def radius(self) -> str:
        """eps as people write it: of colour images in units of 255."""
        return f"{self.eps * 255:.3g}/255" if self.shape[:1] == (3,) else f"{self.eps:g}"

    def network(self, seed: int = 0) -> nn.Module:
        """The freshly initialised network, for the data the recipe is for."""
        with seeded(seed):
            return build(self.model, torch.zeros(1, *self.shape), self.n_classes, self.width, self.activation)

    def batches(self, n: int) -> int:
        """Steps in an epoch of n examples."""
        return -(-n // self.batch_size)

    def objective(self, n: int, *, seed: int = 0, make: Make = classifier) -> Objective:
        """What is minimised on n examples; ``make`` puts one attack and loss together."""
        objective = self._main(n, seed, make)
        if self.single_step_epochs:
            first = make(self._warm(self._single_step(seed), n), 0.0, None)
            objective = FirstThen(first, objective, steps=self.single_step_epochs * self.batches(n))
        return OnDeformed(objective, CropAndFlip()) if self.augment else objective

    def guard(self, n: int, *, seed: int = 0, make: Make = classifier) -> OverfittingGuard | None:
        """Of method "fast": it goes on as "madry" where training overfits its attack."""
        if self.method != "fast":
            return None
        strong = PGD(eps=self.eps, norm=self.norm, seed=seed, steps=10)
        instead = self.derived(name="", method="madry").objective(n, seed=seed, make=make)
        return OverfittingGuard(weak=self._single_step(seed), strong=strong, instead=instead)

    def validation(self, seed: int = 0) -> RobustAccuracy:
        """What tells the best epoch: accuracy under a margin PGD from two starts, an attack no method trains with."""
        attack = PGD(eps=self.eps, norm=self.norm, seed=seed, loss="margin", steps=20, restarts=2)
        return RobustAccuracy(attack)

    def trainer(self, n: int, *, seed: int = 0, make: Make = classifier, **options: Any) -> Trainer:
        """A trainer for n examples; of an adversarial training, which needs validation data, it keeps the best epoch.

        Args:
            n: how many examples ``fit`` will be given.
            options: of the trainer, such as ``run_dir``, ``device`` and ``progress``; they go before the recipe's.
        """
        found: dict[str, Any] = {
            "optimizer": self._optimizer,
            "schedule": SCHEDULES[self.schedule],
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "ema": self.ema,
            "guard": self.guard(n, seed=seed, make=make),
            "seed": seed,
        }
        if self.adversarial:
            found |= {"val_objective": self.validation(seed), "best": BEST}
        return Trainer(self.objective(n, seed=seed, make=make), **(found | options))

    def watched(self, held_back: ArrayDataset) -> ArrayDataset:
        """Of data that are kept from training, in random order, what chooses the epoch: half, of 2,000 or more 1,000.

        Attacking them is a few percent of an epoch's work; of 1,000 a standard error is 1.6 points at most.
        """
        return held_back.first(_n_watched(held_back))

    def unwatched(self, held_back: ArrayDataset) -> ArrayDataset:
        """The others, which chose nothing: what a detector may be calibrated on."""
        return held_back.subset(torch.arange(_n_watched(held_back), len(held_back)))

    def derived(self, **changes: Any) -> "Recipe":
        """The recipe with other values; what its method then does not use is back at the default.

        >>> Recipe(method="trades", beta=4.0).derived(method="madry").beta is None
        True
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)} | changes
        unused = _OF_ATTACKS - changes.keys()
        unused -= {name for name in unused if uses(name, values["method"], values["single_step_epochs"])}
        return Recipe(**{name: value for name, value in values.items() if name not in unused})

    def record(self) -> dict[str, Any]:
        """Every value, JSON-able."""
        return asdict(self) | {"shape": list(self.shape)}

    def differences(self, other: "Recipe") -> dict[str, tuple[Any, Any]]:
        """Where this recipe and another differ: {name: (this one's value, the other's)}."""
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    def _optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=self.lr, momentum=0.9, nesterov=True, weight_decay=self.weight_decay)
        kind = torch.optim.AdamW if self.weight_decay else torch.optim.Adam
        return kind(parameters, lr=self.lr, weight_decay=self.weight_decay)

    def _single_step(self, seed: int) -> Attack:
        return RandomStartFGSM(**self._ball(seed), start_in_bounds=self.start_in_bounds)

    def _main(self, n: int, seed: int, make: Make) -> Objective:
        if self.method == "plain":
            return make(None, 1.0, None)
        if self.method == "fast":
            return make(self._warm(self._single_step(seed), n), 0.0, None)
        if self.method == "fgsm":
            return make(self._warm(FGSM(**self._ball(seed)), n), self._clean_weight, None)
        steps: dict[str, Any] = {"steps": self.steps, "step_size": self.step_size}
        if self.method == "trades":
            attack: Attack = KLPGD(**self._ball(seed), **steps)
            return make(self._warm(attack, n), 1.0, Trades(**self._beta))
        attack = PGD(**self._ball(seed), **steps, start_in_bounds=self.start_in_bounds)
        if self.method == "mart":
            return make(self._warm(attack, n), 1.0, Mart(**self._beta))
        return make(self._warm(attack, n), 0.0 if self.method == "madry" else self._clean_weight, None)

    def _warm(self, attack: Attack, n: int) -> Any:
        return WarmUp(attack, self.warm_up_epochs * self.batches(n)) if self.warm_up_epochs else attack

    def _ball(self, seed: int) -> dict[str, Any]:
        return {"eps": self.eps, "norm": self.norm, "seed": seed, "early_stop": False}

    @property
    def _clean_weight(self) -> float:
        return 1.0 if self.clean_weight is None else self.clean_weight

    @property
    def _beta(self) -> dict[str, float]:
        return {} if self.beta is None else {"beta": self.beta}
