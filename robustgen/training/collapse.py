"""Networks that have learned nothing: the epoch's losses are those of guessing, or hidden states have vanished.

A classifier whose logits no longer depend on its input costs log C at best. Multi-step adversarial training at full eps
from the first step on, and autoencoder losses that shrink the states, end there; robust accuracy then equals clean
accuracy, at chance, and looks like a result.
"""

import math
from collections.abc import Mapping, Sequence

__all__ = ["COLLAPSED", "collapse_of", "is_at_chance"]

COLLAPSED = "collapsed"  # the entry of a row of the history
_NEAR = 0.01  # of the loss of guessing
_NORMS = "state_norm/"
_SHRUNK = 0.01  # of the norm in the first epoch


def is_at_chance(row: Mapping[str, float], n_classes: int) -> bool:
    """Whether each classification loss of an epoch is within 1 % of that of guessing, and accuracy no better.

    Args:
        row: of a trainer's history: what its objective logged.
        n_classes: C; guessing costs log C.

    >>> is_at_chance({"clean_loss": 2.302, "adv_loss": 2.302, "accuracy": 0.101}, 10)
    True
    >>> is_at_chance({"clean_loss": 1.9, "adv_loss": 2.31, "accuracy": 0.35}, 10)
    False
    """
    if n_classes < 2:
        return False
    guessing = {"clean_loss": math.log(n_classes), "adv_loss": math.log(n_classes)}
    guessing["boosted_loss"] = math.log(n_classes) - math.log1p(-1 / n_classes)  # of Mart
    losses = [abs(row[name] / loss - 1) <= _NEAR for name, loss in guessing.items() if name in row]
    accuracy = row.get("accuracy", row.get("adv_accuracy", 0.0))
    return bool(losses) and all(losses) and accuracy < 1.5 / n_classes


def collapse_of(history: Sequence[Mapping[str, float]], n_classes: int) -> str:
    """What the last epoch of a history shows, and what to change, in one line; "" for a network that learns."""
    first, last = history[0], history[-1]
    if is_at_chance(last, n_classes):
        return (
            f"the network has collapsed: its loss is that of guessing among {n_classes} classes, "
            f"{math.log(n_classes):.2f}; train longer, lower the learning rate, warm eps up or begin with a weaker "
            "attack, or lower the weights of the autoencoders"
        )
    for name in last:
        if name.startswith(_NORMS) and last[name] <= _SHRUNK * first.get(name, 0.0):
            return (
                f"the network has collapsed: states of layer {name.removeprefix(_NORMS)!r} have shrunk to "
                f"{last[name]:.2g} from {first[name]:.2g}; lower lambda_rec and lambda_adv, or take "
                "reduction='relative' or detach_states"
            )
    return ""
