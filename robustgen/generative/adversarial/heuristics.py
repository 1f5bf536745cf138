"""The usual remedies for the instability of GANs, as switches.

Salimans et al., "Improved Techniques for Training GANs", 2016, section 3: feature matching, minibatch discrimination,
historical averaging, one-sided label smoothing, virtual batch normalisation. Arjovsky and Bottou, "Towards Principled
Methods for Training Generative Adversarial Networks", 2017, section 3: noise on the discriminator's inputs, annealed.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from robustgen.checks import check_flags, check_integers, check_numbers
from robustgen.generative.adversarial.base import AdversarialModel
from robustgen.generative.adversarial.improved_techniques import HistoricalAverage, VirtualBatchNorm, WithReference
from robustgen.generative.adversarial.strided import Discriminator, Generator

__all__ = ["HeuristicGAN"]


class HeuristicGAN(AdversarialModel):
    """Strided convolutions, batch norm in the generator, and the switches below; turns alternate.

    Batch norm in the discriminator lets it see how a batch is composed. In eval mode it takes running averages of
    every batch that it saw, real and generated, of which it is unclear what population they stand for; so it is off.

    Args:
        shape: (C, H, W).
        latent_dim: length of z.
        width: channels of the largest maps; twice as many at each smaller one.
        bn_in_discriminator: batch norm behind its convolutions but the first.
        generator_objective: one of ``generator_objectives``, by default the first. "feature_matching": the squared
            distance between the discriminator's mean features of real and generated images.
        real_target: what the discriminator should say of real images; 0.9 is one-sided label smoothing.
        minibatch_discrimination: kernels of it, 0: without. Such a discriminator cannot score.
        historical_averaging: weight of the squared distance between a player's weights and their mean so far.
        virtual_batch_norm: R > 0: every batch norm takes the moments of R fixed examples instead. They are latents
            for the generator and, for the discriminator, images of the first training step (repeated where there are
            fewer); both are saved with the model.
        input_noise: standard deviation, on the scale [-1, 1], of the noise on what the discriminator is trained on, at
            step 0; it falls linearly to zero at step ``input_noise_steps``.

    Raises:
        ValueError: an argument out of range, or an unknown generator_objective.
    """

    generator_objectives: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        latent_dim: int = 128,
        width: int = 64,
        bn_in_discriminator: bool = False,
        generator_objective: str | None = None,
        real_target: float = 1.0,
        minibatch_discrimination: int = 0,
        historical_averaging: float = 0.0,
        virtual_batch_norm: int = 0,
        input_noise: float = 0.0,
        input_noise_steps: int = 10_000,
    ) -> None:
        super().__init__(shape, latent_dim, width)
        check_flags(bn_in_discriminator=bn_in_discriminator)
        check_integers(0, minibatch_discrimination=minibatch_discrimination, virtual_batch_norm=virtual_batch_norm)
        check_integers(input_noise_steps=input_noise_steps)
        check_numbers(real_target=real_target, historical_averaging=historical_averaging, input_noise=input_noise)
        objective = self.generator_objectives[0] if generator_objective is None else generator_objective
        if objective not in self.generator_objectives:
            known = ", ".join(map(repr, self.generator_objectives))
            raise ValueError(f"generator_objective must be one of {known}, got {objective!r}")
        if not 0.5 < real_target <= 1:
            raise ValueError(f"real_target must be in (0.5, 1], got {real_target}")
        for name, value in {"historical_averaging": historical_averaging, "input_noise": input_noise}.items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be a finite number >= 0, got {value}")
        self.bn_in_discriminator, self.generator_objective, self.real_target = (
            bn_in_discriminator,
            objective,
            real_target,
        )
        self.minibatch_discrimination, self.historical_averaging = minibatch_discrimination, historical_averaging
        self.virtual_batch_norm = r = virtual_batch_norm
        self.input_noise, self.input_noise_steps = input_noise, input_noise_steps

        def norm(channels: int) -> nn.Module:
            return VirtualBatchNorm(channels, r) if r else nn.BatchNorm2d(channels)

        self.generator = Generator(self.shape, latent_dim, width, norm)
        self.discriminator: Discriminator = Discriminator(
            self.shape, width, norm if bn_in_discriminator else None, minibatch_discrimination
        )
        if r:
            self.generator = WithReference(self.generator, torch.randn(r, latent_dim))
            if bn_in_discriminator:
                self.discriminator.body = WithReference(self.discriminator.body, torch.zeros(r, *self.shape))
        self.histories = nn.ModuleDict()
        if historical_averaging:
            self.histories.update({n: HistoricalAverage(_size(player)) for n, player in self.players.items()})

    def _discriminator_step(self, real: Tensor, fake: Tensor, step: int) -> dict[str, Tensor]:
        body = self.discriminator.body
        if step == 0 and isinstance(body, WithReference):
            body.reference.copy_(real[torch.arange(len(body.reference), device=real.device) % len(real)])
        losses = self._judged(self._noisy(real, step), self._noisy(fake, step))
        return losses | {"loss": losses["loss"] + self._history("discriminator")}

    def _generator_step(self, real: Tensor, fake: Tensor, step: int) -> dict[str, Tensor]:
        real, fake = self._noisy(real, step), self._noisy(fake, step)
        if self.generator_objective == "feature_matching":
            on_real, on_fake = (self.discriminator.features(x).to(x.dtype) for x in (real, fake))  # under autocast too
            loss = (on_real.mean(0) - on_fake.mean(0)).square().sum()
        else:
            loss = self._generator_loss(self.discriminator(fake))
        return {"loss": loss + self._history("generator")}

    def _noisy(self, x: Tensor, step: int) -> Tensor:
        scale = self.input_noise * (1 - step / self.input_noise_steps)
        return x + scale * torch.randn_like(x) if scale > 0 else x

    def _history(self, player: str) -> Tensor | float:
        if not self.historical_averaging:
            return 0.0
        return self.historical_averaging * self.histories[player](self.players[player])


def _size(player: nn.Module) -> int:
    return sum(p.numel() for p in player.parameters())
