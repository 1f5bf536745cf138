"""Image folders: ``folder/<class>/<file>`` with labels, or ``folder/<file>`` without."""

import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image, ImageColor, ImageOps

from robustgen.checks import check_integers
from robustgen.data.array import ArrayDataset
from robustgen.turns import warnings_set_to

__all__ = ["Background", "class_names", "folder_parts", "load_folder"]

#: What transparent images are laid on: the name of a colour, or (red, green, blue), each 0..255.
Background: TypeAlias = str | tuple[int, int, int]

_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP")  # not EPS, which runs a program
_MODES = {1: "L", 3: "RGB"}
_PARTS = ("train", "test")
_VALIDATION = ("val", "valid", "validation")  # a part too, which is not read
_SYSTEM = ("__macosx", "__pycache__", "@eadir", "thumbs.db", "desktop.ini")


def load_folder(
    path: str | Path,
    *,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
    n: int | None = None,
    background: Background | None = None,
    classes: Sequence[str] | None = None,
) -> ArrayDataset:
    """Read every image below a folder into one uint8 tensor (N, C, H, W), in sorted order.

    Sub-folders that hold images are the classes, sorted by name; a folder without them is an unlabelled set.
    ``sources`` holds the path of each image inside the folder. Photographs are turned as their EXIF note says.

    One warning counts what was passed over: hidden and system files (``.ipynb_checkpoints``, ``__MACOSX``,
    ``Thumbs.db``), files that do not end like an image, folders without images, the further frames of animations. A
    class folder, or a file, that is a link is followed, and counted there too where it leads out of the folder; links
    to folders inside a class, or to a folder that is read anyway, are not followed.

    Args:
        channels: 1 or 3 converts each image to grey or RGB; None keeps what the files hold, which must be one of these.
        size: (height, width) to resize to (bilinear, antialiased); None demands that all images have one size.
        n: read at most n images, evenly spaced in the sorted list (``ids`` says which): each class keeps its share.
        background: what images with transparent places are laid on: "white", "black", or (red, green, blue). None
            refuses them.
        classes: the name of each label, where another folder has numbered them; default: those that are here.

    Raises:
        FileNotFoundError: no such folder.
        TypeError: size is not two integers.
        ValueError: no images, images both beside and inside class folders, a class that is not in ``classes``, or a
            file that cannot be read, is transparent, has more than 8 bits a channel, or whose mode or size differs; it
            names the first such file.
    """
    path = Path(path)
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1, 3 or None, got {channels}")
    if size is not None:
        if not isinstance(size, Sequence) or len(size) != 2:
            raise TypeError(f"size must be (height, width), got {size!r}")
        check_integers(height=size[0], width=size[1])
    if n is not None and n < 0:
        raise ValueError(f"n must not be negative, got {n}")
    colour = None if background is None else _colour(background)
    listing = _Listing.of(path)
    files, labels, names = listing.numbered(classes)
    chosen = list(range(len(files))) if n is None or n >= len(files) else [i * len(files) // n for i in range(n)]
    files, labels = [files[i] for i in chosen], [labels[i] for i in chosen]
    laid = () if colour is None else (f"laid on {colour}",)
    converted = () if channels is None else (f"converted to {_MODES[channels]}",)
    resized = () if size is None else (f"resized to {size[0]}x{size[1]}, bilinear",)
    x: np.ndarray = np.empty((0, channels or 1, *(size or (1, 1))), dtype=np.uint8)
    for i, file in enumerate(files):
        image, animated = _read(file, channels, size, colour)  # (C, H, W)
        if animated:
            listing.passed_over["files read up to their first frame"].append(file)
        if i == 0:
            x = _room(path, len(files), image.shape)
        elif image.shape != x.shape[1:]:
            raise ValueError(
                f"{file}: an image of shape {image.shape} (C, H, W) among images of shape {x.shape[1:]}; "
                "pass size=(height, width) to resize, channels=1 or 3 to convert"
            )
        x[i] = image
    listing.warn()
    return ArrayDataset(
        x=torch.from_numpy(x),
        y=torch.tensor(labels, dtype=torch.int64) if names else None,
        classes=names,
        name=path.resolve().name,
        ids=torch.tensor(chosen, dtype=torch.int64),
        sources=tuple(file.relative_to(path).as_posix() for file in files),
        preprocessing=(*laid, *converted, *resized),
    )


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
    passed_over: defaultdict[str, list[Path]]

    @classmethod
    def of(cls, root: Path) -> "_Listing":
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder")
        listing = cls(root, [], {}, defaultdict(list))
        for entry in sorted(root.iterdir()):
            if entry.is_dir() and not _is_junk(entry.name):
                listing._add_class(entry)
            elif listing._takes(entry):
                listing.loose.append(entry)
        return listing

    def holds_images(self) -> bool:
        return bool(self.loose or self.classes)

    def numbered(self, classes: Sequence[str] | None) -> tuple[list[Path], list[int], tuple[str, ...]]:
        """The files in order, the label of each (0 where there are no classes) and the name of each label."""
        if not self.holds_images():
            raise ValueError(f"{self.root}: no images in this folder (looked for {', '.join(_FORMATS)})")
        if self.loose and self.classes:
            raise ValueError(f"{self.root}: images both beside and inside class folders, first {self.loose[0].name}")
        if not self.classes:
            return self.loose, [0] * len(self.loose), ()
        names = tuple(self.classes if classes is None else classes)
        number = {name: label for label, name in enumerate(names)}
        for name in self.classes:
            if name not in number:
                raise ValueError(f"{self.root}: the class {name!r} is none of {', '.join(map(repr, names[:8]))}")
        labels = [number[name] for name, files in self.classes.items() for _ in files]
        return [file for files in self.classes.values() for file in files], labels, names

    def warn(self) -> None:
        """Say what was passed over, in one line."""
        said = [
            f"{kind}: {len(paths)} ({min(paths).relative_to(self.root).as_posix()}{', ...' if len(paths) > 1 else ''})"
            for kind, paths in self.passed_over.items()
        ]
        if said:
            warnings.warn(f"{self.root}: {'; '.join(said)}", stacklevel=3)

    def _add_class(self, folder: Path) -> None:
        if folder.is_symlink():
            if not self._leads_out(folder):
                self.passed_over["links to folders not followed"].append(folder)
                return
            self.passed_over["links out of this folder followed"].append(folder)
        files = self._below(folder)
        if files:
            self.classes[folder.name] = files
        else:
            self.passed_over["folders without images passed over"].append(folder)

    def _below(self, folder: Path) -> list[Path]:
        found, waiting = [], [folder]
        while waiting:
            for entry in waiting.pop().iterdir():
                if not entry.is_dir() or _is_junk(entry.name):
                    found += [entry] if self._takes(entry) else []
                elif entry.is_symlink():
                    self.passed_over["links to folders not followed"].append(entry)
                else:
                    waiting.append(entry)
        return sorted(found)

    def _takes(self, entry: Path) -> bool:
        """Whether to read it: an image; what is passed over, or read from elsewhere, is kept in mind."""
        if _is_junk(entry.name):
            self.passed_over["hidden or system files passed over"].append(entry)
            return False
        if entry.suffix.lower() not in _suffixes() or not entry.is_file():
            self.passed_over["files that are no images passed over"].append(entry)
            return False
        if entry.is_symlink() and self._leads_out(entry):
            self.passed_over["links out of this folder followed"].append(entry)
        return True

    def _leads_out(self, link: Path) -> bool:
        return not link.resolve().is_relative_to(self.root.resolve())


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM


@cache
def _suffixes() -> frozenset[str]:
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in _FORMATS)


def _colour(background: Background) -> tuple[int, int, int]:
    try:
        red, green, blue = ImageColor.getrgb(background)[:3] if isinstance(background, str) else background
        check_integers(0, red=red, green=green, blue=blue)
        if max(red, green, blue) <= 255:
            return int(red), int(green), int(blue)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"background must be 'white', 'black' or (red, green, blue) of 0..255, got {background!r}")


def _room(path: Path, n: int, shape: tuple[int, ...]) -> np.ndarray:
    try:
        return np.empty((n, *shape), dtype=np.uint8)
    except MemoryError:
        needed = n * int(np.prod(shape)) / 2**30
        raise ValueError(f"{path}: {n} images {shape} take {needed:.0f} GiB: pass size=(height, width) or n") from None


def _read(
    file: Path, channels: int | None, size: tuple[int, int] | None, background: tuple[int, int, int] | None
) -> tuple[np.ndarray, bool]:
    """One image as uint8 (C, H, W), and whether the file holds further ones."""
    image, animated, deep = _decoded(file)
    if deep:  # converting these clips silently
        raise ValueError(f"{file}: mode {image.mode} has more than 8 bits a channel")
    image = _opaque(image, file, background)
    if channels is None and image.mode not in _MODES.values():
        raise ValueError(f"{file}: mode {image.mode}; pass channels=1 or channels=3 to convert")
    if channels is not None:
        image = image.convert(_MODES[channels])
    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)  # (H, W) or (H, W, 3)
    return (pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)), animated


def _decoded(file: Path) -> tuple[Image.Image, bool, bool]:
    """The first frame, the right way up; whether there are more; whether its channels have more than 8 bits."""
    try:
        kinds = [kind for kind in _FORMATS if kind in Image.OPEN]
        with (
            warnings_set_to("error", Image.DecompressionBombWarning),
            Image.open(file, formats=kinds) as image,
        ):
            animated = getattr(image, "n_frames", 1) > 1
            deep = image.mode[0] in "IF" or ";16" in str(image.tile)  # I, I;16, F; RGB;16B is read as RGB
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return image, animated, deep
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(f"{file}: too many pixels to read ({error})") from None
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged files
        raise ValueError(f"{file}: not a readable image ({error})") from None


def _opaque(image: Image.Image, file: Path, background: tuple[int, int, int] | None) -> Image.Image:
    """The image on its background; itself where nothing shows through."""
    if not image.has_transparency_data:
        return image
    layer = image.convert("RGBA")
    if background is None:
        if layer.getchannel("A").getextrema()[0] == 255:
            return image
        raise ValueError(
            f"{file}: has transparent places; pass background='white', 'black' or (red, green, blue), or flatten it"
        )
    ground = Image.new("RGBA", image.size, (*background, 255))
    ground.alpha_composite(layer)
    grey = image.mode in ("L", "LA") and len(set(background)) == 1
    return ground.convert("L" if grey else "RGB")
