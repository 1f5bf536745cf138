"""``robustgen score``."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from robustgen.cli.options import (
    BackgroundOption,
    ChannelsOption,
    DeviceOption,
    DownloadOption,
    EpsOption,
    FitOption,
    LimitOption,
    MeanOption,
    ModelOption,
    NormOption,
    QuietOption,
    RootOption,
    RunOption,
    SeedOption,
    SetOption,
    SizeOption,
    StdOption,
    StrictOption,
    TrustOption,
    WeightsOption,
    about_option,
    command_line,
    given,
    image_reader,
    normalization,
)
from robustgen.cli.terminal import DATA, DETECTOR, GENERATIVE, RUN, complain, print_found, say

__all__ = ["score"]


def score(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            help="What to score: a named set, an .npz file (pixels or tokens), a folder, an image, a .txt list.",
            rich_help_panel=DATA,
        ),
    ],
    run: RunOption = None,
    model: ModelOption = None,
    weights: WeightsOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    trust: TrustOption = False,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            "--checkpoint",
            help="Run of a generative model; repeated for detectors that compare several.",
            rich_help_panel=GENERATIVE,
        ),
    ] = None,
    detector_name: Annotated[
        str | None,
        typer.Option(
            "--detector",
            help="Over --checkpoint: likelihood, typicality, input-complexity, discriminator, ...",
            rich_help_panel=GENERATIVE,
        ),
    ] = None,
    set_: SetOption = None,
    data_root: RootOption = None,
    download: DownloadOption = False,
    limit: LimitOption = None,
    size: SizeOption = None,
    channels: ChannelsOption = None,
    fit: FitOption = None,
    background: BackgroundOption = None,
    strict: StrictOption = False,
    split: Annotated[str, typer.Option("--split", help="train or test.", rich_help_panel=DATA)] = "test",
    fit_data: Annotated[
        str | None,
        typer.Option(
            "--fit-data",
            help="For a network without a detector: inputs like its training data, new to it.",
            rich_help_panel=DETECTOR,
        ),
    ] = None,
    layers: Annotated[
        str, typer.Option("--layers", help="Where its autoencoders go: auto, or names.", rich_help_panel=DETECTOR)
    ] = "auto",
    epochs: Annotated[int, typer.Option("--epochs", help="Of their training.", rich_help_panel=DETECTOR)] = 3,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Likewise.", rich_help_panel=DETECTOR)] = 128,
    fpr: Annotated[
        float, typer.Option("--fpr", help="Nominal false-alarm rate of the flag.", rich_help_panel=DETECTOR)
    ] = 0.05,
    certify_radius: Annotated[
        float | None,
        typer.Option(
            "--certify-radius",
            help="Add p_lowest and p_highest: between them any change up to this L2 length leaves the p-value.",
            rich_help_panel=DETECTOR,
        ),
    ] = None,
    smooth_sigma: Annotated[
        float | None,
        typer.Option(
            "--smooth-sigma",
            help="Score by the median under noise of this standard deviation: any detector can then be certified.",
            rich_help_panel=DETECTOR,
        ),
    ] = None,
    smooth_draws: Annotated[
        int, typer.Option("--smooth-draws", help="Noisy versions of each input.", rich_help_panel=DETECTOR)
    ] = 200,
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            help="Tell --data from: a data set, noise, fgsm, pgd, heldout; may be repeated.",
            rich_help_panel=DATA,
        ),
    ] = None,
    eps: EpsOption = None,
    norm: NormOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="A .csv, .jsonl or .parquet file; default: CSV to stdout. CSV puts an apostrophe before formulas.",
            rich_help_panel=RUN,
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            help="Directory of report.json and report.html: scores, pictures, --against.",
            rich_help_panel=RUN,
        ),
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: the summary, or one line an input.", rich_help_panel=RUN)
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Score inputs for being off the training manifold: score, p-value and flag for each.

    The score is the reconstruction error of a fortified --run, or a --detector over a generative --checkpoint, which
    --run names too.

    Of a --run of text it is the bits per character of each window of --data, a text file.

    Images in files may have any size: they are read as the network takes them, or as --size, --channels and --fit say.
    Exit code 1 says that some could not be read; the others are scored.

    With --against, print instead how well the score tells --data from other inputs (AUROC and more).
    """
    from robustgen.checks import check_positive
    from robustgen.commands import (
        MADE,
        DataSpec,
        Scoring,
        Unreadable,
        check_way,
        compare_populations,
        generative_detector,
        kept_by_run,
        open_detector,
        parse_options,
        score_text,
        training_data,
    )
    from robustgen.commands.run_info import holds_generative, holds_text, stopped_early, threat

    means, stds = normalization(mean, std)
    asked = given(context)
    if run is not None and not checkpoint and holds_text(run):
        if foreign := asked - _OF_TEXT:
            raise ValueError(
                f"--{min(foreign).strip('_').replace('_', '-')} is of no use to a model of text: leave it out"
            )
        found = score_text(run, DataSpec(data), fpr=fpr, out=out, as_json=as_json, device=device)
        if out is not None:
            print_found(found, as_json)
        return
    if run is not None and not checkpoint and holds_generative(run):
        checkpoint, run, asked = [run], None, asked - {"run"}
    if checkpoint:
        check_way("checkpoint", asked)
    elif run is None:
        check_way("fitted", asked)
    if not {"fgsm", "pgd"} & set(against or ()):
        for name in sorted(asked & {"eps", "norm"}):
            raise ValueError(f"--{name} is of the attacks --against fgsm and --against pgd: leave it out")
    reader = image_reader(size, channels, fit, background)
    spec = DataSpec(data, data_root, download, limit, reader)
    for known in checkpoint or ([] if run is None else [run]):
        spec = kept_by_run(spec, known)
    others = {name: spec.of(name) for name in (against or [])}
    for label, other in others.items():
        if label not in MADE:
            with about_option("--against"):
                other.require()
    scoring, unreadable = None, Unreadable(complain, strict)
    if out is not None or not against:
        scoring = Scoring(
            spec,
            split,
            out=out,
            as_json=as_json,
            fpr=fpr,
            radius=certify_radius,
            summarise=report is not None,
            unreadable=unreadable,
            tell=complain,
        )
    elif certify_radius is not None:
        raise ValueError("--certify-radius is about single inputs: name a file for them, --out")
    else:
        spec.require()
    fitted_on = None if fit_data is None else replace(spec, limit=None).of(fit_data)
    if fitted_on is not None:
        with about_option("--fit-data"):
            fitted_on.require()
    if smooth_sigma is None and "smooth_draws" in asked:
        raise ValueError("--smooth-draws goes with --smooth-sigma: leave it out")
    if smooth_sigma is not None:
        check_positive(**{"--smooth-sigma": smooth_sigma, "--smooth-draws": smooth_draws})
    smoothing = None if smooth_sigma is None else (smooth_sigma, smooth_draws)
    checked = {} if scoring is None else {"before_fit": scoring.fit_to}
    if checkpoint:
        detector, shape, info = generative_detector(
            checkpoint, detector_name, parse_options(set_ or ()), device=device, fpr=fpr, smoothing=smoothing, **checked
        )
    else:
        detector, shape, info = open_detector(
            run=run,
            model=model,
            weights=weights,
            mean=means,
            std=stds,
            fit_data=fitted_on,
            layers=layers,
            epochs=epochs,
            batch_size=batch_size,
            seed=seed,
            device=device,
            trust=trust,
            progress=not quiet,
            fpr=fpr,
            asked=asked,
            smoothing=smoothing,
            **checked,
        )
    if scoring is not None:
        found = scoring.write(detector)
        if out is not None:
            rates = (
                {}
                if as_json
                else {name: f"{found[name]:.1%}" for name in ("flagged", "nominal", "certified") if name in found}
            )
            print_found(found | rates, as_json)
    scored = str(checkpoint[0] if checkpoint else model if run is None else run)
    detection = []
    if against:
        eps, norm, line = threat(info, eps, norm)
        if line and {"fgsm", "pgd"} & others.keys():
            complain("note", line)
        entry = compare_populations(
            detector,
            spec,
            others,
            info,
            part=split,
            shape=shape,
            seen=[training_data(known, shape) for known in (checkpoint or ([] if run is None else [run]))],
            name=scored,
            fpr=fpr,
            eps=eps,
            norm=norm,
            seed=seed,
            skip=unreadable.skip,
        )
        _print_detection(entry, as_json)
        detection.append(entry)
    if report is not None:
        from robustgen.evaluation import write_report
        from robustgen.files import environment

        summary = None if scoring is None else scoring.summary
        found = {"title": f"Scores of {scored} on {data}", "command": command_line(), "seed": seed}
        found |= {"environment": environment(), "networks": [], "detection": detection}
        found |= {"scores": [] if summary is None else [summary.to_dict()]}
        opened = checkpoint or ([] if run is None else [run])
        found |= {"remarks": [line for used in opened if (line := stopped_early(used))]}
        page = write_report(found, report)
        if scoring is not None and out is None:  # the rows are on stdout
            complain("note", f"report: {page}")
        elif not as_json:
            say(f"report: {page}")
    unreadable.finish()


_OF_TEXT = {"run", "data", "fpr", "out", "as_json", "device", "quiet"}


def _print_detection(entry: dict[str, Any], as_json: bool) -> None:
    if as_json:
        say(json.dumps(entry))
        return
    say(f"{len(entry['in_distribution'])} in-distribution inputs, {entry['false_alarms']:.1%} flagged")
    for name, p in entry["populations"].items():
        say(
            f"{name}: AUROC {p['auroc']:.3f}, average precision {p['average_precision']:.3f} "
            f"(chance {p['chance']:.3f}, prevalence {p['prevalence']:.3f}), FPR95 {p['fpr_at_95_tpr']:.3f}, "
            f"{p['flagged']:.1%} flagged"
        )
        if p["auroc"] < 0.5:
            say(f"{name}: below 0.5, this score takes them for more usual than --data; another --detector may not")
