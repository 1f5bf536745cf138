"""Objectives: what the trainer minimises. This file holds their type and the one for classifiers."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustgen.model import logits_of, naming_inputs
from robustgen.training.batches import Batch
from robustgen.training.distributed import unwrap

__all__ = ["AdversarialObjective", "ClassifierObjective", "Objective", "adversarial_inputs", "class_loss"]

# (model, batch, step) -> {"loss": scalar to minimise, other scalars to log}, each a mean over the batch. The model may
# be wrapped in DistributedDataParallel: call it once a step; take its attributes from unwrap(model).
Objective: TypeAlias = Callable[[nn.Module, Batch, int], dict[str, Tensor]]


class AdversarialObjective:
    """What objectives on clean and adversarial inputs share: their inputs, cross-entropies and settings.

    A subclass calls ``inputs``, forwards them once, adds terms of its own to the loss of ``cross_entropies``, and names
    its further settings in ``describe``.

    Args:
        attack: callable ``attack(model, x, y, *, ids) -> x_adv``, run on the network as it is at each step, or None.
        clean_weight: of the clean half of the loss, finite and >= 0.
        label_smoothing: of both cross-entropies, in [0, 1).

    Raises:
        ValueError: a value out of range, or one that leaves nothing to train on.
    """

    def __init__(self, attack: Any, clean_weight: float, label_smoothing: float) -> None:
        if not 0 <= clean_weight < float("inf"):
            raise ValueError(f"clean_weight must be a finite number >= 0, got {clean_weight}")
        if attack is None and clean_weight == 0:
            raise ValueError("clean_weight=0 without an attack leaves nothing to train on")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        self.attack, self.clean_weight, self.label_smoothing = attack, clean_weight, label_smoothing

    def inputs(self, model: nn.Module, batch: Batch, step: int, clean: bool = True) -> tuple[Tensor, Tensor]:
        """The clean inputs (unless not wanted) and then the adversarial ones, in one tensor; and the labels (B,).

        Raises:
            ValueError: data without labels.
        """
        if batch.y is None:
            raise ValueError(f"{type(self).__name__} needs labels: pass data as (x, y)")
        halves = [batch.x] if clean else []
        if self.attack is not None:
            halves.append(adversarial_inputs(self.attack, model, batch, step))
        return torch.cat(halves), batch.y

    def cross_entropies(self, logits: Tensor, y: Tensor, clean: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
        """clean_weight * CE(x) + CE(x_adv) from the logits of ``inputs``, and each half's loss and accuracy to log."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # bfloat16 is too coarse for a loss
        halves = [("clean_loss", "accuracy", self.clean_weight)] if clean else []
        halves += [("adv_loss", "adv_accuracy", 1.0)] if self.attack is not None else []
        loss, logged = logits.new_zeros(()), {}
        for (loss_name, accuracy_name, weight), half in zip(halves, logits.chunk(len(halves)), strict=True):
            logged[loss_name] = class_loss(half, y, self.label_smoothing)
            loss = loss + weight * logged[loss_name]
            logged[accuracy_name] = (half.detach().argmax(1) == y).to(half.dtype).mean()
        return loss, logged

    def describe(self) -> dict[str, Any]:
        """Every setting, JSON-able."""
        attack = self.attack.describe() if hasattr(self.attack, "describe") else repr(self.attack)
        return {
            "objective": type(self).__name__,
            "attack": None if self.attack is None else attack,
            "clean_weight": self.clean_weight,
            "label_smoothing": self.label_smoothing,
        }


class ClassifierObjective(AdversarialObjective):
    """Cross-entropy on clean inputs or, with an attack, ``clean_weight * CE(x) + CE(x_adv)``.

    With ``clean_weight=0`` this is adversarial training (Madry, Makelov, Schmidt, Tsipras and Vladu, "Towards Deep
    Learning Models Resistant to Adversarial Attacks", 2018, equation 2.1); with 1, the classification terms of the
    joint objective of Lamb, "Generative Models: A Critical Review", 2018, section 2.5.

    Args:
        attack: callable ``attack(model, x, y, *, ids) -> x_adv``, run on the network as it is at each step.
        clean_weight: of the clean half; both halves share one forward, and at 0 only the adversarial one is forwarded.
        label_smoothing: of both cross-entropies, in [0, 1).

    Raises:
        ValueError: a value out of range, a ``clean_weight`` without an attack, or, at the call, data without labels.

    >>> objective = ClassifierObjective()
    >>> batch = Batch(torch.zeros(2, 4), torch.tensor([0, 1]), torch.arange(2))
    >>> {name: round(value.item(), 4) for name, value in objective(nn.Identity(), batch, 0).items()}
    {'loss': 1.3863, 'clean_loss': 1.3863, 'accuracy': 0.5}
    """

    def __init__(self, attack: Any = None, clean_weight: float = 1.0, label_smoothing: float = 0.0) -> None:
        if attack is None and clean_weight != 1:
            raise ValueError("clean_weight weighs the clean half of an adversarial loss: pass an attack")
        super().__init__(attack, clean_weight, label_smoothing)

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        clean = self.clean_weight > 0
        x, y = self.inputs(model, batch, step, clean)
        with naming_inputs(batch.x):
            logits = logits_of(model(x))  # (B or 2B, C)
        loss, logged = self.cross_entropies(logits, y, clean)
        return {"loss": loss} | {name: value.detach() for name, value in logged.items()}


def class_loss(logits: Tensor, y: Tensor, label_smoothing: float) -> Tensor:
    """Mean cross-entropy; a ValueError where a label is not one of the network's classes."""
    try:
        return F.cross_entropy(logits, y, label_smoothing=label_smoothing)
    except IndexError:  # on the CPU; a GPU stops with an assertion of its own
        raise ValueError(f"y has label {int(y.max())}, outside [0, {logits.shape[1]}), the network's classes") from None


def adversarial_inputs(attack: Any, model: nn.Module, batch: Batch, step: int) -> Tensor:
    """Adversarial inputs (B, ...) of ``batch`` for training, from ``model`` as it is at ``step``.

    The ids handed to the attack are ``batch.ids + step * 2**32``, so that random starts differ from step to step. A
    robustgen attack runs with ``early_stop=False``: otherwise inputs that are already misclassified stay clean.
    """
    if hasattr(attack, "for_training"):
        attack = attack.for_training()
    with torch.enable_grad():  # validation runs without gradients; an attack needs them
        return attack(unwrap(model), batch.x, batch.y, ids=batch.ids + step * 2**32).detach()
