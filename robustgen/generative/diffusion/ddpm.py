"""Denoising diffusion: a chain of small Gaussian steps from noise to an image.

Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020 (the bound, equation 5; the decoder of its
last term, equation 13; the loss, equation 14); Song, Meng and Ermon, "Denoising Diffusion Implicit Models", ICLR 2021,
equations 12 and 16 (fewer steps, with less noise or none); Nichol and Dhariwal, "Improved Denoising Diffusion
Probabilistic Models", ICML 2021, equations 15 and 16 (learned variances); Salimans and Ho, "Progressive Distillation
for Fast Sampling of Diffusion Models", ICLR 2022, appendix D (velocities).
"""

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustgen.checks import check_flags, check_integers, check_numbers
from robustgen.counter_rng import content_ids, integers, normal
from robustgen.generative.blocks.gaussian import discretized_gaussian_log_prob, gaussian_kl
from robustgen.generative.diffusion.base import Diffusion
from robustgen.generative.diffusion.guidance import ClassConditional
from robustgen.generative.diffusion.noise_schedule import NoiseSchedule
from robustgen.generative.diffusion.unet import UNet, check_network
from robustgen.generative.pixels import Pixels, bits_per_dim
from robustgen.training import Batch

__all__ = ["DDPM", "PREDICTIONS"]

PREDICTIONS = ("noise", "data", "velocity")
_STREAM = 61  # of the times and the noise of scores
_LEVELS = 256  # of a pixel
_BOUND_WEIGHT = 1e-3  # of the bound, in nats a dimension, beside the squared error, where variances are learned


class DDPM(ClassConditional, Diffusion):
    """p(u_{t-1} | u_t) = N(posterior mean of u_t and the u_0 that a U-Net expects, variance), for u_0 = 2 x - 1.

    The loss is the mean squared error of what the network predicts. ``log_prob`` is the variational bound on the log
    probability of the 8-bit image, in nats. Trained without an average of weights, samples are poor: ``--ema 0.999``,
    or ``fit(..., ema=0.999)``.

    A class-conditional model is told the labels of its training data, but not always, so that it also knows images of
    no stated class: those are what ``log_prob``, ``chain`` and ``denoise`` are about. ``sample`` draws classes evenly.

    Args:
        shape: (C, H, W).
        steps: T.
        schedule: of the noise, "linear" (Ho et al.), "cosine" or "vp"; see :class:`NoiseSchedule`.
        prediction: what the network predicts: "noise" n (Ho et al.), "data" u_0, or the "velocity" sqrt(alpha_bar) n -
            sqrt(1 - alpha_bar) u_0. Of a small network that predicts noise, samples without noise (``eta`` 0) go astray
            at once: where all is noise, an error in it is a large one in u_0.
        learned_variance: whether it also says where each variance lies between that of q(u_{t-1} | u_t, u_0) and
            beta_t, learned by the bound; otherwise it is the former. Better likelihoods, in as many samples.
        classes, label_dropout, guidance: see :class:`ClassConditional`.
        eta: in [0, 1], of the noise in samples: 1: that of the variances above; 0: none, so that a sample is a function
            of its first noise (DDIM).
        clip: whether the u_0 that is expected is put into [-1, 1], in samples and in the bound.
        sample_steps: of ``sample``, at most ``steps``, at equal distances; None: 100, or as many as there are.
        terms: how many of the bound's T terms a score takes at most, drawn by the image itself, one from each of so
            many ranges of noise: an estimate whose mean is the bound. None: all of them.
        quantization: how values between the 256 levels are moved, see :class:`Pixels`.
        width, levels, patch: of the :class:`UNet`; by default 250,000 parameters, on patches of 2 x 2 pixels.

    Raises:
        TypeError, ValueError: a value of the wrong type or out of range.

    >>> model = DDPM((1, 8, 8), steps=50, width=4, sample_steps=5).eval()
    >>> x = model.sample(2)
    >>> model.log_prob(x).shape, model.denoise(x, 0.5).shape
    (torch.Size([2]), torch.Size([2, 1, 8, 8]))
    """

    log_prob_kind: ClassVar[str | None] = "lower_bound"

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        steps: int = 1000,
        schedule: str = "cosine",
        prediction: str = "velocity",
        learned_variance: bool = False,
        classes: int = 0,
        label_dropout: float = 0.1,
        guidance: float = 1.0,
        eta: float = 1.0,
        clip: bool = True,
        sample_steps: int | None = None,
        terms: int | None = 20,
        quantization: str | None = None,
        width: int = 24,
        levels: int = 3,
        patch: int = 2,
    ) -> None:
        super().__init__(shape)
        check_network(self.shape, width, levels, patch)
        check_integers(steps=steps)
        sample_steps = min(100, steps) if sample_steps is None else sample_steps
        check_integers(sample_steps=sample_steps)
        check_integers(2, **({} if terms is None else {"terms": terms}))
        check_flags(learned_variance=learned_variance, clip=clip)
        check_numbers(eta=eta)
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, got {prediction!r}")
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {eta}")
        self.schedule = NoiseSchedule(schedule, steps)
        if sample_steps > steps:
            raise ValueError(f"sample_steps={sample_steps} is more than the steps={steps} that are trained")
        self.steps, self.sample_steps, self.terms = steps, sample_steps, terms
        self.prediction, self.learned_variance, self.clip = prediction, learned_variance, clip
        self._set_classes(classes, label_dropout, guidance)
        self.eta, self.quantization, self.pixels = eta, quantization, Pixels(_LEVELS, quantization)
        self.width, self.levels, self.patch = width, levels, patch
        channels = self.shape[0]
        self.network = UNet(channels, channels * (1 + learned_variance), width, levels, patch, classes)

    @property
    def config(self) -> dict[str, Any]:
        return super().config | {"schedule": self.schedule.name}

    def _outputs(self, u: Tensor, kept: Tensor, y: Tensor | None = None, guidance: float = 1.0) -> Tensor:
        """What the network says of u_t, where alpha_bar_t is ``kept`` (N,)."""
        return self._ask(u, ((1 / kept - 1).log() / 8).to(u), y, guidance)  # it is told a fourth of log sigma

    def _start(self, out: Tensor, u: Tensor, kept: Tensor) -> Tensor:
        """The u_0 that ``out`` says is behind u_t."""
        signal, noise = _scales(kept, u)
        out = out[:, : self.shape[0]]
        if self.prediction == "noise":
            return (u - noise * out) / signal
        return out if self.prediction == "data" else signal * u - noise * out

    def _target(self, u_0: Tensor, n: Tensor, kept: Tensor) -> Tensor:
        """What ``out`` should be where u_t is u_0 and noise n."""
        if self.prediction == "velocity":
            signal, noise = _scales(kept, u_0)
            return signal * n - noise * u_0
        return n if self.prediction == "noise" else u_0

    def _clipped(self, u_0: Tensor) -> Tensor:
        return u_0.clamp(-1, 1) if self.clip else u_0

    def _predict(self, u: Tensor, t: int) -> Tensor:
        kept = self.schedule.alpha_bars[t].expand(len(u))
        return self._start(self._outputs(u, kept), u, kept)

    def _denoise(self, x: Tensor, sigma: float) -> Tensor:
        """At this very noise, between the steps that were trained too."""
        kept = torch.tensor(1 / (1 + 4 * sigma**2), dtype=torch.float64).expand(len(x))
        u = _scales(kept, x)[0] * (2 * x - 1)
        return (self._start(self._outputs(u, kept), u, kept) + 1) / 2

    def _log_std(self, out: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Of p(u_s | u_t), (N, 1 or C, 1 or H, 1 or W)."""
        at_t, at_s = self.schedule.alpha_bars[t.cpu()], self.schedule.alpha_bars[s.cpu()]
        most = 1 - at_t / at_s
        least = most * (1 - at_s) / (1 - at_t)
        if self.learned_variance:  # of pixels that the last step knows for certain
            least = torch.where(s.cpu() == 0, torch.full_like(most, (0.5 / _LEVELS) ** 2).minimum(most), least)
        else:
            least = torch.where(s.cpu() == 0, most, least)
        low, high = ((v.log() / 2).to(out)[:, None, None, None] for v in (least, most))
        if not self.learned_variance:
            return low
        share = out[:, self.shape[0] :].sigmoid()
        return share * high + (1 - share) * low

    def _reverse(
        self, u: Tensor, t: int, s: int, generator: torch.Generator | None = None, y: Tensor | None = None
    ) -> Tensor:
        at_t, at_s = self.schedule.alpha_bars[t], self.schedule.alpha_bars[s]
        out = self._outputs(u, at_t.expand(len(u)), y, self.guidance)
        start = self._clipped(self._start(out, u, at_t.expand(len(u))))
        if s == 0:
            return start
        noise = (u - at_t.sqrt().item() * start) / (1 - at_t).sqrt().item()
        variance = self.eta**2 * (1 - at_s) / (1 - at_t) * (1 - at_t / at_s)
        mean = at_s.sqrt().item() * start + (1 - at_s - variance).sqrt().item() * noise
        if self.eta == 0:
            return mean
        times = torch.full((len(u),), t), torch.full((len(u),), s)
        fresh = torch.randn(u.shape, generator=generator, device=u.device, dtype=u.dtype)
        return mean + self.eta * self._log_std(out, *times).exp() * fresh

    def _term(self, v: Tensor, u: Tensor, out: Tensor, t: Tensor) -> Tensor:
        """KL(q(u_{t-1} | u_t, u_0) || p(u_{t-1} | u_t)) (N,) in nats, u_0 = 2 v - 1; at t = 1, -log p(v | u_1)."""
        s = t - 1
        start = self._clipped(self._start(out, u, self.schedule.alpha_bars[t.cpu()]))
        log_std = self._log_std(out, t, s)
        true_mean, variance = self.schedule.posterior(u, 2 * v - 1, t, s)
        mean, _ = self.schedule.posterior(u, start, t, s)
        first = (t == 1)[:, None, None, None]
        kl = gaussian_kl(true_mean, torch.where(first, log_std.detach(), variance.log() / 2), mean, log_std)
        log_mass = discretized_gaussian_log_prob(v, (start + 1) / 2, log_std - torch.tensor(2.0).log(), _LEVELS)
        return torch.where(first, -log_mass, kl).flatten(1).sum(1)

    def decoded_log_prob(self, v: Tensor, x: Tensor) -> Tensor:
        """log P(v | x) (N,) in nats of images v on the 256 levels, where x is v with the noise of the first step."""
        first = torch.ones(len(v), dtype=torch.int64, device=v.device)
        kept = self.schedule.alpha_bars[first.cpu()]
        u = _scales(kept, x)[0] * (2 * x - 1)
        return -self._term(v, u, self._outputs(u, kept), first)

    def _prior(self, u: Tensor) -> Tensor:
        """KL(q(u_T | u_0) || N(0, I)) (N,)."""
        kept = self.schedule.alpha_bars[-1].to(u)
        return gaussian_kl(kept.sqrt() * u, (1 - kept).log() / 2).flatten(1).sum(1)

    def _ranges(self) -> list[tuple[int, int]]:
        """First and last time of each range whose terms one stands for: as many ranges of log sigma alike."""
        if self.terms is None:
            return [(t, t) for t in range(1, self.steps + 1)]
        logs = self.schedule.sigmas()[1:].log()
        ends = torch.searchsorted(logs, torch.linspace(*logs[[0, -1]].tolist(), self.terms, dtype=logs.dtype)) + 1
        ends = sorted({1, self.steps} | set(ends.clamp(max=self.steps).tolist()))
        return list(zip([1] + [end + 1 for end in ends[:-1]], ends, strict=True))

    def _log_prob(self, x: Tensor) -> Tensor:
        v = self.pixels(x)
        u, ids = 2 * v - 1, content_ids(v)
        nats = self._prior(u)
        for k, (low, high) in enumerate(self._ranges()):
            t = low + integers(0, ids, (), high - low + 1, (_STREAM, k, 0))
            u_t = self.schedule.diffuse(u, t, normal(0, ids, self.shape, (_STREAM, k, 1), u.dtype))
            out = self._outputs(u_t, self.schedule.alpha_bars[t.cpu()])
            nats = nats + (high - low + 1) * self._term(v, u_t, out, t)
        return -nats

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The squared error; ``bits_per_dim`` is that of the bound by one of its terms, right on average over many."""
        v = self.pixels(batch.x, fresh=True)
        t, noise = torch.randint(1, self.steps + 1, (len(v),)), torch.randn_like(v)
        kept, u_t = self.schedule.alpha_bars[t], self.schedule.diffuse(2 * v - 1, t, noise)
        out = self._outputs(u_t, kept, self._labels(batch))
        error = F.mse_loss(out[:, : self.shape[0]], self._target(2 * v - 1, noise, kept))
        with torch.set_grad_enabled(self.learned_variance and torch.is_grad_enabled()):
            variances = torch.cat([out[:, : self.shape[0]].detach(), out[:, self.shape[0] :]], 1)
            nats = self.steps * self._term(v, u_t, variances, t.to(v.device)) + self._prior(2 * v - 1)
        found = {"loss": error, "bits_per_dim": bits_per_dim(nats.mean().detach(), self.dimensions)}
        if self.learned_variance:
            found |= {"loss": error + _BOUND_WEIGHT * nats.mean() / self.dimensions, "squared_error": error.detach()}
        return found

    def noise_error(self, x: Tensor, noise: Tensor, position: float, y: Tensor | None = None) -> Tensor:
        t = torch.full((len(x),), 1 + int(position * self.steps))
        kept, u = self.schedule.alpha_bars[t], self.schedule.diffuse(2 * x - 1, t, noise)
        found = self._outputs(u, kept, y)[:, : self.shape[0]]
        return (found - self._target(2 * x - 1, noise, kept)).square().flatten(1).sum(1)

    @staticmethod
    def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Adam, lr 3e-3, for small networks and short trainings; the source's 2e-4 is of 800,000 steps."""
        return torch.optim.Adam(parameters, lr=3e-3)

    def _sample_of(self, n: int, y: Tensor | None, generator: torch.Generator | None) -> Tensor:
        steps = _LEVELS - 1
        return (self._drawn(n, generator, y=y) * steps).round() / steps


def _scales(kept: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(alpha_bar) and sqrt(1 - alpha_bar), (N, 1, 1, 1)."""
    return kept.sqrt().to(u)[:, None, None, None], (1 - kept).sqrt().to(u)[:, None, None, None]
