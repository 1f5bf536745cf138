"""How much noise a step of a diffusion adds, and the Gaussians that follow from it in closed form.

Sohl-Dickstein, Weiss, Maheswaranathan and Ganguli, "Deep Unsupervised Learning using Nonequilibrium Thermodynamics",
ICML 2015; Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020, equations 2, 4, 6 and 7
(linear schedule); Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models", ICML 2021, equation 17
(cosine); Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", ICLR 2021, appendix
C (variance preserving), whose steps may be few and large: Xiao, Kreis and Vahdat, "Tackling the Generative Learning
Trilemma with Denoising Diffusion GANs", ICLR 2022, appendix C.
"""

import math

import torch
from torch import Tensor

from robustgen.checks import check_integers

__all__ = ["SCHEDULES", "NoiseSchedule"]

_BETA_MIN, _BETA_MAX = 0.1, 20.0  # of a unit of time, all schedules but the cosine
_LARGEST = 0.999  # beta of a cosine's last step


def _integrated(time: Tensor) -> Tensor:
    """The integral of beta from 0 to a time in [0, 1]."""
    return _BETA_MIN * time + (_BETA_MAX - _BETA_MIN) * time.square() / 2


def _linear(steps: int) -> Tensor:
    return torch.linspace(_BETA_MIN, _BETA_MAX, steps, dtype=torch.float64) / steps


def _cosine(steps: int) -> Tensor:
    time = torch.arange(steps + 1, dtype=torch.float64) / steps
    kept = ((time + 0.008) / 1.008 * math.pi / 2).cos().square()
    return (1 - kept[1:] / kept[:-1]).clamp(max=_LARGEST)


def _vp(steps: int) -> Tensor:
    total = _integrated(torch.arange(steps + 1, dtype=torch.float64) / steps)
    return -torch.expm1(total[:-1] - total[1:])


SCHEDULES = {"linear": _linear, "cosine": _cosine, "vp": _vp}


class NoiseSchedule:
    """q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I) for t = 1 ... ``steps``; x_0 is without noise.

    Times are int64 tensors (N,), one for each row of x (N, ...). Of s < t, not only of s = t - 1, q(x_s | x_t, x_0) is
    a Gaussian too: steps may be left out.

    Args:
        name: "linear", "cosine" or "vp"; the first and the last agree where steps are many, and "linear" needs more
            than 20 of them, as its last beta is 20 / steps.
        steps: T.

    Attributes:
        betas: float64 (T + 1,), of which the first is 0.
        alpha_bars: float64 (T + 1,), what is left of the signal's variance at each t; 1 at t = 0.

    Raises:
        TypeError, ValueError: an unknown name, too few steps.

    >>> NoiseSchedule("vp", 4).betas
    tensor([0.0000, 0.4763, 0.8490, 0.9565, 0.9875], dtype=torch.float64)
    """

    def __init__(self, name: str, steps: int) -> None:
        check_integers(steps=steps)
        if name not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {name!r}")
        with torch.device("cpu"):  # a model that is built without memory, to compare its weights, has one too
            betas = SCHEDULES[name](steps)
        if not bool((betas < 1).all()):
            raise ValueError(
                f"a linear schedule of {steps} steps has a beta of {betas[-1]:g}: take more than 20, or vp"
            )
        self.name, self.steps = name, steps
        self.betas = torch.cat([betas.new_zeros(1), betas])
        self.alpha_bars = (1 - self.betas).cumprod(0)

    def diffuse(self, x: Tensor, t: Tensor, noise: Tensor, s: Tensor | None = None) -> Tensor:
        """x_t of x_s by ``noise`` ~ N(0, I) of x's shape; s = 0 where none is given, and s <= t."""
        kept = self.alpha_bars[t.cpu()] / (1 if s is None else self.alpha_bars[s.cpu()])
        return _rows(kept.sqrt(), x) * x + _rows((1 - kept).sqrt(), x) * noise

    def start(self, x_t: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The x_0 of which :meth:`diffuse` makes x_t by ``noise``."""
        kept = self.alpha_bars[t.cpu()]
        return (x_t - _rows((1 - kept).sqrt(), x_t) * noise) / _rows(kept.sqrt(), x_t)

    def posterior(self, x_t: Tensor, x_0: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (N, ...) and variance (N, 1, ...) of q(x_s | x_t, x_0), s < t; at s = 0 they are x_0 and 0."""
        at_t, at_s = self.alpha_bars[t.cpu()], self.alpha_bars[s.cpu()]
        kept = at_t / at_s
        of_start = at_s.sqrt() * (1 - kept) / (1 - at_t)
        of_now = kept.sqrt() * (1 - at_s) / (1 - at_t)
        variance = (1 - at_s) * (1 - kept) / (1 - at_t)
        return _rows(of_start, x_t) * x_0 + _rows(of_now, x_t) * x_t, _rows(variance, x_t)

    def sigmas(self) -> Tensor:
        """float64 (T + 1,): the standard deviation of the noise in x_t / sqrt(alpha_bar_t)."""
        return ((1 - self.alpha_bars) / self.alpha_bars).sqrt()


def _rows(values: Tensor, like: Tensor) -> Tensor:
    """One value for each row of ``like``."""
    return values.to(like).view(-1, *[1] * (like.ndim - 1))
