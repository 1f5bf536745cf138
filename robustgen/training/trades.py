"""TRADES: clean accuracy, and the same prediction all over the ball.

Zhang, Yu, Jiao, Xing, El Ghaoui and Jordan, "Theoretically Principled Trade-off between Robustness and Accuracy", 2019,
equation 5: CE(f(x), y) + max_x' L(f(x), f(x')) / lambda, with L the Kullback-Leibler divergence of their experiments.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from robustgen.checks import plain_fields
from robustgen.model import kl_divergence
from robustgen.training.classification import accuracies, class_loss

__all__ = ["Trades"]


@dataclass(frozen=True, kw_only=True)
class Trades:
    """CE(f(x), y) + beta * KL(f(x) || f(x')), as the ``loss`` of an objective whose attack is
    :class:`~robustgen.attacks.KLPGD`.

    Both terms train the clean prediction: it is no constant target. Logged: ``clean_loss``, ``divergence`` and both
    accuracies.

    Args:
        beta: 1 / lambda of the paper, finite and >= 0; 6 for its CIFAR-10, 1 for its MNIST. 0 trains on clean inputs.

    Raises:
        ValueError: beta out of range.

    >>> import torch
    >>> clean, adversarial = torch.tensor([[1.0, 3.0]]).log(), torch.tensor([[1.0, 1.0]]).log()
    >>> loss, logged = Trades(beta=2.0)(clean, adversarial, torch.tensor([1]))
    >>> [round(value.item(), 4) for value in (loss, logged["clean_loss"], logged["divergence"])]
    [0.5493, 0.2877, 0.1308]
    """

    beta: float = 6.0

    def __post_init__(self) -> None:
        plain_fields(self)
        if not 0 <= self.beta < float("inf"):
            raise ValueError(f"beta must be a finite number >= 0, got {self.beta}")

    def __call__(self, clean: Tensor, adversarial: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logged = accuracies(clean, adversarial, y)
        logged |= {"clean_loss": class_loss(clean, y), "divergence": kl_divergence(clean, adversarial).mean()}
        return logged["clean_loss"] + self.beta * logged["divergence"], logged

    def describe(self) -> dict[str, Any]:
        """The loss's name and beta."""
        return {"loss": "Trades", "beta": self.beta}
