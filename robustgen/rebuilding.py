"""A network from the settings and the weights that files hold."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from robustgen.files import check_state
from robustgen.turns import seeded

__all__ = ["rebuild"]

_Network = TypeVar("_Network", bound=nn.Module)


def rebuild(
    make: Callable[[], _Network], tensors: Mapping[str, Tensor], *, settings: str | Path, weights: str | Path
) -> _Network:
    """The module that ``make`` builds from what the file ``settings`` says, with the ``tensors`` of ``weights``.

    It is built without memory first and compared: settings that the weights do not bear out could ask for any amount.

    Raises:
        ValueError: settings of which nothing can be built, or tensors that do not fit, each named.

    >>> rebuild(lambda: nn.Linear(10**6, 10**6), {}, settings="run.json", weights="w.safetensors")
    Traceback (most recent call last):
    ValueError: w.safetensors does not fit this network: missing weight; missing bias
    """
    with seeded(None):
        with torch.device("meta"):
            try:
                plan = make()
            except Exception as error:  # whatever a constructor makes of values that nobody chose
                reason = f" ({error})" if isinstance(error, TypeError | ValueError) else ""
                raise ValueError(f"{settings}: no network has these settings{reason}") from None
        check_state(plan, tensors, weights)
        module = make()
    module.load_state_dict(tensors)
    return module
