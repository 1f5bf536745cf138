"""The detectors of the tables: what each is made of."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import nn

from robustgen.detectors import Detector
from robustgen.detectors.loading import detector_classes
from robustgen.experiments.ahmed2017.trained_models import TrainedModels, with_defaults

__all__ = ["DETECTORS", "NOT_GENERATIVE", "VARIANTS", "ComparedDetector", "compared_detector"]


@dataclass(frozen=True, kw_only=True)
class ComparedDetector:
    """A detector and its models.

    Attributes:
        title: as readers see it.
        detector: class in :mod:`robustgen.detectors`, by the name under which its cells are kept.
        models: recipes of the models below it, "pixelcnn@2" for the second of the epochs kept of "pixelcnn"; none: it
            works on pixels.
        options: of its constructor.
        n_test: test images it is judged on, drawn from all of them; 0: all.
        labels: whether it uses the labels of the trained classes.
    """

    title: str
    detector: str
    models: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    n_test: int = 0
    labels: bool = False

    def describe(self) -> dict[str, Any]:
        """JSON-able: all but the title, with what the detector takes for options that are not given."""
        kind = detector_classes()[self.detector]
        options = with_defaults(kind, self.options)
        kept = {name: value for name, value in options.items() if name not in ("model", "batch_size")}
        described = {name: value for name, value in asdict(self).items() if name != "title"}
        return described | {"options": kept, "fresh": kind.fit_on_fresh}

    def make(self, trained: TrainedModels) -> Detector:
        """The fitted detector, on models trained now or before."""
        kind: Any = detector_classes()[self.detector]  # each takes options of its own
        models = [trained.model(name) for name in self.models]
        below: tuple[nn.Module | list[nn.Module], ...] = () if not models else (models if models[1:] else models[0],)
        detector: Detector = kind(*below, **self.options)
        seen = trained.train if models else trained.images
        return detector.fit(trained.validation if detector.fit_on_fresh else seen)


def _likelihood(title: str, model: str) -> ComparedDetector:
    return ComparedDetector(title=title, detector="Likelihood", models=(model,))


DETECTORS: dict[str, ComparedDetector] = {
    "vae": _likelihood("VAE", "vae"),
    "vae-of-all": _likelihood("VAE, of all training images of the set", "vae"),
    "pixelcnn": _likelihood("PixelCNN", "pixelcnn"),
    "pixelvae": _likelihood("PixelVAE", "pixelvae"),
    "dcgan": ComparedDetector(title="DCGAN", detector="Discriminator", models=("dcgan",)),
    "iaf-vae": _likelihood("IAF-VAE", "iaf-vae"),
    "pixelcnn++": _likelihood("PixelCNN++", "pixelcnn++"),
    "wgan-gp": ComparedDetector(title="WGAN-GP critic", detector="Discriminator", models=("wgan-gp",)),
    "ebm": _likelihood("EBM, Langevin", "ebm"),
    "ebm-dsm": _likelihood("EBM, score matching", "ebm-dsm"),
    "vae-iw": ComparedDetector(
        title="VAE, 100 importance samples",
        detector="Likelihood",
        models=("vae",),
        options={"importance_samples": 100},
        n_test=1000,
    ),
    "vae-draws": ComparedDetector(
        title="VAE, mean over 10 binary draws", detector="Likelihood", models=("vae",), options={"draws": 10}
    ),
    "vae-reconstruction": ComparedDetector(
        title="VAE, squared error", detector="AutoencoderReconstruction", models=("vae",)
    ),
    "vae-regret": ComparedDetector(
        title="VAE, likelihood regret",
        detector="LikelihoodRegret",
        models=("vae",),
        options={"steps": 50},
        n_test=1000,
    ),
    "vae-typicality": ComparedDetector(title="VAE, typicality", detector="Typicality", models=("vae",)),
    "vae-complexity": ComparedDetector(title="VAE, input complexity", detector="InputComplexity", models=("vae",)),
    "vae-dose": ComparedDetector(title="VAE, DoSE", detector="DensityOfStates", models=("vae",)),
    "pixelcnn-ratio": ComparedDetector(
        title="PixelCNN, likelihood ratio", detector="LikelihoodRatio", models=("pixelcnn", "pixelcnn-background")
    ),
    "pixelcnn-complexity": ComparedDetector(
        title="PixelCNN, input complexity", detector="InputComplexity", models=("pixelcnn",)
    ),
    "pixelcnn-typicality": ComparedDetector(title="PixelCNN, typicality", detector="Typicality", models=("pixelcnn",)),
    "pixelcnn-waic": ComparedDetector(
        title="PixelCNN, WAIC of three epochs", detector="WAIC", models=("pixelcnn@1", "pixelcnn@2", "pixelcnn@3")
    ),
    "glow": _likelihood("Glow", "glow"),
    "real-nvp": _likelihood("RealNVP", "real-nvp"),
    "flow-prior": _likelihood("VAE, flow prior", "flow-prior"),
    **{
        f"glf-{parts}": ComparedDetector(
            title=f"GLF, {title}", detector="LatentDensity", models=("glf",), options={"parts": parts}
        )
        for parts, title in (("latent", "density of codes"), ("reconstruction", "squared error"), ("sum", "both"))
    },
    "tilt-base": _likelihood("VAE", "tilt-base"),
    "tilt-base-typicality": ComparedDetector(title="VAE, typicality", detector="Typicality", models=("tilt-base",)),
    "tilted": _likelihood("VAE, tilted", "tilted"),
    "tilted-energy": ComparedDetector(title="the tilt's energy alone", detector="ModelEnergy", models=("tilted",)),
    "tilted-dose": ComparedDetector(
        title="VAE's likelihood beside the tilt's energy (DoSE)", detector="DensityOfStates", models=("tilted",)
    ),
    "tilted-glow": _likelihood("Glow, tilted", "tilted-glow"),
    "glow-typicality": ComparedDetector(title="Glow, typicality", detector="Typicality", models=("glow",)),
    "tilted-glow-dose": ComparedDetector(
        title="Glow's likelihood beside its tilt's energy (DoSE)", detector="DensityOfStates", models=("tilted-glow",)
    ),
    "jem": ComparedDetector(title="classifier and energy in one", detector="Likelihood", models=("jem",), labels=True),
    "noise-free": ComparedDetector(
        title="noise-free EBM, density of its flow", detector="Likelihood", models=("noise-free",), n_test=500
    ),
    "noise-free-energy": ComparedDetector(
        title="noise-free EBM, energy", detector="ModelEnergy", models=("noise-free",)
    ),
    "equilibrium": ComparedDetector(
        title="equilibrium matching, energy", detector="ModelEnergy", models=("equilibrium",)
    ),
    "ddpm": _likelihood("DDPM, its bound", "ddpm"),
    **{
        f"ddpm-{key}": ComparedDetector(title=f"DDPM, {title}", detector=detector, models=("ddpm",), n_test=1000)
        for key, title, detector in (
            ("reconstruction", "reconstructions from four depths", "DiffusionReconstruction"),
            ("lift-map", "lifted and mapped back", "LiftMapDetect"),
            ("scores", "norms of its scores", "MultiscaleScores"),
        )
    },
    "ddpm-nearest": ComparedDetector(
        title="DDPM, nearest training image in its states", detector="NearestDiffusionFeatures", models=("ddpm",)
    ),
    "ddgan": ComparedDetector(title="DDGAN, its discriminator", detector="Discriminator", models=("ddgan-4",)),
    "compressed-size": ComparedDetector(title="compressed size alone", detector="CompressedSize"),
    "brightness": ComparedDetector(title="mean brightness alone", detector="MeanBrightness"),
    "pca": ComparedDetector(title="PCA residual", detector="PCAResidual", options={"components": 64}),
    "nearest": ComparedDetector(title="nearest training image", detector="NearestNeighbour"),
    "nearest-of-all": ComparedDetector(title="nearest of all training images of the set", detector="NearestNeighbour"),
    "distortion": ComparedDetector(title="nearest after distortion", detector="ImageDistortion"),
    "contrastive": ComparedDetector(
        title="contrastive, 20th nearest feature",
        detector="KNearestFeatures",
        models=("contrastive",),
        options={"k": 20},
    ),
    "contrastive-distortion": ComparedDetector(
        title="contrastive features times distortion, 20th nearest",
        detector="FeaturesTimesDistortion",
        models=("contrastive",),
        options={"k": 20},
    ),
    "energy": ComparedDetector(title="classifier, energy", detector="Energy", models=("classifier",), labels=True),
    "max-softmax": ComparedDetector(
        title="classifier, max softmax", detector="MaxSoftmax", models=("classifier",), labels=True
    ),
    "mahalanobis": ComparedDetector(
        title="classifier, Mahalanobis", detector="Mahalanobis", models=("classifier",), labels=True
    ),
    "classifier-flow": ComparedDetector(
        title="classifier, flow of its features",
        detector="FeatureLikelihood",
        models=("classifier",),
        labels=True,
    ),
    "k-nearest-features": ComparedDetector(
        title="classifier, 10th nearest feature",
        detector="KNearestFeatures",
        models=("classifier",),
        options={"k": 10},
        labels=True,
    ),
    "deformed-energy": ComparedDetector(
        title="classifier of deformed images, energy", detector="Energy", models=("deformed",), labels=True
    ),
    "deformed-k-nearest": ComparedDetector(
        title="classifier of deformed images, 5th nearest feature",
        detector="KNearestFeatures",
        models=("deformed",),
        options={"k": 5},
        labels=True,
    ),
    "deformed-distortion": ComparedDetector(
        title="classifier of deformed images, features times distortion, 20th nearest",
        detector="FeaturesTimesDistortion",
        models=("deformed",),
        options={"k": 20},
        labels=True,
    ),
}

# Tried in the selection besides: key, what it varies, options, title.
VARIANTS = {
    key: replace(DETECTORS[base], title=title, options=options)
    for key, base, options, title in (
        ("distortion-k1", "distortion", {"k": 1}, "nearest after distortion, of 1 neighbour"),
        ("distortion-k10", "distortion", {"k": 10}, "nearest after distortion, of 10 neighbours"),
        ("distortion-10", "distortion", {"shortlist": 10}, "nearest after distortion, short list of 10"),
        ("distortion-50", "distortion", {"shortlist": 50}, "nearest after distortion, short list of 50"),
        ("distortion-0", "distortion", {"exponent": 0.0}, "nearest after distortion, exponent 0"),
        ("distortion-1", "distortion", {"exponent": 1.0}, "nearest after distortion, exponent 1"),
        ("contrastive-k5", "contrastive", {"k": 5}, "contrastive, 5th nearest feature"),
        ("contrastive-k50", "contrastive", {"k": 50}, "contrastive, 50th nearest feature"),
        ("product-k5", "contrastive-distortion", {"k": 5}, "contrastive features times distortion, 5th nearest"),
        ("product-k50", "contrastive-distortion", {"k": 50}, "contrastive features times distortion, 50th nearest"),
        ("deformed-k20", "deformed-k-nearest", {"k": 20}, "classifier of deformed images, 20th nearest feature"),
        (
            "deformed-distortion-k5",
            "deformed-distortion",
            {"k": 5},
            "classifier of deformed images, features times distortion, 5th nearest",
        ),
    )
}
DETECTORS |= VARIANTS

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


def compared_detector(key: str, scale: str) -> ComparedDetector:
    """The detector called ``key``; at scale "smoke", on images of 64 pixels, with smaller options."""
    found = DETECTORS[key]
    return replace(found, options=_SMOKE.get(key, found.options)) if scale == "smoke" else found
