"""``run.json``: data about a run, and never more. Nothing in it is imported, fetched or believed unseen."""

from pathlib import Path
from typing import Any

from robustgen.commands.data_spec import DataSpec
from robustgen.data import ImageReader
from robustgen.examples import run_directory
from robustgen.files import read_json
from robustgen.structure import POSITIVE, check_size, check_structure
from robustgen.training import epochs_done

__all__ = [
    "FORMAT",
    "TEXT",
    "holds_generative",
    "holds_text",
    "read_info",
    "recorded_data",
    "stopped_early",
    "threat",
    "was_adversarial",
]

FORMAT = 1
TEXT = "language_model"  # what a run of text has in place of a network
_IMAGES = {"channels?": range(4), "size?": [POSITIVE], "fit?": str, "background?": [range(256)]}
_COMMON = {
    "data": {"source": str, "root": str | None, "limit?": (None, range(2**62)), "images?": _IMAGES},
    "classes": [str],
    "held_out": [str],
    "training": {"epochs": POSITIVE, "method?": str, "eps?": float, "norm?": str},
}
_NETWORK = {"model": str, "shape": [POSITIVE], "n_classes": POSITIVE, "width": (None, POSITIVE), "activation": str}
_NETWORK |= {"outputs?": range(1, 2**16), "mean?": [float], "std?": [float]}
_CLASSIFIER = _COMMON | {"network": _NETWORK, "fortify": dict | None, "best?": {"epoch": POSITIVE, "step": int}}
_GENERATIVE = _COMMON | {"generative": {"model": str, "config": dict}}
_TEXT = _COMMON | {TEXT: dict}


def read_info(run: Path) -> dict[str, Any]:
    """The run.json of a run.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is of another format, or lacks or garbles a field, which is named.
    """
    path = run / "run.json"
    if not path.is_file():
        raise FileNotFoundError(f"{run}: no run of `robustgen train` here; for other models see robustgen.detectors")
    info: dict[str, Any] = read_json(path, dict)
    if info.get("format") != FORMAT:
        raise ValueError(f"{path}: not a run of format {FORMAT}, the one that this robustgen reads")
    check_structure(info, _GENERATIVE if "generative" in info else _TEXT if TEXT in info else _CLASSIFIER, path)
    if "network" in info:
        check_size(info["network"]["shape"], path, "network.shape")
    try:
        recorded_data(info)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: data.images: {error}") from None
    eps, norm = info["training"].get("eps", 0.3), info["training"].get("norm", "Linf")
    if eps <= 0 or norm not in ("Linf", "L2", "L1"):
        raise ValueError(f"{path}: training.eps and training.norm are no ball: {eps:g} in {norm!r}")
    if "network" in info and len(info["classes"]) != info["network"]["n_classes"]:
        raise ValueError(
            f"{path}: names {len(info['classes'])} classes, its network has {info['network']['n_classes']}"
        )
    return info


def holds_text(run: Path) -> bool:
    """Whether this is a run of a model of text."""
    return (run / "run.json").is_file() and TEXT in read_info(run)


def holds_generative(run: Path) -> bool:
    """Whether this is a run of a generative model."""
    return (run / "run.json").is_file() and "generative" in read_info(run)


def recorded_data(info: dict[str, Any]) -> DataSpec:
    """What the run was trained on; whatever the file says, it is not fetched."""
    recorded = info["data"]
    reader = ImageReader(**recorded.get("images", {}))
    return DataSpec(recorded["source"], recorded["root"], download=False, limit=recorded.get("limit"), images=reader)


def was_adversarial(info: dict[str, Any]) -> bool:
    """Whether there was an attack in the training of a run."""
    return bool(info.get("training", {}).get("method", "plain") != "plain")


def threat(info: dict[str, Any], eps: float | None, norm: str | None) -> tuple[float, str, str]:
    """The radius and norm to attack a network with, and a line where they are those that its run was trained against.

    Args:
        info: of the run, or nothing.
        eps, norm: what was asked for. Without: those of an adversarial training, else 0.3 and Linf; a radius in another
            norm than that of the training is not its radius.

    >>> threat({"training": {"method": "trades", "eps": 0.1, "norm": "Linf"}}, None, None)
    (0.1, 'Linf', 'eps 0.1 in Linf, which the run was trained against; --eps and --norm take others')
    >>> threat({}, None, "L2")
    (0.3, 'L2', '')
    """
    training = info.get("training", {})
    if not was_adversarial(info) or not {"eps", "norm"} <= training.keys():
        return 0.3 if eps is None else eps, norm or "Linf", ""
    norm = norm or training["norm"]
    if eps is not None or norm != training["norm"]:
        return 0.3 if eps is None else eps, norm, ""
    eps = training["eps"]
    return eps, norm, f"eps {eps:.6g} in {norm}, which the run was trained against; --eps and --norm take others"


def stopped_early(run: Path) -> str:
    """A line where a run's training was not finished, or is not yet; "" else."""
    done = epochs_done(run_directory(run))
    return "" if done is None or done[0] >= done[1] else f"run {run} was stopped after epoch {done[0]} of {done[1]}"
