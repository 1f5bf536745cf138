"""The denoising diffusion GAN: a diffusion of few, large steps, of which a conditional GAN learns the way back.

Xiao, Kreis and Vahdat, "Tackling the Generative Learning Trilemma with Denoising Diffusion GANs", ICLR 2022; Xiao,
"Designing Deep Generative Models with Symbiotic Composition", 2022, chapter 6 (equations 6.2 to 6.16, algorithms 1 and
2, Table 6.2); Mescheder, Geiger and Nowozin, "Which Training Methods for GANs do actually Converge?", ICML 2018 (R1).
"""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from robustgen.checks import check_flags, check_integers, check_numbers, check_positive
from robustgen.counter_rng import content_ids, normal
from robustgen.generative.adversarial.dcgan import discriminator_loss, generator_loss
from robustgen.generative.diffusion.base import Diffusion
from robustgen.generative.diffusion.ddgan_networks import (
    DenseDiscriminator,
    DenseGenerator,
    Discriminator,
    Generator,
)
from robustgen.generative.diffusion.noise_schedule import NoiseSchedule
from robustgen.generative.diffusion.unet import check_network
from robustgen.training import Batch

__all__ = ["DDGAN", "r1_penalty"]

ARCHITECTURES = ("unet", "mlp")
PREDICTIONS = ("data", "previous", "noise")


def r1_penalty(on_real: Tensor, real: Tensor) -> Tensor:
    """E |grad D(x)|^2 of values (N,) of real x (N, ...) that require a gradient; to be differentiated itself.

    >>> x = torch.ones(5, 2, requires_grad=True)
    >>> r1_penalty(3 * x.sum(1), x).item()
    18.0
    """
    (gradient,) = torch.autograd.grad(on_real.sum(), real, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()


class DDGAN(Diffusion):
    """Large steps back are no Gaussians, so u_{t-1} ~ q(u_{t-1} | u_t, u_0 = G(u_t, z, t)), z ~ N(0, I) (eq. 6.12).

    D(u_{t-1}, u_t, t) says whether u_{t-1} may have become u_t (equations 6.3 to 6.5, of logits); it pays r1 / 2 times
    E |grad D|^2, by the real u_{t-1} (6.16). A step of training is one batch and one update: of D, then of G.
    Train it with an EMA (``ema=0.999``), without which samples are poor. The other arguments than those of its
    networks are the rows of Table 6.2.

    Logged are the losses and ``gap`` = E D(u_{t-1}) of data less that of what G makes.

    Args:
        shape: (channels, height, width).
        steps: T, 8 at most in the source; with 1 step it is a GAN, for u_1 is next to pure noise.
        schedule: of the noise, see :class:`NoiseSchedule`; "vp" adds up to the same noise in any number of steps.
        latent_dim: length of z; 0: without, so that G is a function of u_t alone.
        architecture: "unet", or "mlp" for vectors of a few numbers.
        width: channels of the generator at full resolution; units of an mlp.
        levels: resolutions; hidden layers of an mlp.
        patch: of the generator, whose images are patches of so many pixels squared as channels: quicker by as much.
        prediction: what G gives, "data" (u_0, by tanh), "previous" (u_{t-1} itself) or "noise" (that of u_t).
        scale: u_0 = scale (2 x - 1); more than 1 for a few numbers, of which noise hides more than of an image.
        one_shot: G makes u_0 of noise in one step, and D sees its images and real ones behind the noise of a random
            time below T, as an augmentation.
        r1: gamma; 0: without. The source's, 0.05 for CIFAR-10, flattens so small a discriminator.
        r1_every: updates of D of which one pays, and pays for all.

    Raises:
        TypeError, ValueError: a value of the wrong type or out of range.

    >>> model = DDGAN((1, 8, 8), width=4, levels=2).eval()
    >>> model.sample(2).shape, [model.player_at(step)[0] for step in range(3)], model.times(2)
    (torch.Size([2, 1, 8, 8]), ['d', 'g', 'd'], [2, 1, 0])
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        steps: int = 4,
        schedule: str = "vp",
        latent_dim: int = 32,
        architecture: str = "unet",
        width: int = 16,
        levels: int = 3,
        patch: int = 2,
        prediction: str = "data",
        scale: float = 1.0,
        one_shot: bool = False,
        r1: float = 5e-4,
        r1_every: int = 8,
    ) -> None:
        super().__init__(shape)
        check_network(self.shape, width, levels, patch if architecture == "unet" else 1)
        check_integers(steps=steps, r1_every=r1_every)
        check_integers(0, latent_dim=latent_dim)
        check_flags(one_shot=one_shot)
        check_numbers(r1=r1)
        check_positive(scale=scale)
        if not 0 <= r1 < float("inf"):
            raise ValueError(f"r1 must be a finite number, at least 0, got {r1}")
        if architecture not in ARCHITECTURES:
            raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}, got {architecture!r}")
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, got {prediction!r}")
        self.steps, self.schedule, self.latent_dim = steps, NoiseSchedule(schedule, steps), latent_dim
        self.architecture, self.width, self.levels, self.patch = architecture, width, levels, patch
        self.prediction, self.scale, self.one_shot, self.r1, self.r1_every = prediction, scale, one_shot, r1, r1_every
        self.sample_steps = 1 if one_shot else steps
        sizes: dict[str, Any] = {"steps": steps, "width": width, "levels": levels}
        if architecture == "mlp":
            self.generator: nn.Module = DenseGenerator(self.shape, latent_dim=latent_dim, **sizes)
            self.discriminator: nn.Module = DenseDiscriminator(self.shape, **sizes)
        else:
            self.generator = Generator(self.shape[0], latent_dim=latent_dim, patch=patch, **sizes)
            self.discriminator = Discriminator(self.shape, steps=steps, width=2 * width)

    @property
    def config(self) -> dict[str, Any]:
        return super().config | {"schedule": self.schedule.name}

    @property
    def players(self) -> Mapping[str, nn.Module]:
        return {"discriminator": self.discriminator, "generator": self.generator}

    def player_at(self, step: int) -> str:
        return "generator" if step % 2 else "discriminator"

    @property
    def lr_factors(self) -> Mapping[str, float]:
        """A generator as quick as so small a discriminator outruns it: the loss stays at 2 log 2."""
        return {"generator": 0.2}

    def times(self, depth: int, steps: int | None = None) -> list[int]:
        if self.one_shot and depth != self.steps:
            raise ValueError(f"a one-shot generator begins at {self.steps}, got depth={depth}")
        times = super().times(depth, 1 if self.one_shot and steps is None else steps)
        if self.one_shot and len(times) > 2:
            raise ValueError(f"a one-shot generator takes one step, got steps={steps}")
        if self.prediction == "previous" and not self.one_shot and len(times) <= depth:
            raise ValueError(f"a generator of u_{{t-1}} leaves no step out, got steps={steps} from depth={depth}")
        return times

    def _back(self, u_t: Tensor, t: Tensor, s: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """u_s (N, ...) of u_t at times (N,)."""
        options: dict[str, Any] = {"generator": generator, "device": u_t.device, "dtype": u_t.dtype}
        found = self.generator(u_t, t, torch.randn(len(u_t), self.latent_dim, **options)).to(u_t.dtype)
        if self.prediction == "previous":
            return found
        u_0 = self.schedule.start(u_t, found, t) if self.prediction == "noise" else self.scale * found.tanh()
        mean, variance = self.schedule.posterior(u_t, u_0, t, s)
        return mean + variance.sqrt() * torch.randn(u_t.shape, **options)

    def _reverse(self, u: Tensor, t: int, s: int, generator: torch.Generator | None = None) -> Tensor:
        return self._back(u, torch.full((len(u),), t), torch.full((len(u),), s), generator)

    def _predict(self, u: Tensor, t: int) -> Tensor:
        """For one z; of a generator of u_{t-1} the end of its chain."""
        for at, to in pairwise(self.times(t, None if self.prediction == "previous" else 1)):
            u = self._reverse(u, at, to)
        return u

    def _pair(self, u_0: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """u_s and u_t (N, ...) of data u_0 with their times (N,) s < t, t = s + 1 but for one shot."""
        t = torch.full((len(u_0),), self.steps) if self.one_shot else torch.randint(1, self.steps + 1, (len(u_0),))
        s = torch.zeros_like(t) if self.one_shot else t - 1
        u_s = self.schedule.diffuse(u_0, s, torch.randn_like(u_0))
        return u_s, self.schedule.diffuse(u_s, t, torch.randn_like(u_0), s), s, t

    def _judge(self, u_s: Tensor, u_t: Tensor, t: Tensor) -> Tensor:
        """Logits (N,) of u_s (N, ...) in training."""
        if self.one_shot:
            t = torch.randint(self.steps, t.shape)
            u_s = self.schedule.diffuse(u_s, t, torch.randn_like(u_s))
        return self.discriminator(u_s, u_t, t).to(u_s.dtype)

    def _judged(self, u_s: Tensor, u_t: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits of the real u_s, and the loss of D, whose graph ends at what G makes."""
        with torch.no_grad():
            fake = self._back(u_t, t, s)
        on_real, on_fake = self._judge(u_s, u_t, t), self._judge(fake, u_t, t)
        gap = (on_real.mean() - on_fake.mean()).detach()
        return on_real, {"loss": discriminator_loss(on_real, on_fake), "gap": gap}

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        u_s, u_t, s, t = self._pair(self._state(batch.x))
        if self.player_at(step) == "generator":
            return {"loss": generator_loss(self._judge(self._back(u_t, t, s), u_t, t))}
        pays = self.r1 > 0 and step // 2 % self.r1_every == 0
        on_real, found = self._judged(u_s.requires_grad_(pays), u_t, s, t)
        if pays:
            found["loss"] = found["loss"] + self.r1 / 2 * self.r1_every * r1_penalty(on_real, u_s)
        return found

    def validation_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The loss of D, without R1, and ``gap``."""
        return self._judged(*self._pair(self._state(batch.x)))[1]

    def discriminate(self, x: Tensor) -> Tensor:
        """D(u_0, u_1, 1) (N,) of images x (N, *shape) in [0, 1]: high for what looks as if it needed no step more.

        Unbounded, differentiable. The noise of u_1 is a function of the image, so that its value depends neither on the
        batch nor on the call. (One shot: D(u_0, u_T, 0).)

        Raises:
            TypeError: x is not a float32 or float64 tensor.
            ValueError: images of another shape, outside [0, 1] or NaN.
        """
        x = self.check(x)
        if not len(x):
            return x.flatten(1).sum(1)
        told, seen = (0, self.steps) if self.one_shot else (1, 1)
        noise = normal(0, content_ids(x), self.shape, dtype=x.dtype)
        u = self._state(x)
        u_t = self.schedule.diffuse(u, torch.full((len(u),), seen), noise)
        return self.discriminator(u, u_t, torch.full((len(u),), told))

    @staticmethod
    def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Adam at 1e-3 with betas of 0 and 0.99, for short trainings of small networks.

        Appendix C has 0.5 and 0.9, and about a tenth of the rate: with these betas samples were as far again from the
        data after the same minutes.
        """
        return torch.optim.Adam(parameters, lr=1e-3, betas=(0.0, 0.99))
