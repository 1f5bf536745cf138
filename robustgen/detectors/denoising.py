"""What detectors over a denoiser share: its noise levels, and noise that is a function of the image."""

from typing import Any

import torch
from torch import Tensor

from robustgen.counter_rng import content_ids, normal

__all__ = ["check_denoiser", "keyed_noise", "levels_down", "step_down"]

_STREAM, _RHO = 71, 7.0


def check_denoiser(model: object, detector: str) -> None:
    """TypeError unless ``model`` takes noise of known levels away; ``detector`` is who needs it."""
    if not all(hasattr(model, name) for name in ("denoise", "sigma_min", "sigma_max")):
        raise TypeError(
            f"{detector} needs a model that denoises, DDPM, EDM or Denoiser; {type(model).__name__} does not"
        )


def levels_down(model: Any, sigma: float, steps: int) -> list[float]:
    """``steps`` levels of noise from ``sigma`` to the model's least, and 0: denser where there is little noise.

    Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", NeurIPS 2022, equation 5.
    """
    high, low = sigma ** (1 / _RHO), min(model.sigma_min, sigma) ** (1 / _RHO)
    return [*torch.linspace(high, low, steps, dtype=torch.float64).pow(_RHO).clamp(max=sigma).tolist(), 0.0]


def step_down(model: Any, v: Tensor, sigma: float, lower: float) -> Tensor:
    """Images v with noise ``sigma`` as they are with ``lower``, without fresh noise: a step of DDIM."""
    expected = model.denoise(v, sigma)
    result: Tensor = expected + (v - expected) * (lower / sigma)
    return result


def keyed_noise(x: Tensor, draw: int) -> Tensor:
    """Standard normal numbers of the shape of x (N, ...), by what each image looks like at 8 bits."""
    return normal(0, content_ids(x), tuple(x.shape[1:]), (_STREAM, draw), x.dtype)
