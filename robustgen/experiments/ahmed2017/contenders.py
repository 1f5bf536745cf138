"""The detectors of the tables: what each is made of."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import nn

from robustgen import detectors
from robustgen.detectors import Detector
from robustgen.experiments.ahmed2017.trained import Trained

__all__ = ["CONTENDERS", "NOT_GENERATIVE", "Contender", "contender"]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A detector and its models.

    Attributes:
        title: as readers see it.
        detector: class in :mod:`robustgen.detectors`.
        models: recipes of the models below it, "pixelcnn@2" for the second of the epochs kept of "pixelcnn"; none: it
            works on pixels.
        options: of its constructor.
        n_test: test images it is judged on; 0: all.
        fresh: whether it is fitted on images that its models were not trained on.
        labels: whether it uses the labels of the trained classes.
    """

    title: str
    detector: str
    models: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    n_test: int = 0
    fresh: bool = False
    labels: bool = False

    def describe(self) -> dict[str, Any]:
        """JSON-able: all but the title."""
        return {name: value for name, value in asdict(self).items() if name != "title"}

    def make(self, trained: Trained) -> Detector:
        """The fitted detector, on models trained now or before."""
        kind = getattr(detectors, self.detector)
        models = [trained.model(name) for name in self.models]
        below: tuple[nn.Module | list[nn.Module], ...] = () if not models else (models if models[1:] else models[0],)
        detector: Detector = kind(*below, **self.options)
        return detector.fit(trained.validation if self.fresh else trained.train if models else trained.images)


def _models(title: str, model: str) -> Contender:
    return Contender(title=title, detector="Likelihood", models=(model,))


CONTENDERS: dict[str, Contender] = {
    "vae": _models("VAE", "vae"),
    "pixelcnn": _models("PixelCNN", "pixelcnn"),
    "pixelvae": _models("PixelVAE", "pixelvae"),
    "dcgan": Contender(title="DCGAN", detector="Discriminator", models=("dcgan",)),
    "iaf-vae": _models("IAF-VAE", "iaf-vae"),
    "pixelcnn++": _models("PixelCNN++", "pixelcnn++"),
    "wgan-gp": Contender(title="WGAN-GP critic", detector="Discriminator", models=("wgan-gp",)),
    "ebm": _models("EBM, Langevin", "ebm"),
    "ebm-dsm": _models("EBM, score matching", "ebm-dsm"),
    "vae-iw": Contender(
        title="VAE, 100 importance samples",
        detector="Likelihood",
        models=("vae",),
        options={"importance_samples": 100},
        n_test=1000,
    ),
    "vae-reconstruction": Contender(title="VAE, squared error", detector="AutoencoderReconstruction", models=("vae",)),
    "vae-regret": Contender(
        title="VAE, likelihood regret",
        detector="LikelihoodRegret",
        models=("vae",),
        options={"steps": 50},
        n_test=1000,
    ),
    "vae-typicality": Contender(title="VAE, typicality", detector="Typicality", models=("vae",), fresh=True),
    "vae-complexity": Contender(title="VAE, input complexity", detector="InputComplexity", models=("vae",)),
    "vae-dose": Contender(title="VAE, DoSE", detector="DensityOfStates", models=("vae",), fresh=True),
    "pixelcnn-ratio": Contender(
        title="PixelCNN, likelihood ratio", detector="LikelihoodRatio", models=("pixelcnn", "pixelcnn-background")
    ),
    "pixelcnn-complexity": Contender(
        title="PixelCNN, input complexity", detector="InputComplexity", models=("pixelcnn",)
    ),
    "pixelcnn-typicality": Contender(
        title="PixelCNN, typicality", detector="Typicality", models=("pixelcnn",), fresh=True
    ),
    "pixelcnn-waic": Contender(
        title="PixelCNN, WAIC of three epochs", detector="WAIC", models=("pixelcnn@1", "pixelcnn@2", "pixelcnn@3")
    ),
    "compressed-size": Contender(title="compressed size alone", detector="CompressedSize"),
    "brightness": Contender(title="mean brightness alone", detector="MeanBrightness"),
    "pca": Contender(title="PCA residual", detector="PCAResidual", options={"components": 64}),
    "nearest": Contender(title="nearest training image", detector="NearestNeighbour"),
    "distortion": Contender(title="nearest after distortion", detector="ImageDistortion"),
    "contrastive": Contender(
        title="contrastive, 20th nearest feature",
        detector="KNearestFeatures",
        models=("contrastive",),
        options={"k": 20},
    ),
    "contrastive-distortion": Contender(
        title="contrastive features times distortion",
        detector="FeaturesTimesDistortion",
        models=("contrastive",),
        options={"k": 20},
    ),
    "energy": Contender(title="classifier, energy", detector="Energy", models=("classifier",), labels=True),
    "max-softmax": Contender(
        title="classifier, max softmax", detector="MaxSoftmax", models=("classifier",), labels=True
    ),
    "mahalanobis": Contender(
        title="classifier, Mahalanobis", detector="Mahalanobis", models=("classifier",), labels=True
    ),
    "k-nearest-features": Contender(
        title="classifier, 10th nearest feature",
        detector="KNearestFeatures",
        models=("classifier",),
        options={"k": 10},
        labels=True,
    ),
    "deformed-energy": Contender(
        title="classifier of deformed images, energy", detector="Energy", models=("deformed",), labels=True
    ),
    "deformed-k-nearest": Contender(
        title="classifier of deformed images, 5th nearest feature",
        detector="KNearestFeatures",
        models=("deformed",),
        options={"k": 5},
        labels=True,
    ),
    "deformed-distortion": Contender(
        title="classifier of deformed images, features times distortion",
        detector="FeaturesTimesDistortion",
        models=("deformed",),
        options={"k": 20},
        labels=True,
    ),
}

# What generative models are compared with: plain baselines, learned features, classifiers.
NOT_GENERATIVE = (
    "compressed-size",
    "brightness",
    "pca",
    "nearest",
    "distortion",
    "contrastive",
    "contrastive-distortion",
    "max-softmax",
    "energy",
    "mahalanobis",
    "k-nearest-features",
    "deformed-energy",
    "deformed-k-nearest",
    "deformed-distortion",
)

_SMOKE: dict[str, dict[str, Any]] = {
    "vae-iw": {"importance_samples": 4},
    "vae-regret": {"steps": 2},
    "pca": {"components": 16},
}


def contender(key: str, scale: str) -> Contender:
    """The contender called ``key``; at scale "smoke", on images of 64 pixels, with smaller options."""
    found = CONTENDERS[key]
    return replace(found, options=_SMOKE.get(key, found.options)) if scale == "smoke" else found
