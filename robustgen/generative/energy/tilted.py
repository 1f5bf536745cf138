"""Exponential tilting: a trained model, the base, times exp(-f), with chains that run in the noise of the base.

Xiao, Kreis, Kautz and Vahdat, "VAEBM: A Symbiosis between Variational Autoencoders and Energy-based Models", ICLR 2021;
Xiao, Yan and Amit, "Exponential Tilting of Generative Models: Improving Sample Quality by Training and Sampling from
Latent Energy", 2020; Xiao, "Designing Deep Generative Models with Symbiotic Composition", 2022, chapter 4, equations
4.4 (the density), 4.9 (its gradient) and 4.19 (the chains' target). Che et al., "Your GAN is Secretly an Energy-based
Model and You Should Use Discriminator Driven Latent Sampling", NeurIPS 2020: a discriminator in place of -f.
"""

import copy
import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robustgen.checks import check_flags, check_integers, check_numbers, check_positive
from robustgen.generative.base import GenerativeModel
from robustgen.generative.blocks.gaussian import gaussian_log_prob
from robustgen.generative.blocks.pixel_likelihood import Gaussian
from robustgen.generative.energy.annealed_importance_sampling import LogPartition, of_log_weights
from robustgen.generative.energy.base_model import describe_model, frozen_model
from robustgen.generative.energy.energy_guard import EnergyGuard, energy_overlap, follow
from robustgen.generative.energy.langevin import check_kept, check_reach, langevin
from robustgen.generative.energy.network import EnergyNetwork
from robustgen.generative.flows.base import Flow
from robustgen.training import Batch

__all__ = ["Tilted"]

SPACES = ("noise", "joint", "image", "pair")
_ROWS = 256  # images at once in an estimate of log Z
_REMEDY = "take a smaller step_size, or adjusted=True"


class Tilted(GenerativeModel):
    """p(x) = q(x) exp(-f(x)) / Z: the base q covers the data, f takes away what q puts where no data are.

    The base is copied and stays as it is: ``.base`` is the model without the tilt. f learns from the difference
    between data and negatives, which short Langevin chains draw in the noise eps of the base, where
    U(eps) = f(T(eps)) + |eps|^2 / 2 with x = T(eps), and one step size fits all directions.

    ``log_prob`` is that of the base less f, without log Z, in the sense of ``base_log_prob_kind``; a base without a
    likelihood leaves none. Trained with short chains f is no calibrated log density: levels of ``log_prob`` say more
    than differences in nats do.

    Args:
        base: a trained model whose images of noise have a gradient: a flow, a VAE, a GAN, a GLF; or, as a file keeps
            it, the description of one.
        energy: "network"; "discriminator": f = -D of a GAN, which needs no training: log p / q where D is the best
            logit (DCGAN), a critic on a scale of its own (WGANGP), and neither where D tends to p / (p + q) (LSGAN); or
            a module of your own, images (N, *shape) to (N,), which is copied and trained, but which :meth:`save` cannot
            build again.
        architecture, width, layers: of the network, see :class:`EnergyNetwork`.
        space: where chains run. "noise": x = base.from_noise(eps). "joint": of a VAE with Gaussian pixels, with their
            noise too, so that q is its density. To compare with: "image": x itself, from samples of the base on and
            reflected at the walls of the cube, which leaves p ~ exp(-f) alone; "pair": x and the latents z of such a
            VAE with one step size for both.
        steps: of a chain in training; 0: samples of the base are the negatives.
        sample_steps: of a chain from noise to a sample.
        step_size: of Langevin dynamics; its noise is sqrt(2 step_size), eta = 2 step_size in the paper.
        adjusted: by the rule of Metropolis and Hastings, which keeps chains from going astray where f has become too
            steep for the step; where it refuses nearly all steps, chains stand still instead. Every ``steps`` steps it
            is fresh noise that is offered (Tierney, "Markov Chains for Exploring Posterior Distributions", 1994),
            or modes far apart would never learn how likely each is. Not in the space "image".
        persistent: chance that a chain of training goes on from the buffer in place of fresh noise; it rises to this
            over ``warm_up`` steps. What is kept is noise of the space "noise" or "joint".
        warm_up: see there.
        buffer_size: chains that are kept, as a buffer of the module; only where ``persistent`` > 0.
        regularisation: weight of E f(x)^2 on data and negatives, which keeps f near zero.
        spectral: weight of the sum of the largest singular values of the network's layers (section 4.4.3: 0.2).
        base_lr: learning rate of the base's decoder or generator, which then takes turns with f and lowers f of its
            own samples, as a Wasserstein GAN does (equation 4.34); None: the base is frozen.

    Attributes:
        base_log_prob_kind: of the base.
        overlap: a moving average, in training, of how far the energies of data and negatives lie alike, from 0 to 1;
            see :class:`EnergyGuard`.

    Raises:
        TypeError: the base is no generative model, or the energy no module.
        ValueError: a base without noise or gradient, an energy of other images or without a value for each, a space
            that the base has not, an argument out of range; in training, more images than there are kept chains.
        FloatingPointError: in training and ``sample``, chains that leave the data's range for good.

    >>> from robustgen.generative import RealNVP
    >>> model = Tilted(RealNVP((1, 8, 8), width=4), width=4, steps=3, sample_steps=3).eval()
    >>> x = torch.rand(2, 1, 8, 8)
    >>> torch.equal(model.log_prob(x), model.base.log_prob(x) - model.energy(x)), model.sample(2).shape
    (True, torch.Size([2, 1, 8, 8]))
    """

    log_prob_kind: ClassVar[str | None] = "unnormalised"
    overlap: Tensor
    replay: Tensor

    def __init__(
        self,
        base: GenerativeModel | Mapping[str, Any],
        energy: str | nn.Module = "network",
        *,
        architecture: str = "conv",
        width: int = 32,
        layers: int | None = None,
        space: str = "noise",
        steps: int = 60,
        sample_steps: int = 100,
        step_size: float = 0.005,
        adjusted: bool = False,
        persistent: float = 0.0,
        warm_up: int = 5000,
        buffer_size: int = 10_000,
        regularisation: float = 0.1,
        spectral: float = 0.0,
        base_lr: float | None = None,
    ) -> None:
        base = frozen_model(base)
        super().__init__(base.shape)
        check_flags(adjusted=adjusted)
        check_integers(0, steps=steps, warm_up=warm_up)
        check_integers(sample_steps=sample_steps, buffer_size=buffer_size)
        check_numbers(persistent=persistent, regularisation=regularisation, spectral=spectral, step_size=step_size)
        if not 0 < step_size < 2:
            raise ValueError(f"step_size must lie in (0, 2): others drive a standard normal itself apart; {step_size}")
        for name, value in {"regularisation": regularisation, "spectral": spectral}.items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be a finite number >= 0, got {value}")
        if not 0 <= persistent <= 1:
            raise ValueError(f"persistent must be in [0, 1], got {persistent}")
        if space not in SPACES:
            raise ValueError(f"space must be one of {', '.join(SPACES)}, got {space!r}")
        if persistent and space in ("image", "pair"):
            raise ValueError(f"chains persist in noise alone: set space or persistent, got {space!r} and {persistent}")
        if adjusted and space == "image":
            raise ValueError("space='image' reflects its steps at the walls of the cube: leave adjusted out")
        if base_lr is not None:
            check_positive(base_lr=base_lr)
            if persistent:
                raise ValueError("a base that learns makes other images of kept noise: set base_lr or persistent")
        self.base, self.space, self.architecture, self.width, self.layers = base, space, architecture, width, layers
        self.steps, self.sample_steps, self.step_size = steps, sample_steps, step_size
        self.adjusted = adjusted
        self.persistent, self.warm_up, self.buffer_size = persistent, warm_up, buffer_size
        self.regularisation, self.spectral, self.base_lr = regularisation, spectral, base_lr
        self._check_space()
        self._own_energy = isinstance(energy, nn.Module)
        self.network = self._made(energy)
        self._vectors = _SingularVectors(self.network) if spectral else None
        self.base_log_prob_kind = base.log_prob_kind
        if base.log_prob_kind is None and space != "image":
            self.log_prob_kind = None  # type: ignore[misc]
        self.register_buffer("overlap", torch.ones(()))
        if persistent:
            self.register_buffer("replay", self._fresh(buffer_size))
        if base_lr is not None:
            self._free_generator()
        self.to(device=base.device, dtype=base.dtype)

    def _check_space(self) -> None:
        """That the base has the space, and a gradient there."""
        base, name = self.base, type(self.base).__name__
        if base.noise_shape is None:
            raise ValueError(f"{name} makes no images of normal noise alone: it cannot be the base of a tilt")
        if self.space in ("joint", "pair") and not isinstance(getattr(base, "distribution", None), Gaussian):
            raise ValueError(f"space={self.space!r} is of a VAE with Gaussian pixels: this {name} takes space='noise'")
        self._noise = base.noise_shape
        self._latents = math.prod(self._noise)
        if base.device.type == "meta":  # a plan without values
            return
        with torch.enable_grad():
            eps = torch.linspace(-1, 1, self._latents, device=base.device, dtype=base.dtype).view(1, *self._noise)
            x = base.from_noise(eps.requires_grad_())
            if x.grad_fn is None or not torch.autograd.grad(x.sum(), eps)[0].any():
                raise ValueError(f"images of {name} have no gradient by their noise: it cannot be the base of a tilt")

    def _made(self, energy: str | nn.Module) -> nn.Module:
        if energy == "network":
            return EnergyNetwork(self.shape, width=self.width, architecture=self.architecture, layers=self.layers)
        if energy == "discriminator":
            if not hasattr(self.base, "discriminate"):
                raise ValueError(f"energy='discriminator' is of a GAN: {type(self.base).__name__} has none")
            return nn.Identity()  # f is the base's own
        if energy == "own":
            raise ValueError("the energy was a module of its user's: make Tilted(base, module), then load its weights")
        if not isinstance(energy, nn.Module):
            raise TypeError(f"energy must be 'network', 'discriminator' or a module, got {energy!r}")
        x = torch.zeros(2, *self.shape, device=self.base.device, dtype=self.base.dtype)
        try:
            with torch.no_grad():
                found = energy(x)
        except (RuntimeError, ValueError) as error:
            line = str(error).splitlines()[0]
            raise ValueError(f"the energy does not take images {self.shape} of the base: {line}") from None
        if not isinstance(found, Tensor) or found.shape != (2,):
            shown = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"an energy gives one number for each image, (N,); of two images this gives {shown}")
        return copy.deepcopy(energy)

    def _free_generator(self) -> None:
        """Let what makes images of noise learn, and nothing else of the base."""
        self.base.requires_grad_(True)
        with torch.enable_grad():
            eps = torch.zeros(1, *self._noise, device=self.base.device, dtype=self.base.dtype)
            parameters = list(self.base.parameters())
            x = eps if eps.is_meta else self.base.from_noise(eps)  # a plan without values has no images
            found = torch.autograd.grad(x.sum(), parameters, allow_unused=True) if x.requires_grad else parameters
        for parameter, gradient in zip(parameters, found, strict=True):
            parameter.requires_grad_(gradient is not None)

    @property
    def energy_kind(self) -> str:
        """ "network", "discriminator" or "own"."""
        return "own" if self._own_energy else "discriminator" if isinstance(self.network, nn.Identity) else "network"

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-able; of the base its class and its arguments."""
        own = [name for name in inspect.signature(type(self)).parameters if name not in ("base", "energy")]
        return {"base": describe_model(self.base), "energy": self.energy_kind} | {
            name: getattr(self, name) for name in own
        }

    def train(self, mode: bool = True) -> "Tilted":
        """The base stays in eval mode, whatever the mode: its images are a function of each noise alone."""
        super().train(mode)
        self.base.eval()
        return self

    def energy(self, x: Tensor) -> Tensor:
        """f(x) in nats, (N,), of images x (N, *shape) in [0, 1]; raises as :meth:`check` does.

        Where the base is a flow that dequantizes, of x with the noise that its own score has.
        """
        x = self.check(x)
        return self._energy(self._points(x, fresh=False)) if len(x) else x.flatten(1).sum(1)

    def _energy(self, x: Tensor) -> Tensor:
        """Of any points (N, *shape)."""
        found: Tensor = (
            -self.base.discriminate(x.clamp(0, 1)) if self.energy_kind == "discriminator" else self.network(x)
        )
        return found

    def _points(self, x: Tensor, fresh: bool) -> Tensor:
        """Images as points of the base: with dequantization noise of a flow, or f would know data by their levels."""
        return self.base._spread(x, fresh)[0].to(x.dtype) if isinstance(self.base, Flow) else x

    def _log_prob(self, x: Tensor) -> Tensor:
        return -self.energy(x) if self.space == "image" else self.base.log_prob(x) - self.energy(x)

    @property
    def importance_weighted_log_prob(self) -> Any:
        """As that of the base, less f; only of a base that has it, and where the density is a tilt of it."""
        if self.space == "image":
            raise AttributeError("space='image' leaves the base out of the density")
        of_base = self.base.importance_weighted_log_prob  # an AttributeError is the answer where there is none

        def tilted(x: Tensor, samples: int = 100, chunk: int | None = None) -> Tensor:
            return of_base(x, samples, chunk) - self.energy(x)

        return tilted

    # --- chains ------------------------------------------------------------------------------------------------------

    def _fresh(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Where a chain begins: standard normal noise (N, *noise_shape); (N, D + P) with that of pixels behind it."""
        count = self._noise if self.space in ("noise", "image") else (self._latents + self.dimensions,)
        return torch.randn(n, *count, generator=generator, device=self.device, dtype=self.dtype)

    def _pushed(self, eps: Tensor) -> Tensor:
        """T(eps), differentiable."""
        if self.space in ("noise", "image"):
            return self.base._from_noise(eps)
        latent, pixels = eps.split([self._latents, self.dimensions], 1)
        return self.base._from_noise(latent.view(-1, *self._noise)) + self._scale * pixels.view(-1, *self.shape)

    @property
    def _scale(self) -> Tensor:
        """Standard deviation of the base's pixels."""
        return torch.as_tensor(self.base.distribution.scale).to(self.device, self.dtype)

    def _potential(self, eps: Tensor) -> Tensor:
        """U(eps) (N,)."""
        return self._energy(self._pushed(eps)) + 0.5 * eps.square().flatten(1).sum(1)

    def _pair_potential(self, pair: Tensor) -> Tensor:
        """f(x) - log p(x | z) - log p(z) up to a constant, of z and x beside each other."""
        z, x = pair.split([self._latents, self.dimensions], 1)
        mean = self.base._from_noise(z.view(-1, *self._noise)).flatten(1)
        inner = gaussian_log_prob(x, mean, self._scale.log().expand_as(x)).sum(1) - 0.5 * z.square().sum(1)
        return self._energy(x.view(-1, *self.shape)) - inner

    def _chains(self, eps: Tensor, steps: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The images at the end of chains that start at noise ``eps``, and the noise there, both without graph."""
        with torch.no_grad():
            if self.space == "image":
                start = self._pushed(eps).clamp(0, 1)
                x = langevin(self._energy, start, steps, self.step_size, reflected=True, generator=generator)
                return x, eps
            if self.space == "pair":
                pair = torch.cat([eps[:, : self._latents], self._pushed(eps).flatten(1)], 1)
                pair = langevin(
                    self._pair_potential, pair, steps, self.step_size, adjusted=self.adjusted, generator=generator
                )
                check_reach(pair, 1.0, _REMEDY)
                return pair[:, self._latents :].view(-1, *self.shape), pair
            for done in range(0, steps, max(1, self.steps)):
                eps = self._jumped(eps, generator) if self.adjusted else eps
                some = min(max(1, self.steps), steps - done)
                eps = langevin(self._potential, eps, some, self.step_size, adjusted=self.adjusted, generator=generator)
            check_reach(eps, 1.0, _REMEDY)
            return self._pushed(eps), eps

    def _jumped(self, eps: Tensor, generator: torch.Generator | None) -> Tensor:
        """eps, or fresh noise where the rule of Metropolis and Hastings takes it: by exp(f before - f after)."""
        fresh = self._fresh(len(eps), generator)
        before, after = (self._energy(self._pushed(part)) for part in (eps, fresh))
        u = torch.rand(len(eps), generator=generator, device=eps.device, dtype=eps.dtype)
        taken = u.log() < before - after
        return torch.where(taken.view(-1, *[1] * (eps.ndim - 1)), fresh, eps)

    def _negatives(self, n: int, step: int) -> Tensor:
        """Images (N, *shape) at the end of training's chains; those of the buffer go on and are kept there."""
        eps = self._fresh(n)
        if not self.persistent:
            return self._chains(eps, self.steps)[0]
        check_kept(n, self.buffer_size)
        kept = torch.randperm(self.buffer_size, device=self.device)[:n]
        share = self.persistent * min(1.0, step / self.warm_up if self.warm_up else 1.0)
        goes_on = torch.rand(n, *[1] * (eps.ndim - 1), device=self.device) < share
        x, self.replay[kept] = self._chains(torch.where(goes_on, self.replay[kept], eps), self.steps)
        return x

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        x = self._chains(self._fresh(n, generator), self.sample_steps, generator)[0]
        return self.base.on_levels(x) if isinstance(self.base, Flow) else x.clamp(0, 1)

    @torch.no_grad()
    def log_partition(self, n: int = 10_000, generator: torch.Generator | None = None) -> LogPartition:
        """log Z = log E exp(-f(x)), x from the base, from n draws; of the space in which the chains run.

        Raises:
            ValueError: fewer than two draws, or a space that leaves the base out.
        """
        check_integers(2, n=n)
        if self.space == "image":
            raise ValueError("space='image' is no tilt of the base: it has no log Z that samples of the base tell")
        parts = [
            -self._energy(self._pushed(self._fresh(min(_ROWS, n - first), generator))).double()
            for first in range(0, n, _ROWS)
        ]
        return of_log_weights(torch.cat(parts))

    # --- training ----------------------------------------------------------------------------------------------------

    @property
    def players(self) -> Mapping[str, nn.Module]:
        return {} if self.base_lr is None else {"energy": self.network, "generator": self.base}

    def player_at(self, step: int) -> str:
        """Turn by turn."""
        return "generator" if step % 2 else "energy"

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """E f(data) - E f(negatives), and what keeps f small; both energies and their overlap are logged."""
        if self.base_lr is not None and self.player_at(step) == "generator":
            eps = self._fresh(len(batch.x))
            return {"loss": self._energy(self._pushed(eps)).mean()}
        return self._losses(batch.x, self._negatives(len(batch.x), step), self.training)

    def validation_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The same without what keeps f small, against chains from fresh noise."""
        return self._losses(batch.x, self._chains(self._fresh(len(batch.x)), self.steps)[0], False)

    def _losses(self, x: Tensor, negatives: Tensor, penalised: bool) -> dict[str, Tensor]:
        x = self._points(x, fresh=penalised)
        on_data, on_negatives = self._energy(torch.cat([x, negatives])).split([len(x), len(negatives)])
        loss = on_data.mean() - on_negatives.mean()
        logged = {"data_energy": on_data.detach().mean(), "sample_energy": on_negatives.detach().mean()}
        if not penalised:
            logged["overlap"] = energy_overlap(on_data.detach(), on_negatives.detach())
        else:
            logged["overlap"] = follow(self.overlap, on_data, on_negatives)
            loss = loss + self.regularisation * (on_data.square().mean() + on_negatives.square().mean())
            if self._vectors is not None:
                loss = loss + self.spectral * self._vectors(self.network)
        return {"loss": loss} | logged

    def check_training(self, n: int, batch_size: int) -> None:
        super().check_training(n, batch_size)
        if self.persistent:
            check_kept(min(n, batch_size), self.buffer_size)

    def guard(self) -> EnergyGuard:
        return EnergyGuard()

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:  # type: ignore[override]
        """Adam, lr 1e-4, of the base ``base_lr``."""
        found = list(parameters)
        of_base = {id(p) for p in self.base.parameters()}
        learns = self.base_lr is not None and all(id(p) in of_base for p in found)
        return torch.optim.Adam(found, lr=self.base_lr if learns and self.base_lr is not None else 1e-4)


class _SingularVectors(nn.Module):
    """The sum of the largest singular values of a network's layers, by power iteration from where it was last.

    Of a convolution: of its kernel as a matrix, output channels by the rest.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        for i, weight in enumerate(_weights(network)):
            self.register_buffer(f"v{i}", nn.functional.normalize(torch.randn(weight.flatten(1).shape[1]), dim=0))

    def forward(self, network: nn.Module) -> Tensor:
        total = torch.zeros((), device=next(network.parameters()).device)
        for i, weight in enumerate(_weights(network)):
            matrix, v = weight.flatten(1), getattr(self, f"v{i}")
            with torch.no_grad():
                for _ in range(4):
                    u = nn.functional.normalize(matrix @ v, dim=0)
                    v.copy_(nn.functional.normalize(matrix.T @ u, dim=0))
            total = total + u @ (matrix @ v)
        return total


def _weights(network: nn.Module) -> list[Tensor]:
    return [layer.weight for layer in network.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
