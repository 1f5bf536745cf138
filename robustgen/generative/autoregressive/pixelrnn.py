"""van den Oord, Kalchbrenner and Kavukcuoglu, "Pixel Recurrent Neural Networks", ICML 2016: the Row LSTM and the
Diagonal BiLSTM (sections 3.1 to 3.4, table 1)."""

from torch import Tensor, nn

from robustgen.checks import check_integers, check_shape, nearest
from robustgen.generative.autoregressive.base import AutoregressiveModel
from robustgen.generative.autoregressive.spatial_lstm import DiagonalBiLSTM, RowLSTM
from robustgen.generative.blocks.incremental import Incremental
from robustgen.generative.blocks.masked_conv import MaskedConv2d, MaskedHead
from robustgen.generative.blocks.softmax import discrete_likelihood
from robustgen.generative.pixels import Pixels

__all__ = ["PixelRNN"]

VARIANTS = {"row": RowLSTM, "diagonal": DiagonalBiLSTM}


class PixelRNN(AutoregressiveModel):
    """LSTM layers over the image with residual connections. With "diagonal" every pixel has seen all before it.

    It trains with Adam, where the paper has RMSProp and gives no rate (section 5.2), as :class:`PixelCNN` does.

    Args:
        shape: of an image, (channels, height, width).
        levels: of a pixel, at least 2; two are binary images with one logit each.
        quantization: of values between two levels, see :class:`robustgen.generative.Pixels`.
        variant: "row" (Row LSTM) or "diagonal" (Diagonal BiLSTM).
        width: h, the features of an LSTM's state, at least one for each channel; there are 2h between layers.
        layers: behind the 7 x 7 convolution with mask A.

    Raises:
        ValueError: an argument out of range.

    >>> import torch
    >>> model = PixelRNN((1, 4, 4), levels=2, variant="row", width=4, layers=1)
    >>> model.logits(torch.zeros(5, 1, 4, 4)).shape, model.log_prob(torch.zeros(5, 1, 4, 4)).shape
    (torch.Size([5, 1, 1, 4, 4]), torch.Size([5]))
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        levels: int = 256,
        quantization: str | None = None,
        variant: str = "diagonal",
        width: int = 16,
        layers: int = 7,
    ) -> None:
        pixels = Pixels(levels, quantization)
        distribution = discrete_likelihood(check_shape(shape)[0], levels)
        super().__init__(shape, pixels, distribution)
        if variant not in VARIANTS:
            raise ValueError(f"unknown variant {variant!r}; {nearest(variant, VARIANTS)}")
        check_integers(width=width)
        check_integers(0, layers=layers)
        self.variant, self.width, self.layers = variant, width, layers
        groups = self.shape[0]
        self.first = MaskedConv2d(groups, 2 * width, 7, "A", groups)
        self.states = nn.ModuleList(VARIANTS[variant](2 * width, width, groups) for _ in range(layers))
        self.up = nn.ModuleList(MaskedConv2d(width, 2 * width, 1, "B", groups) for _ in range(layers))
        self.head = MaskedHead(2 * width, 2 * width, distribution.parameters_per_pixel, groups)

    def _pixels(self, x: Tensor, rows: None, now: Incremental | None = None) -> Tensor:
        if now is not None:  # all rows so far are computed again, which is what takes the time in sampling
            return now.crop(self._pixels(x[:, :, : now.row + 1], rows))
        h = self.first(x)
        for state, up in zip(self.states, self.up, strict=True):
            h = h + up(state(h, x) if self.variant == "diagonal" else state(h))
        result: Tensor = self.head(h)
        return result
