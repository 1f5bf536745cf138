"""A distribution over the levels of each channel of each pixel, given a feature map that holds its logits.

van den Oord, Kalchbrenner and Kavukcuoglu, "Pixel Recurrent Neural Networks", ICML 2016, section 2.3.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Softmax"]


class Softmax:
    """A softmax over ``levels`` values a channel, or one Bernoulli logit where there are two.

    Args:
        channels: C of the image.
        levels: of :class:`robustgen.generative.Pixels`.

    Attributes:
        parameters_per_pixel: channels of the feature map that a network must give.
        passes: evaluations of a network that give a pixel, of which channel k sees the channels before it.

    >>> Softmax(1, levels=2).log_prob(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)).exp()
    tensor([0.5000])
    """

    def __init__(self, channels: int, levels: int) -> None:
        self.channels, self.levels = channels, levels
        self.parameters_per_pixel = channels * (1 if levels == 2 else levels)
        self.passes = channels

    def shaped(self, parameters: Tensor) -> Tensor:
        """The logits (N, C, levels or 1, H, W) that the feature map (N, parameters, H, W) holds."""
        return parameters.unflatten(1, (self.channels, -1))

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        """log p(x) in nats, (N,), of images x (N, C, H, W) in [0, 1] on the levels."""
        if self.levels == 2:
            return (x * parameters - F.softplus(parameters)).flatten(1).sum(1)
        levels = (x.detach() * (self.levels - 1)).round().long()
        logits = self.shaped(parameters).transpose(1, 2)  # cross_entropy has classes second
        return -F.cross_entropy(logits, levels, reduction="none").flatten(1).sum(1)

    def mean(self, parameters: Tensor) -> Tensor:
        """The expected image (N, C, H, W), in [0, 1]."""
        if self.levels == 2:
            return parameters.sigmoid()
        values = torch.linspace(0, 1, self.levels, dtype=parameters.dtype, device=parameters.device)
        return torch.einsum("nclhw,l->nchw", self.shaped(parameters).softmax(2), values)

    def sample(self, parameters: Tensor, uniforms: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] by the inverse distribution function of uniform numbers (N, C, H, W)."""
        if self.levels == 2:
            return (uniforms >= (-parameters).sigmoid()).to(uniforms)
        below = self.shaped(parameters).softmax(2).cumsum(2)[:, :, :-1]  # P(level <= 0), ..., P(level <= levels - 2)
        return (uniforms[:, :, None] >= below).sum(2).to(uniforms) / (self.levels - 1)
