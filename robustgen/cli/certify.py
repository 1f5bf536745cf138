"""``robustgen certify``."""

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
    MeanOption,
    ModelOption,
    QuietOption,
    RootOption,
    RunOption,
    SeedOption,
    SizeOption,
    StdOption,
    StrictOption,
    TrustOption,
    WeightsOption,
    command_line,
    image_reader,
    normalization,
)
from robustgen.cli.terminal import ATTACK, DATA, NETWORK, RUN, complain, say

__all__ = ["certify"]


def certify(
    run: RunOption = None,
    model: ModelOption = None,
    weights: WeightsOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    trust: TrustOption = False,
    denoiser: Annotated[
        Path | None,
        typer.Option(
            "--denoiser",
            help="Run of `robustgen train denoiser`, ddpm or edm, to stand before it.",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    data: DataOption = None,
    data_root: RootOption = None,
    download: DownloadOption = False,
    limit: LimitOption = None,
    size: SizeOption = None,
    channels: ChannelsOption = None,
    fit: FitOption = None,
    background: BackgroundOption = None,
    strict: StrictOption = False,
    split: Annotated[str, typer.Option("--split", help="train or test.", rich_help_panel=DATA)] = "test",
    sigma: Annotated[
        list[float] | None,
        typer.Option(
            "--sigma", help="Standard deviation of the noise, of pixels in [0, 1]; repeatable.", rich_help_panel=ATTACK
        ),
    ] = None,
    radius: Annotated[
        list[float] | None,
        typer.Option(
            "--radius",
            help="At which accuracy is told; repeatable. Default: 0.5, 1, 1.5 and 2 times sigma.",
            rich_help_panel=ATTACK,
        ),
    ] = None,
    noise: Annotated[
        str,
        typer.Option(
            "--noise",
            help="gaussian (radii in L2), uniform (in L1), or splitting (in L1, certain: no --n, no --alpha).",
            rich_help_panel=ATTACK,
        ),
    ] = "gaussian",
    levels: Annotated[
        int,
        typer.Option(
            "--levels", help="Of splitting noise: pixels are multiples of 1 / levels.", rich_help_panel=ATTACK
        ),
    ] = 255,
    n: Annotated[
        int, typer.Option("--n", help="Noisy versions of each input; more give larger radii.", rich_help_panel=ATTACK)
    ] = 10_000,
    n0: Annotated[int, typer.Option("--n0", help="Others, that choose the class.", rich_help_panel=ATTACK)] = 100,
    alpha: Annotated[
        float,
        typer.Option("--alpha", help="Probability with which a certificate may be wrong.", rich_help_panel=ATTACK),
    ] = 0.001,
    attack: Annotated[
        int,
        typer.Option("--attack", help="So many inputs are attacked too, at each radius.", rich_help_panel=ATTACK),
    ] = 0,
    attack_with: Annotated[
        str,
        typer.Option(
            "--attack-with",
            help="pgd; or standard: the whole suite, a thousand times as dear, for a few inputs.",
            rich_help_panel=ATTACK,
        ),
    ] = "pgd",
    stop_early: Annotated[
        bool,
        typer.Option(
            "--stop-early",
            help="Leave out draws that decide no --radius, by the hundred; accuracies stay, the average radius falls.",
            rich_help_panel=ATTACK,
        ),
    ] = False,
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            help="float32, or bfloat16: then certificates are of the network in bfloat16.",
            rich_help_panel=RUN,
        ),
    ] = "float32",
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Directory of certification.json and its page.", rich_help_panel=RUN),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the certificates in --out.", rich_help_panel=RUN)
    ] = False,
    batch_size: Annotated[
        int, typer.Option("--batch-size", help="Noisy inputs asked at once.", rich_help_panel=RUN)
    ] = 500,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Prove how robust a network is: a radius inside which no attack can change what it mostly says of noisy inputs.

    A network hardly stands noise that it was not trained on: put a --denoiser before it.
    """
    from robustgen.commands import DataSpec, Unreadable, certify_network

    means, stds = normalization(mean, std)
    unreadable = Unreadable(complain, strict)
    reports, path = certify_network(
        run=run,
        model=model,
        weights=weights,
        mean=means,
        std=stds,
        trust=trust,
        denoiser=denoiser,
        data=DataSpec(data, data_root, download, limit, image_reader(size, channels, fit, background)),
        part=split,
        sigmas=sigma or (),
        radii=radius or (),
        noise=noise,
        n=n,
        n0=n0,
        alpha=alpha,
        n_attacked=attack,
        attack=attack_with,
        stop_early=stop_early,
        levels=levels,
        precision=precision,
        batch_size=batch_size,
        seed=seed,
        device=device,
        out=out,
        resume=resume,
        progress=not quiet,
        command=command_line(without="--resume"),  # each call names all that its page shows
        skip=unreadable.skip,
    )
    if as_json:
        say(json.dumps([report.to_dict() for report in reports]))
    else:
        for report in reports:
            say(report)
        if path is not None:
            say(f"certificates: {path}")
    unreadable.finish()
