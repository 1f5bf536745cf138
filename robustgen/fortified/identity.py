"""Weights of a tied autoencoder with which D(E(h)) = h, so that a fortified network starts as the network that it is.

With piecewise linear activations each feature needs one or two units. A unit a * h_i of the encoder comes back as
a * phi(a h_i); beside it a unit -b * h_i, and the decoder's activation psi sees (a^2 + s b^2) h_i where h_i >= 0 and
(s a^2 + b^2) h_i where it is not, s being the slope of phi below zero. That has to be h_i, and h_i / t with t the slope
of psi below zero. For leaky ReLU and a linear decoder a = b = (1 + s)^(-1/2), since lrelu(h) - lrelu(-h) = (1 + s) h;
for leaky ReLU in both a = 0 and b = s^(-1/2). States that are never negative ask for the first alone: a = 1, b = 0.
"""

import torch
from torch import Tensor

__all__ = ["identity_weight", "is_exact", "kept_directions", "principal_directions"]

# Below zero. Tanh is taken for linear, which it nearly is around zero: with it the start is only near the identity.
_SLOPES = {"leaky_relu": 0.01, "relu": 0.0, "tanh": 1.0, "linear": 1.0}


def _scales(activation: str, decoder_activation: str, nonnegative: bool) -> tuple[float, ...]:
    """What multiplies each feature in the one or two units that give it back; empty where none do."""
    s, t = _SLOPES[activation], _SLOPES[decoder_activation]
    if nonnegative or s == t == 1:
        return (1.0,)
    if t == 0 or t < s or s == 1:
        return ()
    b2 = (1 / t - s) / (1 - s**2)
    a2 = 1 - s * b2
    return tuple(scale for scale in (max(0.0, round(a2, 12)) ** 0.5, -(b2**0.5)) if scale)


def is_exact(activation: str, decoder_activation: str) -> bool:
    """Whether the identity is one to float rounding; with tanh it is only near."""
    return "tanh" not in (activation, decoder_activation)


def kept_directions(features: int, hidden: int, activation: str, decoder_activation: str, nonnegative: bool) -> int:
    """How many directions of the states so many units give back: all, fewer, or 0 where no weight is near the identity.

    >>> kept_directions(10, 20, "leaky_relu", "linear", nonnegative=False)
    10
    >>> kept_directions(10, 7, "leaky_relu", "linear", nonnegative=False)
    3
    """
    return _plan(features, hidden, activation, decoder_activation, nonnegative)[1]


def _plan(
    features: int, hidden: int, activation: str, decoder_activation: str, nonnegative: bool
) -> tuple[tuple[float, ...], int]:
    """The scales of the units of each direction, and :func:`kept_directions`."""
    scales = _scales(activation, decoder_activation, nonnegative)
    if scales and hidden >= features * len(scales):
        return scales, features
    if not nonnegative and _SLOPES[decoder_activation] < 1:
        return (), 0
    scales = _scales(activation, "linear", nonnegative=False)  # what is projected has both signs
    return scales, hidden // len(scales)


def identity_weight(
    features: int,
    hidden: int,
    activation: str,
    decoder_activation: str,
    nonnegative: bool,
    directions: Tensor | None = None,
) -> Tensor:
    """W (hidden, features): the identity or, with fewer units than it needs, the projection on some directions.

    Units beyond what is needed share the work of others, in unequal parts: rows of zeros would never get a gradient,
    and equal rows would stay equal for ever.

    Args:
        directions: orthonormal rows (k, features), the most important one first; None: drawn at random, for as long as
            no states have been seen. Not used where the width suffices.

    Raises:
        ValueError: no such weight is near the identity.

    >>> identity_weight(2, 4, "relu", "linear", nonnegative=False)
    tensor([[ 1.,  0.],
            [ 0.,  1.],
            [-1., -0.],
            [-0., -1.]])
    """
    scales, kept = _plan(features, hidden, activation, decoder_activation, nonnegative)
    if not kept:
        raise ValueError(
            f"no identity to start from with hidden={hidden}, activation={activation!r} and decoder_activation="
            f"{decoder_activation!r}{'' if nonnegative else ' on states that may be negative'}: pass init='random'"
        )
    if kept == features:
        directions = torch.eye(features)
    else:
        known = torch.empty(0, features) if directions is None else directions[:kept]
        directions = _orthonormal(known.float(), kept)
    rows = torch.cat([scale * directions for scale in scales])
    return _shared(rows, hidden)


def principal_directions(states: Tensor, n: int) -> Tensor:
    """Orthonormal rows (at most n, D), the leading ones of states (M, D) about zero: biases start at zero."""
    _, _, directions = torch.linalg.svd(states.double(), full_matrices=False)
    return directions[:n].float()


def _orthonormal(known: Tensor, n: int) -> Tensor:
    """n orthonormal rows, the first of them ``known``, the rest at random."""
    columns = torch.cat([known, torch.randn(n - len(known), known.shape[1])]).t()
    return torch.cat([known, torch.linalg.qr(columns)[0].t()[len(known) :]])


def _shared(rows: Tensor, hidden: int) -> Tensor:
    """As many rows as ``hidden``: the squares of those that share one of ``rows`` are as 1 : 2 : 3 ... and sum to 1."""
    unit = torch.arange(hidden, device=rows.device)
    place, copies = unit // len(rows) + 1, (hidden - 1 - unit % len(rows)) // len(rows) + 1
    return rows[unit % len(rows)] * (2 * place / (copies * (copies + 1))).sqrt()[:, None]
