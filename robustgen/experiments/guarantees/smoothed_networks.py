"""The networks of these tables: plain, trained on noise, or plain behind what takes the noise away, and certified."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustgen.counter_rng import derive_seed
from robustgen.data import ArrayDataset
from robustgen.evaluation import CertificationReport, certify_robustness
from robustgen.experiments.experiment import Measurement, accuracies, counted, epochs_of
from robustgen.experiments.training_cache import TrainingCache
from robustgen.files import read_json, write_json
from robustgen.fortified import SmoothedClassifier, fortify, smooth
from robustgen.generative import DDGAN, DDPM, Denoiser, GenerativeModel, GenerativeObjective
from robustgen.inputs import evenly_spaced
from robustgen.locks import alone
from robustgen.networks import build
from robustgen.training import Batch, ClassifierObjective

__all__ = ["DIFFUSIONS", "Budget", "Certified", "OnNoise", "certificates", "certified"]

DIFFUSIONS: dict[str, type[GenerativeModel]] = {"ddpm": DDPM, "ddgan": DDGAN}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much of everything.

    Attributes:
        data: the set's name; ``n_train`` images of it are trained on (0: all).
        network, width: of the classifier, see :func:`robustgen.networks.build`.
        epochs: of the plain network; ``denoiser_epochs`` of what goes before it. A network trained on noise has both.
        denoiser: options of :class:`~robustgen.generative.Denoiser`; units: of the autoencoder.
        n_test, n0, n: images, and draws for each.
    """

    data: str
    n_train: int = 0
    network: str = "strided"
    width: int = 16
    epochs: int = 2
    denoiser_epochs: int = 3
    batch_size: int = 64
    lr: float = 2e-3
    denoiser: Mapping[str, int]
    denoiser_lr: float = 3e-3
    units: int = 512
    n_test: int
    n0: int = 100
    n: int
    alpha: float = 0.001

    def record(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self) | {"denoiser": dict(self.denoiser)}


class OnNoise:
    """A classifier's cross-entropy on images with noise of standard deviation sigma."""

    def __init__(self, sigma: float) -> None:
        self.sigma, self.objective = sigma, ClassifierObjective()

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        noisy = batch.x + self.sigma * torch.randn_like(batch.x)
        return self.objective(model, batch._replace(x=noisy), step)

    def describe(self) -> dict[str, Any]:
        return {"objective": type(self).__name__, "sigma": self.sigma}


@dataclass(frozen=True)
class Certified:
    """One kind of network, certified.

    Attributes:
        report: its certificates.
        history: of the trainings behind them.
        sizes: parameters.
        core_minutes: of the certificates, where one process made all of them.
    """

    report: CertificationReport
    history: dict[str, list[float]]
    sizes: dict[str, int]
    core_minutes: float

    def measurement(self, radius: float, radii: Sequence[float]) -> Measurement:
        """The certified accuracy at ``radius``, in percent, and everything else."""
        report, n = self.report, len(self.report.y)
        shares = {f"certified at {r:g}": report.certified(r) for r in radii}
        shares |= {"right": report.right, "abstains": report.prediction < 0}
        numbers = accuracies(shares) | counted(
            {
                "average radius": report.average_radius,
                "largest provable radius": report.most,
                "forwards for each image": report.draws.double().mean().item(),
                "core-minutes": self.core_minutes,
            },
            n,
        )
        numbers |= counted({name: float(size) for name, size in self.sizes.items()}, 1)
        return Measurement(
            value=100 * report.certified(radius).double().mean().item(), numbers=numbers, history=self.history
        )


def certified(kind: str, sigma: float, budget: Budget, seed: int, cache: TrainingCache) -> Certified:
    """Certificates of "plain", "noise-trained", "autoencoder", "denoised" or a diffusion, kept as trainings are."""
    train, test = cache.images(budget.data, "train", budget.n_train), cache.images(budget.data, "test")
    x, y = cache.put(test.subset(evenly_spaced(len(test), budget.n_test)))
    model, history, sizes = _network(kind, sigma, budget, seed, cache, train)
    settings = {"certificates of": kind, "sigma": sigma, "seed": seed} | budget.record()
    options = {"n0": budget.n0, "n": budget.n, "alpha": budget.alpha, "name": f"{kind}, sigma {sigma:g}"}
    x = x.flatten(1) if kind == "autoencoder" else x
    report, core_minutes = certificates(model, x, y, settings, cache, **options)
    return Certified(report, history, sizes, core_minutes)


def certificates(
    model: SmoothedClassifier, x: Tensor, y: Tensor, settings: dict[str, Any], cache: TrainingCache, **options: Any
) -> tuple[CertificationReport, float]:
    """Certificates of ``model``, made once for all cells of these ``settings``, and their core-minutes."""
    run_dir = cache.folder(settings)
    clock = run_dir / "core_seconds.json"
    with alone(cache.folder(settings | {"turn": True}), wait=True):
        begun = time.process_time()
        report = certify_robustness(model, x, y, run_dir=run_dir, resume=True, progress=cache.progress, **options)
        if not clock.exists():
            write_json(clock, {"seconds": time.process_time() - begun})
    return report, float(read_json(clock, {"seconds": float})["seconds"]) / 60


def _network(
    kind: str, sigma: float, budget: Budget, seed: int, cache: TrainingCache, train: ArrayDataset
) -> tuple[SmoothedClassifier, dict[str, list[float]], dict[str, int]]:
    b, example = budget, train.batch(torch.arange(2))[0]
    shared = {"data": [b.data, len(train)], "network": [b.network, b.width], "seed": seed}
    training: dict[str, Any] = {"batch_size": b.batch_size, "lr": b.lr}
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, 0))
        network = build(b.network, example, train.n_classes, b.width).to(cache.device)
    on_noise = kind == "noise-trained"
    objective: Any = OnNoise(sigma) if on_noise else ClassifierObjective()
    epochs = b.epochs + (b.denoiser_epochs if on_noise else 0)
    settings = shared | {"objective": objective.describe(), "epochs": epochs} | training
    history = epochs_of(cache.train(settings, network, objective, train, epochs=epochs, seed=seed, **training))
    sizes = {"parameters of the classifier": _parameters(network)}
    key = derive_seed(seed, 2)
    if kind == "autoencoder":
        whole, found = _behind_autoencoder(network, sigma, b, train, seed, cache)
        sizes["parameters before it"] = _parameters(whole) - _parameters(network)
        return smooth(whole, sigma, seed=key), history | found, sizes
    if kind not in ("denoised", *DIFFUSIONS):
        return smooth(network, sigma, seed=key), history, sizes
    denoiser, found = _denoiser(kind, sigma, b, train, seed, cache)
    sizes["parameters before it"] = _parameters(denoiser)
    history |= {f"denoiser: {name}": losses for name, losses in found.items()}
    return smooth(network, sigma, denoiser, seed=key), history, sizes


def _denoiser(
    kind: str, sigma: float, b: Budget, train: ArrayDataset, seed: int, cache: TrainingCache
) -> tuple[GenerativeModel, dict[str, list[float]]]:
    """A denoiser of this noise, or a diffusion model of all noise and the same width; how it was trained."""
    shape = tuple(train.x.shape[1:])
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, 1))
        if kind == "denoised":
            model: GenerativeModel = Denoiser(shape, sigma_min=sigma, sigma_max=sigma, **b.denoiser)
        else:
            model = DIFFUSIONS[kind](shape, **b.denoiser)
    model.to(cache.device)
    of_this = {"sigma": sigma} if kind == "denoised" else {"model": kind}
    settings = {"data": [b.data, len(train)], "seed": seed, "denoiser": dict(b.denoiser)} | of_this
    training: dict[str, Any] = {"batch_size": b.batch_size, "epochs": b.denoiser_epochs}
    if kind == "ddgan":  # its parts take turns, at the rate of its source
        rows, _ = cache.fit_generative(
            settings | training, model, train, seed=seed, annealed=False, ema=0.995, **training
        )
    else:
        training["lr"] = b.denoiser_lr
        rows = cache.train(settings | training, model, GenerativeObjective(), train, seed=seed, **training)
    return model, epochs_of(rows)


def _behind_autoencoder(
    network: nn.Module, sigma: float, b: Budget, train: ArrayDataset, seed: int, cache: TrainingCache
) -> tuple[nn.Module, dict[str, list[float]]]:
    """The network, fortified at its input, of images as vectors; and how the autoencoder was trained.

    Its noise in training is that of the smoothing, which is there when certificates are made: so none is added then.
    """
    images = train.images()
    flat = nn.Sequential(nn.Unflatten(1, images.shape[1:]), network)
    rms = images.square().mean().sqrt().item()  # the unit of an autoencoder's noise
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, 1))
        net = fortify(
            flat,
            [],
            example_input=images[:2].flatten(1).to(cache.device),
            hidden=b.units,
            noise_std=sigma / rms,
            input_autoencoder=True,
            init="random",
        )
    settings = {"data": [b.data, len(train)], "network": [b.network, b.width], "seed": seed, "sigma": sigma}
    settings |= {"autoencoder": b.units, "epochs": [b.epochs, b.denoiser_epochs], "batch_size": b.batch_size}
    history = net.fit_autoencoders(
        (images.flatten(1),),
        epochs=b.denoiser_epochs,
        batch_size=b.batch_size,
        seed=seed,
        progress=cache.progress,
        run_dir=cache.folder(settings),
        resume=True,
    )
    return net.eval(), {f"autoencoder: {name}": losses for name, losses in epochs_of(history).items()}


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
