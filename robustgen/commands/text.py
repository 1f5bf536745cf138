"""``robustgen train char-lm``, and what ``sample`` and ``score`` do with such a run: a model of a text's characters."""

import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustgen.calibration import ConformalCalibration, check_rate
from robustgen.checks import check_integers, check_positive
from robustgen.commands.data_spec import DataSpec
from robustgen.commands.generative import construct
from robustgen.commands.network_spec import weights_inside
from robustgen.commands.opening import device_of, move
from robustgen.commands.run_info import TEXT, read_info, recorded_data, stopped_early
from robustgen.commands.runs import CALIBRATION, claim, data_for, is_first
from robustgen.commands.scoring import check_out, write_rows
from robustgen.data import decode, encode, load_text, normalise, split_text, windows
from robustgen.data.load import path_of
from robustgen.files import write_bytes, write_json
from robustgen.fortified import FortifiedNetwork, LanguageModelObjective, fortify, free_run
from robustgen.recurrent_networks import CharLM
from robustgen.structure import SIZE, check_arguments
from robustgen.training import Trainer, load_checkpoint
from robustgen.turns import seeded
from robustgen.weights import rebuild

__all__ = ["sample_text", "score_text", "train_text"]

READ = 100  # symbols that are read in a row, from a fresh state; a window holds the one to come too
LARGEST = 2**27  # bytes of a text: numbers of some gigabytes
_SHOWN = 120  # symbols of a sample that is drawn while it trains
_AT_ONCE = 256  # windows
_EVERY = 200  # steps between checkpoints: of a long text, an epoch takes long


def train_text(
    *,
    run: Path,
    data: DataSpec,
    settings: dict[str, Any],
    epochs: int = 10,
    batch_size: int = 64,
    lr: float = 3e-3,
    ema: float | None = None,
    precision: str = "float32",
    clip_norm: float = 1.0,
    samples: int = 1,
    seed: int = 0,
    device: str | None = None,
    resume: bool = False,
    progress: bool = True,
    command: str | None = None,
    options: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train a fortified :class:`~robustgen.recurrent_networks.CharLM` on a text file and write it to ``run``.

    A tenth of the windows, dealt at random, is kept from training: the bits per character on it are logged.

    Args:
        settings: rnn, units and embedding of the model.
        samples: texts drawn after each epoch, to ``samples/epoch-0001.txt``, ...
        options: of the command, for a resumed one to remember.
        say: receives a line each epoch.
    """
    check_positive(lr=lr)
    check_integers(0, samples=samples)
    read, held_back = _parts(data)
    with seeded(seed):
        made = construct(char_lm, options=settings)
        network = fortify(made, ["rnn"], example_input=read[:2, :-1], copy=False)
    move(network, device)
    training: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "ema": ema, "precision": precision}
    training |= {"clip_norm": clip_norm, "seed": seed}
    bound = inspect.signature(char_lm).bind(**settings)
    bound.apply_defaults()
    info = {
        "format": 1,
        "data": data.record(),
        "classes": [],
        "held_out": [],
        TEXT: bound.arguments,
        "training": training | {"lr": lr},
        "command": command,
        "options": dict(options or {}),
    }

    def after_epoch(model: nn.Module, history: list[dict[str, float]]) -> None:
        assert isinstance(model, FortifiedNetwork)
        row, drawn = history[-1], ""
        if samples:
            texts = _drawn(model, encode(" "), samples, _SHOWN, seed=seed)
            _write(run / "samples" / f"epoch-{row['epoch']:04.0f}.txt", texts)
            drawn = f": {texts[0].strip()}"
        if progress:
            say(
                f"epoch {row['epoch']}: {row['val_bits_per_character']:.3f} bits per character of held-back text{drawn}"
            )

    trainer = Trainer(
        LanguageModelObjective(lambda_rec=1.0, detach_states=True),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=lr),
        **training,
        device=device,
        run_dir=run,
        resume=resume,
        checkpoint_every=_EVERY,
        progress=progress,
        after_epoch=after_epoch,
    )
    with claim(run, info, resume):  # only now: what is refused above leaves nothing
        history = trainer.fit(network, read, held_back)
        if not is_first():
            return {}
        write_json(run / "run.json", info)  # of a resumed run: its new number of epochs
    found = {k: v for k, v in history[-1].items() if k not in ("epoch", "step")}
    return {"run": str(run), "model": "char-lm", "epochs": len(history)} | found


def sample_text(
    run: Path,
    n: int,
    prompt: str | None = None,
    length: int = 500,
    *,
    temperature: float = 1.0,
    seed: int = 0,
    device: str | None = None,
    out: Path | None = None,
) -> list[str]:
    """n texts of the model in ``run``: the prompt, as letters and spaces, and ``length`` characters; to ``out`` too.

    Raises:
        ValueError: no such model, another file than a .txt, or a number out of range.
    """
    check_integers(**{"--n": n, "--length": length})
    check_positive(**{"--temperature": temperature})
    if out is not None and out.suffix != ".txt":
        raise ValueError(f"{out}: name it .txt")
    network, _ = _opened(run)
    move(network, device)
    texts = _drawn(network, encode(normalise(prompt or " ")), n, length, temperature, seed)
    if out is not None:
        _write(out, texts)
    return texts


def score_text(
    run: Path,
    data: DataSpec,
    *,
    fpr: float = 0.05,
    out: Path | None = None,
    as_json: bool = False,
    device: str | None = None,
) -> dict[str, Any]:
    """Write the bits per character of each window of a text, with p-value and flag; returns what to print.

    p-values are ranks among the windows that the run kept from training: they hold for windows of texts like it.
    """
    check_out(out)
    network, info = _opened(run)
    move(network, device)
    fresh, held_back = windows(_symbols(data_for(data, info), 1), READ + 1), _parts(recorded_data(info))[1]
    check_rate(fpr, len(held_back))
    calibration = ConformalCalibration(_bits(network, held_back))
    bits = _bits(network, fresh)
    p, flags = calibration.p_value(bits), calibration.flag(bits, fpr)
    columns = {"score": bits.tolist(), "p_value": p.tolist(), "flag": flags.tolist()}
    rows = enumerate(zip(*columns.values(), strict=True))
    write_rows(({"input": k} | dict(zip(columns, row, strict=True)) for k, row in rows), out, as_json)
    means = {"bits per character": float(bits.mean()), "of held-back text": float(calibration.scores.mean())}
    flagged = float(flags.double().mean())
    return {"windows": len(bits)} | means | {"flagged": flagged, "nominal": fpr, "written": str(out)}


def char_lm(rnn: str = "lstm", units: int = 256, embedding: int | None = None) -> CharLM:
    return CharLM(rnn, units, embedding=embedding)


def _symbols(data: DataSpec, least: int) -> Tensor:
    """The symbols (T,) of the text file that is meant; ValueError where it is too long, or has too few windows."""
    if data.source is None:
        raise ValueError("pass --data FILE, a text in UTF-8")
    path, needed = path_of(data.source), least * (READ + 1)
    if path.is_file() and (size := path.stat().st_size) > LARGEST:
        raise ValueError(f"{path}: {size} bytes of text, more than the {LARGEST} that are read: pass a part of it")
    symbols = load_text(path)
    if len(symbols) < needed:
        raise ValueError(f"{path}: {len(symbols)} letters and spaces; {needed} are needed at least")
    return symbols


def _parts(data: DataSpec) -> tuple[Tensor, Tensor]:
    """The windows (N, READ + 1) to train on, and those that are kept from it, the same for every seed."""
    read, held_back = split_text(_symbols(data, 10), (1 - CALIBRATION, CALIBRATION), block=READ + 1)
    return read, held_back


def _opened(run: Path) -> tuple[FortifiedNetwork, dict[str, Any]]:
    """The network of a run, in eval mode, and its run.json."""
    info, path = read_info(run), run / "run.json"
    if TEXT not in info:
        raise ValueError(f"{run} holds no model of text")
    check_arguments(char_lm, info[TEXT], path, TEXT, whole=SIZE)
    checkpoint = load_checkpoint(run)
    if checkpoint.step == 0:
        raise ValueError(f"{run}: holds the network that its training began with, no step was completed")
    if line := stopped_early(run):
        warnings.warn(line, stacklevel=3)
    tensors = weights_inside("backbone.", checkpoint.model_state)
    plain = rebuild(lambda: char_lm(**info[TEXT]), tensors, settings=path, weights=checkpoint.path)
    return FortifiedNetwork.load(checkpoint.path, model=plain), info


def _drawn(
    network: FortifiedNetwork, prompt: Tensor, n: int, length: int, temperature: float = 1.0, seed: int = 0
) -> list[str]:
    """n texts, each the prompt (P,) and ``length`` symbols more."""
    begun = prompt.to(device_of(network)).expand(n, -1)
    found = free_run(network, begun, length, temperature=temperature, seed=seed).tokens
    return [decode(text) for text in torch.cat([begun, found], dim=1)]


def _write(path: Path, texts: list[str]) -> None:
    write_bytes(path, "".join(f"{text}\n" for text in texts).encode())


@torch.no_grad()
def _bits(network: FortifiedNetwork, texts: Tensor) -> Tensor:
    """Bits per character (N,) of windows (N, T + 1), on the CPU."""
    found = []
    for part in texts.to(device_of(network)).split(_AT_ONCE):
        logits = network(part[:, :-1])  # (B, T, C)
        found.append(F.cross_entropy(logits.mT, part[:, 1:], reduction="none").mean(1) / math.log(2))
    return torch.cat(found).cpu()
