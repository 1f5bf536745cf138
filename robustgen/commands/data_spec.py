"""Which data a command is about."""

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias, cast

from robustgen.data import (
    ArrayDataset,
    ImageFiles,
    ImageReader,
    Table,
    TokenDataset,
    load,
    load_tokens,
    require_nonempty,
)
from robustgen.data.folder import folder_parts
from robustgen.data.image_reader import NOTHING_ASKED
from robustgen.data.load import canonical_name, image_files, names_images, path_of
from robustgen.data.table import is_table
from robustgen.data.tokens import holds_tokens

__all__ = ["DataSpec", "Inputs", "fitted"]

#: Inputs to score: in memory, or in files that are read bit by bit.
Inputs: TypeAlias = ArrayDataset | TokenDataset | ImageFiles | Table


@dataclass(frozen=True)
class DataSpec:
    """Which data: a name or a path (None: those of the run), where named sets are kept, at most ``limit`` examples.

    ``images`` is how images in files are read; what it leaves open is as the network takes it.
    """

    source: str | None
    root: str | None = None
    download: bool = False
    limit: int | None = None
    images: ImageReader = NOTHING_ASKED

    def record(self) -> dict[str, Any]:
        """As JSON, without ``images`` where nothing was asked for: older runs have no such entry."""
        found = asdict(self)
        asked = {name: value for name, value in found.pop("images").items() if value is not None}
        return found | ({"images": asked} if asked else {})

    def of(self, source: str) -> "DataSpec":
        """Other data, read in the same way."""
        return replace(self, source=source, images=self.images if names_images(source) else NOTHING_ASKED)

    def read_like(self, other: ImageReader) -> "DataSpec":
        """The same data; images in files are read as ``other`` says where this leaves it open."""
        return replace(self, images=self.images.or_else(other)) if names_images(self._named) else self

    def rooted(self, other: "DataSpec") -> "DataSpec":
        """The same data, where no folder of named sets is given in that of ``other``, to which nothing is fetched."""
        return self if self.root is not None or self.download else replace(self, root=other.root)

    def require(self) -> None:
        """ValueError where there are no such data."""
        if canonical_name(self._named) is None and not path_of(self._named).exists():
            load(self._named)  # says what is known

    def open(self, part: str) -> Inputs:
        """The "train" or "test" part; images in files, for :func:`fitted` to say how, and tables are not read yet."""
        self._check_options()
        files = image_files(self._named, part, self.images)
        if files is None:
            path = path_of(self._named)
            if self.limit is None and canonical_name(self._named) is None and is_table(path) and path.is_file():
                return Table(path)
            return self.read_tokens_too(part)
        files, _ = files.evenly(self.limit)
        if not len(files):
            raise ValueError(f"{files.name}: the data set is empty")
        return files

    def read(
        self,
        part: str,
        shape: tuple[int, ...] | None = None,
        skip: Callable[[ValueError], None] | None = None,
        *,
        spaced: bool = False,
    ) -> ArrayDataset:
        """Read the "train" or "test" part; images in files with channels and size of ``shape`` (C, H, W).

        ``skip`` is called with the error of each file that cannot be read, which is then left out; None raises it.
        ``spaced``: of a named set too, the examples within ``limit`` are spaced evenly, not the first.
        """
        self._check_options()
        if self._holds_tokens():
            raise ValueError(f"{self._named} holds tokens: of the commands, only score takes them")
        reader = asdict(self.images.or_else(_for_network(shape)))
        whole = spaced and canonical_name(self._named) is not None
        common: dict[str, Any] = {"split": part, "root": self.root, "download": self.download, "skip": skip}
        found = load(self._named, n=None if whole else self.limit, **common, **reader)
        found = found.take(self.limit) if whole and self.limit is not None else found
        require_nonempty(found)
        _check_shape(found.name, found.shape, shape)
        if self.images.size is None and (said := [step for step in found.preprocessing if step.startswith("resized")]):
            warnings.warn(f"{found.name}: {said[0]}, as the network takes them; see --size and --fit", stacklevel=2)
        return found

    def read_tokens_too(
        self,
        part: str,
        shape: tuple[int, ...] | None = None,
        skip: Callable[[ValueError], None] | None = None,
    ) -> ArrayDataset | TokenDataset:
        """What is to be scored: as :meth:`read`, ``spaced``; from an .npz file also tokens, of shape (-1,)."""
        if not self._holds_tokens():
            return self.read(part, shape, skip, spaced=True)
        self._check_options()
        found = load_tokens(path_of(self._named))
        found = found if self.limit is None else found.take(self.limit)
        _check_shape(found.name, found.shape, shape)
        return require_nonempty(found)

    def _holds_tokens(self) -> bool:
        return canonical_name(self._named) is None and holds_tokens(path_of(self._named))

    def _check_options(self) -> None:
        if self.images != NOTHING_ASKED and not names_images(self._named):
            raise ValueError(
                f"--size, --channels, --fit and --background are about images in files, {self._named} holds none"
            )

    @property
    def _named(self) -> str:
        if self.source is None:
            raise ValueError("pass --data NAME or PATH")
        return self.source

    def has_test_part(self) -> bool:
        """Whether there is a test set beside the training set: so for named sets and folders that hold both."""
        return canonical_name(self._named) is not None or "test" in folder_parts(self._named)

    def is_same_source(self, other: "DataSpec") -> bool:
        """Whether both read the same files."""
        mine, theirs = self._named, other._named
        names = canonical_name(mine), canonical_name(theirs)
        return names[0] == names[1] if any(names) else path_of(mine).resolve() == path_of(theirs).resolve()


def fitted(inputs: Inputs, shape: tuple[int, ...] | None, like: ImageReader) -> Inputs:
    """What :meth:`DataSpec.open` found, as a network takes it that was trained on inputs of this shape, read ``like``.

    Raises:
        ValueError: it does not take them.
    """
    if isinstance(inputs, ArrayDataset | Table | TokenDataset):
        _check_shape(inputs.name, inputs.shape, shape)
        return inputs
    files = cast(ImageFiles, inputs)  # torch's Dataset, a base of the others, is of no type
    reader = files.reader.or_else(like).or_else(_for_network(shape))
    if reader.size is None or reader.channels is None:
        raise ValueError(f"{files.name} holds images, the network takes {_shown(shape)}")
    _check_shape(inputs.name, (reader.channels, *reader.size), shape)
    return replace(files, reader=reader)


def _for_network(shape: tuple[int, ...] | None) -> ImageReader:
    """How images become inputs of this shape, if they can."""
    if shape is None or len(shape) != 3 or shape[0] not in (1, 3):
        return NOTHING_ASKED
    return ImageReader(channels=shape[0], size=(shape[1], shape[2]))


def _check_shape(name: str, held: tuple[int, ...], shape: tuple[int, ...] | None) -> None:
    if shape is not None and held != shape:
        inputs = "tokens" if held == TokenDataset.shape else f"inputs of shape {held}"
        raise ValueError(f"{name} holds {inputs}, the network takes {_shown(shape)}")


def _shown(shape: tuple[int, ...] | None) -> str:
    return "tokens" if shape == TokenDataset.shape else str(shape)
