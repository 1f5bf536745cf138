"""Metrics of samples: closed forms, brute force, invariance to chunks, a model that memorised; page and command."""

import copy
import functools
import json
import math
import re
import sys
import types

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import nn

from robustgen import cli, data, networks
from robustgen.data import ArrayDataset
from robustgen.evaluation import FeatureNetwork, fid, frechet_distance, sample_metrics, sample_quality
from robustgen.evaluation.sample_metrics import (
    Weights,
    bootstrap,
    class_measures,
    closer_than_data,
    copied,
    frechet_distances,
    manifold_measures,
    nearest_training,
    parzen_log_likelihood,
    prd_measures,
    precision_recall_curve,
)
from robustgen.evaluation.sample_quality_page import load_quality, quality_html, quality_markdown, write_quality
from robustgen.files import write_json
from robustgen.generative import VAE, GenerativeModel


def points(n, d, seed, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, d, dtype=torch.float64, generator=generator) + shift


class TestFrechetDistance:
    def test_of_gaussians_is_the_closed_form(self):
        """Samples whose means and covariances are exactly those asked for."""
        x = points(50, 3, 0)
        x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T  # covariance I
        a, b = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([4.0, 1.0, 1.0]).double()
        shift = torch.tensor([1.0, -1.0, 2.0]).double()
        assert frechet_distance(x * a, x * b + shift) == pytest.approx(6 + float((a - b).square().sum()), abs=1e-9)
        assert frechet_distance(x * a, x * a) == pytest.approx(0, abs=1e-9)

    @pytest.mark.parametrize("n", [40, 5])
    def test_is_that_of_the_square_root_of_a_matrix(self, n):
        """With 5 points in 6 dimensions, where covariances are singular, too."""
        x, y = points(n, 6, 1) @ points(6, 6, 2), points(n + 3, 6, 3, scale=2, shift=1e3)
        s, t = np.cov(x.numpy().T), np.cov(y.numpy().T)
        expected = float((x.mean(0) - y.mean(0)).square().sum()) + np.trace(s + t - 2 * sqrtm(s @ t).real)
        assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)

    def test_an_image_drawn_twice_counts_twice(self):
        x, y = points(12, 3, 4), points(9, 3, 5)
        weights = bootstrap(12, 9, 4, seed=1)
        assert bool((weights.samples[0] == 1).all())
        again = [
            frechet_distance(x.repeat_interleave(w.long(), 0), y.repeat_interleave(v.long(), 0))
            for w, v in zip(*weights, strict=True)
        ]
        torch.testing.assert_close(frechet_distances(x, y, weights), torch.tensor(again).double())

    def test_refuses_what_has_no_covariance(self):
        for x, y in ((points(1, 3, 0), points(5, 3, 0)), (points(5, 3, 0), points(5, 4, 0))):
            with pytest.raises(ValueError, match="features"):
                frechet_distance(x, y)
        for x, y, side in (
            (points(5, 3, 0) * math.nan, points(5, 3, 0), "samples"),
            (points(5, 3, 0), math.inf * points(5, 3, 0), "data"),
        ):
            with pytest.raises(ValueError, match=f"the features of the {side} hold NaN or Inf"):
                frechet_distance(x, y)


def by_hand(x, y, weights, row, k, k_density):
    """Precision, recall, density and coverage of images drawn again, ball by ball."""

    def radius(of, k):
        return [sorted(math.dist(a, b) for j, b in enumerate(of) if j != i)[k - 1] for i, a in enumerate(of)]

    x, y = x.tolist(), y.tolist()
    w, v = weights.samples[row].tolist(), weights.data[row].tolist()
    rx, ry, rd = radius(x, k), radius(y, k), radius(y, k_density)
    drawn, real = [i for i in range(len(x)) if w[i]], [j for j in range(len(y)) if v[j]]
    inside = {i: any(math.dist(x[i], y[j]) <= ry[j] for j in real) for i in drawn}
    reached = {j: any(math.dist(x[i], y[j]) <= rx[i] for i in drawn) for j in real}
    count = {i: sum(v[j] * (math.dist(x[i], y[j]) <= rd[j]) for j in real) for i in drawn}
    covered = {j: any(math.dist(x[i], y[j]) <= rd[j] for i in drawn) for j in real}
    return {
        "precision": sum(w[i] * inside[i] for i in drawn) / len(x),
        "recall": sum(v[j] * reached[j] for j in real) / len(y),
        "density": sum(w[i] * count[i] for i in drawn) / (k_density * len(x)),
        "coverage": sum(v[j] * covered[j] for j in real) / len(y),
    }


class TestManifoldMeasures:
    @pytest.mark.parametrize("at_once", [1, 70, 10**6])
    def test_are_those_counted_ball_by_ball_whatever_the_chunk(self, at_once):
        x, y = points(25, 2, 0, scale=0.7, shift=0.4), points(30, 2, 1)
        weights = bootstrap(25, 30, 2, seed=0)
        found = manifold_measures(x, y, weights, k=2, k_density=4, at_once=at_once)
        for row in range(3):
            expected = by_hand(x, y, weights, row, 2, 4)
            assert {name: float(of[row]) for name, of in found.items()} == pytest.approx(expected, abs=1e-12)

    def test_of_the_same_points_are_one(self):
        x = points(40, 3, 2)
        found = manifold_measures(x, x, Weights.once(x, x))
        assert all(float(found[name]) == 1 for name in ("precision", "recall", "coverage"))

    def test_of_points_elsewhere_are_zero(self):
        x, y = points(30, 3, 3, shift=100), points(30, 3, 4)
        assert all(float(of) == 0 for of in manifold_measures(x, y, Weights.once(x, y)).values())


class TestPrecisionRecallCurve:
    def test_of_a_hand_made_case(self):
        """Half of the samples lie where half of the data are: (1/2, 1/2) is the corner of the curve."""
        alpha, beta = precision_recall_curve(torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.0, 0.5, 0.5]]))
        slopes = torch.linspace(1e-6, math.pi / 2 - 1e-6, alpha.shape[1], dtype=torch.float64).tan()
        torch.testing.assert_close(alpha[0], (slopes / 2).clamp(max=0.5))
        torch.testing.assert_close(beta[0], (0.5 / slopes).clamp(max=0.5))

    def test_of_the_same_points_is_one(self):
        x = points(60, 2, 0)
        assert all(float(of) == pytest.approx(1) for of in prd_measures(x, x, Weights.once(x, x), seed=0).values())

    def test_half_of_the_modes_are_missed(self):
        """Every sample is as data, half of the data have no sample: F_1/8 hears of the first, F_8 of the second."""
        corners = 50 * torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]).double()
        y = corners.repeat(20, 1) + 1e-6 * points(80, 2, 1)
        x = corners[:2].repeat(40, 1) + 1e-6 * points(80, 2, 2)
        found = prd_measures(x, y, Weights.once(x, y), seed=0)
        swapped = prd_measures(y, x, Weights.once(y, x), seed=0)
        assert found["prd_recall"] < 0.52 < 0.9 < found["prd_precision"]
        assert swapped["prd_precision"] < 0.52 < 0.9 < swapped["prd_recall"]

    def test_samples_that_are_all_alike_are_clustered_without_a_warning(self):
        x = torch.zeros(30, 2, dtype=torch.float64)
        assert float(prd_measures(x, x, Weights.once(x, x), seed=0)["prd_recall"]) == pytest.approx(1)


class TestClasses:
    def test_score_is_one_without_information_and_the_number_of_classes_at_best(self):
        y = torch.zeros(8, 4)
        sure = 50 * torch.eye(4).repeat(2, 1)
        assert float(class_measures(y, y, Weights.once(y, y))["class_score"]) == pytest.approx(1)
        assert float(class_measures(sure, y, Weights.once(y, y))["class_score"]) == pytest.approx(4)

    def test_modes_and_their_divergence(self):
        x, y = torch.eye(4)[[0, 0, 0, 1]], torch.eye(4)[[0, 1, 2, 2]]
        found = class_measures(x, y, Weights.once(x, y))
        assert float(found["modes"]) == 2
        assert float(found["mode_kl"]) == pytest.approx(0.75 * math.log(3) + 0.25 * math.log(1))
        missing = class_measures(torch.eye(4)[[3, 3, 3, 3]], y, Weights.once(x, y))  # half an image of the data
        assert float(missing["mode_kl"]) == pytest.approx(math.log(1 / (0.5 / 4)))
        assert float(class_measures(y, y, Weights.once(y, y))["mode_kl"]) == pytest.approx(0)
        x, y = torch.eye(3)[[0] * 20 + [1] * 20 + [2]], torch.eye(3)[[0] * 10 + [1] * 10]
        assert float(class_measures(x, y, Weights.once(x, y))["mode_kl"]) == 0  # not below


@pytest.mark.parametrize("at_once", [9, 10**6])
def test_parzen_estimate_is_the_density_of_the_windows(at_once):
    x, y = points(20, 2, 0, scale=0.3), points(30, 2, 1, scale=0.3)
    found, sigma, n = parzen_log_likelihood(x, y, torch.ones(1, 30, dtype=torch.float64), at_once)
    normal = torch.distributions.Normal(x, sigma)

    def log_density(z):
        return (normal.log_prob(z[:, None]).sum(2).logsumexp(1) - math.log(20)).mean()

    torch.testing.assert_close(found[0], log_density(y[1::2]))
    assert n == 15
    by_width = []
    for width in sample_metrics.SIGMAS:
        normal = torch.distributions.Normal(x, width)
        by_width.append(float(log_density(y[::2])))
    assert sigma == float(sample_metrics.SIGMAS[int(np.argmax(by_width))])


class TestCopies:
    def test_neighbours_are_those_of_brute_force_over_several_banks(self, monkeypatch):
        monkeypatch.setattr(sample_metrics, "_BANK", 16)
        x, train = torch.rand(10, 1, 3, 3), ArrayDataset(torch.rand(50, 1, 3, 3))
        distances, rows = nearest_training(x, train, 3, at_once=64)
        expected = torch.cdist(x.flatten(1), train.x.flatten(1)).topk(3, largest=False)
        torch.testing.assert_close(distances, expected.values)
        assert torch.equal(rows, expected.indices)

    def test_a_copy_is_near_to_one_image_and_a_blurred_one_to_many(self):
        train = ArrayDataset(torch.rand(40, 1, 4, 4))
        noisy = (train.x + 0.01 * torch.rand_like(train.x)).clamp(max=1)
        mean = train.x.mean(0, keepdim=True).expand(5, -1, -1, -1)
        assert bool(copied(nearest_training(noisy, train, 2)[0]).all())
        assert bool(copied(nearest_training(train.x, train, 2)[0]).all())
        assert not bool(copied(nearest_training(mean, train, 2)[0]).any())
        others = torch.rand(30, 1, 4, 4)
        assert not bool(copied(nearest_training(others, train, 2)[0]).any())
        near, far = (nearest_training(x, train, 2)[0] for x in (noisy, others))
        weights = bootstrap(40, 30, 2, seed=0)
        assert closer_than_data(near, far, weights).tolist() == [1, 1, 1]
        assert closer_than_data(far, far, bootstrap(30, 30, 2, seed=0))[0] == 0.5


class Memorised(GenerativeModel):
    """Draws its training images."""

    def __init__(self, images):
        super().__init__(tuple(images.shape[1:]))
        self.images = nn.Parameter(images)

    def _sample(self, n, generator):
        return self.images[torch.randint(len(self.images), (n,), generator=generator)].detach()

    def training_step(self, batch, step):
        raise NotImplementedError


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", split="train").take(300), data.load("digits", split="test").take(90)


@pytest.fixture(scope="module")
def features(digits):
    return FeatureNetwork.trained_on(digits[0], steps=100)


@pytest.fixture(scope="module")
def of_noise(digits, features):
    noise = torch.rand(70, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return sample_quality(noise, digits[1], features=features, train=digits[0], n=90, resamples=30, name="noise")


class TestSampleQuality:
    def test_noise_is_far_and_training_images_are_not(self, of_noise):
        found, control = of_noise.measured, of_noise.control
        assert found["frechet_distance"]["value"] > 3 * control["frechet_distance"]["value"]
        assert found["coverage"]["high"] < control["coverage"]["low"]
        assert control["recall"]["value"] > 0.8
        assert control["modes"]["value"] == of_noise.classes == 10
        assert (of_noise.n["samples"], of_noise.n["data"], of_noise.n["train"], of_noise.n["control"]) == (
            70,
            90,
            300,
            90,
        )
        assert found["copies"]["value"] == 0
        for side in (found, control):
            for name, one in side.items():
                assert one["low"] is None or one["low"] <= one["value"] <= one["high"], name
        assert of_noise.features["accuracy"]["value"] > 0.8
        assert any("100 features" in line for line in of_noise.doubts)  # of 70 images
        assert "No sign" in of_noise.summary()

    def test_neither_batches_nor_chunks_matter_and_nothing_is_touched(self, of_noise, digits, features, monkeypatch):
        noise = torch.rand(70, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        before, state, flags = features.fingerprint, torch.get_rng_state(), features.network.training
        numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
        monkeypatch.setattr(sample_metrics, "_BANK", 64)
        again = sample_quality(
            noise, digits[1], features=features, train=digits[0], n=90, resamples=30, name="noise", batch_size=7
        )
        for side in ("measured", "control"):
            for name, one in getattr(of_noise, side).items():
                for end, value in one.items():
                    expected = value if value is None else pytest.approx(value, rel=1e-4, abs=1e-6)
                    assert getattr(again, side)[name][end] == expected, (name, end)
        assert torch.equal(state, torch.get_rng_state())
        assert (numpy_state == np.random.get_state()[1]).all()  # noqa: NPY002
        del features.__dict__["fingerprint"]
        assert (features.fingerprint, features.network.training) == (before, flags)

    def test_a_model_that_memorised_is_seen(self, digits, features):
        found = sample_quality(
            Memorised(digits[0].images()), digits[1], features=features, train=digits[0], n=60, resamples=0
        )
        assert found.measured["copies"]["value"] == found.measured["closer"]["value"] == 1
        assert found.control["copies"]["value"] < 0.05
        assert "Memorised: 100 % of the samples" in found.summary()
        assert found.measured["recall"]["low"] is None
        assert 'class="summary violated"' in found.html()
        assert found.measured["precision"]["value"] > 0.8

    def test_a_seed_gives_the_same_samples(self, digits, features):
        model = VAE((1, 8, 8), architecture="mlp", width=8, latent_dim=2, quantization="nearest").train()
        first, again, other = (
            sample_quality(model, digits[1], features=features, n=25, resamples=2, seed=seed).to_dict()
            for seed in (3, 3, 4)
        )
        assert model.training
        assert first["control"] is None
        assert first["left_out"] == [
            "copies of training images, and what training images would get: no training images"
        ]
        for one in (first, again, other):
            del one["wall_seconds"]
        assert first == again
        assert first["pictures"] != other["pictures"]

    def test_classes_are_left_out_where_nobody_knows_them(self, digits, features):
        unlabelled = ArrayDataset(digits[1].x, name="mine")
        other = ArrayDataset(digits[1].x, digits[1].y, tuple("abcdefghij"), name="letters")
        encoder = FeatureNetwork(nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Unflatten(1, (2, 2))), "1", "maps")
        for images, network, why in (
            (unlabelled, features, "mine has no labels"),
            (other, features, "does not know the classes of letters"),
            (digits[1], encoder, "maps says no classes"),
        ):
            found = sample_quality(digits[0].images()[:40], images, features=network, n=40, resamples=0)
            assert "class_score" not in found.measured
            assert any(why in line for line in found.left_out)

    def test_data_that_were_trained_on_are_told(self, digits, features):
        found = sample_quality(
            torch.rand(30, 1, 8, 8), digits[0].take(40), features=features, train=digits[0], n=40, resamples=0
        )
        assert any("40 images of the data are training images too" in line for line in found.doubts)

    def test_precision_by_an_outlier_is_doubted(self):
        """The ball of the last image holds samples that are far from all the others."""
        images = 0.1 + 0.01 * torch.rand(40, 1, 2, 2)
        images[-1] = 1
        samples = 0.8 + 0.01 * torch.rand(30, 1, 2, 2)
        pixels = FeatureNetwork(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), "0")
        found = sample_quality(samples, images, features=pixels, n=40, resamples=50)
        assert found.measured["precision"]["value"] == 1
        assert found.measured["precision"]["low"] < 0.8  # where the outlier is not drawn
        assert any("owed to outliers among the data" in line and "0.20" in line for line in found.doubts)
        near = sample_quality(images[:-1], images, features=pixels, n=40, resamples=0)
        assert not near.doubts

    def test_wrong_input_is_one_clear_line(self, digits, features):
        test, x = digits[1], torch.rand(30, 1, 8, 8)
        large = networks.mlp(100, [4], 10)
        wide = FeatureNetwork(nn.Sequential(nn.Flatten(), nn.Linear(64, 5000), nn.Linear(5000, 10)), name="wide")
        broken = networks.mlp(64, [4], 10)
        nn.init.constant_(broken[1].weight, torch.nan)
        for samples, images, network, options, message in (
            (x[:19], test, features, {}, "at least 20 samples are compared, got 19"),
            (x, test.take(19), features, {}, "at least 20 images of a side are compared"),
            (x, test, features, {"n": 3}, "at least 20 images"),
            (x, test, features, {"train": x[:3]}, "train has 3"),
            (
                torch.rand(30, 3, 8, 8),
                test,
                features,
                {},
                "samples are images (3, 8, 8), those of digits/test are (1, 8",
            ),
            (x, test, features, {"train": torch.rand(30, 1, 9, 9)}, "train are images (1, 9, 9)"),
            (255 * x, test, features, {}, "outside the bounds"),
            (x, test, large, {}, "the feature network 'Sequential' does not take images (1, 8, 8)"),
            (x, test, wide, {}, "5,000 features, more than 4,096"),
            (x, test, broken, {}, "NaN or infinity"),
            (x, test, (features.network, "nowhere"), {}, "nowhere"),
            (x, torch.full((30, 1, 8, 8), 0.5), features, {}, "all images of data have the same features of 'small"),
            (Memorised(torch.rand(30, 1, 9, 9)), test, features, {}, "the model's samples are images (1, 9, 9)"),
        ):
            with pytest.raises(ValueError, match=re.escape(message)) as error:
                sample_quality(samples, images, features=network, resamples=0, **{"n": 40} | options)
            assert "\n" not in str(error.value)
        with pytest.raises(TypeError, match="samples must be images"):
            sample_quality("runs/vae", test, features=features)
        with pytest.raises(TypeError, match="features must be a network"):
            sample_quality(x, test, features="example:digits")
        with pytest.raises(TypeError, match="features must be a network, or one and the name of a layer, not tuple"):
            sample_quality(x, test, features=(features.network, "1", 2))
        with pytest.raises(TypeError, match="layer must be the name of a layer, a string, got 1"):
            sample_quality(x, test, features=(features.network, 1), resamples=0)


def test_a_feature_network_is_a_function_of_data_and_seed(digits):
    small = digits[0].take(60)
    first, again, other = (FeatureNetwork.trained_on(small, seed, steps=3).fingerprint for seed in (0, 0, 1))
    assert first == again != other
    with pytest.raises(ValueError, match="no labels"):
        FeatureNetwork.trained_on(ArrayDataset(small.x))
    with pytest.raises(ValueError, match="two classes"):
        FeatureNetwork.trained_on(small.subset((small.y == 3).nonzero().squeeze(1)))


class TestPage:
    def test_is_whole_and_drawn_again_from_its_file(self, of_noise, tmp_path):
        page = of_noise.save(tmp_path, "robustgen quality")
        html = page.read_text()
        record = load_quality(tmp_path / "quality.json")
        assert quality_html(record) == html
        for needed in (
            'name="viewport"',
            "Frechet distance",
            "not an FID",
            "data:image/png",
            of_noise.features["layer"],
        ):
            assert needed in html
        assert not any(elsewhere in html for elsewhere in ("http:", "https:", "<script", "<link"))
        assert html.count('alt="sample"') == 40 + 2 * 8
        assert html.count('alt="training image"') == 2 * 8 * 3
        assert "| precision |" in quality_markdown(record)

    def test_names_are_text(self, of_noise, tmp_path):
        quality = of_noise.to_dict() | {"name": "<script>alert(1)</script>\x1b[31m", "data": "a|b"}
        html = write_quality(quality, tmp_path).read_text()
        assert "<script" not in html
        assert "\x1b" not in html

    def test_a_file_from_elsewhere_is_checked(self, of_noise, tmp_path):
        whole = {"format": 1, "command": None, "quality": of_noise.to_dict()}

        def changed(change):
            record = copy.deepcopy(whole)
            change(record["quality"])
            return record

        for change, message in (
            (lambda q: q.pop("features"), "lacks quality.features"),
            (lambda q: q["measured"].pop("recall"), "quality.measured lacks recall"),
            (lambda q: q["measured"]["recall"].update(low=2.0), "quality.measured.recall lies outside its interval"),
            (lambda q: q["measured"]["recall"].update(value="1"), "quality.measured.recall.value must be"),
            (lambda q: q["n"].pop("control"), "quality.n lacks control"),
            (lambda q: q["pictures"]["samples"][0].update(uint8="AAAA"), "quality.pictures.samples[0]"),
            (
                lambda q: q["pictures"]["first"][1].update(distances=[]),
                "quality.pictures.first[1] must hold a distance",
            ),
            (lambda q: q["pictures"].update(samples=300 * q["pictures"]["samples"]), "must hold at most"),
        ):
            write_json(tmp_path / "quality.json", changed(change))
            with pytest.raises(ValueError, match=re.escape(message)):
                load_quality(tmp_path / "quality.json")


def run(capsys, *arguments):
    code = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    where = tmp_path_factory.mktemp("runs") / "vae"
    settings = ["--set", "architecture=mlp", "--set", "width=8", "--set", "latent_dim=2", "--set"]
    arguments = ["train", "vae", "--data", "digits", "--run", str(where), *settings, "quantization=nearest"]
    assert cli.main([*arguments, "--hold-out", "0", "--epochs", "1", "--quiet"]) == 0
    return where


class TestCommand:
    def test_end_to_end(self, vae, tmp_path, capsys):
        code, out, err = run(
            capsys, "quality", "--checkpoint", vae, "--n", 40, "--resamples", 5, "--out", tmp_path, "--quiet"
        )
        assert code == 0, err
        assert out.startswith(f"40 samples of VAE ({vae}) beside 40 images of digits/test: Frechet distance")
        assert "example:digits, output of backbone.5: 32 numbers, comes with the package" in out
        quality = load_quality(tmp_path / "quality.json")["quality"]
        assert quality["n"]["train"] < 0.9 * 1438  # neither the class that was held out nor the tenth
        assert quality["features"]["accuracy"]["value"] > 0.8
        page = (tmp_path / "quality.html").read_bytes()
        (tmp_path / "quality.html").unlink()
        assert run(capsys, "report", tmp_path)[0] == 0
        assert (tmp_path / "quality.html").read_bytes() == page
        assert "| recall |" in run(capsys, "report", tmp_path, "--markdown")[1]

    def test_as_json_with_features_that_were_asked_for(self, vae, tmp_path, capsys):
        """Of a saved model without run.json, on the data's own parts."""
        from robustgen.generative import load

        load(vae).save(tmp_path / "saved")
        asked = ["--features", "example:digits", "--layer", "backbone.3", "--json", "--n", "30", "--resamples", "0"]
        code, out, err = run(capsys, "quality", "--checkpoint", tmp_path / "saved", "--data", "digits", *asked)
        assert code == 0, err
        found = json.loads(out)
        assert found["features"]["layer"] == "output of backbone.3"
        assert found["n"]["train"] == 1438
        assert "pictures" not in found

    def test_a_network_is_trained_where_none_comes_with_the_package(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(FeatureNetwork, "trained_on", functools.partial(FeatureNetwork.trained_on, steps=5))
        whole = data.load("digits", split="train").take(120)
        x = np.pad(whole.x.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
        np.savez(tmp_path / "labelled.npz", x=x, y=whole.y.numpy())
        np.savez(tmp_path / "unlabelled.npz", x=x)
        model = VAE((1, 10, 10), architecture="mlp", width=8, latent_dim=2, quantization="nearest")
        model.save(tmp_path / "vae")
        arguments = ["quality", "--run", tmp_path / "vae", "--n", 30, "--resamples", 0, "--data"]
        code, _, err = run(capsys, *arguments, tmp_path / "unlabelled.npz")
        assert code == 2
        assert "no labels to train a feature network on" in err
        code, out, err = run(capsys, *arguments, tmp_path / "labelled.npz")
        assert code == 0, err
        assert "small classifier, input of 7: 100 numbers, trained for this on 120 labelled images" in out
        assert "left out: copies of training images" in out

    def test_wrong_use_is_one_line(self, vae, tmp_path, capsys):
        this = ["quality", "--checkpoint", vae]
        np.savez(tmp_path / "large.npz", x=np.zeros((30, 1, 9, 9), np.uint8))
        for arguments, message in (
            (["quality", "--checkpoint", tmp_path, "--data", "digits"], "no checkpoint here"),
            (["quality", "--checkpoint", "example:digits"], "no checkpoint here"),
            ([*this, "--data", tmp_path / "large.npz"], "holds inputs of shape (1, 9, 9), the network takes (1, 8, 8)"),
            ([*this, "--n", "5"], "at least 20 images"),
            ([*this, "--n", "0"], "--n must be at least 1"),
            ([*this, "--features", "example:mnist"], "takes images (1, 28, 28), those of digits/test are (1, 8, 8)"),
            ([*this, "--features", vae], "holds a VAE, not a classifier"),
            ([*this, "--layer", "3"], "--layer is of the network that --features names"),
            ([*this, "--features", "example:digits", "--layer", "backbone.55"], "backbone.5"),
        ):
            code, _, err = run(capsys, *arguments, "--quiet")
            assert (code, err.count("\n")) == (2, 1), err
            assert message in err


def test_fid_is_the_distance_in_the_features_of_the_network_with_those_weights(tmp_path, monkeypatch):
    """Of a stand-in for torch-fidelity, which is no dependency."""
    images = [torch.rand(30, 1, 4, 4), torch.rand(40, 1, 4, 4) ** 2]
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(ImportError, match=r"pip install robustgen\[fidelity\]"):
        fid(*images, tmp_path / "w.pth")

    class Inception(nn.Linear):
        def __init__(self, name, features, weights):
            super().__init__(48, 5)
            assert features == ["2048"]
            self.load_state_dict(torch.load(weights, weights_only=True))

        def forward(self, x):
            assert x.dtype == torch.uint8
            assert x.shape[1:] == (3, 4, 4)
            return (super().forward(x.flatten(1).float()),)

    library = types.ModuleType("inception")
    library.FeatureExtractorInceptionV3 = Inception
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", library)
    network = nn.Linear(48, 5)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    seen = [network((255 * x).round().expand(-1, 3, -1, -1).flatten(1)).detach() for x in images]
    assert fid(*images, tmp_path / "w.pth", batch_size=7) == pytest.approx(frechet_distance(*seen), rel=1e-4)
    torch.save(nn.Linear(3, 3).state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match="not the weights of"):
        fid(*images, tmp_path / "other.pth")
    torch.save(network, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="more than tensors"):
        fid(*images, tmp_path / "code.pth")
