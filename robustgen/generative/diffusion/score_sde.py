"""A denoiser as the score of noisy images: stochastic equations that draw, and a flow that has a likelihood.

Song, Sohl-Dickstein, Kingma, Kumar, Ermon and Poole, "Score-Based Generative Modeling through Stochastic Differential
Equations", ICLR 2021: the reverse-time equation (6) by the steps of equation 46, predictor and corrector (algorithms 2
to 5), the flow (13) and its likelihood (39). The score is that of Tweedie's formula, (E[x | v] - v) / sigma^2. In
Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", NeurIPS 2022, section 2: images with
noise that preserves variance are images with noise that explodes, up to a factor, so that both have one flow. Kingma,
Salimans, Poole and Ho, "Variational Diffusion Models", NeurIPS 2021, equations 11 and 17: the bound of the reverse-time
equation, for images on levels.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robustgen.checks import check_flags, check_integers, check_positive
from robustgen.counter_rng import content_ids, normal
from robustgen.generative.base import GenerativeModel
from robustgen.generative.blocks.gaussian import discretized_gaussian_log_prob, gaussian_kl, gaussian_log_prob
from robustgen.generative.diffusion.noise_schedule import NoiseSchedule
from robustgen.generative.energy.base_model import describe_model, frozen_model
from robustgen.generative.flows.continuous import Continuous, SolvedFlow
from robustgen.generative.flows.transform import KeyedChain, Transform
from robustgen.training import Batch

__all__ = ["SAMPLERS", "SDES", "ScoreSDE"]

SAMPLERS = ("ode", "sde", "predictor-corrector")
SDES = ("vp", "ve")
_STREAM = 73  # of the noise of scores


def _scale(sigma: float) -> float:
    """Of z = (x - 1/2) / scale, which stays of one size, and is u_t of a diffusion that preserves variance."""
    return math.hypot(sigma, 0.5)


class _Field(nn.Module):
    """dz/dt where the noise of x grows geometrically from the least at t = 0 to the most at t = 1."""

    def __init__(self, base: Any, clip: bool) -> None:
        super().__init__()
        self.base, self.clip = base, clip

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        found: Tensor = self.base.denoise(x, sigma)
        return found.clamp(0, 1) if self.clip else found

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        ratio = self.base.sigma_max / self.base.sigma_min
        sigma = self.base.sigma_min * ratio ** min(max(t.item(), 0.0), 1.0)  # adaptive solvers look beyond the ends
        scale, x = _scale(sigma), 0.5 + _scale(sigma) * z
        return math.log(ratio) * ((x - self.denoise(x, sigma)) / scale - (sigma / scale) ** 2 * z)


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


class ScoreSDE(SolvedFlow):
    """The density whose score, at every level of noise, is that of a denoiser: of images with its least noise.

    ``log_prob`` follows the flow from a point to noise, N(1/2, (sigma_max^2 + 1/4) I) in the end, and needs torchdiffeq
    (``pip install 'robustgen[ode]'``), as do samples of ``sampler="ode"``; it is right up to the solver's error
    (:meth:`solver_error`). What point that is, and so what the number says, is up to ``dequantization``:

    - "gaussian": y = image + the base's least noise, where the base has learned it. ``log_prob`` is log P(image | y) +
      log p(y) - log q(y | image), a lower bound on the log probability of the image on levels, where points of the flow
      are decoded as the base does: a :class:`DDPM` by its own last step, others by N(denoised, sigma_min^2), the mass
      of each level. To be compared with a DDPM's own bound, and with :meth:`sde_log_prob`.
    - "uniform": y = (255 image + u) / 256, as of other flows: a lower bound where points of the flow are rounded down.
      Trained here, the base learns images with this noise. One that has learned levels has a peak at each of them and
      little between: the less its least noise, the worse the number, 1.4 bits for a pixel that is always 0 behind the
      first of a DDPM's 1000 cosine steps (0.8 of a level), 3.1 behind a fourth of a level.
    - "none": the log density of the image itself, per unit of the [0, 1] scale, among images with the least noise.

    ``log_prob`` is of the flow; :meth:`sde_log_prob` is a bound of the stochastic equation. With the right score they
    are one model, and no bound is above the flow on average. With another they are two, and either may be above.

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
        clip: whether denoised images are put into [0, 1], where the mean of images is, in all that follows the score; a
            DDPM does so itself in samples and in its bound.
        solver, steps, tolerance, trace, draws: of the flow, see :class:`Continuous`.
        dequantization: "gaussian", "uniform" or "none".
        levels, quantization: see :class:`Flow`; a DDPM has 256 levels.

    Attributes:
        log_prob_kind: "lower_bound", in expectation over the signs of a trace that is estimated. Without dequantization
            "exact" where the trace is, else "estimated".

    Raises:
        TypeError: a base that is no model with a denoiser.
        ValueError: an argument out of range, or levels that are not the base's.

    >>> from robustgen.generative import Denoiser
    >>> model = ScoreSDE(Denoiser((1, 4, 4), width=4), steps=2, sampler="sde", sample_steps=5).eval()
    >>> model.log_prob(torch.ones(3, 1, 4, 4)).shape, model.sample(2).shape
    (torch.Size([3]), torch.Size([2, 1, 4, 4]))
    """

    log_prob_kind: ClassVar[str | None] = "estimated"
    dequantizations: ClassVar[tuple[str, ...]] = ("none", "gaussian", "uniform")

    def __init__(
        self,
        base: GenerativeModel | Mapping[str, Any],
        *,
        sampler: str = "predictor-corrector",
        sde: str = "vp",
        sample_steps: int = 200,
        snr: float = 0.16,
        clip: bool = True,
        solver: str = "rk4",
        steps: int = 25,
        tolerance: float = 1e-4,
        trace: str = "hutchinson",
        draws: int = 1,
        levels: int = 256,
        dequantization: str = "gaussian",
        quantization: str | None = None,
    ) -> None:
        model: Any = frozen_model(base).requires_grad_(True)
        if not all(hasattr(model, name) for name in ("denoise", "sigma_min", "sigma_max")):
            raise TypeError(
                f"base must be a model that denoises, DDPM, EDM or Denoiser; a {type(model).__name__} does not"
            )
        super().__init__(model.shape, levels, dequantization, quantization)
        if dequantization == "gaussian" and hasattr(model, "decoded_log_prob") and levels != model.pixels.levels:
            raise ValueError(f"levels={levels}: a {type(model).__name__} decodes to {model.pixels.levels} levels")
        check_integers(sample_steps=sample_steps)
        check_positive(snr=snr)
        check_flags(clip=clip)
        for name, value, known in (("sampler", sampler, SAMPLERS), ("sde", sde, SDES)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        self.sampler, self.sde, self.sample_steps, self.snr, self.clip = sampler, sde, sample_steps, snr, clip
        self.solver, self.steps, self.tolerance, self.trace, self.draws = solver, steps, tolerance, trace, draws
        flow = Continuous(_Field(model, clip), solver, steps, tolerance, trace, draws)
        self.transform = KeyedChain(_Centred(model.sigma_min), flow, levels=levels)
        if self.pixels is None and trace == "exact":
            self.log_prob_kind = "exact"  # type: ignore[misc]
        self.to(device=model.device, dtype=model.dtype)

    @property
    def base(self) -> Any:
        """The model that denoises."""
        return self._field.base

    @property
    def _field(self) -> Any:
        return self.transform.transforms[1].dynamics

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-able; of the base its class and its arguments."""
        return super().config | {"base": describe_model(self.base)}

    def check_training(self, n: int, batch_size: int) -> None:
        if self.dequantization == "uniform" and hasattr(self.base, "pixels"):
            name = type(self.base).__name__
            raise ValueError(f"a {name} learns levels, not what lies between: train it with dequantization='gaussian'")
        super().check_training(n, batch_size)

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """That of the base, of images with uniform noise where they are scored with it."""
        found: dict[str, Tensor] = self.base.training_step(self._learned(batch, fresh=True), step)
        return found

    def validation_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.base.validation_step(self._learned(batch, fresh=False), step)
        return found

    def _learned(self, batch: Batch, fresh: bool) -> Batch:
        return batch._replace(x=self._spread(batch.x, fresh)[0]) if self.dequantization == "uniform" else batch

    def _spread(self, x: Tensor, fresh: bool) -> tuple[Tensor, Tensor | float]:
        if self.dequantization != "gaussian":
            return super()._spread(x, fresh)
        v, sigma = self._pixels(x, fresh), self.base.sigma_min
        eps = torch.randn_like(v) if fresh else normal(0, content_ids(v), self.shape, (_STREAM,), v.dtype)
        return v + sigma * eps, (gaussian_log_prob(eps) - math.log(sigma)).flatten(1).sum(1)

    def on_levels(self, x: Tensor) -> Tensor:
        """The images (N, *shape) that points x stand for: the nearest levels, or those that uniform noise fills."""
        if self.dequantization != "gaussian":
            return super().on_levels(x)
        steps = self.levels - 1
        return (x * steps).round().clamp(0, steps) / steps

    def _decoded(self, v: Tensor, y: Tensor) -> Tensor:
        """log P(v | y) (N,) of images v on levels behind y, which has the least noise."""
        if hasattr(self.base, "decoded_log_prob"):
            found: Tensor = self.base.decoded_log_prob(v, y)
            return found
        mean, log_std = self._field.denoise(y, self.base.sigma_min), torch.tensor(self.base.sigma_min).log()
        return discretized_gaussian_log_prob(v, mean, log_std.to(v), self.levels).flatten(1).sum(1)

    def _log_prob(self, x: Tensor) -> Tensor:
        y, log_q = self._spread(x, fresh=False)
        found = self._density(y) - log_q
        return found + self._decoded(self._pixels(x), y) if self.dequantization == "gaussian" else found

    @torch.no_grad()
    def sde_log_prob(self, x: Tensor, terms: int = 100) -> Tensor:
        """A lower bound on log P(x), (N,) in nats, of the reverse-time equation with the same score; none is solved.

        E log P(x | y) - KL(q(x_max | x) || noise) - integral over log sigma of E |x - D(x + sigma n)|^2 / sigma^2. The
        decoder is that of ``log_prob`` with "gaussian" dequantization: the two differ in the equation alone. The
        integral is by the midpoint rule, each term with noise that depends on the image.

        Args:
            x: images (N, *shape) in [0, 1].
            terms: of the integral.

        Raises:
            TypeError, ValueError: as :meth:`log_prob` does, or another dequantization than "gaussian".
        """
        check_integers(terms=terms)
        if self.dequantization != "gaussian":
            raise ValueError("the bound of the equation is of images on levels: it needs dequantization='gaussian'")
        x = self.check(x)
        if not len(x):
            return x.new_zeros(0)
        v, low, high = self._pixels(x), math.log(self.base.sigma_min), math.log(self.base.sigma_max)
        ids, width = content_ids(v), (high - low) / terms
        far = torch.full_like(v, high)
        nats = gaussian_kl(v - 0.5, far, 0.0, math.log(_scale(self.base.sigma_max))).flatten(1).sum(1)
        for k in range(terms):
            sigma = math.exp(low + (k + 0.5) * width)
            noise = normal(0, ids, self.shape, (_STREAM, k), v.dtype)
            error = (v - self._field.denoise(v + sigma * noise, sigma)) / sigma
            nats = nats + width * error.square().flatten(1).sum(1)
        return self._decoded(v, self._spread(x, fresh=False)[0]) - nats

    def _pixels(self, x: Tensor, fresh: bool = False) -> Tensor:
        assert self.pixels is not None
        return self.pixels(x, fresh)

    def _levels_down(self) -> list[float]:
        """Noise of the steps of "sde", from the most to the least."""
        low, high = self.base.sigma_min, self.base.sigma_max
        if self.sde == "vp":
            known = NoiseSchedule("vp", self.sample_steps).sigmas() / 2
            high = min(high, known[-1].item())  # which is noise alone
            inside = known[(known > low) & (known < high)].tolist()
        else:
            ends = math.log10(low), math.log10(high)
            inside = torch.logspace(*ends, self.sample_steps + 1, device="cpu").tolist()[1:-1]
        return [high, *reversed(inside), low]

    def _score(self, y: Tensor, sigma: float) -> Tensor:
        """Of y, which is x - 1/2 or, preserving variance, z."""
        scale = _scale(sigma) if self.sde == "vp" else 1.0
        expected = (self._field.denoise(0.5 + scale * y, sigma) - 0.5) / scale
        return (expected - y) * (scale / sigma) ** 2

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        levels, vp = self._levels_down(), self.sde == "vp"

        def noise() -> Tensor:
            return torch.randn(n, *self.shape, generator=generator, device=self.device, dtype=self.dtype)

        if self.sampler == "ode":
            x = self._from_noise(noise())
            return self.on_levels(self._field.denoise(x, levels[-1]) if self.dequantization == "gaussian" else x)
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
        x = self._field.denoise(0.5 + y * (_scale(levels[-1]) if vp else 1.0), levels[-1])
        return self.on_levels(x)


def _norms(v: Tensor) -> Tensor:
    """Of each row, (N, 1, 1, 1)."""
    return v.flatten(1).norm(dim=1)[:, None, None, None]
