"""All experiments by name."""

from robustgen.checks import nearest
from robustgen.experiments import recipes
from robustgen.experiments.ahmed2017 import (
    detector_selection,
    far_ood,
    latent_knn,
    likelihoods,
    literature_protocol,
    table_4_1,
    table_4_2,
)
from robustgen.experiments.experiment import Experiment
from robustgen.experiments.guarantees import certified_accuracy, certified_detectors, embedded_sequences
from robustgen.experiments.lamb2018 import (
    adversarial_spheres,
    classifier_tables,
    confirmation,
    figure_2_4,
    rbm_likelihoods,
    recurrent_classifier,
    sweep,
    table_2_6,
    table_2_7,
)
from robustgen.experiments.xiao2022 import (
    beta_study,
    bits_per_dim,
    ddgan_toys,
    diffusion_samples,
    figure_6_3,
    noise_free_toys,
    purification,
    samples,
    stacked_mnist,
    tilted_samples,
    tilted_toys,
    tilted_unseen,
    unseen,
)

__all__ = ["find", "table"]

_EXPERIMENTS: tuple[Experiment, ...] = (
    recipes.STANDARD,
    recipes.STARTS,
    classifier_tables.TABLE_2_1,
    classifier_tables.TABLE_2_2,
    classifier_tables.TABLE_2_3,
    classifier_tables.TABLE_2_4,
    classifier_tables.TABLE_2_5,
    table_2_6.EXPERIMENT,
    table_2_7.EXPERIMENT,
    figure_2_4.EXPERIMENT,
    classifier_tables.FIGURE_2_5,
    adversarial_spheres.EXPERIMENT,
    recurrent_classifier.EXPERIMENT,
    rbm_likelihoods.EXPERIMENT,
    sweep.EXPERIMENT,
    confirmation.EXPERIMENT,
    likelihoods.TABLE_2_1,
    likelihoods.TABLE_2_2,
    likelihoods.FIGURE_2_4,
    latent_knn.EXPERIMENT,
    table_4_1.EXPERIMENT,
    table_4_2.EXPERIMENT,
    literature_protocol.EXPERIMENT,
    far_ood.EXPERIMENT,
    detector_selection.EXPERIMENT,
    likelihoods.TRAININGS,
    certified_accuracy.EXPERIMENT,
    certified_accuracy.ELSEWHERE,
    certified_accuracy.BEHIND_DIFFUSIONS,
    certified_detectors.EXPERIMENT,
    embedded_sequences.EXPERIMENT,
    samples.EXPERIMENT,
    beta_study.EXPERIMENT,
    bits_per_dim.EXPERIMENT,
    unseen.FAR_OOD,
    unseen.HELD_OUT,
    tilted_toys.EXPERIMENT,
    tilted_samples.EXPERIMENT,
    unseen.TILTED,
    tilted_unseen.EXPERIMENT,
    unseen.HELD_OUT_BY_ENERGIES,
    noise_free_toys.EXPERIMENT,
    figure_6_3.EXPERIMENT,
    ddgan_toys.EXPERIMENT,
    diffusion_samples.EXPERIMENT,
    stacked_mnist.EXPERIMENT,
    purification.EXPERIMENT,
    unseen.DIFFUSIONS,
    unseen.HELD_OUT_BY_DIFFUSIONS,
)


def table() -> dict[str, Experiment]:
    """Every experiment by name, in the order of the sources."""
    return {e.name: e for e in _EXPERIMENTS}


def find(name: str) -> Experiment:
    """The experiment called ``name``; ValueError for another, with the nearest."""
    known = table()
    if name not in known:
        raise ValueError(f"unknown experiment {name!r}; {nearest(name, known)} (robustgen reproduce --list)")
    return known[name]
