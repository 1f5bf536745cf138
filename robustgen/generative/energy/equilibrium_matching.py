"""Equilibrium matching: the gradient of an energy that is told no time, learned like a regression.

Wang and Du, "Equilibrium Matching: Generative Modeling with Implicit Energy-Based Models", arXiv 2510.02300, 2025: the
truncated decay with a = 0.8 and lambda = 4, the forms of an explicit energy (EqM-E), and descent with Nesterov's
look-ahead of mu = 0.3 as the sampler.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from robustgen.checks import check_integers, check_numbers, check_positive
from robustgen.generative.base import GenerativeModel
from robustgen.generative.diffusion.unet import UNet
from robustgen.generative.energy.langevin import check_reach
from robustgen.generative.energy.noise_free import descend
from robustgen.training import Batch

__all__ = ["FORMS", "EquilibriumMatching", "truncated_decay"]

FORMS = ("dot", "l2", "implicit")


def truncated_decay(gamma: Tensor, a: float, multiplier: float) -> Tensor:
    """c(gamma) = multiplier up to gamma = a, from there on a line down to 0 at gamma = 1.

    >>> truncated_decay(torch.tensor([0.0, 0.8, 0.9, 1.0]), 0.8, 4.0)
    tensor([4.0000, 4.0000, 2.0000, 0.0000])
    """
    return multiplier * ((1 - gamma) / (1 - a)).clamp(max=1)


class EquilibriumMatching(GenerativeModel):
    """grad g(u_gamma) ~ (eps - u) c(gamma) along u_gamma = gamma u + (1 - gamma) eps, with u = 2 x - 1, eps ~ N(0, I).

    The gradient points from data to noise and vanishes at data, whatever gamma is, which g does not see: descent on g,
    of any number of steps, ends at images. E(x) = g(u) is low where descent ends, and a score for that; it is no log
    density, so that there is no ``log_prob``. With a U-Net f that is told nothing, g is

    * form="dot": u . f(u), which the paper found better than
    * form="l2": -|f(u)|^2 / 2;
    * form="implicit": f itself is the gradient. Trained in half the time; there is no ``energy``.

    Args:
        shape: (C, H, W).
        width, levels: of the :class:`UNet`.
        form: see above.
        decay: a, where c begins to fall.
        multiplier: lambda, c up to there.
        step_size: of descent; the paper has 0.0017 to 0.003 in 250 steps. step_size * multiplier / (1 - decay) >= 2
            would overshoot data.
        sample_steps: from noise to a sample.
        momentum: mu in [0, 1), how far ahead the gradient of a step is taken; 0: plain gradient descent.

    Raises:
        TypeError, ValueError: an argument that is out of range; ``energy`` of the implicit form.
        FloatingPointError: in ``sample``, chains that leave the data's range for good.

    >>> model = EquilibriumMatching((1, 8, 8), width=4, sample_steps=3).eval()
    >>> model.energy(model.sample(2)).shape
    torch.Size([2])
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        width: int = 24,
        levels: int = 3,
        form: str = "dot",
        decay: float = 0.8,
        multiplier: float = 4.0,
        step_size: float = 0.01,
        sample_steps: int = 100,
        momentum: float = 0.3,
    ) -> None:
        super().__init__(shape)
        if form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
        check_integers(width=width, levels=levels, sample_steps=sample_steps)
        check_positive(multiplier=multiplier, step_size=step_size)
        check_numbers(decay=decay, momentum=momentum)
        for name, value in {"decay": decay, "momentum": momentum}.items():
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), got {value}")
        if step_size * multiplier / (1 - decay) >= 2:
            raise ValueError(
                f"step_size={step_size} overshoots data and leaves them for good: take less than "
                f"2 (1 - decay) / multiplier = {2 * (1 - decay) / multiplier:g}"
            )
        self.width, self.levels, self.form, self.decay = width, levels, form, decay
        self.multiplier, self.step_size = multiplier, step_size
        self.sample_steps, self.momentum = sample_steps, momentum
        self.network = UNet(self.shape[0], self.shape[0], width, levels)
        self.network.out.reset_parameters()  # at f = 0, where a U-Net begins, -|f|^2 / 2 has no gradient

    def _field(self, u: Tensor) -> Tensor:
        field: Tensor = self.network(u, u.new_zeros(len(u)))
        return field

    def _energy(self, u: Tensor) -> Tensor:
        field = self._field(u)
        return ((u * field) if self.form == "dot" else -field.square() / 2).flatten(1).sum(1)

    def energy(self, x: Tensor) -> Tensor:
        """E (N,) of x (N, *shape) in [0, 1]; TypeError for the implicit form."""
        if self.form == "implicit":
            raise TypeError("form='implicit' has a gradient without an energy: train form='dot' or 'l2'")
        return self._energy(2 * x - 1)

    def _gradient(self, u: Tensor) -> Tensor:
        """grad g at u, with a graph where gradients are enabled."""
        if self.form == "implicit":
            return self._field(u)
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self._energy(u).sum(), u, create_graph=graph)
        return gradient

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        u, eps = 2 * batch.x - 1, torch.randn_like(batch.x)
        gamma = torch.rand(len(u), 1, 1, 1, device=u.device, dtype=u.dtype)
        target = (eps - u) * truncated_decay(gamma, self.decay, self.multiplier)
        return {"loss": F.mse_loss(self._gradient(gamma * u + (1 - gamma) * eps), target)}

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        options: dict[str, Any] = {"generator": generator, "device": self.device, "dtype": self.dtype}
        u = torch.randn(n, *self.shape, **options)
        u = descend(self._gradient, u, self.sample_steps, self.step_size, momentum=self.momentum)
        return ((check_reach(u, 1.0, "take a smaller step_size, or train longer") + 1) / 2).clamp(0, 1)
