"""The masked convolution of autoregressive image models.

van den Oord, Kalchbrenner and Kavukcuoglu, "Pixel Recurrent Neural Networks", ICML 2016, section 3.4: masks A and B.
"""

import torch
from torch import Tensor, nn

from robustgen.generative.blocks.incremental import Incremental, WindowConv2d

__all__ = ["MaskedConv2d", "MaskedHead"]


class MaskedConv2d(WindowConv2d):
    """A convolution that sees pixels above and left of its own and, of its own, the colour channels before.

    Features are in ``groups`` parts, one for each channel of the image in their order (R, G, B), as equal as whole
    numbers allow: part j of the output is about channel j. Of its own pixel, mask "A" lets it see parts i < j, for a
    layer that reads the image itself, and mask "B" parts i <= j, for all layers behind, whose part j has not seen
    channel j. Only the upper half of the kernel exists, and of one in a row only the left.

    Args:
        in_channels, out_channels: at least ``groups``.
        kernel_size: k of k x k, or (1, k) for a window within the row; k odd.
        mask: "A" or "B".
        groups: channels of the image.
        together: neighbours of the output that the next layer makes one feature of; they are in the same part.

    Raises:
        ValueError: fewer features than ``groups``, an even kernel, or another mask.

    >>> MaskedConv2d(3, 3, 3, "A", groups=3).mask[:, :, 1, 1].int()  # of the own pixel: B sees R and G
    tensor([[0, 0, 0],
            [1, 0, 0],
            [1, 1, 0]], dtype=torch.int32)
    >>> MaskedConv2d(1, 1, 5, "B").mask[0, 0].int()
    tensor([[1, 1, 1, 1, 1],
            [1, 1, 1, 1, 1],
            [1, 1, 1, 0, 0]], dtype=torch.int32)
    """

    mask: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        mask: str,
        groups: int = 1,
        together: int = 1,
    ) -> None:
        if mask not in ("A", "B"):
            raise ValueError(f"mask must be 'A' or 'B', got {mask!r}")
        if min(in_channels, out_channels // together) < groups:
            raise ValueError(
                f"the {groups} channels of the image need a feature each, got {in_channels} and "
                f"{out_channels // together}: take a larger width"
            )
        height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        if height % 2 == 0 or width % 2 == 0:
            raise ValueError(f"the kernel must have a centre, got size {(height, width)}")
        above, left = height // 2, width // 2
        width = width if above else left + 1  # nothing right of the centre is seen
        super().__init__(in_channels, out_channels, (above + 1, width), above, left, of_image=mask == "A")
        self.register_buffer("mask", torch.ones(self.weight.shape), persistent=False)
        self.mask[:, :, above, left + 1 :] = 0
        part_in, part_out = _parts(in_channels, groups), _parts(out_channels // together, groups)
        part_out = part_out.repeat_interleave(together)
        before = part_in < part_out[:, None] if mask == "A" else part_in <= part_out[:, None]
        self.mask[:, :, above, left] = before.to(self.mask)

    def kernel(self) -> Tensor:
        return self.weight * self.mask


def _parts(features: int, groups: int) -> Tensor:
    """To which part each feature belongs, (features,)."""
    return torch.arange(features) * groups // features


class MaskedHead(nn.Module):
    """Two masked 1 x 1 convolutions behind ReLUs: from features (N, in, H, W) to parameters (N, out, H, W)."""

    def __init__(self, in_channels: int, width: int, out_channels: int, groups: int = 1) -> None:
        super().__init__()
        self.hidden = MaskedConv2d(in_channels, width, 1, "B", groups)
        self.out = MaskedConv2d(width, out_channels, 1, "B", groups)
        nn.init.kaiming_uniform_(self.hidden.weight, nonlinearity="relu")
        nn.init.kaiming_uniform_(self.out.weight, nonlinearity="linear")

    def forward(self, h: Tensor, now: Incremental | None = None) -> Tensor:
        result: Tensor = self.out(self.hidden(h.relu(), now).relu(), now)
        return result
