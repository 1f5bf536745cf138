"""Checks on what a user hands in. Each raises one clear line; none repairs its input."""

import difflib
from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = [
    "check_bounds",
    "check_evaluation",
    "check_flags",
    "check_ids",
    "check_images",
    "check_integers",
    "check_labels",
    "check_numbers",
    "check_positive",
    "check_shape",
    "nearest",
]


def check_bounds(bounds: tuple[float, float]) -> tuple[float, float]:
    """Return ``bounds`` as two floats; ValueError unless they are finite and increasing."""
    low, high = float(bounds[0]), float(bounds[1])
    if not (low < high and abs(low) != float("inf") and abs(high) != float("inf")):
        raise ValueError(f"bounds must be two finite numbers, low < high; got ({low}, {high})")
    return low, high


def check_images(x: object, bounds: tuple[float, float] | None = None, name: str = "x") -> Tensor:
    """Return ``x`` if it is a batch of finite floats inside ``bounds``.

    Raises:
        TypeError: not a tensor, or not float32 / float64 (float16 and bfloat16 cannot hold an eps-ball; keep inputs
            in float32 and cast inside the model).
        ValueError: fewer than two dimensions, NaN or Inf, or values outside ``bounds``.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name} must be float32 or float64, got {x.dtype}")
    if x.ndim < 2:
        raise ValueError(f"{name} must be a batch (N, ...), got shape {tuple(x.shape)}")
    if x.numel() == 0:
        return x
    low, high = (v.item() for v in torch.aminmax(x.detach()))  # NaN propagates through aminmax
    if not (float("-inf") < low and high < float("inf")):
        raise ValueError(f"{name} holds NaN or Inf")
    if bounds is not None and (low < x.new_tensor(bounds[0]).item() or high > x.new_tensor(bounds[1]).item()):
        raise ValueError(f"{name} has values in [{low:.4g}, {high:.4g}], outside the bounds {tuple(bounds)}")
    return x


def check_integers(at_least: int = 1, **values: object) -> None:
    """Each keyword is an argument's name and value: TypeError unless it is an int, ValueError below ``at_least``.

    >>> check_integers(width=2.5)
    Traceback (most recent call last):
    TypeError: width must be an integer, got 2.5
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        if value < at_least:
            raise ValueError(f"{name} must be at least {at_least}, got {value}")


def check_numbers(**values: object) -> None:
    """TypeError unless each argument, by its name, is an int or a float; its range is for the caller to check."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} must be a number, got {value!r}")


def check_positive(**values: float) -> None:
    """ValueError unless each argument, by its name, is a finite number > 0.

    >>> check_positive(lr=0.0)
    Traceback (most recent call last):
    ValueError: lr must be a finite number > 0, got 0.0
    """
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be a finite number > 0, got {value}")


def check_flags(**values: object) -> None:
    """TypeError unless each argument, by its name, is True or False."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, got {value!r}")


def check_shape(shape: object) -> tuple[int, int, int]:
    """Return ``shape`` as a tuple; ValueError unless it is three positive integers."""
    found = tuple(shape) if isinstance(shape, Iterable) else (shape,)
    if len(found) != 3 or not all(isinstance(n, int) and n > 0 for n in found):
        raise ValueError(f"shape must be (channels, height, width) of an image, got {shape!r}")
    return found


def check_labels(y: object, n: int, n_classes: int | None = None, name: str = "y") -> Tensor:
    """Return ``y`` if it is an int64 tensor of ``n`` labels in [0, n_classes).

    Raises:
        TypeError: not an int64 tensor.
        ValueError: another shape than (n,), or a label outside [0, n_classes).
    """
    if not isinstance(y, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(y).__name__}")
    if y.dtype != torch.int64:
        raise TypeError(f"{name} must be int64 class labels, got {y.dtype}")
    if y.shape != (n,):
        raise ValueError(f"{name} must have shape ({n},), one label for each input; got {tuple(y.shape)}")
    if n and (y.min() < 0 or (n_classes is not None and y.max() >= n_classes)):
        top = "C" if n_classes is None else n_classes
        raise ValueError(f"{name} has labels in [{int(y.min())}, {int(y.max())}], outside [0, {top})")
    return y


def check_ids(ids: object, n: int, device: torch.device) -> Tensor:
    """Return the int64 ids (n,) of a batch; None means ``arange(n)``."""
    if ids is None:
        return torch.arange(n, device=device)
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64:
        raise TypeError("ids must be an int64 tensor, one id for each input")
    if ids.shape != (n,):
        raise ValueError(f"ids must have shape ({n},), got {tuple(ids.shape)}")
    return ids.to(device)


def check_evaluation(
    x: Tensor, y: Tensor, ids: Tensor | None, bounds: tuple[float, float], eps: float, batch_size: int
) -> tuple[Tensor, Tensor, Tensor, tuple[float, float]]:
    """What every evaluation is given: x (N, ...), y and ids (N,) on the device of x, bounds; all of it checked."""
    bounds = check_bounds(bounds)
    x = check_images(x, bounds).detach()
    y = check_labels(y, len(x)).to(x.device)
    ids = check_ids(ids, len(x), x.device)
    if not len(x):
        raise ValueError("the data set is empty: nothing to evaluate")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    check_positive(eps=eps)
    return x, y, ids, bounds


def nearest(name: str, known: Iterable[str], most: int = 3) -> str:
    """A hint for an unknown name: ``"did you mean 'a', 'b'?"``, or the first known names.

    >>> nearest("layer5", ["layer1", "layer2", "fc"], most=2)
    "did you mean 'layer2', 'layer1'?"
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=most, cutoff=0.5)
    if close:
        return f"did you mean {', '.join(map(repr, close))}?"
    shown = ", ".join(map(repr, known[:8]))
    return f"known: {shown}{', ...' if len(known) > 8 else ''}"
