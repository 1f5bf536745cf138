"""How one image file becomes pixels: the right way up, with the channels and of the size that are asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageColor, ImageOps

from robustgen.checks import check_integers

__all__ = ["FORMATS", "NOTHING_ASKED", "Background", "ImageReader", "image_suffixes"]

#: What transparent images are laid on: the name of a colour, or (red, green, blue), each 0..255.
Background: TypeAlias = str | tuple[int, int, int]

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP")  # not EPS, which runs a program
_MODES = {1: "L", 3: "RGB"}
_FITS = ("squash", "crop")

FRAMES = "files read up to their first frame"
DEEP = "16-bit greys, 0..65535, rounded to 8 bits"
RESIZED = "images resized"


@dataclass(frozen=True)
class ImageReader:
    """Reads image files as uint8 (C, H, W); what is None was not asked for.

    Args:
        channels: 1 or 3 converts to grey or RGB; None keeps what the file holds, which must be one of these.
        size: (height, width) to resize to (bilinear, antialiased); None keeps that of the file.
        fit: how an image of other proportions gets that size: "squash" (the default) stretches it, "crop" scales the
            short side and cuts off what of the long one is too much, at both ends.
        background: what images with transparent places are laid on: "white", "black", or (red, green, blue). None
            refuses them.

    Raises:
        TypeError: size is not two integers.
        ValueError: another value.

    >>> ImageReader(channels=3, size=(32, 32), fit="crop")
    ImageReader(converted to RGB, resized to 32x32, bilinear, after a centre crop)
    """

    channels: int | None = None
    size: tuple[int, int] | None = None
    fit: str | None = None
    background: Background | None = None

    def __post_init__(self) -> None:
        if self.channels not in (None, 1, 3):
            raise ValueError(f"channels must be 1, 3 or None, got {self.channels}")
        if self.size is not None:
            if not isinstance(self.size, Sequence) or len(self.size) != 2:
                raise TypeError(f"size must be (height, width), got {self.size!r}")
            check_integers(height=self.size[0], width=self.size[1])
            object.__setattr__(self, "size", (int(self.size[0]), int(self.size[1])))
        if self.fit not in (None, *_FITS):
            raise ValueError(f"fit must be 'squash' or 'crop', got {self.fit!r}")
        if self.background is not None:
            object.__setattr__(self, "background", _colour(self.background))

    def __repr__(self) -> str:
        return f"ImageReader({', '.join(self.steps()) or 'as the files are'})"

    def or_else(self, other: "ImageReader") -> "ImageReader":
        """This reader, with what it was not asked for as in another one."""
        missing = {f.name: getattr(other, f.name) for f in fields(self) if getattr(self, f.name) is None}
        return replace(self, **missing)

    def steps(self, resized: bool = True) -> tuple[str, ...]:
        """What is done to the pixels, step by step, in words; ``resized``: whether any image had another size."""
        laid = () if self.background is None else (f"laid on {self.background}",)
        converted = () if self.channels is None else (f"converted to {_MODES[self.channels]}",)
        if self.size is None or not resized:
            return (*laid, *converted)
        cropped = ", after a centre crop" if self.fit == "crop" else ""
        return (*laid, *converted, f"resized to {self.size[0]}x{self.size[1]}, bilinear{cropped}")

    def read(self, file: Path) -> tuple[np.ndarray, tuple[str, ...]]:
        """The image as uint8 (C, H, W), and what there is to say of it.

        Raises:
            ValueError: a file that is not there or cannot be read, is transparent, has more than 8 bits a channel and
                is not grey, or whose mode is another; it names the file.
        """
        image, said = _decoded(file)
        image = _opaque(image, file, self.background)  # type: ignore[arg-type]  # normalised above
        if self.channels is None and image.mode not in _MODES.values():
            raise ValueError(
                f"{file}: mode {image.mode}; pass channels=1 or channels=3 to convert (in the command: --channels)"
            )
        if self.channels is not None:
            image = image.convert(_MODES[self.channels])
        if self.size is not None and image.size != self.size[::-1]:
            box = _centre(image.size, self.size) if self.fit == "crop" else None
            image = image.resize(self.size[::-1], Image.Resampling.BILINEAR, box=box)
            said = (*said, RESIZED)
        pixels = np.asarray(image)  # (H, W) or (H, W, 3)
        return (pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)), said


NOTHING_ASKED = ImageReader()  # as the files are


@cache
def image_suffixes() -> frozenset[str]:
    """How the names of image files end, in lower case."""
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS)


@cache
def _formats() -> tuple[str, ...]:
    """Those of ``FORMATS`` that this Pillow reads."""
    Image.init()  # before it, Pillow knows none
    return tuple(kind for kind in FORMATS if kind in Image.OPEN)


def _colour(background: Background) -> tuple[int, int, int]:
    try:
        red, green, blue = ImageColor.getrgb(background)[:3] if isinstance(background, str) else background
        check_integers(0, red=red, green=green, blue=blue)
        if max(red, green, blue) <= 255:
            return int(red), int(green), int(blue)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"background must be 'white', 'black' or (red, green, blue) of 0..255, got {background!r}")


def _centre(held: tuple[int, int], wanted: tuple[int, int]) -> tuple[float, float, float, float]:
    """Of an image (W, H) the largest centred box, in its pixels, with the proportions of ``wanted`` (H, W)."""
    width, height = held
    scale = min(width / wanted[1], height / wanted[0])
    across, down = (width - scale * wanted[1]) / 2, (height - scale * wanted[0]) / 2
    return across, down, width - across, height - down


def _decoded(file: Path) -> tuple[Image.Image, tuple[str, ...]]:
    """The first frame, the right way up and of 8 bits a channel; what there is to say of it."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    try:
        # Without catch_warnings, which several threads must not enter: what Pillow only warns of is measured below.
        with Image.open(file, formats=_formats()) as image:
            pixels, most = image.width * image.height, Image.MAX_IMAGE_PIXELS
            if most is not None and pixels > most:
                raise Image.DecompressionBombError(f"{pixels} pixels, more than {most}")
            said = (FRAMES,) if getattr(image, "n_frames", 1) > 1 else ()
            layout = str(image.tile)  # RGB;16B is read as RGB
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            found = image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(f"{file}: too many pixels to read ({error})") from None
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged files
        raise ValueError(f"{file}: not a readable image ({error})") from None
    if found.mode[0] not in "IF" and ";16" not in layout:
        return found, said
    grey = _of_16_bits(found) if found.mode[0] == "I" and ";16" in layout + found.mode else None
    if grey is None:  # converting these clips silently
        raise ValueError(f"{file}: mode {found.mode} has more than 8 bits a channel")
    return grey, (*said, DEEP)


def _of_16_bits(image: Image.Image) -> Image.Image | None:
    """Grey values 0..65535 as 0..255, rounded; None for other values, and for transparent ones."""
    values = np.asarray(image).astype(np.int64)
    if image.has_transparency_data or values.min() < 0 or values.max() > 65535:
        return None
    return Image.fromarray(np.round(values / 257).astype(np.uint8))


def _opaque(image: Image.Image, file: Path, background: tuple[int, int, int] | None) -> Image.Image:
    """The image on its background; itself where nothing shows through."""
    if not image.has_transparency_data:
        return image
    layer = image.convert("RGBA")
    if background is None:
        if layer.getchannel("A").getextrema()[0] == 255:
            return image
        raise ValueError(
            f"{file}: has transparent places; pass background='white', 'black' or (red, green, blue) (in the command: "
            "--background), or flatten it"
        )
    ground = Image.new("RGBA", image.size, (*background, 255))
    ground.alpha_composite(layer)
    grey = image.mode in ("L", "LA") and len(set(background)) == 1
    return ground.convert("L" if grey else "RGB")
