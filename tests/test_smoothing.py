"""Randomized smoothing against closed forms: radii that are distances, levels that hold, attacks that may not win."""

import json
import math
import re

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import nn

from robustgen import cli, data
from robustgen.attacks import PGD
from robustgen.binomial import lower_bound, majority_p_value, most_provable, needed_draws, upper_bound
from robustgen.evaluation import certify_robustness
from robustgen.evaluation.certification_page import certification_html, load_certification, write_certification
from robustgen.fortified import SmoothedClassifier, smooth
from robustgen.fortified.smoothing_noise import Gaussian, Splitting, Uniform
from robustgen.model import check_rows_draw_alone
from robustgen.networks import mlp
from robustgen.training import ClassifierObjective, Trainer
from robustgen.turns import seeded

OWN = torch.Generator().manual_seed(0)  # which no reset of the global random state resets


def half_space(weights, bias=0.0):
    """Class 1 where w.x + b > 0."""
    linear = nn.Linear(len(weights), 2)
    with torch.no_grad():
        linear.weight.copy_(torch.stack([torch.zeros(len(weights)), torch.tensor(weights)]))
        linear.bias.copy_(torch.tensor([0.0, bias]))
    return linear.eval()


@pytest.fixture(scope="module")
def trained():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), mlp(64, [64], 10))
        x, y = data.digits("train").images(), data.digits("train").labels()
        generator = torch.Generator().manual_seed(0)
        noisy = torch.cat([x + 0.25 * torch.randn(x.shape, generator=generator) for _ in range(4)])
        Trainer(ClassifierObjective(), epochs=10, batch_size=64, progress=False).fit(model, (noisy, y.repeat(4)))
        return model.eval()


class TestBounds:
    @pytest.mark.parametrize("alpha", [0.001, 0.05])
    def test_the_bound_is_where_the_tail_is_alpha(self, alpha):
        for n, k in ((100, 1), (100, 60), (1000, 990), (50, 50)):
            low = lower_bound(torch.tensor([k]), n, alpha).item()
            assert binom.sf(k - 1, n, low) == pytest.approx(alpha, rel=1e-6)  # P(K >= k) at the bound
            high = upper_bound(torch.tensor([n - k]), n, alpha).item()
            assert high == pytest.approx(1 - low)

    def test_its_level(self):
        draws = torch.from_numpy(binom.rvs(200, 0.7, size=20_000, random_state=0))
        wrong = (lower_bound(draws, 200, 0.05) > 0.7).double().mean().item()
        assert 0.02 < wrong <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 20_000)

    def test_all_draws(self):
        assert most_provable(100, 0.001) == pytest.approx(lower_bound(torch.tensor([100]), 100, 0.001).item())
        assert most_provable(needed_draws(0.9, 0.01), 0.01) > 0.9 >= most_provable(needed_draws(0.9, 0.01) - 1, 0.01)

    def test_a_majority(self):
        found = majority_p_value(torch.tensor([8, 5, 5]), torch.tensor([0, 5, 4]))
        assert found.tolist() == pytest.approx([2 / 256, 1.0, 1.0])


class TestRadii:
    def test_gaussian_is_the_distance_to_a_plane(self):
        weights, sigma = [3.0, 4.0], 0.5
        x = torch.tensor([[0.1, 0.05], [0.05, 0.02], [0.3, 0.1]])
        distances = (x @ torch.tensor(weights)) / 5
        exact = Gaussian(sigma).radius(torch.special.ndtr(distances.double() / sigma))
        assert torch.allclose(exact, distances.double(), atol=1e-6)
        certificate = smooth(half_space(weights), sigma).certify(x, n0=2000, n=20_000)
        assert certificate.prediction.tolist() == [1, 1, 1]
        assert certificate.norm == "L2"
        assert bool((certificate.radius <= distances).all())
        assert torch.allclose(certificate.radius, distances.double(), atol=0.025)

    def test_uniform_is_the_distance_to_a_threshold(self):
        noise = Uniform(0.3)
        x = torch.tensor([[0.55], [0.7], [0.99]])
        distances = (x[:, 0] - 0.5).double()
        assert torch.allclose(noise.radius(0.5 + distances / (2 * noise.half_width)), distances)
        certificate = smooth(half_space([1.0], -0.5), 0.3, noise="uniform").certify(x, n=20_000)
        assert certificate.norm == "L1"
        assert bool((certificate.radius <= distances).all())
        assert torch.allclose(certificate.radius, distances, atol=0.025)

    @pytest.mark.parametrize("noise", [Gaussian(0.25), Uniform(0.25)])
    def test_share_is_the_inverse(self, noise):
        shares = torch.tensor([0.5, 0.6, 0.9])
        assert [noise.share(r) for r in noise.radius(shares).tolist()] == pytest.approx(shares.tolist())

    @pytest.mark.parametrize("noise", [Gaussian(0.3), Uniform(0.3)])
    def test_noise_has_its_standard_deviation(self, noise):
        drawn = noise.draw(torch.full((50,), 0.5), 4000, torch.Generator().manual_seed(0))
        assert drawn.std().item() == pytest.approx(0.3, rel=0.01)
        assert drawn.mean().item() == pytest.approx(0.5, abs=0.005)

    def test_a_coin_abstains(self):
        certificate = smooth(half_space([1.0, -1.0]), 0.5).certify(torch.full((1, 2), 0.5), n=1000)
        assert certificate.prediction.tolist() == [-1]
        assert certificate.radius.tolist() == [0.0]

    def test_nan_is_no_vote(self):
        class Broken(nn.Module):
            def forward(self, x):
                return torch.where(x[:, :1] > 0.5, torch.nan, torch.tensor([0.0, 1.0]))

        certificate = smooth(Broken(), 0.5).certify(torch.full((1, 2), 0.5), n=1000)
        assert 400 < int(certificate.counts.sum()) < 600
        assert certificate.draws.tolist() == [1100]  # asked for, answered or not
        assert certificate.prediction.tolist() == [-1]


class TestDraws:
    def test_neither_batch_nor_order_nor_its_size_matters(self, trained):
        x = data.digits("test").images()[:6]
        whole = smooth(trained, 0.25).certify(x, n=350)
        order = torch.tensor([4, 2, 0, 5, 1, 3])
        shuffled = smooth(trained, 0.25, batch_size=100).certify(x[order], n=350)
        assert torch.equal(whole.counts[order], shuffled.counts)
        assert torch.equal(whole.counts[2:3], smooth(trained, 0.25).certify(x[2:3], n=350).counts)

    def test_the_global_random_state_and_the_model_stay(self, trained):
        model = smooth(trained.train(), 0.25)
        state, x = torch.get_rng_state(), data.digits("test").images()[:2]
        model.certify(x, n=100)
        model.predict(x, n=100)
        assert torch.equal(state, torch.get_rng_state())
        assert trained.training
        trained.eval()

    def test_choice_and_bound_do_not_share_draws(self, trained):
        x = data.digits("test").images()[:1]
        model = smooth(trained, 1.5)
        certificate = model.certify(x, n0=100, n=100)
        with torch.no_grad():
            chosen = next(model._count(ask, one, key, 0, 100)[0] for ask, one, key in model._each(x, None))
        assert not torch.equal(chosen, certificate.counts[0])

    def test_another_seed(self, trained):
        x = data.digits("test").images()[:3]
        model = smooth(trained, 1.0)
        assert not torch.equal(model.certify(x, n=500).counts, model.certify(x, n=500, seed=1).counts)
        assert torch.equal(
            smooth(trained, 1.0, seed=1).certify(x, n=500).counts, model.certify(x, n=500, seed=1).counts
        )

    def test_forward_draws_afresh_and_is_differentiable(self, trained):
        model, x = smooth(trained, 0.25).eval(), data.digits("test").images()[:2].requires_grad_()
        first, second = model(x), model(x)
        assert not torch.equal(first, second)
        assert torch.allclose(first.exp().sum(1), torch.ones(2))
        first[:, 0].sum().backward()
        assert bool((x.grad != 0).any())

    def test_an_early_stop_loses_draws_and_no_level(self):
        model = smooth(half_space([1.0, 0.0]), 0.5)
        x = torch.tensor([[0.1, 0.5], [0.9, 0.5]])
        full, stopped = model.certify(x, n=2000), model.certify(x, n=2000, radius=0.6)
        assert stopped.draws[0] < full.draws[0] == 2100
        assert stopped.radius[0] < 0.6
        assert stopped.radius[0] <= full.radius[0]
        assert stopped.p_lower[0] == lower_bound(stopped.counts[0, 1:], 2000, 0.001)
        assert stopped.draws[1] < 2100  # it is known beforehand that it is proved
        assert 0.6 < stopped.radius[1] <= full.radius[1]

    def test_an_early_stop_decides_every_radius_as_all_draws_do(self):
        model, radii = smooth(half_space([1.0, 0.0], -0.5), 0.5), (0, 0.1, 0.3, 0.45)
        x = torch.stack([torch.linspace(0.3, 1.0, 12), torch.full((12,), 0.5)], 1)
        full, stopped = model.certify(x, n=1000), model.certify(x, n=1000, radius=radii)
        assert torch.equal(full.prediction, stopped.prediction)
        for radius in radii:
            assert torch.equal(full.radius >= radius, stopped.radius >= radius)
        assert stopped.draws.sum() < full.draws.sum()

    def test_a_radius_may_be_a_number_of_torch_or_numpy(self):
        model, x = smooth(half_space([1.0, 0.0]), 0.5), torch.tensor([[0.9, 0.5]])
        for radius in (
            torch.tensor(0.1),
            np.float32(0.1),
            np.array([0.1, 0.2]),
            [torch.tensor(0.1)],
            torch.ones(2) / 9,
        ):
            assert model.certify(x, n=1000, radius=radius).draws < 1100

    def test_a_secret_seed(self):
        one, other = (smooth(half_space([1.0, 0.0], -0.4), 0.5, seed=None) for _ in range(2))
        x = torch.full((1, 2), 0.5)
        assert torch.equal(one.certify(x, n=1000).counts, one.certify(x, n=1000).counts)
        assert not torch.equal(one.certify(x, n=1000).counts, other.certify(x, n=1000).counts)
        assert one.seed is None
        assert str(one._key) not in repr(one)

    def test_embeddings_that_look_alike_at_8_bits_draw_differently(self):
        x = torch.tensor([[0.0, 0.0], [0.001, 0.0], [0.0, -0.001]])
        counts = smooth(half_space([1.0, 0.0]), 0.5, bounds=None).certify(x, n=1000).counts
        assert len(counts.unique(dim=0)) == 3

    @pytest.mark.parametrize("noise", ["gaussian", "uniform"])
    def test_an_early_stop_does_not_depend_on_the_batch(self, noise):
        x = torch.tensor([[0.8, 0.5], [0.75, 0.5], [0.95, 0.5]])
        found = [
            smooth(half_space([1.0, 0.0], -0.5), 0.5, noise=noise, batch_size=size).certify(x, n=3000, radius=0.35)
            for size in (100, 500, 3000)
        ]
        assert found[0].draws[1] < 3100
        for other in found[1:]:
            assert torch.equal(other.counts, found[0].counts)
            assert torch.equal(other.draws, found[0].draws)

    def test_predict_agrees_with_certify(self, trained):
        x = data.digits("test").images()[:20]
        model = smooth(trained, 0.25)
        predicted, certificate = model.predict(x, n=500), model.certify(x, n=500)
        both = (predicted >= 0) & (certificate.prediction >= 0)
        assert both.double().mean() > 0.7
        assert torch.equal(predicted[both], certificate.prediction[both])


class TestSplitting:
    """Certificates without chance: every version is counted here by a loop that knows nothing of tensors."""

    def test_versions_are_those_of_the_definition(self):
        noise = Splitting(0.2, levels=10, seed=3)
        x = torch.tensor([0.0, 0.3, 1.0])
        found = torch.cat(list(noise.all_versions(x, 4)))
        width = noise.versions / 10
        assert noise.versions == 7
        own = [noise._at(torch.full((3,), 0.0), torch.tensor([k])) for k in range(7)]
        assert len(torch.cat(own).unique(dim=0)) > 1
        for column, value in enumerate((0.0, 0.3, 1.0)):
            middles = []
            for place in range(7):
                s = (place + 0.5) / 10
                below = max(t for t in (s + width * k for k in range(-4, 4)) if t < value)
                middles.append((max(below, 0.0) + min(below + width, 1.0)) / 2)
            assert sorted(found[:, column].tolist()) == pytest.approx(sorted(middles), abs=1e-6)

    def test_a_threshold_is_certified_up_to_itself(self):
        """Of the middles of width w the share above 1/2 is (x - 1/2) / w + 1/2 where neither bound is near."""
        model = smooth(half_space([1.0], -0.5), 0.05, noise="splitting", levels=100)
        x = torch.tensor([[0.53], [0.5], [0.46], [0.9]])
        certificate = model.certify(x)
        assert certificate.counts.sum(1).tolist() == [17] * 4
        assert certificate.prediction.tolist()[::2] == [1, 0]
        assert certificate.radius[[0, 2, 3]].tolist() == pytest.approx([0.03, 0.04, 0.085], abs=0.006)
        assert certificate.radius[0] <= 0.03 + 0.005  # the next level beyond the threshold is at 1/2

    def test_no_change_of_levels_beats_it(self):
        """Every input of a grid, for a random table of answers."""
        generator = torch.Generator().manual_seed(1)

        class Table(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("answers", torch.rand(101, 3, generator=generator))

            def forward(self, x):
                return self.answers[(x @ torch.tensor([37.0, 23.0])).long() % 101]

        model = smooth(Table(), 0.4, noise="splitting", levels=6, seed=2)
        grid = torch.cartesian_prod(torch.arange(7), torch.arange(7)).float() / 6
        certificate = model.certify(grid)
        shares = certificate.counts.double() / model.noise.versions
        apart = torch.cdist(grid.double(), grid.double(), p=1)
        moved = (shares[:, None] - shares).abs().amax(2)
        assert bool((moved <= apart / (2 * model.noise.half_width) + 1e-6).all())
        assert bool((moved[apart > 0] > 0).any())
        inside = apart < certificate.radius[:, None] - 1e-6
        same = certificate.prediction[:, None] == certificate.prediction
        assert bool((certificate.radius > 1.5 / 6).any())  # some reach other inputs of the grid
        assert bool((inside & ~torch.eye(49, dtype=torch.bool)).any())
        assert bool(same[inside & (certificate.radius[:, None] > 0)].all())
        assert torch.equal(model.predict(grid), certificate.prediction)

    def test_refused(self):
        with pytest.raises(ValueError, match="of inputs in whole 255ths"):
            smooth(half_space([1.0]), 0.5, noise="splitting").certify(torch.tensor([[0.123456]]))
        with pytest.raises(ValueError, match="splitting noise is of inputs in"):
            smooth(half_space([1.0]), 0.5, noise="splitting", bounds=None)
        with pytest.raises(
            ValueError, match=r"sigma=0.0001 is less than splitting noise of 255 levels can have: .* 0.00057"
        ):
            smooth(half_space([1.0]), 1e-4, noise="splitting")

    def test_it_can_be_trained_and_attacked(self):
        x = torch.tensor([[0.4, 0.6]], requires_grad=True)
        smooth(half_space([1.0, -1.0]), 0.2, noise="splitting", levels=10)(x)[:, 0].sum().backward()
        assert bool((x.grad != 0).all())


class Denoising(nn.Module):
    def denoise(self, x, sigma):
        return torch.zeros_like(x)


class TestDenoiser:
    def test_it_stands_before_the_network(self):
        model = smooth(half_space([1.0, 0.0], 0.25), 0.5, denoiser=Denoising())
        certificate = model.certify(torch.zeros(1, 2), n=1000)
        assert certificate.counts.tolist() == [[0, 1000]]
        assert certificate.radius.item() == pytest.approx(0.5 * 2.46, abs=0.01)  # Phi^-1(0.001 ** 0.001)

    def test_refused(self):
        with pytest.raises(TypeError, match=r"a denoiser has a method denoise\(x, sigma\), Linear has none"):
            smooth(half_space([1.0]), 0.5, denoiser=nn.Linear(1, 1))
        with pytest.raises(ValueError, match="a denoiser takes Gaussian noise away, not uniform noise"):
            smooth(half_space([1.0]), 0.5, denoiser=Denoising(), noise="uniform")


class TestAttacks:
    def test_no_attack_beats_a_certificate(self, trained):
        x, y = data.digits("test").images()[:40], data.digits("test").labels()[:40]
        model = smooth(trained, 0.25, draws=16)
        certificate = model.certify(x, n=2000)
        held = (certificate.prediction == y) & (certificate.radius > 0.05)
        assert held.sum() > 25
        x, y, radius = x[held], y[held], certificate.radius[held]
        attack = PGD(eps=1.0, norm="L2", steps=20, early_stop=False, seed=1)
        x_adv = attack(model, x, y, eps=(0.99 * radius).float())
        assert bool(((x_adv - x).flatten(1).norm(dim=1) > 0.5 * radius).all())  # it did go somewhere
        found = model.predict(x_adv, n=2000, seed=7)
        assert bool(((found == y) | (found == -1)).all())
        beyond = attack(model, x, y, eps=(4 * radius + 0.5).float())  # and it could win, were there no certificate
        assert bool((model.predict(beyond, n=2000, seed=7) != y).double().mean() > 0.5)


class TestErrors:
    @pytest.mark.parametrize(
        ("build", "error", "line"),
        [
            (lambda m: smooth(m, 0.0), ValueError, r"sigma must be a finite number > 0, got 0.0"),
            (lambda m: smooth(m, float("nan")), ValueError, r"sigma must be a finite number > 0"),
            (lambda m: smooth(lambda x: x, 0.5), TypeError, "smooth takes an nn.Module, got function"),
            (lambda m: smooth(m, 0.5, noise="cauchy"), ValueError, "unknown noise 'cauchy'"),
            (lambda m: smooth(m, 0.5, precision="float16"), ValueError, "precision must be float32 or bfloat16"),
            (lambda m: smooth(m, 0.5).certify(torch.rand(2, 2), alpha=1.0), ValueError, r"alpha must be in \(0, 1\)"),
            (lambda m: smooth(m, 0.5).certify(torch.rand(2, 2), n0=100, n=10), ValueError, "n must be at least n0"),
            (lambda m: smooth(m, 0.5).certify(torch.rand(2, 2) + 1), ValueError, "outside the bounds"),
            (lambda m: smooth(m, 0.5).certify(torch.ones(2, 2).long()), TypeError, "must be float32 or float64"),
            (
                lambda m: smooth(m, 0.5).certify(torch.rand(2, 2), n=100, radius=2.0),
                ValueError,
                r"^100 draws prove radii up to 0.75 at sigma=0.5, not 2, but \d+ draws could",
            ),
            (
                lambda m: smooth(m, 0.5, noise="uniform").certify(torch.rand(2, 2), n=100, radius=2.0),
                ValueError,
                "not 2, and no number of draws does",
            ),
            (lambda m: smooth(m, 0.5).certify(torch.rand(2, 2), radius="0.1"), TypeError, "radius must be a number"),
            (lambda m: smooth(m, 0.5).certify(torch.rand(2, 2), seed=1.5), TypeError, "seed must be an integer"),
            (lambda m: smooth(m, 0.5, seed=2**70), ValueError, r"seed must be below 2\^63"),
            (lambda m: smooth(m, 0.5).certify(torch.rand(2, 3)), ValueError, "the model fails on inputs"),
        ],
    )
    def test_one_clear_line(self, build, error, line):
        with pytest.raises(error, match=line):
            build(half_space([1.0, 1.0]))

    def test_randomness_that_rows_share_is_refused_and_that_of_each_row_is_not(self):
        class Noisy(nn.Module):
            def __init__(self, shared):
                super().__init__()
                self.shared, self.linear = shared, half_space([1.0, 1.0])

            def forward(self, x):
                noise = torch.randn(1 if self.shared else len(x), 2)
                return self.linear(x) + noise

        x = torch.rand(2, 2)
        with pytest.raises(ValueError, match="random numbers that all rows of a batch share"):
            smooth(Noisy(True), 0.5).certify(x, n=200)
        hidden = Noisy(True)
        hidden.register_forward_hook(lambda module, args, out: out + 1e-3 * torch.randn_like(out))
        with pytest.raises(ValueError, match="random numbers that all rows of a batch share"):
            smooth(hidden, 0.5).certify(x, n=200)
        model = smooth(Noisy(False), 0.5)
        assert torch.equal(model.certify(x, n=200).counts, model.certify(x.flip(0), n=200).counts.flip(0))

    @pytest.mark.parametrize(
        "answer",
        [
            lambda x: x.mean() + 0 * x[:, 0] + 1e-3 * torch.randn(len(x)),
            lambda x: nn.BatchNorm1d(2, track_running_stats=False)(nn.functional.dropout(x, 0.5))[:, 0],
            lambda x: (noise := torch.randn(len(x))) - noise.mean() + x[:, 0],
            lambda x: x.mean() + 0 * x[:, 0] + 1e-3 * torch.randn(len(x), generator=OWN),
            lambda x: x[:, 0] + 0.1 * torch.randn(len(x)) + 0.1 * torch.arange(len(x)),
            lambda x: x[:, 0] + torch.randn(len(x)) + 0.5 * torch.randn(()),
        ],
    )
    def test_noise_of_its_own_hides_no_look_at_the_batch(self, answer):
        class Net(nn.Module):
            def forward(self, x):
                z = answer(x)
                return torch.stack([z, -z], 1)

        state, x = torch.get_rng_state(), torch.tensor([[0.9, 0.8]])
        for seed in range(3):
            with pytest.raises(ValueError, match=r"depends on the others in its batch|rows of a batch share"):
                smooth(Net(), 0.5, seed=seed).certify(x, n=200)
        assert torch.equal(state, torch.get_rng_state())

    @pytest.mark.parametrize(
        "draw",
        [
            lambda x: torch.randn(len(x)),
            lambda x: torch.randn(len(x), generator=OWN),
            lambda x: torch.distributions.Cauchy(0.0, 0.1).sample((len(x),)),
            lambda x: (torch.rand(len(x)) < 1e-3).float() * 99,  # rare, and large
            lambda x: torch._standard_gamma(0.5 + x[:, 0].abs()),  # by rejection: how much is drawn depends on x
        ],
    )
    def test_rows_that_draw_alone_are_not_refused(self, draw):
        rows = torch.rand(9, 2, generator=torch.Generator().manual_seed(0))
        with seeded(0):
            for _ in range(5):
                check_rows_draw_alone(lambda x: torch.stack([x[:, 0] + draw(x), x[:, 1]], 1), rows)

    def test_a_network_that_looks_at_its_batch_is_refused(self):
        class Batch(nn.Module):
            def forward(self, x):
                return torch.cat([x, x - x.mean(0)], 1)

        with pytest.raises(ValueError, match="depends on the others in its batch"):
            smooth(Batch(), 0.5).certify(torch.rand(2, 2), n=200)

    def test_an_empty_batch(self):
        certificate = smooth(half_space([1.0, 1.0]), 0.5).certify(torch.rand(0, 2))
        assert len(certificate.radius) == 0
        assert len(smooth(half_space([1.0, 1.0]), 0.5).predict(torch.rand(0, 2))) == 0

    def test_embeddings_of_a_sequence(self):
        class Mean(nn.Module):
            def forward(self, x):
                return x.mean(1)[:, :2]

        model = SmoothedClassifier(Mean(), 0.5, bounds=None)
        certificate = model.certify(5 * torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(0)), n=500)
        assert bool((certificate.radius > 0.5).all())


# Certified accuracy: counted from certificates, resumed, and never beaten.


class Threshold(nn.Module):
    """Class 1 where the first number is above 1/2."""

    def forward(self, x):
        return torch.stack([torch.zeros(len(x)), x[:, 0] - 0.5], 1)


@pytest.fixture
def smoothed():
    return smooth(Threshold(), 0.5)


PICTURE = {"shape": [1, 2, 2], "uint8": "AAAA"}
X = torch.tensor([[0.95, 0.5], [0.8, 0.5], [0.6, 0.5], [0.5, 0.5], [0.1, 0.5]])
Y = torch.tensor([1, 1, 1, 1, 1])


class TestNumbers:
    def test_they_are_those_of_distances(self, smoothed):
        report = certify_robustness(smoothed, X, Y, radii=(0.05, 0.25, 0.4), n0=1000, n=20_000)
        assert report.right.tolist() == [True, True, True, False, False]
        assert report.certified(0.25).tolist() == [True, True, False, False, False]
        assert report.certified(0.4).tolist() == [True, False, False, False, False]
        assert report.average_radius == pytest.approx((0.45 + 0.3 + 0.1) / 5, abs=0.02)
        found = report.to_dict()
        assert [row["certified"]["value"] for row in found["radii"]] == [0.6, 0.4, 0.2]
        assert found["accuracy"]["value"] == 0.6
        assert found["abstains"]["value"] == pytest.approx(0.2)
        assert found["every_element"] == pytest.approx(0.4 / math.sqrt(2))
        assert json.loads(json.dumps(found)) == found
        assert "L2 0.25: certified" in str(report)

    def test_an_attack_stays_above_the_certified_and_wins_beyond(self, smoothed):
        report = certify_robustness(smoothed, X, Y, radii=(0.2, 0.45), n0=1000, n=20_000, n_attacked=5)
        for radius in (0.2, 0.45):
            assert report.standing(radius).sum() >= report.certified(radius).sum()
            assert not report.beaten(radius).any()
        assert report.standing(0.45).tolist() == [True, False, False, False, False]
        assert "0 certificates beaten" in str(report)

    def test_a_beaten_certificate_shows(self, smoothed):
        report = certify_robustness(smoothed, X, Y, radii=(0.2,), n=1000, n_attacked=2)
        report.attacked[0.2] = torch.tensor([0, -1])
        assert report.beaten(0.2).tolist() == [True, False]
        assert report.standing(0.2).tolist() == [False, True]  # who abstains has not fallen
        assert report.to_dict()["radii"][0]["beaten"] == 1

    def test_a_change_of_every_element(self):
        model = smooth(Threshold(), 0.5, noise="uniform")
        report = certify_robustness(model, X, Y, radii=(0.4, 1e9), n=2000)
        assert report.every_element == pytest.approx(0.4 / 2)  # in L1; what n draws cannot prove does not count

    def test_a_certificate_can_be_computed_again_from_the_record(self, smoothed):
        found = certify_robustness(smoothed, X, Y, radii=(0.2,), n=2000).to_dict()["per_example"]
        for k in range(3):
            share = lower_bound(torch.tensor([found["counts"][k][1]]), 2000, 0.001)
            assert found["radius"][k] <= 0.5 * torch.special.ndtri(share).item() < found["radius"][k] + 2e-6

    def test_an_early_stop_shows_the_same_accuracies(self, smoothed):
        options = {"radii": (0.1, 0.25, 1.2, 9.0), "n": 1000}
        whole, early = (certify_robustness(smoothed, X, Y, stop_early=flag, **options) for flag in (False, True))
        for radius in options["radii"]:
            assert torch.equal(whole.certified(radius), early.certified(radius))
        assert torch.equal(whole.prediction, early.prediction)
        assert whole.saved == 0
        assert early.saved == int(whole.draws.sum() - early.draws.sum()) > 0
        assert f"{early.saved:,} saved by an early stop" in str(early)
        assert "not provable: no number of draws" in str(early)
        assert early.provable[1.2][0] is True

    def test_a_radius_that_takes_more_draws(self, smoothed):
        report = certify_robustness(smoothed, X, Y, radii=(1.0,), n=200)
        assert "not provable with 200 draws (301 would)" in str(report)

    def test_the_standard_suite_and_certificates_without_chance(self):
        report = certify_robustness(
            smooth(Threshold(), 0.5, draws=1), X[:2], Y[:2], radii=(0.2,), n=200, n_attacked=1, attack="standard"
        )
        assert report.standing(0.2).tolist() == [True]
        assert report.to_dict()["attack"] == "standard"
        exact = certify_robustness(smooth(Threshold(), 0.1, noise="splitting", levels=20), X, Y, radii=(0.15, 2.0))
        assert exact.certified(0.15).tolist() == [True, True, False, False, False]
        assert exact.most == pytest.approx(7 / 40)
        assert "no input reaches it at this sigma" in str(exact)

    def test_a_secret_seed_is_not_written(self):
        model = smooth(Threshold(), 0.5, seed=None)
        report = certify_robustness(model, X, Y, radii=(0.2,), n=100)
        assert report.to_dict()["seed"] is None
        assert torch.equal(report.counts, model.certify(X, n=100).counts)
        page = certification_html({"format": 1, "certified": [report.to_dict()]})
        assert "secret" in page
        assert str(model._key) not in page

    def test_the_seed_and_sigma_that_stand_there_were_used(self):
        model = smooth(Threshold(), 0.05, noise="splitting", levels=100, seed=5)
        report = certify_robustness(model, X, Y, radii=(0.01,), seed=3)
        assert report.seed == 5
        assert report.sigma == model.config["sigma"] == pytest.approx(17 / 100 / 2 / math.sqrt(3))
        again = smooth(Threshold(), report.sigma, noise="splitting", levels=100, seed=report.seed)
        assert again.sigma == report.sigma
        assert torch.equal(again.certify(X).counts, report.counts)

    def test_no_radius_is_rounded_up_and_the_page_names_all(self, smoothed):
        report = certify_robustness(smoothed, X, Y, radii=(0.25, 0.5, 9.0), n=100)
        report.most = 0.9999
        assert "largest that can be proved 0.999" in str(report)
        page = certification_html({"format": 1, "certified": [report.to_dict()]})
        assert re.search(r"whatever the attack, on .* at 0.25, .* at 0.5 \(L2\); nothing can be proved at 9 ", page)
        assert "(each input wrongly with probability 0.001 at most)" in page

    def test_embeddings_are_not_attacked(self):
        with pytest.raises(ValueError, match="the attack needs the bounds of the inputs"):
            certify_robustness(smooth(Threshold(), 0.5, bounds=None), X, Y, n_attacked=1)


class TestResume:
    def test_a_resumed_evaluation_asks_only_for_what_is_missing(self, smoothed, tmp_path, monkeypatch):
        x, y = X.repeat(3, 1), Y.repeat(3)
        options = {"radii": (0.2,), "n": 500, "n_attacked": 2, "run_dir": tmp_path}
        whole = certify_robustness(smoothed, x, y, radii=(0.2,), n=500, n_attacked=2)
        certify, calls = SmoothedClassifier.certify, []

        def counted(self, rows, **more):
            calls.append(len(rows))
            if len(calls) == 2:
                raise KeyboardInterrupt
            return certify(self, rows, **more)

        monkeypatch.setattr(SmoothedClassifier, "certify", counted)
        with pytest.raises(KeyboardInterrupt):
            certify_robustness(smoothed, x, y, **options)
        report = certify_robustness(smoothed, x, y, resume=True, **options)
        assert calls == [5, 5, 5, 5]  # the first of three was kept
        assert torch.equal(report.radius, whole.radius)
        assert report.attacked.keys() == whole.attacked.keys()
        assert torch.equal(report.attacked[0.2], whole.attacked[0.2])

    def test_another_evaluation_is_refused(self, smoothed, tmp_path):
        certify_robustness(smoothed, X, Y, n=200, radii=(0.1,), run_dir=tmp_path)
        with pytest.raises(ValueError, match="already holds certificates: resume"):
            certify_robustness(smoothed, X, Y, n=200, radii=(0.1,), run_dir=tmp_path)
        with pytest.raises(ValueError, match="of another evaluation: certificates differ"):
            certify_robustness(smoothed, X, Y, n=300, radii=(0.1,), run_dir=tmp_path, resume=True)
        with pytest.raises(ValueError, match="of another evaluation: model differs"):
            certify_robustness(smooth(Threshold(), 0.4), X, Y, n=200, radii=(0.1,), run_dir=tmp_path, resume=True)


def test_errors(smoothed):
    with pytest.raises(TypeError, match=r"takes what robustgen.smooth gives, got Threshold"):
        certify_robustness(Threshold(), X, Y)
    with pytest.raises(ValueError, match="there is no input to certify"):
        certify_robustness(smoothed, X[:0], Y[:0])
    with pytest.raises(ValueError, match="name one radius at least"):
        certify_robustness(smoothed, X, Y, radii=())
    with pytest.raises(ValueError, match="radius must be a finite number > 0"):
        certify_robustness(smoothed, X, Y, radii=(-1.0,))
    with pytest.raises(ValueError, match="the attack is in L2, certificates of uniform noise are in L1"):
        certify_robustness(smooth(Threshold(), 0.5, noise="uniform"), X, Y, n_attacked=2)


def test_a_network_for_digits():
    torch.manual_seed(0)
    test = data.digits("test")
    model = smooth(nn.Sequential(nn.Flatten(), mlp(64, [16], 10)), 0.25)
    report = certify_robustness(model, test.images()[:7], test.labels()[:7], n=100, radii=(0.1,), n_attacked=3)
    assert report.draws.tolist() == [200] * 7
    assert len(report.standing(0.1)) == 3


class TestCommand:
    def run(self, *arguments):
        return cli.main([*arguments, "--quiet"])

    def test_a_network_behind_a_denoiser(self, tmp_path, capsys):
        denoiser, out = str(tmp_path / "denoiser"), str(tmp_path / "out")
        few = ["--data", "digits", "--limit", "200", "--epochs", "1", "--set", "width=4"]
        assert self.run("train", "denoiser", "--run", denoiser, *few) == 0
        capsys.readouterr()
        options = ["--run", "example:digits", "--denoiser", denoiser, "--data", "digits", "--limit", "6", "--n", "100"]
        options += ["--sigma", "0.2", "--radius", "0.1", "--out", out]
        assert self.run("certify", *options) == 0
        assert "L2 0.1: certified" in (said := capsys.readouterr().out)
        record = json.loads((tmp_path / "out" / "certification.json").read_text())
        assert len(record["certified"][0]["per_example"]["radius"]) == 6
        assert self.run("certify", *options) == 2
        assert "already holds certificates" in capsys.readouterr().err
        assert self.run("certify", *options, "--resume") == 0
        assert capsys.readouterr().out == said
        page = (tmp_path / "out" / "certification.html").read_text()
        assert "whatever the attack, on" in page
        assert page.count("<img ") == 12  # each of four as it is, noisy, denoised
        assert self.run("report", out) == 0  # from the JSON alone
        assert (tmp_path / "out" / "certification.html").read_text() == page
        capsys.readouterr()
        assert self.run("report", out, "--markdown") == 0
        assert "| L2 radius | certified" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("change", "line"),
        [
            (lambda r: r.update(certified=[]), "certified must hold 1 to 64 entries"),
            (lambda r: r.update(format=7), "format must be a whole number"),
            (lambda r: r["certified"][0].pop("accuracy"), r"lacks certified\[0\].accuracy"),
            (lambda r: r["certified"][0].update(name=3), r"name must be a string, not 3"),
            (
                lambda r: r["certified"][0]["certificates"].update(alpha=0),
                r"certificates.alpha must be in \(0, 1\), not 0",
            ),
            (lambda r: r["certified"][0]["certificates"].update(alpha=-1), "alpha must be a number from 0 to 1"),
            (lambda r: r["certified"][0]["radii"][0].update(radius=-1), r"radius must be a number from 0 to 1e\+12"),
            (lambda r: r["certified"][0].update(draws=3), "draws and draws_saved are not those of 5 inputs"),
            (lambda r: r["certified"][0]["abstains"].update(n=3), "are of 5 inputs each"),
            (lambda r: r["certified"][0]["radii"][0].update(beaten=2), "1 inputs are attacked"),
            (lambda r: r["certified"][0].update(attack=None), "lacks the attack"),
            (lambda r: r["certified"][0]["accuracy"].update(low=1), "a share lies outside its interval"),
            (lambda r: r["certified"][0]["accuracy"].update(value=7.0), "accuracy.value must be"),
            (lambda r: r["certified"][0]["radii"][0].pop("beaten"), "radii lacks beaten"),
            (lambda r: r["certified"][0]["radii"].extend(r["certified"][0]["radii"] * 99), "must hold 1 to 64 radii"),
            (
                lambda r: r["certified"][0]["pictures"].append(dict.fromkeys(("image", "noisy"), PICTURE)),
                r"pictures\[0\].image.uint8 holds 3 values",
            ),
        ],
    )
    def test_a_file_from_elsewhere_is_not_trusted(self, smoothed, tmp_path, change, line):
        report = certify_robustness(smoothed, X, Y, radii=(0.2,), n=100, n_attacked=1, attack_steps=1)
        write_certification([report.to_dict()], tmp_path)
        path = tmp_path / "certification.json"
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))
        with pytest.raises(ValueError, match=line):
            load_certification(path)

    def test_names_are_text_and_beaten_certificates_stand_on_top(self, smoothed):
        report = certify_robustness(smoothed, X, Y, radii=(0.2,), n=1000, n_attacked=2, name="<script>")
        report.attacked[0.2] = torch.tensor([0, -1])
        beyond = certify_robustness(smoothed, X, Y, radii=(9.0,), n=1000)
        record = {"format": 1, "certified": [report.to_dict(), beyond.to_dict()]}
        page = certification_html(record)
        assert "<script>" not in page
        assert "1 certificate was beaten by an attack; one in 1,000 may be." in page
        assert "not provable: no number of draws reaches it" in page

    def test_errors(self, tmp_path, capsys):
        for arguments, line in (
            (["--run", "example:digits"], "say how much noise: --sigma 0.5"),
            (["--run", "example:digits", "--sigma", "0"], "--sigma 0 must be a finite number > 0"),
            (["--run", "example:digits", "--sigma", "0.5", "--n", "10"], "n must be at least n0"),
            (["--run", "example:digits", "--sigma", "0.5", "--resume"], "--resume goes on with the certificates"),
            (["--run", "example:digits", "--sigma", "0.5", "--denoiser", str(tmp_path)], "no checkpoint"),
        ):
            assert self.run("certify", "--limit", "3", *arguments) in (1, 2), arguments
            assert line in capsys.readouterr().err
