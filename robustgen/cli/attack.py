"""``robustgen attack``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from robustgen.cli.image_options import BackgroundOption, ChannelsOption, FitOption, SizeOption, image_reader
from robustgen.cli.options import (
    DataOption,
    DeviceOption,
    DownloadOption,
    EpsOption,
    JsonOption,
    LimitOption,
    MeanOption,
    ModelOption,
    NormOption,
    QuietOption,
    RootOption,
    RunOption,
    SeedOption,
    StdOption,
    TrustOption,
    WeightsOption,
    command_line,
    normalization,
)
from robustgen.cli.terminal import say

__all__ = ["attack"]


def attack(
    run: RunOption = None,
    model: ModelOption = None,
    weights: WeightsOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    trust: TrustOption = False,
    data: DataOption = None,
    data_root: RootOption = None,
    download: DownloadOption = False,
    limit: LimitOption = None,
    size: SizeOption = None,
    channels: ChannelsOption = None,
    fit: FitOption = None,
    background: BackgroundOption = None,
    split: Annotated[str, typer.Option("--split", help="train or test.")] = "test",
    eps: EpsOption = 0.3,
    norm: NormOption = "Linf",
    suite: Annotated[
        str, typer.Option("--suite", help="quick (noise, FGSM, PGD-40), standard (AutoAttack too), or thorough.")
    ] = "quick",
    surrogate: Annotated[
        Path | None, typer.Option("--surrogate", help="Run of a substitute network, for black-box transfer.")
    ] = None,
    masking_tests: Annotated[
        bool,
        typer.Option(
            "--masking-tests/--no-masking-tests",
            help="PGD at many eps and without bound, stronger probes, diagnostics of the attack.",
        ),
    ] = True,
    detector: Annotated[
        bool,
        typer.Option(
            "--detector", help="Attack the run's detector too: attacks that do not know it beside ones that do."
        ),
    ] = False,
    fpr: Annotated[
        float | None, typer.Option("--fpr", help="Nominal false-alarm rate of that detector; default 0.05.")
    ] = None,
    ood: Annotated[
        str | None,
        typer.Option("--ood", help="With --detector: a data set to be made to look in-distribution."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Directory of report.json and report.html; finished chunks too.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the evaluation in --out.")] = False,
    batch_size: Annotated[int, typer.Option("--batch-size")] = 250,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Attack a network and report how robust it is, with tests for gradient masking."""
    from robustgen.commands import DataSpec, attack_network
    from robustgen.training.distributed import current_world

    means, stds = normalization(mean, std)
    spec = DataSpec(data, data_root, download, limit, image_reader(size, channels, fit, background))
    report, guarded, page = attack_network(
        run=run,
        model=model,
        weights=weights,
        mean=means,
        std=stds,
        data=spec,
        eps=eps,
        norm=norm,
        suite=suite,
        part=split,
        surrogate=surrogate,
        trust=trust,
        masking_tests=masking_tests,
        detector=detector,
        fpr=fpr,
        ood=None if ood is None else spec.of(ood),
        batch_size=batch_size,
        seed=seed,
        device=device,
        out=out,
        resume=resume,
        progress=not quiet,
        command=command_line(),
    )
    if current_world().rank:
        return  # the first process speaks for all
    if as_json:
        found = {} if guarded is None else {"detector_robustness": guarded.to_dict()}
        say(json.dumps(report.to_dict() | found))
    else:
        say(report)
        if guarded is not None:
            say(guarded)
        if page is not None:
            say(f"report: {page}")
