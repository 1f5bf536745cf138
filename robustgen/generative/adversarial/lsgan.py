"""The least-squares GAN.

Mao et al., "Least Squares Generative Adversarial Networks", 2017, equation 9: targets 0 for generated and 1 for real
images. The networks are those of DCGAN.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from robustgen.generative.adversarial.heuristics import HeuristicGAN

__all__ = ["LSGAN", "discriminator_loss", "generator_loss"]


def discriminator_loss(on_real: Tensor, on_fake: Tensor, real_target: float = 1.0) -> Tensor:
    """E (D(x) - 1)^2 / 2 + E D(G(z))^2 / 2; the minimiser is D = p / (p + p_G), times ``real_target``.

    >>> discriminator_loss(torch.zeros(3), torch.ones(3))
    tensor(1.)
    """
    return ((on_real - real_target).square().mean() + on_fake.square().mean()) / 2


def generator_loss(on_fake: Tensor) -> Tensor:
    """E (D(G(z)) - 1)^2 / 2.

    >>> generator_loss(torch.zeros(3))
    tensor(0.5000)
    """
    return (on_fake - 1).square().mean() / 2


class LSGAN(HeuristicGAN):
    """Squared errors in place of the cross-entropy: no sigmoid.

    Args:
        shape: of an image, (C, H, W).
        latent_dim: length of z.
        width: channels of the largest maps; twice as many at each smaller one.
        bn_in_discriminator: batch norm behind its convolutions but the first.
        generator_objective: "least_squares" or "feature_matching"; None: the first.
        real_target: what the discriminator should say of real images; 0.9 is one-sided label smoothing.
        minibatch_discrimination: kernels of it, 0: without. Such a discriminator cannot score.
        historical_averaging: weight of the squared distance between a player's weights and their mean so far.
        virtual_batch_norm: examples whose moments every batch norm takes, 0: those of the batch.
        input_noise: standard deviation, on the scale [-1, 1], of the noise on what the discriminator is trained on, at
            step 0.
        input_noise_steps: the step at which that noise has fallen to zero.

    Raises:
        ValueError: an argument out of range, or an unknown generator_objective.

    >>> gan = LSGAN((1, 8, 8), latent_dim=4, width=4).eval()
    >>> gan.discriminate(gan.sample(3)).shape
    torch.Size([3])
    """

    generator_objectives = ("least_squares", "feature_matching")

    def _discriminator_loss(self, on_real: Tensor, on_fake: Tensor) -> Tensor:
        return discriminator_loss(on_real, on_fake, self.real_target)

    def _generator_loss(self, on_fake: Tensor) -> Tensor:
        return generator_loss(on_fake)

    @staticmethod
    def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """RMSProp, learning rate 1e-4, as searched for this architecture by Gulrajani et al., 2017, appendix."""
        return torch.optim.RMSprop(parameters, lr=1e-4)
