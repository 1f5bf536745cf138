"""The Wasserstein GAN with gradient penalty.

Gulrajani, Ahmed, Arjovsky, Dumoulin and Courville, "Improved Training of Wasserstein GANs", 2017, equation 3 and
algorithm 1.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from robustgen.checks import check_numbers, check_positive
from robustgen.generative.adversarial.base import AdversarialModel
from robustgen.generative.adversarial.strided import Discriminator, Generator

__all__ = ["WGANGP", "critic_loss", "generator_loss", "gradient_penalty"]


def critic_loss(on_real: Tensor, on_fake: Tensor) -> Tensor:
    """E D(G(z)) - E D(x); for the best 1-Lipschitz D, minus the Wasserstein-1 distance.

    >>> critic_loss(torch.ones(3), torch.zeros(3))
    tensor(-1.)
    """
    return on_fake.mean() - on_real.mean()


def generator_loss(on_fake: Tensor) -> Tensor:
    """-E D(G(z))."""
    return -on_fake.mean()


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, epsilon: Tensor | None = None
) -> Tensor:
    """E (|grad D(x^)|_2 - 1)^2 at x^ = epsilon x + (1 - epsilon) x~, to be differentiated by the critic's weights.

    Two-sided. An optimal critic has a gradient of norm 1 almost everywhere on the lines between coupled real and
    generated points (proposition 1).

    Args:
        critic: (N, ...) -> (N,), each value from its own example alone (no batch norm).
        real, fake: x and x~ (N, ...).
        epsilon: (N,), one number in [0, 1] for each pair; None: drawn from torch's global generator.

    >>> gradient_penalty(lambda x: 3 * x.sum(1), torch.zeros(2, 1), torch.ones(2, 1)).item()  # (3 - 1)^2
    4.0
    """
    if epsilon is None:
        epsilon = torch.rand(len(real), device=real.device, dtype=real.dtype)
    epsilon = epsilon.reshape(-1, *(1,) * (real.ndim - 1))
    x = (epsilon * real + (1 - epsilon) * fake).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return (torch.linalg.vector_norm(gradient.flatten(1), dim=1) - 1).square().mean()


class WGANGP(AdversarialModel):
    """A critic that is 1-Lipschitz where it matters; its values, ``discriminate``, are unbounded and score too.

    Batch norm in the generator, layer norm in the critic: the penalty is of each input's own gradient. ``gap``
    estimates the Wasserstein-1 distance between data and samples, on the scale [-1, 1] of pixels.

    Args:
        shape: (C, H, W).
        latent_dim: length of z.
        width: channels of the largest maps; twice as many at each smaller one.
        n_critic: updates of the critic before each one of the generator.
        penalty_weight: lambda.

    Raises:
        ValueError: an argument out of range.

    >>> gan = WGANGP((1, 8, 8), latent_dim=4, width=4, n_critic=2).eval()
    >>> gan.discriminate(gan.sample(3)).shape, [gan.player_at(step)[0] for step in range(6)]
    (torch.Size([3]), ['d', 'd', 'g', 'd', 'd', 'g'])
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        latent_dim: int = 128,
        width: int = 64,
        n_critic: int = 5,
        penalty_weight: float = 10.0,
    ) -> None:
        super().__init__(shape, latent_dim, width, n_critic)
        check_numbers(penalty_weight=penalty_weight)
        check_positive(penalty_weight=penalty_weight)
        self.penalty_weight = penalty_weight
        self.generator = Generator(self.shape, latent_dim, width, nn.BatchNorm2d)
        self.discriminator = Discriminator(self.shape, width, norm=lambda channels: nn.GroupNorm(1, channels))

    def _discriminator_step(self, real: Tensor, fake: Tensor, step: int) -> dict[str, Tensor]:
        judged = self._judged(real, fake)
        penalty = gradient_penalty(self.discriminator, real, fake)
        return judged | {"loss": judged["loss"] + self.penalty_weight * penalty, "penalty": penalty.detach()}

    def _discriminator_loss(self, on_real: Tensor, on_fake: Tensor) -> Tensor:
        return critic_loss(on_real, on_fake)

    def _generator_loss(self, on_fake: Tensor) -> Tensor:
        return generator_loss(on_fake)

    @staticmethod
    def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Algorithm 1: Adam, learning rate 1e-4, beta 0 and 0.9."""
        return torch.optim.Adam(parameters, lr=1e-4, betas=(0.0, 0.9))
