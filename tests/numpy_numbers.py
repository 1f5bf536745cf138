"""Numbers as NumPy has them, for tests of what takes numbers."""

from typing import Any

import numpy as np

_KINDS = {int: np.int64, float: np.array, bool: np.bool_}  # np.float64 is a float of Python, too


def numpy_numbers(settings: dict[str, Any]) -> dict[str, Any]:
    """Those of the settings that are numbers or flags, as scalars of NumPy or arrays without dimensions."""
    return {name: _KINDS[type(value)](value) for name, value in settings.items() if type(value) in _KINDS}
