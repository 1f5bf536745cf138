"""The classification part of an objective: a loss from the logits of clean and adversarial inputs."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from robustgen.checks import plain_fields

__all__ = ["ClassificationLoss", "CrossEntropies", "accuracies", "class_loss"]


class ClassificationLoss(Protocol):
    """What an objective takes as its ``loss``: :class:`Trades`, :class:`Mart`, or one of your own."""

    def __call__(self, clean: Tensor, adversarial: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, a mean over the batch, and scalars to log, from logits (B, C) twice and labels (B,)."""
        ...

    def describe(self) -> dict[str, Any]:
        """The loss's name and every setting, JSON-able."""
        ...


@dataclass(frozen=True, kw_only=True)
class CrossEntropies:
    """clean_weight * CE(x) + CE(x_adv), of those halves that there are.

    Args:
        clean_weight: of the clean half of the loss, finite and >= 0.
        label_smoothing: of both cross-entropies, in [0, 1).

    Raises:
        ValueError: a value out of range.
    """

    clean_weight: float = 1.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        plain_fields(self)
        if not 0 <= self.clean_weight < float("inf"):
            raise ValueError(f"clean_weight must be a finite number >= 0, got {self.clean_weight}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")

    def __call__(self, clean: Tensor | None, adversarial: Tensor | None, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss, logged = y.new_zeros((), dtype=torch.float32), {}
        halves = (("clean_loss", self.clean_weight, clean), ("adv_loss", 1.0, adversarial))
        for name, weight, logits in halves:
            if logits is not None:
                logged[name] = class_loss(logits, y, self.label_smoothing)
                loss = loss + weight * logged[name]
        return loss, logged | accuracies(clean, adversarial, y)

    def describe(self) -> dict[str, Any]:
        """Both settings."""
        return {"clean_weight": self.clean_weight, "label_smoothing": self.label_smoothing}


def accuracies(clean: Tensor | None, adversarial: Tensor | None, y: Tensor) -> dict[str, Tensor]:
    """The share of each half that is classified correctly, to log: ``accuracy`` and ``adv_accuracy``."""
    halves = {"accuracy": clean, "adv_accuracy": adversarial}
    return {
        name: (logits.detach().argmax(1) == y).to(logits.dtype).mean()
        for name, logits in halves.items()
        if logits is not None
    }


def class_loss(logits: Tensor, y: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy; a ValueError where a label is not one of the network's classes."""
    try:
        return F.cross_entropy(logits, y, label_smoothing=label_smoothing)
    except IndexError:  # on the CPU; a GPU stops with an assertion of its own
        raise ValueError(f"y has label {int(y.max())}, outside [0, {logits.shape[1]}), the network's classes") from None
