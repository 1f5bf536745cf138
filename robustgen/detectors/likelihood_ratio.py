"""The likelihood ratio to a model of the background.

Ren, Liu, Fertig et al., "Likelihood Ratios for Out-of-Distribution Detection", NeurIPS 2019, equation 4; the
perturbed inputs that the background model is trained on, section 2.2.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustgen.checks import ROUNDING, check_images
from robustgen.counter_rng import content_ids, integers, uniform
from robustgen.detectors.base import Detector
from robustgen.detectors.likelihood import check_comparable

if TYPE_CHECKING:
    from robustgen.generative import GenerativeModel

__all__ = ["LikelihoodRatio", "mutate"]

_WHERE, _WHAT = 1, 2  # random streams


def mutate(x: Tensor, rate: float, levels: int = 256, seed: int = 0) -> Tensor:
    """Replace each value of x by a level drawn uniformly, with probability ``rate``: data for a background model.

    What is semantic in an image does not survive it, what is common to images of all kinds does. The paper finds rates
    of 0.1 to 0.3 best, together with weight decay.

    Args:
        x: images (N, ...) in [0, 1].
        rate: mu, in [0, 1].
        levels: 0, 1 / (levels - 1), ..., 1 are drawn; 2 for binary images.
        seed: another one mutates elsewhere; the draws depend on it and on the image, not on its batch.

    Raises:
        TypeError, ValueError: no such images, a rate outside [0, 1], or fewer than two levels.

    >>> x = torch.zeros(1, 1, 100, 100)
    >>> mutated = mutate(x, rate=0.2, levels=2)
    >>> mutated.unique().tolist(), bool((mutated.mean() - 0.1).abs() < 0.01)
    ([0.0, 1.0], True)
    """
    check_images(x, (0.0, 1.0), rounding=ROUNDING)
    if not 0 <= rate <= 1 or levels < 2:
        raise ValueError(f"rate must be in [0, 1] and levels at least 2, got {rate} and {levels}")
    ids, shape = content_ids(x), tuple(x.shape[1:])
    drawn = integers(seed, ids, shape, levels, (_WHAT,)).to(x.dtype) / (levels - 1)
    return torch.where(uniform(seed, ids, shape, (_WHERE,), x.dtype) < rate, drawn, x)


class LikelihoodRatio(Detector):
    """score(x) = log p_background(x) - log p(x), in nats. Nothing is learned in ``fit``.

    Args:
        models: (model, background), two models of the same images; the background of :func:`mutate`'d ones.
        batch_size: inputs scored at once.

    Raises:
        TypeError: one model alone, or a model without likelihood.
        ValueError: not two models, or likelihoods of different kinds: an exact one and a bound, a density and
            probabilities, or of pixels of other levels. Two unnormalised ones will do: what the ratio is off by is the
            same for all x, and changes no p-value.

    >>> import torch
    >>> from robustgen.generative import VAE
    >>> vae, x = VAE((1, 8, 8), architecture="mlp", width=8).eval(), torch.eye(8).expand(4, 1, 8, 8)
    >>> LikelihoodRatio([vae, vae]).fit(x).score(x)  # no more likely than under the background
    tensor([0., 0., 0., 0.])
    """

    def __init__(self, models: "Sequence[GenerativeModel]", *, batch_size: int = 256) -> None:
        super().__init__(models, batch_size)
        check_comparable(models, "LikelihoodRatio")
        if len(models) != 2:
            raise ValueError(f"LikelihoodRatio needs two models, (model, background), got {len(models)}")

    def _score(self, x: Tensor) -> Tensor:
        model, background = self.model
        return background.log_prob(x) - model.log_prob(x)
