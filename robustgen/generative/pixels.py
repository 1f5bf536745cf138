"""Pixels as a discrete model sees them: a few equally spaced levels in [0, 1], and how other values get there."""

import math
from typing import Any

import torch
from torch import Tensor

from robustgen.checks import check_integers
from robustgen.counter_rng import content_ids, uniform

__all__ = ["QUANTIZATIONS", "Pixels", "bits_per_dim"]

QUANTIZATIONS = (None, "nearest", "stochastic")
_HALF_STEP = 0.5 / 255 + 1e-6  # 8-bit files cannot hold k / 16 more exactly


class Pixels:
    """``levels`` equally spaced values in [0, 1]: 2 for binary images, 256 for 8-bit ones.

    Args:
        levels: at least 2.
        quantization: what is done with values between two levels. None: refused (half a step of an 8-bit file is
            rounding, not a value in between). "nearest": rounded, for two levels a threshold at 0.5. "stochastic":
            one of the two neighbours at random, with x as the expected value; for two levels Bernoulli(x), the dynamic
            binarization of Salakhutdinov and Murray, "On the Quantitative Analysis of Deep Belief Networks", 2008.

    Raises:
        ValueError: an argument out of range.

    >>> Pixels(levels=3, quantization="nearest")(torch.tensor([[0.0, 0.3, 0.9]]))
    tensor([[0.0000, 0.5000, 1.0000]])
    >>> Pixels(levels=2)(torch.tensor([[0.3]]))
    Traceback (most recent call last):
    ValueError: binary images are needed, x has values between 0 and 1: say how to binarise them, quantization=...
    """

    def __init__(self, levels: int = 256, quantization: str | None = None) -> None:
        check_integers(2, levels=levels)
        if quantization not in QUANTIZATIONS:
            raise ValueError(f"quantization must be None, 'nearest' or 'stochastic', got {quantization!r}")
        self.levels, self.quantization = levels, quantization

    def __call__(self, x: Tensor, fresh: bool = False, draw: int = 0) -> Tensor:
        """x (N, ...) in [0, 1] moved onto the levels, values still in [0, 1]; gradients pass straight through.

        Args:
            fresh: draw from torch's global generator, as training does at each step. Otherwise what an image draws
                depends on its own 8-bit pixels alone: not on its batch, nor on when it is asked for.
            draw: which of the fixed draws of "stochastic".

        Raises:
            ValueError: values between levels without a ``quantization``.
        """
        steps = self.levels - 1
        if self.quantization == "stochastic":
            stream = (7, draw) if draw else (7,)
            u = torch.rand_like(x) if fresh else uniform(0, content_ids(x), x.shape[1:], stream, x.dtype)
            moved = (x.detach() * steps + u).floor().clamp(max=steps) / steps
        else:
            moved = (x.detach() * steps).round() / steps
            if self.quantization is None and x.numel() and bool((moved - x.detach()).abs().max() > _HALF_STEP):
                raise ValueError(self._complaint())
        return x + (moved - x).detach() if x.requires_grad else moved

    def describe(self) -> dict[str, Any]:
        """JSON-able."""
        return {"levels": self.levels, "quantization": self.quantization}

    def _complaint(self) -> str:
        if self.levels == 2:
            return (
                "binary images are needed, x has values between 0 and 1: say how to binarise them, quantization="
                "'stochastic' (Bernoulli(x)) or 'nearest' (threshold 0.5)"
            )
        return (
            f"x has values between the {self.levels} levels of the model: round them, or say how to, quantization="
            "'nearest' or 'stochastic'"
        )


def bits_per_dim(nats: Tensor, dimensions: int) -> Tensor:
    """Nats of a whole image as bits a dimension."""
    return nats / (dimensions * math.log(2))
