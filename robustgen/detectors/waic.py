"""The likelihood, less the disagreement of an ensemble about it.

Choi, Jang and Alemi, "WAIC, but Why? Generative Ensembles for Robust Anomaly Detection", 2018, equation 2; after
Watanabe, "Asymptotic Equivalence of Bayes Cross Validation and Widely Applicable Information Criterion", 2010.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustgen.detectors.base import Detector
from robustgen.detectors.likelihood import check_comparable

if TYPE_CHECKING:
    from robustgen.generative import GenerativeModel

__all__ = ["WAIC"]


class WAIC(Detector):
    """score(x) = Var_m log p_m(x) - E_m log p_m(x) over models m, in nats (the variance in their square).

    The variance is the unbiased one. Nothing is learned in ``fit``.

    Args:
        models: at least two, of the same images, trained with different seeds or kept at different steps.
        batch_size: inputs scored at once.

    Raises:
        TypeError: one model alone, or a model without likelihood.
        ValueError: fewer than two models, likelihoods of different kinds (as in :class:`LikelihoodRatio`), or
            unnormalised ones, which differ by constants that are not known.

    >>> import torch
    >>> from robustgen.generative import VAE
    >>> vae, x = VAE((1, 8, 8), architecture="mlp", width=8).eval(), torch.eye(8).expand(4, 1, 8, 8)
    >>> WAIC([vae, vae]).fit(x).score(x).allclose(-vae.log_prob(x))  # no disagreement
    True
    """

    def __init__(self, models: "Sequence[GenerativeModel]", *, batch_size: int = 256) -> None:
        super().__init__(models, batch_size)
        check_comparable(models, "WAIC")
        if len(models) < 2:
            raise ValueError(f"WAIC needs an ensemble of at least two models, got {len(models)}")
        for model in models:
            if model.log_prob_kind == "unnormalised":
                raise ValueError(f"WAIC compares likelihoods of several models: {type(model).__name__} is unnormalised")

    def _score(self, x: Tensor) -> Tensor:
        log_probs = torch.stack([model.log_prob(x) for model in self.model])  # (M, N)
        return log_probs.var(0) - log_probs.mean(0)
