"""Counter-based random numbers: each value is a hash of (seed, id, stream, position), never of a shared state.

What sample ``ids[i]`` draws therefore does not depend on batch size, order, neighbours, process or restart. The hash
is the SplitMix64 finaliser (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014,
figure 17) in int64 arithmetic, which wraps alike on every device: integers and uniforms are bitwise the same
everywhere; normals pass through log and cos and may differ in the last place between devices.
"""

import math

import torch
from torch import Tensor

__all__ = ["content_ids", "derive_seed", "integers", "normal", "uniform"]


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _shift_right(z: Tensor, k: int) -> Tensor:
    return (z >> k) & ((1 << (64 - k)) - 1)  # int64 >> is arithmetic; the mask makes it logical


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * _MIX_1
    z = (z ^ _shift_right(z, 27)) * _MIX_2
    return z ^ _shift_right(z, 31)


def _bits(seed: int, ids: Tensor, stream: tuple[int, ...], count: int) -> Tensor:
    """64 random bits for each id and position, int64 (N, count)."""
    key = _mix(torch.full_like(ids, _signed(int(seed))) + _GOLDEN)
    for word in (*stream, ids):
        key = _mix((key ^ word) + _GOLDEN)
    position = torch.arange(1, count + 1, device=ids.device)
    return _mix(key[:, None] + position * _GOLDEN)  # (N, count)


def uniform(
    seed: int,
    ids: Tensor,
    shape: tuple[int, ...],
    stream: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Uniform numbers in [0, 1) on a grid of 2^-24, shape (N, *shape), for int64 ``ids`` (N,).

    >>> one = uniform(0, torch.tensor([5, 9]), (3,))
    >>> bool((one[1] == uniform(0, torch.tensor([9]), (3,))[0]).all())
    True
    """
    bits = _shift_right(_bits(seed, ids, stream, math.prod(shape)), 40)  # the top 24 bits: exact in float32
    return (bits.to(dtype) * 2.0**-24).reshape(len(ids), *shape)


def normal(
    seed: int,
    ids: Tensor,
    shape: tuple[int, ...],
    stream: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal numbers (N, *shape) by the Box-Muller transform of two uniforms."""
    count = math.prod(shape)
    u = uniform(seed, ids, (2, count), stream, torch.float64)
    z = torch.sqrt(-2 * torch.log1p(-u[:, 0])) * torch.cos(2 * math.pi * u[:, 1])
    return z.to(dtype).reshape(len(ids), *shape)


def integers(seed: int, ids: Tensor, shape: tuple[int, ...], high: int, stream: tuple[int, ...] = ()) -> Tensor:
    """Integers in [0, high), int64 (N, *shape); the modulo bias is below high / 2^63."""
    bits = _shift_right(_bits(seed, ids, stream, math.prod(shape)), 1)
    return (bits % high).reshape(len(ids), *shape)


def derive_seed(seed: int, *words: int) -> int:
    """A seed in [0, 2^63) for a sub-task, from a seed and what names the sub-task (an epoch, a step).

    >>> derive_seed(0, 1) == derive_seed(0, 1), derive_seed(0, 1) == derive_seed(0, 2)
    (True, False)
    """
    return int(_shift_right(_bits(seed, torch.zeros(1, dtype=torch.int64), words, 1), 1))


def content_ids(x: Tensor, *, exact: bool = False) -> Tensor:
    """An id, int64 (N,), of what each example x (N, ...) in [0, 1] looks like at 8 bits: a hash of its pixels.

    ``exact``: of every bit of its floats, for inputs of any range.

    Random numbers keyed by it make a score that needs noise a function of the input alone, whatever its batch.

    >>> x = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    >>> bool((content_ids(x)[1:2] == content_ids(x[1:2])).all()), len(content_ids(x).unique())
    (True, 3)
    """
    x = x.detach().flatten(1)  # (N, D)
    if exact:
        values = (x + 0.0).view(torch.int64 if x.dtype == torch.float64 else torch.int32).long()  # -0 is 0
    else:
        values = (x * 255).round().long()
    position = torch.arange(1, values.shape[1] + 1, device=x.device) * _GOLDEN
    return _mix((_mix(position) * (values + 1)).sum(1) + _GOLDEN)  # wraps alike on every device
