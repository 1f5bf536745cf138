"""The set an attack searches: the eps-ball around each input, cut with the bounds of the input space.

For L1 a projection on the ball and then on the bounds is not the projection on their intersection, and attacks that
take it for one are weaker: Croce and Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers",
2021, section 2. The step in L1 spreads its length over the steepest coordinates: Tramer and Boneh, "Adversarial
Training and Robustness for Multiple Perturbations", 2019 (SLIDE, on the steepest 1 %); those that are at a bound make
room for the next: Maini, Wong and Kolter, "Adversarial Robustness Against the Union of Multiple Perturbation Models",
2020.
"""

import math

import torch
from torch import Tensor

from robustgen import counter_rng

__all__ = ["Ball", "column", "perturbation_norm"]


def perturbation_norm(delta: Tensor, norm: str) -> Tensor:
    """Norm of each perturbation (N, ...), float64 (N,); "L0": how many elements are not zero.

    Elements, not pixels: a pixel of three channels counts up to three times, and any input shape has elements.
    """
    flat = delta.detach().double().flatten(1)
    if norm == "L0":
        return flat.count_nonzero(1).double()
    if not flat.shape[1]:
        return flat.new_zeros(len(flat))
    return torch.linalg.vector_norm(flat, ord={"Linf": float("inf"), "L2": 2, "L1": 1}[norm], dim=1)


def column(v: Tensor, like: Tensor) -> Tensor:
    """``v`` (n,) in the dtype of ``like`` (n, ...), shaped to multiply it."""
    return v.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


class Ball:
    """Balls of radius ``eps`` (N,) around ``x`` (N, ...) inside ``bounds``; rows are addressed by index tensors ``i``.

    What :meth:`project` returns is inside in exact arithmetic, not merely up to rounding: limits are rounded inwards.

    ``reach``, float64 (N, ...) or None: how far each element by itself may go, at most ``eps`` for Linf; for L2 and L1
    it is 0 where an element may not move and infinite elsewhere.
    """

    reach: Tensor | None = None

    def __init__(
        self, x: Tensor, eps: Tensor, norm: str, bounds: tuple[float, float], reach: Tensor | None = None
    ) -> None:
        self.x, self.norm, self.bounds, self.eps, self.reach = x, norm, bounds, eps, reach
        if norm == "Linf":
            limit = column(eps.double(), x.double()) if reach is None else reach
            self.low, self.high = (_limit(x, limit, sign).clamp(*bounds) for sign in (-1, 1))
        elif norm == "L1":  # elements are rounded towards x; the sum of their sizes is not exact
            share = 4 * torch.finfo(x.dtype).eps + 2.0**-51 * x[:1].numel()
            self.radius = (eps.double() * (1 - share)).clamp(min=0)
        else:  # x + delta is rounded element by element: leave room for it
            ulp = torch.finfo(x.dtype).eps
            slack = ulp * max(map(abs, bounds)) * x[:1].numel() ** 0.5
            self.radius = (eps.double() * (1 - 4 * ulp) - slack).clamp(min=0)

    def project(self, i: Tensor, z: Tensor) -> Tensor:
        """``z`` (n, ...) moved into the set: to its nearest point; for L2 into the ball, then into the bounds."""
        if self.norm == "Linf":
            return torch.minimum(torch.maximum(z, self.low[i]), self.high[i])
        if self.reach is not None:
            z = torch.where(self.reach[i] > 0, z, self.x[i])
        if self.norm == "L1":
            x = self.x[i]
            delta = (z.double() - x.double()).flatten(1)
            delta = _nearest_l1(delta, self._room(x, delta.reshape(x.shape)).flatten(1), self.radius[i])
            return _add_inwards(x, delta.reshape(x.shape)).clamp(*self.bounds)
        delta = z - self.x[i]
        factor = (self.radius[i] / perturbation_norm(delta, "L2").clamp(min=1e-300)).clamp(max=1)
        return (self.x[i] + delta * column(factor, delta)).clamp(*self.bounds)

    def step(
        self,
        i: Tensor,
        gradient: Tensor,
        size: Tensor,
        *,
        at: Tensor | None = None,
        spread: Tensor | float | None = None,
    ) -> Tensor:
        """The step of norm ``size`` (n,) that raises a loss with this gradient most; zero where the gradient is.

        Linf: an element whose ``reach`` is less than eps steps less, in proportion.

        L1: each of the steepest coordinates is pushed by ``size / spread``, as many of them as it takes for what the
        bounds let through to have length ``size``. One that is at a bound is pushed too but does not count: the
        projection, which shrinks all coordinates alike, would else pull it off again.

        Args:
            at: (n, ...) where the step begins, for L1: without it no coordinate counts as stopped by the bounds.
            spread: for L1, over how many coordinates at least, a number >= 1 or (n,); None means 1 % of them.
        """
        if self.norm == "Linf":
            step = column(size, gradient) * gradient.sign()
            if self.reach is None:
                return step
            share = self.reach[i] / column(self.eps[i].double(), self.reach).clamp(min=1e-300)
            return step * share.to(step.dtype)
        if self.norm == "L1":
            return self._sparse(gradient, size.double(), at, spread)
        return self._of_length(gradient, size)

    def _sparse(self, gradient: Tensor, size: Tensor, at: Tensor | None, spread: Tensor | float | None) -> Tensor:
        slope = gradient.flatten(1)
        spread = max(1, math.ceil(0.01 * slope.shape[1])) if spread is None else spread
        most = (size / spread)[:, None].expand(slope.shape)  # of each coordinate: maxima are per sample, never shared
        usable = most if at is None else torch.minimum(most, self._room(at, gradient).flatten(1))
        order = slope.abs().argsort(dim=1, descending=True, stable=True)
        usable = usable.gather(1, order)
        left = (size[:, None] - (usable.cumsum(1) - usable)).clamp(min=0)
        push = torch.where(left >= usable, most, left) * (left > 0)
        return (
            (torch.zeros_like(push).scatter(1, order, push) * slope.sign()).to(gradient.dtype).reshape(gradient.shape)
        )

    def _room(self, z: Tensor, direction: Tensor) -> Tensor:
        """How far each coordinate of ``z`` is from the bound on the side of the sign of ``direction``, float64."""
        low, high = (torch.tensor(b, dtype=z.dtype, device=z.device).double() for b in self.bounds)
        return torch.where(direction > 0, high - z.double(), z.double() - low).clamp(min=0)

    def uniform(self, i: Tensor, seed: int, ids: Tensor, stream: tuple[int, ...], *, in_bounds: bool = True) -> Tensor:
        """A point drawn uniformly in the ball, by counter-based numbers, and then clamped to the bounds, if at all."""
        shape, dtype = tuple(self.x.shape[1:]), self.x.dtype
        inside = self.project if in_bounds else lambda i, z: z
        if self.norm == "Linf":
            delta = 2 * counter_rng.uniform(seed, ids, shape, (*stream, 0), dtype) - 1
            radius = column(self.eps[i], delta) if self.reach is None else self.reach[i].to(dtype)
            return inside(i, self.x[i] + delta * radius)
        free = 1.0 if self.reach is None else (self.reach[i] > 0).to(dtype)
        if self.norm == "L1":  # exponentials over their sum are uniform on the simplex
            size = -torch.log1p(-counter_rng.uniform(seed, ids, shape, (*stream, 0), torch.float64))
            size = size * free
            sign = 2 * counter_rng.integers(seed, ids, shape, 2, (*stream, 2)) - 1
            radius = counter_rng.uniform(seed, ids, (), (*stream, 1), torch.float64) ** (1 / max(1, size[:1].numel()))
            scale = self.eps[i].double() * radius / perturbation_norm(size, "L1").clamp(min=1e-300)
            return inside(i, self.x[i] + (sign * size * column(scale, size)).to(dtype))
        direction = free * counter_rng.normal(seed, ids, shape, (*stream, 0), dtype)
        radius = counter_rng.uniform(seed, ids, (), (*stream, 1), torch.float64) ** (1 / max(1, direction[:1].numel()))
        return inside(i, self.x[i] + self._of_length(direction, self.eps[i].double() * radius))

    def gaussian(self, i: Tensor, seed: int, ids: Tensor, stream: tuple[int, ...]) -> Tensor:
        """Gaussian noise of expected norm about eps, projected on the ball.

        Its std is eps for Linf, eps / sqrt(D) for L2, eps * sqrt(pi / 2) / D for L1.
        """
        delta = counter_rng.normal(seed, ids, tuple(self.x.shape[1:]), (*stream, 0), self.x.dtype)
        d = max(1, delta[:1].numel())
        std = self.eps[i] * {"Linf": 1.0, "L2": d**-0.5, "L1": (math.pi / 2) ** 0.5 / d}[self.norm]
        return self.project(i, self.x[i] + delta * column(std, delta))

    def _of_length(self, direction: Tensor, length: Tensor) -> Tensor:
        """``direction`` scaled to L2 norm ``length`` (n,), in float64 on the way: gradients may be tiny."""
        scale = length.double() / perturbation_norm(direction, "L2").clamp(min=1e-300)
        return (direction.double() * scale.reshape(-1, *[1] * (direction.ndim - 1))).to(direction.dtype)


def _limit(x: Tensor, eps: Tensor, sign: int) -> Tensor:
    """x + sign * eps in the dtype of ``x``, rounded towards x where rounding would leave the ball; eps is float64."""
    limit = (x.double() + sign * eps).to(x.dtype)
    outside = sign * (limit.double() - x.double()) > eps
    return torch.where(outside, torch.nextafter(limit, x), limit)


def _add_inwards(x: Tensor, delta: Tensor) -> Tensor:
    """x + delta in the dtype of ``x``, rounded towards x where rounding would lengthen ``delta`` (float64)."""
    z = (x.double() + delta).to(x.dtype)
    longer = (z.double() - x.double()).abs() > delta.abs()
    return torch.where(longer, torch.nextafter(z, x), z)


def _nearest_l1(delta: Tensor, room: Tensor, radius: Tensor) -> Tensor:
    """The point nearest to ``delta`` (n, D) of L1 norm at most ``radius`` (n,), no element larger than its ``room``.

    It is sign(delta) * clamp(|delta| - t, 0, room) with the smallest t >= 0 that makes its norm at most the radius (the
    Lagrange conditions; Croce and Hein, 2021, section 2). Over t the norm is piecewise linear and falling, with
    breaks where an element leaves its bound (|delta| - room) and where it reaches zero (|delta|): it is summed up from
    the largest break down, and t lies in the piece in which the sum passes the radius.
    """
    if not delta.shape[1]:
        return delta
    size, radius = delta.abs(), radius[:, None]
    breaks, order = torch.cat([size, (size - room).clamp(min=0)], 1).sort(1, descending=True)
    turn = torch.where(order < size.shape[1], 1.0, -1.0).to(size.dtype)
    moving = turn.cumsum(1)  # elements strictly between zero and their bound, below each break
    norm = torch.nn.functional.pad((moving[:, :-1] * -breaks.diff(dim=1)).cumsum(1), (1, 0))
    piece = (norm < radius).sum(1, keepdim=True)  # the first break at which the norm is no longer below the radius
    at = piece.clamp(max=norm.shape[1] - 1)
    excess = norm.gather(1, at) - radius
    t = breaks.gather(1, at) + excess / moving.gather(1, (at - 1).clamp(min=0)).clamp(min=1)
    t = torch.where(piece == norm.shape[1], 0.0, t)
    nearest = torch.minimum((size - t).clamp(min=0), room)
    total = nearest.sum(1, keepdim=True)
    # far-off points leave rounding errors of their own size in t
    return delta.sign() * nearest * (radius / total.clamp(min=1e-300)).clamp(max=1)
