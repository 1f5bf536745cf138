"""What a ``report.json`` holds, as far as pages and tables are drawn from it."""

import base64
import binascii
import math
from pathlib import Path
from typing import Any

from robustgen.structure import POSITIVE, check_structure

__all__ = ["check_report"]

_SHARE = {"value": float, "low": float, "high": float, "n": int}
_OF_SOME = (None, _SHARE)
_THREAT = {"norm": str, "eps": float}
_NETWORK = {
    "name": str,
    "threat_model": _THREAT,
    "clean_accuracy": _SHARE,
    "worst_case_accuracy": _SHARE,
    "attacks": {str: {"robust_accuracy": _SHARE, "n_attacked?": int | None}},
    "curve": [{"eps": float, "value": float, "low": float, "high": float}],
    "masking_tests": [{"name": str, "verdict": str, "detail": str, "advice?": str}],
    "pictures?": {"shape?": [POSITIVE], "uint8?": str},
}
_POPULATION = {"n": int, "scores": [float]} | dict.fromkeys(
    ("auroc", "average_precision", "chance", "prevalence", "fpr_at_95_tpr", "flagged"), float
)
_DETECTION = {
    "network": str,
    "detector": str,
    "fpr": float,
    "in_distribution": [float],
    "false_alarms": float,
    "populations": {str: _POPULATION},
}
_RATES = dict.fromkeys(("success", "flagged", "evaded", "guarded_accuracy"), _OF_SOME) | {"auroc": float | None}
_REVERSE = {"flagged": _SHARE, "auroc": float | None}
_GUARDED = {
    "name": str,
    "detector": str,
    "threat_model": _THREAT,
    "fpr": float,
    "threshold": float,
    "n_calibration": int,
    "clean": {"accuracy": _SHARE, "false_alarms": _OF_SOME, "correct_and_unflagged": _OF_SOME},
    "attacks": {str: _RATES},
    "worst_case": _RATES,
    "out_of_distribution": (None, {"before": _REVERSE, "after": _REVERSE}),
}
_REPORT = {
    "title?": str,
    "remarks?": [str],
    "networks": [_NETWORK],
    "detection?": [_DETECTION],
    "detector_robustness?": [_GUARDED],
    "command?": str | None,
    "seed?": int | None,
    "environment?": {str: str | int | None},
}
_MOST_PICTURES = 64


def check_report(report: Any, path: Path) -> None:
    """ValueError unless everything that is drawn of ``report``, which ``path`` held, is there and is of its kind."""
    check_structure(report, _REPORT, path)
    for k, entry in enumerate(report.get("detection", [])):
        if not entry["in_distribution"] or not all(p["scores"] for p in entry["populations"].values()):
            raise ValueError(f"{path}: detection[{k}] has a population without scores")
    for k, network in enumerate(report["networks"]):
        if network.get("pictures"):
            _check_pictures(network["pictures"], f"networks[{k}].pictures", path)


def _check_pictures(pictures: dict[str, Any], field: str, path: Path) -> None:
    """Clean and adversarial images, (2, n, 1 or 3, H, W), as base64."""
    check_structure(pictures, {"shape": [POSITIVE], "uint8": str}, path, field)
    shape = pictures["shape"]
    try:
        n = len(base64.b64decode(pictures["uint8"], validate=True))
    except binascii.Error:
        n = -1
    if len(shape) != 5 or shape[0] != 2 or shape[1] > _MOST_PICTURES or shape[2] not in (1, 3) or n != math.prod(shape):
        raise ValueError(f"{path}: {field} are not pictures of the shape that they state")
