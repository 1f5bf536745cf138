"""Generative models that guard networks.

Three jobs: **fortify** an existing network, **attack** it and report honestly how robust it is, **score** inputs for
being off the training manifold. Names are imported on first use (PEP 562), so that ``import robustgen`` and
``robustgen --help`` do not wait for torch.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "FortifiedNetwork": "robustgen.fortified",
    "FortifiedObjective": "robustgen.fortified",
    "fortify": "robustgen.fortified",
    "FGSM": "robustgen.attacks",
    "PGD": "robustgen.attacks",
    "ReconstructionError": "robustgen.detectors",
    "SequenceMonitor": "robustgen.fortified",
    "smooth": "robustgen.fortified",
    "purify": "robustgen.fortified",
    "evaluate_robustness": "robustgen.evaluation",
    "Normalize": "robustgen.model",
    "Trainer": "robustgen.training",
}
_ROOMS = ("attacks", "data", "detectors", "evaluation", "experiments", "fortified", "generative", "training")
_MODULES = ("calibration", "networks", "recurrent_networks", "weights")

__all__ = ["__version__", *_HOME, *_MODULES, *_ROOMS]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in (*_MODULES, *_ROOMS):
        return importlib.import_module(f"robustgen.{name}")
    raise AttributeError(f"module 'robustgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
