"""Figure 6.3: what a denoising step has to draw from, the more the larger it is, by numerical integration."""

import math
from typing import Any

import torch
from torch import Tensor

from robustgen.experiments.experiment import Cell, Column, Experiment, Measurement, Row, counted
from robustgen.experiments.training_cache import TrainingCache
from robustgen.experiments.xiao2022.recipes import XIAO_2022
from robustgen.generative.diffusion.noise_schedule import NoiseSchedule

__all__ = ["EXPERIMENT", "denoising_distribution", "modes"]

CENTRES, WEIGHTS, SPREAD = (-4.0, -1.0, 1.5, 4.5), (0.3, 0.2, 0.3, 0.2), 0.25  # of the Gaussians of x_0
FINE, MIDDLE = 1000, 500  # the finest schedule, and its time of x_t
REACH = 7.0  # x_s and x_t are integrated over [-7, 7]
SCALES = {"smoke": (2_000, 40), "cpu": (9_000, 900), "full": (9_000, 900)}  # points of x_s and of x_t
_LEAST = 0.01  # height of a mode that counts, of the highest one's


def denoising_distribution(t: int, s: int, x_s: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
    """q(x_s | x_t) (M, N) at points x_s (N,) at equal distances, given each x_t (M,), and q(x_t) (M,).

    By Bayes: q(x_t | x_s) q(x_s), divided by its sum over the points.
    """
    schedule = NoiseSchedule("vp", FINE)
    at_s, at_t = schedule.alpha_bars[s], schedule.alpha_bars[t]
    kept = at_t / at_s
    likelihood = _normal(x_t[:, None], kept.sqrt() * x_s, 1 - kept)
    joint = likelihood * _marginal(x_s, at_s)
    width = x_s[1] - x_s[0]
    return joint / (joint.sum(1, keepdim=True) * width), _marginal(x_t, at_t)


def _marginal(x: Tensor, alpha_bar: Tensor) -> Tensor:
    """q(x_t) (N,) of points x, at the time of ``alpha_bar``."""
    centres, weights = (torch.tensor(values, dtype=x.dtype) for values in (CENTRES, WEIGHTS))
    variance = alpha_bar * SPREAD**2 + 1 - alpha_bar
    return _normal(x[:, None], alpha_bar.sqrt() * centres, variance) @ weights


def _normal(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return (-(x - mean).square() / (2 * variance)).exp() / (2 * math.pi * variance).sqrt()


def modes(density: Tensor) -> Tensor:
    """How many maxima, int64 (M,), each row of values (M, N) has, of at least a hundredth of the highest."""
    inner = density[:, 1:-1]
    peaks = (inner > density[:, :-2]) & (inner >= density[:, 2:])
    return (peaks & (inner >= _LEAST * density.amax(1, keepdim=True))).sum(1)


class _Figure(Experiment):
    name = "xiao-2022/figure-6.3"
    title = "the distribution that a denoising step draws from (Figure 6.3)"
    question = "How large may a step be before its true distribution is no Gaussian any more?"
    finding = (
        "One step of 1,000 is {1000|kl} nats from the best Gaussian, one of 10 {10|kl}, one of 4 {4|kl} and one of 2 "
        "{2|kl}; of noisy points {10|share}, {4|share} and {2|share} % may come from several modes."
    )
    source = f"{XIAO_2022}, section 6.1 and Figure 6.3"
    metric = "each column has its own unit"
    rows = tuple(
        Row(key=str(steps), title=f"one of {steps:,} steps", data=FINE // steps)
        for steps in (1000, 100, 50, 20, 10, 8, 5, 4, 2)
    )
    columns = (
        Column("kl", "KL to the best Gaussian, nats"),
        Column("share", "noisy points with several modes, %"),
        Column("modes", "modes, at most"),
    )
    seeds = 1  # nothing is drawn
    n_classes = 0
    digits = 4
    notes = (
        "The step ends a schedule's first half, at time 1/2: x_t as there, x_s one step earlier. The source states "
        "neither its mixture nor its schedule; here four Gaussians of standard deviation 0.25, two to three apart, and "
        "the variance-preserving schedule. It plots, and prints no numbers.",
        "KL and share are means over q(x_t); a mode has at least a hundredth of the highest one's height.",
        "The source's integral has q(x_0) where q(x_0 | x_t) is meant.",
    )

    def describe(self, scale: str) -> str:
        return "sums over {:,} points x_s, for each of {:,} points x_t".format(*SCALES[scale])

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        mixture = {"centres": list(CENTRES), "weights": list(WEIGHTS), "spread": SPREAD}
        asked = {"number": cell.column, "step": self.row(cell.row).data, "times": [FINE, MIDDLE], "least": _LEAST}
        return {"mixture": mixture, "points": list(SCALES[scale]), "reach": REACH} | asked

    def measure(self, cell: Cell, scale: str, cache: TrainingCache) -> Measurement:
        x_s, x_t = (torch.linspace(-REACH, REACH, n, dtype=torch.float64) for n in SCALES[scale])
        q, weight = denoising_distribution(MIDDLE, MIDDLE - self.row(cell.row).data, x_s, x_t)
        width = (x_s[1] - x_s[0]).item()
        weight = weight / weight.sum()
        mean = (q * x_s).sum(1, keepdim=True) * width
        variance = (q * (x_s - mean).square()).sum(1) * width
        entropy = -torch.special.xlogy(q, q).sum(1) * width
        kl = (2 * math.pi * math.e * variance).log() / 2 - entropy  # the best Gaussian has the same moments
        found = modes(q)
        numbers = {
            "kl": (weight * kl).sum().item(),
            "share": 100 * (weight * (found > 1)).sum().item(),
            "modes": float(found[weight > 1e-6].max()),
        }
        return Measurement(value=numbers[cell.column], numbers=counted(numbers, len(x_t)))


EXPERIMENT = _Figure()
