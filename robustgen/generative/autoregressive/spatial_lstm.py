"""LSTM layers over images: a row or a diagonal at a time.

van den Oord, Kalchbrenner and Kavukcuoglu, "Pixel Recurrent Neural Networks", ICML 2016, sections 3.1 (Row LSTM,
equation 3) and 3.2 (Diagonal BiLSTM, figure 3).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustgen.generative.blocks.masked_conv import MaskedConv2d

__all__ = ["DiagonalBiLSTM", "RowLSTM", "skew", "unskew"]


def skew(x: Tensor) -> Tensor:
    """Shift row r of x (N, C, H, W) by r columns to the right: (N, C, H, W + H - 1), where columns are diagonals of x.

    >>> skew(torch.tensor([[[[1, 2], [3, 4]]]]))
    tensor([[[[1, 2, 0],
              [0, 3, 4]]]])
    """
    height, width = x.shape[2:]
    rows = F.pad(x, (0, height)).flatten(2)  # each row with H zeros behind it: in rows one shorter, each begins later
    return rows[..., : height * (width + height - 1)].unflatten(2, (height, -1))


def unskew(x: Tensor) -> Tensor:
    """The inverse of :func:`skew`: (N, C, H, W) of (N, C, H, W + H - 1)."""
    height, width = x.shape[2], x.shape[3] - x.shape[2] + 1
    return F.pad(x.flatten(2), (0, height)).unflatten(2, (height, -1))[..., :width]


def _lstm_cell(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """State and cell (N, K, ...) of the gates (N, 4 K, ...) and the cell before.

    The four gates of a feature are neighbours: so all are in the same part of a :class:`MaskedConv2d`.
    """
    out, forget, write, content = gates.unflatten(1, (-1, 4)).unbind(2)
    cell = forget.sigmoid() * cell + write.sigmoid() * content.tanh()
    return out.sigmoid() * cell.tanh(), cell


class RowLSTM(nn.Module):
    """Rows from the top; the state at a pixel has seen a triangle above it, a column wider on each side with each row.

    Args:
        in_channels: of the map that it reads, at least ``groups``.
        width: features of the state, at least ``groups``.
        groups: channels of the image; see :class:`MaskedConv2d`.
    """

    def __init__(self, in_channels: int, width: int, groups: int = 1) -> None:
        super().__init__()
        self.input_to_state = MaskedConv2d(in_channels, 4 * width, (1, 3), "B", groups, together=4)
        self.state_to_state = nn.Conv1d(width, 4 * width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """States (N, width, H, W) of x (N, in_channels, H, W)."""
        gates = self.input_to_state(x)
        state = cell = gates.new_zeros(len(x), gates.shape[1] // 4, x.shape[3])
        states = []
        for row in gates.unbind(2):
            state, cell = _lstm_cell(row + self.state_to_state(state), cell)
            states.append(state)
        return torch.stack(states, 2)


class _DiagonalLSTM(nn.Module):
    """Diagonals from the top left; the state at a pixel has seen all pixels neither below nor right of it.

    ``input_to_state`` is a 1 x 1 convolution to 4 ``width`` channels.
    """

    def __init__(self, input_to_state: nn.Module, width: int) -> None:
        super().__init__()
        self.input_to_state = input_to_state
        self.state_to_state = nn.Conv1d(width, 4 * width, 2, bias=False)  # down a diagonal: the pixels above and left

    def forward(self, x: Tensor) -> Tensor:
        gates = skew(self.input_to_state(x))  # zero outside of the image, and so is the state before it
        state = cell = gates.new_zeros(len(x), gates.shape[1] // 4, x.shape[2])
        states = []
        for diagonal in gates.unbind(3):
            state, cell = _lstm_cell(diagonal + self.state_to_state(F.pad(state, (1, 0))), cell)
            states.append(state)
        return unskew(torch.stack(states, 3))


class DiagonalBiLSTM(nn.Module):
    """Diagonals from both upper corners; together their states at a pixel have seen all pixels before it.

    What comes from the right is moved down by one row, lest a pixel see those to its right. It reads the image besides
    the features, which the paper does not say: features at the end of a row have not seen the pixel there, so that the
    row below could see it only from beneath.

    Args:
        in_channels: of the map that it reads, at least ``groups``.
        width: features of the state, at least ``groups``.
        groups: channels of the image; see :class:`MaskedConv2d`.
    """

    def __init__(self, in_channels: int, width: int, groups: int = 1) -> None:
        super().__init__()
        self.from_left = _DiagonalLSTM(MaskedConv2d(in_channels, 4 * width, 1, "B", groups, together=4), width)
        self.from_right = _DiagonalLSTM(nn.Conv2d(in_channels + groups, 4 * width, 1), width)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """States (N, width, H, W) of x (N, in_channels, H, W) and of the image (N, groups, H, W)."""
        right = self.from_right(torch.cat([x, image], 1).flip(3)).flip(3)
        return self.from_left(x) + F.pad(right, (0, 0, 1, -1))
