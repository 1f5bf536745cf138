"""The deep convolutional GAN.

Radford, Metz and Chintala, "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial
Networks", 2016, with the losses of Goodfellow et al., "Generative Adversarial Nets", 2014, equation 1 and section 3.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustgen.generative.adversarial.heuristics import HeuristicGAN

__all__ = ["DCGAN", "discriminator_loss", "generator_loss"]


def discriminator_loss(on_real: Tensor, on_fake: Tensor, real_target: float = 1.0) -> Tensor:
    """-E log D(x) - E log(1 - D(G(z))) of logits, minus the value of the game (equation 1).

    The minimiser is logit = log p - log p_G, where the value is 2 JS(p, p_G) - 2 log 2. With ``real_target`` t below 1
    (one-sided label smoothing) the first term is the cross-entropy to t and the best D(x) is t p / (p + p_G).

    >>> discriminator_loss(torch.zeros(3), torch.zeros(3))  # 2 log 2
    tensor(1.3863)
    """
    real = F.binary_cross_entropy_with_logits(on_real, torch.full_like(on_real, real_target))
    return real + F.softplus(on_fake).mean()


def generator_loss(on_fake: Tensor, minimax: bool = False) -> Tensor:
    """-E log D(G(z)) of logits, or with ``minimax`` E log(1 - D(G(z))), whose gradient fades where D is sure.

    >>> generator_loss(torch.zeros(3)), generator_loss(torch.zeros(3), minimax=True)
    (tensor(0.6931), tensor(-0.6931))
    """
    return -F.softplus(on_fake).mean() if minimax else F.softplus(-on_fake).mean()


class DCGAN(HeuristicGAN):
    """Sigmoid cross-entropy; ``discriminate`` is the logit.

    Args:
        shape: of an image, (C, H, W).
        latent_dim: length of z.
        width: channels of the largest maps; twice as many at each smaller one.
        bn_in_discriminator: batch norm behind its convolutions but the first.
        generator_objective: "non_saturating" (section 3 of Goodfellow et al.), "minimax" or "feature_matching"; None:
            the first.
        real_target: what the discriminator should say of real images; 0.9 is one-sided label smoothing.
        minibatch_discrimination: kernels of it, 0: without. Such a discriminator cannot score.
        historical_averaging: weight of the squared distance between a player's weights and their mean so far.
        virtual_batch_norm: examples whose moments every batch norm takes, 0: those of the batch.
        input_noise: standard deviation, on the scale [-1, 1], of the noise on what the discriminator is trained on, at
            step 0.
        input_noise_steps: the step at which that noise has fallen to zero.

    Raises:
        ValueError: an argument out of range, or an unknown generator_objective.

    >>> gan = DCGAN((1, 8, 8), latent_dim=4, width=4).eval()
    >>> x = torch.rand(3, 1, 8, 8)
    >>> gan.discriminate(x).shape, gan.sample(2).shape, [gan.player_at(step) for step in range(3)]
    (torch.Size([3]), torch.Size([2, 1, 8, 8]), ['discriminator', 'generator', 'discriminator'])
    """

    generator_objectives = ("non_saturating", "minimax", "feature_matching")

    def _discriminator_loss(self, on_real: Tensor, on_fake: Tensor) -> Tensor:
        return discriminator_loss(on_real, on_fake, self.real_target)

    def _generator_loss(self, on_fake: Tensor) -> Tensor:
        return generator_loss(on_fake, minimax=self.generator_objective == "minimax")

    @staticmethod
    def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Section 4: Adam, learning rate 2e-4, beta_1 0.5."""
        return torch.optim.Adam(parameters, lr=2e-4, betas=(0.5, 0.999))
