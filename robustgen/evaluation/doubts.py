"""What to doubt before any number of an evaluation counts: what was asked for, and what the network does untouched."""

from collections.abc import Iterable

import torch
from torch import Tensor

from robustgen.checks import warn_user
from robustgen.evaluation.metrics import percent, proportion, wilson_interval
from robustgen.model import Model, logits_of, untouched

__all__ = ["at_chance", "n_classes_of", "raise_doubts"]


def at_chance(clean: Tensor, y: Tensor, n_classes: int) -> str | None:
    """A line where a network is not right, bool (N,), more often than one that does not look at its input; or None.

    Chance is one of ``n_classes``, and the constant answer that is right most often where the network is, apart from
    that one class, no better than one of ``n_classes``: many examples of one class are no reason to doubt a network
    that knows the others. Better: by the lower end of a 95 % Wilson interval. Examples too few for any network to do
    better are no reason either.
    """
    counts, chance, of = y.bincount(), 1 / n_classes, f"one of {n_classes} classes"
    most = counts.argmax()
    others = clean[y != most]
    if not _no_better(clean, chance):
        constant = int(counts[most]) / len(y)
        if not len(others) or not _no_better(others, chance) or not _no_better(clean, constant):
            return None
        chance, of = constant, "the most frequent class"
    return (
        f"clean accuracy {percent(proportion(clean))} is not above chance, {chance:.1%} ({of}), so robust accuracy "
        "says nothing; nearly always the preprocessing is wrong (normalisation, [0, 1] or [0, 255], order of channels, "
        "numbering of classes)"
    )


def _no_better(hits: Tensor, chance: float) -> bool:
    n = len(hits)
    return wilson_interval(int(hits.sum()), n)[0] <= chance < wilson_interval(n, n)[0]


def n_classes_of(model: Model, x: Tensor) -> int:
    """How many classes the model's logits have."""
    with torch.no_grad(), untouched(model):
        return logits_of(model(x[:4].clone())).shape[1]


def raise_doubts(lines: Iterable[str | None]) -> list[str]:
    """Warn of each line that is one, and return them for the report."""
    found = [line for line in lines if line is not None]
    for line in found:
        warn_user(line)
    return found
