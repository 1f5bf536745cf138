"""What to watch while a network is trained adversarially: its accuracy under an attack that training does not use."""

from typing import Any

import torch
from torch import Tensor, nn

from robustgen.model import logits_of
from robustgen.training.batches import Batch
from robustgen.training.classification import accuracies, class_loss
from robustgen.training.distributed import unwrap
from robustgen.training.objective import describe

__all__ = ["RobustAccuracy"]


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
