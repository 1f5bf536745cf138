"""``robustgen score``: is an input off the training manifold?"""

import warnings
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustgen.attacks import FGSM, PGD
from robustgen.calibration import check_rate
from robustgen.commands.data_spec import DataSpec
from robustgen.commands.network_spec import FortifySpec
from robustgen.commands.opening import device_of, move, open_network, saved_detector
from robustgen.commands.run_info import recorded_data, was_adversarial
from robustgen.commands.runs import CALIBRATION, by_class_name, check_classes, data_for
from robustgen.commands.train import warn_of_a_wrong_way
from robustgen.data import (
    ArrayDataset,
    TokenDataset,
    check_disjoint,
    noise,
    preprocessing_fingerprint,
    require_nonempty,
    split,
)
from robustgen.detectors import Detector, ReconstructionError, SmoothedDetector
from robustgen.evaluation import evaluate_detection
from robustgen.fortified import FortifiedNetwork
from robustgen.inputs import Inputs, each
from robustgen.progress import track
from robustgen.training.recipes import Recipe
from robustgen.turns import seeded

__all__ = ["MADE", "check_way", "compare_populations", "open_detector"]

MADE = ("noise", "fgsm", "pgd", "heldout")  # populations that are no other data
#: Ways of scoring, and the options that each has a use for, beside those of the data and of what is written.
_FITTED = {"run", "model", "weights", "mean", "std", "trust", "fit_data", "layers", "epochs", "batch_size"}
_WAYS = {
    "checkpoint": ("a run of a generative model", {"checkpoint", "detector_name", "set_"}),
    "saved": ("a fortified --run, which has its own detector", {"run", "model", "trust"}),
    "fitted": ("a detector that is fitted on --fit-data", _FITTED),
}


def check_way(way: str, asked: Collection[str]) -> None:
    """ValueError where one of the options that were ``asked`` for, by name, is of other ways of scoring than ``way``.

    >>> check_way("saved", ["epochs"])
    Traceback (most recent call last):
    ValueError: --epochs is of a detector that is fitted on --fit-data; this is a fortified --run, which has its own...
    """
    here, used = _WAYS[way]
    for name in sorted(asked):
        whose = [called for called, others in _WAYS.values() if name in others]
        if whose and name not in used:
            option = name.removesuffix("_name").strip("_").replace("_", "-")
            raise ValueError(f"--{option} is of {' and of '.join(whose)}; this is {here}: leave it out")


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
    asked: Collection[str] = (),
    smoothing: tuple[float, int] | None = None,
    before_fit: Callable[[tuple[int, ...] | None, dict[str, Any]], None] = lambda shape, info: None,
) -> tuple[Detector, tuple[int, ...] | None, dict[str, Any]]:
    """A fitted, calibrated detector, the shape of its inputs (None: unknown) and run.json.

    A run of a fortified network has its detector. For another network, autoencoders are fitted on ``fit_data`` and
    calibrated on a tenth of it that was kept back. ``before_fit`` is called with shape and run.json before anything is
    fitted, and may refuse; so may too few calibration scores for the false-alarm rate ``fpr``, and options that were
    ``asked`` for and are not of this way of scoring.
    """
    if trust and run is None:
        raise ValueError("--trust is about the code that a --run names")
    network, info = open_network(run, model, weights, trust, mean, std)
    shape: tuple[int, ...] | None = tuple(info["network"]["shape"]) if info else None
    move(network, device)
    check_way("saved" if isinstance(network, FortifiedNetwork) else "fitted", asked)
    if run is not None and isinstance(network, FortifiedNetwork):
        if smoothing is not None:
            raise ValueError(
                "--smooth-sigma calibrates anew, and this run's detector is calibrated: pass --checkpoint, or a "
                "network without a detector and --fit-data"
            )
        before_fit(shape, info)
        saved = saved_detector(run, network)
        if fpr is not None:
            check_rate(fpr, len(saved.calibration))
        return saved, shape, info
    if fit_data is None:
        raise ValueError("this network has no detector: pass --fit-data, in-distribution inputs to fit one on")
    if info:
        fit_data = fit_data.read_like(recorded_data(info).images)
    known = fit_data.read_tokens_too("train", shape)
    if isinstance(known, TokenDataset):
        if mean is not None:
            raise ValueError(f"--mean and --std are of pixels, and {known.name} holds tokens")
    elif info.get("classes") and known.y is not None:  # not the classes that the run held out
        known = require_nonempty(by_class_name(known, info)[0])
    shape = known.shape
    before_fit(shape, info)
    train, calibration = split(known, (1 - CALIBRATION, CALIBRATION), seed=0, stratified=known.y is not None)
    known_to_run = was_adversarial(info) and fit_data.is_same_source(recorded_data(info))
    if known_to_run and isinstance(calibration, ArrayDataset):  # the tenth of which the other half chose the epoch
        calibration = Recipe().unwatched(calibration)
    if fpr is not None:
        try:
            check_rate(fpr, len(calibration))
        except ValueError as error:
            raise ValueError(f"--fit-data: of its {len(known)} inputs a tenth at most calibrates: {error}") from None
    with seeded(seed):
        fortified = FortifySpec(layers).fortified(network, train.batch(torch.arange(2))[0])
    move(fortified, device)
    fortified.fit_autoencoders(train, epochs=epochs, batch_size=batch_size, seed=seed, progress=progress)
    detector: Detector = ReconstructionError(fortified.eval(), relative=True)
    if smoothing is not None:
        detector = SmoothedDetector(detector, smoothing[0], smoothing[1])
    detector.fit(train).calibrate(calibration)
    warn_of_a_wrong_way(detector, shape, "fit its autoencoders for more --epochs")
    return detector, shape, info


def compare_populations(
    detector: Detector,
    data: DataSpec,
    others: dict[str, DataSpec],
    info: dict[str, Any],
    *,
    part: str,
    shape: tuple[int, ...] | None,
    seen: Sequence[ArrayDataset | TokenDataset] = (),
    name: str,
    fpr: float = 0.05,
    eps: float = 0.3,
    norm: str = "Linf",
    seed: int = 0,
    skip: Callable[[ValueError], None] | None = None,
) -> dict[str, Any]:
    """How well the detector tells ``data`` from other populations; see :func:`evaluate_detection`.

    ``seen`` is what the detector's models were trained on: data that share an example with it are refused. A population
    is a data set or one of "noise" (uniform), "fgsm" and "pgd" (every labelled input of ``data``,
    attacked, whether it succeeds or not) and "heldout" (the classes in ``data`` that the run held out). ``skip`` is
    called with the error of each file that cannot be read, which is then left out; None raises it.
    """
    where = device_of(detector.model)
    data = data_for(data, info)
    dataset = data.read_tokens_too(part, shape, skip)
    left_out = None
    if isinstance(dataset, ArrayDataset) and info.get("classes") and dataset.y is not None:
        dataset, left_out = by_class_name(dataset, info)
    for known in seen:  # of what was trained on, too few are flagged
        check_disjoint(dataset, known)
    x = _inputs(require_nonempty(dataset), where)
    populations: dict[str, Inputs] = {}
    for label, spec in others.items():
        if label in MADE:
            if isinstance(dataset, TokenDataset):
                raise ValueError(f"--against {label} is made of pixels, and {dataset.name} holds tokens")
            called, made = _made(label, dataset, left_out, detector, info, eps=eps, norm=norm, seed=seed)
            populations[called] = made.to(where)
            continue
        other = spec.read_like(data.images).read_tokens_too(part, dataset.shape, skip)
        for known in (dataset, *seen):
            check_disjoint(other, known)
        _warn_of_preprocessing(other, dataset)
        populations[label if other.name in populations else other.name] = _inputs(other, where)
    return evaluate_detection(detector, x, populations, network=name, fpr=fpr)


def _made(
    label: str,
    dataset: ArrayDataset,
    left_out: ArrayDataset | None,
    detector: Detector,
    info: dict[str, Any],
    *,
    eps: float,
    norm: str,
    seed: int,
) -> tuple[str, Tensor]:
    """What a population that is made of ``dataset`` is called in the report, and its inputs."""
    if label == "noise":
        return "uniform noise", noise(len(dataset), tuple(dataset.x.shape[1:]), seed=seed).images()
    if label == "heldout":
        if left_out is None or not len(left_out):
            raise ValueError(f"{dataset.name} holds no example of a class that the run held out")
        return f"held-out {', '.join(info['held_out'])}", left_out.images()
    if "generative" in info:
        raise ValueError(f"--against {label} attacks a classifier, and this run holds a generative model")
    if not info:
        check_classes(detector.model, dataset)
    kind = {"fgsm": FGSM, "pgd": PGD}[label]
    attack = kind(eps=eps, norm=norm, seed=seed, early_stop=False)  # each input as far as the attack goes
    x, y, where = dataset.images(), dataset.labels(), device_of(detector.model)
    rows = track(torch.arange(len(dataset)).split(250), f"{label.upper()} attacks")
    found = [attack(detector.model, x[i].to(where), y[i], ids=dataset.ids[i]) for i in rows]
    return f"{label.upper()}, {norm} eps {eps:g}", torch.cat(found)


def _warn_of_preprocessing(other: ArrayDataset | TokenDataset, dataset: ArrayDataset | TokenDataset) -> None:
    if isinstance(other, TokenDataset) or isinstance(dataset, TokenDataset):
        return
    theirs, ours = preprocessing_fingerprint(other), preprocessing_fingerprint(dataset)
    if theirs != ours:
        warnings.warn(
            f"{other.name} ({theirs}) is preprocessed otherwise than {dataset.name} ({ours}): the score may tell that "
            "difference",
            stacklevel=3,
        )


def _inputs(dataset: ArrayDataset | TokenDataset, device: torch.device) -> Inputs:
    return each(dataset.batch(torch.arange(len(dataset)))[0], lambda t: t.to(device))
