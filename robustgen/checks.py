"""Checks on what a user hands in. Each raises one clear line; none repairs its input."""

import difflib
import functools
import re
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "ROUNDING",
    "check_bounds",
    "check_evaluation",
    "check_flags",
    "check_ids",
    "check_images",
    "check_integers",
    "check_labels",
    "check_numbers",
    "check_positive",
    "check_seed",
    "check_shape",
    "diameter",
    "eps_spans_bounds",
    "hint_of_levels",
    "nearest",
    "plain",
    "plain_arguments",
    "plain_fields",
    "warn_user",
]

_P = ParamSpec("_P")
_R = TypeVar("_R")

_NOT_THE_USERS = tuple(str(Path(module).parent) for module in (__file__, torch.__file__))
ROUNDING = 1e-6  # how far outside of [0, 1] float32 pixels lie that went through a normalisation and back


def warn_user(line: str) -> None:
    """Warn at the line of the user's code that called into this package, however many calls deep the reason is."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_NOT_THE_USERS):
        frame, level = frame.f_back, level + 1
    warnings.warn(line, stacklevel=level)


def plain(value: Any) -> Any:
    """A number of NumPy, an array without dimensions too, as Python's own; anything else as it is.

    >>> import numpy as np
    >>> plain(np.int64(5)), plain(np.array(0.5)), plain("adam")
    (5, 0.5, 'adam')
    """
    return value.item() if isinstance(value, (np.number, np.bool_, np.ndarray)) and value.ndim == 0 else value


def plain_arguments(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function, with numbers of NumPy among its arguments as Python's own: so they can be checked and kept.

    >>> plain_arguments(lambda steps: type(steps).__name__)(steps=np.int64(5))
    'int'
    """

    @functools.wraps(function)
    def called(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        return function(*map(plain, args), **{name: plain(value) for name, value in kwargs.items()})

    return called


def plain_fields(instance: Any) -> None:
    """Do so to the fields of a dataclass, frozen or not."""
    for field in fields(instance):
        if hasattr(instance, field.name):  # not one that a subclass is yet to set
            object.__setattr__(instance, field.name, plain(getattr(instance, field.name)))


def check_bounds(bounds: tuple[float, float]) -> tuple[float, float]:
    """Return ``bounds`` as two floats.

    Raises:
        TypeError: not two numbers (bounds of each channel, say).
        ValueError: not finite, or not increasing.
    """
    try:
        low, high = map(float, bounds)
    except (TypeError, ValueError, RuntimeError):  # the last is torch's, of a tensor with several elements
        raise TypeError(
            "bounds are two numbers, low < high, for all inputs and channels; for normalised inputs put Normalize "
            f"inside the model and attack in [0, 1]; got {_shown(bounds)}"
        ) from None
    if not (low < high and abs(low) != float("inf") and abs(high) != float("inf")):
        raise ValueError(f"bounds must be two finite numbers, low < high; got ({low}, {high})")
    return low, high


def _shown(value: Any) -> str:
    """A value in a line of text: its type where it is not short."""
    text = repr(value)
    return text if len(text) <= 40 and "\n" not in text else f"a {type(value).__name__}"


def check_images(
    x: object, bounds: tuple[float, float] | None = None, name: str = "x", rounding: float = 0.0
) -> Tensor:
    """Return ``x`` if it is a batch of finite floats inside ``bounds``, give or take ``rounding``.

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
    if bounds is not None:
        beyond = max(x.new_tensor(bounds[0]).item() - low, high - x.new_tensor(bounds[1]).item())
        if beyond > rounding:
            raise ValueError(f"{name} {_outside(low, high, bounds, beyond)}")
    return x


def _outside(low: float, high: float, bounds: tuple[float, float], beyond: float) -> str:
    """What to say of values in [low, high] that leave the bounds by ``beyond``, in digits that show it."""
    outside = f"outside the bounds {tuple(bounds)}"
    if beyond > 1e-3 * (bounds[1] - bounds[0]):
        return f"has values in [{low:.4g}, {high:.4g}], {outside}{hint_of_levels(low, high, bounds)}"
    clamped = f"x.clamp({bounds[0]:g}, {bounds[1]:g})"
    return f"has values in [{low!r}, {high!r}], {outside} by {beyond:.2g}: clamp them first, {clamped}"


def hint_of_levels(low: float, high: float, bounds: tuple[float, float]) -> str:
    """What to add to a line on values in [low, high] that may be the levels of 8 bits.

    >>> hint_of_levels(0.0, 255.0, (0.0, 1.0))
    ': divide pixels of 0..255 by 255'
    """
    levels = tuple(bounds) == (0, 1) and low >= 0 and 2 < high <= 255
    return ": divide pixels of 0..255 by 255" if levels else ""


def check_integers(at_least: int = 1, **values: object) -> None:
    """Each keyword is an argument's name and value: TypeError unless it is an int, ValueError below ``at_least``.

    >>> check_integers(width=2.5)
    Traceback (most recent call last):
    TypeError: width must be an integer, got 2.5
    """
    for name, value in values.items():
        value = plain(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        if value < at_least:
            raise ValueError(f"{name} must be at least {at_least}, got {value}")


def check_seed(seed: object) -> None:
    """TypeError unless a seed is an int, ValueError unless it has at most 64 bits.

    >>> check_seed(2**70)
    Traceback (most recent call last):
    ValueError: seed must be below 2^63, got 1180591620717411303424
    """
    check_integers(-(2**63), seed=seed)
    if int(plain(seed)) >= 2**63:
        raise ValueError(f"seed must be below 2^63, got {seed}")


def check_numbers(**values: object) -> None:
    """TypeError unless each argument, by its name, is an int or a float; its range is for the caller to check.

    >>> check_numbers(eps="8/255")
    Traceback (most recent call last):
    TypeError: eps must be a number, got '8/255', a text: write eps=8/255, without the quotes
    """
    for name, value in values.items():
        if isinstance(plain(value), bool) or not isinstance(plain(value), (int, float)):
            quoted = isinstance(value, str) and re.fullmatch(r"\s*[\d.eE+-]+\s*(/\s*[\d.eE+-]+\s*)?", value)
            hint = f", a text: write {name}={value}, without the quotes" if quoted else ""
            raise TypeError(f"{name} must be a number, got {value!r}{hint}")


def check_positive(**values: float) -> None:
    """TypeError unless each argument, by its name, is a number, ValueError unless it is finite and > 0.

    >>> check_positive(lr=0.0)
    Traceback (most recent call last):
    ValueError: lr must be a finite number > 0, got 0.0
    """
    check_numbers(**values)
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be a finite number > 0, got {value}")


def check_flags(**values: object) -> None:
    """TypeError unless each argument, by its name, is True or False."""
    for name, value in values.items():
        if not isinstance(plain(value), bool):
            raise TypeError(f"{name} must be True or False, got {value!r}")


def check_shape(shape: object) -> tuple[int, int, int]:
    """Return ``shape`` as a tuple; ValueError unless it is three positive integers."""
    found = tuple(map(plain, shape)) if isinstance(shape, Iterable) else (shape,)
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


def diameter(bounds: tuple[float, float], norm: str, elements: int) -> float:
    """The longest distance between two inputs of so many elements in ``bounds``: an eps that holds all of them.

    >>> diameter((0.0, 1.0), "L2", 16)
    4.0
    """
    return (bounds[1] - bounds[0]) * elements ** {"Linf": 0.0, "L2": 0.5, "L1": 1.0}[norm]


def eps_spans_bounds(eps: float, norm: str, bounds: tuple[float, float], elements: int) -> str | None:
    """A line where the ball holds every input, so that no network withstands it; None otherwise.

    >>> eps_spans_bounds(8, "Linf", (0.0, 1.0), 192)
    'eps 8 is larger than the whole range of the bounds (0, 1): did you mean 8/255 = 0.0314?'
    """
    width, widest = bounds[1] - bounds[0], diameter(bounds, norm, elements)
    if eps <= widest * (1 + 1e-9):
        return None
    where = f"({bounds[0]:g}, {bounds[1]:g})"
    line = f"eps {eps:g} is larger than the whole range of the bounds {where}"
    if norm != "Linf":
        line = f"{norm} eps {eps:g} is larger than the distance of any two inputs in the bounds {where}, {widest:.4g}"
    levels = eps * width / 255
    if levels >= widest:
        return line
    times = "" if width == 1 else f" * {width:g}"
    return f"{line}: did you mean {eps:g}/255{times} = {levels:.3g}?"


def nearest(name: str, known: Iterable[str], most: int = 3, listed: int = 8) -> str:
    """A hint for an unknown name: ``"did you mean 'a', 'b'?"``, or the first ``listed`` of the known names.

    >>> nearest("layer5", ["layer1", "layer2", "fc"], most=2)
    "did you mean 'layer2', 'layer1'?"
    >>> nearest("x", ["layer1", "layer2", "fc"], listed=2)
    "known: 'layer1', 'layer2', ..."
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=most, cutoff=0.5)
    if close:
        return f"did you mean {', '.join(map(repr, close))}?"
    shown = ", ".join(map(repr, known[:listed]))
    return f"known: {shown}{', ...' if len(known) > listed else ''}"
