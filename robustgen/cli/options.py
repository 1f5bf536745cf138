"""Options that several commands share, and how results are printed."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

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
    "WeightsOption",
    "command_line",
    "given",
    "print_found",
]

DataOption = Annotated[
    str | None,
    typer.Option("--data", help="digits, mnist, fashion-mnist, cifar10, svhn, or the path of an .npz or image folder."),
]
RootOption = Annotated[str | None, typer.Option("--data-root", help="Folder of the named sets (torchvision's layout).")]
DownloadOption = Annotated[bool, typer.Option("--download", help="Fetch a missing named set into --data-root.")]
RunOption = Annotated[Path | None, typer.Option("--run", help="Directory of a run of `robustgen train`.")]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="A network that is not ours: module:function, called without arguments.")
]
WeightsOption = Annotated[
    Path | None, typer.Option("--weights", help="Its weights: a .safetensors file, or a run directory.")
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
EpsOption = Annotated[float, typer.Option("--eps", help="Radius of the attack, pixels in [0, 1].")]
NormOption = Annotated[str, typer.Option("--norm", help="Linf, L2 or L1.")]


def command_line() -> str:
    """The command that is running, as it can be repeated."""
    return shlex.join(["robustgen", *sys.argv[1:]])


def given(context: typer.Context) -> set[str]:
    """Names of the options that are on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def print_found(found: dict[str, Any], as_json: bool) -> None:
    """Print what a command found, a line an entry or one JSON object."""
    if as_json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")
