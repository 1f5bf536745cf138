"""Small classifiers for the demo, the command and the experiments. Inputs are pixels in [0, 1]."""

import itertools
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from robustgen.strided_conv import StridedConv2d

__all__ = ["activation_module", "build", "convnet", "mlp"]

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "linear": nn.Identity,
}


def activation_module(name: str) -> nn.Module:
    """The activation called ``name``: relu, leaky_relu (slope 0.01), tanh or linear; ValueError for another."""
    if name not in _ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; known: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]()


def convnet(
    in_channels: int = 1,
    n_classes: int = 10,
    image_size: int | tuple[int, int] = 28,
    width: int = 64,
    activation: str = "relu",
) -> nn.Sequential:
    """Three convolutions and a linear read-out, (N, C, H, W) -> logits (N, n_classes).

    For 28x28 and larger images: 8x8 stride 2 (size-preserving padding), 6x6 stride 2, 5x5 stride 1 with ``width``,
    2 ``width`` and 2 ``width`` channels, the MNIST network of the fortified-networks line of work. For smaller images:
    three 3x3 convolutions, the second with stride 2.

    Args:
        in_channels, n_classes: of the data.
        image_size: height and width in pixels (square or not).
        width: channels of the first layer.
        activation: of every layer, see :func:`activation_module`.

    >>> import torch
    >>> convnet(1, 10, image_size=28)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    large = [(8, 2, 3), (6, 2, 0), (5, 1, 0)]  # kernel, stride, padding
    shapes = large if min(size) >= 24 else [(3, 1, 1), (3, 2, 1), (3, 1, 1)]
    channels = [in_channels, width, 2 * width, 2 * width]
    layers: list[nn.Module] = []
    for i, (kernel, stride, padding) in enumerate(shapes):
        # From few channels, StridedConv2d has the faster input gradient; from many, nn.Conv2d.
        conv = StridedConv2d if stride > 1 and channels[i] <= 4 and kernel % stride == 0 else nn.Conv2d
        layers += [conv(channels[i], channels[i + 1], kernel, stride, padding), activation_module(activation)]
        height, breadth = ((s + 2 * padding - kernel) // stride + 1 for s in size)
        size = (height, breadth)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2 * width * size[0] * size[1], n_classes))


def mlp(n_inputs: int, hidden: Sequence[int], n_classes: int, activation: str = "relu") -> nn.Sequential:
    """Fully connected layers with one activation between them, (N, ...) -> logits (N, n_classes).

    >>> import torch
    >>> mlp(64, [32], 10)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in itertools.pairwise([n_inputs, *hidden]):
        layers += [nn.Linear(a, b), activation_module(activation)]
    return nn.Sequential(*layers, nn.Linear([n_inputs, *hidden][-1], n_classes))


def build(name: str, example: Tensor, n_classes: int, width: int | None = None, activation: str = "relu") -> nn.Module:
    """The built-in network called ``name`` ("convnet" or "mlp") for inputs shaped like ``example`` (N, ...).

    Raises:
        ValueError: an unknown name, or a convnet for inputs that are not images (N, C, H, W).
    """
    if name == "mlp":
        return mlp(example[0].numel(), [width or 256] * 2, n_classes, activation)
    if name != "convnet":
        raise ValueError(f"unknown network {name!r}; known: convnet, mlp (or module:function for your own)")
    if example.ndim != 4:
        raise ValueError(f"convnet takes images (N, C, H, W), got shape {tuple(example.shape)}")
    _, channels, height, breadth = example.shape
    return convnet(channels, n_classes, (height, breadth), width or 64, activation)
