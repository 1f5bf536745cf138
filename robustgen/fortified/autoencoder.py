"""The denoising autoencoder of a fortified layer: one hidden layer, tied weights.

Lamb, "Generative Models: A Critical Review", 2018, section 2.5, equation 2.5: h_decoded = D(E(h + n)), n ~ N(0, s^2 I).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ACTIVATIONS", "ConvAutoencoder", "DenoisingAutoencoder", "DenseAutoencoder", "PositionAutoencoder"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "leaky_relu": F.leaky_relu,
    "relu": F.relu,
    "tanh": torch.tanh,
    "linear": lambda h: h,
}


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

    ``scale`` is 1 until :meth:`FortifiedNetwork.fit_autoencoders` sets it to the root mean square of the states of a
    pretrained network, so that one noise level suits states of any size. ``moments`` of Adam are left by that fit for
    the next one; they are in no state dict.
    """

    scale: Tensor
    weight: nn.Parameter

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        activation: str = "leaky_relu",
        decoder_activation: str = "linear",
        noise_std: float = 0.1,
        noise_at_test: bool = False,
    ) -> None:
        super().__init__()
        for name in (activation, decoder_activation):
            if name not in ACTIVATIONS:
                raise ValueError(f"unknown activation {name!r}; known: {', '.join(ACTIVATIONS)}")
        if hidden < 1:
            raise ValueError(f"hidden must be at least 1, got {hidden}")
        if not 0 <= noise_std < math.inf:
            raise ValueError(f"noise_std must be a finite number >= 0, got {noise_std}")
        self.features, self.hidden = features, hidden
        self.activation, self.decoder_activation = activation, decoder_activation
        self.noise_std, self.noise_at_test = noise_std, noise_at_test
        self.encoder_bias = nn.Parameter(torch.zeros(hidden))
        self.decoder_bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("scale", torch.ones(()))
        self.moments: dict[str, dict[str, Tensor]] = {}  # of each parameter, by name

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

    >>> DenseAutoencoder(6, 12)(torch.zeros(2, 5, 6)).shape
    torch.Size([2, 5, 6])
    """

    def __init__(self, features: int, hidden: int, **options: object) -> None:
        super().__init__(features, hidden, **options)  # type: ignore[arg-type]
        bound = (features + hidden) ** -0.5
        self.weight = nn.Parameter(torch.empty(hidden, features).uniform_(-bound, bound))

    def encode(self, h: Tensor) -> Tensor:
        return ACTIVATIONS[self.activation](F.linear(h, self.weight, self.encoder_bias))

    def decode(self, z: Tensor) -> Tensor:
        return ACTIVATIONS[self.decoder_activation](F.linear(z, self.weight.t(), self.decoder_bias))

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


class ConvAutoencoder(DenoisingAutoencoder):
    """For maps (N, C, H, W): 5x5 kernels, stride 1, size-preserving padding; the decoder is the exact transpose.

    >>> ConvAutoencoder(3, 8)(torch.zeros(2, 3, 7, 9)).shape
    torch.Size([2, 3, 7, 9])
    """

    def __init__(self, features: int, hidden: int, **options: object) -> None:
        super().__init__(features, hidden, **options)  # type: ignore[arg-type]
        bound = (25 * (features + hidden)) ** -0.5
        self.weight = nn.Parameter(torch.empty(hidden, features, 5, 5).uniform_(-bound, bound))

    def encode(self, h: Tensor) -> Tensor:
        return ACTIVATIONS[self.activation](F.conv2d(h, self.weight, self.encoder_bias, padding=2))

    def decode(self, z: Tensor) -> Tensor:
        return ACTIVATIONS[self.decoder_activation](F.conv_transpose2d(z, self.weight, self.decoder_bias, padding=2))
