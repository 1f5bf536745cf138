"""Learning rates over a training: factors as functions of the progress in [0, 1)."""

import math
from collections.abc import Callable

__all__ = ["SCHEDULES", "cosine", "cyclic"]


def cosine(progress: float) -> float:
    """From 1 down to 0 (Loshchilov and Hutter, "SGDR", 2017, equation 5, without restarts).

    >>> [round(cosine(t), 2) for t in (0, 0.5, 1)]
    [1.0, 0.5, 0.0]
    """
    return 0.5 * (1 + math.cos(math.pi * progress))


def cyclic(progress: float, peak: float = 0.3) -> float:
    """In straight lines from 0 up to 1 at ``peak`` and down to 0 (Smith, "Cyclical Learning Rates", 2017).

    >>> [round(cyclic(t), 2) for t in (0, 0.15, 0.3, 0.65, 1)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    return progress / peak if progress < peak else (1 - progress) / (1 - peak)


SCHEDULES: dict[str, Callable[[float], float] | None] = {"constant": None, "cosine": cosine, "cyclic": cyclic}
