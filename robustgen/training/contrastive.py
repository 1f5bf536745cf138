"""Contrastive learning: features by which an image is found again among others after it has been deformed.

Chen, Kornblith, Norouzi and Hinton, "A Simple Framework for Contrastive Learning of Visual Representations", ICML
2020, equation 1 and algorithm 1. What the features are blind to is what the deformations change, so a class that the
network has never seen lies away from those that it has: :class:`robustgen.detectors.KNearestFeatures` of the input of
the last layer is a detector that needs no labels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustgen.checks import check_positive, plain_arguments
from robustgen.model import output_tensor
from robustgen.training.batches import Batch
from robustgen.training.deformations import Deformations

__all__ = ["ContrastiveObjective", "nt_xent"]


class ContrastiveObjective:
    """``nt_xent`` of the network's outputs for two deformed views of each image; labels are not looked at.

    Logged beside it is ``found``: the share of views whose nearest other view in the batch is their own image's. Under
    several processes each contrasts its own share of the batch.

    Args:
        deformations: what makes a view of a batch of images.
        temperature: > 0.

    Raises:
        TypeError: other deformations than :class:`Deformations`.
        ValueError: a temperature that is not positive, or, at the call, a batch of one image: nothing to contrast.

    >>> from robustgen.training import Batch
    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <torch...
    >>> batch = Batch(torch.rand(8, 1, 8, 8), None, torch.arange(8))
    >>> sorted(ContrastiveObjective(Deformations())(nn.Flatten(), batch, 0))
    ['found', 'loss']
    """

    @plain_arguments
    def __init__(self, deformations: Deformations, temperature: float = 0.2) -> None:
        if not isinstance(deformations, Deformations):
            raise TypeError(f"deformations must be Deformations, got {type(deformations).__name__}")
        check_positive(temperature=temperature)
        self.deformations, self.temperature = deformations, temperature

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        if len(batch.x) < 2:
            raise ValueError("a batch of one image has nothing to contrast it with: raise batch_size")
        views = torch.cat([self.deformations(batch.x), self.deformations(batch.x)])
        z = output_tensor(model(views)).flatten(1)  # (2B, D)
        loss, found = nt_xent(z, self.temperature)
        return {"loss": loss, "found": found}

    def describe(self) -> dict[str, Any]:
        """Every setting, JSON-able."""
        return {
            "objective": type(self).__name__,
            "temperature": self.temperature,
            "deformations": self.deformations.describe(),
        }


def nt_xent(z: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy of finding each row's partner among all other rows by cosine similarity; and how often it is found.

    Args:
        z: (2B, D); the partner of row i is row i + B.
        temperature: similarities are divided by it.

    >>> views = torch.eye(3).repeat(2, 1)  # partners coincide, others are orthogonal
    >>> loss, found = nt_xent(views, temperature=1.0)
    >>> bool(torch.isclose(loss, torch.log(1 + 4 / torch.e * torch.ones(())))), found.item()
    (True, 1.0)
    """
    z = F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)))  # bfloat16 is too coarse for a loss
    similarity = (z @ z.T / temperature).fill_diagonal_(float("-inf"))
    partner = torch.arange(len(z), device=z.device).roll(len(z) // 2)
    return F.cross_entropy(similarity, partner), (similarity.argmax(1) == partner).to(z.dtype).mean()
