"""The regularised autoencoder, whose codes a Gaussian mixture describes.

Ghosh, Sajjadi, Vergari, Black and Schoelkopf, "From Variational to Deterministic Autoencoders", ICLR 2020, equation 11
(squared codes, weight decay of the decoder) and section 4 (the density that is fitted afterwards).
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from robustgen.checks import check_integers, check_numbers
from robustgen.generative.blocks.gaussian import Mixture
from robustgen.generative.latent.autoencoder import AutoEncoder, adam_with_decay
from robustgen.training import Batch, Source

__all__ = ["RAE"]

_CODES = 10_000  # that a mixture is fitted to


class RAE(AutoEncoder):
    """z = E(x) with a cost on |z|^2, then a mixture of Gaussians of the codes.

    The mixture is fitted to the codes of at most 10,000 training images at the end of every epoch, so that samples
    follow the training, and the last one stays; before the first p(z) is N(0, I). ``log_prob_kind`` is None: the model
    has no density of images. ``latent_log_prob`` is exact, of codes.

    Args:
        shape: (C, H, W).
        latent_dim, architecture, width: as in :class:`VAE`.
        gamma: weight of |z|^2 beside the squared error of an image (0.5 in Xiao, 2022).
        components: of the mixture.
        decoder_decay: weight decay of the decoder (the paper's RAE-L2); 0 in Xiao, 2022.

    Raises:
        ValueError: an argument out of range; in training, more components than training images.

    >>> rae, x = RAE((1, 8, 8), latent_dim=2, architecture="mlp", width=16, components=3).eval(), torch.rand(4, 1, 8, 8)
    >>> rae.latent_log_prob(x).shape, rae.sample(5).shape
    (torch.Size([4]), torch.Size([5, 1, 8, 8]))
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        latent_dim: int = 20,
        architecture: str = "infogan",
        width: int | None = None,
        gamma: float = 0.5,
        components: int = 10,
        decoder_decay: float = 0.0,
    ) -> None:
        super().__init__(shape, latent_dim, architecture, width)
        check_integers(components=components)
        check_numbers(gamma=gamma, decoder_decay=decoder_decay)
        for name, value in {"gamma": gamma, "decoder_decay": decoder_decay}.items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be a finite number >= 0, got {value}")
        self.gamma, self.components, self.decoder_decay = gamma, components, decoder_decay
        self.mixture = Mixture(components, latent_dim)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return (self.latent_dim + 1,)

    def prior_sample(self, noise: Tensor) -> Tensor:
        return self.mixture.of_noise(noise)

    def _log_prior(self, z: Tensor) -> Tensor:
        return self.mixture.log_prob(z)

    def check_training(self, n: int, batch_size: int) -> None:
        super().check_training(n, batch_size)
        self.mixture.check_points(min(n, _CODES))

    def fit_without_gradients(self, data: Source) -> None:
        """Fit the mixture to the codes of training ``data``.

        Raises:
            ValueError: more components than codes.
        """
        x = self.check(data.sample(_CODES)[0])
        self.mixture.fit(torch.cat([self._encode(part.to(self.device)) for part in x.split(512)]))

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The squared error of an image and gamma |z|^2."""
        z = self._encode(batch.x)
        reconstruction = self._squared_error(batch.x, self.decode(z)).mean()
        size = z.square().sum(1).mean()
        logged = {"reconstruction": reconstruction.detach(), "size": size.detach()}
        return {"loss": reconstruction + self.gamma * size} | logged

    def validation_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """As in training; and -log p(z), by the mixture of the training codes."""
        nll = -self._log_prior(self._encode(batch.x)).mean()
        return self.training_step(batch, step) | {"latent_nll": nll}

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:  # type: ignore[override]
        """Adam, lr 1e-3, with ``decoder_decay`` on the decoder alone."""
        return adam_with_decay(parameters, self.decoder, self.decoder_decay)
