"""A batch of inputs: a tensor, or a dict of tensors, which are a model's keyword arguments, one row for each input.

Transformers and recurrent networks read tokens, and sequences of one batch are filled up to one length. Which positions
count is said by the dict's ``attention_mask`` (N, T): those where it is not zero. Whatever averages over positions
averages over these alone (:func:`mean_over_positions`), so that no score depends on how long the padding is.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from robustgen.checks import check_images

__all__ = [
    "MASK",
    "Inputs",
    "are_inputs",
    "call_model",
    "check_inputs",
    "check_keywords",
    "count",
    "described",
    "each",
    "evenly_spaced",
    "mask_of",
    "mean_over_positions",
    "named",
    "parted",
    "rows",
    "split",
]

Inputs: TypeAlias = Tensor | dict[str, Tensor]
MASK = "attention_mask"

_LABELS = ("labels", "label")  # what dicts of inputs and labels call them

_OF_KEYWORDS = (torch.float32, torch.float64, torch.int64, torch.int32, torch.bool)


def call_model(model: Callable[..., Any], x: Any, **options: Any) -> Any:
    """Call a model with x: a tensor, a tuple of positional or a dict of keyword arguments."""
    if isinstance(x, dict):
        return model(**x, **options)
    return model(*x, **options) if isinstance(x, tuple) else model(x, **options)


def named(x: Inputs) -> dict[str, Tensor]:
    """The tensors of x by name; that of a batch which is one tensor is called ``""``."""
    return x if isinstance(x, dict) else {"": x}


def each(x: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """x with ``change`` done to each of its tensors."""
    return {name: change(t) for name, t in x.items()} if isinstance(x, dict) else change(x)


def count(x: Inputs) -> int:
    """N, how many inputs there are."""
    return len(next(iter(named(x).values())))


def rows(x: Inputs, indices: Tensor) -> Inputs:
    """The inputs at ``indices`` (B,)."""
    return each(x, lambda t: t.index_select(0, indices.to(t.device)))


def split(x: Inputs, size: int) -> list[Inputs]:
    """x in batches of at most ``size`` inputs; at least one, which may be empty."""
    parts = {name: t.split(size) for name, t in named(x).items()}
    if not isinstance(x, dict):
        return list(parts[""])
    return [dict(zip(parts, together, strict=True)) for together in zip(*parts.values(), strict=True)]


def described(x: Inputs) -> str:
    """Shape and dtype of one input, for messages.

    >>> described(torch.zeros(5, 3)), described({"input_ids": torch.zeros(5, 7, dtype=torch.int64)})
    ('shape (3,), torch.float32', 'input_ids (7,), torch.int64')
    """
    shapes = [f"{name or 'shape'} {tuple(t.shape[1:])}, {t.dtype}" for name, t in named(x).items()]
    return " and ".join(shapes)


def check_inputs(x: object, name: str = "x") -> Inputs:
    """Return ``x`` if it is finite floats (N, ...), tokens int64 (N, T), or a dict of a model's keyword arguments.

    Raises:
        TypeError: none of these, or in a dict another dtype than float32, float64, int64, int32 and bool.
        ValueError: NaN or Inf, negative tokens, no position at all, a dict without tensors or whose tensors differ in
            N, or an ``attention_mask`` that is not (N, T) or leaves an input no position that counts.
    """
    if isinstance(x, dict):
        return _checked(check_keywords(x, name), name)
    if not isinstance(x, Tensor) or x.dtype != torch.int64 or x.ndim != 2:
        return check_images(x, name=name)
    if not x.shape[1]:
        raise ValueError(f"{name} must be tokens (N, T) with T >= 1, got shape {tuple(x.shape)}")
    return _tokens(x, name)


def _tensor(values: Any) -> Any:
    """A NumPy array as a tensor; anything else as it is."""
    if not isinstance(values, np.ndarray):
        return values
    dtype = values.dtype.newbyteorder("=")
    if dtype.kind in "iu" and dtype != np.uint8:
        dtype = np.dtype(np.int64)
    return torch.from_numpy(np.require(values, dtype, ["C", "W"]))


def are_inputs(x: object) -> bool:
    """Whether x is a tensor, an array or a dict, and not a data set or labelled."""
    return isinstance(x, (Tensor, np.ndarray, Mapping))


def parted(x: Any, y: Any = None) -> tuple[Inputs, Tensor | None]:
    """Inputs, tensors or arrays of NumPy, as tensors; the labels y, or those that are in a dict of inputs.

    Integers of NumPy, other than uint8, become int64.

    >>> parted({"input_ids": np.array([[5, 6]], dtype=np.int32), "labels": np.array([1])})
    ({'input_ids': tensor([[5, 6]])}, tensor([1]))
    """
    if not isinstance(x, Mapping):
        return _tensor(x), _tensor(y)
    parts = {str(name): _tensor(values) for name, values in x.items()}
    labels = [parts.pop(name) for name in _LABELS if name in parts]
    return check_keywords(parts, "the data"), _tensor(y) if y is not None else labels[0] if labels else None


def check_keywords(x: dict[Any, Any], name: str = "x") -> dict[str, Tensor]:
    """Return ``x`` if it is a dict of tensors, the model's keyword arguments, with one row for each input.

    Raises:
        TypeError: no tensors, or other names than strings.
        ValueError: tensors that differ in N, or a number instead of rows.
    """
    for key, t in x.items():
        if not isinstance(key, str) or not isinstance(t, Tensor):
            raise TypeError(f"{name}[{key!r}] must be a tensor, an argument of the model; got {type(t).__name__}")
    if len({t.shape[:1] for t in x.values()}) != 1 or not next(iter(x.values())).ndim:
        shapes = ", ".join(f"{key} {tuple(t.shape)}" for key, t in x.items())
        raise ValueError(f"{name} must hold tensors with one row for each input, got {shapes or 'none'}")
    return x


def _checked(x: dict[str, Tensor], name: str) -> Inputs:
    for key, t in x.items():
        if t.dtype not in _OF_KEYWORDS:
            raise TypeError(f"{name}[{key!r}] must be float32, float64, int64, int32 or bool, got {t.dtype}")
        if t.is_floating_point() and not bool(t.detach().isfinite().all()):
            raise ValueError(f"{name}[{key!r}] holds NaN or Inf")
    if "input_ids" in x:
        _tokens(x["input_ids"], f"{name}['input_ids']")
    if MASK in x:
        if x[MASK].ndim != 2:
            raise ValueError(f"{name}[{MASK!r}] must be (N, T), got {tuple(x[MASK].shape)}")
        if not bool((x[MASK] != 0).any(1).all()):
            raise ValueError(f"{name}[{MASK!r}] leaves an input no position that counts")
    return x


def _tokens(x: Tensor, name: str) -> Tensor:
    if x.numel() and int(x.min()) < 0:
        raise ValueError(f"{name} holds negative tokens")
    return x


def mask_of(x: Inputs) -> Tensor | None:
    """The attention mask of x, None where all positions count."""
    return x.get(MASK) if isinstance(x, dict) else None


def mean_over_positions(values: Tensor, mask: Tensor | None, batch: int = 0, positions: int = 1) -> Tensor:
    """Values (N, T, D), in whatever order, averaged over their positions: (N, D).

    Args:
        mask: (N, T), not zero at the positions that count; None: all count. It may be longer than the values where
            they lack nothing but padding, which a :class:`torch.nn.TransformerEncoder` cuts off.
        batch, positions: the dimensions of the values that count inputs and positions.

    Raises:
        ValueError: the mask is of other positions than the values.

    >>> x = torch.tensor([[[1.0], [3.0], [9.0]]])
    >>> mean_over_positions(x, torch.tensor([[1, 1, 0]]))
    tensor([[2.]])
    """
    if mask is None:
        return values.mean(positions)
    ordered = values.movedim((batch, positions), (0, 1))
    n, length = ordered.shape[:2]
    if len(mask) != n or mask.shape[1] < length or bool(mask[:, length:].any()):
        raise ValueError(
            f"states of {n} inputs at {length} positions, but {MASK} {tuple(mask.shape)}: which of them are padding is "
            "not known; name a layer that keeps the positions of the tokens"
        )
    counts = mask[:, :length, None] != 0
    return torch.where(counts, ordered, 0.0).sum(1) / counts.sum(1)


def evenly_spaced(length: int, n: int) -> Tensor:
    """At most n indices of ``range(length)``, int64, the first and (of two or more) the last among them.

    >>> evenly_spaced(10, 4)
    tensor([0, 3, 6, 9])
    """
    n = min(n, length)
    if length <= 2**24:  # float32 holds each of them; kept runs know their data by what it gives
        return torch.linspace(0, length - 1, n).round().long()
    return torch.arange(n) * (length - 1) // max(1, n - 1)
