"""A variational autoencoder whose decoder is a short conditional PixelCNN.

Gulrajani, Kumar, Ahmed et al., "PixelVAE: A Latent Variable Model for Natural Images", ICLR 2017, section 3.1:
p(x | z) = product over pixels i of p(x_i | x_1 ... x_(i-1), z), in the bound of Kingma and Welling.
"""

from torch import Tensor, nn

from robustgen.checks import check_integers, nearest
from robustgen.generative.blocks.gated import Condition
from robustgen.generative.blocks.softmax import discrete_likelihood
from robustgen.generative.latent.base import Posterior, gaussian_posterior
from robustgen.generative.latent.coders import ConvDecoder, ConvEncoder
from robustgen.generative.latent.pixel_decoder import ConditionalPixelCNN, PixelCNNDecoder
from robustgen.generative.pixels import Pixels

__all__ = ["PixelVAE"]

_CONDITIONINGS = ("upsample", "bias")


class PixelVAE(PixelCNNDecoder):
    """z ~ N(0, I) for what is global; the autoregressive layers need only see as far as local detail reaches.

    A pixel is Bernoulli (2 levels) or a softmax over its levels, channel after channel.

    Args:
        shape: (C, H, W).
        latent_dim: D.
        conditioning: "upsample": a convolutional decoder makes feature maps of z at image resolution, which enter each
            layer's gates through 1 x 1 convolutions, as if they lay beside its input. "bias": z itself does, through
            a linear map, the same at each pixel.
        layers: autoregressive ones; 0 (of "upsample" alone): the decoder of a :class:`VAE`.
        first_kernel_size, kernel_size: of the first of them and of the others, odd.
        width: features, at least C, of each layer and of encoder and decoder at image resolution.
        levels, quantization: see :class:`Pixels`.
        free_bits, kl_warmup, importance_samples: see :class:`~robustgen.generative.latent.base.LatentVariableModel`.
            The authors trained with a warm-up of 10,000 steps: without one, many autoregressive layers learn to do
            without z.

    Raises:
        ValueError: an unknown conditioning or an argument out of range.

    >>> import torch
    >>> x = torch.bernoulli(torch.full((4, 1, 8, 8), 0.5))
    >>> model = PixelVAE((1, 8, 8), latent_dim=2, layers=1, width=8).eval()
    >>> model.log_prob(x).shape, model.sample(3).unique().tolist()
    (torch.Size([4]), [0.0, 1.0])
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        latent_dim: int = 16,
        conditioning: str = "upsample",
        layers: int = 3,
        first_kernel_size: int = 7,
        kernel_size: int = 5,
        width: int = 32,
        levels: int = 2,
        quantization: str | None = None,
        free_bits: float = 0.0,
        kl_warmup: int = 0,
        importance_samples: int = 1,
    ) -> None:
        if conditioning not in _CONDITIONINGS:
            raise ValueError(f"unknown conditioning {conditioning!r}; {nearest(conditioning, _CONDITIONINGS)}")
        super().__init__(shape, latent_dim, Pixels(levels, quantization), free_bits, kl_warmup, importance_samples)
        check_integers(width=width, kernel_size=kernel_size)
        check_integers(0, layers=layers)
        check_integers(3, first_kernel_size=first_kernel_size)  # of 1 x 1 nothing is left but the masked pixel itself
        self.conditioning, self.layers, self.width = conditioning, layers, width
        self.first_kernel_size, self.kernel_size = first_kernel_size, kernel_size
        self.levels, self.quantization = levels, quantization
        channels, upsample = self.shape[0], conditioning == "upsample"
        self.distribution = discrete_likelihood(channels, levels)
        self.encoder = ConvEncoder(self.shape, width)
        self.to_posterior = nn.Linear(self.encoder.features, 2 * latent_dim)
        self.decoder = ConvDecoder(latent_dim, self.shape, width) if upsample else None
        self.pixel_cnn = ConditionalPixelCNN(
            channels,
            self.distribution.parameters_per_pixel,
            width,
            layers,
            first_kernel_size,
            kernel_size,
            vector=0 if upsample else latent_dim,
            maps=width if upsample else 0,
            groups=channels,
        )

    def _encode(self, v: Tensor) -> Posterior:
        return gaussian_posterior(self.to_posterior(self.encoder(v)).to(v.dtype))

    def _condition(self, z: Tensor) -> Condition:
        return Condition(vector=z) if self.decoder is None else Condition(maps=self.decoder(z))
