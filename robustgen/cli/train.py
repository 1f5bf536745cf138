"""``robustgen train`` and ``sample``."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import typer

from robustgen.cli.options import (
    BackgroundOption,
    ChannelsOption,
    DataOption,
    DeviceOption,
    DownloadOption,
    FitOption,
    JsonOption,
    MeanOption,
    QuietOption,
    RootOption,
    SeedOption,
    SetOption,
    SizeOption,
    StdOption,
    TrainingEpsOption,
    TrainingLimitOption,
    TrainingNormOption,
    command_line,
    given,
    image_reader,
    normalization,
)
from robustgen.cli.terminal import (
    ADVERSARIAL,
    DATA,
    FORTIFY,
    GENERATIVE,
    NETWORK,
    OPTIMISATION,
    RUN,
    note,
    print_found,
    say,
)

__all__ = ["sample", "train"]


def train(
    context: typer.Context,
    run: Annotated[
        Path | None,
        typer.Option("--run", help="Directory for checkpoints and metrics; always needed.", rich_help_panel=RUN),
    ] = None,
    generative: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A generative model: vae, iaf-vae, pixel-vae, hierarchical-pixel-vae, flow-prior-vae, "
            "flow-posterior-vae, two-stage-vae, vamp-prior-vae, ncp-vae, glf, rae, wae, pixelcnn, gated-pixelcnn, "
            "pixelcnn++, pixelrnn, realnvp, glow, maf, residual-flow, continuous-flow, dcgan, lsgan, wgan-gp, ebm, "
            "jem, rbm, dbm, nce, gaussian-mixture, noise-free-ebm, equilibrium-matching, product-of-experts, "
            "top-down-vae, tilted, ddpm, ddgan, edm, score-sde, denoiser; char-lm, of a text; without: a classifier.",
        ),
    ] = None,
    data: DataOption = None,
    data_root: RootOption = None,
    download: DownloadOption = False,
    hold_out: Annotated[
        list[str] | None, typer.Option("--hold-out", help="Class to leave out; may be repeated.", rich_help_panel=DATA)
    ] = None,
    limit: TrainingLimitOption = None,
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
            rich_help_panel=NETWORK,
        ),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(
            "--width", help="Channels of the first layers of a built-in network; units of mlp.", rich_help_panel=NETWORK
        ),
    ] = None,
    activation: Annotated[
        str | None,
        typer.Option(
            "--activation", help="Of a built-in network: relu (default), leaky_relu, tanh.", rich_help_panel=NETWORK
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            help="Start from these (.safetensors, a state dict as .pt or .pth, or a run).",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    mean: MeanOption = None,
    std: StdOption = None,
    adversarial: Annotated[
        str | None,
        typer.Option(
            "--adversarial",
            help="A method with its attack and loss: fast, madry, trades or mart. What you do not set is as the recipe "
            "of your data has it.",
            rich_help_panel=ADVERSARIAL,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe", help="Train by this recipe; --list-recipes prints them all.", rich_help_panel=ADVERSARIAL
        ),
    ] = None,
    list_the_recipes: Annotated[
        bool,
        typer.Option(
            "--list-recipes", help="Print the recipes, what they gave and what they cost.", rich_help_panel=ADVERSARIAL
        ),
    ] = False,
    beta: Annotated[
        float | None,
        typer.Option(
            "--beta", help="Of trades (default 6) or mart (5): weight of the divergence.", rich_help_panel=ADVERSARIAL
        ),
    ] = None,
    awp: Annotated[
        float | None,
        typer.Option(
            "--awp", help="Perturb weights too, by this share of each layer's norm: 0.005.", rich_help_panel=ADVERSARIAL
        ),
    ] = None,
    attack: Annotated[
        str,
        typer.Option(
            "--attack", help="Adversarial training without a method: none, fgsm or pgd.", rich_help_panel=ADVERSARIAL
        ),
    ] = "none",
    eps: TrainingEpsOption = None,
    norm: TrainingNormOption = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", help="Of pgd, madry, trades and mart; default 7.", rich_help_panel=ADVERSARIAL),
    ] = None,
    single_step_epochs: Annotated[
        int | None,
        typer.Option(
            "--single-step-epochs",
            help="Epochs of fast that come first, with madry, trades or mart.",
            rich_help_panel=ADVERSARIAL,
        ),
    ] = None,
    warm_up_epochs: Annotated[
        int | None,
        typer.Option("--warm-up-epochs", help="Epochs over which eps grows from 0.", rich_help_panel=ADVERSARIAL),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--start",
            help="Random start of the attack in training: bounds (clamped to them) or ball (only the step is).",
            rich_help_panel=ADVERSARIAL,
        ),
    ] = None,
    clean_weight: Annotated[
        float | None,
        typer.Option(
            "--clean-weight",
            help="Of the clean loss beside that of --attack; default 1; 0: madry.",
            rich_help_panel=ADVERSARIAL,
        ),
    ] = None,
    fortify: Annotated[
        str | None,
        typer.Option(
            "--fortify", help="Layers to fortify: auto, or names separated by commas.", rich_help_panel=FORTIFY
        ),
    ] = None,
    hidden: Annotated[
        int | None, typer.Option("--hidden", help="Units or channels of each autoencoder.", rich_help_panel=FORTIFY)
    ] = None,
    autoencoder_init: Annotated[
        str | None,
        typer.Option(
            "--autoencoder-init",
            help="identity (default where there is one) or random (the source's).",
            rich_help_panel=FORTIFY,
        ),
    ] = None,
    autoencoder_activation: Annotated[
        str, typer.Option("--autoencoder-activation", help="leaky_relu, relu, tanh or linear.", rich_help_panel=FORTIFY)
    ] = "leaky_relu",
    decoder_activation: Annotated[
        str, typer.Option("--decoder-activation", help="Likewise.", rich_help_panel=FORTIFY)
    ] = "linear",
    input_autoencoder: Annotated[
        bool,
        typer.Option(
            "--input-autoencoder",
            help="One on the input; --fortify says where its loss is measured.",
            rich_help_panel=FORTIFY,
        ),
    ] = False,
    noise_std: Annotated[
        float, typer.Option("--noise-std", help="Of the corruption of hidden states.", rich_help_panel=FORTIFY)
    ] = 0.1,
    noise_at_test: Annotated[
        bool, typer.Option("--noise-at-test", help="Corrupt at test time too.", rich_help_panel=FORTIFY)
    ] = False,
    lambda_rec: Annotated[
        float, typer.Option("--lambda-rec", help="Weight of the clean reconstruction loss.", rich_help_panel=FORTIFY)
    ] = 0.1,
    lambda_adv: Annotated[
        float, typer.Option("--lambda-adv", help="Of the adversarial reconstruction loss.", rich_help_panel=FORTIFY)
    ] = 0.1,
    detach_states: Annotated[
        bool,
        typer.Option(
            "--detach-states", help="Reconstruction losses train the autoencoders only.", rich_help_panel=FORTIFY
        ),
    ] = False,
    freeze_backbone: Annotated[
        bool,
        typer.Option(
            "--freeze-backbone", help="Keep a pretrained network; train only its autoencoders.", rich_help_panel=FORTIFY
        ),
    ] = False,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Default 10.", rich_help_panel=OPTIMISATION)] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Default 128.", rich_help_panel=OPTIMISATION)
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option("--lr", help="Default 1e-3; a generative model's is its paper's.", rich_help_panel=OPTIMISATION),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            "--schedule",
            help="Of the learning rate: constant (default), cosine (to 0), cyclic (up, to 0).",
            rich_help_panel=OPTIMISATION,
        ),
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option("--optimizer", help="adam (default) or sgd.", rich_help_panel=OPTIMISATION)
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option("--weight-decay", help="Of the optimizer; default 0.", rich_help_panel=OPTIMISATION)
    ] = None,
    ema: Annotated[
        float | None,
        typer.Option("--ema", help="Decay of a moving average of the weights.", rich_help_panel=OPTIMISATION),
    ] = None,
    augment: Annotated[
        bool | None,
        typer.Option(
            "--augment/--no-augment", help="Train on shifted and mirrored images.", rich_help_panel=OPTIMISATION
        ),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            "--base",
            help="The run of the model that tilted and noise-contrastive ones begin with; its data are the default.",
            rich_help_panel=GENERATIVE,
        ),
    ] = None,
    set_: SetOption = None,
    precision: Annotated[
        str, typer.Option("--precision", help="float32 or bfloat16.", rich_help_panel=GENERATIVE)
    ] = "float32",
    clip_norm: Annotated[
        float | None, typer.Option("--clip-norm", help="Largest norm of the gradient.", rich_help_panel=GENERATIVE)
    ] = None,
    guard: Annotated[
        bool,
        typer.Option(
            "--guard/--no-guard",
            help="End the training of an energy where chains no longer follow it, with the weights from before.",
            rich_help_panel=GENERATIVE,
        ),
    ] = True,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples", help="Drawn after each epoch; default 16 images, or 1 text.", rich_help_panel=GENERATIVE
        ),
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a run that was interrupted, exactly.", rich_help_panel=RUN)
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a generative MODEL, or a classifier: plain, adversarial (--adversarial, --attack) or --fortify.

    A tenth of the data is kept from training. Of an adversarial training one half of it, 1,000 images at most, chooses
    the best epoch, which is the network that one gets; the others calibrate the detector of a fortified network.

    Data are images or numbers; of char-lm, a language model of letters and spaces, a text file.
    """
    from robustgen.commands import (
        DataSpec,
        FortifySpec,
        parse_options,
        remembered_options,
        train_generative,
        train_network,
        train_text,
    )
    from robustgen.commands.recipes import list_recipes, recipes_as_json
    from robustgen.examples import PREFIX

    if list_the_recipes:
        say(json.dumps(recipes_as_json()) if as_json else list_recipes())
        return
    if run is None:
        raise ValueError("pass --run DIR, for checkpoints and metrics")
    own = given(context)
    asked = {name: context.params[name] for name in sorted(own)}
    if str(run).startswith(PREFIX):
        raise ValueError(f"--run {run} is a run that comes with the package: train in a directory of your own")
    if resume:
        asked = remembered_options(run, asked, context.params.keys() - _NOT_KEPT)
        if asked.keys() <= _NOT_KEPT and not (run / "run.json").exists():
            raise ValueError(f"{run} holds no run to resume; to begin one there, pass its options, --data at least")
    o = SimpleNamespace(**(context.params | asked))
    is_text = o.generative is not None and o.generative.lower().replace("_", "-") == "char-lm"
    foreign = asked.keys() - _COMMON - _GENERATIVE if o.generative is not None else asked.keys() & _GENERATIVE
    if foreign:
        whose = "a classifier" if o.generative is not None else "a generative model"
        raise ValueError(f"{_option(min(foreign))} is an option of {whose}")
    if is_text and (foreign := asked.keys() & _OF_IMAGES):
        raise ValueError(f"{_option(min(foreign))} is about images, and char-lm is a model of text")
    if is_text and not o.guard:
        raise ValueError("--no-guard: the training of char-lm has no guard: leave it out")
    reader = image_reader(o.size, o.channels, o.fit, o.background)
    common: dict[str, Any] = {
        "run": run,
        "data": DataSpec(
            "digits" if o.data is None and o.base is None and not is_text else o.data,
            o.data_root,
            o.download,
            o.limit,
            reader,
        ),
        "seed": o.seed,
        "device": o.device,
        "resume": resume,
        "progress": not quiet,
        "command": command_line(),
        "options": {name: str(v) if isinstance(v, Path) else v for name, v in asked.items() if name not in _NOT_KEPT},
    }
    if is_text:
        chosen = {name: getattr(o, name) for name in _OF_TEXT if name in asked}
        found = train_text(settings=parse_options(o.set_ or ()), say=note, **chosen, **common)
        if found:
            print_found(found, as_json)
        return
    held_out = tuple(o.hold_out or ())
    if o.generative is not None:
        found = train_generative(
            hold_out=held_out,
            model=o.generative,
            settings=parse_options(o.set_ or ()),
            base=None if o.base is None else Path(o.base),
            epochs=10 if o.epochs is None else o.epochs,
            batch_size=128 if o.batch_size is None else o.batch_size,
            lr=o.lr,
            ema=o.ema,
            precision=o.precision,
            clip_norm=o.clip_norm,
            guard=o.guard,
            samples=16 if o.samples is None else o.samples,
            **common,
        )
        if found:
            print_found(found, as_json)
        return
    idle = asked.keys() & (_FORTIFY if o.fortify is None else _JOINT if o.freeze_backbone else set())
    if idle:
        without = "goes with --fortify" if o.fortify is None else "is of a joint training, --freeze-backbone is none"
        raise ValueError(f"{_option(min(idle))} {without}")
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
        hold_out=held_out,
        recipe=o.recipe,
        adversarial=o.adversarial,
        attack=o.attack,
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
_JOINT = {"lambda_rec", "lambda_adv", "detach_states"}
_FORTIFY = {"hidden", "autoencoder_init", "autoencoder_activation", "decoder_activation", "input_autoencoder"}
_FORTIFY |= {"noise_std", "noise_at_test", "freeze_backbone"} | _JOINT
_GENERATIVE = {"base", "set_", "precision", "clip_norm", "guard", "samples"}
_COMMON = {"run", "generative", "data", "data_root", "download", "hold_out", "limit", "epochs", "batch_size", "lr"}
_COMMON |= {"size", "channels", "fit", "background", "seed", "device", "resume", "as_json", "quiet", "ema"}
_OF_IMAGES = {"base", "data_root", "download", "hold_out", "limit", "size", "channels", "fit", "background"}
_OF_TEXT = ("epochs", "batch_size", "lr", "ema", "precision", "clip_norm", "samples")
_DRAWN_IMAGES = {"interpolate", "reconstruct", "steps", "guidance", "edit", "data", "data_root", "download"}
_DRAWN_IMAGES |= {"size", "channels", "fit", "background"}
_DRAWN_TEXT = {"prompt", "length", "temperature"}
_NOT_KEPT = {"run", "resume", "as_json", "quiet", "device", "download", "list_the_recipes"}


def _option(name: str) -> str:
    return f"--{name.strip('_').replace('_', '-')}"


def _start(start: str | None) -> dict[str, bool]:
    if start not in (None, "bounds", "ball"):
        raise ValueError(f"--start {start}: it is bounds or ball")
    return {} if start is None else {"start_in_bounds": start == "bounds"}


def sample(
    context: typer.Context,
    run: Annotated[Path, typer.Option("--checkpoint", "--run", help="Run of `robustgen train MODEL`.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="A .png grid, or an .npz file; a .txt of texts, which are else printed."),
    ] = None,
    n: Annotated[
        int | None, typer.Option("--n", help="How many: 64 images or pairs, 1 text.", rich_help_panel=GENERATIVE)
    ] = None,
    interpolate: Annotated[
        int | None,
        typer.Option(
            "--interpolate",
            metavar="N",
            min=1,
            help="N rows instead, each from the image of one noise to that of another.",
            rich_help_panel=GENERATIVE,
        ),
    ] = None,
    reconstruct: Annotated[
        bool,
        typer.Option(
            "--reconstruct",
            help="Pairs instead: test images of --data, default those of the run, beside their reconstructions.",
            rich_help_panel=GENERATIVE,
        ),
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            help="From noise to an image, for models that take steps: of a diffusion, at most those that were trained. "
            "[default: the model's sample_steps]",
            rich_help_panel=GENERATIVE,
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            "--guidance",
            help="How far samples of a class-conditional diffusion are drawn to their class; 1: as it was trained. "
            "[default: the model's]",
            rich_help_panel=GENERATIVE,
        ),
    ] = None,
    edit: Annotated[
        int | None,
        typer.Option(
            "--edit",
            metavar="DEPTH",
            min=1,
            help="Pairs instead: images beside what a diffusion model makes of them by so many steps there and back.",
            rich_help_panel=GENERATIVE,
        ),
    ] = None,
    data: DataOption = None,
    data_root: RootOption = None,
    download: DownloadOption = False,
    size: SizeOption = None,
    channels: ChannelsOption = None,
    fit: FitOption = None,
    background: BackgroundOption = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="How each text begins.", rich_help_panel=GENERATIVE)
    ] = None,
    length: Annotated[
        int, typer.Option("--length", help="Characters that each goes on for.", rich_help_panel=GENERATIVE)
    ] = 500,
    temperature: Annotated[
        float, typer.Option("--temperature", help="Below 1: likelier characters.", rich_help_panel=GENERATIVE)
    ] = 1.0,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Draw images or text from a trained model; or show what is between images, or what it makes of them."""
    from robustgen.commands import DataSpec, sample_images, sample_text
    from robustgen.commands.run_info import holds_text

    is_text, asked_for = holds_text(run), given(context)
    if foreign := asked_for & (_DRAWN_IMAGES if is_text else _DRAWN_TEXT):
        held, other = ("text", "images") if is_text else ("images", "text")
        raise ValueError(f"{_option(min(foreign))} is about {other}, and {run} holds a model of {held}")
    if is_text:
        n = 1 if n is None else n
        texts = sample_text(run, n, prompt, length, temperature=temperature, seed=seed, device=device, out=out)
        say("\n\n".join(texts) if out is None else out)
        return
    if out is None:
        raise ValueError("pass --out, a .png or .npz file")
    pairs = reconstruct or edit is not None
    if interpolate is not None and (pairs or n is not None):
        raise ValueError(f"--interpolate {interpolate} says what is drawn: leave out --n, --reconstruct and --edit")
    if reconstruct and edit is not None:
        raise ValueError("--reconstruct and --edit make two kinds of pairs: leave one out")
    asked = DataSpec(data, data_root, download, None, image_reader(size, channels, fit, background))
    if not pairs and asked != DataSpec(None):
        raise ValueError("samples are of no data: --data and the options on it go with --reconstruct and --edit")
    if reconstruct and (steps is not None or guidance is not None):
        raise ValueError("--steps and --guidance are of samples: leave out --reconstruct")
    if edit is not None and guidance is not None:
        raise ValueError("--guidance is of samples: leave out --edit")
    sample_images(
        run,
        interpolate or (64 if n is None else n),
        out,
        interpolate=interpolate is not None,
        pairs=asked if pairs else None,
        depth=edit,
        steps=steps,
        guidance=guidance,
        seed=seed,
        device=device,
    )
    say(out)
