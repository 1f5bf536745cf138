"""``robustgen train`` and ``sample``."""

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
    NormOption,
    QuietOption,
    RootOption,
    SeedOption,
    SetOption,
    StdOption,
    command_line,
    given,
    normalization,
)
from robustgen.cli.terminal import print_found, say

__all__ = ["sample", "train"]


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
        str,
        typer.Option(
            "--model",
            help="convnet, mlp, resnet; torchvision:NAME, timm:NAME, hf:FOLDER; or module:function of your own.",
        ),
    ] = "convnet",
    width: Annotated[
        int | None, typer.Option("--width", help="Channels of convnet's or resnet's first layers; units of mlp.")
    ] = None,
    activation: Annotated[
        str, typer.Option("--activation", help="Of convnet, mlp, resnet: relu, leaky_relu, tanh.")
    ] = "relu",
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="Start from these (.safetensors, a state dict as .pt or .pth, or a run)."),
    ] = None,
    mean: MeanOption = None,
    std: StdOption = None,
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
        adversarial_training,
        parse_options,
        train_generative,
        train_network,
    )

    reader = image_reader(size, channels, fit, background)
    wanted = DataSpec("digits" if data is None else data, data_root, download, limit, reader)
    common = {"run", "generative", "data", "data_root", "download", "hold_out", "limit", "epochs", "batch_size", "lr"}
    common |= {"size", "channels", "fit", "background", "seed", "device", "resume", "as_json", "quiet"}
    for_generative = {"set_", "ema", "precision", "clip_norm", "samples"}
    own = given(context) - common
    foreign = own - for_generative if generative is not None else own & for_generative
    if foreign:
        whose = "a classifier" if generative is not None else "a generative model"
        raise ValueError(f"--{sorted(foreign)[0].strip('_').replace('_', '-')} is an option of {whose}")
    if generative is not None:
        found = train_generative(
            run=run,
            data=wanted,
            model=generative,
            options=parse_options(set_ or ()),
            hold_out=tuple(hold_out or ()),
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            ema=ema,
            precision=precision,
            clip_norm=clip_norm,
            samples=samples,
            seed=seed,
            device=device,
            resume=resume,
            progress=not quiet,
            command=command_line(),
        )
        if found:
            print_found(found, as_json)
        return
    spec = None
    if fortify is not None:
        spec = FortifySpec(
            layers=fortify,
            init=autoencoder_init,
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
    means, stds = normalization(mean, std)
    found = train_network(
        run=run,
        data=wanted,
        hold_out=tuple(hold_out or ()),
        model=model,
        width=width,
        activation=activation,
        weights=weights,
        mean=means,
        std=stds,
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
        command=command_line(),
    )
    if found:
        print_found(found, as_json)


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
