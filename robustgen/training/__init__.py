"""One training loop for classifiers and every generative model, handed an objective; checkpoints; exact resume."""

from robustgen.training.batches import Batch, Source, as_source
from robustgen.training.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint, save_checkpoint
from robustgen.training.distributed import unwrap
from robustgen.training.objective import (
    AdversarialObjective,
    ClassifierObjective,
    Objective,
    adversarial_inputs,
    class_loss,
)
from robustgen.training.trainer import Trainer

__all__ = [
    "AdversarialObjective",
    "Batch",
    "Checkpoint",
    "ClassifierObjective",
    "Objective",
    "Source",
    "Trainer",
    "adversarial_inputs",
    "as_source",
    "class_loss",
    "latest_checkpoint",
    "load_checkpoint",
    "save_checkpoint",
    "unwrap",
]
