"""Residual blocks that keep, halve or double the resolution of a map.

He, Zhang, Ren and Sun, "Identity Mappings in Deep Residual Networks", ECCV 2016 (activations before convolutions);
Shi, Caballero, Huszar et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel
Convolutional Neural Network", CVPR 2016 (doubling).
"""

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ResidualBlock"]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions behind ELUs, and a way around them: (N, in, H, W) -> (N, out, H', W').

    Args:
        in_channels, out_channels: of the maps.
        resample: "down": half the size, rounded up, by the second convolution; "up": twice the size, by the first one;
            None: the same size.

    >>> import torch
    >>> ResidualBlock(3, 4, "down")(torch.zeros(1, 3, 7, 5)).shape
    torch.Size([1, 4, 4, 3])
    >>> ResidualBlock(3, 4, "up")(torch.zeros(1, 3, 7, 5)).shape
    torch.Size([1, 4, 14, 10])
    """

    def __init__(self, in_channels: int, out_channels: int, resample: str | None = None) -> None:
        super().__init__()
        stride, spread = 2 if resample == "down" else 1, 4 if resample == "up" else 1
        self.shuffle = nn.PixelShuffle(2) if resample == "up" else nn.Identity()
        self.first = nn.Conv2d(in_channels, spread * out_channels, 3, padding=1)
        self.second = nn.Conv2d(out_channels, out_channels, 3, stride, padding=1)
        same = resample is None and in_channels == out_channels
        self.around = nn.Identity() if same else nn.Conv2d(in_channels, spread * out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.elu(self.shuffle(self.first(F.elu(x)))))
        result: Tensor = y + self.shuffle(self.around(x))
        return result
