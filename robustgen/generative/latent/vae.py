"""The variational autoencoder.

Kingma and Welling, "Auto-Encoding Variational Bayes", ICLR 2014: the bound of equation 10, with q(z | x) a diagonal
Gaussian, p(z) = N(0, I), and the KL between them in closed form (appendix B).
"""

from torch import Tensor, nn

from robustgen.checks import check_positive, nearest
from robustgen.generative.blocks.discretized_logistic import DiscretizedLogisticMixture
from robustgen.generative.blocks.pixel_likelihood import Bernoulli, Gaussian, PixelLikelihood
from robustgen.generative.latent.base import LatentVariableModel, Posterior, gaussian_posterior
from robustgen.generative.latent.coders import check_architecture, coders
from robustgen.generative.pixels import Pixels

__all__ = ["VAE", "GaussianVAE"]

_LIKELIHOODS = ("bernoulli", "gaussian", "discretized_logistic")


class VAE(LatentVariableModel):
    """z ~ N(0, I), pixels independent given z.

    Args:
        shape: (C, H, W).
        latent_dim: D.
        architecture: "conv" (eight convolutions each way), "mlp" (two hidden layers each way) or "infogan" (two
            convolutions and two linear layers each way, with batch norm).
        width: channels of the convolutions at image resolution (default 32), units of a hidden layer (500), or
            channels behind the first convolution (64).
        likelihood: "bernoulli": log_prob is of binary images. "gaussian": it is the log density, over R^D and per unit
            of the [0, 1] scale, of N(decoder(z), scale^2). "discretized_logistic": it is of images of ``levels``, each
            pixel a mixture of ``components``.
        quantization: how a discrete likelihood gets its levels, see :class:`Pixels`.
        levels, components: of "discretized_logistic"; None: 256 and 5.
        scale: of "gaussian"; None: learned.
        free_bits, kl_warmup, importance_samples: see :class:`LatentVariableModel`.

    Raises:
        ValueError: an unknown architecture or likelihood, an argument out of range, or one that belongs to another
            likelihood.

    >>> import torch
    >>> x = torch.bernoulli(torch.full((4, 1, 8, 8), 0.5))
    >>> vae = VAE((1, 8, 8), latent_dim=2, architecture="mlp", width=16).eval()
    >>> reconstruction, kl = vae.elbo_terms(x)
    >>> bool((vae.log_prob(x) == reconstruction - kl).all()), vae.sample(3).unique().tolist()
    (True, [0.0, 1.0])
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        latent_dim: int = 16,
        architecture: str = "conv",
        width: int | None = None,
        likelihood: str = "bernoulli",
        quantization: str | None = None,
        levels: int | None = None,
        components: int | None = None,
        scale: float | None = None,
        free_bits: float = 0.0,
        kl_warmup: int = 0,
        importance_samples: int = 1,
    ) -> None:
        width = check_architecture(architecture, width)
        if likelihood not in _LIKELIHOODS:
            raise ValueError(f"unknown likelihood {likelihood!r}; {nearest(likelihood, _LIKELIHOODS)}")
        owners = {"levels": "discretized_logistic", "components": "discretized_logistic", "scale": "gaussian"}
        for name, value in {"levels": levels, "components": components, "scale": scale}.items():
            if value is not None and likelihood != owners[name]:
                raise ValueError(f"{name} is of likelihood={owners[name]!r}, not of {likelihood!r}")
        if likelihood == "gaussian" and quantization is not None:
            raise ValueError("a gaussian likelihood takes any values in [0, 1]: leave quantization out")
        levels = 256 if levels is None and likelihood == "discretized_logistic" else levels
        pixels = None if likelihood == "gaussian" else Pixels(2 if levels is None else levels, quantization)
        super().__init__(shape, latent_dim, pixels, free_bits, kl_warmup, importance_samples)
        self.architecture, self.likelihood = architecture, likelihood
        self.quantization, self.levels, self.components, self.scale = quantization, levels, components, scale
        self.width = width
        self.distribution = self._distribution()
        per_pixel = self.distribution.parameters_per_pixel
        self.encoder, self.features, self.decoder = coders(architecture, self.shape, latent_dim, width, per_pixel)
        self.to_posterior = nn.Linear(self.features, 2 * latent_dim)

    def _distribution(self) -> PixelLikelihood:
        """Of the pixels given z."""
        channels = self.shape[0]
        if self.likelihood == "bernoulli":
            return Bernoulli(channels)
        if self.likelihood == "gaussian":
            return Gaussian(channels, self.scale)
        assert self.levels is not None
        return DiscretizedLogisticMixture(channels, self.levels, 5 if self.components is None else self.components)

    def _encode(self, v: Tensor) -> Posterior:
        return gaussian_posterior(self.to_posterior(self.encoder(v)).to(v.dtype))

    def _decode_log_prob(self, v: Tensor, z: Tensor) -> Tensor:
        return self.distribution.log_prob(v, self.decoder(z).to(v.dtype))

    def decode(self, z: Tensor) -> Tensor:
        return self.distribution.mean(self.decoder(z))

    def decode_sample(self, z: Tensor, uniforms: Tensor) -> Tensor:
        return self.distribution.sample(self.decoder(z), uniforms)


class GaussianVAE(VAE):
    """A :class:`VAE` of pixels N(decoder(z), 1 / beta), whose priors and posteriors others replace.

    ``log_prob`` is a lower bound whatever beta is: that of the density with the variance 1 / beta. Up to a constant it
    is beta times -1/2 of the squared error, minus the KL. Samples are expected images, without the noise of the pixels.

    Args:
        shape, latent_dim, architecture, width: as in :class:`VAE`.
        beta: the weight of the reconstruction, > 0; None: learned, from 4 on, at most 255^2 (Dai and Wipf, "Diagnosing
            and Enhancing VAE Models", ICLR 2019, section 3.1).
        kl_warmup, importance_samples: see :class:`LatentVariableModel`.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        latent_dim: int,
        architecture: str,
        width: int | None,
        beta: float | None,
        kl_warmup: int = 0,
        importance_samples: int = 1,
    ) -> None:
        if beta is not None:
            check_positive(beta=beta)
        super().__init__(
            shape,
            latent_dim=latent_dim,
            architecture=architecture,
            width=width,
            likelihood="gaussian",
            scale=None if beta is None else beta**-0.5,
            kl_warmup=kl_warmup,
            importance_samples=importance_samples,
        )
        self.beta = beta

    def decode_sample(self, z: Tensor, uniforms: Tensor) -> Tensor:
        return self.decode(z)
