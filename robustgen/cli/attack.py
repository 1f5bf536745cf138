"""``robustgen attack``."""

import json
import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from robustgen.cli.options import (
    BackgroundOption,
    ChannelsOption,
    DataOption,
    DeviceOption,
    DownloadOption,
    EpsOption,
    FitOption,
    JsonOption,
    LimitOption,
    MeanOption,
    ModelOption,
    NormOption,
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
    given,
    image_reader,
    normalization,
)
from robustgen.cli.terminal import ATTACK, DATA, DETECTOR, RUN, complain, say

__all__ = ["attack"]


def attack(
    context: typer.Context,
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
    strict: StrictOption = False,
    split: Annotated[str, typer.Option("--split", help="train or test.", rich_help_panel=DATA)] = "test",
    eps: EpsOption = None,
    norm: NormOption = None,
    suite: Annotated[
        str,
        typer.Option(
            "--suite",
            help="quick (noise, FGSM, PGD-40), standard (AutoAttack too), or thorough.",
            rich_help_panel=ATTACK,
        ),
    ] = "quick",
    surrogate: Annotated[
        Path | None,
        typer.Option(
            "--surrogate", help="Run of a substitute network, for black-box transfer.", rich_help_panel=ATTACK
        ),
    ] = None,
    masking_tests: Annotated[
        bool,
        typer.Option(
            "--masking-tests/--no-masking-tests",
            help="PGD at many eps and without bound, stronger probes, diagnostics of the attack.",
            rich_help_panel=ATTACK,
        ),
    ] = True,
    detector: Annotated[
        bool,
        typer.Option(
            "--detector",
            help="Attack the run's detector too: attacks that do not know it beside ones that do.",
            rich_help_panel=DETECTOR,
        ),
    ] = False,
    fpr: Annotated[
        float | None,
        typer.Option(
            "--fpr", help="Nominal false-alarm rate of that detector; default 0.05.", rich_help_panel=DETECTOR
        ),
    ] = None,
    ood: Annotated[
        str | None,
        typer.Option(
            "--ood", help="With --detector: a data set to be made to look in-distribution.", rich_help_panel=DETECTOR
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Directory of report.json and report.html; finished chunks too.", rich_help_panel=RUN
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the evaluation in --out, with its options: none need be given again.",
            rich_help_panel=RUN,
        ),
    ] = False,
    max_minutes: Annotated[
        float | None,
        typer.Option(
            "--max-minutes",
            help="Stop after so many minutes of attacks and report what was finished, with exit code 1; --resume "
            "finishes it.",
            rich_help_panel=ATTACK,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", rich_help_panel=ATTACK)] = 250,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Attack a network and report how robust it is, with tests for gradient masking.

    Images in files may have any size: they are read as the network takes them, or as --size, --channels and --fit say.
    Exit code 1 says that some could not be read, and the others were attacked; or that --max-minutes were used up: the
    report says what was not finished, and --resume goes on.
    """
    from robustgen.commands import DataSpec, Unreadable, attack_network, naming_options, resumed_options
    from robustgen.training.distributed import current_world

    known = {"out", "resume", "max_minutes", "trust", "download", "strict", "as_json", "quiet"}
    asked = {name: _plain(value) for name, value in context.params.items() if name not in known}
    chosen = resumed_options(out, asked, given(context), trust) if resume and out is not None else asked
    unreadable = Unreadable(complain, strict)
    with nullcontext() if out is None or chosen is asked else naming_options(out):
        means, stds = normalization(chosen["mean"], chosen["std"])
        images = image_reader(*(chosen[name] for name in ("size", "channels", "fit", "background")))
        spec = DataSpec(chosen["data"], chosen["data_root"], download, chosen["limit"], images)
        report, guarded, page = attack_network(
            run=_path(chosen["run"]),
            model=chosen["model"],
            weights=_path(chosen["weights"]),
            mean=means,
            std=stds,
            data=spec,
            eps=chosen["eps"],
            norm=chosen["norm"],
            suite=chosen["suite"],
            part=chosen["split"],
            surrogate=_path(chosen["surrogate"]),
            trust=trust,
            masking_tests=chosen["masking_tests"],
            detector=chosen["detector"],
            fpr=chosen["fpr"],
            ood=None if chosen["ood"] is None else spec.of(chosen["ood"]),
            batch_size=chosen["batch_size"],
            seed=chosen["seed"],
            device=chosen["device"],
            out=out,
            resume=resume,
            max_minutes=max_minutes,
            progress=not quiet,
            command=command_line(),
            options=chosen,
            skip=unreadable.skip,
            tell=lambda line: complain("note", line),
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
    if report.unfinished:
        again = ["robustgen", "attack", "--out", str(out), "--resume"]
        again += ["--trust"] if trust else [] if chosen["model"] is None else ["--model", chosen["model"]]
        raise RuntimeError(f"stopped after {max_minutes:g} minutes; to go on: {shlex.join(again)}")
    unreadable.finish()


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _path(value: str | None) -> Path | None:
    return None if value is None else Path(value)
