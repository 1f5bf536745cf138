"""Detectors judged on a class, or a data set, that was held out of everything they saw.

The held-out-class benchmark: Ahmed, "Generative Models for Natural Images", 2017, sections 4.2 and 4.3. The protocol of
the later literature, another one whose numbers are not comparable: Zenati, Foo, Lecouat, Manek and Chandrasekhar,
"Efficient GAN-Based Anomaly Detection", 2018, section 4.1.

In all of them normal training data are cut in two: nine tenths for the detector and the models below it, a tenth that
nothing but thresholds come from. Positive means anomalous. All numbers are in percent.
"""

import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from robustgen.calibration import ConformalCalibration
from robustgen.counter_rng import integers
from robustgen.data import (
    ArrayDataset,
    check_disjoint,
    check_same_preprocessing,
    heldout_classes,
    preprocessing_fingerprint,
    require_nonempty,
    split,
)
from robustgen.detectors import Detector, Likelihood
from robustgen.evaluation.metrics import detection_metrics
from robustgen.generative import GenerativeModel
from robustgen.inputs import evenly_spaced

__all__ = ["Candidate", "anomalous_class", "compared", "heldout_benchmark", "heldout_class", "unseen_datasets"]

#: Makes a fitted detector of normal training data; or is a detector, or a trained generative model.
Candidate: TypeAlias = "Callable[[ArrayDataset], Detector] | Detector | GenerativeModel"

NORMAL_SHARE = 0.8  # of the normal images in the literature's protocol that are trained on
SANITY_NOISE = 256  # images


def heldout_class(
    candidate: Candidate,
    train: ArrayDataset,
    test: ArrayDataset,
    *,
    heldout: int | str,
    calibration: float = 0.1,
    seed: int = 0,
    fpr: float = 0.05,
) -> dict[str, Any]:
    """The thesis's protocol for one class: left out of all training, positive in the test set.

    Args:
        candidate: a function that is given the training images without the class, less the calibration tenth, and
            returns a detector fitted on them (it sees their labels; what has none makes no use of them). Or a
            :class:`Detector`, of which a copy is fitted where it is not yet, and calibrated; or a
            :class:`GenerativeModel`, judged by its :class:`Likelihood`: neither may have seen the class or the tenth
            that ``split`` with this seed takes.
        train, test: labelled, of the same classes, images in [0, 1].
        heldout: label or name of the class.
        calibration: share of the training images that thresholds come from.
        seed: of that split.
        fpr: false-alarm rate that flags are calibrated for.

    Returns:
        JSON-able: ``heldout``, ``detector``, ``preprocessing``, ``fpr``, ``false_alarms`` (share of the normal test
        images that is flagged), the numbers of :func:`compared` with ``flagged`` for the class, and the same of
        ``sanity``: images of a single level ("constant") and of independent pixels ("noise"), drawn from the levels
        that training images have.

    Raises:
        ValueError: train and test share an image or were preprocessed otherwise, too few images to calibrate ``fpr``,
            an unknown class.
        TypeError: no such candidate.

    >>> from robustgen.data import digits
    >>> from robustgen.detectors import NearestNeighbour
    >>> found = heldout_class(lambda x: NearestNeighbour().fit(x), digits("train"), digits("test"), heldout=0)
    >>> found["n_ood"], found["aupr"] > found["prevalence"], found["minimum"] < found["prevalence"]
    (36, True, True)
    """
    _check(train, test)
    return _heldout_class(candidate, train, test, heldout, calibration, seed, fpr)


def heldout_benchmark(
    make: Callable[[ArrayDataset], Detector],
    train: ArrayDataset,
    test: ArrayDataset,
    *,
    classes: Sequence[int | str] | None = None,
    calibration: float = 0.1,
    seed: int = 0,
    fpr: float = 0.05,
) -> dict[str, Any]:
    """:func:`heldout_class` for each of ``classes`` (None: all), each with a detector of its own.

    Args:
        make: a function that is given training images without the class and returns a detector fitted on them.
        train, test: labelled, of the same classes, images in [0, 1].
        classes: labels or names of the classes that are held out in turn; None: all.
        calibration: proportion of the training images that thresholds come from, in (0, 1).
        seed: of the calibration split.
        fpr: false-alarm rate that flags are calibrated for.

    Returns:
        ``classes``: what each gave; ``mean`` and ``median`` over them of every number.

    Raises:
        TypeError: a detector or model instead of a function: it has seen all classes but one, if that.
        ValueError: as :func:`heldout_class` does.
    """
    if isinstance(make, Detector | GenerativeModel) or not callable(make):
        raise TypeError("the benchmark trains once for each class: give a function that makes a detector of its data")
    chosen = list(range(train.n_classes)) if classes is None else list(classes)
    if not chosen:
        raise ValueError("classes is empty: name at least one, or None for all")
    _check(train, test)
    found = [_heldout_class(make, train, test, c, calibration, seed, fpr) for c in chosen]
    numbers = [name for name, value in found[0].items() if isinstance(value, float)]
    return {
        "classes": found,
        "mean": {name: statistics.fmean(f[name] for f in found) for name in numbers},
        "median": {name: statistics.median(f[name] for f in found) for name in numbers},
    }


def anomalous_class(
    candidate: Candidate,
    train: ArrayDataset,
    test: ArrayDataset,
    *,
    anomaly: int | str,
    calibration: float = 0.1,
    seed: int = 0,
    fpr: float = 0.05,
) -> dict[str, Any]:
    """The literature's protocol for one class: train and test images together, cut anew into 80 and 20 percent.

    Trained on 80 % of the normal images (less the share that thresholds come from), tested on the other 20 % and on all
    anomalous ones, so that the prevalence is around a third, not a tenth. Part of the literature keeps only as many
    anomalies as a random 20 % holds: ``fifth_of_anomalies`` has the same numbers with those.

    Args:
        candidate: a function that is given training images and returns a detector fitted on them, a detector or a
            generative model, see :func:`heldout_class`.
        train, test: labelled, of the same classes, images in [0, 1].
        anomaly: label or name of the class.
        calibration: proportion of the training images that thresholds come from, in (0, 1).
        seed: of the cut and of the calibration split.
        fpr: false-alarm rate that flags are calibrated for.

    Returns:
        As :func:`heldout_class`, with ``fifth_of_anomalies``.

    Raises:
        TypeError, ValueError: as :func:`heldout_class` does.
    """
    check_same_preprocessing(*map(require_nonempty, (train, test)))
    everything = _joined(train, test)
    normal, anomalous = heldout_classes(everything, [anomaly])
    learned, known = split(normal, (NORMAL_SHARE, 1 - NORMAL_SHARE), seed, stratified=False)
    check_disjoint(learned, replace(known, name="the normal test part"), anomalous)
    _, fifth = split(anomalous, (NORMAL_SHARE, 1 - NORMAL_SHARE), seed, stratified=False)
    populations = {"all": anomalous, "fifth": fifth}
    found = _judged(candidate, learned, known, populations, calibration, seed, fpr)
    numbers = found.pop("populations")
    return {"anomaly": _name(train, anomaly), **found, **numbers["all"], "fifth_of_anomalies": numbers["fifth"]}


def unseen_datasets(
    candidate: Candidate,
    train: ArrayDataset,
    test: ArrayDataset,
    others: Mapping[str, ArrayDataset],
    *,
    calibration: float = 0.1,
    seed: int = 0,
    fpr: float = 0.05,
) -> dict[str, Any]:
    """Far anomalies: all of ``test`` is normal, each data set of ``others`` anomalous.

    Args:
        candidate: a function that is given training images and returns a detector fitted on them, a detector or a
            generative model, see :func:`heldout_class`.
        train, test: of the same classes, images in [0, 1].
        others: data sets that are anomalous, by name.
        calibration: proportion of the training images that thresholds come from, in (0, 1).
        seed: of the calibration split.
        fpr: false-alarm rate that flags are calibrated for.

    Returns:
        As :func:`heldout_class`, with the numbers of each of ``others`` in ``populations``.

    Raises:
        TypeError, ValueError: as :func:`heldout_class` does.

    >>> from robustgen.data import digits, noise
    >>> from robustgen.detectors import NearestNeighbour
    >>> found = unseen_datasets(NearestNeighbour(), digits(), digits("test"), {"noise": noise(100, (1, 8, 8))})
    >>> found["populations"]["noise"]["auroc"], found["populations"]["noise"]["flagged"]
    (100.0, 100.0)
    """
    _check(train, test, *others.values())
    return _judged(candidate, train, test, others, calibration, seed, fpr)


def compared(normal: Tensor, anomalous: Tensor) -> dict[str, float | int]:
    """What scores (N,) of normal and (P,) of anomalous images say, in percent, for the score and for its negative.

    ``aupr`` is the average precision, with ``prevalence``, ``chance`` and ``minimum``, which are what other numbers
    have to be compared with. ``aupr_negated`` is that of the score with the other sign: a score that ranks anomalies as
    more normal than everything else knows something, and was read the wrong way.

    >>> numbers = compared(torch.arange(90.0), torch.arange(10.0) + 100)
    >>> numbers["aupr"], numbers["auroc"], numbers["aupr_negated"] == numbers["minimum"]
    (100.0, 100.0, True)
    """
    found, negated = detection_metrics(normal, anomalous), detection_metrics(-normal, -anomalous)
    names = {
        "average_precision": "aupr",
        "aupr_trapezoid": "aupr_trapezoid",
        "aupr_davis_goadrich": "aupr_davis_goadrich",
        "auroc": "auroc",
        "fpr_at_95_tpr": "fpr95",
        "prevalence": "prevalence",
        "chance": "chance",
        "minimum": "minimum",
    }
    numbers: dict[str, float | int] = {short: 100 * float(found[name]) for name, short in names.items()}
    numbers["aupr_negated"] = 100 * float(negated["average_precision"])
    numbers["auroc_negated"] = 100 * float(negated["auroc"])
    return numbers | {"n_id": found["n_id"], "n_ood": found["n_ood"]}


def _check(train: ArrayDataset, test: ArrayDataset, *others: ArrayDataset) -> None:
    if train.classes != test.classes:
        raise ValueError(f"{train.name} and {test.name} have other classes: {train.classes} and {test.classes}")
    check_same_preprocessing(*map(require_nonempty, (train, test, *others)))
    for other in (test, *others):
        check_disjoint(train, other)


def _heldout_class(
    candidate: Candidate,
    train: ArrayDataset,
    test: ArrayDataset,
    heldout: int | str,
    calibration: float,
    seed: int,
    fpr: float,
) -> dict[str, Any]:
    rest, _ = heldout_classes(train, [heldout])
    known, unknown = heldout_classes(test, [heldout])
    found = _judged(candidate, rest, known, {"heldout": unknown}, calibration, seed, fpr)
    return {"heldout": _name(train, heldout), **found, **found.pop("populations")["heldout"]}


def _judged(
    candidate: Candidate,
    learned: ArrayDataset,
    known: ArrayDataset,
    populations: Mapping[str, ArrayDataset],
    calibration: float,
    seed: int,
    fpr: float,
) -> dict[str, Any]:
    """What is known of a candidate made on ``learned``, ``known`` images against each of ``populations``."""
    for name, population in {"normal test images": known, **populations}.items():
        if not len(population):
            raise ValueError(f"{name}: the population is empty")
    if not 0 < calibration < 1:
        raise ValueError(f"calibration must be in (0, 1), got {calibration}")
    fitted, kept = split(learned, (1 - calibration, calibration), seed, stratified=False)
    ConformalCalibration(torch.zeros(len(require_nonempty(kept)))).threshold(fpr)  # too few: fails before the training
    detector = _detector(candidate, fitted).calibrate(kept)
    normal = detector.score(known.images()).detach().cpu()

    def numbers(images: ArrayDataset) -> dict[str, float | int]:
        scores = detector.score(images.images()).detach().cpu()
        return compared(normal, scores) | {"flagged": _flagged(detector, scores, fpr)}

    return {
        "detector": repr(detector),
        "preprocessing": preprocessing_fingerprint(learned),
        "fpr": fpr,
        "false_alarms": _flagged(detector, normal, fpr),
        "n_calibration": len(kept),
        "populations": {name: numbers(images) for name, images in populations.items()},
        "sanity": {name: numbers(images) for name, images in _sanity(fitted).items()},
    }


def _detector(candidate: Candidate, fitted: ArrayDataset) -> Detector:
    """A fitted detector; a caller's own is copied, so that what it learns here does not reach his next question."""
    if isinstance(candidate, GenerativeModel):
        candidate = Likelihood(candidate)
    if isinstance(candidate, Detector):
        own = copy.copy(candidate)
        return own.fit(fitted) if own.statistics_ is None else own
    if isinstance(candidate, nn.Module) or not callable(candidate):
        raise TypeError(
            f"a detector, a generative model or a function that makes a detector is needed, got "
            f"{type(candidate).__name__}"
        )
    detector = candidate(fitted)
    if not isinstance(detector, Detector):
        raise TypeError(f"the function must return a fitted detector, it returned a {type(detector).__name__}")
    return detector


def _flagged(detector: Detector, scores: Tensor, fpr: float) -> float:
    return 100 * detector.calibration.flag(scores, fpr).double().mean().item()


def _sanity(images: ArrayDataset) -> dict[str, ArrayDataset]:
    """Images that show nothing, on the levels that ``images`` have, so that nothing else tells them apart."""
    levels = images.x.unique().cpu()
    if len(levels) > 256:  # continuous values
        levels = levels[evenly_spaced(len(levels), 256)]
    shape = tuple(images.x.shape[1:])
    constant = levels.reshape(-1, *(1,) * len(shape)).expand(-1, *shape)
    noise = torch.cat([levels[integers(0, ids, shape, len(levels))] for ids in torch.arange(SANITY_NOISE).split(100)])
    return {name: ArrayDataset(x.contiguous(), name=name) for name, x in {"constant": constant, "noise": noise}.items()}


def _joined(a: ArrayDataset, b: ArrayDataset) -> ArrayDataset:
    """Both sets as one, with ids of its own."""
    if a.classes != b.classes:
        raise ValueError(f"{a.name} and {b.name} have other classes: {a.classes} and {b.classes}")
    x = torch.cat([a.x, b.x] if a.x.dtype == b.x.dtype else [a.images(), b.images()])
    y = torch.cat([a.labels(), b.labels()])
    return ArrayDataset(x, y, a.classes, f"{a.name} and {b.name}", preprocessing=a.preprocessing)


def _name(dataset: ArrayDataset, which: int | str) -> str:
    return which if isinstance(which, str) else dataset.classes[which]
