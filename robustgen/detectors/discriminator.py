"""What the discriminator or critic of an adversarial model takes for generated.

Goodfellow, Pouget-Abadie, Mirza et al., "Generative Adversarial Nets", 2014: the optimal discriminator of equation 2
is p / (p + p_g); as a score of normality, Ahmed, "Generative Models for Natural Images", 2017, section 4.2.
"""

from typing import TYPE_CHECKING

from torch import Tensor

from robustgen.detectors.base import Detector

if TYPE_CHECKING:
    from robustgen.generative import GenerativeModel

__all__ = ["Discriminator"]


class Discriminator(Detector):
    """score(x) = -d(x), with d the discriminator's output before any sigmoid. Nothing is learned in ``fit``.

    Args:
        model: with ``discriminate(x) -> (N,)``, higher = more real, of each image alone (no batch statistics).
        batch_size: inputs scored at once.

    Raises:
        TypeError: a model without ``discriminate``.

    >>> import torch
    >>> class Critic(torch.nn.Module):
    ...     def discriminate(self, x):
    ...         return x.flatten(1).sum(1)
    >>> Discriminator(Critic()).fit(torch.zeros(1, 1, 2, 2)).score(torch.ones(1, 1, 2, 2))
    tensor([-4.])
    """

    def __init__(self, model: "GenerativeModel", *, batch_size: int = 256) -> None:
        super().__init__(model, batch_size)
        if not callable(getattr(model, "discriminate", None)):
            raise TypeError(f"Discriminator needs an adversarial model, {type(model).__name__} has no discriminate")

    def _score(self, x: Tensor) -> Tensor:
        return -self.model.discriminate(x)
