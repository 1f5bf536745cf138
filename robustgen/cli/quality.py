"""``robustgen quality``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from robustgen.cli.options import (
    BackgroundOption,
    ChannelsOption,
    DataOption,
    DeviceOption,
    DownloadOption,
    FitOption,
    JsonOption,
    LimitOption,
    QuietOption,
    RootOption,
    SeedOption,
    SizeOption,
    command_line,
    image_reader,
)
from robustgen.cli.terminal import GENERATIVE, NETWORK, RUN, say

__all__ = ["quality"]


def quality(
    checkpoint: Annotated[
        Path,
        typer.Option("--checkpoint", "--run", help="Run of `robustgen train MODEL`.", rich_help_panel=GENERATIVE),
    ],
    data: DataOption = None,
    data_root: RootOption = None,
    download: DownloadOption = False,
    limit: LimitOption = None,
    size: SizeOption = None,
    channels: ChannelsOption = None,
    fit: FitOption = None,
    background: BackgroundOption = None,
    n: Annotated[int, typer.Option("--n", help="Samples, and test images at most.", rich_help_panel=GENERATIVE)] = 1000,
    features: Annotated[
        Path | None,
        typer.Option(
            "--features",
            help="Run of a classifier, in whose features images are compared. Default: one that comes with the "
            "package where it fits, else a small one is trained on the labels.",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(
            "--layer",
            help="Of --features, by its name there; default: what the logits are made from.",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    resamples: Annotated[
        int, typer.Option("--resamples", help="Bootstrap draws for the intervals; 0: none.", rich_help_panel=RUN)
    ] = 100,
    batch_size: Annotated[
        int, typer.Option("--batch-size", help="Images that the feature network sees at once.", rich_help_panel=RUN)
    ] = 256,
    out: Annotated[
        Path | None, typer.Option("--out", help="Directory of quality.json and its page.", rich_help_panel=RUN)
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Say how good the samples of a generative model are: likeness, variety, copies of training images.

    Every number depends on the feature network and on --n: none is an FID.
    """
    from robustgen.commands import DataSpec, measure_quality

    found, path = measure_quality(
        checkpoint=checkpoint,
        data=DataSpec(data, data_root, download, limit, image_reader(size, channels, fit, background)),
        n=n,
        features=features,
        layer=layer,
        resamples=resamples,
        batch_size=batch_size,
        seed=seed,
        device=device,
        out=out,
        progress=not quiet,
        command=command_line(),
    )
    if as_json:
        say(json.dumps({name: value for name, value in found.to_dict().items() if name != "pictures"}))
        return
    say(found)
    if path is not None:
        say(f"page: {path}")
