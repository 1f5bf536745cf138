"""Images of pure noise: the plainest out-of-distribution inputs."""

import torch
from torch import Tensor

from robustgen.counter_rng import integers, normal
from robustgen.data.array import ArrayDataset

__all__ = ["noise"]


def noise(n: int, shape: tuple[int, int, int], kind: str = "uniform", seed: int = 0) -> ArrayDataset:
    """n unlabelled uint8 images (n, \\*shape) of independent pixels; image i depends on (seed, i) alone.

    Args:
        shape: (C, H, W).
        kind: "uniform" over 0..255, or "gaussian": mean 0.5, standard deviation 1, clipped to [0, 1], as in Liang, Li
            and Srikant, "Enhancing the reliability of out-of-distribution image detection", ICLR 2018, section 4.3.

    Raises:
        ValueError: another kind, a shape that is not (C, H, W), or a negative n.

    >>> noise(5, (3, 8, 8))
    ArrayDataset('noise/uniform', 5 x (3, 8, 8) uint8, no labels)
    """
    if kind not in ("uniform", "gaussian"):
        raise ValueError(f"unknown kind of noise {kind!r}; known: uniform, gaussian")
    if n < 0 or len(shape) != 3:
        raise ValueError(f"noise needs n >= 0 and a shape (C, H, W), got {n} and {tuple(shape)}")
    draw = _uniform if kind == "uniform" else _gaussian
    x = torch.empty((n, *shape), dtype=torch.uint8)
    for ids in torch.arange(n).split(1024):  # the generator works in int64: not all images at once
        x[ids] = draw(seed, ids, shape).to(torch.uint8)
    return ArrayDataset(x, name=f"noise/{kind}")


def _uniform(seed: int, ids: Tensor, shape: tuple[int, ...]) -> Tensor:
    return integers(seed, ids, shape, 256)


def _gaussian(seed: int, ids: Tensor, shape: tuple[int, ...]) -> Tensor:
    return (normal(seed, ids, shape) + 0.5).clamp_(0, 1).mul_(255).round_()
