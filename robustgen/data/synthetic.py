"""Data that is drawn: images of pure noise, and points on spheres, whose manifold is known exactly."""

import torch
from torch import Tensor

from robustgen.counter_rng import integers, normal
from robustgen.data.array import ArrayDataset

__all__ = ["noise", "spheres"]


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


def spheres(n: int, dim: int = 500, inner: float = 1.0, outer: float = 1.3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """n points drawn uniformly on two spheres about the origin, each sphere with equal probability.

    The data set of Gilmer, Metz, Faghri, Schoenholz, Raghu, Wattenberg and Goodfellow, "Adversarial Spheres", 2018,
    section 3. A point divided by its norm says nothing of its label, and the two classes are ``outer - inner`` apart.
    Point i depends on (seed, i) alone.

    It is no :class:`ArrayDataset`, which holds values in [0, 1]. Attacks need ``bounds=(-outer, outer)``.

    Args:
        n: how many points.
        dim: of the space; the spheres have one dimension less.
        inner, outer: their radii.
        seed: of everything random.

    Returns:
        x float32 (n, dim) with norm ``inner`` or ``outer``, and y int64 (n,): 0 on the inner sphere, 1 on the outer.

    Raises:
        ValueError: a negative n, fewer than two dimensions, or radii that are not 0 < inner < outer < inf.

    >>> x, y = spheres(4, dim=3)
    >>> y, x.norm(dim=1)
    (tensor([1, 0, 1, 1]), tensor([1.3000, 1.0000, 1.3000, 1.3000]))
    """
    if n < 0 or dim < 2:
        raise ValueError(f"spheres needs n >= 0 points in dim >= 2 dimensions, got n={n} and dim={dim}")
    if not 0 < inner < outer < float("inf"):
        raise ValueError(f"the radii must be finite, 0 < inner < outer; got {inner} and {outer}")
    x, y = torch.empty(n, dim), torch.empty(n, dtype=torch.int64)
    for ids in torch.arange(n).split(1024):  # the generator works in int64: not all points at once
        y[ids] = integers(seed, ids, (), 2, stream=(1,))
        radius = torch.tensor([inner, outer], dtype=torch.float64)[y[ids]]
        direction = normal(seed, ids, (dim,), stream=(0,), dtype=torch.float64)
        x[ids] = (direction * (radius / direction.norm(dim=1))[:, None]).float()
    return x, y
