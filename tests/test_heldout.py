"""Held-out classes: the protocols on made-up data whose answers are known; the detectors in features and in pixels that
they compare, against brute force and closed forms; the metrics of detection, against scikit-learn and simulation.
"""

import copy
import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist, mahalanobis
from sklearn import metrics as sk
from torch import nn

from robustgen.calibration import ConformalCalibration
from robustgen.counter_rng import content_ids, uniform
from robustgen.data import ArrayDataset, check_same_preprocessing, digits, drop_shared, preprocessing_fingerprint
from robustgen.detectors import (
    Detector,
    Energy,
    ImageDistortion,
    KNearestFeatures,
    Mahalanobis,
    MaxLogit,
    MaxSoftmax,
    MeanBrightness,
    NearestNeighbour,
    PCAResidual,
)
from robustgen.detectors.image_distortion import distortions
from robustgen.detectors.neighbours import nearest_distances
from robustgen.evaluation import anomalous_class, heldout_benchmark, heldout_class, unseen_datasets
from robustgen.evaluation.heldout import compared
from robustgen.evaluation.metrics import (
    aupr_davis_goadrich,
    aupr_trapezoid,
    auroc,
    average_precision,
    detection_metrics,
    fpr_at_tpr,
    roc_curve,
    weighted_aurocs,
    wilson_interval,
)
from robustgen.experiments.ahmed2017 import table_4_1, table_4_2
from robustgen.features import FeatureExtractor
from robustgen.generative import DCGAN, VAE
from robustgen.networks import encoder
from robustgen.training import Batch, ClassifierObjective, ContrastiveObjective, Deformations, OnDeformed, Trainer
from robustgen.training import deformations as module
from robustgen.training.contrastive import nt_xent

CLASSES = tuple(map(str, range(10)))


def made_up(n, seed, name):
    """n images (1, 4, 4) of ten classes; the first pixel tells the class, the others are random."""
    x = torch.randint(256, (n, 1, 4, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    y = torch.arange(n) % 10
    x[:, 0, 0, 0] = (10 * y).to(torch.uint8)
    return ArrayDataset(x, y, CLASSES, name)


TRAIN, TEST = made_up(1000, 1, "train"), made_up(500, 2, "test")


class Scored(Detector):
    """Scores by a function of images; remembers all it is shown."""

    def __init__(self, score):
        super().__init__(torch.nn.Identity())
        self.score_of, self.seen = score, []

    @property
    def config(self):
        return {}

    def _fit(self, batches):
        return {"n": torch.tensor(sum(len(x) for x, _ in batches))}

    def _score(self, x):
        self.seen.append(x)
        return self.score_of(x)


def label_of(x):
    return (x[:, 0, 0, 0] * 255 / 10).round()


def noise_of(x):
    return uniform(0, content_ids(x), ())


def oracle(c):
    """Above 1 for class c alone, without ties."""
    return lambda x: (label_of(x) == c) + noise_of(x)


def judge(score, c=3, **options):
    return heldout_class(lambda images: Scored(score).fit(images), TRAIN, TEST, heldout=c, **options)


def test_an_oracle_reaches_everything_and_its_negative_the_lowest_attainable():
    found = judge(oracle(3))
    assert (found["aupr"], found["auroc"], found["fpr95"], found["flagged"]) == (100, 100, 0, 100)
    assert found["aupr_negated"] == found["minimum"]
    assert (found["n_id"], found["n_ood"], found["prevalence"]) == (450, 50, 10)
    negated = judge(lambda x: -oracle(3)(x))
    assert negated["aupr"] == negated["minimum"] == pytest.approx(2 * sum(i / (450 + i) for i in range(1, 51)))
    assert (negated["auroc"], negated["flagged"], negated["aupr_negated"]) == (0, 0, 100)


def test_a_constant_score_gives_the_prevalence_and_a_random_one_chance():
    constant = judge(lambda x: torch.zeros(len(x)))
    assert (constant["aupr"], constant["auroc"], constant["flagged"]) == (pytest.approx(10), 50, 0)
    found = heldout_benchmark(lambda images: Scored(noise_of).fit(images), TRAIN, TEST)
    values = [f["aupr"] for f in found["classes"]]
    error = torch.tensor(values).std().item() / math.sqrt(10)
    assert abs(found["mean"]["aupr"] - found["mean"]["chance"]) < 4 * error
    assert found["median"]["aupr"] == torch.tensor(values, dtype=torch.float64).quantile(0.5).item()


def test_a_random_score_is_flagged_as_often_as_was_asked():
    found = judge(noise_of, calibration=0.5, fpr=0.2)
    assert abs(found["false_alarms"] - 20) < 100 * 4 * math.sqrt(0.2 * 0.8 * (1 / 450 + 1 / 450))


def test_both_signs_complement_each_other():
    a, b = torch.randn(300).round(decimals=1), torch.randn(40).round(decimals=1) + 0.3
    numbers = compared(a, b)
    assert numbers["auroc"] + numbers["auroc_negated"] == pytest.approx(100, abs=1e-12)
    assert numbers["auroc"] == 100 * auroc(a, b)


def test_training_sees_neither_the_class_nor_the_calibration_tenth():
    given, detectors = [], []

    def make(images):
        given.append(images)
        detectors.append(Scored(oracle(3)))
        return detectors[0].fit(images)

    found = heldout_class(make, TRAIN, TEST, heldout="3", calibration=0.1)
    assert len(given[0]) == 810
    assert found["n_calibration"] == len(detectors[0].calibration) == 90
    assert given[0].classes == tuple(c for c in CLASSES if c != "3")
    assert not (label_of(given[0].images()) == 3).any()
    known = {row.tobytes() for row in given[0].x.flatten(1).numpy()}
    calibration = torch.cat([x for x in detectors[0].seen if len(x) == 90])  # the only batch of that size
    assert not any((row * 255).round().to(torch.uint8).numpy().tobytes() in known for row in calibration.flatten(1))
    assert (label_of(calibration) != 3).all()


def test_what_is_missing_is_said_before_anything_is_trained():
    def never(images):
        raise AssertionError("trained")

    with pytest.raises(ValueError, match=r"90 calibration scores cannot give a false-alarm rate of 0\.001: 999 are"):
        heldout_class(never, TRAIN, TEST, heldout=3, fpr=0.001)
    leaky = ArrayDataset(torch.cat([TRAIN.x, TEST.x[:2]]), torch.cat([TRAIN.y, TEST.y[:2]]), CLASSES, "leaky")
    with pytest.raises(ValueError, match=r"2 of the 1002 examples of leaky are also in test.*drop_shared"):
        heldout_class(never, leaky, TEST, heldout=3)
    assert torch.equal(drop_shared(leaky, TEST).x, TRAIN.x)
    for other, message in {
        dataclasses.replace(TEST, x=(TEST.x > 99).to(torch.uint8) * 255): "test is preprocessed otherwise than train",
        dataclasses.replace(TEST, preprocessing=("resized to 4x4, bilinear",)): "resized to 4x4",
        dataclasses.replace(TEST, x=TEST.images() * 0.7): "continuous",
        dataclasses.replace(TEST, classes=tuple("abcdefghij")): "other classes",
    }.items():
        with pytest.raises(ValueError, match=message):
            heldout_class(never, TRAIN, other, heldout=3)
    with pytest.raises(ValueError, match="unknown class 'x'"):
        heldout_class(never, TRAIN, TEST, heldout="x")
    with pytest.raises(ValueError, match="population is empty"):
        heldout_class(never, TRAIN, TEST.subset((TEST.y != 3).nonzero().squeeze(1)), heldout=3)


def test_far_data_sets_pass_the_same_checks():
    def never(images):
        raise AssertionError("trained")

    make, others = (lambda images: Scored(noise_of).fit(images)), {"other": made_up(300, 3, "other")}
    found = unseen_datasets(make, TRAIN, TEST, others)["populations"]["other"]
    assert (found["n_id"], found["n_ood"]) == (500, 300)
    with pytest.raises(ValueError, match="examples of train are also in itself"):
        unseen_datasets(never, TRAIN, TEST, {"itself": dataclasses.replace(TRAIN, name="itself")})
    resized = dataclasses.replace(others["other"], preprocessing=("resized to 4x4, bilinear",))
    with pytest.raises(ValueError, match="other is preprocessed otherwise than train"):
        unseen_datasets(never, TRAIN, TEST, {"resized": resized})


def test_fingerprints_tell_what_was_done():
    floats = dataclasses.replace(TEST, x=TEST.images())
    assert check_same_preprocessing(TRAIN, TEST, floats) == "(1, 4, 4), 8-bit, as read"
    assert preprocessing_fingerprint(dataclasses.replace(floats, x=floats.x.round())) == "(1, 4, 4), binary, as read"
    assert TRAIN.subset(torch.arange(3)).preprocessing == TRAIN.preprocessing


def test_sanity_images_have_the_levels_of_the_training_images():
    binary = [dataclasses.replace(d, x=(d.x > 99).to(torch.uint8) * 255) for d in (TRAIN, TEST)]
    train, test = (drop_shared(binary[0], binary[1]), binary[1])
    detector = Scored(noise_of)
    found = heldout_class(detector, train, test, heldout=3)
    assert all(set(x.unique().tolist()) <= {0.0, 1.0} for x in detector.seen)
    assert found["sanity"]["constant"]["n_ood"] == 2
    assert found["sanity"]["noise"]["n_ood"] == 256


def test_the_literature_trains_on_four_fifths_and_tests_on_all_anomalies():
    sizes = []

    def make(images):
        sizes.append(len(images))
        return Scored(oracle(3)).fit(images)

    found = anomalous_class(make, TRAIN, TEST, anomaly=3, seed=5)
    assert sizes == [972]  # 0.9 * 0.8 * 1350
    assert (found["n_id"], found["n_ood"], found["fifth_of_anomalies"]["n_ood"]) == (270, 150, 30)
    assert found["aupr"] == found["fifth_of_anomalies"]["aupr"] == 100
    assert found["prevalence"] == pytest.approx(100 * 150 / 420)
    twice = ArrayDataset(torch.cat([TRAIN.x, TEST.x]), torch.cat([TRAIN.y, TEST.y]), CLASSES, "twice")
    with pytest.raises(ValueError, match="are also in the normal test part"):
        anomalous_class(make, twice, TEST, anomaly=3)


def test_candidates_are_functions_detectors_or_models():
    torch.manual_seed(0)
    vae = VAE((1, 4, 4), latent_dim=2, architecture="mlp", width=4, quantization="stochastic").eval()
    found = heldout_class(vae, TRAIN, TEST, heldout=3)
    assert found["detector"].startswith("Likelihood(")
    fitted = Scored(oracle(3)).fit(TEST.images())
    assert heldout_class(fitted, TRAIN, TEST, heldout=3)["aupr"] == 100
    assert fitted.statistics["n"] == 500  # not fitted again
    with pytest.raises(TypeError, match="use Discriminator"):
        heldout_class(DCGAN((1, 4, 4), latent_dim=2, width=2).eval(), TRAIN, TEST, heldout=3)
    with pytest.raises(TypeError, match="must return a fitted detector, it returned a ArrayDataset"):
        heldout_class(lambda images: images, TRAIN, TEST, heldout=3)
    with pytest.raises(TypeError, match="got int"):
        heldout_class(3, TRAIN, TEST, heldout=3)
    with pytest.raises(TypeError, match="trains once for each class"):
        heldout_benchmark(vae, TRAIN, TEST)


@pytest.mark.parametrize(
    ("table", "means", "medians"),
    [
        (table_4_1, (33.85, 25.74, 29.99, 13.25), (37.50, 25.03, 30.64, 9.71)),
        (table_4_2, (19.08, 11.51, 10.64, 11.29), (14.24, 8.70, 10.24, 11.35)),
    ],
)
def test_published_columns_have_the_published_means_and_medians(table, means, medians):
    numbers = torch.tensor(list(table.PUBLISHED.values()), dtype=torch.float64)
    assert torch.allclose(numbers.mean(0), torch.tensor(means, dtype=torch.float64), atol=0.0101, rtol=0)
    assert torch.allclose(numbers.quantile(0.5, 0), torch.tensor(medians, dtype=torch.float64), atol=0.0051, rtol=0)


def test_the_published_digit_1_lies_on_the_floor():
    """980 to 1135 positives of 10,000: the lowest areas are those that the table's digits 0 and 1 would have there."""
    floor = {n: compared(torch.arange(10_000.0 - n) + n, torch.arange(float(n)))["minimum"] for n in (980, 1135)}
    assert (round(floor[980], 2), round(floor[1135], 2)) == (5.07, 5.91)
    assert all(value - floor[1135] < 0.2 for value in table_4_1.PUBLISHED["1"])


def test_a_callers_own_detector_is_copied():
    train, test = digits("train"), digits("test")
    own = NearestNeighbour()
    reused = [heldout_class(own, train, test, heldout=c)["aupr"] for c in (3, 4)]
    fresh = [heldout_class(NearestNeighbour(), train, test, heldout=c)["aupr"] for c in (3, 4)]
    assert reused == fresh
    assert own.statistics_ is None
    fitted = NearestNeighbour().fit(train.images()[:100]).calibrate(train.images()[100:150])
    before = fitted.calibration_
    heldout_class(fitted, train, test, heldout=3)
    assert fitted.calibration_ is before


def test_what_is_no_candidate_or_class_is_told():
    train, test = digits("train"), digits("test")
    with pytest.raises(TypeError, match="got Linear"):
        heldout_class(torch.nn.Linear(2, 2), train, test, heldout=0)
    with pytest.raises(TypeError, match="an int, or its name"):
        heldout_class(NearestNeighbour(), train, test, heldout=3.0)
    with pytest.raises(ValueError, match="classes is empty"):
        heldout_benchmark(lambda x: NearestNeighbour().fit(x), train, test, classes=[])


# Detectors in a classifier's features or in pixels, against brute force and closed forms.


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


# Deformations against what they are by definition, the contrastive loss against a loop, and what it learns.

STILL = {"rotation": 0, "scale": 0, "shear": 0, "shift": 0, "bend": 0, "thickness": 0, "gamma": 0, "noise": 0}


def picture(n=3, size=8):
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def extreme(monkeypatch, sign, **settings):
    """The deformations with each random number at the end of its range."""
    monkeypatch.setattr(module, "_uniform", lambda x, *shape: sign * torch.ones(shape, dtype=x.dtype))
    monkeypatch.setattr(torch, "randn", lambda *shape, **about: torch.ones(shape, **about))
    return Deformations(**(STILL | settings))


def test_deformations_at_the_ends_of_their_ranges(monkeypatch):
    x = picture()
    expected = {
        "rotation": (90, 1, x.rot90(1, (2, 3))),
        "shift": (1 / 8, 1, F.pad(x[..., 1:, 1:], (0, 1, 0, 1))),
        "bend": (1 / 4, 1, F.pad(x[..., 2:, 2:], (0, 2, 0, 2))),
        "thickness": (1, 1, F.max_pool2d(x, 3, 1, 1)),
        "gamma": (math.log(2), 1, x.square()),
    }
    for name, (value, sign, result) in expected.items():
        torch.testing.assert_close(extreme(monkeypatch, sign, **{name: value})(x), result, msg=name)
    thinner = extreme(monkeypatch, -1, thickness=1)(x)
    torch.testing.assert_close(thinner, -F.max_pool2d(-x, 3, 1, 1))
    ramp = (torch.arange(16, dtype=torch.float64) + 0.5).expand(1, 1, 16, 16) / 16  # its own position, from 0 to 1
    sheared = extreme(monkeypatch, 1, shear=0.5)(ramp)
    inside = slice(5, 11)
    torch.testing.assert_close(
        sheared[..., inside, inside], (ramp + 0.5 * (ramp.mT - 0.5))[..., inside, inside], rtol=0, atol=1e-12
    )
    smaller = extreme(monkeypatch, 1, scale=math.log(2))(ramp)
    torch.testing.assert_close(smaller[..., 5:11, 5:11], (0.5 + 2 * (ramp - 0.5))[..., 5:11, 5:11], rtol=0, atol=1e-12)


def test_deformed_images_are_images_each_deformed_on_its_own():
    torch.manual_seed(0)
    x = picture(1).expand(5, 1, 8, 8)
    assert torch.allclose(Deformations(**STILL)(x), x)
    y = Deformations()(x)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert y.min() >= 0
    assert y.max() <= 1
    assert all((y[i] - y[j]).abs().max() > 0.1 for i in range(5) for j in range(i))
    for name, value in {"shear": -1.0, "noise": float("nan"), "bend_grid": 1}.items():
        with pytest.raises(ValueError, match=name):
            Deformations(**{name: value})


def test_nt_xent_against_a_loop_and_its_gradient():
    z = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    terms, found = [], 0.0
    for i in range(6):
        similar = [F.cosine_similarity(z[i], z[j], dim=0) / 0.3 for j in range(6)]
        partner = similar[(i + 3) % 6]
        others = [similar[j] for j in range(6) if j != i]
        terms.append(torch.stack(others).logsumexp(0) - partner)
        found += float(partner == max(others)) / 6
    loss, share = nt_xent(z, 0.3)
    torch.testing.assert_close(loss, torch.stack(terms).mean())
    assert share.item() == pytest.approx(found)
    assert torch.autograd.gradcheck(lambda z: nt_xent(z, 0.3)[0], z.requires_grad_())
    with pytest.raises(ValueError, match="temperature"):
        ContrastiveObjective(Deformations(), temperature=0.0)
    with pytest.raises(TypeError, match="deformations must be Deformations, got str"):
        ContrastiveObjective("x")
    with pytest.raises(ValueError, match="raise batch_size"):
        ContrastiveObjective(Deformations())(nn.Flatten(), Batch(picture(1), None, torch.arange(1)), 0)


def test_a_trained_encoder_finds_digits_again():
    torch.manual_seed(0)
    model = encoder(image_size=8, n_outputs=16, width=4)
    trainer = Trainer(
        ContrastiveObjective(Deformations()),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=5e-3),
        epochs=4,
        batch_size=128,
        progress=False,
    )
    history = trainer.fit(model, digits("train").images())  # no labels
    assert history[-1]["loss"] < history[0]["loss"] - 0.7
    assert history[-1]["found"] > 2 * history[0]["found"]


def test_only_training_sees_deformed_images():
    x, seen = picture().float(), []
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    objective = OnDeformed(ClassifierObjective(), Deformations())
    batch = Batch(x, torch.tensor([0, 1, 1]), torch.arange(3))
    objective(model.eval(), batch, 0)
    loss = objective(model.train(), batch, 0)["loss"]
    assert torch.equal(seen[0], x)
    assert not torch.allclose(seen[1], x, atol=0.1)
    torch.testing.assert_close(loss, F.cross_entropy(model(seen[1]), batch.y))


@pytest.mark.parametrize("size", [28, (9, 13), 1])
def test_encoder_takes_images_of_any_size(size):
    height, width = (size, size) if isinstance(size, int) else size
    assert encoder(2, 5, size, width=2)(torch.zeros(3, 2, height, width)).shape == (3, 5)


# The image distortion model against loops over pixels, and what its definition says of strokes.


def features(n, seed, channels=2):
    return torch.rand(n, channels, 5, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_loops(a, b, window):
    """D(a, b) of one pair, pixel by pixel."""
    _, height, width = a.shape

    def at(image, i, j):
        inside = 0 <= i < height and 0 <= j < width
        return image[:, i, j] if inside else torch.zeros(len(image), dtype=image.dtype)

    total = torch.zeros((), dtype=a.dtype)
    moves = range(-window, window + 1)
    around = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    for i in range(height):
        for j in range(width):
            context = [(i + u, j + v) for u, v in around]
            total += (
                min(
                    sum((at(a, p, q) - at(b, p + di, q + dj)).square().sum() for p, q in context)
                    for di in moves
                    for dj in moves
                )
                ** 2
            )
    return total.sqrt()


@pytest.mark.parametrize("window", [0, 1, 2])
def test_distortion_against_loops(window):
    a, b = features(3, 0), features(3, 1)
    found = distortions(a, b, window)
    for first, second, cost in ((a, b, found[0]), (b, a, found[1])):
        expected = torch.stack([by_loops(x, y, window) for x, y in zip(first, second, strict=True)])
        torch.testing.assert_close(cost, expected, rtol=1e-12, atol=1e-12)


def test_distortion_falls_with_the_window_and_has_the_right_gradient():
    a, b = features(2, 0, channels=1), features(2, 1, channels=1)
    costs = torch.stack([torch.stack(distortions(a, b, window)) for window in range(4)])
    assert (costs[:-1] >= costs[1:]).all()
    assert torch.autograd.gradcheck(lambda a, b: distortions(a, b, 1), (a.requires_grad_(), b.requires_grad_()))


def strokes(*columns):
    x = torch.zeros(1, 1, 12, 16, dtype=torch.float64)
    for column in columns:
        x[..., 2:10, column] = 1
    return x


def test_a_missing_stroke_costs_in_one_direction_a_moved_one_in_none():
    one, both = strokes(3), strokes(3, 11)
    there, missing = (cost.item() for cost in distortions(one, both, 2))
    assert there == 0
    assert missing > 1
    for column, near in ((5, True), (6, False)):
        for cost in distortions(one, strokes(column), 2):
            assert (cost.item() == 0) == near
    detector = ImageDistortion(shortlist=2, k=1).fit(torch.cat([both, strokes(2, 13)]))
    assert detector.score(strokes(4, 11)).item() < 1e-6
    assert detector.score(one).item() > 0.1  # all of it fits, but half of every image of fit is missing


def test_detector_against_all_pairs():
    generator = torch.Generator().manual_seed(0)
    bank, x = (torch.rand(n, 1, 6, 6, generator=generator, dtype=torch.float64) for n in (4, 3))
    kernel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], dtype=torch.float64)[None, None] / 8
    across, down = (torch.nn.functional.conv2d(bank, k, padding=1) for k in (kernel, kernel.mT))
    theirs = torch.cat([across, down], dim=1)
    across, down = (torch.nn.functional.conv2d(x, k, padding=1) for k in (kernel, kernel.mT))
    ours = torch.cat([across, down], dim=1)
    cost = torch.tensor([[max(by_loops(a, b, 1), by_loops(b, a, 1)) for b in theirs] for a in ours])
    nearest = cost.sort(1).values[:, :3].mean(1) / ours.flatten(1).norm(dim=1).sqrt()
    score = ImageDistortion(window=1, shortlist=4, k=3).fit(bank).score(x)
    torch.testing.assert_close(score, nearest)
    assert torch.equal(ImageDistortion(window=1, shortlist=4, k=3, batch_size=1).fit(bank).score(x[2:3]), score[2:3])
    undivided = ImageDistortion(window=1, shortlist=4, k=3, exponent=0).fit(bank).score(x)
    torch.testing.assert_close(undivided, nearest * ours.flatten(1).norm(dim=1).sqrt())


def test_errors():
    with pytest.raises(ValueError, match="k must be at most the short list of 3, got 4"):
        ImageDistortion(k=4, shortlist=3)
    with pytest.raises(ValueError, match="as many images in fit, got 3"):
        ImageDistortion(shortlist=5).fit(torch.zeros(3, 1, 8, 8))
    for shape in ((30, 64), (30, 8, 8), (30, 1, 1, 1)):
        with pytest.raises(ValueError, match=r"images \(N, C, H, W\) of several pixels are needed, got shape \("):
            ImageDistortion().fit(torch.zeros(shape))


settings.register_profile("no deadline", deadline=None)  # a busy machine is not a failure
settings.load_profile("no deadline")

METRICS = [auroc, average_precision, aupr_trapezoid, aupr_davis_goadrich, fpr_at_tpr, roc_curve, detection_metrics]
tied = st.lists(st.integers(-3, 3), min_size=1, max_size=30)  # few values: many ties
real = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30)
scores = tied | real


def labelled(a, b):
    return np.r_[np.zeros(len(a)), np.ones(len(b))], np.r_[a, b].astype(float)


@given(scores, scores)
def test_agrees_with_sklearn(a, b):
    y, s = labelled(a, b)
    assert auroc(a, b) == pytest.approx(sk.roc_auc_score(y, s), abs=1e-12)
    assert average_precision(a, b) == pytest.approx(sk.average_precision_score(y, s), abs=1e-12)
    precision, recall, _ = sk.precision_recall_curve(y, s)
    assert aupr_trapezoid(a, b) == pytest.approx(sk.auc(recall, precision), abs=1e-12)
    fpr, tpr, thresholds = sk.roc_curve(y, s, drop_intermediate=False)
    ours = roc_curve(a, b)
    np.testing.assert_allclose(ours.fpr, fpr, atol=1e-15)
    np.testing.assert_allclose(ours.tpr, tpr, atol=1e-15)
    np.testing.assert_array_equal(ours.thresholds, thresholds)


@given(tied, tied, st.sampled_from([0.5, 0.8, 0.95, 1.0]))
def test_fpr_at_tpr_is_the_smallest_over_all_thresholds(a, b, tpr):
    rates = [(np.mean(np.array(a) >= t), np.mean(np.array(b) >= t)) for t in {*a, *b}]
    assert fpr_at_tpr(a, b, tpr) == min(f for f, t in rates if t >= tpr)


@given(tied, tied)
def test_auroc_is_the_share_of_ordered_pairs(a, b):
    pairs = [(y > x) + (y == x) / 2 for x in a for y in b]
    assert auroc(a, b) == pytest.approx(np.mean(pairs), abs=1e-12)


@given(tied, tied, st.integers(0, 5))
def test_a_weighted_auroc_is_that_of_samples_that_occur_so_often(a, b, seed):
    a_times, b_times = (np.random.default_rng([seed, k]).integers(0, 3, (4, len(s))) for k, s in enumerate((a, b)))
    a_times[:, 0], b_times[:, -1] = 1, 1  # none of a side at all is no sample
    found = weighted_aurocs(a, b, a_times, b_times)
    drawn = [auroc(np.repeat(a, m), np.repeat(b, n)) for m, n in zip(a_times, b_times, strict=True)]
    np.testing.assert_allclose(found, drawn, atol=1e-12)


def test_weights_of_other_samples_are_refused():
    with pytest.raises(ValueError, match=r"weights of 2 and 1 scores are \(R, N\) and \(R, P\), got \(1, 1\)"):
        weighted_aurocs([0.0, 1.0], [1.0], [[1]], [[1]])


@given(scores, scores)
def test_swapping_the_sides_complements_auroc_exactly(a, b):
    assert auroc(a, b) + auroc(b, a) == 1


@given(tied, tied, st.sampled_from([lambda s: s**3, np.exp, lambda s: 7 * s - 2, np.arctan]))
def test_invariant_under_increasing_maps(a, b, f):
    mapped = detection_metrics(f(np.array(a, float)), f(np.array(b, float)))
    assert mapped == detection_metrics(a, b)


@given(tied, tied)
def test_infinities_are_the_extreme_scores(a, b):
    def far(s):
        return [{-3: -np.inf, 3: np.inf}.get(v, v) for v in s]

    assert detection_metrics(far(a), far(b)) == detection_metrics(a, b)


@given(tied, tied, st.randoms())
def test_order_and_container_do_not_matter(a, b, random):
    expected = detection_metrics(a, b)
    random.shuffle(a)
    random.shuffle(b)
    assert detection_metrics(torch.tensor(a, dtype=torch.bfloat16), np.array(b)) == expected


def test_extremes():
    worst = np.mean([i / (4 + i) for i in (1, 2)])  # both positives ranked below four negatives
    assert average_precision([3, 4, 5, 6], [1, 2]) == pytest.approx(worst)
    assert (auroc([3, 4], [1, 2]), fpr_at_tpr([3, 4], [1, 2])) == (0.0, 1.0)
    assert (auroc([1, 2], [3, 4]), fpr_at_tpr([1, 2], [3, 4])) == (1.0, 0.0)
    constant = detection_metrics([0.0] * 6, [0.0] * 2)
    assert (constant["auroc"], constant["average_precision"], constant["fpr_at_95_tpr"]) == (0.5, 0.25, 1.0)


@pytest.mark.parametrize(("n_id", "n_ood"), [(1, 1), (5, 1), (3, 4), (30, 10)])
def test_chance_is_the_expectation_over_random_rankings(n_id, n_ood):
    rng = np.random.default_rng(0)
    step, trapezoid = [], []
    for _ in range(4000):
        ranking = rng.permutation(n_id + n_ood)
        step.append(average_precision(ranking[:n_id], ranking[n_id:]))
        trapezoid.append(aupr_trapezoid(ranking[:n_id], ranking[n_id:]))
    for values in (step, trapezoid):
        error = np.std(values) / np.sqrt(len(values))
        assert abs(np.mean(values) - values[0].chance) < 4 * error
        assert values[0].prevalence == n_ood / (n_id + n_ood)


@pytest.mark.parametrize(("n_id", "n_ood"), [(1, 1), (3, 1), (1, 4), (2, 3), (3, 2)])
def test_minimum_is_the_lowest_over_all_rankings_with_and_without_ties(n_id, n_ood):
    rankings = list(itertools.product(range(n_id + n_ood), repeat=n_id + n_ood))
    for metric in (average_precision, aupr_trapezoid):
        values = [metric(ranking[:n_id], ranking[n_id:]) for ranking in rankings]
        assert min(values) == pytest.approx(values[0].minimum, abs=1e-15)


def test_minimum_of_many_is_the_closed_form_of_the_limit():
    """1 + (1 - p) ln(1 - p) / p; Davis and Goadrich's area has it at every size."""
    n_id, n_ood = 9000, 1000
    p = n_ood / (n_id + n_ood)
    limit = 1 + (1 - p) * np.log(1 - p) / p
    negated = np.arange(n_id) + n_ood, np.arange(n_ood)
    assert aupr_davis_goadrich(*negated) == pytest.approx(limit, rel=1e-12)
    area = average_precision(*negated)
    assert area == area.minimum == pytest.approx(limit, abs=1e-4)


@given(tied, tied)
def test_davis_goadrich_is_the_integral_of_precision_along_mixed_thresholds(a, b):
    """Thresholds mixed in 400 proportions between neighbours, summed by the midpoint rule."""
    a, b, area, above = np.array(a), np.array(b), 0.0, (0, 0)
    for threshold in sorted({*a, *b}, reverse=True):
        at = (np.sum(b >= threshold), np.sum(a >= threshold))
        share = (np.arange(400) + 0.5) / 400
        hits, misses = (below + share * (now - below) for below, now in zip(above, at, strict=True))
        area += (at[0] - above[0]) / len(b) * np.mean(hits / (hits + misses))
        above = at
    assert aupr_davis_goadrich(a, b) == pytest.approx(area, abs=1e-3)


def test_aupr_is_a_float_that_knows_its_chance_level():
    area = average_precision([0.1, 0.2, 0.3], [0.4, 0.15])
    assert isinstance(area, float)
    assert "prevalence=0.4000" in repr(area)
    assert f"chance={area.chance:.4f}" in repr(area)
    twin = copy.deepcopy(area)
    assert vars(twin) == vars(area) == {"prevalence": 0.4, "chance": area.chance, "minimum": area.minimum}
    assert json.loads(json.dumps(detection_metrics([0.1], [0.2, 0.3])))["average_precision"] == 1.0


def test_read_only_arrays_and_graphs_are_fine():
    a = np.arange(4.0)
    a.setflags(write=False)
    b = torch.arange(4.0, requires_grad=True) + 1
    assert auroc(a, b) == auroc(a.tolist(), b.tolist())


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("bad", "message"), [([], "empty"), ([1.0, float("nan")], "NaN"), ([[1.0]], "1-D"), (2.0, "1-D")]
)
def test_wrong_scores(metric, bad, message):
    with pytest.raises(ValueError, match=f"scores_id.*{message}"):
        metric(bad, [1.0])
    with pytest.raises(ValueError, match=f"scores_ood.*{message}"):
        metric([1.0], bad)


@pytest.mark.parametrize("tpr", [0, -1, 1.01, float("nan")])
def test_wrong_tpr(tpr):
    with pytest.raises(ValueError, match="tpr must be"):
        fpr_at_tpr([0.0], [1.0], tpr)


@settings(max_examples=30)
@given(st.integers(1, 300), st.data())
def test_wilson_interval_solves_its_equation(n, data):
    k = data.draw(st.integers(0, n))
    z = 1.959963984540054
    low, high = wilson_interval(k, n)
    assert 0 <= low <= k / n <= high <= 1
    for p in (low, high):  # the ends are the rates from which k / n is z standard errors away
        assert (k / n - p) ** 2 == pytest.approx(z**2 * p * (1 - p) / n, abs=1e-9)


@pytest.mark.parametrize("wrong", [(1, 0), (-1, 5), (6, 5), (1, 5, 1.0)])
def test_wilson_interval_refuses(wrong):
    with pytest.raises(ValueError, match="need n >= 1"):
        wilson_interval(*wrong)


# Split-conformal p-values: exactness, and the guarantee itself.

settings.register_profile("no deadline", deadline=None)  # a busy machine is not a failure
settings.load_profile("no deadline")

INF = float("inf")
some_tied = st.lists(st.sampled_from([-INF, -2.0, -1.0, 0.0, 1.0, 2.0, INF]), min_size=1, max_size=25)


def test_small_example():
    calibration = ConformalCalibration([3.0, 1.0, 2.0, 2.0])
    p = calibration.p_value([0.0, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, INF])
    assert p.tolist() == [1.0, 1.0, 0.8, 0.8, 0.4, 0.4, 0.2, 0.2]
    assert calibration.threshold(0.2) == 3.0
    assert calibration.threshold(0.4) == 2.0
    assert calibration.flag([2.5, 3.0, 3.1], fpr=0.2).tolist() == [False, False, True]
    assert calibration.flag([2.0, 2.5, 3.1], fpr=0.4).tolist() == [False, True, True]


@given(some_tied, some_tied)
def test_p_value_is_its_definition(calibration, scores):
    p = ConformalCalibration(calibration).p_value(scores)
    assert p.tolist() == [(1 + sum(c >= s for c in calibration)) / (len(calibration) + 1) for s in scores]


@given(some_tied, some_tied, st.integers(1, 25), st.sampled_from([0.0, 1e-9, 0.01]))
def test_flag_is_p_value_at_most_fpr(calibration, scores, k, more):
    fitted = ConformalCalibration(calibration)
    fpr = min(k, len(calibration)) / (len(calibration) + 1) + more  # also exactly on the grid of p-values
    if fpr < 1:
        flags = fitted.p_value(scores) <= fpr
        assert fitted.flag(scores, fpr).equal(flags)
        assert (torch.tensor(scores) > fitted.threshold(fpr)).equal(flags)


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=20))
def test_super_uniform_over_every_choice_of_the_test_point(pool):
    """With exchangeable scores each of n + 1 is the test point equally often: P(p <= k / (n + 1)) counts them."""
    n = len(pool) - 1
    p = [ConformalCalibration(pool[:i] + pool[i + 1 :]).p_value(pool[i : i + 1]).item() for i in range(n + 1)]
    for k in range(1, n + 2):
        assert sum(v <= k / (n + 1) for v in p) <= k
    if len(set(pool)) == n + 1:  # without ties exactly uniform
        assert sorted(p) == [(i + 1) / (n + 1) for i in range(n + 1)]


@pytest.mark.parametrize("fpr", [0.05, 0.1, 0.33])
def test_false_alarm_rate_over_many_draws(fpr):
    rng = np.random.default_rng(0)
    n, draws, tests = 40, 2000, 20
    rates = [
        ConformalCalibration(rng.normal(size=n)).flag(rng.normal(size=tests), fpr).double().mean().item()
        for _ in range(draws)
    ]
    expected = int(fpr * (n + 1) + 1e-9) / (n + 1)
    assert expected <= fpr
    assert abs(np.mean(rates) - expected) < 4 * np.std(rates) / draws**0.5


def test_too_few_scores_for_the_rate():
    nineteen = ConformalCalibration(torch.arange(19))
    assert nineteen.flag([100.0], 0.05).tolist() == [True]
    with pytest.raises(ValueError, match=r"18 calibration scores .* of 0\.05: 19 are needed"):
        ConformalCalibration(torch.arange(18)).flag([100.0], 0.05)


@pytest.mark.parametrize("fpr", [0.0, 1.0, -0.1, float("nan")])
def test_wrong_rate(fpr):
    with pytest.raises(ValueError, match="fpr must be in"):
        ConformalCalibration([1.0, 2.0]).threshold(fpr)


@pytest.mark.parametrize(("bad", "message"), [([], "empty"), ([1.0, float("nan")], "NaN"), ([[1.0]], "1-D")])
def test_wrong_calibration_scores(bad, message):
    with pytest.raises(ValueError, match=message):
        ConformalCalibration(bad)


def test_a_nan_score_is_never_silently_normal():
    calibration = ConformalCalibration(range(50))
    for judge in (calibration.p_value, calibration.flag):
        with pytest.raises(ValueError, match="NaN"):
            judge([0.0, float("nan")])


def test_empty_input_and_read_only_arrays():
    scores = np.arange(30.0)[::-1]
    scores.setflags(write=False)
    calibration = ConformalCalibration(scores)
    assert calibration.p_value([]).shape == (0,)
    assert calibration.flag(torch.zeros(0)).dtype == torch.bool
    assert len(calibration) == 30
    assert calibration.p_value(scores).tolist() == [(i + 2) / 31 for i in range(30)]


def test_float32_scores_tie_with_themselves():
    scores = torch.rand(100)
    p = ConformalCalibration(scores).p_value(scores.sort().values)
    assert p.equal(torch.arange(101, 1, -1).double() / 101)
