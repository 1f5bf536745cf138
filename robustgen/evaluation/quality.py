"""How good the samples of a generative model are: beside data, in the features of a named network, with intervals.

No number here is an FID: that is the Frechet distance between features of one Inception network, and numbers of another
feature network, or of another number of images, cannot be compared with it (:func:`fid` is the real one). So the
features come with their network's name, layer and fingerprint, and every number with what training images get in the
place of samples, which is what perfect samples would get.
"""

import dataclasses
import importlib
import io
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from robustgen.checks import check_integers, check_seed
from robustgen.counter_rng import derive_seed
from robustgen.data import ArrayDataset
from robustgen.evaluation.metrics import proportion
from robustgen.evaluation.report_pictures import encode_picture
from robustgen.evaluation.sample_metrics import (
    CLUSTERS,
    bootstrap,
    class_measures,
    closer_than_data,
    copied,
    frechet_distance,
    frechet_distances,
    manifold_measures,
    nearest_training,
    parzen_log_likelihood,
    prd_measures,
)
from robustgen.features import FeatureExtractor
from robustgen.files import environment
from robustgen.fingerprint import model_fingerprint
from robustgen.generative import GenerativeModel
from robustgen.model import logits_of, naming_inputs, output_tensor, untouched
from robustgen.networks import mlp, strided
from robustgen.progress import showing, track
from robustgen.training import ClassifierObjective, Trainer
from robustgen.turns import seeded
from robustgen.weights import read_weights

__all__ = ["FeatureNetwork", "SampleQuality", "fid", "sample_quality"]

LEAST = CLUSTERS  # images on each side
WIDEST = 4096  # features: the covariance of more takes gigabytes
_DRAWN = 250  # samples at once: the same whatever the batch size, so that a seed gives the same images
_SHOWN, _BESIDE, _NEIGHBOURS = 40, 8, 3  # samples in the grid; samples beside so many training images
_THIN = 1 / 3  # density for each share of precision; of data it is one, about
_WRONG = 0.8  # accuracy below which a classifier's count of modes is doubtful
_BOUNDS: dict[str, tuple[int, int | None]] = {
    "frechet_distance": (0, None),
    "density": (0, None),
    "mode_kl": (0, None),
    "class_score": (1, None),
}
_BOUNDS |= dict.fromkeys(("precision", "recall", "coverage", "prd_precision", "prd_recall", "closer"), (0, 1))

Images: TypeAlias = ArrayDataset | Tensor | np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """The network in whose features images are compared, by name.

    Args:
        network: usually a classifier, of images in [0, 1]. It is not changed.
        layer: whose output the features are, maps averaged over their places; None: the input of the ``nn.Linear`` that
            makes the logits (see :class:`~robustgen.features.FeatureExtractor`).
        name: what the result calls it.
        classes: the names of its logits; none: those of the data, where there are as many.
        about: how it came about, in a few words.

    >>> network = FeatureNetwork(nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 2)), name="tiny")
    >>> network.of(ArrayDataset(torch.rand(3, 1, 8, 8)))[0].shape
    torch.Size([3, 5])
    """

    network: nn.Module
    layer: str | None = None
    name: str = ""
    classes: tuple[str, ...] = ()
    about: str = "given"

    @classmethod
    def trained_on(
        cls, data: ArrayDataset, seed: int = 0, steps: int = 1500, *, progress: bool = False
    ) -> "FeatureNetwork":
        """A small classifier (:func:`robustgen.networks.strided`, 100 features) trained on labelled images.

        At least ``steps`` steps of Adam with batches of 128, in whole epochs; on the CPU a function of data and seed.

        Raises:
            ValueError: no labels, or those of one class.
        """
        y = data.labels()
        if len(y.unique()) < 2:
            raise ValueError(f"{data.name}: a feature network needs two classes at least, these images are of one")
        check_integers(steps=steps)
        epochs = -(-steps // -(-len(data) // 128))
        with seeded(seed):
            if len(data.shape) == 3 and min(data.shape[1:]) >= 4:
                network: nn.Module = strided(data.shape[0], data.n_classes, (data.shape[1], data.shape[2]))
            else:
                network = mlp(data.x[0].numel(), [100], data.n_classes)
        Trainer(ClassifierObjective(), epochs=epochs, seed=seed, progress=progress).fit(network, data)
        about = f"trained for this on {len(data):,} labelled images of {data.name}, seed {seed}"
        return cls(network.eval(), name="small classifier", classes=data.classes, about=about)

    @cached_property
    def fingerprint(self) -> str:
        """Of its weights and its architecture."""
        return model_fingerprint(self.network)

    @torch.no_grad()
    def of(self, data: ArrayDataset, batch_size: int = 256) -> tuple[Tensor, Tensor | None]:
        """Features of images, float64 (N, D), and what the network says of them, (N, C); None where that is no logits.

        Raises:
            ValueError: images of another shape than it takes, features that are no vectors or more than 4096 numbers,
                or not finite.
        """
        extractor, device = FeatureExtractor(self.network, self.layer), self._device
        features, answers = [], []
        with untouched(self.network):
            for rows in track(torch.arange(len(data)).split(batch_size), "features"):
                x = data.batch(rows)[0].to(device)
                try:
                    with naming_inputs(x):
                        found, output = extractor(x)
                except ValueError as error:
                    if not str(error).startswith("the model fails on"):
                        raise
                    raise ValueError(
                        f"the feature network {self.named!r} does not take images {data.shape} of {data.name}: {error}"
                    ) from None
                features.append(found.double())
                answers.append(output_tensor(output))
        together = torch.cat(features)
        if together.shape[1] > WIDEST:
            raise ValueError(
                f"{together.shape[1]:,} features, more than {WIDEST:,}: name another layer of {self.named!r}"
            )
        if not bool(together.isfinite().all()):
            raise ValueError(f"the feature network {self.named!r} answers {data.name} with NaN or infinity")
        try:
            return together, torch.cat([logits_of(one) for one in answers])
        except ValueError:
            return together, None

    @property
    def named(self) -> str:
        """Its name, or its class."""
        return self.name or type(self.network).__name__

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters(), torch.zeros(())).device

    def place(self, data: ArrayDataset) -> str:
        """Where in the network the features are."""
        with untouched(self.network):
            layer, given = FeatureExtractor(self.network, self.layer).place(
                data.batch(torch.arange(1))[0].to(self._device)
            )
        return f"{'input' if given else 'output'} of {layer}"


@dataclass
class SampleQuality:
    """What :func:`sample_quality` found.

    Attributes:
        name, data: what was compared.
        n: images of each side, "samples", "data" and "train", and in "features" the length of a feature vector.
        features: "name", "layer", "fingerprint" and "about" of the feature network; its "accuracy" on the data where
            it knows their classes.
        measured: by name, ``{"value", "low", "high"}``, low and high of the 95 % bootstrap interval or None.
        control: the same for training images in the place of the samples; None without.
        sigma: width of the Parzen windows, and ``scored``, of how many images the density is taken.
        classes: how many there are; 0 where none are counted.
        left_out: what was not measured, and why. doubts: what speaks against a number.
        pictures: of the first samples, and of some beside their nearest training images.
        seed, resamples: of samples, intervals and clusterings.

    Names of ``measured``: see :func:`sample_quality`.
    """

    name: str
    data: str
    n: dict[str, int]
    features: dict[str, Any]
    measured: dict[str, dict[str, float | None]]
    control: dict[str, dict[str, float | None]] | None
    sigma: float
    scored: int
    classes: int
    left_out: list[str]
    doubts: list[str]
    pictures: dict[str, Any]
    seed: int
    resamples: int
    environment: dict[str, Any] = field(default_factory=environment)
    wall_seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return dataclasses.asdict(self)

    def summary(self) -> str:
        """The sentence, and a line for each number."""
        from robustgen.evaluation.sample_quality_page import quality_text

        return quality_text(self.to_dict())

    def html(self) -> str:
        """The page, with every picture inside it and nothing loaded from elsewhere."""
        from robustgen.evaluation.sample_quality_page import quality_html

        return quality_html({"quality": self.to_dict()})

    def save(self, directory: str | Path, command: str | None = None) -> Path:
        """Write ``quality.json`` and ``quality.html``; returns the path of the page. ``command``: how to repeat it."""
        from robustgen.evaluation.sample_quality_page import write_quality

        return write_quality(self.to_dict(), directory, command)

    def __str__(self) -> str:
        return self.summary()


def sample_quality(
    samples: GenerativeModel | Images,
    data: Images,
    *,
    features: FeatureNetwork | nn.Module | tuple[nn.Module, str],
    train: Images | None = None,
    n: int = 1000,
    seed: int = 0,
    resamples: int = 100,
    batch_size: int = 256,
    name: str | None = None,
    progress: bool = False,
) -> SampleQuality:
    """Compare samples with data that the model was not trained on.

    Measured in the features, which are computed once, with the source of each in
    :mod:`robustgen.evaluation.sample_metrics`: ``frechet_distance`` (lower is better; never to be called FID);
    ``precision`` and ``recall`` (balls of 3 neighbours), ``density`` and ``coverage`` (5); ``prd_precision`` and
    ``prd_recall``, F_1/8 and F_8 of the precision-recall curve; where the network knows the classes of labelled data,
    ``class_score``, ``modes`` and ``mode_kl``. In the pixels: ``parzen`` (nats; a poor estimate, for comparison with
    the literature alone); with ``train``, ``copies`` and ``closer``, signs of memorising.

    Intervals are those of the number at this n: both sides are drawn again, with replacement, and the spread is put
    around the value. What few images do to the number itself (a Frechet distance grows) is not in them, but is in the
    ``control``: training images in the place of samples.

    Args:
        samples: a generative model, of which n samples are drawn, or images (N, C, H, W), uint8 or floats in [0, 1].
        data: images to compare with; labelled (an :class:`~robustgen.data.ArrayDataset`) for classes to be counted.
        features: see :class:`FeatureNetwork`; a network, or one and the name of a layer.
        train: what the model was trained on.
        n: images at most on each side, of more some at random; neighbours are looked for in all of train.
        seed: of samples and choice, bootstrap and clusterings.
        resamples: bootstrap draws; 0: no intervals.
        batch_size: images that the feature network sees at once.
        name: of the samples, for the result; default: the class of the model.
        progress: bars on stderr, with the time left.

    Raises:
        TypeError: images of another kind.
        ValueError: fewer than 20 images on a side, images of different shapes or outside [0, 1], a feature network that
            takes others or sees no difference between the data.

    >>> from robustgen import data, networks
    >>> digits, network = data.digits("test").take(100), networks.mlp(64, [5], 10)
    >>> found = sample_quality(torch.rand(50, 1, 8, 8), digits, features=network, n=50, resamples=20)
    >>> found.n["samples"], found.features["layer"], 0 <= found.measured["recall"]["value"] <= 1
    (50, 'input of 3', True)
    """
    check_integers(n=n, batch_size=batch_size)
    check_integers(0, resamples=resamples)
    check_seed(seed)
    began = time.perf_counter()
    network = _network(features)
    real = _some(_dataset(data, "data"), n, seed)
    training = None if train is None else _dataset(train, "train")
    for held in (real, training):
        if held is not None and len(held) < LEAST:
            raise ValueError(f"at least {LEAST} images of a side are compared; {held.name} has {len(held)}, n is {n}")
    with showing(progress):
        if isinstance(samples, GenerativeModel):
            if n < LEAST:
                raise ValueError(f"at least {LEAST} samples are compared, n is {n}")
            _same_shape(samples.shape, real, "the model's samples")
            fake = _drawn(samples, n, seed)
        else:
            fake = _some(_dataset(samples, "samples"), n, seed)
            if len(fake) < LEAST:
                raise ValueError(f"at least {LEAST} samples are compared, got {len(fake)}")
            _same_shape(fake.shape, real, "samples")
        if training is not None:
            _same_shape(training.shape, real, training.name)
        seen = {"samples": fake, "data": real} | ({} if training is None else {"train": _some(training, n, seed)})
        found = {side: network.of(images, batch_size) for side, images in seen.items()}
        if bool((found["data"][0] == found["data"][0][0]).all()):
            raise ValueError(
                f"all images of {real.name} have the same features of {network.named!r}: nothing to compare"
            )
        classified, left_out = _classes(network, real, found["data"][1])
        near = {}
        if training is None:
            left_out.append("copies of training images, and what training images would get: no training images")
        else:
            k = max(_NEIGHBOURS, 2)
            near = {side: nearest_training(seen[side].images(), training, k) for side in ("samples", "data")}
        measured, width, scored = _measure("samples", seen, found, classified, near, resamples, seed)
        control = None
        if training is not None:
            control, _, _ = _measure("train", seen, found, classified, near, resamples, seed)
    dimensions = found["data"][0].shape[1]
    right = None
    if classified is not None:
        right = proportion(classified[1].argmax(1).cpu() == classified[0])
    return SampleQuality(
        name=name or (type(samples).__name__ if isinstance(samples, GenerativeModel) else fake.name),
        data=real.name,
        n={"samples": len(fake), "data": len(real), "features": dimensions}
        | ({} if training is None else {"train": len(training), "control": len(seen["train"])}),
        features={
            "name": network.named,
            "layer": network.place(real),
            "fingerprint": network.fingerprint,
            "about": network.about,
            "accuracy": right,
        },
        measured=measured,
        control=control,
        sigma=width,
        scored=scored,
        classes=0 if classified is None else int(classified[1].shape[1]),
        left_out=left_out,
        doubts=_doubts(measured, dimensions, len(fake), len(real), right, near["data"][0] if near else None),
        pictures=_pictures(fake, training, near),
        seed=seed,
        resamples=resamples,
        wall_seconds=round(time.perf_counter() - began, 2),
    )


def _network(features: FeatureNetwork | nn.Module | tuple[nn.Module, str]) -> FeatureNetwork:
    if isinstance(features, FeatureNetwork):
        return features
    network, layer = features if isinstance(features, tuple) and len(features) == 2 else (features, None)
    if not isinstance(network, nn.Module) or isinstance(network, GenerativeModel):
        raise TypeError(f"features must be a network, or one and the name of a layer, not {type(network).__name__}")
    return FeatureNetwork(network, layer)


def _dataset(images: Images, name: str) -> ArrayDataset:
    if isinstance(images, ArrayDataset):
        return images
    x = torch.from_numpy(images) if isinstance(images, np.ndarray) else images
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be images: a tensor, an array or an ArrayDataset, not {type(images).__name__}")
    return ArrayDataset(x.float() if x.dtype == torch.float64 else x, name=name)


def _some(images: ArrayDataset, n: int, seed: int) -> ArrayDataset:
    """n of the images, in their order: at random, as the order of a set may have a period (that of MNIST has)."""
    if len(images) <= n:
        return images
    generator = torch.Generator().manual_seed(derive_seed(seed, 2))
    return images.subset(torch.randperm(len(images), generator=generator)[:n].sort().values)


def _same_shape(shape: tuple[int, ...], real: ArrayDataset, what: str) -> None:
    if shape != real.shape:
        raise ValueError(f"{what} are images {shape}, those of {real.name} are {real.shape}")


def _drawn(model: GenerativeModel, n: int, seed: int) -> ArrayDataset:
    """n samples, in memory on the CPU."""
    generator = torch.Generator(model.device).manual_seed(seed)
    sizes = [_DRAWN] * (n // _DRAWN) + ([n % _DRAWN] if n % _DRAWN else [])
    with untouched(model):
        drawn = [model.sample(size, generator).float().cpu() for size in track(sizes, "samples")]
    return ArrayDataset(torch.cat(drawn), name="samples")


def _classes(
    network: FeatureNetwork, real: ArrayDataset, logits: Tensor | None
) -> tuple[tuple[Tensor, Tensor] | None, list[str]]:
    """The labels of the data as the network numbers them, with its logits; or None, and why."""
    what = "class score and modes"
    if logits is None:
        return None, [f"{what}: {network.named} says no classes"]
    if real.y is None:
        return None, [
            f"{what}: {real.name} has no labels, so that nobody knows whether {network.named} tells its classes"
        ]
    known = network.classes or (real.classes if len(real.classes) == logits.shape[1] else ())
    if not set(real.classes) <= set(known) or len(known) != logits.shape[1]:
        return None, [f"{what}: {network.named} does not know the classes of {real.name}"]
    number = torch.tensor([known.index(c) for c in real.classes])
    return (number[real.y.cpu()], logits), []


def _measure(
    side: str,
    images: dict[str, ArrayDataset],
    found: dict[str, tuple[Tensor, Tensor | None]],
    classified: tuple[Tensor, Tensor] | None,
    near: dict[str, tuple[Tensor, Tensor]],
    resamples: int,
    seed: int,
) -> tuple[dict[str, dict[str, float | None]], float, int]:
    """Every number of one side beside the data; the width of the Parzen windows, and how many images they score."""
    (x, logits), (y, _) = found[side], found["data"]
    weights = bootstrap(len(x), len(y), resamples, seed, x.device)
    values = {"frechet_distance": frechet_distances(x, y, weights)}
    values |= manifold_measures(x, y, weights)
    values |= prd_measures(x, y, weights, seed)
    if classified is not None:
        assert logits is not None
        values |= class_measures(logits, classified[1], weights)
    pixels, of_data = (images[one].images().flatten(1) for one in (side, "data"))
    parzen, width, scored = parzen_log_likelihood(pixels, of_data, weights.data.cpu())
    values["parzen"] = parzen
    if near and side == "samples":
        values["closer"] = closer_than_data(near["samples"][0], near["data"][0], weights)
    rows = {name: _interval(of, *_BOUNDS.get(name, (None, None))) for name, of in values.items()}
    if "modes" in rows:  # a count of what was seen: drawing again can only lose classes
        rows["modes"] |= {"low": None, "high": None}
    if near:
        share = proportion(copied(near["samples" if side == "samples" else "data"][0]))
        rows["copies"] = {key: share[key] for key in ("value", "low", "high")}
    if near and side == "train":  # what held-back images get stands for what is no copy
        rows["closer"] = {"value": 0.5, "low": None, "high": None}
    return rows, width, scored


def _interval(values: Tensor, least: float | None, most: float | None) -> dict[str, float | None]:
    """The first of the values (1 + B,), with the spread of the others around it."""
    value, drawn = float(values[0]), values[1:].double()
    if not len(drawn):
        return {"value": value, "low": None, "high": None}
    ends = drawn.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64, device=drawn.device)) - drawn.mean()
    low, high = (float(np.clip(value + float(e), least, most)) for e in ends)
    return {"value": value, "low": min(low, value), "high": max(high, value)}


def _doubts(
    measured: dict[str, dict[str, float | None]],
    dimensions: int,
    samples: int,
    data: int,
    right: dict[str, Any] | None,
    held_back: Tensor | None,
) -> list[str]:
    """``held_back``: distances of the data to the training images."""
    found = []
    if min(samples, data) <= dimensions:
        found.append(
            f"The Frechet distance is biased: {min(samples, data):,} images do not determine the covariance of "
            f"{dimensions:,} features. Compare it with that of training images, take more images, or a layer of fewer "
            "features."
        )
    precision, density = (measured[name]["value"] or 0.0 for name in ("precision", "density"))
    if density < precision * _THIN:
        found.append(
            f"Precision may be owed to outliers among the data: samples lie in few balls (density {density:.2f})."
        )
    if right is not None and right["value"] < _WRONG:
        found.append(
            f"The feature network is right on {right['value']:.0%} of the data: class score and modes are doubtful."
        )
    if held_back is not None and (shared := int((held_back[:, 0] == 0).sum())):
        found.append(f"{shared:,} images of the data are training images too: the data must be others.")
    return found


def _pictures(
    fake: ArrayDataset, training: ArrayDataset | None, near: dict[str, tuple[Tensor, Tensor]]
) -> dict[str, Any]:
    """The first samples, and beside their nearest training images the first and those that come closest."""
    shown = [encode_picture(x) for x in fake.first(_SHOWN).images()]
    found: dict[str, Any] = {"samples": [picture for picture in shown if picture is not None]}
    if training is None or not found["samples"]:
        return found
    distances, rows = near["samples"]
    ratio = distances[:, 0] / distances[:, 1].clamp(min=1e-12)
    closest = ratio.argsort(stable=True)[:_BESIDE].tolist()

    def beside(which: Iterable[int]) -> list[dict[str, Any]]:
        return [
            {
                "sample": encode_picture(fake.batch(torch.tensor([i]))[0][0]),
                "neighbours": [encode_picture(x) for x in training.batch(rows[i].cpu())[0]],
                "distances": [round(d, 4) for d in distances[i].tolist()],
            }
            for i in which
        ]

    return found | {"first": beside(range(min(_BESIDE, len(fake)))), "closest": beside(closest)}


def fid(samples: Images, data: Images, weights: str | Path, *, batch_size: int = 64, progress: bool = False) -> float:
    """The FID of samples (N, 1 or 3, H, W) and data: the Frechet distance between features of Inception-v3.

    Of ``torch-fidelity``'s network (``pip install robustgen[fidelity]``), which is the reference's bit by bit, with its
    ``weights-inception-2015-12-05-6726825d.pth``; nothing is fetched. Grey images stand three times. Of fewer images
    than a few times 2,048 it is far too large; the literature takes 10,000 to 50,000.

    Raises:
        ImportError: torch-fidelity is not installed.
        ValueError: weights of another network or that are more than tensors, or no such images.
    """
    try:
        library = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    except ImportError as error:
        raise ImportError("torch-fidelity is not installed: pip install robustgen[fidelity]") from error
    plain = io.BytesIO()  # torch-fidelity unpickles whatever a file holds, so it is given the tensors alone
    torch.save(read_weights(weights), plain)
    plain.seek(0)
    try:
        network = library.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], plain)
    except RuntimeError as error:
        raise ValueError(f"{weights}: not the weights of torch-fidelity's Inception-v3") from error
    found = []
    with showing(progress), torch.no_grad():
        for images, name in ((samples, "samples"), (data, "data")):
            dataset = _dataset(images, name)
            if len(dataset.shape) != 3 or dataset.shape[0] not in (1, 3) or len(dataset) < 2:
                raise ValueError(f"{dataset.name}: two images (1 or 3, H, W) at least are needed, got {dataset!r}")
            parts = [
                network((255 * dataset.batch(rows)[0]).round().to(torch.uint8).expand(-1, 3, -1, -1))[0]
                for rows in track(torch.arange(len(dataset)).split(batch_size), f"Inception features of {name}")
            ]
            found.append(torch.cat(parts))
    return frechet_distance(*found)
