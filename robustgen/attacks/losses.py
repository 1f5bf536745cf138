"""What an attack ascends. Only its order and the direction of its gradient are used: no loss here saturates."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["LOSSES", "cross_entropy_direction", "difference_of_logits_ratio", "fooled", "margin", "rounding"]


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


def difference_of_logits_ratio(logits: Tensor, y: Tensor, targeted: bool = False) -> Tensor:
    """The margin in units of the spread of the highest logits, so that their shift and scale do not matter, (N,).

    Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
    2020. With the logits sorted, p1 >= p2 >= ...:

    - untargeted, equation 6: -(z_y - max over the others) / (p1 - p3), between -1 and 1;
    - targeted, equation 7, y holding the targets t: -(max over the others - z_t) / (p1 - (p3 + p4) / 2). The equation
      has z of the true class for that maximum, and as long as the prediction is right it is the maximum.

    The equations need 3 and 4 classes. Targeted with 3 classes the scale is p1 - (p2 + p3) / 2: their range p1 - p3
    would make the loss the constant -1, without a gradient, while the target is the lowest. With 2 classes every such
    scale is a multiple of the margin itself and the ratio a constant, so the loss is the margin alone. Where the scale
    is zero it is the margin too. NaN logits give NaN.

    >>> z = torch.tensor([[3.0, 1.0, -1.0, -2.0]])
    >>> difference_of_logits_ratio(z, torch.tensor([0])), difference_of_logits_ratio(z, torch.tensor([1]), True)
    (tensor([-0.5000]), tensor([-0.4444]))
    """
    own = logits.gather(1, y[:, None]).squeeze(1)
    others = logits.scatter(1, y[:, None], float("-inf")).amax(1)
    difference = own - others if targeted else others - own
    if logits.shape[1] == 2:
        return difference
    p = logits.topk(min(4, logits.shape[1]), dim=1).values
    scale = p[:, 0] - (p[:, -2:].mean(1) if targeted else p[:, 2])
    return difference / torch.where(scale > 0, scale, 1.0)


def _negative_margin(logits: Tensor, y: Tensor, targeted: bool = False) -> Tensor:
    return -margin(logits, y, targeted)


LOSSES: dict[str, Callable[[Tensor, Tensor, bool], Tensor]] = {
    "ce": cross_entropy_direction,
    "margin": _negative_margin,
    "dlr": difference_of_logits_ratio,
}


def fooled(logits: Tensor, y: Tensor, targeted: bool = False) -> Tensor:
    """Whether the prediction (argmax) is wrong, or for ``targeted`` is the target, bool (N,).

    Logits with NaN or Inf predict nothing: wrong, and not the target.
    """
    hit = (logits.argmax(1) == y) & logits.isfinite().all(1)
    return hit if targeted else ~hit


def rounding(logits: Tensor) -> Tensor:
    """What rounding may change in the difference of two logits (N, C), up to a safe factor, (N,)."""
    size = 16 * torch.finfo(logits.dtype).eps * logits.abs().amax(1)
    return torch.where(size.isfinite(), size, 0.0)
