"""Image folders: ``folder/<class>/<file>`` with labels, or ``folder/<file>`` without."""

import unicodedata
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import torch

from robustgen.data.array import ArrayDataset
from robustgen.data.image_files import ImageFiles, Remarks
from robustgen.data.image_reader import FORMATS, Background, ImageReader, image_suffixes

__all__ = ["class_names", "folder_images", "folder_parts", "load_folder", "part_of_folder"]

_PARTS = ("train", "test")
_VALIDATION = ("val", "valid", "validation")  # a part too, which is not read
_SYSTEM = ("__macosx", "__pycache__", "@eadir", "thumbs.db", "desktop.ini")


def load_folder(
    path: str | Path,
    *,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
    fit: str | None = None,
    n: int | None = None,
    background: Background | None = None,
    classes: Sequence[str] | None = None,
    skip: Callable[[ValueError], None] | None = None,
) -> ArrayDataset:
    """Read every image below a folder into one uint8 tensor (N, C, H, W), in sorted order.

    Sub-folders that hold images are the classes, sorted by name; a folder without them is an unlabelled set.
    ``sources`` holds the path of each image inside the folder. Photographs are turned as their EXIF note says.

    One warning counts what was passed over: hidden and system files (``.ipynb_checkpoints``, ``__MACOSX``,
    ``Thumbs.db``), files that do not end like an image, folders without images, the further frames of animations. A
    class folder, or a file, that is a link is followed, and counted there too where it leads out of the folder; links
    to folders inside a class, or to a folder that is read anyway, are not followed.

    Args:
        channels, size, fit, background: how the images are read, see :class:`~robustgen.data.ImageReader`; without a
            size all images must have one.
        n: read at most n images, evenly spaced in the sorted list (``ids`` says which): each class keeps its share.
        skip: called with the error of each file that cannot be read, which is then left out; None raises it.
        classes: the name of each label, where another folder has numbered them; default: those that are here.

    Raises:
        FileNotFoundError: no such folder.
        TypeError: size is not two integers.
        ValueError: no images, images both beside and inside class folders, a class that is not in ``classes``, or a
            file that cannot be read, see :meth:`~robustgen.data.ImageReader.read`, or whose size differs; it names the
            first such file.
    """
    reader = ImageReader(channels, size, fit, background)
    listing = _Listing.of(Path(path))
    labels, names = listing.numbered(classes)
    files, chosen = listing.images(reader).evenly(n)
    dataset = files.array(listing.remarks, chosen, skip)
    listing.warn()
    if not names:
        return dataset
    return replace(dataset, y=torch.tensor([labels[i] for i in dataset.ids.tolist()], dtype=torch.int64), classes=names)


def folder_images(path: Path, reader: ImageReader) -> ImageFiles:
    """The images that :func:`load_folder` reads, with the same warning of what is passed over, before they are read."""
    listing = _Listing.of(path)
    listing.numbered(None)
    listing.warn()
    return listing.images(reader)


def folder_parts(path: str | Path) -> dict[str, Path]:
    """The folders "train" and "test" in a data set's folder, spelled in any case; none where it is a single set.

    Raises:
        ValueError: two spellings of one part; or one part alone beside other folders, which may be a class.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        return {}
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not _is_junk(p.name))
    found: dict[str, Path] = {}
    for folder in folders:
        part = folder.name.lower()
        if part in found:
            raise ValueError(f"{path}: holds both {found[part].name!r} and {folder.name!r}: which one is the part?")
        if part in _PARTS:
            found[part] = folder
    if len(found) == 1:
        (alone,) = found.values()
        others = (p for p in folders if p != alone and p.name.lower() not in _VALIDATION)
        if beside := next((p for p in others if _Listing.of(p).holds_images()), None):
            raise ValueError(
                f"{path}: {alone.name!r} beside {beside.name!r} may be a part of the data or a class: pass the folder "
                "of the part itself, or read the classes with data.load_folder"
            )
    return found


def part_of_folder(path: Path, split: str) -> Path:
    """The folder of the part asked for; ``path`` itself where it is a single set. Warns of what is not read.

    Raises:
        ValueError: there are parts, but not this one.
    """
    parts = folder_parts(path)
    if not parts:
        return path
    if split not in parts:
        there = " and ".join(repr(part.name) for part in parts.values())
        raise ValueError(f"{path}: no folder {split!r} in it, only {there}")
    if beside := [p.name for p in sorted(path.iterdir()) if p not in parts.values()]:
        warnings.warn(f"{path}: not read, beside {' and '.join(parts)}: {', '.join(beside[:5])}", stacklevel=3)
    if parts[split].is_symlink():
        warnings.warn(f"{parts[split]}: a link, followed to {parts[split].resolve()}", stacklevel=3)
    return parts[split]


def class_names(folders: Iterable[Path]) -> tuple[str, ...]:
    """The classes that any of the folders, the parts of one data set, holds images of: one numbering for all of them.

    Raises:
        ValueError: a class is spelled in one part otherwise than in another.
    """
    listed = [set(_Listing.of(folder).classes) for folder in folders]
    for one, other in combinations(listed, 2):
        spelled = {_folded(name): name for name in other - one}
        for name in sorted(one - other):
            if _folded(name) in spelled:
                again = spelled[_folded(name)]
                raise ValueError(f"the class {name!r} of one part is {again!r} in another: spell it one way")
    return tuple(sorted(set().union(*listed)))


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


@dataclass
class _Listing:
    """What a folder holds: images beside class folders, those in each, and what is neither, by kind."""

    root: Path
    loose: list[Path]
    classes: dict[str, list[Path]]
    remarks: Remarks

    @classmethod
    def of(cls, root: Path) -> "_Listing":
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder")
        listing = cls(root, [], {}, Remarks())
        for entry in sorted(root.iterdir()):
            if entry.is_dir() and not _is_junk(entry.name):
                listing._add_class(entry)
            elif listing._takes(entry):
                listing.loose.append(entry)
        return listing

    def holds_images(self) -> bool:
        return bool(self.loose or self.classes)

    def images(self, reader: ImageReader) -> ImageFiles:
        """The files in order: class by class, sorted."""
        files = self.loose or [file for files in self.classes.values() for file in files]
        names = tuple(file.relative_to(self.root).as_posix() for file in files)
        return ImageFiles(self.root, names, self.root.resolve().name, reader)

    def numbered(self, classes: Sequence[str] | None) -> tuple[list[int], tuple[str, ...]]:
        """The label of each file, and the name of each label; none where there are no classes."""
        if not self.holds_images():
            raise ValueError(f"{self.root}: no images in this folder (looked for {', '.join(FORMATS)})")
        if self.loose and self.classes:
            raise ValueError(f"{self.root}: images both beside and inside class folders, first {self.loose[0].name}")
        if not self.classes:
            return [], ()
        names = tuple(self.classes if classes is None else classes)
        number = {name: label for label, name in enumerate(names)}
        for name in self.classes:
            if name not in number:
                raise ValueError(f"{self.root}: the class {name!r} is none of {', '.join(map(repr, names[:8]))}")
        return [number[name] for name, files in self.classes.items() for _ in files], names

    def warn(self) -> None:
        """Say what was passed over, in one line."""
        if line := self.remarks.line():
            warnings.warn(f"{self.root}: {line}", stacklevel=3)

    def _remark(self, kind: str, path: Path) -> None:
        self.remarks.add(kind, path.relative_to(self.root).as_posix())

    def _add_class(self, folder: Path) -> None:
        if folder.is_symlink():
            if not self._leads_out(folder):
                self._remark("links to folders not followed", folder)
                return
            self._remark("links out of this folder followed", folder)
        files = self._below(folder)
        if files:
            self.classes[folder.name] = files
        else:
            self._remark("folders without images passed over", folder)

    def _below(self, folder: Path) -> list[Path]:
        found, waiting = [], [folder]
        while waiting:
            for entry in waiting.pop().iterdir():
                if not entry.is_dir() or _is_junk(entry.name):
                    found += [entry] if self._takes(entry) else []
                elif entry.is_symlink():
                    self._remark("links to folders not followed", entry)
                else:
                    waiting.append(entry)
        return sorted(found)

    def _takes(self, entry: Path) -> bool:
        """Whether to read it: an image; what is passed over, or read from elsewhere, is kept in mind."""
        if _is_junk(entry.name):
            self._remark("hidden or system files passed over", entry)
            return False
        if entry.suffix.lower() not in image_suffixes() or not entry.is_file():
            self._remark("files that are no images passed over", entry)
            return False
        if entry.is_symlink() and self._leads_out(entry):
            self._remark("links out of this folder followed", entry)
        return True

    def _leads_out(self, link: Path) -> bool:
        return not link.resolve().is_relative_to(self.root.resolve())


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM
