"""Options that several commands share."""

import math
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "DataOption",
    "DeviceOption",
    "DownloadOption",
    "EpsOption",
    "JsonOption",
    "LimitOption",
    "ModelOption",
    "NormOption",
    "QuietOption",
    "RootOption",
    "RunOption",
    "SeedOption",
    "SetOption",
    "TrustOption",
    "WeightsOption",
    "command_line",
    "given",
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


DataOption = Annotated[
    str | None,
    typer.Option("--data", help="digits, mnist, fashion-mnist, cifar10, svhn, or the path of an .npz or image folder."),
]
RootOption = Annotated[str | None, typer.Option("--data-root", help="Folder of the named sets (torchvision's layout).")]
DownloadOption = Annotated[bool, typer.Option("--download", help="Fetch a missing named set into --data-root.")]
RunOption = Annotated[Path | None, typer.Option("--run", help="Directory of a run of `robustgen train`.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="A network that is not ours: module:function, called without arguments. With --run: what its network is.",
    ),
]
TrustOption = Annotated[
    bool, typer.Option("--trust", help="Run the code that a run names as its network (see SECURITY.md).")
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(
        "--weights", help="Its weights: .safetensors, a state dict of torch.save (.pt, .pth), or a run directory."
    ),
]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, ...")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Of everything random.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
LimitOption = Annotated[int | None, typer.Option("--limit", help="Use at most so many examples.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="An argument of the model's or detector's class, name=value; repeatable. A wrong name lists them all.",
    ),
]
EpsOption = Annotated[
    float,
    typer.Option(
        "--eps",
        parser=radius,
        metavar="NUMBER",
        help="Radius of the attack, of pixels in [0, 1]: a number, or a fraction such as 8/255.",
    ),
]
NormOption = Annotated[str, typer.Option("--norm", help="Linf, L2 or L1.")]


def refuse_empty(arguments: Sequence[str]) -> None:
    """ValueError for an argument that is empty: it would pass for the default, or for the current folder.

    ``--fortify ""`` is no layer, which ``--input-autoencoder`` allows.
    """
    for before, argument in zip(["", *arguments], arguments, strict=False):
        name = before if argument == "" else argument.rstrip("=") if re.fullmatch(r"--[a-z-]+=", argument) else None
        if name is not None and name != "--fortify":
            what = name if name.startswith("-") else "an argument"
            raise ValueError(f"{what} is empty: give it a value, or leave it out")


def command_line() -> str:
    """The command that is running, as it can be repeated."""
    return shlex.join(["robustgen", *sys.argv[1:]])


def given(context: typer.Context) -> set[str]:
    """Names of the options that are on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
