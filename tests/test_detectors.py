"""One contract for every detector, found in ``detectors.__all__``; then what is particular to each."""

import copy
import inspect
import itertools
import json
import re
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Critic, Gaussian, LinearGaussian, numpy_numbers
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import robustgen.detectors as room
from robustgen import fortify
from robustgen.attacks import EmbeddedInput, JointAttack
from robustgen.data import ArrayDataset
from robustgen.detectors import Detector, OutlierEstimator, ReconstructionError, as_sklearn
from robustgen.evaluation.metrics import auroc
from robustgen.fingerprint import fingerprint, model_fingerprint
from robustgen.generative import VAE, Denoiser, Pixels
from robustgen.lipschitz import lipschitz_bound, lipschitz_encoder
from robustgen.recurrent_networks import TextClassifier

DETECTORS = [n for n in room.__all__ if isinstance(getattr(room, n), type) and issubclass(getattr(room, n), Detector)]
DETECTORS.remove("Detector")


class Subspace(nn.Module):
    """What ReconstructionError needs of a fortified network, in closed form: distances to a plane, on two scales.

    It has all that a careless detector would disturb: batch norm, dropout, a frozen parameter, a hook and a
    non-persistent buffer.
    """

    layers = ("near", "far")

    def __init__(self, basis: torch.Tensor) -> None:
        super().__init__()
        self.basis = nn.Parameter(basis)  # (D, 2), orthonormal
        self.scale = nn.Parameter(torch.tensor(10.0, dtype=basis.dtype), requires_grad=False)
        self.norm = nn.BatchNorm1d(len(basis)).to(basis.dtype)
        self.drop = nn.Dropout()
        self.register_buffer("shift", torch.zeros((), dtype=basis.dtype), persistent=False)
        self.norm.register_forward_hook(lambda *_: None)
        self.drop.eval()  # flags differ between submodules

    def reconstruction_errors(self, x: torch.Tensor, relative: bool = False) -> dict[str, torch.Tensor]:
        h = self.drop(self.norm(x)) + self.shift
        error = (h @ self.basis @ self.basis.T - h).square().mean(1)
        if relative:
            error = error / h.square().mean(1)
        return {"near": error, "far": self.scale * error}


@dataclass
class Case:
    """A detector that is not fitted, how to build its model or models again, and data: here vectors near a plane."""

    detector: Detector
    again: Any
    differentiable: bool = True

    def sample(self, n: int, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        noise = 0.1 * torch.randn(n, 8, generator=generator, dtype=torch.float64)
        return z @ _basis().T + noise

    def labels(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(x), dtype=torch.int64)

    def noise(self, n: int) -> torch.Tensor:
        return 5 * torch.randn(n, 8, dtype=torch.float64)

    def farthest(self) -> torch.Tensor:
        return 1e3 * torch.ones(1, 8).double()

    def of_another_size(self) -> torch.Tensor:
        return torch.zeros(2, 9).double()

    def fitted(self) -> Detector:
        return self.detector.fit(self.sample(300, 1))

    def calibrated(self, n: int = 500) -> Detector:
        return self.fitted().calibrate(self.sample(n, 2))


class Positive(Case):
    """For scores that need noise to be brighter than the data."""

    def noise(self, n):
        return super().noise(n).abs()


class Clusters(Case):
    """Three classes of vectors, each around a point, as the model itself labels them."""

    def sample(self, n, seed):
        generator = torch.Generator().manual_seed(seed)
        centres = _centres()[torch.randint(3, (n,), generator=generator)]
        return centres + 0.3 * torch.randn(n, 8, generator=generator, dtype=torch.float64)

    def farthest(self):
        return -super().farthest()  # away from every centre

    def labels(self, x):
        return self.again().eval()(x).argmax(1).detach()


class Pictures(Case):
    """The vectors near a plane as images (1, 2, 4), grey and of little contrast."""

    def sample(self, n, seed):
        return 0.3 + 0.05 * super().sample(n, seed).view(n, 1, 2, 4)

    def noise(self, n):
        return 0.4 + 0.6 * torch.rand(n, 1, 2, 4, dtype=torch.float64)

    def farthest(self):
        return torch.ones(1, 1, 2, 4).double()

    def of_another_size(self):
        return torch.zeros(2, 1, 3, 3).double()


class Scribbles(Pictures):
    """Images (1, 8, 8), noisy in the upper part, black below."""

    def sample(self, n, seed):
        generator = torch.Generator().manual_seed(seed)
        x = torch.rand(n, 64, generator=generator, dtype=torch.float64)
        share = 0.5 * torch.rand(n, 1, generator=generator, dtype=torch.float64)
        return (x * (torch.arange(64) < 64 * share)).view(n, 1, 8, 8)

    def noise(self, n):
        return torch.rand(n, 1, 8, 8, dtype=torch.float64)

    def farthest(self):
        return self.noise(1)

    def of_another_size(self):
        return torch.zeros(2, 9).double()


def _basis() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(8, 2, generator=generator, dtype=torch.float64)).Q


def _fortified() -> nn.Module:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Linear(16, 3)).double()
    return fortify(net, ["0", "2"], example_input=torch.zeros(4, 8).double(), init="random")


def _centres() -> torch.Tensor:
    return 3 * torch.eye(8, dtype=torch.float64)[:3]


def _classifier() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Linear(16, 3)).double()


def _linear() -> nn.Module:
    torch.manual_seed(3)
    return nn.Linear(8, 3).double()


def _classifier_of_pictures() -> nn.Module:
    return nn.Sequential(nn.Flatten(), *_classifier())


class Bumps(nn.Module):
    """A classifier that is sure near the centres of its classes and nowhere else."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0, dtype=torch.float64))
        self.register_buffer("centres", _centres())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * torch.exp(-(x[:, None] - self.centres).square().sum(2) / 20)


def _norm() -> nn.Module:
    return nn.BatchNorm1d(8).double()


def _gaussian(spread: float = 1.0) -> nn.Module:
    covariance = 0.05**2 * (_basis() @ _basis().T + 0.01 * torch.eye(8, dtype=torch.float64))
    return Gaussian(torch.full((8,), 0.3, dtype=torch.float64), spread * covariance, (1, 2, 4))


class _GaussianEnergy(Gaussian):
    def energy(self, x: torch.Tensor) -> torch.Tensor:
        return -self._log_prob(x)


def _energy() -> nn.Module:
    model = _gaussian()
    return _GaussianEnergy(model.mean.detach(), model.covariance, model.shape)


class _AgainstUniform(Gaussian):
    """Beside the uniform density of the cube, which is 1."""

    def log_ratio(self, x):
        return self.log_prob(x)


def _ratio() -> nn.Module:
    gaussian = _gaussian()
    return _AgainstUniform(gaussian.mean.data, gaussian.covariance, (1, 2, 4))


def _of_pixels() -> nn.Module:
    model = _gaussian()
    model.pixels = Pixels(256, "nearest")
    return model


def _ensemble() -> list[nn.Module]:
    return [_gaussian(), _gaussian(1.5)]


def _latent() -> nn.Module:
    return LinearGaussian(0.05 * _basis(), 0.005, centre=0.3, shape=(1, 2, 4), reach=4.0)


def _critic() -> nn.Module:
    return Critic(torch.full((8,), 0.3, dtype=torch.float64), (1, 2, 4))


class PlaneAutoencoder(nn.Module):
    """Codes are coordinates in the plane that the pictures are near, N(0, I) there."""

    def __init__(self) -> None:
        super().__init__()
        self.basis = nn.Parameter(_basis())

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return (x.flatten(1) - 0.3) @ self.basis / 0.05

    def latent_log_prob(self, x: torch.Tensor) -> torch.Tensor:
        return -0.5 * self.encode(x).square().sum(1)

    def reconstruction_error(self, x: torch.Tensor) -> torch.Tensor:
        return (x.flatten(1) - 0.3 - 0.05 * self.encode(x) @ self.basis.T).square().mean(1)


class PlaneDenoiser(nn.Module):
    """The best denoiser of the pictures: Gaussians about the plane, and a little beside it."""

    sigma_min, sigma_max = 0.005, 10.0

    def __init__(self) -> None:
        super().__init__()
        self.basis = nn.Parameter(_basis())

    def denoise(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        v = x.flatten(1) - 0.3
        within = v @ self.basis @ self.basis.T
        kept = [s**2 / (s**2 + sigma**2) for s in (0.05, 0.005)]
        return (0.3 + kept[0] * within + kept[1] * (v - within)).view_as(x)


def _denoiser() -> nn.Module:
    """Untrained, for distances between its states."""
    torch.manual_seed(0)
    return Denoiser((1, 2, 4), width=4, levels=1).double().eval()


def _case(kind, detector, build, **about):
    """A factory: ``detector(model, **options)`` of a model that ``build`` makes."""
    return lambda **options: kind(detector(build(), **options), build, **about)


def _smoothed(inside):
    """SmoothedDetector of a detector, by few draws of little noise."""
    return lambda model, **options: room.SmoothedDetector(inside(model), **({"sigma": 0.3, "n": 150} | options))


# Each detector has at least one factory here; one without fails the test below.
FACTORIES = {
    "AutoencoderReconstruction": [_case(Pictures, room.AutoencoderReconstruction, _latent)],
    "CompressedSize": [_case(Scribbles, room.CompressedSize, nn.Identity, differentiable=False)],
    "DensityOfStates": [
        _case(Pictures, room.DensityOfStates, _latent),
        _case(Pictures, room.DensityOfStates, _ensemble),
        _case(Pictures, partial(room.DensityOfStates, estimator="svm"), _latent),
    ],
    "DensityRatio": [_case(Pictures, room.DensityRatio, _ratio)],
    "DiffusionReconstruction": [
        _case(Pictures, partial(room.DiffusionReconstruction, sigmas=[0.02, 0.1], steps=3), PlaneDenoiser)
    ],
    "Discriminator": [_case(Pictures, room.Discriminator, _critic)],
    "Energy": [_case(Clusters, room.Energy, Bumps)],
    "FeatureLikelihood": [
        _case(Clusters, partial(room.FeatureLikelihood, width=8, epochs=3), _classifier),
        _case(Clusters, partial(room.FeatureLikelihood, layer="0", blocks=2, width=8, epochs=3), _classifier),
    ],
    "FeatureTimesImageDistance": [
        _case(Pictures, partial(room.FeatureTimesImageDistance, k=3, batch_size=100), _classifier_of_pictures)
    ],
    "ImageDistortion": [_case(Pictures, partial(room.ImageDistortion, shortlist=9, batch_size=100), nn.Identity)],
    "InputComplexity": [_case(Pictures, room.InputComplexity, _of_pixels)],
    "KNearestFeatures": [_case(Clusters, partial(room.KNearestFeatures, k=3), _classifier)],
    "LatentDensity": [
        _case(Pictures, room.LatentDensity, PlaneAutoencoder),
        _case(Pictures, partial(room.LatentDensity, parts="latent"), PlaneAutoencoder),
        _case(Pictures, partial(room.LatentDensity, parts="reconstruction"), PlaneAutoencoder),
    ],
    "Likelihood": [
        _case(Pictures, room.Likelihood, _gaussian),
        _case(Pictures, partial(room.Likelihood, importance_samples=3), _latent),
    ],
    "LikelihoodRatio": [_case(Pictures, room.LikelihoodRatio, _ensemble)],
    "LiftMapDetect": [_case(Pictures, partial(room.LiftMapDetect, squares=4, steps=6), PlaneDenoiser)],
    "LikelihoodRegret": [_case(Pictures, partial(room.LikelihoodRegret, steps=5), _latent, differentiable=False)],
    "Mahalanobis": [
        _case(Clusters, room.Mahalanobis, _classifier),
        _case(Clusters, partial(room.Mahalanobis, layer="0"), _classifier),
        _case(Clusters, partial(room.Mahalanobis, root=True), _linear),
    ],
    "MaxLogit": [_case(Clusters, room.MaxLogit, Bumps)],
    "MaxSoftmax": [_case(Clusters, room.MaxSoftmax, Bumps)],
    "MeanBrightness": [_case(Positive, room.MeanBrightness, _norm)],
    "ModelEnergy": [_case(Pictures, room.ModelEnergy, _energy)],
    "MultiscaleScores": [_case(Pictures, partial(room.MultiscaleScores, scales=4, sigma_max=0.2), PlaneDenoiser)],
    "NearestDiffusionFeatures": [_case(Pictures, room.NearestDiffusionFeatures, _denoiser)],
    "NearestNeighbour": [
        _case(Case, room.NearestNeighbour, nn.Identity),
        _case(Case, room.NearestNeighbour, _norm),
        _case(Pictures, partial(room.NearestNeighbour, k=3), nn.Identity),
    ],
    "PCAResidual": [
        _case(Case, partial(room.PCAResidual, components=2), _norm),
        _case(Case, partial(room.PCAResidual, components=2, root=True), nn.Identity),
    ],
    "ReconstructionError": [
        _case(Case, ReconstructionError, lambda: Subspace(_basis())),
        _case(Case, ReconstructionError, _fortified),
    ],
    "SmoothedDetector": [
        _case(Case, _smoothed(room.NearestNeighbour), nn.Identity),
        _case(Clusters, _smoothed(room.MaxLogit), Bumps),
    ],
    "Typicality": [_case(Pictures, room.Typicality, _gaussian)],
    "WAIC": [_case(Pictures, room.WAIC, _ensemble)],
}
contract = pytest.mark.parametrize(
    "factory", [pytest.param(f, id=f"{n}-{i}") for n in DETECTORS for i, f in enumerate(FACTORIES.get(n, []))]
)


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_is_under_contract(name):
    assert FACTORIES.get(name), f"add a factory for {name} to FACTORIES"


@contract
def test_gross_noise_scores_higher(factory):
    case = factory()
    detector = case.fitted()
    assert auroc(detector.score(case.sample(300, 1)), detector.score(case.noise(200))) > 0.95


@contract
def test_scores_do_not_depend_on_the_batch(factory):
    case = factory()
    x = case.sample(40, 5)
    whole = case.fitted().score(x)
    assert whole.shape == (40,)
    order = torch.randperm(40)
    alone = torch.cat([case.detector.score(x[i : i + 1]) for i in range(40)])
    small = factory(batch_size=7).fitted()
    for other in (alone, case.detector.score(x[order])[order.argsort()], small.score(x)):
        torch.testing.assert_close(other, whole, rtol=1e-12, atol=1e-12)


def _moved(detector, x, radius, sign):
    """x changed by at most ``radius`` in L2, so that sign * score rises: by its gradient, and by chance where it has
    none."""
    start = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    found, images = x.clone(), x.ndim == 4
    for step in range(8):
        moved = found.clone().requires_grad_()
        (slope,) = torch.autograd.grad((sign * detector.score(moved)).sum(), moved)
        along = (slope if step else start).flatten(1)
        along = along / along.norm(dim=1, keepdim=True).clamp(min=1e-12)
        change = found - x + (0.4 * radius * along).view_as(x)
        length = change.flatten(1).norm(dim=1).clamp(min=radius).view(-1, *[1] * (x.ndim - 1))
        found = x + change * (radius / length)
        found = found.clamp(0, 1) if images else found
    return found


@contract
def test_no_attack_beats_a_certificate(factory):
    case, radius = factory(), 0.2
    detector = case.calibrated(200)
    smoothed = isinstance(detector, room.SmoothedDetector)
    if detector.lipschitz() is None and not smoothed:
        with pytest.raises(ValueError, match=r"no bound is known of how far a .* can be moved: SmoothedDetector"):
            detector.certified_flag(case.sample(2, 5), 0.05, 0.1)
        return
    x = torch.cat([case.sample(6, 5), case.noise(6)])
    lowest, highest = detector.certified_p_value(x, radius)
    certain = detector.certified_flag(x, 0.05, radius)
    at_rest = detector.p_value(x)
    assert bool(((lowest <= at_rest) & (at_rest <= highest)).all())
    assert torch.equal(certain, highest <= 0.05)
    assert bool(certain[6:].any())
    moved = {sign: _moved(detector, x, radius, sign) for sign in (1, -1)}
    assert bool((detector.p_value(moved[1]) >= lowest).all())
    assert bool((detector.p_value(moved[-1]) <= highest).all())
    assert bool(detector.flag(moved[-1])[certain].all())
    bounds = (0.0, 1.0) if x.ndim == 4 else (x.min().item() - 1, x.max().item() + 1)
    known = {"score": detector.score, "threshold": detector.calibration.threshold(0.05)}
    attack = JointAttack(eps=radius, norm="L2", bounds=bounds, formulation="score", steps=5, **known)
    nothing = lambda z: torch.zeros(len(z), 2, dtype=z.dtype) + 0 * z.flatten(1)[:, :1]
    found = attack(nothing, x[certain], torch.zeros(int(certain.sum()), dtype=torch.int64))
    assert bool(detector.flag(found).all())
    change = (detector.score(moved[1]) - detector.score(x)).abs().max()
    assert change > 0.1 * radius * (0.1 if smoothed else detector.lipschitz())  # it did try


@pytest.mark.parametrize("norm", ["L1", "Linf"])
def test_bounds_in_other_norms(norm):
    x = torch.rand(50, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for detector in (room.MeanBrightness(), room.NearestNeighbour(k=2), room.PCAResidual(components=3, root=True)):
        detector.fit(x[:40])
        change = torch.randn(10, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).sign()
        change *= 0.01
        length = change.flatten(1).abs().sum(1)[0] if norm == "L1" else 0.01
        inside = (x[40:] + change).clamp(0, 1)
        moved = (detector.score(inside) - detector.score(x[40:])).abs()
        assert bool((moved <= detector.lipschitz(norm) * length + 1e-9).all())
    brightness = room.MeanBrightness().fit(x)
    assert [brightness.lipschitz(n) for n in ("L1", "L2", "Linf")] == [1 / 16, 1 / 4, 1.0]


def test_a_bound_allows_for_rounding_of_large_features():
    """In float32 what a network adds to all features costs their last digits, however small the distances are."""
    torch.manual_seed(0)
    x = torch.rand(60, 1, 4, 4)
    large = nn.Sequential(nn.Flatten(), nn.Linear(16, 64))
    nn.init.constant_(large[1].bias, 3e5)
    exact = copy.deepcopy(large).double()
    for kind in (room.NearestNeighbour, lambda model: room.PCAResidual(model, 8, root=True)):
        rough = kind(large).fit(x[:40])
        true = kind(exact).fit(x[:40].double()).score(x[40:].double())
        lowest, highest = rough.score_bounds(x[40:], 0.0)
        assert bool(((rough.score(x[40:]).double() - true).abs() > 1e-4 * true).any())
        assert bool(((lowest <= true) & (true <= highest)).all())


@pytest.mark.parametrize("kind", [room.NearestNeighbour, lambda: room.SmoothedDetector(room.NearestNeighbour(), 0.2)])
def test_a_certificate_is_of_whatever_is_scored(kind):
    x = torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    detector = kind().fit(x[:30]).calibrate(x[30:])
    other = torch.ones(3, 1, 4, 4)
    flags = detector.certified_flag(other, 0.1, 0.1)
    for form in (other.numpy(), (other * 255).to(torch.uint8), (other, torch.zeros(3, dtype=torch.int64))):
        assert torch.equal(detector.certified_flag(form, 0.1, 0.1), flags)


def test_a_secret_seed_is_not_saved(tmp_path):
    x = torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    detector = room.SmoothedDetector(room.NearestNeighbour(), 0.2, 100, seed=None).fit(x[:30]).calibrate(x[30:])
    detector.save(tmp_path)
    assert str(detector._key) not in (tmp_path / "detector.json").read_text()
    again = room.SmoothedDetector.load(tmp_path, model=detector.model)
    assert again.seed is None
    assert not torch.equal(again.score(x[:5]), detector.score(x[:5]))


def test_activations_that_enlarge():
    assert lipschitz_bound(nn.Softplus(beta=3.0)) == 1
    assert lipschitz_bound(nn.Softplus(threshold=1.0)) is None  # where it becomes a line it jumps
    other = nn.ReLU()
    other.forward = lambda x: 10 * x
    assert lipschitz_bound(other) is None
    for activation, bound in ((nn.LeakyReLU(-3.0), 3.0), (nn.ELU(-2.0), 2.0), (nn.ELU(0.5), 1.0)):
        assert lipschitz_bound(activation) == bound
        z = torch.linspace(-3, 3, 6001, dtype=torch.float64)
        assert ((activation(z)[1:] - activation(z)[:-1]) / (z[1] - z[0])).abs().max() <= bound + 1e-9

    class Own(nn.LeakyReLU):
        def forward(self, x):
            return 10 * x

    assert lipschitz_bound(Own(2.0)) is None


def test_a_certificate_that_cannot_be_had():
    x = torch.rand(50, 1, 4, 4)
    detector = room.NearestNeighbour().fit(x).calibrate(x)
    with pytest.raises(ValueError, match="norm must be L2, L1, Linf, got 'L0'"):
        detector.lipschitz("L0")
    with pytest.raises(ValueError, match="radius must be a finite number >= 0, got -1"):
        detector.certified_flag(x, 0.05, -1.0)
    with pytest.raises(NotFittedError):
        room.NearestNeighbour().lipschitz()
    with pytest.raises(NotFittedError):
        room.NearestNeighbour().fit(x).certified_flag(x, 0.05, 0.1)


def test_a_certificate_is_of_eval_mode_and_leaves_the_network_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 3)).double()
    x = torch.randn(100, 8, dtype=torch.float64)
    detector = room.SmoothedDetector(room.MaxLogit(model), 0.3, n=100).fit(x)
    model.eval()
    lowest, _ = detector.score_bounds(x[:5], 0.1, "L2")
    model.train()
    before = model_fingerprint(model)
    assert torch.equal(detector.score_bounds(x[:5], 0.1, "L2")[0], lowest)
    assert model_fingerprint(model) == before
    assert model.training


@pytest.mark.parametrize("layer", [None, "1", "2"])
def test_mahalanobis_moves_by_whitening_times_what_comes_before_its_layer(layer):
    torch.manual_seed(0)
    x = torch.rand(200, 1, 4, 4)
    encoder = lipschitz_encoder(16, (8,), 4)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    nn.init.normal_(plain[3].weight, std=9.0)  # what comes after the features does not count
    for model in (encoder, plain):
        detector = room.Mahalanobis(model, layer, root=True).fit(x[:150]).calibrate(x[150:])
        low, high = detector.score_bounds(x[:20], 0.3)
        assert bool(low.isfinite().all())
        for sign in (1, -1):
            scores = detector.score(_moved(detector, x[:20], 0.3, sign))
            assert bool(((low <= scores) & (scores <= high)).all())
    assert room.Mahalanobis(encoder, layer).fit(x).lipschitz() is None
    before = lipschitz_bound(model[:3])
    assert detector.lipschitz() == pytest.approx(detector._longest * before)


def test_what_is_not_known_has_no_bound():
    x = torch.rand(50, 1, 4, 4)
    hooked = nn.Identity()
    hooked.register_forward_hook(lambda module, args, out: 10 * out)
    for detector in (
        room.MeanBrightness(hooked),
        room.NearestNeighbour(hooked),
        room.NearestNeighbour(nn.AdaptiveAvgPool2d(16)),
        room.NearestNeighbour(nn.Sequential(nn.Flatten(), nn.GELU())),
    ):
        assert detector.fit(x).lipschitz() is None
    assert room.MeanBrightness().fit(torch.rand(50, 6, 4)).lipschitz() is None  # sequences may be of another length
    with pytest.raises(ValueError, match="of how far a NearestNeighbour of sequences can be moved"):
        room.NearestNeighbour().fit(torch.rand(50, 6, 4)).score_bounds(torch.rand(2, 6, 4), 0.1)


def test_smoothed_percentiles_of_a_linear_score_are_exact():
    """A linear score under Gaussian noise is Gaussian: a percentile at distance r moves by the slope times r."""
    x = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    detector = room.SmoothedDetector(room.MeanBrightness(), 0.5, n=20_000, batch_size=20_000).fit(x)
    assert torch.allclose(detector.score(x[:3]), x[:3].flatten(1).mean(1), atol=0.01)
    lowest, highest = detector.score_bounds(x[:3], 0.4, "L2")
    slope = 1 / 4
    assert torch.allclose(
        highest - detector.score(x[:3]), torch.full((3,), slope * 0.4, dtype=torch.float64), atol=0.012
    )
    assert torch.allclose(
        detector.score(x[:3]) - lowest, torch.full((3,), slope * 0.4, dtype=torch.float64), atol=0.012
    )
    assert bool((highest - detector.score(x[:3]) > slope * 0.4).all())  # and a little more, for what chance may do


def test_few_draws_certify_nothing_far_away():
    x = torch.rand(40, 1, 4, 4)
    detector = room.SmoothedDetector(room.MeanBrightness(), 0.1, n=10).fit(x)
    lowest, highest = detector.score_bounds(x[:2], 1.0, "L2")
    assert lowest.tolist() == [-float("inf")] * 2
    assert highest.tolist() == [float("inf")] * 2


@contract
def test_differentiable_in_x(factory):
    case = factory()
    detector = case.fitted()
    x = case.sample(6, 5).requires_grad_()
    if not case.differentiable:
        return
    assert torch.autograd.gradcheck(detector.score, x)
    jacobian = torch.autograd.functional.jacobian(detector.score, x.detach()).abs().flatten(2).sum(-1)  # (6, 6)
    assert (jacobian.diagonal() > 0).all()
    assert (jacobian - jacobian.diagonal().diag()).max() == 0  # each score depends on its own input only
    with torch.no_grad():
        assert not detector.score(x).requires_grad
    assert not detector.score(x.detach()).requires_grad
    assert detector.score(x).detach().equal(detector.score(x.detach()))


@contract
def test_p_values_are_super_uniform_on_fresh_data(factory):
    case = factory()
    n, m = 1000, 2000
    p = case.calibrated(n).p_value(case.sample(m, 3))
    assert p.shape == (m,)
    assert p.dtype == torch.float64
    for a in (0.01, 0.05, 0.2, 0.5):
        flagged = case.detector.flag(case.sample(m, 3), a)
        assert flagged.dtype == torch.bool
        assert flagged.equal(p <= a)
        slack = 4 * (a * (1 - a) * (1 / n + 1 / m)) ** 0.5  # of one calibration set and one test set
        assert flagged.double().mean() <= a + slack
    assert case.detector.p_value(case.farthest()).item() == 1 / (n + 1)


@contract
def test_too_few_calibration_scores(factory):
    case = factory()
    detector = case.calibrated(18)
    with pytest.raises(ValueError, match="19 are needed"):
        detector.flag(case.sample(3, 3), fpr=0.05)
    assert detector.flag(case.sample(3, 3), fpr=0.1).shape == (3,)


@contract
def test_stages(factory, tmp_path):
    case = factory()
    x = case.sample(30, 4)
    for act in (case.detector.score, case.detector.calibrate, case.detector.p_value, case.detector.save):
        with pytest.raises(NotFittedError, match="not fitted"):
            act(tmp_path if act == case.detector.save else x)
    detector = case.fitted()
    for act in (detector.p_value, detector.flag):
        with pytest.raises(NotFittedError, match="not calibrated"):
            act(x)
    assert detector.calibrate(x) is detector
    detector.flag(x, 0.1)
    detector.fit(x)  # other statistics: the old calibration is void
    with pytest.raises(NotFittedError, match="not calibrated"):
        detector.flag(x)


@contract
def test_save_and_load(factory, tmp_path):
    case = factory()
    x = case.sample(20, 4)
    case.fitted().save(tmp_path / "fitted")
    assert room.load(tmp_path / "fitted", model=case.again()).calibration_ is None
    case.calibrated().save(tmp_path)
    for loaded in (room.load(tmp_path, model=case.again()), type(case.detector).load(tmp_path, model=case.again())):
        assert type(loaded) is type(case.detector)
        assert loaded.config == case.detector.config
        assert loaded.score(x).equal(case.detector.score(x))
        assert loaded.p_value(x).equal(case.detector.p_value(x))
    assert {p.name for p in tmp_path.iterdir()} == {"detector.json", "detector.safetensors", "fitted"}

    other = case.again()
    for tensor in itertools.islice(nn.ModuleList(other if isinstance(other, list) else [other]).buffers(), 1):
        tensor.add_(1e-3)
        with pytest.raises(ValueError, match="other weights"):
            room.load(tmp_path, model=other)
    record = json.loads((tmp_path / "detector.json").read_text())
    (tmp_path / "detector.json").write_text(json.dumps(record | {"config": {"nothing": 1}}))
    with pytest.raises(ValueError, match="nothing is no argument of"):
        room.load(tmp_path, model=case.again())
    (tmp_path / "detector.json").write_text(json.dumps(record))
    (tmp_path / "detector.safetensors").write_bytes((tmp_path / "fitted" / "detector.safetensors").read_bytes())
    with pytest.raises(ValueError, match="same save"):
        room.load(tmp_path, model=case.again())
    with pytest.raises(FileNotFoundError):
        room.load(tmp_path / "nowhere", model=case.again())
    for wrong, message in (({"detector": "Mahalanobi"}, "unknown detector"), ({"format": 0}, "format 1")):
        (tmp_path / "detector.json").write_text(json.dumps(record | wrong))
        with pytest.raises(ValueError, match=message):
            room.load(tmp_path, model=case.again())


@contract
def test_the_model_is_left_as_it_was(factory):
    case = factory()
    model = case.detector.model
    for p in model.parameters():
        p.grad = torch.ones_like(p)

    def state():
        return (
            model_fingerprint(model),
            [m.training for m in model.modules()],
            [(p.requires_grad, None if p.grad is None else p.grad.sum().item()) for p in model.parameters()],
            [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
            torch.get_rng_state().tolist(),
            torch.is_grad_enabled(),
        )

    before = state()
    x = case.sample(50, 4)
    case.calibrated().flag(x)
    x.requires_grad_()
    if case.differentiable:
        case.detector.score(x).sum().backward()
    assert state() == before
    case.detector.statistics_.pop("like")  # as saved before it was kept
    with pytest.raises(ValueError, match=r"the model fails on inputs of shape|of images|have 9 features each"):
        case.detector.score(case.of_another_size())  # fails inside the model
    assert state() == before


@contract
def test_wrong_inputs(factory):
    case = factory()
    x = case.sample(30, 4)
    holed = x.clone()
    holed.flatten(1)[3, 1] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        case.detector.fit(holed)
    detector = case.calibrated(100)
    for act in (detector.score, detector.p_value, detector.flag):
        with pytest.raises(ValueError, match="NaN"):
            act(holed)
        with pytest.raises(ValueError, match="batch"):
            act(x.flatten())
        with pytest.raises(TypeError, match="float32 or float64"):
            act(x.long())
        assert torch.equal(act(x.numpy()), act(x))
    for data in ((x, torch.arange(30)), DataLoader(TensorDataset(x), 7, shuffle=True)):
        assert torch.equal(detector.score(data), detector.score(x))
    with pytest.raises(ValueError, match="NaN"):
        detector.calibrate(holed)
    for act in (detector.fit, detector.calibrate):
        with pytest.raises(ValueError, match="empty"):
            act(x[:0])
        with pytest.raises(TypeError, match="pass a tensor"):
            act(3)


@contract
def test_numbers_that_are_none(factory):
    for parameter in inspect.signature(type(factory().detector)).parameters.values():
        if isinstance(parameter.default, int | float):  # flags too
            with pytest.raises(TypeError, match=f"{parameter.name} must be"):
                factory(**{parameter.name: "2"})
        if type(parameter.default) is int:
            with pytest.raises(TypeError, match=f"{parameter.name} must be an integer, got 2.5"):
                factory(**{parameter.name: 2.5})
            with pytest.raises(ValueError, match=f"{parameter.name} must be at least"):
                factory(**{parameter.name: -1})
        if type(parameter.default) is float:
            with pytest.raises(ValueError, match=f"{parameter.name} must be"):
                factory(**{parameter.name: float("nan")})


@contract
def test_numbers_of_numpy_are_numbers(factory):
    config = factory().detector.config
    again = factory(**numpy_numbers(config)).detector
    assert json.dumps(again.config) == json.dumps(config)


@contract
def test_empty_batch(factory):
    case = factory()
    detector = case.calibrated(100)
    empty = case.sample(0, 1)
    assert detector.score(empty).shape == detector.p_value(empty).shape == (0,)
    assert detector.flag(empty).dtype == torch.bool
    assert detector.score(empty.requires_grad_()).requires_grad


@contract
def test_every_kind_of_data(factory):
    case = factory()
    x = case.sample(300, 1)
    y = case.labels(x)
    expected = case.fitted().score(x)

    class Indexed:
        def __len__(self):
            return 300

        def batch(self, indices):
            return x[indices], None

    for data in ((x, y), Indexed(), torch.utils.data.TensorDataset(x, y)):
        assert factory().detector.fit(data).score(x).equal(expected)
    assert factory().detector.fit(x, y).score(x).equal(expected)
    assert case.detector.calibrate(Indexed()).calibration.scores.equal(expected.sort().values)


@contract
def test_works_under_inference_mode(factory):
    case = factory()
    x = case.sample(50, 4)
    with torch.inference_mode():
        inside = case.calibrated().score(x)
    if case.differentiable:
        case.detector.score(x.requires_grad_()).sum().backward()  # what was learned there still serves autograd
    torch.testing.assert_close(inside, case.detector.score(x.detach()), rtol=1e-12, atol=1e-12)


@contract
def test_as_sklearn(factory):
    case = factory()
    x = case.sample(300, 4)
    estimator = clone(as_sklearn(case.detector, fpr=0.1))
    assert isinstance(estimator, OutlierEstimator)
    with pytest.raises(NotFittedError):
        estimator.predict(x.numpy())
    assert set(estimator.fit_predict(x.numpy())) == {-1, 1}
    assert abs((estimator.predict(case.sample(600, 6).numpy()) == -1).mean() - 0.1) < 0.08
    inner = estimator.detector_
    assert len(inner.calibration) == 90
    assert inner.model is estimator.detector.model
    assert estimator.detector.statistics_ is None
    np.testing.assert_array_equal(estimator.score_samples(x.numpy()), -inner.score(x).numpy())
    np.testing.assert_array_equal(estimator.predict(x.numpy()) == -1, inner.flag(x, 0.1).numpy())
    np.testing.assert_array_equal(estimator.decision_function(x.numpy()) < 0, inner.flag(x, 0.1).numpy())
    with pytest.raises(ValueError, match="are needed"):
        as_sklearn(case.detector, fpr=0.001).fit(x.numpy())
    with pytest.raises(ValueError, match="NaN"):
        estimator.predict(np.full_like(x[:2].numpy(), np.nan))
    at_once = as_sklearn(case.calibrated(), shape=tuple(x.shape[1:]))
    np.testing.assert_array_equal(at_once.predict(x.flatten(1).numpy()) == -1, case.detector.flag(x, 0.05).numpy())


@pytest.mark.parametrize(
    "name",
    [
        "CompressedSize",
        "Energy",
        "FeatureTimesImageDistance",
        "ImageDistortion",
        "KNearestFeatures",
        "Mahalanobis",
        "MaxLogit",
        "MaxSoftmax",
        "MeanBrightness",
        "NearestNeighbour",
        "PCAResidual",
    ],
)
def test_a_generative_model_is_not_called_on_images(name):
    with pytest.raises(TypeError, match=f"{name} calls its model on images; a Gaussian is for Likelihood"):
        getattr(room, name)(_gaussian())


@contract
def test_other_inputs_than_those_of_fit_are_refused(factory):
    case = factory()
    detector = case.calibrated(100)
    x = case.sample(5, 4)
    narrow = x[..., :1]  # would be broadcast
    for other in (case.of_another_size(), narrow, x[:, None], x.flatten(1)):
        if other.shape == x.shape:
            continue
        for act in (detector.score, detector.calibrate, detector.p_value, detector.flag):
            with pytest.raises(ValueError, match=r"is of (images|vectors) \(.*\), as in fit; got \("):
                act(other)
    estimator = as_sklearn(detector)
    with pytest.raises(ValueError, match="as in fit"):
        estimator.predict(narrow.numpy())

    class Mixed:
        """A batch of two shapes, one after the other."""

        def __len__(self):
            return 2 * detector.batch_size

        def batch(self, indices):
            like = x if int(indices[0]) == 0 else narrow
            return like[:1].expand(len(indices), *like.shape[1:]), None

    with pytest.raises(ValueError, match="of one shape, got"):
        case.detector.fit(Mixed())


@contract
def test_what_the_model_does_not_take_is_named_in_fit(factory):
    """Whatever ``fit`` refuses it refuses in one line that names the inputs, as ``score`` does."""
    case = factory()
    x = case.sample(30, 4)
    wider = torch.rand(30, *x.shape[1:-1], 9).double()
    for other in (x.float(), wider):
        refused = None
        try:
            case.detector.fit(other)
        except ValueError as error:
            refused = str(error)
        assert refused is None or re.search(
            r"the model fails on inputs of shape \(.*\), torch\.float|is of images", refused
        )


def test_channels_and_dtype_that_do_not_fit_are_named_in_fit():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3))
    x = torch.rand(9, 3, 8, 8)
    for build in (room.MaxSoftmax, room.Mahalanobis, partial(room.KNearestFeatures, k=3), room.PCAResidual):
        for other, named in (
            (x[:, :1], r"\(1, 8, 8\), torch\.float32"),
            (x.double(), r"\(3, 8, 8\), torch\.float64"),
        ):
            with pytest.raises(ValueError, match=f"the model fails on inputs of shape {named}"):
                build(net).fit(other)


def test_images_are_held_to_the_shape_and_range_of_those_of_fit(tmp_path):
    x = torch.rand(20, 3, 4, 6)
    for detector in (room.NearestNeighbour(), room.MeanBrightness()):
        detector.fit(x).calibrate(x)
        for other in (x.permute(0, 2, 3, 1), x.flatten(1), x[..., 1:]):
            for act in (detector.score, detector.calibrate, detector.flag):
                with pytest.raises(ValueError, match=r"is of images \(3, 4, 6\), as in fit; got \("):
                    act(other)
        detector.save(tmp_path)
        for one in (detector, room.load(tmp_path, model=nn.Identity())):
            with pytest.raises(ValueError, match=r"outside the bounds \(0, 1\) of the data of fit"):
                one.score(255 * x)
            assert one.score(x + 1e-4).isfinite().all()
        assert detector.fit(2 * x - 1).score(255 * x).isfinite().all()  # in no range in particular
        for name in ("like", "in_unit_range"):  # as saved before they were kept
            detector.statistics_.pop(name, None)
        assert detector.score(x.permute(0, 2, 3, 1)).isfinite().all()


def test_sequences_may_be_of_another_length_where_the_model_takes_them():
    x = torch.rand(20, 4, 6)  # four steps of six numbers, or four channels at six positions
    detector = room.MeanBrightness().fit(x)
    for other in (x[:, :2], x[..., :3]):
        torch.testing.assert_close(detector.score(other), other.mean((1, 2)))
    for other in (x[:, :2, :3], x.mT, x[..., :1], x[:, :1]):
        with pytest.raises(ValueError, match=r"is of sequences \(4, 6\), as in fit; got"):
            detector.score(other)
    for flat in (room.NearestNeighbour(), room.PCAResidual(components=2)):
        with pytest.raises(ValueError, match="the inputs have 12 features each, those of fit had 24"):
            flat.fit(x).score(x[:, :2])
    lstm = TextClassifier("lstm", units=8)
    view = EmbeddedInput(lstm.eval())
    e = view.embed(torch.randint(27, (30, 7)))
    for detector in (
        room.Energy(view),
        room.KNearestFeatures(view, k=3),
        room.KNearestFeatures(view, "model.rnn", k=3),
    ):
        assert detector.fit(e).score(e[:, :4]).shape == (30,)
        with pytest.raises(ValueError, match=r"is of sequences \(7, 27\), as in fit; got \(27, 7\)"):
            detector.score(e.mT)


@pytest.mark.parametrize(
    "record", [{"tensors": None}, {"config": 3}, {"config": {"layer": 5}}, {"scores": ["a"]}, {"scores": 1}]
)
def test_files_that_were_tampered_with_are_named(record, tmp_path):
    net = _classifier()
    room.KNearestFeatures(net, k=1).fit(torch.rand(9, 8).double()).save(tmp_path)
    path = tmp_path / "detector.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | record))
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        room.load(tmp_path, model=net)


@pytest.mark.parametrize("inside", [False, True])
def test_detectors_saved_under_a_former_name_load(inside, tmp_path):
    net, x = _classifier_of_pictures(), torch.rand(30, 1, 2, 4, dtype=torch.float64)
    former, now = "FeaturesTimesDistortion", room.FeatureTimesImageDistance
    detector = now(net, k=3, shortlist=5)
    detector = (room.SmoothedDetector(detector, sigma=0.1, n=20) if inside else detector).fit(x).calibrate(x)
    detector.save(tmp_path)
    path = tmp_path / "detector.json"
    path.write_text(path.read_text().replace(now.__name__, former))
    assert path.read_text().count(former) == 1
    loaded = room.load(tmp_path, model=net)
    assert type(loaded.detector if inside else loaded) is now
    assert loaded.p_value(x[:4]).equal(detector.p_value(x[:4]))
    assert type(detector).load(tmp_path, model=net).score(x[:4]).equal(detector.score(x[:4]))
    with pytest.raises(ValueError, match="not a ImageDistortion"):
        room.ImageDistortion.load(tmp_path, model=net)


def test_images_of_older_detectors_are_held_to_their_shape(tmp_path):
    x = torch.rand(20, 3, 4, 6)
    detector = room.MeanBrightness().fit(x)
    del detector.statistics_["like"]
    detector.statistics_["image_shape"] = torch.tensor([3, 4, 6])
    detector.save(tmp_path)
    record = json.loads((tmp_path / "detector.json").read_text())
    del record["scores"]
    (tmp_path / "detector.json").write_text(json.dumps(record))
    loaded = room.load(tmp_path, model=nn.Identity())
    assert loaded.score(x).equal(x.mean((1, 2, 3)))
    with pytest.raises(ValueError, match=r"is of images \(3, 4, 6\)"):
        loaded.score(x.mT)


class Wrapped(nn.Module):
    """What it does to its input and its output is in plain attributes."""

    def __init__(self, net, mean=0.0, scale=1.0, levels=256):
        super().__init__()
        self.net, self.mean, self.scale, self.levels = net, torch.tensor(mean), scale, levels

    def forward(self, x):
        x = (x * self.levels).round() / self.levels
        self.seen = x  # a cache is no setting
        return self.net(x - self.mean) * self.scale


@pytest.mark.parametrize("other", [{"mean": 0.1}, {"scale": 1.1}, {"levels": 4}])
def test_a_model_that_differs_in_an_attribute_is_another_one(other, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    x = torch.rand(40, 3, 4, 4)
    for name, build in (("energy", room.Energy), ("softmax", room.MaxSoftmax), ("brightness", room.MeanBrightness)):
        build(Wrapped(net)).fit(x).calibrate(x).save(tmp_path / name)
        assert room.load(tmp_path / name, model=Wrapped(net)).p_value(x).shape == (40,)
        with pytest.raises(ValueError, match="fitted on a model that gives other scores; fit and calibrate again"):
            room.load(tmp_path / name, model=Wrapped(net, **other))


def test_scores_of_other_machines_differ_in_their_last_digits(tmp_path):
    net = nn.Linear(8, 3)
    room.Energy(net).fit(torch.rand(9, 8)).save(tmp_path)
    record = json.loads((tmp_path / "detector.json").read_text())
    for factor, refused in ((1.0003, False), (1.02, True)):
        changed = record | {"scores": [factor * score for score in record["scores"]]}
        (tmp_path / "detector.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match="other scores") if refused else nullcontext():
            room.load(tmp_path, model=net)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_packed_weights_tell_models_apart():
    def quantised(seed):
        torch.manual_seed(seed)
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 5)), {nn.Linear})

    assert model_fingerprint(quantised(1)) == model_fingerprint(quantised(1)) != model_fingerprint(quantised(2))
    with pytest.raises(ValueError, match="a scale over the whole batch"):  # of its activations
        room.Energy(quantised(1)).fit(torch.rand(9, 8))


def test_a_compiled_network_is_that_network(tmp_path):
    net, x = _classifier(), torch.rand(9, 8).double()
    compiled = torch.compile(net, backend="eager")
    assert model_fingerprint(compiled) == model_fingerprint(net)
    room.Energy(compiled).fit(x).save(tmp_path)
    assert room.load(tmp_path, model=net).score(x).allclose(room.Energy(net).fit(x).score(x))


def test_models_of_binary_images_are_asked_about_such(tmp_path):
    torch.manual_seed(0)
    vae = VAE((1, 4, 4), latent_dim=2, architecture="mlp", width=4).eval()
    room.Likelihood(vae).fit(torch.ones(5, 1, 4, 4)).save(tmp_path)
    assert len(json.loads((tmp_path / "detector.json").read_text())["scores"]) == 4
    assert room.load(tmp_path, model=vae).score(torch.ones(1, 1, 4, 4)).shape == (1,)


# ReconstructionError


def test_reconstruction_score_is_the_sum_of_standardised_errors():
    case = FACTORIES["ReconstructionError"][0]()
    net, x, fresh = case.detector.net, case.sample(300, 1), case.sample(20, 2)
    net.eval()
    for relative in (False, True):
        for layers in (None, "far", ["far", "near"]):
            detector = ReconstructionError(net, layers, relative=relative).fit(x)
            known, new = (net.reconstruction_errors(v, relative=relative) for v in (x, fresh))
            expected = sum((new[k] - known[k].mean()) / known[k].std(correction=0) for k in detector.layers)
            torch.testing.assert_close(detector.score(fresh), expected.detach())


def test_one_layer_ranks_as_its_error_does():
    case = FACTORIES["ReconstructionError"][0]()
    detector = ReconstructionError(case.detector.net, ["near"]).fit(case.sample(100, 1))
    x = case.sample(50, 2)
    errors = case.detector.net.eval().reconstruction_errors(x)["near"]
    assert detector.score(x).argsort().equal(errors.argsort())


def test_wrong_layers():
    net = Subspace(_basis())
    with pytest.raises(ValueError, match="unknown layer 'nearr'; did you mean 'near'"):
        ReconstructionError(net, ["nearr"])
    for layers in ([], ["near", "near"]):
        with pytest.raises(ValueError, match="each once"):
            ReconstructionError(net, layers)
    with pytest.raises(TypeError, match="fortified network"):
        ReconstructionError(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"nn\.Module"):
        ReconstructionError(lambda x: x)
    with pytest.raises(ValueError, match="batch_size"):
        ReconstructionError(net, batch_size=0)


def test_constant_errors_stay_finite():
    class Constant(Subspace):
        def reconstruction_errors(self, x, relative=False):
            errors = super().reconstruction_errors(x, relative)
            return errors | {"near": errors["near"] * 0, "far": errors["far"] * 0 + 2}

    case = FACTORIES["ReconstructionError"][0]()
    assert ReconstructionError(Constant(_basis())).fit(case.sample(9, 1)).score(case.sample(5, 2)).tolist() == [0.0] * 5
    one = case.detector.fit(case.sample(1, 1))
    assert one.score(case.sample(5, 2)).isfinite().all()


def test_a_stochastic_network_is_refused():
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    net = fortify(net, ["1"], example_input=torch.zeros(4, 8), noise_at_test=True, init="random")
    detector = ReconstructionError(net)
    with pytest.raises(ValueError, match="stochastic"):
        detector.fit(torch.rand(20, 8))
    with pytest.raises(NotFittedError):
        detector.score(torch.rand(20, 8))


def test_nan_scores_are_refused():
    class Broken(Subspace):
        def reconstruction_errors(self, x, relative=False):
            return {k: e / 0 * 0 for k, e in super().reconstruction_errors(x).items()}

    with pytest.raises(ValueError, match="NaN scores"):
        ReconstructionError(Broken(_basis())).fit(torch.rand(9, 8).double())


@pytest.mark.filterwarnings("ignore:the fortified network decides")
def test_a_trained_fortified_network_sees_noise_and_inversion():
    from robustgen.data import digits

    x = digits("all").images().flatten(1)  # (1797, 64)
    y = digits("all").y
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    adam = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(60):
        adam.zero_grad()
        nn.functional.cross_entropy(net(x[:900]), y[:900]).backward()
        adam.step()
    net = fortify(net, ["1"], example_input=x[:2], hidden=32)
    net.fit_autoencoders(x[:900], epochs=20, progress=False)
    detector = ReconstructionError(net).fit(ArrayDataset(x[:900])).calibrate(x[900:1350])
    fresh = x[1350:]
    assert detector.flag(fresh, 0.05).double().mean() < 0.1
    assert auroc(detector.score(fresh), detector.score(torch.rand_like(fresh))) > 0.95
    assert auroc(detector.score(fresh), detector.score(1 - fresh)) > 0.95


def test_fingerprint_covers_every_tensor():
    net = Subspace(_basis())
    first = model_fingerprint(net)
    assert first == model_fingerprint(Subspace(_basis()).train())
    net.shift += 1  # not in the state_dict
    assert model_fingerprint(net) != first
    assert fingerprint({"a": torch.zeros(0, 2)}) != fingerprint({"a": torch.zeros(2, 0)})
    image = torch.rand(2, 3, 4, 4)
    assert fingerprint({"a": image}) == fingerprint({"a": image.to(memory_format=torch.channels_last)})
    assert model_fingerprint(nn.Linear(2, 2).bfloat16())


def test_fingerprint_covers_the_settings_that_no_repr_shows():
    def vae(quantization):
        torch.manual_seed(0)
        return VAE((1, 4, 4), latent_dim=2, architecture="mlp", width=4, quantization=quantization)

    first, other = vae("stochastic"), vae("nearest")
    assert repr(first) == repr(other)
    assert model_fingerprint(first) == model_fingerprint(vae("stochastic")) != model_fingerprint(other)
    assert model_fingerprint(nn.ModuleList([first])) != model_fingerprint(nn.ModuleList([other]))
    # what was saved with a model that has no config still loads
    constant = nn.Linear(2, 1)
    constant.load_state_dict({"weight": torch.ones(1, 2), "bias": torch.zeros(1)})
    assert model_fingerprint(constant) == "36988515da7c9af3239937bf43b17241"
