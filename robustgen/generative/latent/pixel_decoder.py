"""What latent-variable models share whose pixels are autoregressive given the latents."""

from abc import abstractmethod

import torch
from torch import Tensor

from robustgen.generative.blocks.gated import Condition
from robustgen.generative.blocks.pixel_likelihood import PixelLikelihood
from robustgen.generative.latent.base import LatentVariableModel
from robustgen.generative.latent.conditional_pixelcnn import ConditionalPixelCNN

__all__ = ["PixelCNNDecoder"]


class PixelCNNDecoder(LatentVariableModel):
    """p(x | z) = product over pixels i of p(x_i | x_1 ... x_(i-1), z), rows from the top, each from the left.

    A subclass gives ``_encode`` and ``_condition``.

    Attributes:
        pixel_cnn: parameters of each pixel given those before and a :class:`Condition`.
        distribution: of a pixel, given its parameters.
        layers: autoregressive ones; 0: pixels are independent given z.
    """

    pixel_cnn: ConditionalPixelCNN
    distribution: PixelLikelihood
    layers: int

    @abstractmethod
    def _condition(self, z: Tensor) -> Condition:
        """What the pixels are told of z (N, D)."""

    def _decode_log_prob(self, v: Tensor, z: Tensor) -> Tensor:
        return self.distribution.log_prob(v, self.pixel_cnn(v, self._condition(z)).to(v.dtype))

    def decode(self, z: Tensor) -> Tensor:
        """The image (N, *shape) in which each pixel is the median of its distribution given those before and z (N, D).

        The mean of an autoregressive decoder has no closed form. Without autoregressive layers it has, and is returned.
        """
        if not self.layers:
            return self.distribution.mean(self.pixel_cnn.head(self._condition(z).maps))
        return self.decode_sample(z, torch.full((len(z), *self.shape), 0.5, dtype=z.dtype, device=z.device))

    @torch.no_grad()
    def decode_sample(self, z: Tensor, uniforms: Tensor, cached: bool = True) -> Tensor:
        """Images (N, *shape) in [0, 1] from p(x | z), pixel after pixel, without graph.

        Args:
            z: (N, D).
            uniforms: (N, *shape) in [0, 1), all that is random.
            cached: compute each feature once; otherwise all of them for each pixel, which gives the same images.
        """
        return self.pixel_cnn.sample(self._condition(z), uniforms, self.distribution.sample, cached)
