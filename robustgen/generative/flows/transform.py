"""Invertible maps, and the density that a chain of them gives.

Rezende and Mohamed, "Variational Inference with Normalizing Flows", ICML 2015, equations 5 to 7: log p(x) is the log
density of the noise and the log determinants, summed. Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real
NVP", ICLR 2017, section 3.6: squeezing, and noise that leaves at several scales. Kingma and Dhariwal, "Glow: Generative
Flow with Invertible 1x1 Convolutions", NeurIPS 2018: actnorm.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import gcd, prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustgen.checks import check_integers
from robustgen.counter_rng import content_ids, integers
from robustgen.generative.blocks.gaussian import gaussian_log_prob
from robustgen.training.distributed import current_world

__all__ = [
    "ActNorm",
    "Chain",
    "Density",
    "Estimated",
    "KeyedChain",
    "MultiScale",
    "Squeeze",
    "Transform",
    "jacobian",
    "squeezed_shapes",
    "start",
]

_STREAM = 37  # of the random signs that estimate log determinants


class Transform(nn.Module, ABC):
    """An invertible map of x (N, ...), in the direction from data to noise; each row alone."""

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y, which may have another shape, and log |det dy/dx| (N,)."""

    @abstractmethod
    def inverse(self, y: Tensor) -> Tensor:
        """The x of ``y``."""

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The x of ``y``, and log |det dy/dx| (N,) there; overridden where the two share work."""
        x = self.inverse(y)
        return x, self(x)[1]


class Chain(Transform):
    """Several transforms, one after another.

    >>> import torch
    >>> chain = Chain()
    >>> y, log_det = chain(torch.ones(2, 3))
    >>> log_det.tolist(), bool((chain.inverse(y) == 1).all())
    ([0.0, 0.0], True)
    """

    def __init__(self, *transforms: Transform) -> None:
        super().__init__()
        self.transforms = nn.ModuleList(transforms)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x))
        for transform in self.transforms:
            x, log_det = transform(x)
            total = total + log_det
        return x, total

    def inverse(self, y: Tensor) -> Tensor:
        for transform in reversed(self.transforms):
            y = transform.inverse(y)
        return y

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        total = y.new_zeros(len(y))
        for transform in reversed(self.transforms):
            y, log_det = transform.inverse_and_log_det(y)
            total = total + log_det
        return y, total


class Squeeze(Transform):
    """Each 2 x 2 square of a map becomes four channels: (N, C, H, W) -> (N, 4 C, H / 2, W / 2)."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.pixel_unshuffle(x, 2), x.new_zeros(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        return F.pixel_shuffle(y, 2)


class ActNorm(Transform):
    """(x + bias) exp(log_scale), channel by channel, of x (N, C, ...) (Kingma and Dhariwal, section 3.1).

    Made, it changes nothing, and it never looks at data by itself: :func:`start` makes what it gives of a first batch
    have mean 0 and standard deviation 1. ``initialized``, in the state dict, says that this was done: it is done once.

    >>> import torch
    >>> norm, x = ActNorm(3), 5 + 2 * torch.randn(100, 3)
    >>> start(norm, x)
    >>> y, log_det = norm(x)
    >>> bool(y.mean().abs() < 1e-4), bool((y.std(0, correction=0) - 1).abs().max() < 1e-4), log_det.shape
    (True, True, torch.Size([100]))
    """

    initialized: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("initialized", torch.tensor(False))

    def _of_channels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1, *[1] * (x.ndim - 2))
        return self.log_scale.view(shape), self.bias.view(shape)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, bias = self._of_channels(x)
        points = prod(x.shape[2:])
        return (x + bias) * log_scale.exp(), (points * self.log_scale.sum()).expand(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        log_scale, bias = self._of_channels(y)
        return y * (-log_scale).exp() - bias

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Take bias and scale from x; in a training of many processes, from what all of them have."""
        world, values = current_world(), x.double().transpose(0, 1).flatten(1)  # (C, N * points)
        n = world.reduce(torch.full_like(values[:, 0], values.shape[1]))
        mean = world.reduce(values.sum(1)) / n
        std = (world.reduce((values - mean[:, None]).square().sum(1)) / n).sqrt()
        self.bias.copy_(-mean)
        self.log_scale.copy_(torch.where(std > 1e-6, -std.log(), 0.0))  # a constant channel has no scale
        self.initialized.fill_(True)


@torch.no_grad()
def start(transform: nn.Module, x: Tensor) -> None:
    """Let each :class:`ActNorm` inside that has not begun do so with x as it gets there."""
    waiting = [layer for layer in transform.modules() if isinstance(layer, ActNorm) and not layer.initialized]
    hooks = [layer.register_forward_pre_hook(lambda layer, given: layer.start(*given)) for layer in waiting]
    try:
        if waiting:
            transform(x)
    finally:
        for hook in hooks:
            hook.remove()


class MultiScale(Transform):
    """Several transforms of images, between which the second half of the channels leaves as noise: -> (N, D).

    Args:
        scales: transforms, one after another.
        shapes: (C, H, W) of what each of them gives; C even, save for the last.

    >>> import torch
    >>> x = torch.rand(2, 1, 4, 4)
    >>> scales = MultiScale([Squeeze(), Squeeze()], squeezed_shapes((1, 4, 4), 2))
    >>> y, _ = scales(x)
    >>> y.shape, bool((scales.inverse(y) == x).all())
    (torch.Size([2, 16]), True)
    """

    def __init__(self, scales: Sequence[Transform], shapes: Sequence[tuple[int, int, int]]) -> None:
        super().__init__()
        self.scales = nn.ModuleList(scales)
        halves = [(channels // 2, height, width) for channels, height, width in shapes[:-1]]
        self.shapes = [*halves, shapes[-1]]  # of the noise that leaves at each scale

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total, noise = x.new_zeros(len(x)), []
        for scale, (channels, _, _) in zip(self.scales, self.shapes, strict=True):
            x, log_det = scale(x)
            total = total + log_det
            noise.append(x[:, -channels:].flatten(1))
            x = x[:, :-channels]
        return torch.cat(noise, 1), total

    def inverse(self, y: Tensor) -> Tensor:
        parts = [part.unflatten(1, shape) for part, shape in zip(self._parts(y), self.shapes, strict=True)]
        x = self.scales[-1].inverse(parts.pop())
        for scale in reversed(self.scales[:-1]):
            x = scale.inverse(torch.cat([x, parts.pop()], 1))
        return x

    def _parts(self, y: Tensor) -> tuple[Tensor, ...]:
        return y.split([prod(shape) for shape in self.shapes], 1)


def squeezed_shapes(shape: tuple[int, int, int], scales: int) -> list[tuple[int, int, int]]:
    """Shapes of what images of ``shape`` become by each of so many squeezes, behind which half of the channels leave.

    Raises:
        TypeError: ``scales`` is no integer.
        ValueError: it is below 1, or the sides cannot be halved so often.

    >>> squeezed_shapes((1, 28, 28), 2)
    [(4, 14, 14), (8, 7, 7)]
    >>> squeezed_shapes((1, 28, 28), 3)
    Traceback (most recent call last):
    ValueError: images of 28 x 28 cannot be halved scales=3 times, 2 at most: pad them, or take fewer scales
    """
    check_integers(scales=scales)
    channels, height, width = shape
    sides = gcd(height, width)
    most = (sides & -sides).bit_length() - 1  # how often 2 divides it
    if scales > most:
        hint = "pad them, or take fewer scales" if most else "pad them"
        raise ValueError(f"images of {height} x {width} cannot be halved scales={scales} times, {most} at most: {hint}")
    return [(2 ** (i + 1) * channels, height >> i, width >> i) for i in range(1, scales + 1)]


class Density(nn.Module):
    """log p(z) of vectors z (N, D) anywhere in R^D: standard normal noise behind ``transform``.

    What latent flows and densities of hidden states are made of; images in [0, 1] have
    :class:`~robustgen.generative.flows.base.Flow`.

    Args:
        transform: a :class:`Transform` of vectors.
        dim: D.

    Raises:
        ValueError: at a call, vectors of another length.

    >>> import torch
    >>> density = Density(Chain(), dim=2)
    >>> round(float(density.log_prob(torch.zeros(1, 2))), 4)  # -log(2 pi)
    -1.8379
    """

    def __init__(self, transform: Transform, dim: int) -> None:
        super().__init__()
        self.transform, self.dim = transform, dim

    def to_noise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The noise eps (N, D) of z (N, D), and log |det d eps/dz| (N,)."""
        eps, log_det = self.transform(self._checked(z, "z"))
        return eps, log_det

    def from_noise(self, eps: Tensor) -> Tensor:
        """The z (N, D) of eps (N, D)."""
        return self.transform.inverse(self._checked(eps, "eps"))

    def _checked(self, vectors: Tensor, name: str) -> Tensor:
        if vectors.shape[1:] != (self.dim,):
            raise ValueError(f"{name} of this density is (N, {self.dim}), got {tuple(vectors.shape)}")
        return vectors

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) (N,) in nats."""
        eps, log_det = self.to_noise(z)
        return gaussian_log_prob(eps).sum(1) + log_det


class Estimated(Transform):
    """A transform whose log determinant is estimated with random vectors: in expectation it is right.

    In training the vectors are fresh, from torch's global generator. In eval mode they are a function of the input
    alone, through ``ids``, so that its score depends neither on its batch nor on the call.
    """

    @abstractmethod
    def forward(self, x: Tensor, ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As of any transform; in eval mode ``ids`` (N,) are those of the inputs, by default x at a step of 1/255."""

    def signs(self, x: Tensor, ids: Tensor | None, count: int) -> Tensor:
        """``count`` vectors for each x (N, ...) of 1 and -1 at random, (count, N, ...)."""
        if self.training:
            bits = torch.randint(0, 2, (count, *x.shape), device=x.device)
        else:
            ids = content_ids(x) if ids is None else ids
            bits = integers(0, ids, (count, *x.shape[1:]), 2, (_STREAM,)).transpose(0, 1)
        return 2 * bits.to(x.dtype) - 1


class KeyedChain(Chain):
    """A :class:`Chain` in which random vectors of :class:`Estimated` parts are keyed by what goes into the first one.

    What later parts see differs in its last digits from batch to batch, and keys made of it would differ altogether.

    Args:
        levels: of images in [0, 1], to which they are rounded down for the key: dequantized or not, it is the image's.
            None: vectors, at a step of 1/255.
    """

    def __init__(self, *transforms: Transform, levels: int | None = None) -> None:
        super().__init__(*transforms)
        self.levels = levels

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        ids, total = self._ids(x), x.new_zeros(len(x))
        for i, transform in enumerate(self.transforms):
            if isinstance(transform, Estimated):
                x, log_det = transform(x, (2 * i + 1) * ids)  # other vectors for each part
            else:
                x, log_det = transform(x)
            total = total + log_det
        return x, total

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return Transform.inverse_and_log_det(self, y)  # the key is known at the end alone

    def _ids(self, x: Tensor) -> Tensor:
        if self.levels is None:
            return content_ids(x)
        steps = self.levels - 1
        return content_ids((x.detach() * self.levels).floor().clamp(0, steps) / steps)


def jacobian(y: Tensor, x: Tensor, graph: bool) -> Tensor:
    """dy/dx (N, D, D) of y (N, ...), a function of x (N, ...) row by row; D backward passes.

    Args:
        graph: whether it is to be differentiated itself.
    """
    numbers = y.flatten(1).unbind(1)
    rows = [torch.autograd.grad(v.sum(), x, retain_graph=True, create_graph=graph)[0].flatten(1) for v in numbers]
    return torch.stack(rows, 1)
