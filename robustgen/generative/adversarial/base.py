"""What generative adversarial networks share: two players, their turns, samples, and the discriminator as a score.

Goodfellow et al., "Generative Adversarial Nets", 2014.
"""

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from robustgen.checks import check_integers
from robustgen.generative.adversarial.improved_techniques import MinibatchDiscrimination
from robustgen.generative.base import GenerativeModel
from robustgen.training import Batch

__all__ = ["AdversarialModel"]


class AdversarialModel(GenerativeModel):
    """G(z), z ~ N(0, I), against D(x), which is high on real images; images are in [-1, 1] between the two.

    A step is one batch and one update of one of the two. A subclass is one paper: it gives both losses and sets

    Attributes:
        generator: z (N, latent_dim) -> (N, *shape) in [-1, 1].
        discriminator: (N, *shape) in [-1, 1] -> (N,).
        n_critic: updates of D before each one of G.

    Logged of D are its loss and ``gap`` = E D(x) - E D(G(z)), in training and of held-back data against fresh samples
    (there without penalties): a validation gap that falls behind the training one shows D overfitting (Gulrajani et
    al., "Improved Training of Wasserstein GANs", 2017, section 5.5).
    """

    generator: nn.Module
    discriminator: nn.Module

    def __init__(self, shape: tuple[int, ...], latent_dim: int, width: int, n_critic: int = 1) -> None:
        super().__init__(shape)
        check_integers(latent_dim=latent_dim, width=width, n_critic=n_critic)
        self.latent_dim, self.width, self.n_critic = latent_dim, width, n_critic

    @abstractmethod
    def _discriminator_loss(self, on_real: Tensor, on_fake: Tensor) -> Tensor:
        """What D minimises, of its values (N,) on real and generated images."""

    @abstractmethod
    def _generator_loss(self, on_fake: Tensor) -> Tensor:
        """What G minimises, of D's values (N,) on generated images."""

    def _discriminator_step(self, real: Tensor, fake: Tensor, step: int) -> dict[str, Tensor]:
        """The training loss of D and what is logged; images in [-1, 1]."""
        return self._judged(real, fake)

    def _generator_step(self, real: Tensor, fake: Tensor, step: int) -> dict[str, Tensor]:
        """The training loss of G; images in [-1, 1]."""
        return {"loss": self._generator_loss(self.discriminator(fake))}

    def _judged(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        on_real, on_fake = self.discriminator(real), self.discriminator(fake)
        gap = (on_real.mean() - on_fake.mean()).detach()
        return {"loss": self._discriminator_loss(on_real, on_fake), "gap": gap}

    @property
    def players(self) -> Mapping[str, nn.Module]:
        return {"discriminator": self.discriminator, "generator": self.generator}

    def player_at(self, step: int) -> str:
        """``n_critic`` steps of the discriminator, one of the generator, and again."""
        return "generator" if step % (self.n_critic + 1) == self.n_critic else "discriminator"

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        real = 2 * batch.x - 1
        if self.player_at(step) == "generator":
            return self._generator_step(real, self._generate(len(real)), step)
        with torch.no_grad():
            fake = self._generate(len(real))
        return self._discriminator_step(real, fake, step)

    def validation_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The loss of D, without penalties, and ``gap``, of the batch against as many fresh samples."""
        return self._judged(2 * batch.x - 1, self._generate(len(batch.x)))

    def discriminate(self, x: Tensor) -> Tensor:
        """D(x) (N,) of images x (N, *shape) in [0, 1], unbounded, high for what looks like the training data.

        The value before any sigmoid, a function of each image alone, differentiable. Nothing promises that the border
        between real and generated images is one between the data and the rest of the world.

        Raises:
            TypeError: x is not a float32 or float64 tensor.
            ValueError: images of another shape, outside [0, 1] or NaN; or D is a function of the whole batch, so that
                an image has no value of its own: with minibatch discrimination always, with batch norm in train mode.
        """
        x = self.check(x)
        for layer in self.discriminator.modules():
            if isinstance(layer, MinibatchDiscrimination):
                raise ValueError(
                    "with minibatch discrimination an image's value depends on its batch: train without it to score"
                )
            if isinstance(layer, nn.BatchNorm2d) and layer.training:
                raise ValueError(
                    "in train mode batch norm makes an image's value depend on its batch: call eval() first, which "
                    "takes the averages of training"
                )
        return self.discriminator(2 * x - 1) if len(x) else x.flatten(1).sum(1)

    def _generate(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n images in [-1, 1]."""
        weight = next(self.generator.parameters())
        z = torch.randn(n, self.latent_dim, generator=generator, device=weight.device, dtype=weight.dtype)
        return self._generate_from(z)

    def _generate_from(self, z: Tensor) -> Tensor:
        return self.generator(z).to(z.dtype)  # under autocast too

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return (self.latent_dim,)

    def _from_noise(self, eps: Tensor) -> Tensor:
        return (self._generate_from(eps) + 1) / 2

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        return (self._generate(n, generator) + 1) / 2
