"""Square Attack: random search with square-shaped changes, from the model's scores alone.

Andriushchenko, Croce, Flammarion and Hein, "Square Attack: a query-efficient black-box adversarial attack via random
search", 2020: algorithm 1 (the search), algorithm 2 (Linf proposals), algorithm 3 and equation 2 (L2 proposals),
section 4 (the share of changed pixels and its schedule).

L1: Croce and Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers", 2021, section 4: the L2
proposals with lengths for energies and steeper hills, projected on the ball and the bounds at once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from robustgen import counter_rng
from robustgen.attacks.ball import Ball, perturbation_norm
from robustgen.attacks.base import Attack
from robustgen.attacks.losses import margin
from robustgen.attacks.problem import Problem
from robustgen.attacks.queries import Search

__all__ = ["Square"]

_Draw = Callable[[int], Tensor]  # count -> uniform numbers of one step, float64 (n, count)
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of the share, in a search of 10000 queries
_POWER = {"L2": 2, "L1": 1}  # energies are sums of this power
_DECAY = {"L2": 2, "L1": 4}  # of the terms of a hill: that of L1 is little more than its peak


@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Change a random window of the input; keep the change where the margin falls. It needs no gradient.

    Windows are drawn for each sample on its own. The last two dimensions of an input are its height and width, all
    before them its channels: (N, C, H, W) is an image; (N, T, E) an image of one channel, in which a window is a run
    of steps times a run of embedding units; (N, D) an image of one row, in which it is a run of units. A window is as
    square as fits.

    Args:
        n_queries: points tried for each sample in one restart, the start included. The windows shrink on a schedule
            stretched to this number, so that a search of 100 queries is not the beginning of one of 5000.
        p_init: share of the pixels that the first windows cover, in (0, 1].
        restarts: searches, each on the samples that still stand.

    The others are those of :class:`~robustgen.attacks.Attack`. Targeted, it lowers the margin too, where the paper
    lowers the cross-entropy: the margin is what decides.

    >>> model = lambda x: torch.stack([5 * x.sum(1), 16 - 5 * x.sum(1)], 1).round()  # its gradient is zero everywhere
    >>> result = Square(eps=0.35, n_queries=50).run(model, torch.full((1, 4), 0.7), torch.tensor([0]))
    >>> result.success.item(), result.backwards.item()
    (True, 0)
    """

    norms = ("Linf", "L2", "L1")

    n_queries: int = 5000
    p_init: float = 0.8
    restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.p_init <= 1:
            raise ValueError(f"p_init must be in (0, 1], got {self.p_init}")

    def _search(self, problem: Problem, i: Tensor, run: int) -> Search:
        moves = _LinfMoves(problem.ball) if self.norm == "Linf" else _EnergyMoves(problem.ball)
        z = problem.x[i]
        lowest = torch.full_like(problem.ball.eps[i], float("inf"))
        for query in range(self.n_queries):
            draw = partial(self._draw, problem.ids[i], (run, query))
            candidate = moves.propose(i, z, self.share(query), draw) if query else moves.start(i, draw)
            logits = yield problem.logits(i, candidate)
            reached = margin(logits, problem.y[i], self.targeted).to(lowest.dtype)
            falls = reached < lowest
            z = torch.where(falls.reshape(-1, *[1] * (z.ndim - 1)), candidate, z)
            lowest = torch.where(falls, reached, lowest)
            stays = problem.record(i, candidate, logits)
            i, z, lowest = i[stays], z[stays], lowest[stays]
            if not len(i):
                return

    def _draw(self, ids: Tensor, step: tuple[int, int], count: int) -> Tensor:
        return counter_rng.uniform(self.seed, ids, (count,), step, torch.float64)

    def share(self, query: int) -> float:
        """The share of the pixels that a window covers at a query: halved at fixed fractions of ``n_queries``.

        >>> [Square(n_queries=10).share(query) for query in (0, 1, 9)]
        [0.8, 0.05, 0.0015625]
        """
        return self.p_init / 2 ** sum(10000 * query > halving * self.n_queries for halving in _HALVINGS)


class _Moves:
    """Where a search in ``ball`` starts and goes; pixels are addressed as rows (n, channels, height * width)."""

    def __init__(self, ball: Ball) -> None:
        shape = tuple(ball.x.shape[1:])
        self.ball = ball
        self.height, self.width = shape[-2:] if len(shape) > 1 else (1, shape[0])
        self.channels = math.prod(shape[:-2])

    def start(self, i: Tensor, draw: _Draw) -> Tensor:
        raise NotImplementedError

    def propose(self, i: Tensor, z: Tensor, share: float, draw: _Draw) -> Tensor:
        raise NotImplementedError

    def rows(self, z: Tensor) -> Tensor:
        return z.reshape(len(z), self.channels, self.height * self.width)

    def window(self, share: float, least: int) -> tuple[int, int]:
        """Height and width of a window of about ``share`` of the pixels: a square, or as near to one as fits."""
        side = max(least, round(math.sqrt(share * self.height * self.width)))
        if self.height < min(side, self.width):
            return self.height, min(self.width, max(least, round(share * self.width)))
        if self.width < min(side, self.height):
            return min(self.height, max(least, round(share * self.height))), self.width
        return min(side, self.height), min(side, self.width)

    def place(self, size: tuple[int, int], u: Tensor) -> Tensor:
        """The pixels of one window for each sample, as indices int64 (n, channels, size), from ``u`` (n, 2)."""
        row = (u[:, :1] * (self.height - size[0] + 1)).long() + torch.arange(size[0], device=u.device)
        column = (u[:, 1:] * (self.width - size[1] + 1)).long() + torch.arange(size[1], device=u.device)
        pixels = (row[:, :, None] * self.width + column[:, None, :]).flatten(1)
        return pixels[:, None].expand(-1, self.channels, -1)


class _LinfMoves(_Moves):
    """Every coordinate at one end of its range (algorithm 2)."""

    def start(self, i: Tensor, draw: _Draw) -> Tensor:
        """Stripes one pixel wide, each of a random sign in each channel."""
        up = (draw(self.channels * self.width) < 0.5).reshape(-1, self.channels, 1, self.width)
        up = up.expand(-1, -1, self.height, -1).reshape(len(i), *self.ball.x.shape[1:])
        return torch.where(up, self.ball.high[i], self.ball.low[i])

    def propose(self, i: Tensor, z: Tensor, share: float, draw: _Draw) -> Tensor:
        u = draw(2 + self.channels)
        pixels = self.place(self.window(share, 1), u[:, :2])
        up = u[:, 2:, None] < 0.5
        low, high = (self.rows(end[i]).gather(2, pixels) for end in (self.ball.low, self.ball.high))
        new = torch.where(up, high, low)
        # Signs that the window has already would waste a query: then the opposite ones.
        same = (new == self.rows(z).gather(2, pixels)).flatten(1).all(1)[:, None, None]
        new = torch.where(up ^ same, high, low)
        return self.rows(z).scatter(2, pixels, new).reshape(z.shape)


class _EnergyMoves(_Moves):
    """The perturbation's energy moved from one window to another, on which it takes the shape of a hill and a hollow
    (algorithm 3). For L1 it is the sum of the absolute values, for L2 that of the squares.
    """

    def __init__(self, ball: Ball) -> None:
        super().__init__(ball)
        self.power, self.decay = _POWER[ball.norm], _DECAY[ball.norm]
        self.shapes: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def start(self, i: Tensor, draw: _Draw) -> Tensor:
        """Five by five tiles, a hill or a hollow each, of length eps in all."""
        rows, columns = _tiles(self.height, 5, i.device), _tiles(self.width, 5, i.device)
        hill = _hill(rows[1], columns[1], self.decay)
        tile = (rows[0][:, None] * 5 + columns[0]).flatten().expand(len(i), self.channels, -1)
        up = (draw(self.channels * 25) < 0.5).reshape(-1, self.channels, 25).gather(2, tile)
        delta = torch.where(up, hill.flatten(), -hill.flatten()).to(self.ball.x.dtype)
        x = self.ball.x[i]
        scale = self.ball.eps[i].double() / perturbation_norm(delta, self.ball.norm).clamp(min=1e-300)
        return self.ball.project(i, x + (delta.double() * scale[:, None, None]).to(x.dtype).reshape(x.shape))

    def propose(self, i: Tensor, z: Tensor, share: float, draw: _Draw) -> Tensor:
        size = self.window(share, 3)
        u = draw(5 + self.channels)
        pixels, source = self.place(size, u[:, :2]), self.place(size, u[:, 2:4])
        if size not in self.shapes:
            self.shapes[size] = self.hill_and_hollow(size, 0, z), self.hill_and_hollow(size, 1, z)
        shape = torch.where(u[:, 4, None, None] < 0.5, *self.shapes[size])
        shape = torch.where(u[:, 5:, None] < 0.5, shape, -shape)

        x = self.ball.x[i]
        delta = self.rows(z - x)
        eps = self.ball.eps[i].to(z.dtype)
        spare = (eps**self.power - self.energy(delta).sum(1)[:, 0]).clamp(min=0)[:, None, None]
        here = delta.gather(2, pixels)
        delta = delta.scatter(2, pixels, torch.zeros_like(here))
        there = delta.gather(2, source)
        delta = delta.scatter(2, source, torch.zeros_like(there))
        energy = self.energy(here) + self.energy(there) + spare / self.channels
        # for L1 more than there is: what the projection takes back makes the smallest elements vanish, in all windows
        size_of_new = energy.sqrt() if self.power == 2 else self.channels * energy
        delta = delta.scatter(2, pixels, self.unit(shape + self.unit(here)) * size_of_new)
        return self.ball.project(i, x + delta.reshape(z.shape))

    def energy(self, v: Tensor) -> Tensor:
        """Of each channel, (n, channels, 1)."""
        return v.abs().pow(self.power).sum(2, keepdim=True)

    def unit(self, v: Tensor) -> Tensor:
        return v / v.norm(p=self.power, dim=2, keepdim=True).clamp(min=torch.finfo(v.dtype).tiny)

    def hill_and_hollow(self, size: tuple[int, int], axis: int, like: Tensor) -> Tensor:
        """A window with a hill in one half and a hollow in the other, cut along ``axis``, of length 1, (1, 1, size)."""
        (part, row), (other, column) = (_tiles(s, 2 if k == axis else 1, like.device) for k, s in enumerate(size))
        shape = _hill(row, column, self.decay) * (1 - 2 * (part[:, None] + other))
        return self.unit(shape.reshape(1, 1, -1)).to(like.dtype)


def _tiles(size: int, parts: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """An axis cut in ``parts`` (or ``size`` if less): of each position, its part and distance to the part's centre."""
    parts = min(parts, size)
    position = torch.arange(size, device=device)
    part = position * parts // size
    first, end = -(-part * size // parts), -(-(part + 1) * size // parts)
    return part, (position - first - (end - first) // 2).abs()


def _hill(row: Tensor, column: Tensor, decay: int) -> Tensor:
    """The bump of equation 2, (H, W), from the distances to its centre: a sum of 1 / (n + 1 - k)^decay over k = 0..M,
    with n the farthest distance and M that less the pixel's own.
    """
    distance = torch.maximum(row[:, None], column)
    height = (1 / torch.arange(int(distance.max()) + 1, 0, -1, device=row.device).double() ** decay).cumsum(0)
    return height[distance.max() - distance]
