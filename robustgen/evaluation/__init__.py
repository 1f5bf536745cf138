"""Evaluation: robustness and tests for gradient masking, detection metrics, quality of samples, the report."""

from robustgen.evaluation.binarization import Binarization, binarization_test
from robustgen.evaluation.certification import CertificationReport, certify_robustness
from robustgen.evaluation.detection import evaluate_detection
from robustgen.evaluation.detector_robustness import evaluate_detector_robustness
from robustgen.evaluation.detector_robustness_report import (
    CertifiedAlarms,
    DetectorRobustness,
    GuardedOutcome,
    ReverseOutcome,
)
from robustgen.evaluation.heldout import anomalous_class, heldout_benchmark, heldout_class, unseen_datasets
from robustgen.evaluation.indicators import indicators_of_failure
from robustgen.evaluation.masking import MaskingTest
from robustgen.evaluation.metrics import (
    AUPR,
    RocCurve,
    aupr_davis_goadrich,
    aupr_trapezoid,
    auroc,
    average_precision,
    detection_metrics,
    fpr_at_tpr,
    roc_curve,
    wilson_interval,
)
from robustgen.evaluation.quality import FeatureNetwork, SampleQuality, fid, sample_quality
from robustgen.evaluation.random_defence import random_defence
from robustgen.evaluation.random_defence_report import RandomDefenceReport
from robustgen.evaluation.random_defence_rows import DefenceRow
from robustgen.evaluation.report import draw_html, load_report, write_report
from robustgen.evaluation.robustness import evaluate_robustness
from robustgen.evaluation.robustness_report import AttackOutcome, RobustnessReport
from robustgen.evaluation.sample_metrics import frechet_distance
from robustgen.evaluation.substitute import Substitute, train_substitute
from robustgen.evaluation.verifier import RoundedCheck, Verification, verify

__all__ = [
    "AUPR",
    "AttackOutcome",
    "Binarization",
    "CertificationReport",
    "CertifiedAlarms",
    "DefenceRow",
    "DetectorRobustness",
    "FeatureNetwork",
    "GuardedOutcome",
    "MaskingTest",
    "RandomDefenceReport",
    "ReverseOutcome",
    "RobustnessReport",
    "RocCurve",
    "RoundedCheck",
    "SampleQuality",
    "Substitute",
    "Verification",
    "anomalous_class",
    "aupr_davis_goadrich",
    "aupr_trapezoid",
    "auroc",
    "average_precision",
    "binarization_test",
    "certify_robustness",
    "detection_metrics",
    "draw_html",
    "evaluate_detection",
    "evaluate_detector_robustness",
    "evaluate_robustness",
    "fid",
    "fpr_at_tpr",
    "frechet_distance",
    "heldout_benchmark",
    "heldout_class",
    "indicators_of_failure",
    "load_report",
    "random_defence",
    "roc_curve",
    "sample_quality",
    "train_substitute",
    "unseen_datasets",
    "verify",
    "wilson_interval",
    "write_report",
]
