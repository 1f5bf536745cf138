"""MART: adversarial training that minds the examples which are misclassified without any attack.

Wang, Zou, Yi, Bailey, Ma and Gu, "Improving Adversarial Robustness Requires Revisiting Misclassified Examples", 2020,
section 3: BCE(f(x'), y) + lambda * KL(f(x) || f(x')) * (1 - p_y(x)), with the boosted cross-entropy
BCE = -log p_y(x') - log(1 - max_{k != y} p_k(x')).
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from robustgen.checks import plain_fields
from robustgen.model import kl_divergence
from robustgen.training.classification import accuracies, class_loss

__all__ = ["Mart"]


@dataclass(frozen=True, kw_only=True)
class Mart:
    """BCE(f(x'), y) + beta * KL(f(x) || f(x')) * (1 - p_y(x)), as the ``loss`` of an objective whose attack ascends the
    cross-entropy (:class:`~robustgen.attacks.PGD`).

    The weight 1 - p_y(x) is trained too: no clean cross-entropy is there to raise p_y(x). Computed from
    log-probabilities: the boosted term stays exact and grows without bound where the constants of other
    implementations cap it. Logged: ``boosted_loss``, ``weighted_divergence`` and both accuracies.

    Args:
        beta: lambda of the paper, finite and >= 0.

    Raises:
        ValueError: beta out of range.

    >>> import torch
    >>> clean, adversarial = torch.tensor([[1.0, 3.0]]).log(), torch.tensor([[1.0, 1.0]]).log()
    >>> loss, logged = Mart(beta=4.0)(clean, adversarial, torch.tensor([1]))
    >>> [round(value.item(), 4) for value in (loss, logged["boosted_loss"], logged["weighted_divergence"])]
    [1.5171, 1.3863, 0.0327]
    """

    beta: float = 5.0

    def __post_init__(self) -> None:
        plain_fields(self)
        if not 0 <= self.beta < float("inf"):
            raise ValueError(f"beta must be a finite number >= 0, got {self.beta}")

    def __call__(self, clean: Tensor, adversarial: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logged = accuracies(clean, adversarial, y)
        cross_entropy = class_loss(adversarial, y)
        doubt = -clean.log_softmax(1).gather(1, y[:, None]).squeeze(1).expm1()  # 1 - p_y(x), exact near 0
        boosted = cross_entropy - _log_not_rival(adversarial, y).mean()
        weighted = (kl_divergence(clean, adversarial) * doubt).mean()
        logged |= {"boosted_loss": boosted, "weighted_divergence": weighted}
        return boosted + self.beta * weighted, logged

    def describe(self) -> dict[str, Any]:
        """The loss's name and beta."""
        return {"loss": "Mart", "beta": self.beta}


def _log_not_rival(logits: Tensor, y: Tensor) -> Tensor:
    """log(1 - max_{k != y} p_k), (B,), summed over all other classes: 1 - p would lose its digits near p = 1."""
    log_p = logits.log_softmax(1)
    rival = log_p.detach().scatter(1, y[:, None], float("-inf")).argmax(1, keepdim=True)
    return log_p.scatter(1, rival, float("-inf")).logsumexp(1)
