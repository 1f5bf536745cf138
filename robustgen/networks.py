"""Small classifiers for the demo, the command and the experiments. Inputs are pixels in [0, 1]."""

import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from robustgen.checks import check_integers, plain_arguments
from robustgen.strided_conv import StridedConv2d

__all__ = ["activation_module", "build", "convnet", "encoder", "mlp", "resnet", "strided"]

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


def _sides(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width; TypeError, ValueError where they are no numbers of pixels."""
    sides = image_size if isinstance(image_size, tuple | list) else (image_size, image_size)
    if len(sides) != 2:
        raise ValueError(f"image_size must be a number of pixels or (height, width), got {image_size!r}")
    check_integers(image_size=sides[0])
    check_integers(image_size=sides[1])
    return sides[0], sides[1]


@plain_arguments
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

    Raises:
        ValueError: a number of channels, classes or pixels below 1, or an unknown activation.

    >>> import torch
    >>> convnet(1, 10, image_size=28)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    check_integers(in_channels=in_channels, n_classes=n_classes, width=width)
    size = _sides(image_size)
    large = [(8, 2, 3), (6, 2, 0), (5, 1, 0)]  # kernel, stride, padding
    shapes = large if min(size) >= 24 else [(3, 1, 1), (3, 2, 1), (3, 1, 1)]
    channels = [in_channels, width, 2 * width, 2 * width]
    layers: list[nn.Module] = []
    for i, (kernel, stride, padding) in enumerate(shapes):
        # The input gradient of StridedConv2d pays from few channels (results/benchmarks/strided_conv.json).
        conv = StridedConv2d if stride > 1 and channels[i] <= 4 and kernel % stride == 0 else nn.Conv2d
        layers += [conv(channels[i], channels[i + 1], kernel, stride, padding), activation_module(activation)]
        height, breadth = ((s + 2 * padding - kernel) // stride + 1 for s in size)
        size = (height, breadth)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2 * width * size[0] * size[1], n_classes))


@plain_arguments
def strided(
    in_channels: int = 1,
    n_classes: int = 10,
    image_size: int | tuple[int, int] = 28,
    width: int = 16,
    units: int | None = None,
    activation: str = "relu",
) -> nn.Sequential:
    """Two 4x4 convolutions of stride 2 and a hidden layer, (N, C, H, W) -> logits (N, n_classes).

    Small and quick to train against attacks: the MNIST network of Wong and Kolter, "Provable Defenses against
    Adversarial Examples via the Convex Outer Adversarial Polytope", 2018, at the default width.

    Args:
        in_channels, n_classes: of the data.
        image_size: height and width in pixels (square or not), at least 4 each.
        width: channels of the first layer; the second has twice as many.
        units: of the hidden layer; default 100 for each 16 of width.
        activation: of every layer, see :func:`activation_module`.

    Raises:
        ValueError: an image smaller than 4x4, a number below 1, or an unknown activation.

    >>> import torch
    >>> strided(1, 10, image_size=28)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    units = max(1, 100 * width // 16) if units is None else units
    check_integers(in_channels=in_channels, n_classes=n_classes, width=width, units=units)
    height, breadth = _sides(image_size)
    if min(height, breadth) < 4:
        raise ValueError(f"strided takes images of at least 4x4 pixels, got {height}x{breadth}")
    first = StridedConv2d if in_channels <= 4 else nn.Conv2d  # as in convnet
    layers: list[nn.Module] = [first(in_channels, width, 4, 2, 1), activation_module(activation)]
    layers += [nn.Conv2d(width, 2 * width, 4, 2, 1), activation_module(activation), nn.Flatten()]
    layers += [nn.Linear(2 * width * (height // 4) * (breadth // 4), units), activation_module(activation)]
    return nn.Sequential(*layers, nn.Linear(units, n_classes))


@plain_arguments
def encoder(
    in_channels: int = 1, n_outputs: int = 64, image_size: int | tuple[int, int] = 28, width: int = 16
) -> nn.Sequential:
    """Five convolutions with batch normalisation, 256 features and a linear read-out, (N, C, H, W) -> (N, n_outputs).

    A network whose features (the input of the read-out) tell images apart, for contrastive learning, where the read-out
    is the projection, or for classes. Strides 2, 1, 2, 1, 2 with ``width``, 2, 4, 4 and 8 ``width`` channels.

    Args:
        in_channels, n_outputs: of the data; classes, or dimensions of the projection.
        image_size: height and width in pixels (square or not).
        width: channels of the first layer.

    Raises:
        ValueError: a number of channels, outputs or pixels below 1.

    >>> import torch
    >>> encoder(image_size=8)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 64])
    """
    check_integers(in_channels=in_channels, n_outputs=n_outputs, width=width)
    size = _sides(image_size)
    shapes = [(5, 2, width), (3, 1, 2 * width), (3, 2, 4 * width), (3, 1, 4 * width), (3, 2, 8 * width)]
    layers: list[nn.Module] = []
    channels = in_channels
    for kernel, stride, wide in shapes:
        layers += [nn.Conv2d(channels, wide, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
        channels = wide
    height, breadth = (-(-s // 8) for s in size)
    layers += [nn.Flatten(), nn.Linear(channels * height * breadth, 256), nn.BatchNorm1d(256), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(256, n_outputs))


def mlp(n_inputs: int, hidden: Sequence[int], n_classes: int, activation: str = "relu") -> nn.Sequential:
    """Fully connected layers with one activation between them, (N, ...) -> logits (N, n_classes).

    Args:
        n_inputs: numbers in one input.
        hidden: units of each hidden layer.
        n_classes: of the data.
        activation: of every hidden layer, see :func:`activation_module`.

    Raises:
        ValueError: a number below 1, or an unknown activation.

    >>> import torch
    >>> mlp(64, [32], 10)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    for units in (n_inputs, *hidden, n_classes):
        check_integers(units=units)
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in itertools.pairwise([n_inputs, *hidden]):
        layers += [nn.Linear(a, b), activation_module(activation)]
    return nn.Sequential(*layers, nn.Linear([n_inputs, *hidden][-1], n_classes))


@plain_arguments
def resnet(
    in_channels: int = 3,
    n_classes: int = 10,
    widths: Sequence[int] = (16, 32, 64),
    blocks: int = 1,
    activation: str = "relu",
    norm: str = "group",
) -> nn.Sequential:
    """A small residual network with pre-activations for 32x32 images, (N, C, H, W) -> logits (N, n_classes).

    He, Zhang, Ren and Sun, "Identity Mappings in Deep Residual Networks", 2016: a 3x3 convolution, then for each width
    a stage of residual blocks (norm, activation, 3x3 convolution, twice over), each stage after the first at half the
    resolution; norm, activation, mean over positions and a linear read-out. Any image size will do. Layers are named:
    "stage2.0.act1" is the first activation of the first block at the second width, "act" the last one.

    Args:
        in_channels, n_classes: of the data.
        widths: channels of each stage.
        blocks: residual blocks in each stage.
        activation: of every layer, see :func:`activation_module`.
        norm: "group" (Wu and He, "Group Normalization", 2018; up to 8 groups), "batch" (as in the source) or "none".
            Batch normalisation takes its statistics over clean and adversarial inputs together where an objective
            forwards both at once, and attacks meet other statistics than training does; groups see one input each.

    Raises:
        ValueError: no stage, no block, a number below 1, an unknown activation or norm.

    >>> import torch
    >>> resnet(3, 10)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    if not widths or blocks < 1:
        raise ValueError(f"resnet needs at least one width and one block, got widths={tuple(widths)}, blocks={blocks}")
    for width in widths:
        check_integers(in_channels=in_channels, n_classes=n_classes, width=width)
    layers: list[tuple[str, nn.Module]] = [("stem", nn.Conv2d(in_channels, widths[0], 3, padding=1))]
    channels = widths[0]
    for stage, width in enumerate(widths):
        parts = []
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            parts.append(_PreActivationBlock(channels, width, stride, activation, norm))
            channels = width
        layers.append((f"stage{stage + 1}", nn.Sequential(*parts)))
    layers += [("norm", _norm_module(norm, channels)), ("act", activation_module(activation))]
    layers += [("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten()), ("out", nn.Linear(channels, n_classes))]
    network = nn.Sequential(OrderedDict(layers))
    if any(width % 8 for width in widths):  # torch 2.14 dies in a 1x1 convolution of stride 2 and 4 such channels
        return network
    # Channels last in memory: the same values, convolved and normalised up to one and a half times as fast on a CPU.
    return network.to(memory_format=torch.channels_last)


class _PreActivationBlock(nn.Module):
    """h + conv2(act2(norm2(conv1(act1(norm1(h)))))); on other shapes a 1x1 convolution of the first activation is h."""

    def __init__(self, channels: int, width: int, stride: int, activation: str, norm: str) -> None:
        super().__init__()
        self.norm1, self.act1 = _norm_module(norm, channels), activation_module(activation)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1)
        self.norm2, self.act2 = _norm_module(norm, width), activation_module(activation)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        same = stride == 1 and channels == width
        self.shortcut = None if same else nn.Conv2d(channels, width, 1, stride)

    def forward(self, h: Tensor) -> Tensor:
        active = self.act1(self.norm1(h))
        change = self.conv2(self.act2(self.norm2(self.conv1(active))))
        return change + (h if self.shortcut is None else self.shortcut(active))


def _norm_module(name: str, channels: int) -> nn.Module:
    if name == "group":
        # At least two channels each: one alone, at the one position of a small map, would be normalised to zero.
        groups = next(g for g in (8, 4, 2, 1) if g == 1 or channels % (2 * g) == 0)
        return nn.GroupNorm(groups, channels)
    if name == "batch":
        return nn.BatchNorm2d(channels)
    if name == "none":
        return nn.Identity()
    raise ValueError(f"unknown norm {name!r}; known: group, batch, none")


def build(name: str, example: Tensor, n_classes: int, width: int | None = None, activation: str = "relu") -> nn.Module:
    """The built-in network called ``name`` for inputs shaped like ``example`` (N, ...): "convnet", "mlp", "resnet",
    "resnet8" and "resnet18" (with batch normalisation and so many layers; the latter is the source's) or "strided".

    Args:
        name: of the network.
        example: an input (N, ...); only its shape counts.
        n_classes: logits.
        width: channels of the first layer (of the first stage of a resnet, doubled from stage to stage), units of mlp.
        activation: of every layer, see :func:`activation_module`.

    Raises:
        ValueError: an unknown name, a width below 1, or another than mlp for inputs that are no images (N, C, H, W).
    """
    if width is not None:
        check_integers(width=width)  # 0 is no width, and not the default either
    if name == "mlp":
        return mlp(example[0].numel(), [256 if width is None else width] * 2, n_classes, activation)
    if name not in ("convnet", "resnet", "resnet8", "resnet18", "strided"):
        known = "convnet, mlp, resnet, resnet8, resnet18, strided"
        raise ValueError(f"unknown network {name!r}; known: {known} (or module:function for your own)")
    if example.ndim != 4:
        raise ValueError(f"{name} takes images (N, C, H, W), got shape {tuple(example.shape)}")
    _, channels, height, breadth = example.shape
    if name == "resnet":
        first = 16 if width is None else width
        return resnet(channels, n_classes, (first, 2 * first, 4 * first), activation=activation)
    if name == "resnet8":
        first = 32 if width is None else width
        return resnet(channels, n_classes, (first, 2 * first, 4 * first), activation=activation, norm="batch")
    if name == "resnet18":
        first = 64 if width is None else width
        widths = (first, 2 * first, 4 * first, 8 * first)
        return resnet(channels, n_classes, widths, blocks=2, activation=activation, norm="batch")
    if name == "strided":
        return strided(channels, n_classes, (height, breadth), 16 if width is None else width, activation=activation)
    return convnet(channels, n_classes, (height, breadth), 64 if width is None else width, activation)
