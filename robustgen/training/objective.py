"""Objectives: what the trainer minimises, and what it watches on validation data.

This file holds their type, the one for classifiers and, for validation, accuracy under an attack that training does not
use.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from robustgen.inputs import Inputs, call_model
from robustgen.model import logits_of, naming_inputs
from robustgen.training.batches import Batch
from robustgen.training.classification import ClassificationLoss, CrossEntropies, accuracies, class_loss
from robustgen.training.distributed import unwrap

__all__ = [
    "AdversarialObjective",
    "ClassifierObjective",
    "Objective",
    "RobustAccuracy",
    "adversarial_inputs",
    "describe",
]

# (model, batch, step) -> {"loss": scalar to minimise, other scalars to log}, each a mean over the batch. The model may
# be wrapped in DistributedDataParallel: call it once a step; take its attributes from unwrap(model).
Objective: TypeAlias = Callable[[nn.Module, Batch, int], dict[str, Tensor]]


class AdversarialObjective(ABC):
    """What objectives on clean and adversarial inputs share: their inputs, classification loss and settings.

    A subclass implements :meth:`losses`: it forwards what ``inputs`` made, once, adds terms of its own to the loss of
    ``classification``, and names its further settings in ``describe``.

    Args:
        attack: callable ``attack(model, x, y, *, ids) -> x_adv``, run on the network as it is at each step, or None.
        clean_weight: of the clean half of the loss, finite and >= 0.
        label_smoothing: of both cross-entropies, in [0, 1).
        loss: in place of the two cross-entropies and their settings.

    Raises:
        ValueError: a value out of range, one that leaves nothing to train on, or settings that ``loss`` replaces.
    """

    def __init__(
        self, attack: Any, clean_weight: float, label_smoothing: float, loss: ClassificationLoss | None = None
    ) -> None:
        if attack is None and clean_weight == 0:
            raise ValueError("clean_weight=0 without an attack leaves nothing to train on")
        if loss is not None and attack is None:
            raise ValueError(f"{type(loss).__name__} compares clean with adversarial predictions: pass an attack")
        if loss is not None and (clean_weight != 1 or label_smoothing != 0):
            raise ValueError(
                f"{type(loss).__name__} takes the place of the cross-entropies: leave out clean_weight, label_smoothing"
            )
        self.cross_entropies = CrossEntropies(clean_weight=clean_weight, label_smoothing=label_smoothing)
        self.attack, self.loss = attack, loss

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        return self.losses(model, *self.inputs(model, batch, step))

    @property
    def forwards_clean(self) -> bool:
        """Whether the clean half is forwarded; a subclass may leave it out where its loss has no use for it."""
        return True

    def inputs(self, model: nn.Module, batch: Batch, step: int) -> tuple[Any, Tensor]:
        """The clean inputs and then the adversarial ones, in one tensor, as far as there are any; the labels (B,).

        A dict of keyword arguments is passed on as it is.

        Raises:
            ValueError: data without labels, or an attack on a dict.
        """
        if batch.y is None:
            raise ValueError(f"{type(self).__name__} needs labels: pass data as (x, y)")
        if isinstance(batch.x, dict):
            if self.attack is not None:
                raise ValueError("an attack changes a tensor of floats, no dict of keyword arguments: train without it")
            return batch.x, batch.y
        halves = [batch.x] if self.forwards_clean else []
        if self.attack is not None:
            halves.append(adversarial_inputs(self.attack, model, batch, step))
        return torch.cat(halves), batch.y

    @abstractmethod
    def losses(self, model: nn.Module, x: Any, y: Tensor) -> dict[str, Tensor]:
        """What the objective returns, from its ``inputs``; ``x`` goes through the network once."""

    def classification(self, logits: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The classification loss from the logits of ``inputs``, and what to log."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # bfloat16 is too coarse for a loss
        clean = logits[: len(y)] if self.forwards_clean else None
        adversarial = None if self.attack is None else logits[-len(y) :]
        if self.loss is None:
            return self.cross_entropies(clean, adversarial, y)
        assert clean is not None
        assert adversarial is not None
        return self.loss(clean, adversarial, y)

    def describe(self) -> dict[str, Any]:
        """Every setting, JSON-able."""
        loss = self.cross_entropies if self.loss is None else self.loss
        return {
            "objective": type(self).__name__,
            "attack": None if self.attack is None else describe(self.attack),
        } | loss.describe()


class ClassifierObjective(AdversarialObjective):
    """Cross-entropy on clean inputs or, with an attack, ``clean_weight * CE(x) + CE(x_adv)`` or another loss of both.

    With ``clean_weight=0`` this is adversarial training (Madry, Makelov, Schmidt, Tsipras and Vladu, "Towards Deep
    Learning Models Resistant to Adversarial Attacks", 2018, equation 2.1); with 1, the classification terms of the
    joint objective of Lamb, "Generative Models: A Critical Review", 2018, section 2.5.

    Args:
        attack: callable ``attack(model, x, y, *, ids) -> x_adv``, run on the network as it is at each step.
        clean_weight: of the clean half; both halves share one forward, and at 0 only the adversarial one is forwarded.
        label_smoothing: of both cross-entropies, in [0, 1).
        loss: :class:`Trades` or :class:`Mart` in place of the cross-entropies and their two settings.

    Raises:
        ValueError: a value out of range, a ``clean_weight`` or ``loss`` without an attack, both of them, or, at the
            call, data without labels.

    >>> objective = ClassifierObjective()
    >>> batch = Batch(torch.zeros(2, 4), torch.tensor([0, 1]), torch.arange(2))
    >>> {name: round(value.item(), 4) for name, value in objective(nn.Identity(), batch, 0).items()}
    {'loss': 1.3863, 'clean_loss': 1.3863, 'accuracy': 0.5}
    """

    def __init__(
        self,
        attack: Any = None,
        clean_weight: float = 1.0,
        label_smoothing: float = 0.0,
        loss: ClassificationLoss | None = None,
    ) -> None:
        if attack is None and clean_weight != 1:
            raise ValueError("clean_weight weighs the clean half of an adversarial loss: pass an attack")
        super().__init__(attack, clean_weight, label_smoothing, loss)

    @property
    def forwards_clean(self) -> bool:
        """Not where the loss is that of the adversarial half alone."""
        return self.cross_entropies.clean_weight > 0

    def losses(self, model: nn.Module, x: Inputs, y: Tensor) -> dict[str, Tensor]:
        with naming_inputs(x):
            logits = logits_of(call_model(model, x))  # (B or 2B, C)
        loss, logged = self.classification(logits, y)
        return {"loss": loss} | {name: value.detach() for name, value in logged.items()}


def adversarial_inputs(attack: Any, model: nn.Module, batch: Batch, step: int) -> Tensor:
    """Adversarial inputs (B, ...) of ``batch`` for training, from ``model`` as it is at ``step``.

    The ids handed to the attack are ``batch.ids + step * 2**32``, so that random starts differ from step to step. A
    robustgen attack runs with ``early_stop=False``: otherwise inputs that are already misclassified stay clean. What
    has an ``at_step(step)``, such as :class:`WarmUp`, says which attack it is at this step.
    """
    if hasattr(attack, "at_step"):
        attack = attack.at_step(step)
    if hasattr(attack, "for_training"):
        attack = attack.for_training()
    with torch.enable_grad():  # validation runs without gradients; an attack needs them
        return attack(unwrap(model), batch.x, batch.y, ids=batch.ids + step * 2**32).detach()


def describe(thing: Any) -> Any:
    """What ``thing.describe()`` says, or its repr."""
    return thing.describe() if callable(getattr(thing, "describe", None)) else repr(thing)


class RobustAccuracy:
    """A ``val_objective``: ``accuracy``, ``adv_accuracy`` and the adversarial ``loss`` of validation data.

    The attack is as in evaluation: it starts in the bounds and stops at a success, and its random numbers are alike in
    each epoch.

    Args:
        attack: callable ``attack(model, x, y, *, ids) -> x_adv``; not that of the objective, and of another loss: a
            network that fools its own attack is then seen through.

    >>> from robustgen.attacks import PGD
    >>> batch = Batch(torch.tensor([[0.9, 0.2], [0.6, 0.5]]), torch.tensor([0, 0]), torch.arange(2))
    >>> found = RobustAccuracy(PGD(eps=0.2, loss="margin"))(nn.Identity(), batch, step=0)
    >>> found["accuracy"].item(), found["adv_accuracy"].item()
    (1.0, 0.5)
    """

    def __init__(self, attack: Any) -> None:
        self.attack = attack

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        if batch.y is None:
            raise ValueError("RobustAccuracy needs labels: pass data as (x, y)")
        with torch.enable_grad():  # validation runs without gradients; an attack needs them
            x_adv = self.attack(unwrap(model), batch.x, batch.y, ids=batch.ids).detach()
        clean, adversarial = logits_of(model(torch.cat([batch.x, x_adv]))).float().chunk(2)
        return {"loss": class_loss(adversarial, batch.y)} | accuracies(clean, adversarial, batch.y)

    def describe(self) -> dict[str, Any]:
        """The attack's settings."""
        return {"objective": "RobustAccuracy", "attack": describe(self.attack)}
