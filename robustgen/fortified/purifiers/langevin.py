"""A short chain on an energy, from the image itself: what is unlikely goes first.

Hill, Mitchell and Zhu, "Stochastic Security: Adversarial Defense Using Long-Run Dynamics of Energy-Based Models", ICLR
2021.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from robustgen.checks import check_numbers, check_positive
from robustgen.fortified.purifiers.base import Purifier, chain_length, gradient_of
from robustgen.generative import EnergyModel, GenerativeModel
from robustgen.generative.energy.langevin import reflect

__all__ = ["LangevinChain"]


class LangevinChain(Purifier):
    """x <- x - a grad E(x) + noise * sqrt(2 a) e, e ~ N(0, I), ``depth`` times, each folded into [0, 1] at the walls.

    Gradients are exact: through each step by a second derivative of the energy.

    Args:
        model: with an ``energy(x)`` (N,) that each image has alone.
        step_size: a; None: that of an :class:`~robustgen.generative.EnergyModel`.
        noise: a factor of the noise; 0 is descent, for an energy that is no log density.

    Raises:
        TypeError: a model without an energy.
        ValueError: a number out of range, or no step size.

    >>> from robustgen.generative import EnergyModel
    >>> chain = LangevinChain(EnergyModel((1, 8, 8), width=4, buffer_size=1).eval()).chain(3)
    >>> len(chain), chain[0](torch.rand(2, 1, 8, 8)).shape
    (3, torch.Size([2, 1, 8, 8]))
    """

    def __init__(self, model: GenerativeModel, step_size: float | None = None, noise: float = 1.0) -> None:
        super().__init__(model)
        if not hasattr(model, "energy"):
            raise TypeError(f"{type(model).__name__} has no energy: there is no chain on it")
        if step_size is None:
            if not isinstance(model, EnergyModel):
                raise ValueError(f"a chain on {type(model).__name__} needs a step size: LangevinChain(model, 0.01)")
            step_size = model.step_size
        check_positive(step_size=step_size)
        check_numbers(noise=noise)
        if not 0 <= noise < math.inf:
            raise ValueError(f"noise must be a finite number >= 0, got {noise}")
        self.step_size, self.noise = step_size, noise
        self.config = {"step_size": step_size, "noise": noise}

    def chain(self, depth: int, steps: int | None = None) -> Sequence[Callable[[Tensor], Tensor]]:
        """``depth`` steps; where ``steps`` are fewer, as much longer: the drift and the noise are as large in all."""
        steps = chain_length(depth, steps)
        size = self.step_size * depth / steps

        def step(x: Tensor) -> Tensor:
            moved = x - size * gradient_of(self.model.energy, x)
            return reflect(moved + self.noise * math.sqrt(2 * size) * torch.randn_like(x))

        return [step] * steps
