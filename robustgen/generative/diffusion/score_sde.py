"""A denoiser as the score of noisy images: stochastic equations that draw, and a flow that has a likelihood.

Song, Sohl-Dickstein, Kingma, Kumar, Ermon and Poole, "Score-Based Generative Modeling through Stochastic Differential
Equations", ICLR 2021: the reverse-time equation (6) by the steps of equation 46, predictor and corrector (algorithms 2
to 5), the flow (13) and its likelihood (39). The score is that of Tweedie's formula, (E[x | v] - v) / sigma^2. In
Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", NeurIPS 2022, section 2: images with
noise that preserves variance are images with noise that explodes, up to a factor, so that both have one flow.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robustgen.checks import check_integers, check_positive
from robustgen.generative.base import GenerativeModel
from robustgen.generative.diffusion.noise_schedule import NoiseSchedule
from robustgen.generative.energy.base_model import describe_model, frozen_model
from robustgen.generative.flows.base import Flow
from robustgen.generative.flows.continuous import Continuous
from robustgen.generative.flows.transform import KeyedChain, Transform
from robustgen.training import Batch

__all__ = ["SAMPLERS", "SDES", "ScoreSDE"]

SAMPLERS = ("ode", "sde", "predictor-corrector")
SDES = ("vp", "ve")


def _scale(sigma: float) -> float:
    """Of z = (x - 1/2) / scale, which stays of one size, and is u_t of a diffusion that preserves variance."""
    return math.hypot(sigma, 0.5)


class _Field(nn.Module):
    """dz/dt where the noise of x grows geometrically from the least at t = 0 to the most at t = 1."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        ratio = self.base.sigma_max / self.base.sigma_min
        sigma = self.base.sigma_min * ratio ** min(max(t.item(), 0.0), 1.0)  # adaptive solvers look beyond the ends
        scale, x = _scale(sigma), 0.5 + _scale(sigma) * z
        return math.log(ratio) * ((x - self.base.denoise(x, sigma)) / scale - (sigma / scale) ** 2 * z)


class _Centred(Transform):
    """z of x with the least noise."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.scale = _scale(sigma)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = (x - 0.5) / self.scale
        return z, x.new_full((len(x),), -math.log(self.scale) * x[0].numel())

    def inverse(self, y: Tensor) -> Tensor:
        return 0.5 + self.scale * y


class ScoreSDE(Flow):
    """The density whose score, at every level of noise, is that of a denoiser: of images with its least noise.

    ``log_prob`` follows the flow from the image to noise, N(1/2, (sigma_max^2 + 1/4) I) in the end, and needs
    torchdiffeq (``pip install 'robustgen[ode]'``), as do samples of ``sampler="ode"``. It is right up to the solver's
    error and to what the base's least noise blurs: a :class:`Denoiser` or :class:`EDM` of ``sigma_min=0.001``, a fourth
    of a level of 256, blurs little, a :class:`DDPM` of 1000 steps about a level.

    Trained, it trains its base. Of a base that is told classes it is the density without them.

    Args:
        base: with ``denoise(x, sigma)``, ``sigma_min`` and ``sigma_max``: a :class:`DDPM`, :class:`EDM` or
            :class:`Denoiser`, which is copied; or, as a file keeps it, its description.
        sampler: "ode": the flow from noise, by ``solver``. "sde": the reverse-time equation by ``sample_steps``.
            "predictor-corrector": with a step of Langevin dynamics after each of these.
        sde: in which form "sde" takes its steps: "vp", of images whose variance is preserved, by the times of that
            schedule, or "ve", of images whose noise shrinks geometrically.
        sample_steps: of "sde".
        snr: of a corrector's step, how large the score's part is beside the noise's.
        solver, steps, tolerance, trace, draws: of the flow, see :class:`Continuous`.
        levels, dequantization, quantization: see :class:`Flow`.

    Attributes:
        log_prob_kind: "exact" where the trace is and nothing is dequantized, "estimated" where it is not.

    Raises:
        TypeError: a base that is no model with a denoiser.
        ValueError: an argument out of range.

    >>> from robustgen.generative import Denoiser
    >>> model = ScoreSDE(Denoiser((1, 4, 4), width=4), steps=2, sampler="sde", sample_steps=5).eval()
    >>> model.log_prob(torch.ones(3, 1, 4, 4)).shape, model.sample(2).shape
    (torch.Size([3]), torch.Size([2, 1, 4, 4]))
    """

    log_prob_kind: ClassVar[str | None] = "estimated"

    def __init__(
        self,
        base: GenerativeModel | Mapping[str, Any],
        *,
        sampler: str = "predictor-corrector",
        sde: str = "vp",
        sample_steps: int = 200,
        snr: float = 0.16,
        solver: str = "rk4",
        steps: int = 25,
        tolerance: float = 1e-4,
        trace: str = "hutchinson",
        draws: int = 1,
        levels: int = 256,
        dequantization: str = "uniform",
        quantization: str | None = None,
    ) -> None:
        model: Any = frozen_model(base).requires_grad_(True)
        if not all(hasattr(model, name) for name in ("denoise", "sigma_min", "sigma_max")):
            raise TypeError(
                f"base must be a model that denoises, DDPM, EDM or Denoiser; a {type(model).__name__} does not"
            )
        super().__init__(model.shape, levels, dequantization, quantization)
        check_integers(sample_steps=sample_steps)
        check_positive(snr=snr)
        for name, value, known in (("sampler", sampler, SAMPLERS), ("sde", sde, SDES)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        self.sampler, self.sde, self.sample_steps, self.snr = sampler, sde, sample_steps, snr
        self.solver, self.steps, self.tolerance, self.trace, self.draws = solver, steps, tolerance, trace, draws
        flow = Continuous(_Field(model), solver, steps, tolerance, trace, draws)
        self.transform = KeyedChain(_Centred(model.sigma_min), flow, levels=levels)
        if self.pixels is None and trace == "exact":
            self.log_prob_kind = "exact"  # type: ignore[misc]
        self.to(device=model.device, dtype=model.dtype)

    @property
    def base(self) -> Any:
        """The model that denoises."""
        return self.transform.transforms[1].dynamics.base

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-able; of the base its class and its arguments."""
        return super().config | {"base": describe_model(self.base)}

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """That of the base."""
        found: dict[str, Tensor] = self.base.training_step(batch, step)
        return found

    def validation_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.base.validation_step(batch, step)
        return found

    def _levels_down(self) -> list[float]:
        """Noise of the steps of "sde", from the most to the least."""
        low, high = self.base.sigma_min, self.base.sigma_max
        if self.sde == "vp":
            known = NoiseSchedule("vp", self.sample_steps).sigmas() / 2
            high = min(high, known[-1].item())  # which is noise alone
            inside = known[(known > low) & (known < high)].tolist()
        else:
            inside = torch.logspace(math.log10(low), math.log10(high), self.sample_steps + 1, device="cpu")[
                1:-1
            ].tolist()
        return [high, *reversed(inside), low]

    def _score(self, y: Tensor, sigma: float) -> Tensor:
        """Of y, which is x - 1/2 or, preserving variance, z."""
        scale = _scale(sigma) if self.sde == "vp" else 1.0
        expected = (self.base.denoise(0.5 + scale * y, sigma) - 0.5) / scale
        return (expected - y) * (scale / sigma) ** 2

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        if self.sampler == "ode":
            return super()._sample(n, generator)
        levels, vp = self._levels_down(), self.sde == "vp"

        def noise() -> Tensor:
            return torch.randn(n, *self.shape, generator=generator, device=self.device, dtype=self.dtype)

        y = noise() * (1 if vp else _scale(levels[0]))
        for sigma, lower in pairwise(levels):
            kept = (_scale(lower) / _scale(sigma)) ** 2 if vp else 1.0  # 1 - beta
            added = 1 - kept if vp else sigma**2 - lower**2
            y = (2 - math.sqrt(kept)) * y + added * self._score(y, sigma) + math.sqrt(added) * noise()
            if self.sampler == "predictor-corrector":
                score, fresh = self._score(y, lower), noise()
                ratio = self.snr * _norms(fresh) / _norms(score).clamp(min=1e-12)
                size = 2 * kept * ratio.square()
                y = y + size * score + (2 * size).sqrt() * fresh
        x = self.base.denoise(0.5 + y * (_scale(levels[-1]) if vp else 1.0), levels[-1])
        return self.on_levels(x)


def _norms(v: Tensor) -> Tensor:
    """Of each row, (N, 1, 1, 1)."""
    return v.flatten(1).norm(dim=1)[:, None, None, None]
