"""Tables in files, ``.csv``, ``.parquet`` and ``.npy``, read block by block, so that they fill no memory."""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustgen.data.array import ArrayDataset
from robustgen.data.npz import pixels

__all__ = ["Table", "is_table", "pyarrow_parquet"]

_LABELS = ("label", "y")
_ROWS = 1000
_Block = tuple[np.ndarray, list[str]]  # numbers (B, D), or whatever an .npy file holds, and labels


@dataclass(frozen=True, eq=False, repr=False)
class Table:
    """Numbers in [0, 1] in a file: in ``.csv`` and ``.parquet`` a row is an example, a column one of its features.

    The columns have names (of a CSV in its first line). One called ``label`` or ``y``, if there is one, holds class
    names; all others are features, in the order of the file. An ``.npy`` file is an array without labels, of vectors
    (N, D) or of images as in :func:`load_npz`. Columns of pixels 0..255 are to be divided by 255 first.

    Args:
        path: the file.
        layout: of images in ``.npy``, as in :func:`load_npz`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an empty or damaged file, columns without a name or with that of another, or pyarrow missing, which
            Parquet needs. What is in the rows is looked at when they are read.
    """

    path: Path
    layout: str | None = None

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such file")
        if self.first() is None:
            raise ValueError(f"{self.path}: holds no rows")

    @property
    def name(self) -> str:
        """Of the file."""
        return self.path.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example."""
        found = self.first()
        assert found is not None
        return tuple(found.x.shape[1:])

    def first(self) -> ArrayDataset | None:
        """The first example."""
        return next((block for block, _ in self.blocks(1)), None)

    def blocks(self, rows: int = _ROWS) -> Iterator[tuple[ArrayDataset, list[str]]]:
        """So many rows at a time, with their numbers in the file as ids, and their labels (none where there are none).

        Raises:
            ValueError: what is not a number in [0, 1]; it names the file and where it is.
        """
        start = 0
        for values, labels in _READERS[self.path.suffix.lower()](self.path, rows):
            try:
                numbers = values if values.dtype == np.uint8 else values.astype(np.float32)
                x = torch.from_numpy(np.ascontiguousarray(pixels({"x": numbers}, self.layout)))
                block = ArrayDataset(x, name=self.name, ids=torch.arange(start, start + len(values)))
            except (TypeError, ValueError) as error:
                where = f"{self.path}: rows {start}..{start + len(values) - 1}"
                raise ValueError(f"{where}: {str(error).removeprefix(f'{self.name}: ')}") from None
            yield block, labels
            start += len(values)

    def read(self) -> ArrayDataset:
        """All of it as one data set; classes are the labels, sorted, by number where all are whole numbers."""
        blocks, labels = [], []
        for block, names in self.blocks():
            blocks.append(block.x)
            labels += names
        dataset = ArrayDataset(torch.cat(blocks), name=self.name)
        if not labels:
            return dataset
        classes = sorted(set(labels), key=int if all(name.isdecimal() for name in labels) else str)
        number = {name: k for k, name in enumerate(classes)}
        return replace(dataset, y=torch.tensor([number[name] for name in labels]), classes=tuple(classes))


def is_table(path: Path) -> bool:
    """Whether the name is of a file that :class:`Table` reads."""
    return path.suffix.lower() in _READERS


def pyarrow_parquet() -> Any:
    """The module ``pyarrow.parquet``; ValueError where it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError("Parquet needs pyarrow: pip install 'robustgen[parquet]'") from None
    return pyarrow.parquet


def _csv_blocks(path: Path, rows: int) -> Iterator[_Block]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file)
            names = next(lines, [])
            if names and all(_is_number(name) for name in names):
                raise ValueError(f"{path}: the first line holds numbers; it must name the columns")
            label = _label_column(names, path)
            block: list[list[str]] = []
            for line in lines:
                if not line:
                    continue
                if len(line) != len(names):
                    raise ValueError(f"{path}: line {lines.line_num} has {len(line)} fields, not {len(names)}")
                block.append(line)
                if len(block) == rows:
                    yield _of_text(block, names, label, path)
                    block = []
            if block:
                yield _of_text(block, names, label, path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV file in UTF-8 ({error})") from None


def _of_text(block: list[list[str]], names: list[str], label: int | None, path: Path) -> _Block:
    labels = [] if label is None else [row[label] for row in block]
    fields = [[field for k, field in enumerate(row) if k != label] for row in block]
    try:
        return np.array(fields).astype(np.float64), labels
    except ValueError:
        features = [name for k, name in enumerate(names) if k != label]
        wrong = next((n, f) for row in fields for n, f in zip(features, row, strict=True) if not _is_number(f))
        raise ValueError(f"{path}: column {wrong[0]!r} holds {wrong[1]!r}, which is no number") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parquet_blocks(path: Path, rows: int) -> Iterator[_Block]:
    parquet = pyarrow_parquet()
    import pyarrow

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            label = _label_column(names, path)
            for batch in file.iter_batches(batch_size=rows):
                columns = [_numbers(batch.column(k), names[k], path) for k in range(len(names)) if k != label]
                labels = [] if label is None else [str(value) for value in batch.column(label).to_pylist()]
                if len(batch):
                    yield np.stack(columns, axis=1), labels
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a complete Parquet file ({str(error).splitlines()[0]})") from None


def _numbers(column: Any, name: str, path: Path) -> np.ndarray:
    values = column.to_numpy(zero_copy_only=False)
    if values.dtype.kind not in "fiub" or column.null_count:
        held = "empty fields" if column.null_count else str(column.type)
        raise ValueError(f"{path}: column {name!r} holds {held}, not numbers")
    return values.astype(np.float64)


def _npy_blocks(path: Path, rows: int) -> Iterator[_Block]:
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not a complete .npy file ({error})") from None
    if not isinstance(values, np.ndarray) or values.ndim < 2 or (values.dtype != np.uint8 and values.dtype.kind != "f"):
        held = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else "another archive"
        raise ValueError(f"{path}: holds {held}; it must be uint8 images, or floats in [0, 1], (N, ...)")
    for start in range(0, len(values), rows):
        yield np.array(values[start : start + rows]), []


def _label_column(names: Sequence[str], path: Path) -> int | None:
    """Where the labels are, if there are any; ValueError for columns that no rule reads."""
    if not names:
        raise ValueError(f"{path}: holds no columns")
    for name in names:
        if not name.strip():
            raise ValueError(f"{path}: a column has no name (an index? write the table without it)")
        if list(names).count(name) > 1:
            raise ValueError(f"{path}: several columns are called {name!r}")
    found = [k for k, name in enumerate(names) if name.strip().lower() in _LABELS]
    if len(found) > 1:
        raise ValueError(f"{path}: columns {names[found[0]]!r} and {names[found[1]]!r}: which holds the labels?")
    if len(found) == len(names):
        raise ValueError(f"{path}: no column beside {names[0]!r}")
    return found[0] if found else None


_READERS: dict[str, Callable[[Path, int], Iterator[_Block]]] = {
    ".csv": _csv_blocks,
    ".parquet": _parquet_blocks,
    ".npy": _npy_blocks,
}
