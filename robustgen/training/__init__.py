"""One training loop for classifiers and every generative model, handed an objective; checkpoints; exact resume."""

from robustgen.training.awp import AWP
from robustgen.training.batches import Batch, Source, as_source
from robustgen.training.checkpoint import (
    Checkpoint,
    best_checkpoint,
    epochs_done,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from robustgen.training.classification import ClassificationLoss, class_loss
from robustgen.training.contrastive import ContrastiveObjective
from robustgen.training.deformations import CropAndFlip, Deformations, OnDeformed
from robustgen.training.distributed import unwrap
from robustgen.training.mart import Mart
from robustgen.training.objective import (
    AdversarialObjective,
    ClassifierObjective,
    Objective,
    RobustAccuracy,
    adversarial_inputs,
)
from robustgen.training.overfitting import OverfittingGuard
from robustgen.training.schedules import FirstThen, WarmUp
from robustgen.training.trades import Trades
from robustgen.training.trainer import Trainer

__all__ = [
    "AWP",
    "AdversarialObjective",
    "Batch",
    "Checkpoint",
    "ClassificationLoss",
    "ClassifierObjective",
    "ContrastiveObjective",
    "CropAndFlip",
    "Deformations",
    "FirstThen",
    "Mart",
    "Objective",
    "OnDeformed",
    "OverfittingGuard",
    "RobustAccuracy",
    "Source",
    "Trades",
    "Trainer",
    "WarmUp",
    "adversarial_inputs",
    "as_source",
    "best_checkpoint",
    "class_loss",
    "epochs_done",
    "latest_checkpoint",
    "load_checkpoint",
    "save_checkpoint",
    "unwrap",
]
