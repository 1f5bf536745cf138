"""Objectives: what the trainer minimises. This file holds their type and the one for classifiers."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustgen.model import logits_of, naming_inputs
from robustgen.training.batches import Batch
from robustgen.training.distributed import unwrap

__all__ = ["ClassifierObjective", "Objective", "adversarial_inputs", "class_loss"]

# (model, batch, step) -> {"loss": scalar to minimise, other scalars to log}, each a mean over the batch. The model may
# be wrapped in DistributedDataParallel: call it once a step; take its attributes from unwrap(model).
Objective: TypeAlias = Callable[[nn.Module, Batch, int], dict[str, Tensor]]


class ClassifierObjective:
    """Cross-entropy on clean inputs or, with an attack, ``clean_weight * CE(x) + CE(x_adv)``.

    With ``clean_weight=0`` this is adversarial training (Madry, Makelov, Schmidt, Tsipras and Vladu, "Towards Deep
    Learning Models Resistant to Adversarial Attacks", 2018, equation 2.1); with 1, the classification terms of the
    joint objective of Lamb, "Generative Models: A Critical Review", 2018, section 2.5. Logged: ``accuracy`` on clean
    inputs (where they are forwarded) and ``adv_accuracy``.

    Args:
        attack: callable ``attack(model, x, y, *, ids) -> x_adv``, run on the network as it is at each step.
        clean_weight: of the clean half; both halves share one forward, and at 0 only the adversarial one is forwarded.
        label_smoothing: of both cross-entropies, in [0, 1).

    Raises:
        ValueError: a value out of range, a ``clean_weight`` without an attack, or, at the call, data without labels.

    >>> objective = ClassifierObjective()
    >>> batch = Batch(torch.zeros(2, 4), torch.tensor([0, 1]), torch.arange(2))
    >>> {name: round(value.item(), 4) for name, value in objective(nn.Identity(), batch, 0).items()}
    {'loss': 1.3863, 'accuracy': 0.5}
    """

    def __init__(
        self,
        attack: Any = None,
        clean_weight: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        if not 0 <= clean_weight < float("inf"):
            raise ValueError(f"clean_weight must be a finite number >= 0, got {clean_weight}")
        if attack is None and clean_weight != 1:
            raise ValueError("clean_weight weighs the clean half of an adversarial loss: pass an attack")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        self.attack, self.clean_weight, self.label_smoothing = attack, clean_weight, label_smoothing

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        if batch.y is None:
            raise ValueError("ClassifierObjective needs labels: pass data as (x, y)")
        halves = {}  # weight and name of each half, in the order in which they are forwarded
        inputs = []
        if self.attack is None or self.clean_weight:
            halves["accuracy"] = self.clean_weight
            inputs.append(batch.x)
        if self.attack is not None:
            halves["adv_accuracy"] = 1.0
            inputs.append(adversarial_inputs(self.attack, model, batch, step))
        with naming_inputs(batch.x):
            logits = logits_of(model(torch.cat(inputs)))  # (B or 2B, C)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # bfloat16 is too coarse for a loss
        loss, logged = logits.new_zeros(()), {}
        for (name, weight), half in zip(halves.items(), logits.chunk(len(halves)), strict=True):
            loss = loss + weight * class_loss(half, batch.y, self.label_smoothing)
            logged[name] = (half.detach().argmax(1) == batch.y).to(half.dtype).mean()
        return {"loss": loss, **logged}

    def describe(self) -> dict[str, Any]:
        """Every setting, JSON-able."""
        attack = self.attack.describe() if hasattr(self.attack, "describe") else repr(self.attack)
        return {
            "objective": "ClassifierObjective",
            "attack": None if self.attack is None else attack,
            "clean_weight": self.clean_weight,
            "label_smoothing": self.label_smoothing,
        }


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
