"""What latent-variable models share whose pixels are autoregressive given the latents.

Gulrajani, Kumar, Ahmed et al., "PixelVAE: A Latent Variable Model for Natural Images", ICLR 2017, section 3: gated
masked layers over a map whose points depend on what the map is generated from, and on each other.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from robustgen.generative.blocks.gated import Condition, GatedStack
from robustgen.generative.blocks.incremental import Incremental, sample_in_raster_order
from robustgen.generative.blocks.masked_conv import MaskedHead
from robustgen.generative.blocks.pixel_likelihood import PixelLikelihood
from robustgen.generative.latent.base import LatentVariableModel

__all__ = ["ConditionalPixelCNN", "PixelCNNDecoder"]


class ConditionalPixelCNN(nn.Module):
    """Parameters of each point's distribution, given a :class:`Condition` and the points before it in raster order.

    Args:
        channels: C of the map x.
        parameters: channels of the result.
        width: features, at least ``groups``.
        layers: autoregressive ones; 0: points are independent given the condition's maps, by a 1 x 1 convolution.
        first_kernel_size, kernel_size: of the first layer and of the others, odd.
        vector, maps: sizes of the :class:`Condition`; 0: none.
        groups: C where the channels of a point depend on each other too, 1 where they do not.

    Raises:
        ValueError: an argument out of range, or neither a layer nor maps.

    >>> import torch
    >>> network = ConditionalPixelCNN(1, 1, width=8, layers=1, maps=3)
    >>> network(torch.zeros(2, 1, 5, 5), Condition(maps=torch.zeros(2, 3, 5, 5))).shape
    torch.Size([2, 1, 5, 5])
    """

    def __init__(
        self,
        channels: int,
        parameters: int,
        width: int,
        layers: int,
        first_kernel_size: int = 7,
        kernel_size: int = 5,
        vector: int = 0,
        maps: int = 0,
        groups: int = 1,
    ) -> None:
        super().__init__()
        if layers < 0 or (layers == 0 and not maps):
            raise ValueError(f"at least {0 if maps else 1} autoregressive layers are needed, got {layers}")
        self.passes = groups if layers else 1
        if layers:
            self.stack: GatedStack | None = GatedStack(
                channels, width, layers - 1, first_kernel_size, kernel_size, vector, maps, groups
            )
            self.head: nn.Module = MaskedHead(width, width, parameters, groups)
        else:
            self.stack, self.head = None, nn.Conv2d(maps, parameters, 1)

    def forward(self, x: Tensor, condition: Condition) -> Tensor:
        """(N, parameters, H, W) of x (N, C, H, W)."""
        if self.stack is None:
            result: Tensor = self.head(condition.maps)
            return result
        return self._points(x, self.stack.rows(x, condition))

    def sample(
        self, condition: Condition, noise: Tensor, draw: Callable[[Tensor, Tensor], Tensor], cached: bool = True
    ) -> Tensor:
        """A map (N, C, H, W), point after point.

        Args:
            condition: of N maps.
            noise: (N, C, H, W), all that is random.
            draw: values of parameters (N, parameters, h, w) and noise (N, C, h, w).
            cached: compute each feature once; otherwise all of them for each point, which gives the same map.
        """
        stack = self.stack
        if stack is None:
            return draw(self.head(condition.maps), noise)
        return sample_in_raster_order(
            lambda x, now: stack.rows(x, condition, now), self._points, draw, noise, self.passes, cached
        )

    def _points(self, x: Tensor, rows: Sequence[Tensor], now: Incremental | None = None) -> Tensor:
        assert self.stack is not None
        result: Tensor = self.head(self.stack.pixels(x, rows, now), now)
        return result


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
