"""The command ``robustgen``: parses, calls the library, prints. torch is imported only by what needs it."""

import json
import os
import shlex
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from robustgen import __version__

__all__ = ["app", "main"]

app = typer.Typer(
    help="Generative models that guard networks: fortify, attack, and score inputs for distribution shift.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# Options that several commands share.
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
SeedOption = Annotated[int, typer.Option("--seed", help="Of everything random.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
LimitOption = Annotated[int | None, typer.Option("--limit", help="Use at most so many examples.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="A further argument of the model or detector, name=value; repeatable.")
]
EpsOption = Annotated[float, typer.Option("--eps", help="Radius of the attack, pixels in [0, 1].")]
NormOption = Annotated[str, typer.Option("--norm", help="Linf, L2 or L1.")]


def _command() -> str:
    return shlex.join(["robustgen", *sys.argv[1:]])


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"robustgen {__version__}")
        raise typer.Exit


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Directory of report.json and report.html.")] = Path("demo-report"),
    seed: SeedOption = 0,
    smoke: Annotated[bool, typer.Option("--smoke", help="A few seconds of the same, to see that it runs.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Fortify, attack and score on scikit-learn's handwritten digits; no network access, under three minutes."""
    from robustgen.experiments.demo import SMOKE, Scale, run_demo

    run_demo(out, scale=SMOKE if smoke else Scale(), seed=seed, progress=not quiet, command=_command())


@app.command()
def train(
    context: typer.Context,
    run: Annotated[Path, typer.Option("--run", help="Directory for checkpoints and metrics.")],
    generative: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="A generative model: vae, pixelcnn, dcgan, ...; without: a classifier."),
    ] = None,
    data: DataOption = "digits",
    data_root: RootOption = None,
    download: DownloadOption = False,
    hold_out: Annotated[
        list[str] | None, typer.Option("--hold-out", help="Class to leave out; may be repeated.")
    ] = None,
    limit: LimitOption = None,
    model: Annotated[
        str, typer.Option("--model", help="convnet, mlp, resnet, or module:function of your own.")
    ] = "convnet",
    width: Annotated[
        int | None, typer.Option("--width", help="Channels of convnet's or resnet's first layers; units of mlp.")
    ] = None,
    activation: Annotated[
        str, typer.Option("--activation", help="Of convnet, mlp, resnet: relu, leaky_relu, tanh.")
    ] = "relu",
    weights: Annotated[
        Path | None, typer.Option("--weights", help="Start from these (.safetensors, or a run).")
    ] = None,
    adversarial: Annotated[
        str | None,
        typer.Option("--adversarial", help="A method with its attack and loss: madry, trades, mart or fast."),
    ] = None,
    beta: Annotated[
        float | None, typer.Option("--beta", help="Of trades (default 6) or mart (5): weight of the divergence.")
    ] = None,
    awp: Annotated[
        float | None, typer.Option("--awp", help="Perturb weights too, by this share of each layer's norm: 0.005.")
    ] = None,
    attack: Annotated[str, typer.Option("--attack", help="Adversarial training: none, fgsm or pgd.")] = "none",
    eps: EpsOption = 0.3,
    norm: NormOption = "Linf",
    steps: Annotated[int, typer.Option("--steps", help="Of pgd, madry, trades and mart.")] = 7,
    clean_weight: Annotated[
        float | None,
        typer.Option("--clean-weight", help="Of the clean loss beside that of --attack; default 1; 0: madry."),
    ] = None,
    fortify: Annotated[
        str | None, typer.Option("--fortify", help="Layers to fortify: auto, or names separated by commas.")
    ] = None,
    hidden: Annotated[int | None, typer.Option("--hidden", help="Units or channels of each autoencoder.")] = None,
    autoencoder_activation: Annotated[
        str, typer.Option("--autoencoder-activation", help="leaky_relu, relu, tanh or linear.")
    ] = "leaky_relu",
    decoder_activation: Annotated[str, typer.Option("--decoder-activation", help="Likewise.")] = "linear",
    input_autoencoder: Annotated[
        bool, typer.Option("--input-autoencoder", help="One on the input; --fortify says where its loss is measured.")
    ] = False,
    noise_std: Annotated[float, typer.Option("--noise-std", help="Of the corruption of hidden states.")] = 0.1,
    noise_at_test: Annotated[bool, typer.Option("--noise-at-test", help="Corrupt at test time too.")] = False,
    lambda_rec: Annotated[float, typer.Option("--lambda-rec", help="Weight of the clean reconstruction loss.")] = 0.1,
    lambda_adv: Annotated[float, typer.Option("--lambda-adv", help="Of the adversarial reconstruction loss.")] = 0.1,
    detach_states: Annotated[
        bool, typer.Option("--detach-states", help="Reconstruction losses train the autoencoders only.")
    ] = False,
    freeze_backbone: Annotated[
        bool, typer.Option("--freeze-backbone", help="Keep a pretrained network; train only its autoencoders.")
    ] = False,
    epochs: Annotated[int, typer.Option("--epochs")] = 10,
    batch_size: Annotated[int, typer.Option("--batch-size")] = 128,
    lr: Annotated[
        float | None, typer.Option("--lr", help="Default 1e-3 (Adam); a generative model's is its paper's.")
    ] = None,
    schedule: Annotated[
        str, typer.Option("--schedule", help="Of the learning rate: constant or cosine (to 0).")
    ] = "constant",
    set_: SetOption = None,
    ema: Annotated[
        float | None, typer.Option("--ema", help="Generative: decay of a moving average of the weights.")
    ] = None,
    precision: Annotated[str, typer.Option("--precision", help="Generative: float32 or bfloat16.")] = "float32",
    clip_norm: Annotated[float | None, typer.Option("--clip-norm", help="Generative: of the gradient.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was interrupted, exactly.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a generative MODEL, or a classifier: plain, adversarial (--adversarial, --attack) or --fortify."""
    from robustgen.commands import (
        DataSpec,
        FortifySpec,
        adversarial_training,
        parse_options,
        train_generative,
        train_network,
    )

    common = {"run", "generative", "data", "data_root", "download", "hold_out", "limit", "epochs", "batch_size", "lr"}
    common |= {"seed", "device", "resume", "as_json", "quiet"}
    for_generative = {"set_", "ema", "precision", "clip_norm"}
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"} - common
    foreign = given - for_generative if generative is not None else given & for_generative
    if foreign:
        whose = "a classifier" if generative is not None else "a generative model"
        raise ValueError(f"--{sorted(foreign)[0].strip('_').replace('_', '-')} is an option of {whose}")
    if generative is not None:
        found = train_generative(
            run=run,
            data=DataSpec(data or "digits", data_root, download, limit),
            model=generative,
            options=parse_options(set_ or ()),
            hold_out=tuple(hold_out or ()),
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            ema=ema,
            precision=precision,
            clip_norm=clip_norm,
            seed=seed,
            device=device,
            resume=resume,
            progress=not quiet,
            command=_command(),
        )
        if found:
            _print(found, as_json)
        return
    spec = None
    if fortify is not None:
        spec = FortifySpec(
            layers=fortify,
            hidden=hidden,
            activation=autoencoder_activation,
            decoder_activation=decoder_activation,
            input_autoencoder=input_autoencoder,
            noise_std=noise_std,
            noise_at_test=noise_at_test,
            lambda_rec=lambda_rec,
            lambda_adv=lambda_adv,
            detach_states=detach_states,
            freeze_backbone=freeze_backbone,
        )
    found = train_network(
        run=run,
        data=DataSpec(data or "digits", data_root, download, limit),
        hold_out=tuple(hold_out or ()),
        model=model,
        width=width,
        activation=activation,
        weights=weights,
        adversarial=adversarial_training(
            adversarial,
            attack,
            eps=eps,
            norm=norm,
            steps=steps,
            clean_weight=clean_weight,
            beta=beta,
            awp=awp,
            seed=seed,
        ),
        fortified=spec,
        epochs=epochs,
        batch_size=batch_size,
        lr=1e-3 if lr is None else lr,
        schedule=schedule,
        seed=seed,
        device=device,
        resume=resume,
        progress=not quiet,
        command=_command(),
    )
    if found:
        _print(found, as_json)


@app.command()
def attack(
    run: RunOption = None,
    model: ModelOption = None,
    weights: WeightsOption = None,
    data: DataOption = None,
    data_root: RootOption = None,
    download: DownloadOption = False,
    limit: LimitOption = None,
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

    report, guarded, page = attack_network(
        run=run,
        model=model,
        weights=weights,
        data=DataSpec(data or "", data_root, download, limit),
        eps=eps,
        norm=norm,
        suite=suite,
        part=split,
        surrogate=surrogate,
        masking_tests=masking_tests,
        detector=detector,
        fpr=fpr,
        ood=None if ood is None else DataSpec(ood, data_root, download, limit),
        batch_size=batch_size,
        seed=seed,
        device=device,
        out=out,
        resume=resume,
        progress=not quiet,
        command=_command(),
    )
    if current_world().rank:
        return  # the first process speaks for all
    if as_json:
        found = {} if guarded is None else {"detector_robustness": guarded.to_dict()}
        print(json.dumps(report.to_dict() | found))
    else:
        print(report)
        if guarded is not None:
            print(guarded)
        if page is not None:
            print(f"report: {page}")


@app.command()
def sample(
    run: Annotated[Path, typer.Option("--checkpoint", help="Run of `robustgen train MODEL`.")],
    out: Annotated[Path, typer.Option("--out", help="A .png grid, or an .npz file.")],
    n: Annotated[int, typer.Option("--n", help="How many.")] = 64,
    seed: SeedOption = 0,
    device: DeviceOption = None,
) -> None:
    """Draw images from a trained generative model."""
    from robustgen.commands import sample_images

    sample_images(run, n, out, seed=seed, device=device)
    print(out)


@app.command()
def score(
    data: Annotated[str, typer.Option("--data", help="What to score: a named set, an .npz file or an image folder.")],
    run: RunOption = None,
    model: ModelOption = None,
    weights: WeightsOption = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option("--checkpoint", help="Run of a generative model; repeated for detectors that compare several."),
    ] = None,
    detector_name: Annotated[
        str | None,
        typer.Option(
            "--detector", help="Over --checkpoint: likelihood, typicality, input-complexity, discriminator, ..."
        ),
    ] = None,
    set_: SetOption = None,
    data_root: RootOption = None,
    download: DownloadOption = False,
    limit: LimitOption = None,
    split: Annotated[str, typer.Option("--split", help="train or test.")] = "test",
    fit_data: Annotated[
        str | None,
        typer.Option("--fit-data", help="For a network without a detector: inputs like its training data, new to it."),
    ] = None,
    layers: Annotated[str, typer.Option("--layers", help="Where its autoencoders go: auto, or names.")] = "auto",
    epochs: Annotated[int, typer.Option("--epochs", help="Of their training.")] = 3,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Likewise.")] = 128,
    fpr: Annotated[float, typer.Option("--fpr", help="Nominal false-alarm rate of the flag.")] = 0.05,
    against: Annotated[
        list[str] | None,
        typer.Option("--against", help="Tell --data from: a data set, noise, fgsm, pgd, heldout; may be repeated."),
    ] = None,
    eps: EpsOption = 0.3,
    norm: NormOption = "Linf",
    out: Annotated[Path | None, typer.Option("--out", help="A .csv or .jsonl file; default: CSV to stdout.")] = None,
    report: Annotated[Path | None, typer.Option("--report", help="Directory of the report of --against.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: the summary, or one line an input.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Score inputs for being off the training manifold: score, p-value and flag for each.

    The score is the reconstruction error of a fortified --run, or a --detector over a generative --checkpoint.

    With --against, print instead how well the score tells --data from other inputs (AUROC and more).
    """
    from robustgen.commands import (
        DataSpec,
        compare_populations,
        generative_detector,
        open_detector,
        parse_options,
        score_inputs,
        training_data,
        write_rows,
    )

    if out is not None and out.suffix not in (".csv", ".jsonl"):
        raise ValueError(f"{out}: name it .csv or .jsonl")
    if report is not None and not against:
        raise ValueError("--report is about --against")
    if checkpoint:
        if run is not None or model is not None or weights is not None or fit_data is not None:
            raise ValueError("--checkpoint is a generative model: leave out --run, --model, --weights and --fit-data")
        detector, shape, info = generative_detector(checkpoint, detector_name, parse_options(set_ or ()), device=device)
    elif detector_name is not None or set_:
        raise ValueError("--detector and --set go with --checkpoint, the run of a generative model")
    else:
        detector, shape, info = open_detector(
            run=run,
            model=model,
            weights=weights,
            fit_data=None if fit_data is None else DataSpec(fit_data, data_root, download),
            layers=layers,
            epochs=epochs,
            batch_size=batch_size,
            seed=seed,
            device=device,
            progress=not quiet,
        )
    spec = DataSpec(data, data_root, download, limit)
    if out is not None or not against:
        rows = score_inputs(detector, spec.read(split, shape), fpr)
        write_rows(rows, out, as_json and out is None)
        flagged = sum(row["flag"] for row in rows) / len(rows)
        if out is not None:
            _print({"inputs": len(rows), "flagged": flagged, "nominal": fpr, "written": str(out)}, as_json)
    if against:
        others = {name: DataSpec(name, data_root, download, limit) for name in against}
        entry = compare_populations(
            detector,
            spec,
            others,
            info,
            part=split,
            shape=shape,
            seen=training_data(info, shape) if info and shape else None,
            name=str(checkpoint[0] if checkpoint else run or model),
            fpr=fpr,
            eps=eps,
            norm=norm,
            seed=seed,
        )
        _print_detection(entry, as_json)
        if report is not None:
            from robustgen.evaluation import write_report
            from robustgen.files import environment

            found = {"title": f"Scores of {run or model} on {data}", "command": _command(), "seed": seed}
            found |= {"environment": environment(), "networks": [], "detection": [entry]}
            print(f"report: {write_report(found, report)}")


@app.command()
def reproduce(
    experiment: Annotated[str | None, typer.Argument(help="Its name, as --list prints it.")] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="Show all experiments, what is measured and what is not.")
    ] = False,
    data_root: RootOption = None,
    scale: Annotated[str, typer.Option("--scale", help="smoke (digits, seconds), cpu or full.")] = "cpu",
    seeds: Annotated[
        int | None, typer.Option("--seeds", help="How many; default: what the experiment asks for.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Where results are kept.")] = Path("results"),
    work: Annotated[
        Path, typer.Option("--work", help="Where trained networks are kept, for cells that share them.")
    ] = Path("runs/reproduce"),
    cell: Annotated[str | None, typer.Option("--cell", help="Only this one: row--column--seedN.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Measure a kept --cell again, from nothing, and compare.")
    ] = False,
    part: Annotated[str, typer.Option("--part", help="i/k: every k-th cell from the i-th, to share the work.")] = "1/1",
    page: Annotated[Path | None, typer.Option("--page", help="Draw the page of all results to this file.")] = None,
    device: DeviceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Measure a table or figure of the source theses: published numbers beside ours, cell by cell, resumable."""
    if experiment is None and not list_ and page is None:
        raise ValueError("name an experiment, or pass --list or --page")
    if check and (experiment is None or cell is None):
        raise ValueError("--check needs an experiment and its --cell")
    from robustgen.experiments.results_page import draw_list, draw_page

    if experiment is not None:
        from robustgen.commands import reproduce as command

        root = None if data_root is None else Path(data_root)
        if check:
            assert cell is not None
            with tempfile.TemporaryDirectory() as fresh:
                problems = command.check(
                    experiment,
                    cell,
                    scale=scale,
                    out=out,
                    work=Path(fresh),
                    data_root=root,
                    device=device,
                    progress=not quiet,
                )
            if problems:
                raise RuntimeError("; ".join(problems))
            print(f"{cell}: every number comes out the same")
            return
        print(
            command.measure(
                experiment,
                scale=scale,
                out=out,
                work=work,
                data_root=root,
                seeds=seeds,
                cell=cell,
                part=part,
                device=device,
                progress=not quiet,
                command=_command(),
            )
        )
    if page is not None:
        from robustgen.files import write_bytes

        write_bytes(page, draw_page(out).encode())
        print(page)
    if list_:
        print(draw_list(out))


@app.command()
def report(
    path: Annotated[Path, typer.Argument(help="A report.json, or the directory that holds one.")],
    out: Annotated[Path | None, typer.Option("--out", help="Page to write; default: report.html beside it.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables instead.")] = False,
) -> None:
    """Draw report.html from a report.json, or print its tables as Markdown."""
    from robustgen.evaluation.report import draw_html, draw_markdown, load_report
    from robustgen.files import write_bytes

    found = load_report(path)
    if markdown:
        print(draw_markdown(found))
        return
    page = out or (path if path.is_dir() else path.parent) / "report.html"
    write_bytes(page, draw_html(found).encode())
    print(page)


def _print(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")


def _print_detection(entry: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(entry))
        return
    print(f"{len(entry['in_distribution'])} in-distribution inputs, {entry['false_alarms']:.1%} flagged")
    for name, p in entry["populations"].items():
        print(
            f"{name}: AUROC {p['auroc']:.3f}, average precision {p['average_precision']:.3f} "
            f"(chance {p['chance']:.3f}, prevalence {p['prevalence']:.3f}), FPR95 {p['fpr_at_95_tpr']:.3f}, "
            f"{p['flagged']:.1%} flagged"
        )


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Exit codes: 0 done, 1 failed, 2 wrong use; errors are one line on stderr.

    ``ROBUSTGEN_DEBUG=1`` in the environment shows the traceback instead.
    """
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"robustgen: warning: {message}", file=sys.stderr)
        return _run(arguments)


def _run(arguments: list[str] | None) -> int:
    interrupted = "interrupted; run it again, with --resume where the command has it, to go on from what it has written"
    try:
        code = typer.main.get_command(app).main(args=arguments, standalone_mode=False, prog_name="robustgen")
        return _fail(1, interrupted) if code == 130 else 0  # how newer versions of typer report Ctrl-C
    except KeyboardInterrupt:
        return _fail(1, interrupted)
    except Exception as error:
        if type(error).__name__ == "Abort":  # how older ones do
            return _fail(1, interrupted)
        if os.environ.get("ROBUSTGEN_DEBUG"):
            raise
        if hasattr(error, "format_message"):  # the parser's own: wrong use
            return _fail(2, f"{error.format_message()} (see robustgen --help)")
        wrong_use = isinstance(error, ValueError | TypeError | FileNotFoundError)
        return _fail(2 if wrong_use else 1, f"{error}" or type(error).__name__)


def _fail(code: int, message: str) -> int:
    print(f"robustgen: error: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
