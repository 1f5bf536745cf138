"""What ``report.json`` looks like: a report made elsewhere is drawn only if everything that is drawn is there."""

import base64
import binascii
import math
from pathlib import Path
from typing import Any

from robustgen.structure import POSITIVE, SHARE, check_structure

__all__ = ["FORMAT", "PROPORTION", "check_picture", "check_report"]

FORMAT = 1
_MOST_PICTURES = 64

_COUNT = range(2**53)
PROPORTION = {"value": SHARE, "low": SHARE, "high": SHARE, "n": _COUNT}
_PROPORTION_OR_NONE = (PROPORTION, None)
_THREAT = {"norm": str, "eps": float, "bounds?": [float]}
_LABEL = range(2**31)
_PER_EXAMPLE = {
    "labels?": [_LABEL],
    "clean_correct?": [bool],
    "broken_by?": {str: [bool]},
    "predicted?": {"clean": [(_LABEL, None)], "worst_case": [(_LABEL, None)]},
}
_NETWORK = {
    "name": str,
    "class_names?": ([str], None),
    "suite?": str | None,
    "threat_model": _THREAT,
    "notes?": [str],
    "unfinished?": {str: str},
    "clean_accuracy": PROPORTION,
    "worst_case_accuracy": PROPORTION,
    "attacks": {str: {"robust_accuracy": PROPORTION, "n_attacked?": (_COUNT, None)}},
    "curve": [{"eps": float, "value": SHARE, "low": SHARE, "high": SHARE}],
    "masking_tests": [{"name": str, "verdict": str, "detail": str, "advice?": str}],
    "per_example?": _PER_EXAMPLE,
    "pictures?": {
        "shape?": [POSITIVE],
        "uint8?": str,
        "ids?": [int],
        "fell?": [bool],
        "labels?": [_LABEL],
        "predicted?": [(_LABEL, None)],
    },
}
_POPULATION = {
    "n": _COUNT,
    "scores": [float],
    "auroc": SHARE,
    "average_precision": SHARE,
    "chance": SHARE,
    "prevalence": SHARE,
    "fpr_at_95_tpr": SHARE,
    "flagged": SHARE,
}
_DETECTION = {
    "network": str,
    "detector": str,
    "fpr": SHARE,
    "false_alarms": SHARE,
    "in_distribution": [float],
    "populations": {str: _POPULATION},
}
_RATES = {
    "success": _PROPORTION_OR_NONE,
    "flagged": _PROPORTION_OR_NONE,
    "evaded": _PROPORTION_OR_NONE,
    "guarded_accuracy": PROPORTION,
    "auroc": (SHARE, None),
}
_OUTSIDE = {"flagged": PROPORTION, "auroc": SHARE}
_GUARDED = {
    "name": str,
    "detector": str,
    "threat_model": _THREAT,
    "notes?": [str],
    "fpr": SHARE,
    "threshold": float,
    "n_calibration": _COUNT,
    "clean": {"accuracy": PROPORTION, "false_alarms": PROPORTION, "correct_and_unflagged": PROPORTION},
    "attacks": {str: _RATES},
    "worst_case": _RATES,
    "out_of_distribution": ({"before": _OUTSIDE, "after": _OUTSIDE}, None),
    "certified?": ({"flagged": PROPORTION, "quiet": PROPORTION, "out_of_distribution": (_OUTSIDE, None)}, None),
}
_SCORED = {
    "input": str | int,
    "score": float | None,
    "p_value": SHARE,
    "flag": bool,
    "picture?": ({"shape": [POSITIVE], "uint8": str}, None),
}
_SCORES = {
    "data": str,
    "detector": str,
    "fpr": SHARE,
    "n_calibration": _COUNT,
    "n": _COUNT,
    "flagged": _PROPORTION_OR_NONE,
    "threshold": float | None,
    "histogram": ({"edges": [float], "counts": [_COUNT], "below": _COUNT, "above": _COUNT}, None),
    "most": [_SCORED],
    "least": [_SCORED],
}
_REPORT = {
    "title?": str,
    "command?": str | None,
    "seed?": int | None,
    "remarks?": [str],
    "environment?": {str: str | int | float | bool | None},
    "stage_seconds?": {str: float},
    "networks": [_NETWORK],
    "detection?": [_DETECTION],
    "detector_robustness?": [_GUARDED],
    "scores?": [_SCORES],
    "story?": [{"title": str, "text": str, "pictures_of?": str | None, "inputs?": [_SCORED]}],
}


def check_report(report: Any, source: str | Path) -> None:
    """ValueError unless ``report``, read from the file ``source``, has all that its page and tables show.

    >>> check_report({"format": 1, "networks": [{"name": 3}]}, "report.json")
    Traceback (most recent call last):
    ValueError: report.json: networks[0].name must be a string, not 3
    """
    if not isinstance(report, dict) or report.get("format") != FORMAT or "networks" not in report:
        raise ValueError(f"{source}: not a robustgen report of format {FORMAT}")
    check_structure(report, _REPORT, source)
    for i, network in enumerate(report["networks"]):
        _check_examples(network.get("per_example", {}), source, f"networks[{i}].per_example")
        if network.get("pictures"):
            _check_pictures(network["pictures"], source, f"networks[{i}].pictures")
    for i, step in enumerate(report.get("story", [])):
        _check_inputs(step.get("inputs", []), source, f"story[{i}].inputs")
    for i, entry in enumerate(report.get("scores", [])):
        histogram = entry["histogram"]
        if histogram is not None and len(histogram["edges"]) != len(histogram["counts"]) + 1:
            raise ValueError(f"{source}: scores[{i}].histogram must have one more edge than counts")
        for kind in ("most", "least"):
            _check_inputs(entry[kind], source, f"scores[{i}].{kind}")


def _check_examples(outcomes: dict[str, Any], source: str | Path, field: str) -> None:
    """One entry for each example in every list."""
    lists: dict[str, Any] = {name: outcomes[name] for name in ("labels", "clean_correct") if name in outcomes}
    lists |= {
        f"{name}.{key}": values for name in ("broken_by", "predicted") for key, values in outcomes.get(name, {}).items()
    }
    for name, values in lists.items():
        if len(values) != len(next(iter(lists.values()))):
            raise ValueError(f"{source}: {field}.{name} must have as many entries as {next(iter(lists))}")


def _check_inputs(rows: list[dict[str, Any]], source: str | Path, field: str) -> None:
    if len(rows) > _MOST_PICTURES:
        raise ValueError(f"{source}: {field} must hold at most {_MOST_PICTURES} inputs")
    for k, row in enumerate(rows):
        if row.get("picture"):
            check_picture(row["picture"], source, f"{field}[{k}].picture")


def check_picture(picture: dict[str, Any], source: str | Path, field: str) -> None:
    """As :func:`~robustgen.evaluation.report_pictures.encode_picture` makes it: (C, H, W) as 8-bit values."""
    if len(picture["shape"]) != 3 or picture["shape"][0] not in (1, 3):
        raise ValueError(f"{source}: {field}.shape must be [C, H, W] with 1 or 3 channels")
    _check_values(picture, source, field)


def _check_pictures(pictures: dict[str, Any], source: str | Path, field: str) -> None:
    """As :func:`~robustgen.evaluation.report_pictures.encode_pictures` makes them: (2, n, C, H, W) as 8-bit values."""
    shape = pictures.get("shape", [])
    if len(shape) != 5 or shape[0] != 2 or shape[1] > _MOST_PICTURES or shape[2] not in (1, 3):
        raise ValueError(
            f"{source}: {field}.shape must be [2, n, C, H, W] with n at most {_MOST_PICTURES} and 1 or 3 channels"
        )
    _check_values(pictures, source, field)
    for pair in (("ids", "fell"), ("labels", "predicted")):
        for name in pair:
            lacks = any(other in pictures for other in pair) and name not in pictures
            if lacks or len(pictures.get(name, range(shape[1]))) != shape[1]:
                raise ValueError(f"{source}: {field}.{name} must have one entry for each of its {shape[1]} pictures")


def _check_values(pictures: dict[str, Any], source: str | Path, field: str) -> None:
    try:
        size = len(base64.b64decode(pictures.get("uint8", ""), validate=True))
    except (binascii.Error, ValueError):
        raise ValueError(f"{source}: {field}.uint8 is not base64") from None
    if size != math.prod(pictures["shape"]):
        raise ValueError(
            f"{source}: {field}.uint8 holds {size} values, not the {math.prod(pictures['shape'])} of its shape"
        )
