"""Texts as tokens: the keyword arguments of a transformer, one row for each text."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from robustgen.checks import check_ids, check_labels
from robustgen.data.npz import array_names, numbered, read_arrays, whole_numbers
from robustgen.inputs import MASK, check_inputs, count, evenly_spaced, rows

__all__ = ["TokenDataset", "holds_tokens", "load_tokens"]

_TOKENS = "input_ids"
_ARGUMENTS = (_TOKENS, MASK, "token_type_ids", "position_ids")
_LABELS = ("y", "labels", "label")


@dataclass(frozen=True, eq=False, repr=False)
class TokenDataset:
    """Texts of one padded length; it is read as an :class:`~robustgen.data.ArrayDataset` is.

    Args:
        x: the model's keyword arguments: ``input_ids`` int64 (N, T), ``attention_mask`` and the like.
        y: int64 labels (N,) in [0, len(classes)), or None.
        classes: the name of each label.
        name: what reports and errors call this set.
        ids: int64 (N,), the index of each text in the original set; default ``arange(N)``.

    Raises:
        TypeError, ValueError: as :func:`robustgen.inputs.check_inputs` does, or labels or ids that do not fit.

    >>> tokens = {"input_ids": torch.tensor([[5, 6], [7, 0]]), "attention_mask": torch.tensor([[1, 1], [1, 0]])}
    >>> data = TokenDataset(tokens)
    >>> data, data.texts(torch.tensor([1]))
    (TokenDataset('tokens', 2 x at most 2, no labels), [array([7])])
    """

    x: dict[str, Tensor]
    y: Tensor | None = None
    classes: tuple[str, ...] = ()
    name: str = "tokens"
    ids: Tensor = None

    sources: ClassVar[None] = None  # none is a file of its own
    shape: ClassVar[tuple[int, ...]] = (-1,)  # of one text: any length

    def __post_init__(self) -> None:
        check_inputs(self.x, self.name)
        if self.y is not None:
            check_labels(self.y, len(self), len(self.classes), f"{self.name}: y")
        object.__setattr__(self, "ids", check_ids(self.ids, len(self), self.x[_TOKENS].device))

    def __len__(self) -> int:
        return count(self.x)

    def __repr__(self) -> str:
        labels = "no labels" if self.y is None else f"{len(self.classes)} classes"
        return f"TokenDataset({self.name!r}, {len(self)} x at most {self.x[_TOKENS].shape[1]}, {labels})"

    def batch(self, indices: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """The texts at ``indices`` (B,), and y int64 (B,) or None."""
        x = rows(self.x, indices)
        assert isinstance(x, dict)
        return x, None if self.y is None else self.y.index_select(0, indices)

    def subset(self, indices: Tensor) -> "TokenDataset":
        """The texts at ``indices`` (B,), in that order, with their ids."""
        x, y = self.batch(indices)
        return replace(self, x=x, y=y, ids=self.ids.index_select(0, indices))

    def take(self, n: int) -> "TokenDataset":
        """n texts, evenly spaced; all of them where there are fewer. ValueError for a negative n."""
        if n < 0:
            raise ValueError(f"n must not be negative, got {n}")
        return self.subset(evenly_spaced(len(self), n))

    def texts(self, indices: Tensor) -> list[np.ndarray]:
        """The tokens of each text at ``indices`` (B,), without its padding."""
        x, _ = self.batch(indices)
        counts = x[MASK] != 0 if MASK in x else torch.ones_like(x[_TOKENS], dtype=torch.bool)
        return [tokens[kept].cpu().numpy() for tokens, kept in zip(x[_TOKENS], counts, strict=True)]


def holds_tokens(path: Path) -> bool:
    """Whether this is an ``.npz`` file of tokens."""
    return _TOKENS in array_names(path)


def load_tokens(path: str | Path) -> TokenDataset:
    """Read ``input_ids`` (N, T) and, where present, the model's other arguments and the labels from an ``.npz`` file.

    These are ``attention_mask`` (0 at padding), ``token_type_ids`` and ``position_ids``, as a tokenizer gives them, all
    integers; ``y`` (or ``labels``), ``classes`` and ``ids`` as in :func:`~robustgen.data.load_npz`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, or values that :class:`TokenDataset` refuses; it names the file.
    """
    path = Path(path)
    arrays = read_arrays(path, (*_ARGUMENTS, *_LABELS, "classes", "ids"), needed=_TOKENS)
    try:
        y = next((whole_numbers(arrays[name], name, "labels") for name in _LABELS if name in arrays), None)
        classes = tuple(map(str, arrays["classes"].reshape(-1))) if "classes" in arrays else ()
        return TokenDataset(
            x={name: whole_numbers(arrays[name], name, "tokens") for name in _ARGUMENTS if name in arrays},
            y=y,
            classes=classes if classes or y is None else numbered(y),
            name=path.name,
            ids=whole_numbers(arrays["ids"], "ids", "ids") if "ids" in arrays else None,
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {str(error).removeprefix(f'{path.name}: ').removeprefix(path.name)}") from None
