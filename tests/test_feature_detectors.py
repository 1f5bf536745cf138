"""Detectors in a classifier's features or in pixels, against brute force and closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist, mahalanobis
from torch import nn

from robustgen.detectors import (
    Energy,
    KNearestFeatures,
    Mahalanobis,
    MaxLogit,
    MaxSoftmax,
    MeanBrightness,
    NearestNeighbour,
    PCAResidual,
)
from robustgen.detectors.features import FeatureExtractor
from robustgen.detectors.neighbours import nearest_distances


def classifier(seed=0, width=5):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3)).double()


def inputs(n, seed=1, d=4):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# features


class Crossed(nn.Module):
    """Calls its layers in another order than it defines them, one activation in place."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(6, 2)
        self.conv = nn.Conv2d(1, 3, 2)
        self.first = nn.Linear(3, 6)
        self.unused = nn.Linear(1, 1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.last(self.act(self.first(self.conv(x).mean((2, 3)))))


def test_features_are_the_input_of_the_linear_layer_that_makes_the_logits():
    torch.manual_seed(0)
    net, x = Crossed(), torch.rand(5, 1, 4, 4)
    pooled = net.conv(x).mean((2, 3))
    for layer, expected in (
        (None, net.first(pooled).relu()),
        ("first", net.first(pooled)),  # before the activation that works in place
        ("conv", pooled),
        ("act", net.first(pooled).relu()),
    ):
        features, logits = FeatureExtractor(net, layer)(x)
        assert features.equal(expected)
        assert logits.equal(net(x))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_layers_that_cannot_be():
    with pytest.raises(ValueError, match="no layer 'convv'; did you mean 'conv'"):
        FeatureExtractor(Crossed(), "convv")
    with pytest.raises(ValueError, match=r"ReLU has no nn.Linear"):
        KNearestFeatures(nn.ReLU())
    with pytest.raises(ValueError, match="is not called"):
        FeatureExtractor(Crossed(), "unused")(torch.rand(1, 1, 4, 4))
    with pytest.raises(ValueError, match=r"got \(2, 1, 3, 4, 4\) for 2 inputs"):
        FeatureExtractor(nn.Sequential(nn.Linear(4, 2)))(torch.rand(2, 1, 3, 4, 4))


# distances


def test_nearest_distances_against_brute_force():
    x, bank = inputs(40), inputs(300, seed=2)
    expected = np.sort(cdist(x.numpy(), bank.numpy()), axis=1)
    for k in (1, 7, 300):
        np.testing.assert_allclose(nearest_distances(x, bank, k).numpy(), expected[:, :k], rtol=1e-12)


def test_distances_of_close_points_keep_their_digits():
    """|x|^2 - 2 x.b + |b|^2 of these is all rounding in float32."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(100, 784, generator=generator)
    bank = points.repeat(6, 1) + 1e-4 * torch.randn(600, 784, generator=generator)  # six almost equal distances
    x = (points[:20] + 1e-4 * torch.randn(20, 784, generator=generator)).requires_grad_()
    expected = torch.from_numpy(cdist(x.detach().double().numpy(), bank.double().numpy()).min(1))
    found = nearest_distances(x, bank, 1)[:, 0]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    squares = x.square().sum(1)[:, None] - 2 * x @ bank.T + bank.square().sum(1)
    expanded = squares.clamp(min=0).sqrt().amin(1)
    assert (expanded.double() / expected - 1).abs().max() > 0.1  # what the test is about
    found.sum().backward()
    torch.testing.assert_close(x.grad.norm(dim=1), torch.ones(20))
    at_zero = bank[:2].clone().requires_grad_()
    nearest_distances(at_zero, bank, 1).sum().backward()
    assert at_zero.grad.eq(0).all()


def test_neighbours_far_from_the_origin():
    generator = torch.Generator().manual_seed(0)
    bank, x = (100 + 0.1 * torch.randn(n, 128, generator=generator) for n in (5000, 50))
    expected = torch.cdist(x.double(), bank.double()).amin(1)
    torch.testing.assert_close(nearest_distances(x, bank, 1)[:, 0].double(), expected, rtol=1e-6, atol=0)


def test_nearest_neighbour_in_pixels_and_behind_a_model():
    known, x = inputs(200, d=12).view(200, 3, 2, 2), inputs(30, seed=2, d=12).view(30, 3, 2, 2)
    pixels = NearestNeighbour(batch_size=7).fit(known).score(x)
    expected = cdist(x.flatten(1).numpy(), known.flatten(1).numpy()).min(1)
    np.testing.assert_allclose(pixels.numpy(), expected, rtol=1e-12)
    assert NearestNeighbour().fit(known).score(known).tolist() == [0.0] * 200
    halved = nn.Sequential(nn.Flatten(), nn.Linear(12, 12, bias=False)).double()
    halved[1].weight.data = 0.5 * torch.eye(12).double()
    torch.testing.assert_close(NearestNeighbour(halved).fit(known).score(x), 0.5 * pixels)


def test_k_nearest_features_against_brute_force():
    net, known, x = classifier(), inputs(100), inputs(20, seed=2)

    def features(v):
        h = net[:2](v).detach().numpy()
        return h / np.linalg.norm(h, axis=1, keepdims=True)

    expected = np.sort(cdist(features(x), features(known)), axis=1)
    for k in (1, 5, 100):
        score = KNearestFeatures(net, k=k).fit(known).score(x)
        np.testing.assert_allclose(score.numpy(), expected[:, k - 1], rtol=1e-9, atol=1e-12)
    net[2] = nn.Identity()  # scores do not depend on the length of the features, nor on what follows them
    net[1] = nn.Sequential(nn.Tanh(), nn.Linear(5, 5, bias=False).double())
    net[1][1].weight.data = 3 * torch.eye(5).double()
    score = KNearestFeatures(net, layer="1", k=5).fit(known).score(x)
    np.testing.assert_allclose(score.numpy(), expected[:, 4], rtol=1e-9)
    with pytest.raises(ValueError, match="k=50 neighbours need as many examples in fit, got 20"):
        KNearestFeatures(classifier()).fit(x)
    with pytest.raises(ValueError, match="k must be"):
        KNearestFeatures(classifier(), k=0)


# Mahalanobis


def test_mahalanobis_against_scipy():
    net, known, x = classifier(), inputs(300), inputs(20, seed=2)
    y = torch.arange(300) % 4  # labels of the data, which need not be the classifier's classes
    h, fresh = (net[:2](v).detach().numpy() for v in (known, x))
    means = np.stack([h[y == c].mean(0) for c in range(4)])
    within = h - means[y]
    precision = np.linalg.inv(within.T @ within / 300)
    expected = [min(mahalanobis(f, m, precision) ** 2 for m in means) for f in fresh]
    detector = Mahalanobis(net, shrinkage=0.0)
    np.testing.assert_allclose(detector.fit(known, y).score(x).numpy(), expected, rtol=1e-9)
    # labels that are not 0, 1, 2, ... name classes as well
    np.testing.assert_allclose(detector.fit(known, 10 * y + 3).score(x).numpy(), expected, rtol=1e-9)
    # without labels the classifier's own
    said = detector.fit(known, net(known).argmax(1)).score(x)
    assert detector.fit(known).score(x).equal(said)
    # with all the weight on the diagonal, distances are Euclidean, in units of the mean variance
    plain = Mahalanobis(net, shrinkage=1.0).fit(known, y).score(x).numpy()
    unit = np.trace(within.T @ within / 300) / 5
    np.testing.assert_allclose(plain, cdist(fresh, means).min(1) ** 2 / unit, rtol=1e-9)


def test_mahalanobis_does_not_see_linear_maps_of_the_features():
    """The inverse of the Cholesky factor in place of the precision would."""
    net, known, x = classifier(), inputs(300), inputs(20, seed=2)
    y = torch.arange(300) % 3
    mapped = nn.Sequential(net[0], net[1], nn.Linear(5, 5).double(), nn.Linear(5, 3).double())
    original, other = (Mahalanobis(m, shrinkage=0.0).fit(known, y).score(x) for m in (net, mapped))
    torch.testing.assert_close(other, original, rtol=1e-7, atol=1e-9)


def test_mahalanobis_of_gaussian_features_is_chi_squared():
    d, n = 3, 4000
    root = torch.tensor([[1.0, 0, 0], [2, 0.5, 0], [-1, 3, 0.1]], dtype=torch.float64)
    net = nn.Sequential(nn.Identity(), nn.Linear(3, 2).double())
    x, fresh = (inputs(n, seed, d) @ root.T + 7 for seed in (1, 2))
    score = Mahalanobis(net, layer="0", shrinkage=0.0).fit(x, torch.zeros(n, dtype=torch.int64)).score(fresh)
    assert abs(score.mean() - d) < 5 * math.sqrt(2 * d / n)
    assert abs(score.var() - 2 * d) < 1


def test_features_without_variance():
    net = classifier()
    net[0].weight.data[1], net[0].bias.data[1] = 0, 0  # a unit that never fires
    x = inputs(100)
    with pytest.raises(ValueError, match="singular"):
        Mahalanobis(net, shrinkage=0.0).fit(x)
    assert Mahalanobis(net).fit(x).score(x).isfinite().all()
    for shrinkage in (-0.1, 1.1):
        with pytest.raises(ValueError, match="shrinkage"):
            Mahalanobis(net, shrinkage=shrinkage)


# logits


def test_scores_of_logits():
    net, x = nn.Identity(), inputs(30, d=5)
    energy, logit, softmax = (build(net).fit(x).score(x) for build in (Energy, MaxLogit, MaxSoftmax))
    z = x.numpy()
    np.testing.assert_allclose(energy.numpy(), -np.log(np.exp(z).sum(1)), rtol=1e-12)
    np.testing.assert_allclose(logit.numpy(), -z.max(1), rtol=1e-12)
    np.testing.assert_allclose(softmax.numpy(), -np.log(np.exp(z).max(1) / np.exp(z).sum(1)), rtol=1e-10)
    torch.testing.assert_close(softmax, logit - energy)
    warm = Energy(net, temperature=7.0).fit(x).score(x)
    torch.testing.assert_close(warm, 7 * Energy(net).fit(x).score(x / 7))
    cold = Energy(net, temperature=1e-3).fit(x).score(x)
    torch.testing.assert_close(cold, logit, rtol=0, atol=2e-3)
    for temperature in (0.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="temperature must be a finite number > 0"):
            Energy(net, temperature=temperature)


def test_confidence_beyond_rounding_still_has_an_order():
    logits = torch.tensor([[20.0, 0.0], [30.0, 0.0], [0.0, 60.0]])
    assert (logits.softmax(1).amax(1) == 1).all()
    scores = MaxSoftmax(nn.Identity()).fit(logits).score(logits)
    torch.testing.assert_close(scores, torch.exp(-torch.tensor([20.0, 30.0, 60.0])))


def test_an_output_that_is_no_logits():
    for build in (Energy, MaxLogit, MaxSoftmax):
        with pytest.raises(ValueError, match="logits"):
            build(nn.Linear(4, 1).double()).fit(inputs(3))


# baselines


def test_pca_residual_is_what_the_minor_components_hold():
    torch.manual_seed(2)
    known, x = (inputs(n, s, d=6) @ torch.diag(torch.arange(1.0, 7).double()) + 100 for n, s in ((250, 1), (20, 2)))
    centred = (known - known.mean(0)).numpy()
    minor = np.linalg.svd(centred)[2][2:]  # all but the two leading directions
    expected = (((x - known.mean(0)).numpy() @ minor.T) ** 2).sum(1)
    for batch_size in (250, 64):  # one pass, merged batch by batch
        score = PCAResidual(components=2, batch_size=batch_size).fit(known).score(x)
        np.testing.assert_allclose(score.numpy(), expected, rtol=1e-9)
    smallest = np.linalg.eigvalsh(np.cov(centred.T, bias=True))[0]
    assert PCAResidual(components=5).fit(known).score(known).mean().item() == pytest.approx(smallest)
    with pytest.raises(ValueError, match="6 components leave nothing of 6 dimensions"):
        PCAResidual(components=6).fit(known)
    with pytest.raises(ValueError, match="at least 1"):
        PCAResidual(components=0)
    assert PCAResidual(components=4).fit(known[:5]).score(known[:5]).max() < 1e-9
    with pytest.raises(ValueError, match="4 components need at least 5 inputs in fit, got 4: take fewer"):
        PCAResidual(components=4).fit(known[:4])


def test_mean_brightness():
    x = torch.rand(5, 3, 4, 4)
    torch.testing.assert_close(MeanBrightness().fit(x).score(x), x.mean((1, 2, 3)))
