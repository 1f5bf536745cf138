"""A softmax over the levels of each channel of each pixel.

van den Oord, Kalchbrenner and Kavukcuoglu, "Pixel Recurrent Neural Networks", ICML 2016, section 2.3.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from robustgen.generative.blocks.pixel_likelihood import Bernoulli, PixelLikelihood

__all__ = ["Softmax", "discrete_likelihood"]


class Softmax(PixelLikelihood):
    """Every level has a logit of its own: the feature map holds (N, C * levels, H, W).

    Args:
        channels: C of the image.
        levels: of :class:`robustgen.generative.Pixels`.

    >>> half, likelihood = torch.full((1, 1, 1, 1), 0.5), Softmax(1, levels=3)
    >>> likelihood.log_prob(half, torch.zeros(1, 3, 1, 1)).exp()
    tensor([0.3333])
    """

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__()
        self.channels, self.levels = channels, levels
        self.parameters_per_pixel = channels * levels

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        levels = (x.detach() * (self.levels - 1)).round().long()
        logits = self._logits(parameters).transpose(1, 2)  # cross_entropy has classes second
        return -F.cross_entropy(logits, levels, reduction="none").flatten(1).sum(1)

    def mean(self, parameters: Tensor) -> Tensor:
        values = torch.linspace(0, 1, self.levels).to(parameters)
        return torch.einsum("nclhw,l->nchw", self._logits(parameters).softmax(2), values)

    def sample(self, parameters: Tensor, uniforms: Tensor) -> Tensor:
        below = self._logits(parameters).softmax(2).cumsum(2)[:, :, :-1]  # P(level <= 0), ..., P(level <= levels - 2)
        return (uniforms[:, :, None] >= below).sum(2).to(uniforms) / (self.levels - 1)

    def _logits(self, parameters: Tensor) -> Tensor:
        return parameters.unflatten(1, (self.channels, self.levels))


def discrete_likelihood(channels: int, levels: int) -> PixelLikelihood:
    """A Bernoulli logit a channel for two levels, else a softmax."""
    return Bernoulli(channels) if levels == 2 else Softmax(channels, levels)
