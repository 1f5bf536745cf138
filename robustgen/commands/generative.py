"""``robustgen train MODEL``, ``sample``, and the detectors over trained generative models."""

import inspect
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustgen import detectors as detector_room
from robustgen.calibration import check_rate
from robustgen.checks import check_positive, nearest
from robustgen.commands.data_spec import DataSpec
from robustgen.commands.opening import move
from robustgen.commands.run_info import holds_text, read_info, recorded_data, stopped_early
from robustgen.commands.runs import claim, data_for, is_first, parts, training_data_for
from robustgen.commands.trial import try_objective
from robustgen.data import ArrayDataset, require_nonempty, split
from robustgen.detectors import Detector, SmoothedDetector
from robustgen.examples import run_directory
from robustgen.files import write_bytes, write_json
from robustgen.generative import GenerativeModel, GenerativeObjective, load, model_classes
from robustgen.generative.pictures import Pictures, between, grid_png
from robustgen.model import evaluating
from robustgen.training import Batch, Trainer, load_checkpoint
from robustgen.turns import seeded

__all__ = [
    "construct",
    "generative_detector",
    "sample_images",
    "train_generative",
    "trained_model",
    "training_data",
]

SCORED = 2000  # inputs at most that a detector over a generative model is fitted on, and likewise calibrated on
_STEPS = 8  # images in a row that leads from one noise to another
_AT_ONCE = 64
_ALIASES = {"ebm": "energymodel", "energy": "energymodel", "pixelcnn++": "pixelcnnplusplus"}


def train_generative(
    *,
    run: Path,
    data: DataSpec,
    model: str,
    settings: dict[str, Any],
    base: Path | None = None,
    hold_out: tuple[str, ...] = (),
    epochs: int = 10,
    batch_size: int = 128,
    lr: float | None = None,
    ema: float | None = None,
    precision: str = "float32",
    clip_norm: float | None = None,
    guard: bool = True,
    samples: int = 16,
    seed: int = 0,
    device: str | None = None,
    resume: bool = False,
    progress: bool = True,
    command: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train a generative model, with sample grids and loss curves as it goes, and write it to ``run``.

    A tenth of the training data is kept from training: its loss is logged, and detectors are calibrated on it.

    Args:
        settings: of the model's class.
        guard: whether the model's own guard may end the training.
        base: the run of a model that this one holds; its data and held-out classes are taken where none are named.
        options: of the command, for a resumed one to remember.
    """
    kind = _class_called(model, "model", model_classes(), _ALIASES)
    if lr is not None:
        check_positive(lr=lr)
    first: tuple[Any, ...] = ()
    held: GenerativeModel | None = None
    if "base" in inspect.signature(kind).parameters:
        held = _base(kind, base, run if resume else None)
        known = [where for where in (base, run if resume else None) if where and (where / "run.json").is_file()]
        if base is not None and known:
            info = read_info(known[0])
            data, hold_out = training_data_for(data, info), hold_out or tuple(info["held_out"])
        elif base is not None and data.source is None:
            raise ValueError(f"--base {base}: a saved model without its run names no data: pass --data")
        first, settings = _with_base(kind, held, settings)
    elif base is not None:
        raise ValueError(f"--base {base}: a {kind.__name__} begins with no other model")
    whole = require_nonempty(data.read("train"))
    rest, train, held_back = parts(whole, hold_out)
    shape = tuple(rest.x.shape[1:])
    if held is not None and held.shape != shape:
        raise ValueError(f"--base {base}: its images are {held.shape}, those of {rest.name} are {shape}")
    with seeded(seed), _naming_settings(kind):
        network = construct(kind, *(first or (shape,)), options=settings)
        x, y = train.batch(torch.arange(min(4, len(train))))
        move(network, device)
        with evaluating(network), torch.no_grad():  # data that it cannot be trained on fail here, with nothing written
            network.validation_step(Batch(x.to(network.device), y, torch.arange(len(x))), 0)
    if not guard and network.guard() is None:
        raise ValueError(f"--no-guard: the training of a {kind.__name__} has no guard: leave it out")
    info = {
        "format": 1,
        "data": data.record(),
        "classes": list(rest.classes),
        "held_out": [name for name in whole.classes if name not in rest.classes],
        "generative": {"model": kind.__name__, "config": network.config},
        "training": {"epochs": epochs, "batch_size": batch_size, "lr": lr, "ema": ema, "precision": precision}
        | {"clip_norm": clip_norm, "seed": seed},
        "command": command,
        "options": dict(options or {}),
    }

    def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        made = network.optimizer(parameters)
        for group in made.param_groups:
            group["lr"] = group["lr"] if lr is None else lr
        return made

    trainer = Trainer(
        GenerativeObjective(),
        optimizer=optimizer,
        epochs=epochs,
        batch_size=batch_size,
        ema=ema,
        precision=precision,
        clip_norm=clip_norm,
        guard=network.guard() if guard else None,
        seed=seed,
        device=device,
        run_dir=run,
        resume=resume,
        progress=progress,
        after_epoch=Pictures(run, samples),
    )
    try_objective(network, GenerativeObjective(), train, batch_size, seed)
    network.check_training(len(train), batch_size)
    with claim(run, info, resume):  # only now: what is refused above leaves nothing
        history = trainer.fit(network, train, held_back)
        if not is_first():
            return {}
        write_json(run / "run.json", info)  # of a resumed run: its new number of epochs
    found = {k: v for k, v in history[-1].items() if k not in ("epoch", "step")}
    return {"run": str(run), "model": repr(kind.__name__), "epochs": len(history)} | found


def _base(kind: type[Any], base: Path | None, resumed: Path | None) -> GenerativeModel | None:
    """The model that ``kind`` is to hold; of a resumed run, whose base may be gone, that in its checkpoint."""
    required = inspect.signature(kind).parameters["base"].default is inspect.Parameter.empty
    if base is None:
        if required:
            raise ValueError(f"a {kind.__name__} begins with a trained model: name its run, --base RUN")
        return None
    if resumed is not None and not base.exists() and (resumed / "run.json").exists():
        inner = load(resumed).base
        return inner if isinstance(inner, GenerativeModel) else None
    return trained_model(base)


def _with_base(
    kind: type[Any], base: GenerativeModel | None, settings: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What ``kind`` is called with first, and its settings."""
    if "base" in settings:
        raise ValueError("--set base: name the run of a model, --base RUN")
    if next(iter(inspect.signature(kind).parameters)) == "base":
        return (base,), settings
    return (), settings if base is None else settings | {"base": base}


def sample_images(
    run: Path,
    n: int,
    out: Path,
    *,
    interpolate: bool = False,
    pairs: DataSpec | None = None,
    depth: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    device: str | None = None,
) -> None:
    """Draw n images from the model in ``run`` into a .png grid or an .npz file (uint8 "x").

    Args:
        interpolate: n rows of images instead, from those of one noise to those of another.
        pairs: n of them instead, images of these data (of the run's, where it names none) beside what the model makes
            of them.
        depth: of a diffusion, to which it takes the images of such pairs before it comes back; None: it reconstructs.
        steps, guidance: ``sample_steps`` and ``guidance`` of the model, in place of those that it was trained with;
            with a depth, ``steps`` of the way back.

    Raises:
        ValueError: another file, no such model, or one that cannot do what is asked.
    """
    if out.suffix not in (".png", ".npz"):
        raise ValueError(f"{out}: name it .png or .npz")
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    model, columns = trained_model(run), None
    of_samples = steps if depth is None else None
    _set(model, {"--steps": ("sample_steps", of_samples), "--guidance": ("guidance", guidance)})
    move(model, device)
    generator = torch.Generator(model.device).manual_seed(seed)
    if interpolate:
        x, columns = _rows_between(model, n, generator), _STEPS
    elif pairs is not None:
        info = read_info(run) if (run / "run.json").is_file() else {}
        with seeded(seed):
            x = _pairs(model, data_for(pairs, info).read("test", model.shape, spaced=True).take(n), depth, steps)
        columns = 2 * math.ceil(math.sqrt(len(x) / 4))
    else:
        x = model.sample(n, generator=generator)
    if out.suffix == ".png":
        write_bytes(out, grid_png(x, columns))
    else:
        import io

        import numpy as np

        buffer = io.BytesIO()
        np.savez_compressed(buffer, x=(255 * x).round().to(torch.uint8).cpu().numpy())
        write_bytes(out, buffer.getvalue())


def _set(model: GenerativeModel, asked: Mapping[str, tuple[str, Any]]) -> None:
    """Set attributes of the model, by the options that ask for them; None: as it is.

    Raises:
        TypeError, ValueError: naming the option, of an attribute that is no argument of the model, or a value that its
            constructor refuses.
    """
    for option, (name, value) in asked.items():
        if value is None:
            continue
        if name not in model.config:
            raise ValueError(f"{option} {value:g}: a {type(model).__name__} has no {name}")
        try:
            with seeded(0):
                type(model)(**model.config | {name: value})
        except (TypeError, ValueError) as error:
            raise type(error)(f"{option} {value:g}: {error}") from None
        setattr(model, name, value)


@torch.no_grad()
def _rows_between(model: GenerativeModel, n: int, generator: torch.Generator) -> Tensor:
    if model.noise_shape is None:
        raise ValueError(f"{type(model).__name__} makes no images of normal noise alone: there is nothing between two")
    ends = torch.randn(2, n, *model.noise_shape, generator=generator, device=model.device, dtype=model.dtype)
    eps = between(ends[0], ends[1], _STEPS).flatten(0, 1)
    return torch.cat([model.from_noise(part) for part in eps.split(_AT_ONCE)]).clamp(0, 1)


@torch.no_grad()
def _pairs(model: GenerativeModel, data: ArrayDataset, depth: int | None, steps: int | None) -> Tensor:
    """(2 N, *shape): each image, and behind it what the model makes of it."""
    make = getattr(model, "reconstruct" if depth is None else "edit", None)
    if make is None:
        line = "does not reconstruct images: it has neither codes nor noise of them"
        raise ValueError(f"{type(model).__name__} {line if depth is None else 'edits no images: it is no diffusion'}")
    x = data.images().to(model.device, model.dtype)
    given = {} if depth is None else {"depth": depth, "steps": steps}
    again = torch.cat([make(part, **given) for part in x.split(_AT_ONCE)]).clamp(0, 1)
    return torch.stack([x, again], 1).flatten(0, 1)


def generative_detector(
    runs: Sequence[Path],
    name: str | None,
    options: dict[str, Any],
    *,
    device: str | None = None,
    fpr: float | None = None,
    smoothing: tuple[float, int] | None = None,
    before_fit: Callable[[tuple[int, ...] | None, dict[str, Any]], None] = lambda shape, info: None,
) -> tuple[Detector, tuple[int, ...] | None, dict[str, Any]]:
    """A detector over the model of the first run (and the others, where it compares several), fitted and calibrated.

    It is fitted on training data of the first run and calibrated on what that kept from training, or both on halves of
    the latter where it is fitted on fresh data; at most ``SCORED`` inputs each. It is kept in the run. The shape of its
    inputs and run.json come with it; ``smoothing`` is sigma and draws of a
    :class:`~robustgen.detectors.SmoothedDetector` around it. ``before_fit`` is called with them before anything is
    fitted, and may refuse; so may too few calibration inputs for the false-alarm rate ``fpr``.
    """
    models, info = [trained_model(run) for run in runs], read_info(runs[0])
    denoises = hasattr(models[0], "denoise") and not hasattr(models[0], "discriminate")
    scored = "diffusion-reconstruction" if denoises else "discriminator"
    scored = "model-energy" if hasattr(models[0], "energy") else scored
    default = "likelihood" if models[0].log_prob_kind is not None else scored
    default = "latent-density" if hasattr(models[0], "latent_log_prob") else default
    kind = _class_called(default if name is None else name, "detector", _detector_classes(), {})
    for model in models:
        move(model, device)
    if any(model.shape != models[0].shape for model in models):
        raise ValueError(f"the models are of images of different shapes: {', '.join(str(m.shape) for m in models)}")
    model_argument = next(iter(inspect.signature(kind).parameters.values()))
    if len(models) > 1 and "Sequence" not in str(model_argument.annotation):
        raise ValueError(f"{kind.__name__} is of one model: pass --checkpoint once")
    if model_argument.name == "models" and len(models) == 1:
        raise ValueError(f"{kind.__name__} compares several models: pass --checkpoint more than once")
    if model_argument.default is inspect.Parameter.empty:
        detector = construct(kind, models[0] if len(models) == 1 else models, options=options)
    else:  # it works on pixels; the run says only on which
        detector = construct(kind, model_argument.default, options=options)
    if smoothing is not None:
        detector = SmoothedDetector(detector, smoothing[0], smoothing[1])
    before_fit(models[0].shape, info)
    place = runs[0] / "detectors" / type(detector).__name__
    if (kept := _kept(place, detector)) is not None:
        if fpr is not None:
            check_rate(fpr, len(kept.calibration))
        return kept, models[0].shape, info
    _, train, held_back = _parts_of_run(runs[0], info, models[0].shape)
    if kind.fit_on_fresh:
        fresh, held_back = split(held_back, (0.5, 0.5), seed=0, stratified=False)
        if not len(fresh) or not len(held_back):
            raise ValueError(f"{runs[0]} kept too few examples from training to fit and calibrate {kind.__name__} on")
    held_back = held_back.take(SCORED)
    if fpr is not None:
        check_rate(fpr, len(held_back))
    detector.fit((fresh if kind.fit_on_fresh else train).take(SCORED)).calibrate(held_back)
    try:
        if place.parent.is_symlink() or place.is_symlink():  # what it leads to is not to be changed
            raise OSError(f"{place} is a link, or in one")
        detector.save(place)
    except OSError as error:
        warnings.warn(f"the fitted detector cannot be kept: {error}", stacklevel=2)
    return detector, models[0].shape, info


def _kept(place: Path, detector: Detector) -> Detector | None:
    """The detector of the same settings that was fitted before; None where it is damaged, or about other weights."""
    try:
        kept = type(detector).load(place, model=detector.model)
    except (FileNotFoundError, ValueError):  # the run was resumed since, or another background given
        return None
    return kept if kept.config == detector.config else None


def trained_model(run: Path) -> GenerativeModel:
    """The model of a run; ValueError where it is one of text, or no step of its training was completed."""
    if holds_text(run):
        raise ValueError(f"{run} holds a model of text, not of images: see robustgen sample, and score --run")
    model = load(run)
    if (run / "run.json").exists() and load_checkpoint(run).step == 0:
        raise ValueError(f"{run}: holds the network that its training began with, no step was completed")
    if line := stopped_early(run):
        warnings.warn(line, stacklevel=2)
    return model


def training_data(run: Path, shape: tuple[int, ...] | None) -> ArrayDataset:
    """All that a run, of whatever network, was trained or calibrated on."""
    run = run_directory(run)
    return _parts_of_run(run, read_info(run), shape)[0]


def _parts_of_run(
    run: Path, info: dict[str, Any], shape: tuple[int, ...] | None
) -> tuple[ArrayDataset, ArrayDataset, ArrayDataset]:
    try:
        return parts(recorded_data(info).read("train", shape), info["held_out"])
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{run / 'run.json'}: its training data cannot be read: {error}") from None


def _detector_classes() -> dict[str, type[Detector]]:
    found = [getattr(detector_room, name) for name in detector_room.__all__]
    return {c.__name__: c for c in found if isinstance(c, type) and issubclass(c, Detector) and c is not Detector}


def _class_called(name: str, what: str, known: dict[str, type], aliases: dict[str, str]) -> type[Any]:
    """The class that is meant, however it is spelled: ``pixel-cnn`` is PixelCNN."""
    plain = name.lower().replace("-", "").replace("_", "")
    by_plain = {c.lower(): kind for c, kind in known.items()}
    plain = aliases.get(plain, plain)
    if plain not in by_plain:
        spelled = [re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", c).lower() for c in known]
        raise ValueError(f"unknown {what} {name!r}; {nearest(name.lower(), spelled)}")
    return by_plain[plain]


def construct(kind: Callable[..., Any], *first: Any, options: dict[str, Any]) -> Any:
    """``kind(*first, **options)``; ValueError for an option that it does not have."""
    known = list(inspect.signature(kind).parameters)[len(first) :]
    for name in options:
        if name not in known:
            hint = nearest(name, known, listed=len(known))
            raise ValueError(f"--set {name}: {kind.__name__} has no such argument; {hint}")
    with _naming_settings(kind):
        return kind(*first, **options)


@contextmanager
def _naming_settings(kind: Callable[..., Any]) -> Iterator[None]:
    """Say of what is refused inside how the command is told it: each argument of ``kind`` is set by --set."""
    names = "|".join(list(inspect.signature(kind).parameters)[1:])
    try:
        yield
    except (TypeError, ValueError) as error:
        line = re.sub(rf"(?<!--set )\b({names})='(\w+)'", r"--set \1=\2", str(error))
        line = re.sub(rf"^({names}) must", r"--set \1 must", line)
        raise (TypeError if isinstance(error, TypeError) else ValueError)(line) from error
