"""The set an attack searches: the eps-ball around each input, cut with the bounds of the input space."""

import torch
from torch import Tensor

from robustgen import counter_rng

__all__ = ["Ball", "perturbation_norm"]


def perturbation_norm(delta: Tensor, norm: str) -> Tensor:
    """Norm of each perturbation (N, ...), float64 (N,)."""
    flat = delta.detach().double().flatten(1)
    if not flat.shape[1]:
        return flat.new_zeros(len(flat))
    return torch.linalg.vector_norm(flat, ord={"Linf": float("inf"), "L2": 2}[norm], dim=1)


def _column(v: Tensor, like: Tensor) -> Tensor:
    return v.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


class Ball:
    """Balls of radius ``eps`` (N,) around ``x`` (N, ...) inside ``bounds``; rows are addressed by index tensors ``i``.

    What :meth:`project` returns is inside in exact arithmetic, not merely up to rounding: limits are rounded inwards.
    """

    def __init__(self, x: Tensor, eps: Tensor, norm: str, bounds: tuple[float, float]) -> None:
        self.x, self.norm, self.bounds, self.eps = x, norm, bounds, eps
        if norm == "Linf":
            self.low, self.high = (_limit(x, eps, sign).clamp(*bounds) for sign in (-1, 1))
        else:  # x + delta is rounded element by element: leave room for it
            ulp = torch.finfo(x.dtype).eps
            slack = ulp * max(map(abs, bounds)) * x[:1].numel() ** 0.5
            self.radius = (eps.double() * (1 - 4 * ulp) - slack).clamp(min=0)

    def project(self, i: Tensor, z: Tensor) -> Tensor:
        """``z`` (n, ...) moved into the set: L2 first into the ball, then into the bounds, which stays inside it."""
        if self.norm == "Linf":
            return torch.minimum(torch.maximum(z, self.low[i]), self.high[i])
        delta = z - self.x[i]
        factor = (self.radius[i] / perturbation_norm(delta, "L2").clamp(min=1e-300)).clamp(max=1)
        return (self.x[i] + delta * _column(factor, delta)).clamp(*self.bounds)

    def step(self, gradient: Tensor, size: Tensor) -> Tensor:
        """The step of norm ``size`` (n,) that raises a loss with this gradient most; zero where the gradient is."""
        if self.norm == "Linf":
            return _column(size, gradient) * gradient.sign()
        return self._of_length(gradient, size)

    def uniform(self, i: Tensor, seed: int, ids: Tensor, stream: tuple[int, ...]) -> Tensor:
        """A point drawn uniformly in the ball (then clamped to the bounds), by counter-based numbers."""
        shape, dtype = tuple(self.x.shape[1:]), self.x.dtype
        if self.norm == "Linf":
            delta = 2 * counter_rng.uniform(seed, ids, shape, (*stream, 0), dtype) - 1
            return self.project(i, self.x[i] + delta * _column(self.eps[i], delta))
        direction = counter_rng.normal(seed, ids, shape, (*stream, 0), dtype)
        radius = counter_rng.uniform(seed, ids, (), (*stream, 1), torch.float64) ** (1 / max(1, direction[:1].numel()))
        return self.project(i, self.x[i] + self._of_length(direction, self.eps[i].double() * radius))

    def gaussian(self, i: Tensor, seed: int, ids: Tensor, stream: tuple[int, ...]) -> Tensor:
        """Gaussian noise of expected norm about eps (std eps for Linf, eps / sqrt(D) for L2), cut to the ball."""
        delta = counter_rng.normal(seed, ids, tuple(self.x.shape[1:]), (*stream, 0), self.x.dtype)
        std = self.eps[i] if self.norm == "Linf" else self.eps[i] / max(1, delta[:1].numel()) ** 0.5
        return self.project(i, self.x[i] + delta * _column(std, delta))

    def _of_length(self, direction: Tensor, length: Tensor) -> Tensor:
        """``direction`` scaled to L2 norm ``length`` (n,), in float64 on the way: gradients may be tiny."""
        scale = length.double() / perturbation_norm(direction, "L2").clamp(min=1e-300)
        return (direction.double() * scale.reshape(-1, *[1] * (direction.ndim - 1))).to(direction.dtype)


def _limit(x: Tensor, eps: Tensor, sign: int) -> Tensor:
    """x + sign * eps in the dtype of ``x``, rounded towards x where rounding would leave the ball."""
    eps = eps.double().reshape(-1, *[1] * (x.ndim - 1))
    limit = (x.double() + sign * eps).to(x.dtype)
    outside = sign * (limit.double() - x.double()) > eps
    return torch.where(outside, torch.nextafter(limit, x), limit)
