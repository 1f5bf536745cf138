"""Image folders: ``folder/<class>/<file>`` with labels, or ``folder/<file>`` without."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from robustgen.data.array import ArrayDataset

__all__ = ["load_folder"]

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
_MODES = {1: "L", 3: "RGB"}


def load_folder(
    path: str | Path, *, channels: int | None = None, size: tuple[int, int] | None = None, n: int | None = None
) -> ArrayDataset:
    """Read every image below a folder into one uint8 tensor (N, C, H, W), in sorted order.

    Sub-folders are the classes, sorted by name; a folder without them is an unlabelled set. ``sources`` holds the path
    of each image inside the folder. Hidden files, and files that do not end like an image, are passed over.

    Args:
        channels: 1 or 3 converts each image to grey or RGB; None keeps what the files hold, which must be one of these.
        size: (height, width) to resize to (bilinear, antialiased); None demands that all images have one size.
        n: read at most n images, evenly spaced in the sorted list (``ids`` says which): each class keeps its share.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no images, images both beside and inside class folders, or a file that cannot be read or whose mode
            or size differs; it names the first such file.
    """
    path = Path(path)
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1, 3 or None, got {channels}")
    if n is not None and n < 0:
        raise ValueError(f"n must not be negative, got {n}")
    classes, files, labels = _listing(path)
    chosen = list(range(len(files))) if n is None or n >= len(files) else [i * len(files) // n for i in range(n)]
    files, labels = [files[i] for i in chosen], [labels[i] for i in chosen]
    converted = () if channels is None else (f"converted to {_MODES[channels]}",)
    resized = () if size is None else (f"resized to {size[0]}x{size[1]}, bilinear",)
    x: np.ndarray = np.empty((0, channels or 1, *(size or (1, 1))), dtype=np.uint8)
    for i, file in enumerate(files):
        image = _read(file, channels, size)  # (C, H, W)
        if i == 0:
            x = np.empty((len(files), *image.shape), dtype=np.uint8)
        elif image.shape != x.shape[1:]:
            raise ValueError(
                f"{file}: an image of shape {image.shape} (C, H, W) among images of shape {x.shape[1:]}; "
                "pass size=(height, width) to resize, channels=1 or 3 to convert"
            )
        x[i] = image
    return ArrayDataset(
        x=torch.from_numpy(x),
        y=torch.tensor(labels, dtype=torch.int64) if classes else None,
        classes=classes,
        name=path.resolve().name,
        ids=torch.tensor(chosen, dtype=torch.int64),
        sources=tuple(file.relative_to(path).as_posix() for file in files),
        preprocessing=(*converted, *resized),
    )


def _listing(path: Path) -> tuple[tuple[str, ...], list[Path], list[int]]:
    """The classes, the image files in order, and the label of each file (0 where there are no classes)."""
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder")
    loose = sorted(p for p in path.iterdir() if _is_image(p))
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    inside = [sorted(p for p in folder.rglob("*") if _is_image(p)) for folder in folders]
    if not loose and not any(inside):
        raise ValueError(f"{path}: no images in this folder (looked for {', '.join(sorted(_SUFFIXES))})")
    if not any(inside):
        return (), loose, [0] * len(loose)
    if loose:
        raise ValueError(f"{path}: images both beside and inside class folders, first {loose[0].name}")
    labels = [label for label, files in enumerate(inside) for _ in files]
    return tuple(p.name for p in folders), [p for files in inside for p in files], labels


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file()


def _read(file: Path, channels: int | None, size: tuple[int, int] | None) -> np.ndarray:
    """One image as uint8 (C, H, W)."""
    try:
        with Image.open(file) as image:
            image.load()
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged files
        raise ValueError(f"{file}: not a readable image ({error})") from None
    if image.mode[0] in "IF":  # I, I;16, F: converting these clips silently
        raise ValueError(f"{file}: mode {image.mode} has more than 8 bits a channel")
    if channels is None and image.mode not in _MODES.values():
        raise ValueError(f"{file}: mode {image.mode}; pass channels=1 or channels=3 to convert")
    if channels is not None:
        image = image.convert(_MODES[channels])
    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)  # (H, W) or (H, W, 3)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
