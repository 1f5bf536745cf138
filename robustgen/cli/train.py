"""``robustgen train`` and ``sample``."""

from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import typer

from robustgen.cli.image_options import BackgroundOption, ChannelsOption, FitOption, SizeOption, image_reader
from robustgen.cli.options import (
    DataOption,
    DeviceOption,
    DownloadOption,
    JsonOption,
    LimitOption,
    MeanOption,
    QuietOption,
    RootOption,
    SeedOption,
    SetOption,
    StdOption,
    TrainingEpsOption,
    TrainingNormOption,
    command_line,
    given,
    normalization,
)
from robustgen.cli.terminal import note, print_found, say

__all__ = ["sample", "train"]


def _list_recipes(wanted: bool) -> None:
    """Print every recipe and leave, where that was asked for."""
    if wanted:
        from robustgen.commands.recipes import list_recipes

        say(list_recipes())
        raise typer.Exit


def train(
    context: typer.Context,
    run: Annotated[Path, typer.Option("--run", help="Directory for checkpoints and metrics.")],
    generative: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A generative model: vae, iaf-vae, pixel-vae, hierarchical-pixel-vae, pixelcnn, gated-pixelcnn, "
            "pixelcnn++, pixelrnn, dcgan, lsgan, wgan-gp, ebm; without: a classifier.",
        ),
    ] = None,
    data: DataOption = None,
    data_root: RootOption = None,
    download: DownloadOption = False,
    hold_out: Annotated[
        list[str] | None, typer.Option("--hold-out", help="Class to leave out; may be repeated.")
    ] = None,
    limit: LimitOption = None,
    size: SizeOption = None,
    channels: ChannelsOption = None,
    fit: FitOption = None,
    background: BackgroundOption = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="convnet (default), strided, mlp, resnet, resnet8, resnet18; torchvision:NAME, timm:NAME, hf:FOLDER; "
            "or module:function of your own.",
        ),
    ] = None,
    width: Annotated[
        int | None, typer.Option("--width", help="Channels of the first layers of a built-in network; units of mlp.")
    ] = None,
    activation: Annotated[
        str | None, typer.Option("--activation", help="Of a built-in network: relu (default), leaky_relu, tanh.")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="Start from these (.safetensors, a state dict as .pt or .pth, or a run)."),
    ] = None,
    mean: MeanOption = None,
    std: StdOption = None,
    adversarial: Annotated[
        str | None,
        typer.Option(
            "--adversarial",
            help="A method with its attack and loss: fast, madry, trades or mart. What you do not set is as the recipe "
            "of your data has it.",
        ),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Train by this recipe; --list-recipes prints them all.")
    ] = None,
    list_recipes: Annotated[
        bool,
        typer.Option(
            "--list-recipes",
            help="Print the recipes, what they gave and what they cost.",
            is_eager=True,
            callback=_list_recipes,
        ),
    ] = False,
    beta: Annotated[
        float | None, typer.Option("--beta", help="Of trades (default 6) or mart (5): weight of the divergence.")
    ] = None,
    awp: Annotated[
        float | None, typer.Option("--awp", help="Perturb weights too, by this share of each layer's norm: 0.005.")
    ] = None,
    attack: Annotated[
        str, typer.Option("--attack", help="Adversarial training without a method: none, fgsm or pgd.")
    ] = "none",
    eps: TrainingEpsOption = None,
    norm: TrainingNormOption = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Of pgd, madry, trades and mart; default 7.")] = None,
    single_step_epochs: Annotated[
        int | None,
        typer.Option("--single-step-epochs", help="Epochs of fast that come first, with madry, trades or mart."),
    ] = None,
    warm_up_epochs: Annotated[
        int | None, typer.Option("--warm-up-epochs", help="Epochs over which eps grows from 0.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--start",
            help="Random start of the attack in training: bounds (clamped to them) or ball (only the step is).",
        ),
    ] = None,
    clean_weight: Annotated[
        float | None,
        typer.Option("--clean-weight", help="Of the clean loss beside that of --attack; default 1; 0: madry."),
    ] = None,
    fortify: Annotated[
        str | None, typer.Option("--fortify", help="Layers to fortify: auto, or names separated by commas.")
    ] = None,
    hidden: Annotated[int | None, typer.Option("--hidden", help="Units or channels of each autoencoder.")] = None,
    autoencoder_init: Annotated[
        str | None,
        typer.Option("--autoencoder-init", help="identity (default where there is one) or random (the source's)."),
    ] = None,
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
    epochs: Annotated[int | None, typer.Option("--epochs", help="Default 10.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Default 128.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Default 1e-3; a generative model's is its paper's.")] = None,
    schedule: Annotated[
        str | None,
        typer.Option("--schedule", help="Of the learning rate: constant (default), cosine (to 0), cyclic (up, to 0)."),
    ] = None,
    optimizer: Annotated[str | None, typer.Option("--optimizer", help="adam (default) or sgd.")] = None,
    weight_decay: Annotated[float | None, typer.Option("--weight-decay", help="Of the optimizer; default 0.")] = None,
    ema: Annotated[float | None, typer.Option("--ema", help="Decay of a moving average of the weights.")] = None,
    augment: Annotated[
        bool | None, typer.Option("--augment/--no-augment", help="Train on shifted and mirrored images.")
    ] = None,
    set_: SetOption = None,
    precision: Annotated[str, typer.Option("--precision", help="Generative: float32 or bfloat16.")] = "float32",
    clip_norm: Annotated[float | None, typer.Option("--clip-norm", help="Generative: of the gradient.")] = None,
    samples: Annotated[int, typer.Option("--samples", help="Generative: images drawn after each epoch.")] = 16,
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
        parse_options,
        remembered_options,
        train_generative,
        train_network,
    )
    from robustgen.examples import PREFIX

    own = given(context)
    asked = {name: context.params[name] for name in own}
    if str(run).startswith(PREFIX):
        raise ValueError(f"--run {run} is a run that comes with the package: train in a directory of your own")
    if resume:
        asked = remembered_options(run, asked, context.params.keys() - _NOT_KEPT)
        if asked.keys() <= _NOT_KEPT and not (run / "run.json").exists():
            raise ValueError(f"{run} holds no run to resume; to begin one there, pass its options, --data at least")
    o = SimpleNamespace(**(context.params | asked))
    foreign = asked.keys() - _COMMON - _GENERATIVE if o.generative is not None else asked.keys() & _GENERATIVE
    if foreign:
        whose = "a classifier" if o.generative is not None else "a generative model"
        raise ValueError(f"--{min(foreign).strip('_').replace('_', '-')} is an option of {whose}")
    reader = image_reader(o.size, o.channels, o.fit, o.background)
    common: dict[str, Any] = {
        "run": run,
        "data": DataSpec("digits" if o.data is None else o.data, o.data_root, o.download, o.limit, reader),
        "hold_out": tuple(o.hold_out or ()),
        "seed": o.seed,
        "device": o.device,
        "resume": resume,
        "progress": not quiet,
        "command": command_line(),
        "options": {name: str(v) if isinstance(v, Path) else v for name, v in asked.items() if name not in _NOT_KEPT},
    }
    if o.generative is not None:
        found = train_generative(
            model=o.generative,
            settings=parse_options(o.set_ or ()),
            epochs=10 if o.epochs is None else o.epochs,
            batch_size=128 if o.batch_size is None else o.batch_size,
            lr=o.lr,
            ema=o.ema,
            precision=o.precision,
            clip_norm=o.clip_norm,
            samples=o.samples,
            **common,
        )
        if found:
            print_found(found, as_json)
        return
    spec = None
    if o.fortify is not None:
        spec = FortifySpec(
            init=o.autoencoder_init,
            layers=o.fortify,
            hidden=o.hidden,
            activation=o.autoencoder_activation,
            decoder_activation=o.decoder_activation,
            input_autoencoder=o.input_autoencoder,
            noise_std=o.noise_std,
            noise_at_test=o.noise_at_test,
            lambda_rec=o.lambda_rec,
            lambda_adv=o.lambda_adv,
            detach_states=o.detach_states,
            freeze_backbone=o.freeze_backbone,
        )
    means, stds = normalization(o.mean, o.std)
    found = train_network(
        method=_method(o),
        recipe=o.recipe,
        asked={name: getattr(o, name) for name in _RECIPE if name in asked} | _start(o.start),
        weights=None if o.weights is None else Path(o.weights),
        mean=means,
        std=stds,
        awp=o.awp,
        fortified=spec,
        say=note,
        **common,
    )
    if found:
        print_found(found, as_json)


_RECIPE = (  # options that are values of a recipe
    "model",
    "width",
    "activation",
    "eps",
    "norm",
    "steps",
    "clean_weight",
    "beta",
    "single_step_epochs",
    "warm_up_epochs",
    "epochs",
    "batch_size",
    "lr",
    "schedule",
    "optimizer",
    "weight_decay",
    "ema",
    "augment",
)
_GENERATIVE = {"set_", "precision", "clip_norm", "samples"}
_COMMON = {"run", "generative", "data", "data_root", "download", "hold_out", "limit", "epochs", "batch_size", "lr"}
_COMMON |= {"size", "channels", "fit", "background", "seed", "device", "resume", "as_json", "quiet", "ema"}
_NOT_KEPT = {"run", "resume", "as_json", "quiet", "device", "download"}


def _method(options: SimpleNamespace) -> str | None:
    """The method of training that --adversarial or --attack names."""
    if options.adversarial not in (None, "madry", "trades", "mart", "fast"):
        raise ValueError(f"unknown method {options.adversarial!r}; known: madry, trades, mart, fast")
    if options.attack == "none":
        return None if options.adversarial is None else str(options.adversarial)
    named = "--recipe" if options.recipe is not None else f"--adversarial {options.adversarial}"
    if options.recipe is not None or options.adversarial is not None:
        raise ValueError(f"{named} chooses attack and loss: leave out --attack and --clean-weight")
    if options.attack not in ("fgsm", "pgd"):
        raise ValueError(f"unknown attack {options.attack!r}; known: none, fgsm, pgd")
    return str(options.attack)


def _start(start: str | None) -> dict[str, bool]:
    if start not in (None, "bounds", "ball"):
        raise ValueError(f"--start {start}: it is bounds or ball")
    return {} if start is None else {"start_in_bounds": start == "bounds"}


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
    say(out)
