"""Evaluation: robustness and tests for gradient masking, detection metrics, the report."""

from robustgen.evaluation.detection import evaluate_detection
from robustgen.evaluation.masking import MaskingTest
from robustgen.evaluation.metrics import (
    AUPR,
    RocCurve,
    aupr_trapezoid,
    auroc,
    average_precision,
    detection_metrics,
    fpr_at_tpr,
    roc_curve,
    wilson_interval,
)
from robustgen.evaluation.report import draw_html, load_report, write_report
from robustgen.evaluation.robustness import evaluate_robustness
from robustgen.evaluation.robustness_report import AttackOutcome, RobustnessReport
from robustgen.evaluation.substitute import Substitute, train_substitute

__all__ = [
    "AUPR",
    "AttackOutcome",
    "MaskingTest",
    "RobustnessReport",
    "RocCurve",
    "Substitute",
    "aupr_trapezoid",
    "auroc",
    "average_precision",
    "detection_metrics",
    "draw_html",
    "evaluate_detection",
    "evaluate_robustness",
    "fpr_at_tpr",
    "load_report",
    "roc_curve",
    "train_substitute",
    "wilson_interval",
    "write_report",
]
