"""All experiments by name."""

import importlib

from robustgen.checks import nearest
from robustgen.experiments.experiment import Experiment
from robustgen.experiments.xiao2022 import beta_study, bits_per_dim, samples, unseen

__all__ = ["find", "table"]

_CHAPTER_2 = (
    "table_2_1",
    "table_2_2",
    "table_2_3",
    "table_2_4",
    "table_2_5",
    "table_2_6",
    "table_2_7",
    "figure_2_4",
    "figure_2_5",
    "adversarial_spheres",
    "recurrent_classifier",
    "sweep",
    "confirmation",
)
_AHMED_2017 = (
    "table_2_1",
    "table_2_2",
    "figure_2_4",
    "latent_knn",
    "table_4_1",
    "table_4_2",
    "literature_protocol",
    "far_ood",
    "detector_selection",
    "validation_losses",
)
_GUARANTEES = ("certified_accuracy", "certified_detectors", "embedded_sequences")
_MODULES = [
    "robustgen.experiments.recipes",
    "robustgen.experiments.recipe_starts",
    *(f"robustgen.experiments.lamb2018.{name}" for name in _CHAPTER_2),
    *(f"robustgen.experiments.ahmed2017.{name}" for name in _AHMED_2017),
    *(f"robustgen.experiments.guarantees.{name}" for name in _GUARANTEES),
]


def table() -> dict[str, Experiment]:
    """Every experiment by name, in the order of the sources."""
    experiments: list[Experiment] = [importlib.import_module(module).EXPERIMENT for module in _MODULES]
    xiao = (samples.EXPERIMENT, beta_study.EXPERIMENT, bits_per_dim.EXPERIMENT, unseen.FAR_OOD, unseen.HELD_OUT)
    return {e.name: e for e in (*experiments, *xiao)}


def find(name: str) -> Experiment:
    """The experiment called ``name``; ValueError for another, with the nearest."""
    known = table()
    if name not in known:
        raise ValueError(f"unknown experiment {name!r}; {nearest(name, known)} (robustgen reproduce --list)")
    return known[name]
