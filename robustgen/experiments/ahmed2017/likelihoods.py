"""Negative log-likelihoods of test images under a model of all classes, for Table 2.1 and its figures."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from robustgen.data import ArrayDataset
from robustgen.detectors import Likelihood
from robustgen.experiments.ahmed2017.heldout_table import Budget
from robustgen.experiments.ahmed2017.recipes import Recipe
from robustgen.experiments.ahmed2017.trained_models import TrainedModels
from robustgen.experiments.experiment import counted
from robustgen.experiments.training_cache import TrainingCache, shuffled
from robustgen.generative.pixels import bits_per_dim

__all__ = ["BUDGETS", "measured", "trained_on"]

BUDGETS = {
    "smoke": Budget("digits", 300, 100),
    "cpu": Budget("mnist", 20_000, 5_000),
    "full": Budget("mnist"),
}


def trained_on(
    budget: Budget, recipes: Mapping[str, Recipe], cache: TrainingCache, seed: int
) -> tuple[TrainedModels, ArrayDataset]:
    """Models of a budget's training images, and its test images."""
    train = cache.images(budget.data, "train", budget.n_train)
    test = shuffled(cache.images(budget.data, "test"))  # drawn: those in front are the easier ones
    return TrainedModels(cache, dict(recipes), train, seed), test.first(budget.n_test or len(test))


def measured(model: Any, test: Tensor, importance_samples: int = 0) -> tuple[float, dict[str, dict[str, float]]]:
    """The mean of -log p(x) in nats, and everything else that a cell keeps.

    Args:
        importance_samples: K of the importance-weighted bound; 0: the model's own log-likelihood or bound.
    """
    detector = Likelihood(model, importance_samples or None).fit(test[:2])
    with torch.no_grad():
        nll = detector.score(test).double()
        numbers = {
            "nats": nll.mean().item(),
            "standard error over images": nll.std().item() / math.sqrt(len(nll)),
            "bits a dimension": bits_per_dim(nll.mean(), model.dimensions).item(),
        }
        if hasattr(model, "elbo_terms"):
            terms = [model.elbo_terms(x) for x in test.split(256)]
            reconstruction, kl = (torch.cat(parts).double().mean().item() for parts in zip(*terms, strict=True))
            numbers |= {"bound, nats": kl - reconstruction, "-log p(x|z), nats": -reconstruction, "KL, nats": kl}
    return numbers["nats"], counted(numbers, len(test))
