"""Likelihood as a measure of novelty.

Bishop, "Novelty Detection and Neural Network Validation", 1994; the importance-weighted bound in place of the ELBO:
Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016, equation 8.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from robustgen.checks import check_integers
from robustgen.detectors.base import Detector

if TYPE_CHECKING:
    from robustgen.generative import GenerativeModel

__all__ = ["Likelihood", "check_comparable", "check_likelihood"]


def check_likelihood(model: object, detector: str) -> None:
    """TypeError unless ``model`` is a generative model with a likelihood; ``detector`` is who needs it."""
    if not callable(getattr(model, "log_prob", None)) or getattr(model, "log_prob_kind", None) is None:
        hint = " (it has a discriminator: use Discriminator)" if hasattr(model, "discriminate") else ""
        hint = " (it has a density of codes: use LatentDensity)" if hasattr(model, "latent_log_prob") else hint
        raise TypeError(f"{detector} needs a model with a likelihood, {type(model).__name__} has none{hint}")


def check_comparable(models: object, detector: str) -> None:
    """Raise unless ``models`` are several whose likelihoods are of the same kind and of the same pixels.

    Raises:
        TypeError: one model alone, or a model without likelihood.
        ValueError: an exact likelihood beside a bound, a density beside probabilities, or pixels of other levels.
    """
    if not isinstance(models, Sequence | nn.ModuleList):
        raise TypeError(f"{detector} needs several models in a list, got one {type(models).__name__}")
    for model in models:
        check_likelihood(model, detector)
    kinds = [f"{model.log_prob_kind} of {_pixels(model)}" for model in models]
    for kind in kinds[1:]:
        if kind != kinds[0]:
            raise ValueError(f"{detector} compares likelihoods of one kind, got {kinds[0]} and {kind}")


def _pixels(model: object) -> str:
    pixels = getattr(model, "pixels", None)
    if pixels is None:
        return "a density"
    quantization = "unquantized" if pixels.quantization is None else f"{pixels.quantization}"
    return f"{pixels.levels} levels ({quantization})"


class Likelihood(Detector):
    """score(x) = -log p(x) in nats, in the sense of the model's ``log_prob_kind``. Nothing is learned in ``fit``.

    Images of low complexity may get a high likelihood whatever they show: see :class:`InputComplexity`,
    :class:`LikelihoodRatio`, :class:`LikelihoodRegret`, :class:`Typicality`.

    Args:
        model: a :class:`~robustgen.generative.GenerativeModel` with a likelihood.
        importance_samples: of a latent-variable model, K of the importance-weighted bound that takes the place of the
            ELBO; None: its ``log_prob``.
        draws: of a model that puts pixels on its levels at random (quantization "stochastic"), how many of them the
            score is the mean of, for each image; with a latent-variable model every draw has its own latents.
        batch_size: inputs scored at once.

    Raises:
        TypeError: a model without likelihood, ``importance_samples`` for one without an importance-weighted bound, or
            ``draws`` for one that draws no pixels.
        ValueError: ``importance_samples`` or ``draws`` below 1; in ``fit`` and ``score`` what the model's ``log_prob``
            raises.

    >>> from robustgen.generative import VAE
    >>> vae, x = VAE((1, 8, 8), architecture="mlp", width=8).eval(), torch.eye(8).expand(4, 1, 8, 8)
    >>> bool((Likelihood(vae).fit(x).score(x) == -vae.log_prob(x)).all())
    True
    """

    def __init__(
        self, model: "GenerativeModel", importance_samples: int | None = None, draws: int = 1, *, batch_size: int = 256
    ) -> None:
        super().__init__(model, batch_size)
        check_likelihood(model, "Likelihood")
        if importance_samples is not None and not hasattr(model, "importance_weighted_log_prob"):
            raise TypeError(f"{type(model).__name__} has no importance-weighted bound: leave importance_samples out")
        check_integers(draws=draws)
        if importance_samples is not None:
            check_integers(importance_samples=importance_samples)
        if draws > 1 and getattr(getattr(model, "pixels", None), "quantization", None) != "stochastic":
            raise TypeError(f"this {type(model).__name__} draws no pixels (quantization='stochastic'): leave draws out")
        self.importance_samples, self.draws = importance_samples, draws

    def _score(self, x: Tensor) -> Tensor:
        if self.draws == 1:
            return self._nll(x)
        return torch.stack([self._nll(self.model.pixels(x, draw=draw)) for draw in range(self.draws)]).mean(0)

    def _nll(self, x: Tensor) -> Tensor:
        if self.importance_samples is None:
            return -self.model.log_prob(x)
        return -self.model.importance_weighted_log_prob(x, samples=self.importance_samples)
