"""What an attack ascends. Only the direction of its gradient is used, so each loss is scaled to never saturate."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["LOSSES", "cross_entropy_direction", "fooled", "margin"]


def margin(logits: Tensor, y: Tensor, targeted: bool = False) -> Tensor:
    """How far the attack is from success, (N,): negative once it succeeds.

    Untargeted: z_y - max over the others. Targeted (y holds the targets): max over the others - z_y. Logits with
    NaN or Inf are no correct prediction (-inf) and no target (+inf).
    """
    own = logits.gather(1, y[:, None]).squeeze(1)
    others = logits.scatter(1, y[:, None], float("-inf")).amax(1)
    distance = others - own if targeted else own - others
    return torch.where(logits.isfinite().all(1), distance, float("inf") if targeted else float("-inf"))


def cross_entropy_direction(logits: Tensor, y: Tensor, targeted: bool = False) -> Tensor:
    """Ascends the cross-entropy without its vanishing gradient, (N,).

    CE = log(1 + exp(a)) with a = logsumexp over the others - z_y, a strictly increasing function of a, so both have
    the same gradient direction; but the gradient of CE underflows to zero in float32 on a confident network, which
    looks like robustness, and that of a does not. Targeted: -a.
    """
    own = logits.gather(1, y[:, None]).squeeze(1)
    others = logits.scatter(1, y[:, None], float("-inf")).logsumexp(1)
    return own - others if targeted else others - own


def _negative_margin(logits: Tensor, y: Tensor, targeted: bool = False) -> Tensor:
    return -margin(logits, y, targeted)


LOSSES: dict[str, Callable[[Tensor, Tensor, bool], Tensor]] = {
    "ce": cross_entropy_direction,
    "margin": _negative_margin,
}


def fooled(logits: Tensor, y: Tensor, targeted: bool = False) -> Tensor:
    """Whether the prediction (argmax) is wrong, or for ``targeted`` is the target, bool (N,).

    Logits with NaN or Inf predict nothing: wrong, and not the target.
    """
    hit = (logits.argmax(1) == y) & logits.isfinite().all(1)
    return hit if targeted else ~hit
