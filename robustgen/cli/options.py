"""Options that several commands share."""

import math
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustgen.cli.terminal import ADVERSARIAL, ATTACK, DATA, GENERATIVE, NETWORK, RUN

__all__ = [
    "BackgroundOption",
    "ChannelsOption",
    "DataOption",
    "DeviceOption",
    "DownloadOption",
    "EpsOption",
    "FitOption",
    "JsonOption",
    "LimitOption",
    "MeanOption",
    "ModelOption",
    "NormOption",
    "QuietOption",
    "RootOption",
    "RunOption",
    "SeedOption",
    "SetOption",
    "SizeOption",
    "StdOption",
    "StrictOption",
    "TrainingEpsOption",
    "TrainingLimitOption",
    "TrainingNormOption",
    "TrustOption",
    "WeightsOption",
    "about_option",
    "command_line",
    "given",
    "image_reader",
    "norm_name",
    "normalization",
    "radius",
    "refuse_empty",
]


def radius(text: object) -> float:
    """A finite number > 0, or a fraction of two.

    >>> radius("8/255") == 8 / 255, radius("0.1")
    (True, 0.1)
    """
    parts = str(text).split("/")
    try:
        numbers = [float(part) for part in parts]
        value = numbers[0] if len(parts) == 1 else numbers[0] / numbers[1]
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if len(parts) > 2 or not 0 < value < math.inf:
        raise typer.BadParameter(f"{text}: it is a number > 0, or a fraction such as 8/255", param_hint="'--eps'")
    return value


def norm_name(text: object) -> str:
    """Linf, L2 or L1, written in any case.

    >>> norm_name("linf"), norm_name("l2")
    ('Linf', 'L2')
    """
    known = {name.lower(): name for name in ("Linf", "L2", "L1")}
    if str(text).lower() not in known:
        raise typer.BadParameter(f"{text}: it is Linf, L2 or L1", param_hint="'--norm'")
    return known[str(text).lower()]


def normalization(mean: str | None, std: str | None) -> tuple[tuple[float, ...], tuple[float, ...]] | tuple[None, None]:
    """What --mean and --std say: numbers of each channel; one number is for all.

    Raises:
        ValueError: one without the other, no finite numbers, a std that is not positive, other channels than the other.

    >>> normalization("0.5", "0.2,0.2,0.3")
    ((0.5, 0.5, 0.5), (0.2, 0.2, 0.3))
    """
    if mean is None and std is None:
        return None, None
    if mean is None or std is None:
        raise ValueError("--mean and --std go together: (pixels in [0, 1] - mean) / std is what the network takes")
    means, stds = _numbers("--mean", mean), _numbers("--std", std)
    channels = max(len(means), len(stds))
    if not {len(means), len(stds)} <= {1, channels}:
        raise ValueError(f"--mean {mean} has {len(means)} channels, --std {std} has {len(stds)}")
    if min(stds) <= 0:
        raise ValueError(f"--std {std}: each number must be > 0")
    return means * (channels // len(means)), stds * (channels // len(stds))


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = (math.nan,)
    if not all(map(math.isfinite, found)):
        raise ValueError(f"{option} {text}: it is a number, or one for each channel, as in 0.485,0.456,0.406")
    return found


def _bars(context: typer.Context, quiet: bool) -> bool:
    """Show bars while the command runs, unless it is to be quiet."""
    from robustgen.progress import showing

    context.with_resource(showing(not quiet))
    return quiet


DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="digits, mnist, fashion-mnist, cifar10, svhn, or the path of an .npz or image folder.",
        rich_help_panel=DATA,
    ),
]
RootOption = Annotated[
    str | None,
    typer.Option("--data-root", help="Folder of the named sets (torchvision's layout).", rich_help_panel=DATA),
]
DownloadOption = Annotated[
    bool, typer.Option("--download", help="Fetch a missing named set into --data-root.", rich_help_panel=DATA)
]
RunOption = Annotated[
    Path | None,
    typer.Option(
        "--run",
        help="Directory of a run of `robustgen train`; or example:digits, example:mnist.",
        rich_help_panel=NETWORK,
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="A network that is not ours: torchvision:NAME, timm:NAME, hf:FOLDER (of save_pretrained), or "
        "module:function, called without arguments. Nothing is fetched. With --run: what its network is.",
        rich_help_panel=NETWORK,
    ),
]
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust", help="Run the code that a run names as its network (see SECURITY.md).", rich_help_panel=NETWORK
    ),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        help="Its weights: .safetensors, a state dict of torch.save (.pt, .pth), or a run directory.",
        rich_help_panel=NETWORK,
    ),
]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, ...", rich_help_panel=RUN)]
SeedOption = Annotated[
    int, typer.Option("--seed", min=0, max=2**63 - 1, help="Of everything random.", rich_help_panel=RUN)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.", rich_help_panel=RUN)]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress bars.", callback=_bars, rich_help_panel=RUN)]
LimitOption = Annotated[
    int | None,
    typer.Option("--limit", min=1, help="At most so many examples, spaced evenly over the data.", rich_help_panel=DATA),
]
TrainingLimitOption = Annotated[
    int | None,
    typer.Option(
        "--limit",
        min=1,
        help="At most so many examples: the first of a named set, evenly spaced ones of files.",
        rich_help_panel=DATA,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="An argument of the model's or detector's class, name=value; repeatable. A wrong name lists them all.",
        rich_help_panel=GENERATIVE,
    ),
]
EpsOption = Annotated[
    float | None,
    typer.Option(
        "--eps",
        parser=radius,
        metavar="NUMBER",
        rich_help_panel=ATTACK,
        help="Radius of the attack, of pixels in [0, 1]: a number, or a fraction such as 8/255. Default: the one that "
        "the run was trained against; else 0.3.",
    ),
]
NormOption = Annotated[
    str | None,
    typer.Option(
        "--norm",
        parser=norm_name,
        metavar="NORM",
        rich_help_panel=ATTACK,
        help="Linf, L2 or L1, in any case. Default: the one that the run was trained against; else Linf.",
    ),
]
TrainingEpsOption = Annotated[
    float | None,
    typer.Option(
        "--eps",
        parser=radius,
        metavar="NUMBER",
        rich_help_panel=ADVERSARIAL,
        help="Radius of the attack in training, of pixels in [0, 1]: a number, or a fraction such as 8/255. Default: "
        "the recipe's; without one 0.3.",
    ),
]
TrainingNormOption = Annotated[
    str | None,
    typer.Option(
        "--norm",
        parser=norm_name,
        metavar="NORM",
        rich_help_panel=ADVERSARIAL,
        help="Linf (default), L2 or L1, in any case.",
    ),
]
MeanOption = Annotated[
    str | None,
    typer.Option(
        "--mean",
        help="With --std, for a network that was trained on normalised pixels (most pretrained ones): it is given "
        "(pixels in [0, 1] - mean) / std. One number, or one for each channel: 0.485,0.456,0.406.",
        rich_help_panel=NETWORK,
    ),
]
StdOption = Annotated[str | None, typer.Option("--std", help="See --mean: 0.229,0.224,0.225.", rich_help_panel=NETWORK)]


def refuse_empty(arguments: Sequence[str]) -> None:
    """ValueError for an argument that is empty: it would pass for the default, or for the current folder.

    ``--fortify ""`` is no layer, which ``--input-autoencoder`` allows.
    """
    for before, argument in zip(["", *arguments], arguments, strict=False):
        name = before if argument == "" else argument.rstrip("=") if re.fullmatch(r"--[a-z-]+=", argument) else None
        if name is not None and name != "--fortify":
            what = name if name.startswith("-") else "an argument"
            raise ValueError(f"{what} is empty: give it a value, or leave it out")


@contextmanager
def about_option(option: str) -> Iterator[None]:
    """Say of what is refused inside of which option it is."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None


def command_line(without: str | None = None) -> str:
    """The command that is running, as it can be repeated; ``without`` a flag."""
    return shlex.join(["robustgen", *(word for word in sys.argv[1:] if word != without)])


def given(context: typer.Context) -> set[str]:
    """Names of the options that are on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


if TYPE_CHECKING:
    from robustgen.data import ImageReader


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
