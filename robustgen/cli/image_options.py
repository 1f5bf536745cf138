"""Options that say how images in files are read."""

from typing import TYPE_CHECKING, Annotated

import typer

from robustgen.cli.grouped_help import DATA

if TYPE_CHECKING:
    from robustgen.data import ImageReader

__all__ = ["BackgroundOption", "ChannelsOption", "FitOption", "SizeOption", "StrictOption", "image_reader"]

SizeOption = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="H[xW]",
        help="Of images in files, in pixels; default: that of the network.",
        rich_help_panel=DATA,
    ),
]
ChannelsOption = Annotated[
    int | None,
    typer.Option(
        "--channels", help="Of images in files, 1 (grey) or 3 (RGB); default: as the network has.", rich_help_panel=DATA
    ),
]
FitOption = Annotated[
    str | None,
    typer.Option(
        "--fit",
        help="How images of other proportions get that size: squash (default), or crop, the centre alone.",
        rich_help_panel=DATA,
    ),
]
BackgroundOption = Annotated[
    str | None,
    typer.Option(
        "--background",
        help="What images with transparent places are laid on: white, '#808080', ...; without: refused.",
        rich_help_panel=DATA,
    ),
]
StrictOption = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="Stop at a file that cannot be read; else it is reported, counted and skipped.",
        rich_help_panel=DATA,
    ),
]


def image_reader(size: str | None, channels: int | None, fit: str | None, background: str | None) -> "ImageReader":
    """How images in files are read, from the options; ValueError for a value that is none."""
    from robustgen.data import ImageReader

    sides = None if size is None else _sides(size)
    return ImageReader(channels, sides, fit, background)


def _sides(text: str) -> tuple[int, int]:
    """Height and width.

    >>> _sides("32"), _sides("32x48")
    ((32, 32), (32, 48))
    """
    height, _, width = text.partition("x")
    if not height.isdecimal() or not (width or height).isdecimal() or text.endswith("x"):
        raise ValueError(f"--size {text}: write a number of pixels, or height x width such as 32x48")
    return int(height), int(width or height)
