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
from robustgen.cli.terminal import ATTACK, DATA, DETECTOR, PURIFIER, RUN, complain, say

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
    purify: Annotated[
        Path | None,
        typer.Option(
            "--purify",
            help="Run of a generative model to stand before the network; then what that is worth is measured instead.",
            rich_help_panel=PURIFIER,
        ),
    ] = None,
    depth: Annotated[
        float | None,
        typer.Option(
            "--depth",
            help="How far it goes: the step of a diffusion, the sigma of a denoiser, steps on an energy.",
            rich_help_panel=PURIFIER,
        ),
    ] = None,
    chain_steps: Annotated[
        int | None,
        typer.Option("--chain-steps", help="Steps back from there; default: every one.", rich_help_panel=PURIFIER),
    ] = None,
    eot: Annotated[
        int | None,
        typer.Option("--eot", help="Draws that each gradient averages; default 20.", rich_help_panel=PURIFIER),
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option("--draws", help="Draws that judge each point; default 50.", rich_help_panel=PURIFIER),
    ] = None,
    resubmit: Annotated[
        int | None,
        typer.Option(
            "--resubmit",
            help="Draws of a vote, and tries of a stubborn attacker; default 10.",
            rich_help_panel=PURIFIER,
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

    With --purify the network stands behind a generative model. Then attacks on the whole, gradients averaged over its
    draws, say what is left, in one draw, in a vote, under an attacker who tries again, or knows the seed.
    """
    from robustgen.commands import (
        DataSpec,
        Unreadable,
        attack_network,
        attack_purified,
        naming_options,
        resumed_options,
    )
    from robustgen.training.distributed import current_world

    known = {"out", "resume", "max_minutes", "trust", "download", "strict", "as_json", "quiet"}
    asked = {name: _plain(value) for name, value in context.params.items() if name not in known}
    chosen = resumed_options(out, asked, given(context), trust) if resume and out is not None else asked
    unreadable = Unreadable(complain, strict)
    with nullcontext() if out is None or chosen is asked else naming_options(out):
        means, stds = normalization(chosen["mean"], chosen["std"])
        images = image_reader(*(chosen[name] for name in ("size", "channels", "fit", "background")))
        spec = DataSpec(chosen["data"], chosen["data_root"], download, chosen["limit"], images)
        common: dict[str, Any] = {
            "run": _path(chosen["run"]),
            "model": chosen["model"],
            "weights": _path(chosen["weights"]),
            "mean": means,
            "std": stds,
            "data": spec,
            "eps": chosen["eps"],
            "norm": chosen["norm"],
            "part": chosen["split"],
            "surrogate": _path(chosen["surrogate"]),
            "trust": trust,
            "batch_size": chosen["batch_size"],
            "seed": chosen["seed"],
            "device": chosen["device"],
            "out": out,
            "resume": resume,
            "progress": not quiet,
            "command": command_line(),
            "options": chosen,
            "skip": unreadable.skip,
            "tell": lambda line: complain("note", line),
        }
        _check_purify(context, chosen["purify"] is not None, given(context))
        if chosen["purify"] is not None:
            counts = {name: chosen[name] for name in ("eot", "draws", "resubmit") if chosen[name] is not None}
            ledger, page = attack_purified(
                purifier=Path(chosen["purify"]),
                depth=chosen["depth"],
                chain_steps=chosen["chain_steps"],
                **counts,
                **common,
            )
            if current_world().rank:
                return  # the first process speaks for all
            say(json.dumps(ledger.to_dict()) if as_json else ledger)
            if page is not None and not as_json:
                say(f"what it is worth: {page}")
            unreadable.finish()
            return
        report, guarded, page = attack_network(
            suite=chosen["suite"],
            masking_tests=chosen["masking_tests"],
            detector=chosen["detector"],
            fpr=chosen["fpr"],
            ood=None if chosen["ood"] is None else spec.of(chosen["ood"]),
            max_minutes=max_minutes,
            **common,
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


def _check_purify(context: typer.Context, purified: bool, named: set[str]) -> None:
    """ValueError for an option of the one kind of evaluation in the other."""
    about_it = ("depth", "chain_steps", "eot", "draws", "resubmit")
    of_others = ("suite", "masking_tests", "detector", "fpr", "ood", "max_minutes")
    for name in named & set(of_others if purified else about_it):
        option = next(p.opts[0] for p in context.command.params if p.name == name)
        raise ValueError(f"{option} {'does not go with' if purified else 'is about'} --purify")


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _path(value: str | None) -> Path | None:
    return None if value is None else Path(value)
