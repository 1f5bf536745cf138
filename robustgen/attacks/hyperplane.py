"""The shortest way from a point of a box to a hyperplane, inside the box.

Croce and Hein, "Minimally distorted Adversarial Examples with a Fast Adaptive Boundary Attack", 2020, section 2 (the
problem) and appendix (its solutions). All elements move towards the hyperplane, each until its bound stops it:

    L2: by t * |w_j|,   Linf: by t, with the one t that arrives,   L1: those of largest |w_j| first and all the way.
"""

import torch
from torch import Tensor

__all__ = ["step_to_hyperplane"]


def step_to_hyperplane(z: Tensor, normal: Tensor, gap: Tensor, norm: str, bounds: tuple[float, float]) -> Tensor:
    """The step d of least norm with normal . d = gap and z + d in the bounds; exact, by one sort of each row.

    Where no point of the box is on the hyperplane, d leads to the corner that comes nearest to it. Elements without
    influence do not move.

    Args:
        z: (n, ...) in the bounds.
        normal: (n, ...), of any length; where all of it is zero so is d.
        gap: (n,), of either sign.
        norm: "Linf", "L2" or "L1".

    Returns:
        float64 (n, ...).

    >>> z, normal, gap = torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, -2.0]]), torch.tensor([0.75])
    >>> for norm in ("Linf", "L2", "L1"):
    ...     print([round(d, 3) for d in step_to_hyperplane(z, normal, gap, norm, (0.0, 1.0))[0].tolist()])
    [0.25, -0.25]
    [0.15, -0.3]
    [0.0, -0.375]
    """
    slope, here = normal.double().flatten(1), z.double().flatten(1)
    steepest = slope.abs().amax(1, keepdim=True).clamp(min=1e-300)
    weight, need = slope.abs() / steepest, gap.double().abs()[:, None] / steepest
    way = slope.sign() * gap.double().sign()[:, None]
    low, high = (torch.tensor(b, dtype=z.dtype, device=z.device).double() for b in bounds)
    room = torch.where(way > 0, high - here, here - low).clamp(min=0)
    room = torch.where((way != 0) & (weight > _NONE), room, 0.0)
    weight = weight.clamp(min=_NONE)
    if norm == "L1":
        size = _one_by_one(weight, room, need)
    else:
        size = _together(weight, weight if norm == "L2" else torch.ones_like(weight), room, need)
    return (way * size).reshape(z.shape)


_NONE = 1e-100  # of the steepest slope: quotients by less would overflow


def _together(weight: Tensor, speed: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """min(t * speed, room), (n, D), with the t at which its weighted sum is ``need`` (n, 1).

    Over t the sum is piecewise linear and rising, with a break where an element is stopped.
    """
    breaks, order = (room / speed).sort(1)
    stopped = (weight * room).gather(1, order).cumsum(1)  # the part of the sum that no longer rises, after each break
    rate = (weight * speed).gather(1, order).flip(1).cumsum(1).flip(1)  # of the other part, before each break
    after = torch.nn.functional.pad(rate[:, 1:], (0, 1))
    piece = (stopped + breaks * after < need).sum(1, keepdim=True)  # the first break that is far enough
    last = piece.clamp(max=weight.shape[1] - 1)
    before = torch.nn.functional.pad(stopped[:, :-1], (1, 0)).gather(1, last)
    t = ((need - before) / rate.gather(1, last)).clamp(min=0)
    return torch.where(piece > last, room, torch.minimum(t * speed, room))


def _one_by_one(weight: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """The elements of largest weight filled up to their room until the weighted sum is ``need`` (n, 1), (n, D)."""
    weight, order = weight.sort(dim=1, descending=True, stable=True)
    room = room.gather(1, order)
    gain = weight * room
    left = (need - (gain.cumsum(1) - gain)).clamp(min=0)
    return torch.zeros_like(room).scatter(1, order, torch.minimum(room, left / weight))
