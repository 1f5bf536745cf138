"""``robustgen score``: is an input off the training manifold?"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from robustgen.calibration import check_rate
from robustgen.commands.adversarial import training_attack
from robustgen.commands.data_spec import DataSpec
from robustgen.commands.run_info import recorded_data
from robustgen.commands.runs import (
    CALIBRATION,
    by_class_name,
    data_for,
    device_of,
    move,
    open_network,
    saved_detector,
)
from robustgen.data import ArrayDataset, check_disjoint, noise, preprocessing_fingerprint, require_nonempty, split
from robustgen.detectors import Detector, ReconstructionError
from robustgen.evaluation import evaluate_detection
from robustgen.fortified import FortifiedNetwork, fortify
from robustgen.progress import track
from robustgen.turns import seeded

__all__ = ["MADE", "compare_populations", "open_detector"]

MADE = ("noise", "fgsm", "pgd", "heldout")  # populations that are no other data


def open_detector(
    *,
    run: Path | None,
    model: str | None,
    weights: Path | None,
    fit_data: DataSpec | None = None,
    layers: str = "auto",
    epochs: int = 3,
    batch_size: int = 128,
    seed: int = 0,
    device: str | None = None,
    trust: bool = False,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    progress: bool = True,
    fpr: float | None = None,
    before_fit: Callable[[tuple[int, ...] | None, dict[str, Any]], None] = lambda shape, info: None,
) -> tuple[ReconstructionError, tuple[int, ...] | None, dict[str, Any]]:
    """A fitted, calibrated detector, the shape of its inputs (None: unknown) and run.json.

    A run of a fortified network has its detector. For another network, autoencoders are fitted on ``fit_data`` and
    calibrated on a tenth of it that was kept back. ``before_fit`` is called with shape and run.json before anything is
    fitted, and may refuse; so is a tenth that is too small for the false-alarm rate ``fpr``.
    """
    if trust and run is None:
        raise ValueError("--trust is about the code that a --run names")
    network, info = open_network(run, model, weights, trust, mean, std)
    shape: tuple[int, ...] | None = tuple(info["network"]["shape"]) if info else None
    move(network, device)
    if run is not None and isinstance(network, FortifiedNetwork):
        before_fit(shape, info)
        return saved_detector(run, network), shape, info
    if fit_data is None:
        raise ValueError("this network has no detector: pass --fit-data, in-distribution inputs to fit one on")
    if info:
        fit_data = fit_data.read_like(recorded_data(info).images)
    known = fit_data.read("train", shape)
    if info.get("classes") and known.y is not None:  # not the classes that the run held out
        known = require_nonempty(by_class_name(known, info)[0])
    shape = tuple(known.x.shape[1:])
    before_fit(shape, info)
    train, calibration = split(known, (1 - CALIBRATION, CALIBRATION), seed=0, stratified=known.y is not None)
    if fpr is not None:
        check_rate(fpr, len(calibration))
    names = layers if layers == "auto" else layers.split(",")
    with seeded(seed):
        fortified = fortify(network, names, example_input=train.batch(torch.arange(2))[0])
    move(fortified, device)
    fortified.fit_autoencoders(train, epochs=epochs, batch_size=batch_size, seed=seed, progress=progress)
    return ReconstructionError(fortified.eval(), relative=True).fit(train).calibrate(calibration), shape, info


def compare_populations(
    detector: Detector,
    data: DataSpec,
    others: dict[str, DataSpec],
    info: dict[str, Any],
    *,
    part: str,
    shape: tuple[int, ...] | None,
    seen: Sequence[ArrayDataset] = (),
    name: str,
    fpr: float = 0.05,
    eps: float = 0.3,
    norm: str = "Linf",
    seed: int = 0,
) -> dict[str, Any]:
    """How well the detector tells ``data`` from other populations; see :func:`evaluate_detection`.

    ``seen`` is what the detector's models were trained on: data that share an example with it are refused. A population
    is a data set or one of "noise" (uniform), "fgsm" and "pgd" (every labelled input of ``data``,
    attacked, whether it succeeds or not) and "heldout" (the classes in ``data`` that the run held out).
    """
    where = device_of(detector.model)
    data = data_for(data, info)
    dataset = data.read(part, shape)
    left_out = None
    if info.get("classes") and dataset.y is not None:
        dataset, left_out = by_class_name(dataset, info)
    for known in seen:  # of what was trained on, too few are flagged
        check_disjoint(dataset, known)
    x = require_nonempty(dataset).images()
    populations = {}
    for label, spec in others.items():
        if label == "noise":
            populations["uniform noise"] = noise(len(x), tuple(x.shape[1:]), seed=seed).images().to(where)
        elif label in ("fgsm", "pgd"):
            if "generative" in info:
                raise ValueError(f"--against {label} attacks a classifier, and this run holds a generative model")
            attack = training_attack(label, eps, norm, 40, seed)
            assert attack is not None
            rows = track(torch.arange(len(x)).split(250), f"{label.upper()} attacks")
            found = [attack(detector.model, x[i].to(where), dataset.labels()[i], ids=dataset.ids[i]) for i in rows]
            populations[f"{label.upper()}, {norm} eps {eps:g}"] = torch.cat(found)
        elif label == "heldout":
            if left_out is None or not len(left_out):
                raise ValueError(f"{dataset.name} holds no example of a class that the run held out")
            populations[f"held-out {', '.join(info['held_out'])}"] = left_out.images().to(where)
        else:
            other = spec.read_like(data.images).read(part, shape)
            for known in (dataset, *seen):
                check_disjoint(other, known)
            if preprocessing_fingerprint(other) != preprocessing_fingerprint(dataset):
                warnings.warn(
                    f"{other.name} ({preprocessing_fingerprint(other)}) is preprocessed otherwise than {dataset.name} "
                    f"({preprocessing_fingerprint(dataset)}): the score may tell that difference",
                    stacklevel=2,
                )
            populations[label if other.name in populations else other.name] = other.images().to(where)
    return evaluate_detection(detector, x.to(where), populations, network=name, fpr=fpr)
