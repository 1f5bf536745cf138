"""Numbers as NumPy has them, for tests of what takes numbers."""

from typing import Any

import numpy as np


def numpy_numbers(settings: dict[str, Any]) -> dict[str, Any]:
    """Those of the settings that are numbers or flags, as NumPy's: scalars, or every other one without dimensions."""
    kinds = {int: np.int64, float: np.float64, bool: np.bool_}
    chosen = [(name, value) for name, value in settings.items() if type(value) in kinds]
    return {n: np.array(v) if i % 2 else kinds[type(v)](v) for i, (n, v) in enumerate(chosen)}
