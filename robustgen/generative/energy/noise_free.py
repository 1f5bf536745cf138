"""Energy-based model with noise-free dynamics: short chains of gradient descent are a generator, with a density.

Xiao, "Designing Deep Generative Models with Symbiotic Composition", 2022, chapter 5: the gradient flow of an energy as
a continuous flow (equations 5.5 and 5.7), its Euler steps (5.8), and the loss that trains these as a generator beside
the energy (5.13 and 5.14). The equations are solved by torchdiffeq, as those of
:mod:`robustgen.generative.flows.continuous`.
"""

import copy
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from robustgen.checks import check_flags, check_integers, check_numbers, check_positive
from robustgen.counter_rng import content_ids
from robustgen.generative.base import GenerativeModel
from robustgen.generative.blocks.gaussian import gaussian_log_prob
from robustgen.generative.energy.langevin import check_reach
from robustgen.generative.energy.network import EnergyNetwork
from robustgen.generative.energy.score_matching import check_exact
from robustgen.generative.flows.continuous import Continuous
from robustgen.training import Batch

__all__ = ["DYNAMICS", "NoiseFreeEBM", "descend"]

DYNAMICS = ("ode", "steps", "noisy")
OBJECTIVES = ("contrastive", "likelihood")
_STEPS = {"ode": 20, "steps": 40, "noisy": 40}


def descend(
    gradient: Callable[[Tensor], Tensor],
    x: Tensor,
    steps: int,
    step_size: float,
    *,
    momentum: float = 0.0,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """x <- x - a gradient(x + momentum (x - x before)) + noise e, e ~ N(0, I), ``steps`` times.

    Args:
        gradient: of an energy, (N, ...) -> (N, ...); it says whether a graph is kept.
        step_size: a.
        momentum: how far ahead the gradient is taken (Nesterov); 0: gradient descent.
        noise: standard deviation of what a step adds.

    >>> descend(lambda x: x, torch.ones(1, 1), steps=2, step_size=0.5).item()
    0.25
    """
    before = x
    for _ in range(steps):
        ahead = x + momentum * (x - before) if momentum else x
        before, x = x, x - step_size * gradient(ahead)
        if noise:
            x = x + noise * torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return x


class _Slope(nn.Module):
    """time * grad E, the dynamics that carry images at t = 0 to noise at t = 1."""

    def __init__(self, network: nn.Module, time: float) -> None:
        super().__init__()
        self.network, self.time = network, time

    def forward(self, t: Tensor, u: Tensor) -> Tensor:
        return self.time * _gradient(self.network, u)


def _gradient(network: nn.Module, u: Tensor) -> Tensor:
    """grad E at u, with a graph where gradients are enabled."""
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        u = u if u.requires_grad else u.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(_energy(network, u).sum(), u, create_graph=graph)
    return gradient


def _energy(network: nn.Module, u: Tensor) -> Tensor:
    energy: Tensor = network((u + 1) / 2)  # it sees 2 x - 1
    return energy


class NoiseFreeEBM(GenerativeModel):
    """A sample is where gradient descent on E is after a given time, from x_0 ~ N(0, I).

    E is a function of u = scale (2 x - 1). Trained as an energy ("contrastive": E falls on data and rises on samples),
    the model has two scores, and they do not agree. **Trust** ``log_prob``: dynamics="ode" is a continuous flow, and
    its density is that of the samples. ``energy(x)`` is the other one: chains of a short time do not sample exp(-E), so
    that its levels may rank images, but are no log density, whatever the samples look like.

    dynamics="ode": x' = -grad E on [0, ``time``], which is part of the model. log p(x) = log p_0(x_0) + the integral of
    tr grad^2 E along the way. dynamics="steps": ``steps`` steps x <- x - step_size grad E, for images. "noisy": each of
    them adds noise, less than Langevin dynamics would, which diverges. Neither has a ``log_prob``: a step has an
    inverse only where step_size grad E contracts, which nothing here enforces and a trained E rarely does.

    ``generator_loss`` adds E_fixed(sample), of which only the sample is differentiated: descent is trained as the
    generator of a W-GAN whose critic is E. The graph of all steps is kept for it: of images (1, 28, 28) with "conv" at
    width 32 it is 1.3 MB for each step and image, of (1, 8, 8) 0.1 MB; without the loss memory does not grow with the
    steps. Where ``gap``, E of samples less E of data, runs away below zero, the two losses have parted and samples fall
    on one image: take a smaller learning rate or more ``regularisation``.

    Args:
        shape: (C, H, W).
        architecture, width, layers: see :class:`EnergyNetwork`.
        scale: images fill [-scale, scale] where noise is N(0, I).
        dynamics: "ode" (needs torchdiffeq: ``pip install 'robustgen[ode]'``), "steps" or "noisy".
        time: of "ode".
        steps: of the other dynamics, and of the solver "rk4"; None: 20 for "ode", 40 for the others.
        step_size: of the dynamics but "ode".
        noise_scale: of "noisy", standard deviation of what a step adds.
        generator_loss: see above.
        regularisation: weight of E^2 on data and samples, which holds E near zero; None: 1 with ``generator_loss``, 0
            without. The paper has none, and nothing else that bounds E: on digits its generator's loss ran away so.
        objective: "contrastive", or "likelihood": -log p is minimised through the solver, of at most 2 dimensions.
        solver, tolerance, draws: of "ode", see :class:`Continuous`.
        trace: of "ode"; "hutchinson", or "exact" for up to 64 dimensions.

    Attributes:
        log_prob_kind: of "ode": "exact", up to the solver's error (:meth:`solver_error`), where the trace is, else
            "estimated"; None for the other dynamics.

    Raises:
        ImportError: at the first solution, without torchdiffeq.
        TypeError, ValueError: an argument that is out of range, or of other dynamics or another objective.
        FloatingPointError: in training and ``sample``, chains that leave the data's range for good.

    >>> model = NoiseFreeEBM((2, 1, 1), architecture="mlp", width=8, layers=1, trace="exact").eval()
    >>> x = model.sample(3)
    >>> model.log_prob(x).shape, model.energy(x).shape, model.log_prob_kind
    (torch.Size([3]), torch.Size([3]), 'exact')
    """

    log_prob_kind: ClassVar[str | None] = None

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        architecture: str = "conv",
        width: int = 32,
        layers: int | None = None,
        scale: float = 1.0,
        dynamics: str = "ode",
        time: float = 0.2,
        steps: int | None = None,
        step_size: float = 0.1,
        noise_scale: float = 0.1,
        generator_loss: bool = False,
        regularisation: float | None = None,
        objective: str = "contrastive",
        solver: str = "rk4",
        tolerance: float = 1e-5,
        trace: str = "hutchinson",
        draws: int = 1,
    ) -> None:
        super().__init__(shape)
        if dynamics not in DYNAMICS:
            raise ValueError(f"dynamics must be one of {', '.join(DYNAMICS)}, got {dynamics!r}")
        if objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}")
        check_positive(scale=scale, time=time, step_size=step_size, noise_scale=noise_scale)
        check_flags(generator_loss=generator_loss)
        self.architecture, self.width, self.layers, self.scale = architecture, width, layers, scale
        self.dynamics, self.time, self.step_size, self.noise_scale = dynamics, time, step_size, noise_scale
        self.steps = _STEPS[dynamics] if steps is None else steps
        check_integers(steps=self.steps)
        if regularisation is None:
            regularisation = 1.0 if generator_loss else 0.0
        check_numbers(regularisation=regularisation)
        if not 0 <= regularisation < float("inf"):
            raise ValueError(f"regularisation must be a finite number >= 0, got {regularisation}")
        self.generator_loss, self.regularisation, self.objective = generator_loss, regularisation, objective
        self.solver, self.tolerance, self.trace, self.draws = solver, tolerance, trace, draws
        self.network = EnergyNetwork(self.shape, width=width, architecture=architecture, layers=layers)
        self._flow()  # raises where its arguments are none
        if trace == "exact":
            check_exact(self.dimensions, "take trace='hutchinson'")
        if objective == "likelihood":
            if dynamics != "ode" or generator_loss:
                raise ValueError("objective='likelihood' is for dynamics='ode' without generator_loss")
            if self.dimensions > 2:
                raise ValueError(
                    f"objective='likelihood' differentiates the solver and is for 2 dimensions, got {self.dimensions}: "
                    "leave objective out"
                )
        if dynamics == "ode":
            self.log_prob_kind = "exact" if trace == "exact" else "estimated"  # type: ignore[misc]

    def _flow(self) -> Continuous:
        """Of u, from images to noise."""
        slope = _Slope(self.network, self.time)
        flow = Continuous(slope, self.solver, self.steps, self.tolerance, self.trace, self.draws)
        flow.training = self.training  # the network's own modes stay as they are
        return flow

    def _coordinates(self, x: Tensor) -> Tensor:
        return self.scale * (2 * x - 1)

    def energy(self, x: Tensor) -> Tensor:
        """E (N,) of x (N, *shape) in [0, 1]; see above what it is worth."""
        return _energy(self.network, self._coordinates(x))

    def to_noise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The noise eps (N, *shape) of images x (N, *shape), and log |det d eps/dx| (N,); only of dynamics="ode".

        Raises:
            TypeError: other dynamics, which have no inverse, or x as for ``log_prob``.
            ValueError: as for ``log_prob``.
        """
        if self.dynamics != "ode":
            raise TypeError(f"dynamics={self.dynamics!r} have no inverse")
        return self._to_noise(self.check(x))

    def _to_noise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        eps, log_det = self._flow()(self._coordinates(x), content_ids(x))
        return eps, log_det + self.dimensions * math.log(2 * self.scale)

    def _log_prob(self, x: Tensor) -> Tensor:
        eps, log_det = self._to_noise(x)
        return gaussian_log_prob(eps).flatten(1).sum(1) + log_det

    @torch.no_grad()
    def solver_error(self, x: Tensor) -> Tensor:
        """By how much ``log_prob`` of x would change, (N,) in nats, with twice the steps or 1/100 of the tolerance."""
        finer = copy.deepcopy(self)
        finer.steps, finer.tolerance = 2 * self.steps, self.tolerance / 100
        return finer.log_prob(x) - self.log_prob(x)

    @property
    def noise_shape(self) -> tuple[int, ...] | None:
        return None if self.dynamics == "noisy" else self.shape

    def _from_noise(self, eps: Tensor) -> Tensor:
        """Differentiable; a few may lie outside [0, 1]."""
        if not len(eps):
            return eps.new_zeros(0, *self.shape)
        return (self._descended(eps, None) / self.scale + 1) / 2

    def _descended(self, u: Tensor, generator: torch.Generator | None) -> Tensor:
        """Where the dynamics lead from u (N, *shape), with a graph where gradients are enabled."""
        if self.dynamics == "ode":
            return self._flow().inverse(u)
        noise = self.noise_scale if self.dynamics == "noisy" else 0.0
        return descend(
            partial(_gradient, self.network), u, self.steps, self.step_size, noise=noise, generator=generator
        )

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        u = torch.randn(n, *self.shape, generator=generator, device=self.device, dtype=self.dtype)
        u = self._checked(self._descended(u, generator))
        return ((u / self.scale + 1) / 2).clamp(0, 1)

    def _checked(self, u: Tensor) -> Tensor:
        shorter = "time" if self.dynamics == "ode" else "step_size"
        return check_reach(u, max(self.scale, 1.0), f"train with a smaller {shorter}, or stop earlier")

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        return self._losses(batch.x, self.generator_loss)

    def validation_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Without the generator's loss, which is for its gradient alone."""
        return self._losses(batch.x, False)

    def _losses(self, x: Tensor, generator_loss: bool) -> dict[str, Tensor]:
        if self.objective == "likelihood":
            return {"loss": -self._log_prob(x).mean()}
        u = self._coordinates(x)
        with torch.set_grad_enabled(generator_loss):
            samples = self._checked(self._descended(torch.randn_like(u), None))
        on_data, on_samples = _energy(self.network, torch.cat([u, samples.detach()])).split(len(u))
        gap = on_samples.mean() - on_data.mean()
        found = {"loss": -gap, "gap": gap.detach()}
        if self.regularisation and self.training:
            size = on_data.square().mean() + on_samples.square().mean()
            found["loss"] = found["loss"] + self.regularisation * size
        if generator_loss:
            found["loss"] = found["loss"] + self._fixed_energy(samples).mean()
        return found

    def _fixed_energy(self, u: Tensor) -> Tensor:
        """E (N,) of u, whose parameters get no gradient from it."""
        fixed = {name: p.detach() for name, p in self.network.named_parameters()}
        energy: Tensor = functional_call(self.network, fixed, ((u + 1) / 2,))
        return energy

    @staticmethod
    def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Adam, learning rate 5e-4, as in section 5.5.2; 1e-3 on toys."""
        return torch.optim.Adam(parameters, lr=5e-4)
