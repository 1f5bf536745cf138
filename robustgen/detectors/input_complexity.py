"""The likelihood, less what the image's complexity explains of it.

Serra, Alvarez, Gomez et al., "Input Complexity and Out-of-Distribution Detection with Likelihood-Based Generative
Models", ICLR 2020, equation 1: a ratio of likelihoods, in which a universal compressor is the other model.
"""

import math
from typing import TYPE_CHECKING

from torch import Tensor

from robustgen.detectors.base import Detector
from robustgen.detectors.compressed_size import compressed_bits
from robustgen.detectors.likelihood import check_likelihood

if TYPE_CHECKING:
    from robustgen.generative import GenerativeModel

__all__ = ["InputComplexity"]


class InputComplexity(Detector):
    """score(x) = -log2 p(x) - L(x), in bits, with L the shorter of two lossless compressors. Nothing is learned.

    L is of the pixels that the model sees: of the binarized image for a model of binary images. Gradients are those of
    the likelihood alone, since L is constant almost everywhere.

    Args:
        model: a :class:`~robustgen.generative.GenerativeModel` with a likelihood, of pixels of discrete levels: a
            density over continuous values counts no bits.
        batch_size: inputs scored at once.

    Raises:
        TypeError: a model without likelihood.
        ValueError: a model of a density.

    >>> import torch
    >>> from robustgen.generative import VAE
    >>> vae, x = VAE((1, 8, 8), architecture="mlp", width=8).eval(), torch.eye(8).expand(4, 1, 8, 8)
    >>> from robustgen.detectors import CompressedSize, Likelihood
    >>> bits = CompressedSize().fit(x).score(x)
    >>> bool((InputComplexity(vae).fit(x).score(x) == Likelihood(vae).fit(x).score(x) / math.log(2) - bits).all())
    True
    """

    def __init__(self, model: "GenerativeModel", *, batch_size: int = 256) -> None:
        super().__init__(model, batch_size)
        check_likelihood(model, "InputComplexity")
        if getattr(model, "pixels", None) is None:
            raise ValueError(
                f"InputComplexity needs a model of discrete pixels, this {type(model).__name__} gives a density"
            )

    def _score(self, x: Tensor) -> Tensor:
        return -self.model.log_prob(x) / math.log(2) - compressed_bits(self.model.pixels(x))
