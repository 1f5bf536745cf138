"""Samples of a trained model beside test images, in the features of a classifier that has seen neither."""

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from robustgen.counter_rng import derive_seed
from robustgen.data import ArrayDataset
from robustgen.evaluation import FeatureNetwork, sample_quality
from robustgen.experiments.ahmed2017.trained_models import TrainedModels, described
from robustgen.experiments.experiment import counted
from robustgen.experiments.training_cache import TrainingCache
from robustgen.experiments.xiao2022.recipes import RECIPES
from robustgen.files import read_json, write_json
from robustgen.generative import VAE, GenerativeModel
from robustgen.generative.latent.vae import GaussianVAE
from robustgen.locks import alone
from robustgen.networks import strided
from robustgen.training import ClassifierObjective

__all__ = [
    "BUDGETS",
    "FEATURES",
    "TRAINING_IMAGES",
    "Budget",
    "feature_network",
    "measured_samples",
    "recipes_of",
    "samples_of",
    "settings_of",
]

TRAINING_IMAGES = "training"  # the row of images that no model made
FEATURES: dict[str, Any] = {"epochs": 4, "batch_size": 128, "lr": 1e-3}
_KEPT = {  # numbers of sample_quality, as cells call them
    "frechet_distance": "Frechet distance",
    "prd_recall": "F8 (recall)",
    "prd_precision": "F1/8 (precision)",
    "precision": "improved precision",
    "recall": "improved recall",
    "density": "density",
    "coverage": "coverage",
    "class_score": "class score",
    "modes": "modes",
    "mode_kl": "KL of modes",
}


@dataclass(frozen=True)
class Budget:
    """How many training images (0: all), and images on each side of a comparison.

    ``data`` stands for the data sets of a table where these need a download.
    """

    n_train: int
    n: int
    data: str = ""

    def describe(self) -> str:
        """In words."""
        return f"{self.data + ', ' if self.data else ''}{self.n_train or 'all'} training images, {self.n:,} samples"


BUDGETS = {"smoke": Budget(300, 100, "digits"), "cpu": Budget(20_000, 2_000), "full": Budget(0, 10_000)}


def settings_of(name: str, data: str, scale: str) -> dict[str, Any]:
    """All that :func:`measured_samples` depends on but the seed."""
    recipes = described(RECIPES[scale], recipes_of(name, scale))
    return asdict(BUDGETS[scale]) | {"data": data, "model": name, "features": FEATURES, "recipes": recipes}


def recipes_of(name: str, scale: str) -> tuple[str, ...]:
    """Those of the trainings behind a model."""
    if name == TRAINING_IMAGES:
        return ()
    perceived = getattr(RECIPES[scale][name], "perceives", "")
    return (name, perceived) if perceived else (name,)


def measured_samples(
    name: str, data: str, scale: str, seed: int, cache: TrainingCache
) -> tuple[dict[str, dict[str, float]], dict[str, list[float]]]:
    """Numbers of a model's samples, and the history of its training; kept, so that columns of a table share them.

    Args:
        name: of a recipe, or ``TRAINING_IMAGES``.
    """
    budget = BUDGETS[scale]
    path = cache.folder({"samples of": name, "seed": seed} | settings_of(name, data, scale)) / "samples.json"
    with alone(path.parent, wait=True):
        if not path.exists():
            train = cache.drawn(data, "train", budget.n_train)
            test = cache.images(data, "test")
            features = feature_network(data, scale, cache)
            if name == TRAINING_IMAGES:
                images, history, more = train.subset(torch.arange(len(train) - budget.n, len(train))), {}, {}
            else:
                trained = TrainedModels(cache, RECIPES[scale], train, seed)
                model: Any = trained.model(name)
                began = time.process_time()
                images = ArrayDataset(samples_of(model.eval(), budget.n, seed), name="samples")
                spent = {"core seconds for 100 samples": 100 * (time.process_time() - began) / budget.n}
                history, more = trained.history, spent | _codes(model, cache.put(test)[0][: budget.n])
            found = sample_quality(images, test, features=features, n=budget.n, seed=seed, resamples=0)
            numbers = {title: found.measured[key]["value"] for key, title in _KEPT.items() if key in found.measured}
            right = {"accuracy of the feature network": 100 * float((found.features["accuracy"] or {}).get("value", 0))}
            write_json(path, {"numbers": {**numbers, **more, **right}, "history": history, "n": budget.n})
    kept = read_json(path, {"numbers": dict, "history": dict, "n": int})
    return counted(kept["numbers"], kept["n"]), kept["history"]


def feature_network(data: str, scale: str, cache: TrainingCache) -> FeatureNetwork:
    """A small classifier of all training images, the same for all models and seeds."""
    train = cache.images(data, "train")
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(2022, 0))
        network = strided(train.shape[0], train.n_classes, (train.shape[1], train.shape[2]))
    settings = {"feature network of": data, "n": len(train), "scale": scale} | FEATURES
    cache.train(settings, network, ClassifierObjective(), train, seed=2022, **FEATURES)
    return FeatureNetwork(network, name=f"classifier of {data}", classes=train.classes, about="trained for these cells")


@torch.no_grad()
def samples_of(model: GenerativeModel, n: int, seed: int) -> Tensor:
    """n samples; of a VAE expected images, as the models that it is compared with give."""
    generator = torch.Generator(model.device).manual_seed(derive_seed(seed, 3))
    drawn = []
    for size in [250] * (n // 250) + ([n % 250] if n % 250 else []):
        if isinstance(model, VAE) and not isinstance(model, GaussianVAE):
            noise = torch.randn(size, *model.noise_shape, generator=generator, device=model.device)
            drawn.append(model.decode(model.prior_sample(noise)))
        else:
            drawn.append(model.sample(size, generator))
    return torch.cat(drawn).cpu()


@torch.no_grad()
def _codes(model: Any, x: Tensor) -> dict[str, float]:
    """How the model codes test images: the squared error of an image, and the spread of its codes."""
    if not hasattr(model, "encode"):
        return {}
    codes = model.encode(x)
    if isinstance(model, VAE):
        numbers = {"variance of q(z|x)": (2 * codes.log_std).exp().mean().item()}
        codes = codes.mean
    else:
        numbers = {"-log p(E(x)), nats": -model.latent_log_prob(x).double().mean().item()}
    numbers["squared error of an image"] = (model.reconstruct(x) - x).double().square().flatten(1).sum(1).mean().item()
    return numbers | {"standard deviation of codes": codes.double().std(0).mean().item()}
