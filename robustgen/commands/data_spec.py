"""Which data a command is about."""

from dataclasses import dataclass
from pathlib import Path

from robustgen.data import ArrayDataset, load, require_nonempty
from robustgen.data.folder import folder_parts
from robustgen.data.load import canonical_name

__all__ = ["DataSpec"]


@dataclass(frozen=True)
class DataSpec:
    """Which data: a name or a path (None: those of the run), where named sets are kept, at most ``limit`` examples."""

    source: str | None
    root: str | None = None
    download: bool = False
    limit: int | None = None

    def read(self, part: str, shape: tuple[int, ...] | None = None) -> ArrayDataset:
        """Read the "train" or "test" part; images of a folder are read with the channels of ``shape`` (C, H, W)."""
        channels = shape[0] if shape is not None and len(shape) == 3 and shape[0] in (1, 3) else None
        found = load(self._named, split=part, root=self.root, download=self.download, channels=channels, n=self.limit)
        require_nonempty(found)
        if shape is not None and tuple(found.x.shape[1:]) != shape:
            raise ValueError(
                f"{found.name} holds inputs of shape {tuple(found.x.shape[1:])}, the network takes {shape}"
            )
        return found

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
        return names[0] == names[1] if any(names) else Path(mine).resolve() == Path(theirs).resolve()
