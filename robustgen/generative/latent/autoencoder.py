"""What all deterministic autoencoders with a density of their codes share.

Hinton and Salakhutdinov, "Reducing the Dimensionality of Data with Neural Networks", 2006, for the autoencoder; Xiao,
"Designing Deep Generative Models with Symbiotic Composition", 2022, section 3.2, for the family.
"""

from abc import abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from robustgen.checks import check_integers
from robustgen.generative.base import GenerativeModel
from robustgen.generative.latent.coders import check_architecture, coders

__all__ = ["AutoEncoder", "adam_with_decay"]


def adam_with_decay(parameters: Iterable[nn.Parameter], part: nn.Module, decay: float) -> torch.optim.Optimizer:
    """Adam, lr 1e-3, of all ``parameters``, with a weight decay on those of ``part`` alone."""
    of_part = {id(p) for p in part.parameters()}
    given = list(parameters)
    groups = [
        {"params": [p for p in given if id(p) not in of_part]},
        {"params": [p for p in given if id(p) in of_part], "weight_decay": decay},
    ]
    return torch.optim.Adam(groups, lr=1e-3)


class AutoEncoder(GenerativeModel):
    """A code z = E(x) in R^D, an image G(z) in [0, 1], and p(z), from which samples come.

    p(z) is no density of images: how likely a code is says nothing of what the decoder lost, so that there is no
    ``log_prob``. ``latent_log_prob`` and ``reconstruction_error`` are the two halves;
    :class:`~robustgen.detectors.LatentDensity` scores by both.

    A subclass is one paper: it gives ``training_step``, ``_log_prior`` and, unless p(z) is N(0, I), ``prior_sample``.

    Args:
        shape: of an image.
        latent_dim: D.
        architecture, width: see :func:`~robustgen.generative.latent.coders.coders`.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, shape: tuple[int, ...], latent_dim: int, architecture: str, width: int | None) -> None:
        super().__init__(shape)
        check_integers(latent_dim=latent_dim)
        self.latent_dim, self.architecture = latent_dim, architecture
        self.width = check_architecture(architecture, width)
        self.encoder, features, self.decoder = coders(architecture, self.shape, latent_dim, self.width, self.shape[0])
        self.to_code = nn.Linear(features, latent_dim)

    @abstractmethod
    def _log_prior(self, z: Tensor) -> Tensor:
        """log p(z) (N,) of codes (N, D)."""

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return (self.latent_dim,)

    def prior_sample(self, noise: Tensor) -> Tensor:
        """Codes (N, D) from p(z), of standard normal ``noise`` (N, *noise_shape)."""
        return noise

    def _encode(self, x: Tensor) -> Tensor:
        return self.to_code(self.encoder(x)).to(x.dtype)  # under autocast too

    def encode(self, x: Tensor) -> Tensor:
        """Codes (N, D) of images x (N, *shape) in [0, 1]; raises as ``check`` does."""
        return self._encode(self.check(x))

    def decode(self, z: Tensor) -> Tensor:
        """Images (N, *shape) in [0, 1] of codes z (N, D)."""
        return self.decoder(z).sigmoid().to(z.dtype)

    def latents(self, x: Tensor) -> Tensor:
        """As :meth:`encode`."""
        return self.encode(x)

    def reconstruct(self, x: Tensor) -> Tensor:
        """G(E(x)) (N, *shape) of x; raises as ``check`` does."""
        return self.decode(self.encode(x))

    def reconstruction_error(self, x: Tensor) -> Tensor:
        """The mean over pixels of (x - G(E(x)))^2, (N,); raises as ``check`` does. Use it in eval mode."""
        x = self.check(x)
        return self._squared_error(x, self.decode(self._encode(x))) / self.dimensions

    def latent_log_prob(self, x: Tensor) -> Tensor:
        """log p(E(x)) (N,) in nats of codes, not of images; raises as ``check`` does. Use it in eval mode.

        Encoders may put images unlike any that they saw where codes are dense: look at the reconstruction too.
        """
        return self._log_prior(self.encode(x))

    def _from_noise(self, eps: Tensor) -> Tensor:
        """Differentiable where p(z) is no mixture."""
        return self.decode(self.prior_sample(eps))

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        eps = torch.randn(n, *self.noise_shape, generator=generator, device=self.device, dtype=self.dtype)
        return self._from_noise(eps)

    @staticmethod
    def _squared_error(x: Tensor, decoded: Tensor) -> Tensor:
        """|x - decoded|^2 (N,)."""
        return (x - decoded).square().flatten(1).sum(1)
