"""Image files of any number and size, read batch by batch, so that they fill no memory."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustgen.data.array import ArrayDataset
from robustgen.data.image_reader import RESIZED, ImageReader

__all__ = ["ImageFiles", "Remarks"]

_THREADS = 4  # Pillow's decoders run beside one another
_AHEAD = 2  # batches that are decoded while one is scored


class Remarks:
    """What there is to say of files, by kind: how many, and the first by name."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def __contains__(self, kind: str) -> bool:
        return kind in self._found

    def add(self, kind: str, name: str) -> None:
        count, first = self._found.get(kind, (0, name))
        self._found[kind] = (count + 1, min(first, name))

    def line(self) -> str:
        """All of it in one line, but for images that were resized, as was asked for.

        >>> remarks = Remarks()
        >>> for name in ("b.gif", "a.gif"):
        ...     remarks.add("files read up to their first frame", name)
        >>> remarks.line()
        'files read up to their first frame: 2 (a.gif, ...)'
        """
        return "; ".join(
            f"{kind}: {count} ({first}{', ...' if count > 1 else ''})"
            for kind, (count, first) in self._found.items()
            if kind != RESIZED
        )


@dataclass(frozen=True, eq=False, repr=False)
class ImageFiles:
    """Image files in their order, and how they are read; nothing is read before it is asked for.

    Args:
        root: what names are relative to.
        names: of the files; absolute ones are as they are.
        name: what errors call the set.
        reader: makes pixels of a file.
    """

    root: Path
    names: tuple[str, ...]
    name: str
    reader: ImageReader

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"ImageFiles({self.name!r}, {len(self)} files, {self.reader!r})"

    def evenly(self, n: int | None) -> tuple["ImageFiles", list[int]]:
        """At most n of them (None: all), evenly spaced, and which these are: what is sorted keeps its shares."""
        if n is not None and n < 0:
            raise ValueError(f"n must not be negative, got {n}")
        chosen = range(len(self)) if n is None or n >= len(self) else [i * len(self) // n for i in range(n)]
        return replace(self, names=tuple(self.names[i] for i in chosen)), list(chosen)

    def array(self, remarks: Remarks, ids: list[int], skip: Callable[[ValueError], None] | None = None) -> ArrayDataset:
        """All of them as one unlabelled data set in memory; ``remarks`` and ``skip`` are as in :meth:`batches`.

        Raises:
            ValueError: a file that cannot be read, or whose image has another shape than the first one; it is named.
                With ``skip``, where none can be read.
        """
        x: np.ndarray = np.empty((0, self.reader.channels or 1, *(self.reader.size or (1, 1))), dtype=np.uint8)
        kept: list[int] = []
        for i, name in enumerate(self.names):
            try:
                image, said = self.reader.read(self.root / name)  # (C, H, W)
            except ValueError as error:
                if skip is None:
                    raise
                skip(error)
                continue
            for kind in said:
                remarks.add(kind, name)
            if not kept:
                x = _room(self.root, len(self), image.shape)
            elif image.shape != x.shape[1:]:
                raise ValueError(
                    f"{self.root / name}: an image of shape {image.shape} (C, H, W) among images of shape "
                    f"{x.shape[1:]}; {_remedy(image.shape, x.shape[1:])}"
                )
            x[len(kept)] = image
            kept.append(i)
        if self.names and not kept:
            raise ValueError(f"{self.name}: none of the {len(self)} files could be read")
        return ArrayDataset(
            x=torch.from_numpy(x[: len(kept)]),
            name=self.name,
            ids=torch.tensor([ids[i] for i in kept], dtype=torch.int64),
            sources=tuple(self.names[i] for i in kept),
            preprocessing=self.reader.steps(resized=RESIZED in remarks),
        )

    def batches(
        self, size: int, remarks: Remarks, skip: Callable[[ValueError], None] | None = None
    ) -> Iterator[tuple[list[str], Tensor]]:
        """Names and images, float32 (B, C, H, W) in [0, 1], of at most ``size`` files at a time, in order.

        A few files are decoded at once and a few batches ahead, in threads.

        Args:
            remarks: takes what there is to say of the files.
            skip: called with the error of each file that cannot be read, which is then left out; None raises it.

        Raises:
            ValueError: such a file, which it names.
        """
        names = iter(self.names)
        waiting: deque[list[tuple[str, Future[tuple[np.ndarray, tuple[str, ...]]]]]] = deque()
        pool = ThreadPoolExecutor(_THREADS)
        try:
            while True:
                while len(waiting) <= _AHEAD and (some := list(islice(names, size))):
                    waiting.append([(name, pool.submit(self.reader.read, self.root / name)) for name in some])
                if not waiting:
                    return
                read: list[tuple[str, np.ndarray]] = []
                for name, future in waiting.popleft():
                    try:
                        image, said = future.result()
                    except ValueError as error:
                        if skip is None:
                            raise
                        skip(error)
                        continue
                    read.append((name, image))
                    for kind in said:
                        remarks.add(kind, name)
                if read:
                    pixels = np.ascontiguousarray(np.stack([image for _, image in read]))  # not channels last
                    yield [name for name, _ in read], torch.from_numpy(pixels).to(torch.float32).div_(255)
        finally:
            pool.shutdown(cancel_futures=True)


def _room(path: Path, n: int, shape: tuple[int, ...]) -> np.ndarray:
    try:
        return np.empty((n, *shape), dtype=np.uint8)
    except MemoryError:
        needed = n * int(np.prod(shape)) / 2**30
        raise ValueError(
            f"{path}: {n} images {shape} take {needed:.0f} GiB: pass size=(height, width) or n (in the "
            "command: --size, --limit)"
        ) from None


def _remedy(shape: tuple[int, ...], others: tuple[int, ...]) -> str:
    """How images of two shapes (C, H, W) become one."""
    resize, convert = "size=(height, width) to resize", "channels=1 or 3 to convert"
    if shape[1:] == others[1:]:
        return f"pass {convert} (in the command: --channels)"
    return f"pass {resize}, {convert} (in the command: --size, --channels)"
