"""A deep energy-based model: p(x) = exp(-E(x)) / Z with a convolutional E and an unknown Z.

Two ways to train it. Maximum likelihood with samples from chains, which are persistent: Tieleman, "Training Restricted
Boltzmann Machines using Approximations to the Likelihood Gradient", 2008, in the form for images of Du and Mordatch,
"Implicit Generation and Modeling with Energy-Based Models", 2019, algorithm 1; start from noise: Nijkamp, Hill, Zhu and
Wu, "Learning Non-Convergent Non-Persistent Short-Run MCMC Toward Energy-Based Model", 2019; or from data: Hinton,
"Training Products of Experts by Minimizing Contrastive Divergence", 2002. Score matching, denoising or sliced.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from robustgen.checks import check_integers, check_numbers, check_positive
from robustgen.generative.base import GenerativeModel
from robustgen.generative.energy.energy_guard import EnergyGuard, energy_overlap, follow
from robustgen.generative.energy.langevin import check_kept, check_reach, langevin, reflect
from robustgen.generative.energy.network import EnergyNetwork
from robustgen.generative.energy.score_matching import denoising_score_matching, sliced_score_matching
from robustgen.training import Batch

__all__ = ["CHAINS", "EnergyModel"]

CHAINS = ("persistent", "noise", "data")
_DEFAULTS = {  # of what suits one objective and not the other
    "langevin": {"sigma": 0.03, "temperature": 1e-4, "step_size": 5e-5},
    "dsm": {"sigma": 0.3, "temperature": 1.0, "step_size": 0.01},
    "ssm": {"sigma": 0.3, "temperature": 1.0, "step_size": 0.01},
}


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

    objective="ssm": sliced score matching of x + sigma noise, in the form of less variance. Without that noise, pixels
    on a few levels would have no score.

    Args:
        shape: (C, H, W).
        width: channels at image resolution, twice as many below.
        objective: "langevin", "dsm" or "ssm".
        sigma: noise on the data, None: 0.03 for "langevin", 0.3 for the others.
        temperature: of E; None: 1e-4 for "langevin", 1 for the others.
        step_size: of Langevin dynamics on E; None: 5e-5 (noise 0.01) for "langevin", 0.01 (noise 0.14) for the others.
        steps: of each chain in a training step of "langevin".
        sample_steps: from uniform noise to a sample; with chains="noise" it is ``steps`` instead, since what was
            trained is where chains of that length end.
        buffer_size: chains that "langevin" keeps, as a buffer of the module; only persistent ones.
        reinitialised: share of persistent chains that start anew from uniform noise.
        regularisation: weight of E f(x)^2 on data and samples in "langevin", which keeps f near zero.
        chains: of "langevin". "persistent": as above. "noise": each starts from uniform noise. "data": each starts from
            noisy data (contrastive divergence), so that f learns the neighbourhood of data alone, and neither energies
            far away nor samples from noise mean much.

    Attributes:
        overlap: of "langevin", a moving average, in training, of how far the energies of data and chains lie alike,
            from 0 to 1; see :class:`EnergyGuard`.

    Raises:
        ValueError: an argument out of range, an unknown objective or start of chains, chains of an objective without
            any; in training, more images than there are persistent chains.
        FloatingPointError: in ``sample``, chains that leave the data's range for good.

    >>> model = EnergyModel((1, 8, 8), width=4, sample_steps=5, buffer_size=32).eval()
    >>> x = model.sample(3)
    >>> bool((model.log_prob(x) == -model.energy(x)).all()), x.shape
    (True, torch.Size([3, 1, 8, 8]))
    """

    log_prob_kind = "unnormalised"
    overlap: Tensor
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
        chains: str = "persistent",
    ) -> None:
        super().__init__(shape)
        if objective not in _DEFAULTS:
            raise ValueError(f"objective must be one of {', '.join(_DEFAULTS)}, got {objective!r}")
        if chains not in CHAINS:
            raise ValueError(f"chains must be one of {', '.join(CHAINS)}, got {chains!r}")
        if objective != "langevin" and chains != "persistent":
            raise ValueError(f"objective={objective!r} trains without chains: leave chains out")
        default = _DEFAULTS[objective]
        self.objective, self.chains = objective, chains
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
            self.register_buffer("overlap", torch.ones(()))
        if objective == "langevin" and chains == "persistent":
            self.register_buffer("replay", torch.rand(buffer_size, *self.shape))

    def energy(self, x: Tensor) -> Tensor:
        """E(x) in nats, (N,), of x (N, *shape) on the cube [0, 1]^D for "langevin", anywhere for the others."""
        return self._network_energy(x) / self.temperature

    def _network_energy(self, x: Tensor) -> Tensor:
        """f(x), (N,)."""
        return self.network(x)

    def _log_prob(self, x: Tensor) -> Tensor:
        return -self.energy(x)

    def check_training(self, n: int, batch_size: int) -> None:
        super().check_training(n, batch_size)
        if self.objective == "langevin" and self.chains == "persistent":
            check_kept(min(n, batch_size), self.buffer_size)

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        if self.objective != "langevin":
            return {"loss": self._score_matching(batch.x)}
        if self.chains == "persistent":
            samples, noisy = self._persistent(len(batch.x)), self._noisy(batch.x)
        else:
            samples, noisy = self._short(batch.x)
        on_data, on_samples = self._network_energy(torch.cat([noisy, samples])).split([len(noisy), len(samples)])
        gap = on_samples.mean() - on_data.mean()
        size = on_data.square().mean() + on_samples.square().mean()
        logged = {"gap": gap.detach(), "size": size.detach()}
        if self.training:
            logged["overlap"] = follow(self.overlap, on_data, on_samples)
        return {"loss": self.regularisation * size - gap} | logged

    def _persistent(self, n: int) -> Tensor:
        """n of the chains that are kept, after further steps."""
        check_kept(n, self.buffer_size)
        chosen = torch.randperm(self.buffer_size, device=self.device)[:n]
        start = self.replay[chosen]
        anew = torch.rand(n, 1, 1, 1, device=start.device) < self.reinitialised
        start = torch.where(anew, torch.rand_like(start), start)
        samples = langevin(self.energy, start, self.steps, self.step_size, reflected=True)
        self.replay[chosen] = samples
        return samples

    def _short(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As many chains as there are data x, from where ``chains`` says, and the noisy data."""
        noisy = self._noisy(x)
        start = noisy if self.chains == "data" else torch.rand_like(noisy)
        return langevin(self.energy, start, self.steps, self.step_size, reflected=True), noisy

    def validation_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The objective without regularisation; persistent chains are taken as they are, and stay so."""
        if self.objective != "langevin":
            return {"loss": self._score_matching(batch.x)}
        if self.chains == "persistent":
            samples = self.replay[torch.randperm(self.buffer_size, device=self.device)[: len(batch.x)]]
            noisy = self._noisy(batch.x)
        else:
            samples, noisy = self._short(batch.x)
        on_data, on_samples = self._network_energy(noisy), self._network_energy(samples)
        gap = on_samples.mean() - on_data.mean()
        return {"loss": -gap, "gap": gap, "overlap": energy_overlap(on_data, on_samples)}

    def guard(self) -> EnergyGuard | None:
        """Of the objective with chains."""
        return EnergyGuard() if self.objective == "langevin" else None

    def _noisy(self, x: Tensor) -> Tensor:
        return reflect(x + self.sigma * torch.randn_like(x))

    def _score_matching(self, x: Tensor) -> Tensor:
        noise = torch.randn_like(x)
        if self.objective == "dsm":
            return denoising_score_matching(self.energy, x, self.sigma, noise)
        signs = torch.randint(0, 2, x.shape, device=x.device).to(x.dtype) * 2 - 1
        return sliced_score_matching(self.energy, x + self.sigma * noise, signs, variance_reduced=True)

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        x = torch.rand(n, *self.shape, generator=generator, device=self.device, dtype=self.dtype)
        reflected = self.objective == "langevin"
        steps = self.steps if self.chains == "noise" else self.sample_steps
        x = langevin(self.energy, x, steps, self.step_size, reflected=reflected, generator=generator)
        return check_reach(x, 1.0, "take a smaller step_size").clamp(0, 1)  # score matching knows of no cube

    @staticmethod
    def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Adam, learning rate 1e-4 as in Du and Mordatch, 2019, appendix, beta 0 and 0.999."""
        return torch.optim.Adam(parameters, lr=1e-4, betas=(0.0, 0.999))
