"""van den Oord, Kalchbrenner, Vinyals et al., "Conditional Image Generation with PixelCNN Decoders", NIPS 2016."""

from collections.abc import Sequence

from torch import Tensor

from robustgen.checks import check_integers, check_shape
from robustgen.generative.autoregressive.base import AutoregressiveModel
from robustgen.generative.blocks.gated import Condition, GatedStack
from robustgen.generative.blocks.incremental import Incremental
from robustgen.generative.blocks.masked_conv import MaskedHead
from robustgen.generative.blocks.softmax import discrete_likelihood
from robustgen.generative.pixels import Pixels

__all__ = ["GatedPixelCNN"]


class GatedPixelCNN(AutoregressiveModel):
    """Gated masked convolutions in a vertical and a horizontal stack (figure 2), which have no blind spot.

    With ``n_classes`` it models p(x | y), equation 4 with a one-hot y; its ``log_prob`` is then that of the mixture of
    all classes with equal weights, :meth:`class_log_prob` gives each, and training needs labels.

    Args:
        shape: of an image, (channels, height, width).
        levels: of a pixel, at least 2; two are binary images with one logit each.
        quantization: of values between two levels, see :class:`robustgen.generative.Pixels`.
        width: features of each stack, at least one for each channel.
        layers: behind the first, 7 x 7 one.
        kernel_size: of these layers, odd.
        n_classes: None: unconditional.

    Raises:
        ValueError: an argument out of range.

    >>> import torch
    >>> model = GatedPixelCNN((1, 4, 4), levels=2, width=8, layers=1, n_classes=3)
    >>> model.class_log_prob(torch.zeros(5, 1, 4, 4)).shape, model.log_prob(torch.zeros(5, 1, 4, 4)).shape
    (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        levels: int = 256,
        quantization: str | None = None,
        width: int = 64,
        layers: int = 7,
        kernel_size: int = 5,
        n_classes: int | None = None,
    ) -> None:
        pixels = Pixels(levels, quantization)
        distribution = discrete_likelihood(check_shape(shape)[0], levels)
        super().__init__(shape, pixels, distribution, n_classes)
        check_integers(width=width, kernel_size=kernel_size)
        check_integers(0, layers=layers)
        self.width, self.layers, self.kernel_size = width, layers, kernel_size
        groups = self.shape[0]
        self.stack = GatedStack(groups, width, layers, kernel_size=kernel_size, vector=n_classes or 0)
        self.head = MaskedHead(width, width, distribution.parameters_per_pixel, groups)

    def _rows(self, x: Tensor, y: Tensor | None, now: Incremental | None = None) -> Sequence[Tensor]:
        return self.stack.rows(x, Condition(vector=y), now)

    def _pixels(self, x: Tensor, rows: Sequence[Tensor], now: Incremental | None = None) -> Tensor:
        result: Tensor = self.head(self.stack.pixels(x, rows, now), now)
        return result
