"""The denoising autoencoder of a fortified layer: one hidden layer, tied weights.

Lamb, "Generative Models: A Critical Review", 2018, section 2.5, equation 2.5: h_decoded = D(E(h + n)), n ~ N(0, s^2 I).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustgen.checks import warn_user
from robustgen.fortified.identity import identity_weight, is_exact, kept_directions

__all__ = [
    "ACTIVATIONS",
    "INITS",
    "ConvAutoencoder",
    "DenoisingAutoencoder",
    "DenseAutoencoder",
    "PositionAutoencoder",
    "check_activations",
    "warn_of_identities",
]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "leaky_relu": F.leaky_relu,
    "relu": F.relu,
    "tanh": torch.tanh,
    "linear": lambda h: h,
}
INITS = ("identity", "random")


def check_activations(*names: str) -> None:
    """ValueError for an activation that an autoencoder does not have."""
    for name in names:
        if name not in ACTIVATIONS:
            raise ValueError(f"unknown activation {name!r}; known: {', '.join(ACTIVATIONS)}")


def warn_of_identities(autoencoders: "Iterable[DenoisingAutoencoder]") -> None:
    """Warn where one of them has learned nothing yet: what is read off its errors would be rounding noise."""
    if any(autoencoder.is_identity for autoencoder in autoencoders):
        warn_user(
            "the autoencoders are still the identity that they start as, so that reconstruction errors are rounding "
            "noise: train the network, or call its fit_autoencoders"
        )


class DenoisingAutoencoder(nn.Module, ABC):
    """h -> scale * D(E(h / scale + n)), with one weight tensor for encoder and decoder.

    Args:
        features: D or C of the states.
        hidden: units or channels of the hidden layer.
        activation: of the encoder: leaky_relu (slope 0.01), relu, tanh or linear.
        decoder_activation: of the decoder; "linear" by default, since a bounded one cannot reproduce states outside
            its range.
        noise_std: standard deviation of the corruption noise, in units of ``scale``.
        noise_at_test: corrupt in eval mode too, which makes the network stochastic.
        init: "random", or "identity": without noise the states come back as they are, see
            :mod:`robustgen.fortified.identity`. With tanh they come back nearly so; with fewer units than an identity
            needs they are projected, on random directions until :meth:`follow` has seen states.
        nonnegative: the states are never negative, as those after a ReLU: an identity needs half the units.

    ``scale`` is 1 until :meth:`FortifiedNetwork.fit_autoencoders` sets it to the root mean square of the states of a
    pretrained network, so that one noise level suits states of any size. ``moments`` of Adam are left by that fit for
    the next one; they are in no state dict.

    Raises:
        ValueError: a value out of range, or an identity where there is none.
    """

    kernel: ClassVar[tuple[int, ...]] = ()  # of each unit and feature, (height, width)
    scale: Tensor

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        activation: str = "leaky_relu",
        decoder_activation: str = "linear",
        noise_std: float = 0.1,
        noise_at_test: bool = False,
        init: str = "random",
        nonnegative: bool = False,
    ) -> None:
        super().__init__()
        if init not in INITS:
            raise ValueError(f"unknown init {init!r}; known: {', '.join(INITS)}")
        check_activations(activation, decoder_activation)
        if hidden < 1:
            raise ValueError(f"hidden must be at least 1, got {hidden}")
        if not 0 <= noise_std < math.inf:
            raise ValueError(f"noise_std must be a finite number >= 0, got {noise_std}")
        self.features, self.hidden = features, hidden
        self.activation, self.decoder_activation = activation, decoder_activation
        self.noise_std, self.noise_at_test = noise_std, noise_at_test
        self.init, self.nonnegative = init, nonnegative
        self.encoder_bias = nn.Parameter(torch.zeros(hidden))
        self.decoder_bias = nn.Parameter(torch.zeros(features))
        self.weight = nn.Parameter(self._random() if init == "random" else self._identity())
        self.register_buffer("scale", torch.ones(()))
        self.moments: dict[str, dict[str, Tensor]] = {}  # of each parameter, by name

    def _random(self) -> Tensor:
        bound = (math.prod(self.kernel) * (self.features + self.hidden)) ** -0.5
        return torch.empty(self.hidden, self.features, *self.kernel).uniform_(-bound, bound)

    def _identity(self, directions: Tensor | None = None) -> Tensor:
        """The identity or, with fewer units, the projection on ``directions``, at the centre of each kernel."""
        options = (self.activation, self.decoder_activation, self.nonnegative)
        units = identity_weight(self.features, self.hidden, *options, directions)
        weight = torch.zeros(self.hidden, self.features, *self.kernel)
        centre = (slice(None), slice(None), *(k // 2 for k in self.kernel))
        weight[centre] = units
        return weight

    @property
    def is_trained(self) -> bool:
        """Whether it has been trained: biases begin at zero, and a step moves them."""
        return bool(self.encoder_bias.any() or self.decoder_bias.any())

    @property
    def is_identity(self) -> bool:
        """Whether it still is the exact identity that it started as, whose reconstruction errors are rounding noise."""
        if self.noise_at_test and self.noise_std > 0:
            return False
        if self.init != "identity" or self.projects or not is_exact(self.activation, self.decoder_activation):
            return False
        return not self.is_trained and torch.equal(self.weight, self._identity().to(self.weight))

    @property
    def projects(self) -> bool:
        """Whether an identity start has too few units for an identity, and projects the states."""
        options = (self.activation, self.decoder_activation, self.nonnegative)
        return self.init == "identity" and kept_directions(self.features, self.hidden, *options) < self.features

    @torch.no_grad()
    def follow(self, directions: Tensor) -> None:
        """Start over from the projection on orthonormal ``directions`` (k, features), the most important one first."""
        self.weight.copy_(self._identity(directions.cpu()))

    def keep_moments(self, adam: torch.optim.Optimizer) -> None:
        """Remember the state of an optimizer that has trained this autoencoder."""
        self.moments = {name: dict(adam.state[p]) for name, p in self.named_parameters() if p in adam.state}

    def give_moments(self, adam: torch.optim.Optimizer) -> None:
        """Begin with what is remembered: without, Adam's first steps are as large as in a fresh start."""
        for name, p in self.named_parameters():
            if name in self.moments:
                adam.state[p] = {
                    k: v.clone() if k == "step" else v.to(p, copy=True) for k, v in self.moments[name].items()
                }

    def rows(self, h: Tensor) -> Tensor:
        """States as (..., features): what each unit sees at one place."""
        return h

    @abstractmethod
    def encode(self, h: Tensor) -> Tensor:
        """E, before the scale and the noise."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """D, the transpose of the encoder's map."""

    def forward(self, h: Tensor) -> Tensor:
        """Decoded states of h, of its shape; float32 of states in half precision, which training needs."""
        half = h.dtype in (torch.float16, torch.bfloat16) and not torch.is_autocast_enabled(h.device.type)
        u = (h.to(self.weight.dtype) if half else h) / self.scale
        if self.noise_std > 0 and (self.training or self.noise_at_test):
            u = u + self.noise_std * torch.randn_like(u)
        return self.decode(self.encode(u)) * self.scale

    def extra_repr(self) -> str:
        return (
            f"{self.features} -> {self.hidden}, {self.activation}, decoder {self.decoder_activation}, "
            f"noise_std={self.noise_std}{', also at test' if self.noise_at_test else ''}"
        )


class DenseAutoencoder(DenoisingAutoencoder):
    """For states (N, D), tokens (N, T, D) in any order of N and T, (N, H, W, D), and maps of one pixel (N, D, 1, 1).

    z = phi(W (h + n) + b), h_decoded = psi(W^T z + c) on the last dimension.

    Args:
        features: D or C of the states.
        hidden: units or channels of the hidden layer.
        activation, decoder_activation: leaky_relu (slope 0.01), relu, tanh or linear.
        noise_std: standard deviation of the corruption noise, in units of ``scale``.
        noise_at_test: corrupt in eval mode too.
        init: "random", or "identity": without noise the states come back as they are.
        nonnegative: the states are never negative, as those after a ReLU: an identity needs half the units.

    Raises:
        ValueError: a value out of range, or an identity where there is none.

    >>> DenseAutoencoder(6, 12)(torch.zeros(2, 5, 6)).shape
    torch.Size([2, 5, 6])
    """

    def encode(self, h: Tensor) -> Tensor:
        return ACTIVATIONS[self.activation](F.linear(h, self.weight, self.encoder_bias))

    def decode(self, z: Tensor) -> Tensor:
        return ACTIVATIONS[self.decoder_activation](F.linear(z, self.weight.t(), self.decoder_bias))

    def rows(self, h: Tensor) -> Tensor:
        return h.flatten(1) if h.ndim == 4 and h.shape[1:] == (self.features, 1, 1) else h

    def forward(self, h: Tensor) -> Tensor:
        if h.ndim == 4 and h.shape[1:] == (self.features, 1, 1):
            return super().forward(h.flatten(1)).reshape(h.shape)
        return super().forward(h)


class PositionAutoencoder(DenseAutoencoder):
    """For states (N, C, L) of 1-D convolutions: the dense autoencoder of the C features at each of any L positions.

    >>> PositionAutoencoder(3, 8)(torch.zeros(2, 3, 7)).shape
    torch.Size([2, 3, 7])
    """

    def forward(self, h: Tensor) -> Tensor:
        return super().forward(h.transpose(1, 2)).transpose(1, 2)

    def rows(self, h: Tensor) -> Tensor:
        return h.transpose(1, 2)


class ConvAutoencoder(DenoisingAutoencoder):
    """For maps (N, C, H, W): 5x5 kernels, stride 1, size-preserving padding; the decoder is the exact transpose.

    Args:
        features: D or C of the states.
        hidden: units or channels of the hidden layer.
        activation, decoder_activation: leaky_relu (slope 0.01), relu, tanh or linear.
        noise_std: standard deviation of the corruption noise, in units of ``scale``.
        noise_at_test: corrupt in eval mode too.
        init: "random", or "identity": without noise the states come back as they are.
        nonnegative: the states are never negative, as those after a ReLU: an identity needs half the units.

    Raises:
        ValueError: a value out of range, or an identity where there is none.

    >>> ConvAutoencoder(3, 8)(torch.zeros(2, 3, 7, 9)).shape
    torch.Size([2, 3, 7, 9])
    """

    kernel = (5, 5)

    def rows(self, h: Tensor) -> Tensor:
        return h.movedim(1, -1)

    def encode(self, h: Tensor) -> Tensor:
        return ACTIVATIONS[self.activation](F.conv2d(h, self.weight, self.encoder_bias, padding=2))

    def decode(self, z: Tensor) -> Tensor:
        return ACTIVATIONS[self.decoder_activation](F.conv_transpose2d(z, self.weight, self.decoder_bias, padding=2))
