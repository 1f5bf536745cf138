"""Two concentric spheres: data whose manifold is known exactly, so that on and off it can be told apart."""

import torch
from torch import Tensor

from robustgen.counter_rng import integers, normal

__all__ = ["spheres"]


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
