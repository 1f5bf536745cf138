"""van den Oord, Kalchbrenner and Kavukcuoglu, "Pixel Recurrent Neural Networks", ICML 2016: the PixelCNN (sections 3.4
and 3.5, table 1)."""

from torch import Tensor, nn

from robustgen.checks import check_integers, check_shape
from robustgen.generative.autoregressive.base import AutoregressiveModel
from robustgen.generative.blocks.incremental import Incremental
from robustgen.generative.blocks.masked_conv import MaskedConv2d, MaskedHead
from robustgen.generative.blocks.softmax import discrete_likelihood
from robustgen.generative.pixels import Pixels

__all__ = ["PixelCNN"]


class _ResidualBlock(nn.Module):
    """h + a bottleneck of 1 x 1, 3 x 3 and 1 x 1 convolutions with mask B, from 2 ``width`` to ``width`` and back."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.down = MaskedConv2d(2 * width, width, 1, "B", groups)
        self.conv = MaskedConv2d(width, width, 3, "B", groups)
        self.up = MaskedConv2d(width, 2 * width, 1, "B", groups)

    def forward(self, h: Tensor, now: Incremental | None = None) -> Tensor:
        y = self.down(h.relu(), now)
        y = self.conv(y.relu(), now)
        return h + self.up(y.relu(), now)


class PixelCNN(AutoregressiveModel):
    """A stack of masked convolutions. What it sees grows by a pixel a layer and leaves out a blind spot: above and to
    the right of a pixel, all but what the first layer's window and a slope of one column a row reach.

    It trains with Adam. The paper has RMSProp and gives no rate (section 5.2); its first steps are many times the later
    ones, and at 1e-3 they throw a model of 256 levels far behind the uniform distribution.

    Args:
        shape: of an image, (channels, height, width).
        levels: of a pixel, at least 2; two are binary images with one logit each.
        quantization: of values between two levels, see :class:`robustgen.generative.Pixels`.
        width: h, the features inside a residual block, at least one for each channel; there are 2h between blocks.
        layers: residual blocks behind the 7 x 7 convolution with mask A.

    Raises:
        ValueError: an argument out of range.

    >>> import torch
    >>> model = PixelCNN((1, 4, 4), levels=2, width=8, layers=1)
    >>> model.logits(torch.zeros(5, 1, 4, 4)).shape, model.log_prob(torch.zeros(5, 1, 4, 4)).shape
    (torch.Size([5, 1, 1, 4, 4]), torch.Size([5]))
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        levels: int = 256,
        quantization: str | None = None,
        width: int = 64,
        layers: int = 7,
    ) -> None:
        pixels = Pixels(levels, quantization)
        distribution = discrete_likelihood(check_shape(shape)[0], levels)
        super().__init__(shape, pixels, distribution)
        check_integers(width=width)
        check_integers(0, layers=layers)
        self.width, self.layers = width, layers
        groups = self.shape[0]
        self.first = MaskedConv2d(groups, 2 * width, 7, "A", groups)
        self.blocks = nn.ModuleList(_ResidualBlock(width, groups) for _ in range(layers))
        self.head = MaskedHead(2 * width, 2 * width, distribution.parameters_per_pixel, groups)

    def _pixels(self, x: Tensor, rows: None, now: Incremental | None = None) -> Tensor:
        h = self.first(x, now)
        for block in self.blocks:
            h = block(h, now)
        result: Tensor = self.head(h, now)
        return result
