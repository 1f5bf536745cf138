"""A deep energy-based model: p(x) = exp(-E(x)) / Z with a convolutional E and an unknown Z.

Two ways to train it. Maximum likelihood with samples from persistent chains: Tieleman, "Training Restricted Boltzmann
Machines using Approximations to the Likelihood Gradient", 2008, in the form for images of Du and Mordatch, "Implicit
Generation and Modeling with Energy-Based Models", 2019, algorithm 1. Denoising score matching: Vincent, "A Connection
Between Score Matching and Denoising Autoencoders", 2011, equation 9.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from robustgen.checks import check_integers, check_numbers, check_positive
from robustgen.generative.base import GenerativeModel
from robustgen.generative.energy.langevin import langevin, reflect
from robustgen.generative.energy.network import EnergyNetwork
from robustgen.training import Batch

__all__ = ["EnergyModel", "denoising_score_matching"]

_DEFAULTS = {  # of what suits one objective and not the other
    "langevin": {"sigma": 0.03, "temperature": 1e-4, "step_size": 5e-5},
    "dsm": {"sigma": 0.3, "temperature": 1.0, "step_size": 0.01},
}


def denoising_score_matching(energy: Callable[[Tensor], Tensor], x: Tensor, sigma: float, noise: Tensor) -> Tensor:
    """sigma^2 / 2 E |s(x~) + (x~ - x) / sigma^2|^2 with s = -grad E and x~ = x + sigma noise, noise ~ N(0, I).

    The minimiser is the energy of the smoothed density, that of x~.

    Args:
        energy: E, (N, ...) -> (N,) in nats.
        x, noise: (N, ...).

    >>> denoising_score_matching(lambda x: x.sum(1), torch.zeros(1, 1), 2.0, torch.ones(1, 1)).item()  # (-2 + 1)^2 / 2
    0.5
    """
    noisy = (x + sigma * noise).detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(energy(noisy).sum(), noisy, create_graph=True)
    return (noise - sigma * gradient).square().flatten(1).sum(1).mean() / 2


class EnergyModel(GenerativeModel):
    """E(x) = f(x) / temperature, f a convolutional network without normalisation; log_prob is -E, without log Z.

    objective="langevin": f falls on data and rises on samples, which Langevin chains draw that go on from step to step.
    Every chain is reflected at the walls of the cube [0, 1]^D, and data get noise ``sigma``, reflected too: the density
    is that of such noisy data on the cube. A small temperature lets the gradient outweigh the noise, without which
    chains of this length would not move: noise and drift of a step are sqrt(2 step_size) and
    step_size / temperature |grad f|. Chains are too short to reach the stationary density, so that levels of E say more
    than differences in nats do. Under ``torchrun`` the buffer of chains is that of rank 0, which every step begins
    with: the other ranks start theirs from it too, but what these become is dropped, so that chains persist on rank 0
    alone, and only as many move in a step as its share of the batch has images.

    objective="dsm": denoising score matching, no chains in training. The density is that of x + sigma noise on R^D.

    Args:
        shape: (C, H, W).
        width: channels at image resolution, twice as many below.
        objective: "langevin" or "dsm".
        sigma: noise on the data, None: 0.03 for "langevin", 0.3 for "dsm".
        temperature: of E; None: 1e-4 for "langevin", 1 for "dsm".
        step_size: of Langevin dynamics on E; None: 5e-5 (noise 0.01) for "langevin", 0.01 (noise 0.14) for "dsm".
        steps: of each chain in a training step of "langevin".
        sample_steps: from uniform noise to a sample.
        buffer_size: chains that "langevin" keeps, as a buffer of the module.
        reinitialised: share of chains that start anew from uniform noise.
        regularisation: weight of E f(x)^2 on data and samples in "langevin", which keeps f near zero.

    Raises:
        ValueError: an argument out of range, an unknown objective; in training, more images than there are chains.

    >>> model = EnergyModel((1, 8, 8), width=4, sample_steps=5, buffer_size=32).eval()
    >>> x = model.sample(3)
    >>> bool((model.log_prob(x) == -model.energy(x)).all()), x.shape
    (True, torch.Size([3, 1, 8, 8]))
    """

    log_prob_kind = "unnormalised"
    replay: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        width: int = 32,
        objective: str = "langevin",
        sigma: float | None = None,
        temperature: float | None = None,
        step_size: float | None = None,
        steps: int = 60,
        sample_steps: int = 1000,
        buffer_size: int = 10_000,
        reinitialised: float = 0.05,
        regularisation: float = 0.1,
    ) -> None:
        super().__init__(shape)
        if objective not in _DEFAULTS:
            raise ValueError(f"objective must be 'langevin' or 'dsm', got {objective!r}")
        default = _DEFAULTS[objective]
        self.objective = objective
        self.sigma = default["sigma"] if sigma is None else sigma
        self.temperature = default["temperature"] if temperature is None else temperature
        self.step_size = default["step_size"] if step_size is None else step_size
        self.width, self.steps, self.sample_steps, self.buffer_size = width, steps, sample_steps, buffer_size
        self.reinitialised, self.regularisation = reinitialised, regularisation
        check_integers(width=width, steps=steps, sample_steps=sample_steps, buffer_size=buffer_size)
        check_numbers(sigma=self.sigma, temperature=self.temperature, step_size=self.step_size)
        check_numbers(reinitialised=reinitialised, regularisation=regularisation)
        check_positive(sigma=self.sigma, temperature=self.temperature, step_size=self.step_size)
        if not 0 <= reinitialised <= 1:
            raise ValueError(f"reinitialised must be in [0, 1], got {reinitialised}")
        if not 0 <= regularisation < float("inf"):
            raise ValueError(f"regularisation must be a finite number >= 0, got {regularisation}")
        self.network = EnergyNetwork(self.shape, width=width)
        if objective == "langevin":
            self.register_buffer("replay", torch.rand(buffer_size, *self.shape))

    def energy(self, x: Tensor) -> Tensor:
        """E(x) in nats, (N,), of x (N, *shape) on the cube [0, 1]^D for "langevin", anywhere for "dsm"."""
        return self._network_energy(x) / self.temperature

    def _network_energy(self, x: Tensor) -> Tensor:
        """f(x), (N,)."""
        return self.network(x)

    def _log_prob(self, x: Tensor) -> Tensor:
        return -self.energy(x)

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        if self.objective == "dsm":
            return self._denoising(batch.x)
        n = len(batch.x)
        if n > self.buffer_size:
            raise ValueError(f"a batch of {n} needs as many chains: set buffer_size to at least {n}")
        chains = torch.randperm(self.buffer_size, device=self.device)[:n]
        start = self.replay[chains]
        anew = torch.rand(n, 1, 1, 1, device=start.device) < self.reinitialised
        start = torch.where(anew, torch.rand_like(start), start)
        samples = langevin(self.energy, start, self.steps, self.step_size, reflected=True)
        self.replay[chains] = samples
        on_data, on_samples = self._network_energy(self._noisy(batch.x)), self._network_energy(samples)
        gap = on_samples.mean() - on_data.mean()
        size = on_data.square().mean() + on_samples.square().mean()
        return {"loss": self.regularisation * size - gap, "gap": gap.detach(), "size": size.detach()}

    def validation_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The objective without regularisation; "langevin": against the chains as they are, which stay so."""
        if self.objective == "dsm":
            return self._denoising(batch.x)
        samples = self.replay[torch.randperm(self.buffer_size, device=self.device)[: len(batch.x)]]
        gap = self._network_energy(samples).mean() - self._network_energy(self._noisy(batch.x)).mean()
        return {"loss": -gap, "gap": gap}

    def _noisy(self, x: Tensor) -> Tensor:
        return reflect(x + self.sigma * torch.randn_like(x))

    def _denoising(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": denoising_score_matching(self.energy, x, self.sigma, torch.randn_like(x))}

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        x = torch.rand(n, *self.shape, generator=generator, device=self.device, dtype=self.dtype)
        reflected = self.objective == "langevin"
        x = langevin(self.energy, x, self.sample_steps, self.step_size, reflected=reflected, generator=generator)
        return x.clamp(0, 1)  # "dsm" knows of no cube

    @staticmethod
    def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Adam, learning rate 1e-4 as in Du and Mordatch, 2019, appendix, beta 0 and 0.999."""
        return torch.optim.Adam(parameters, lr=1e-4, betas=(0.0, 0.999))
