"""``run.json``: data about a run, and never more. Nothing in it is imported, fetched or believed unseen."""

from pathlib import Path
from typing import Any

from robustgen.commands.data_spec import DataSpec
from robustgen.data import ImageReader
from robustgen.files import read_json
from robustgen.structure import POSITIVE, check_size, check_structure

__all__ = ["FORMAT", "read_info", "recorded_data"]

FORMAT = 1
_IMAGES = {"channels?": range(4), "size?": [POSITIVE], "fit?": str, "background?": [range(256)]}
_COMMON = {
    "data": {"source": str, "root": str | None, "limit?": (None, range(2**62)), "images?": _IMAGES},
    "classes": [str],
    "held_out": [str],
    "training": {"epochs": POSITIVE},
}
_NETWORK = {"model": str, "shape": [POSITIVE], "n_classes": POSITIVE, "width": (None, POSITIVE), "activation": str}
_NETWORK |= {"outputs?": range(1, 2**16), "mean?": [float], "std?": [float]}
_CLASSIFIER = _COMMON | {"network": _NETWORK, "fortify": dict | None}
_GENERATIVE = _COMMON | {"generative": {"model": str, "config": dict}}


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
    check_structure(info, _GENERATIVE if "generative" in info else _CLASSIFIER, path)
    if "network" in info:
        check_size(info["network"]["shape"], path, "network.shape")
    try:
        recorded_data(info)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: data.images: {error}") from None
    if "network" in info and len(info["classes"]) != info["network"]["n_classes"]:
        raise ValueError(
            f"{path}: names {len(info['classes'])} classes, its network has {info['network']['n_classes']}"
        )
    return info


def recorded_data(info: dict[str, Any]) -> DataSpec:
    """What the run was trained on; whatever the file says, it is not fetched."""
    recorded = info["data"]
    reader = ImageReader(**recorded.get("images", {}))
    return DataSpec(recorded["source"], recorded["root"], download=False, limit=recorded.get("limit"), images=reader)
