"""A proportion with its interval: numbers for the report, text for its tables."""

from typing import Any

from torch import Tensor

from robustgen.evaluation.metrics import wilson_interval

__all__ = ["percent", "proportion"]


def proportion(hits: Tensor) -> dict[str, Any]:
    """The proportion of True in ``hits``, bool (n,) with n > 0, with its 95 % Wilson interval and n."""
    low, high = wilson_interval(int(hits.sum()), len(hits))
    return {"value": hits.double().mean().item(), "low": low, "high": high, "n": len(hits)}


def percent(found: dict[str, Any] | None) -> str:
    """What :func:`proportion` returned, as text; None is a proportion of no examples.

    >>> percent({"value": 0.5, "low": 0.095, "high": 0.905, "n": 2}), percent(None)
    ('50.0% [9.5%, 90.5%]', 'of none')
    """
    return "of none" if found is None else f"{found['value']:.1%} [{found['low']:.1%}, {found['high']:.1%}]"
