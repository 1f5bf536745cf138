"""The energy-based model: Langevin dynamics against closed forms, both objectives, and the chains it keeps."""

import pytest
import torch
from torch import nn

from robustgen import data
from robustgen.data import digits
from robustgen.fingerprint import model_fingerprint
from robustgen.fortified import smooth
from robustgen.generative import JEM, Denoiser, DenoisingObjective, EnergyModel, GenerativeObjective, fit
from robustgen.generative.diffusion.unet import UNet
from robustgen.generative.energy.langevin import langevin, reflect
from robustgen.generative.energy.score_matching import denoising_score_matching
from robustgen.networks import mlp
from robustgen.training import Batch, Trainer

SHAPE = (1, 8, 8)
TINY = {"width": 4, "steps": 5, "sample_steps": 5, "buffer_size": 40}


def images(n=24):
    return digits(split="train").batch(torch.arange(n))[0]


def batch(n=24):
    return Batch(images(n), None, torch.arange(n))


# --- Langevin dynamics -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_size", [0.1, 0.5, 1.0])
def test_stationary_variance_of_a_standard_normal(step_size):
    """1 / (1 - a / 2): noise sqrt(a) in place of sqrt(2 a) would halve it."""
    x = torch.randn(40_000, 1, dtype=torch.float64)
    x = langevin(lambda x: x.square().sum(1) / 2, x, 60, step_size)
    assert x.var().item() == pytest.approx(1 / (1 - step_size / 2), rel=0.03)
    assert x.mean().abs() < 0.03


def test_one_step_is_the_formula():
    x, a = torch.rand(3, 2), 0.02
    e = torch.randn(3, 2, generator=torch.Generator().manual_seed(4))
    found = langevin(lambda x: x.pow(4).sum(1), x, 1, a, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(found, x - a * 4 * x**3 + (2 * a) ** 0.5 * e)
    assert torch.equal(langevin(lambda x: x.sum(1), x, 0, a), x)


def test_reflected_chains_stay_in_the_cube_and_sample_it():
    """E = 3 x on [0, 1]: the truncated exponential, with mean 1/3 - 1 / (e^3 - 1)."""
    x = langevin(lambda x: 3 * x.sum(1), torch.rand(20_000, 1), 150, 0.005, reflected=True)
    assert x.min() >= 0
    assert x.max() <= 1
    assert x.mean().item() == pytest.approx(1 / 3 - 1 / (torch.tensor(3.0).exp().item() - 1), abs=0.012)
    flat = langevin(lambda x: 0 * x.sum(1), torch.rand(20_000, 1), 20, 0.05, reflected=True)
    assert flat.histc(4, 0, 1) / 20_000 == pytest.approx([0.25] * 4, abs=0.015)  # clamping would fill the ends
    far = torch.linspace(-7, 7, 1001)
    assert ((reflect(far) >= 0) & (reflect(far) <= 1)).all()
    torch.testing.assert_close(reflect(far), torch.acos(torch.cos(torch.pi * far)) / torch.pi, atol=1e-3, rtol=0)


def test_chains_that_leave_for_good_are_named():
    model = EnergyModel(SHAPE, width=4, objective="dsm", step_size=10.0, sample_steps=200).eval()
    with torch.no_grad():
        model.network[-1].weight.mul_(100)
    with pytest.raises(FloatingPointError, match="for good: take a smaller step_size"):
        model.sample(2)


def test_more_images_than_kept_chains_are_refused_before_training():
    with pytest.raises(ValueError, match="a batch of 64 needs as many chains: set buffer_size to at least 64"):
        EnergyModel(SHAPE, **TINY).check_training(1000, 64)
    EnergyModel(SHAPE, **TINY).check_training(1000, 40)
    EnergyModel(SHAPE, **TINY, chains="noise").check_training(1000, 64)


def test_sampling_leaves_no_trace():
    model, x = EnergyModel(SHAPE, **TINY), torch.rand(3, *SHAPE)
    before, state = x.clone(), torch.random.get_rng_state()
    out = langevin(model.energy, x, 3, 1e-4, generator=torch.Generator())
    assert not out.requires_grad
    assert out.grad_fn is None
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(x, before)
    assert not x.requires_grad
    model.sample(2, torch.Generator())
    assert torch.equal(torch.random.get_rng_state(), state)


# --- objectives --------------------------------------------------------------------------------------------------


class GaussianEnergy(nn.Module):
    """w |x - m|^2 / 2."""

    def __init__(self, w, m):
        super().__init__()
        self.w, self.m = nn.Parameter(torch.tensor(w)), nn.Parameter(torch.tensor(m))

    def forward(self, x):
        return self.w * (x - self.m).square().flatten(1).sum(1) / 2


def test_the_gradient_is_that_of_the_likelihood():
    """For N(m, 1/w): of -E log p by w it is E (x - m)^2 / 2 - 1 / (2 w), and by m, w (m - E x), in each dimension."""
    w, m, n = 100.0, 0.5, 4000
    model = EnergyModel(
        (1, 2, 2), buffer_size=n, steps=60, step_size=5e-4, temperature=1.0, sigma=1e-4, regularisation=0.0
    )
    model.network = GaussianEnergy(w, m)
    model.replay.normal_(m, w**-0.5).clamp_(0, 1)
    x = (0.6 + 0.15 * torch.randn(n, 1, 2, 2)).clamp(0, 1)
    model.training_step(Batch(x, None, torch.arange(n)), 0)["loss"].backward()
    by_w = 4 * ((x - m).square().mean() / 2 - 1 / (2 * w))
    by_m = 4 * w * (m - x.mean())
    assert model.network.w.grad.item() == pytest.approx(by_w.item(), rel=0.05)
    assert model.network.m.grad.item() == pytest.approx(by_m.item(), rel=0.05)


def test_denoising_score_matching_learns_the_smoothed_density():
    """On N(0, s^2) the best score of the form -k x has k = 1 / (s^2 + sigma^2)."""
    s, sigma = 0.7, 0.3
    x, noise = s * torch.randn(2, 200_000, 1, dtype=torch.float64)
    k = torch.zeros((), dtype=torch.float64, requires_grad=True)
    loss = denoising_score_matching(lambda x: k * x.square().sum(1) / 2, x, sigma, noise / s)
    (slope,) = torch.autograd.grad(loss, k, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, k)
    assert -slope.item() / curvature.item() == pytest.approx(1 / (s**2 + sigma**2), rel=0.02)  # quadratic in k


def test_denoising_gradients_equal_finite_differences():
    model = EnergyModel((1, 6, 6), width=2, objective="dsm").double()
    x, noise = torch.rand(3, 1, 6, 6).double(), torch.randn(3, 1, 6, 6).double()

    def loss():
        return denoising_score_matching(model.energy, x, 0.3, noise)

    parameters = list(model.parameters())
    for p, gradient in zip(parameters, torch.autograd.grad(loss(), parameters), strict=True):
        direction, h, values = torch.randn_like(p), 1e-5, []
        for sign in (1, -1):
            p.data += sign * h * direction
            values.append(loss().item())
            p.data -= sign * h * direction
        assert (values[0] - values[1]) / (2 * h) == pytest.approx((gradient * direction).sum().item(), rel=1e-5)


def test_log_prob_is_minus_the_energy_of_a_density_that_samples_follow():
    """With a Gaussian for the network, samples from noise have the moments of exp(log_prob)."""
    model = EnergyModel((1, 2, 2), temperature=0.5, step_size=1e-3, sample_steps=120, buffer_size=1).eval()
    model.network = GaussianEnergy(25.0, 0.4)  # E = 50 |x - 0.4|^2 / 2
    x = model.sample(4000)
    assert x.mean().item() == pytest.approx(0.4, abs=0.01)
    assert x.var().item() == pytest.approx(1 / 50 / (1 - 0.05 / 2), rel=0.06)
    y = torch.rand(3, 1, 2, 2)
    torch.testing.assert_close(model.log_prob(y), -25 * (y - 0.4).square().flatten(1).sum(1))


# --- the chains --------------------------------------------------------------------------------------------------


def test_chains_go_on_and_only_those_of_the_batch():
    model = EnergyModel(SHAPE, **TINY, reinitialised=0.0)
    before = model.replay.clone()
    model.training_step(batch(10), 0)
    moved = (model.replay != before).flatten(1).any(1)
    assert moved.sum() == 10
    assert (model.replay - before).abs().max() < 0.5  # went on from where they were: noise 0.01 a step
    model.eval().validation_step(batch(), 0)
    anew = EnergyModel(SHAPE, **TINY, reinitialised=1.0)
    before = anew.replay.clone()
    anew.training_step(batch(40), 0)
    assert (anew.replay - before).abs().flatten(1).mean(1).min() > 0.2  # two uniform images differ by 1/3
    with pytest.raises(ValueError, match="set buffer_size to at least 41"):
        model.training_step(batch(41), 0)


def test_validation_moves_nothing():
    model = EnergyModel(SHAPE, **TINY).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        found = model.validation_step(batch(), 0)
    assert torch.equal(found["loss"], -found["gap"])
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


class Stopping(GenerativeObjective):
    def __init__(self, stop):
        self.stop = stop

    def __call__(self, model, batch, step):
        if model.training and step == self.stop:
            raise KeyboardInterrupt
        return super().__call__(model, batch, step)


@pytest.mark.parametrize("objective", ["langevin", "dsm"])
def test_a_killed_training_resumes_bitwise(objective, tmp_path):
    def run(stop=None, **where):
        torch.manual_seed(5)
        model = EnergyModel(SHAPE, **TINY, objective=objective)
        trainer = Trainer(
            Stopping(stop), optimizer=model.optimizer, epochs=3, batch_size=6, ema=0.9, progress=False, **where
        )
        return model, trainer.fit(model, images(), images(8))

    whole, history = run()
    with pytest.raises(KeyboardInterrupt):
        run(stop=7, run_dir=tmp_path, checkpoint_every=5)
    resumed, again = run(run_dir=tmp_path, checkpoint_every=5, resume=True)
    assert history == again
    state = resumed.state_dict()
    assert ("replay" in state) == (objective == "langevin")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_it_learns_which_images_are_digits():
    model = EnergyModel(SHAPE, width=8, steps=10, buffer_size=64, sample_steps=10)
    optimizer = lambda p: torch.optim.Adam(p, lr=1e-3, betas=(0.0, 0.999))
    fit(model, images(192), epochs=15, batch_size=32, optimizer=optimizer, progress=False)
    test = digits(split="test").batch(torch.arange(50))[0]
    with torch.no_grad():
        for foreign in (torch.rand(50, *SHAPE), torch.rand(50, 1, 1, 1).expand(50, *SHAPE)):
            assert (model.log_prob(test)[:, None] > model.log_prob(foreign)[None]).float().mean() > 0.9


def test_arguments():
    for options, match in (
        ({"objective": "nce"}, "objective must be one of langevin, dsm, ssm"),
        ({"sigma": 0.0}, "sigma must be a finite number > 0"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"reinitialised": 1.5}, r"reinitialised must be in \[0, 1\]"),
        ({"regularisation": -1.0}, "regularisation must be"),
    ):
        with pytest.raises(ValueError, match=match):
            EnergyModel(SHAPE, **options)


# --- a classifier that is an energy ------------------------------------------------------------------------------


def test_the_joint_density_has_the_energy_and_the_softmax_as_its_parts():
    """log p(x, y) = f(x)[y] - log Z is log p(x) + log p(y | x) for each y."""
    model, x = JEM(SHAPE, **TINY, classes=3, temperature=1.0).double().eval(), images(5).double()
    with torch.no_grad():
        parts = model.log_prob(x)[:, None] + model.logits(x).log_softmax(1)
        torch.testing.assert_close(parts, model.logits(x))


def test_labels_add_their_cross_entropy():
    def loss(y):
        torch.manual_seed(0)
        model = JEM(SHAPE, **TINY)
        with torch.random.fork_rng():
            return model.training_step(Batch(images(), y, torch.arange(24)), 0)

    labelled, alone = loss(digits(split="train").labels()[:24]), loss(None)
    added = labelled["loss"] - alone["loss"]
    assert added.item() == pytest.approx(labelled["cross_entropy"].item(), rel=1e-4)
    assert "cross_entropy" not in alone
    with pytest.raises(ValueError, match=r"y, for classes=3, has labels in \[9, 9\], outside \[0, 3\)"):
        JEM(SHAPE, **TINY, classes=3).training_step(Batch(images(2), torch.tensor([9, 9]), torch.arange(2)), 0)
    with pytest.raises(ValueError, match="classes must be at least 2"):
        JEM(SHAPE, classes=1)


def test_it_learns_to_classify_and_which_images_are_digits():
    torch.manual_seed(0)
    model = JEM(SHAPE, width=8, steps=10, buffer_size=64, sample_steps=10)
    optimizer = lambda p: torch.optim.Adam(p, lr=3e-3)
    fit(model, digits(split="train").first(400), epochs=15, batch_size=32, optimizer=optimizer, progress=False)
    test, y = digits(split="test").batch(torch.arange(100))
    with torch.no_grad():
        assert (model.logits(test).argmax(1) == y).float().mean() > 0.4  # by chance 0.1
        foreign = torch.rand(50, *SHAPE)
        assert (model.log_prob(test)[:, None] > model.log_prob(foreign)[None]).float().mean() > 0.9


# The denoiser against closed forms, and before a classifier.


class TestPreconditioning:
    def test_untrained_it_is_the_best_linear_denoiser(self):
        """For pixels of variance d^2 about 1/2: E[x | v] = 1/2 + (v - 1/2) d^2 / (d^2 + s^2)."""
        model = Denoiser((1, 8, 8), width=4, sigma_data=0.4)
        v = torch.randn(3, 1, 8, 8)
        for sigma in (0.1, 0.5, 1.0):
            expected = 0.5 + (v - 0.5) * 0.16 / (0.16 + sigma**2)
            assert torch.allclose(model.denoise(v, sigma), expected, atol=1e-6)

    def test_its_loss_is_then_one_at_every_level(self):
        """E |D - x|^2 = s^2 sigma_data^2 / (s^2 + sigma_data^2) = c_out^2 for Gaussian pixels."""
        model = Denoiser((1, 16, 16), width=4, sigma_data=0.4).double()
        x = 0.5 + 0.4 * torch.randn(400, 1, 16, 16, dtype=torch.float64)
        for sigma in (0.1, 0.5, 1.0):
            level = torch.full((400,), sigma, dtype=torch.float64)
            noisy = x + sigma * torch.randn_like(x)
            assert model.loss(model.denoise(noisy, sigma), x, level).item() == pytest.approx(1.0, rel=0.02)

    def test_each_row_has_its_own_level(self):
        model = Denoiser((1, 8, 8), width=4)
        nn.init.normal_(model.network.out.weight)
        x = torch.rand(2, 1, 8, 8)
        both = model.denoise(x, torch.tensor([0.2, 0.9]))
        for k, sigma in enumerate((0.2, 0.9)):
            assert torch.allclose(both[k], model.denoise(x[k : k + 1], sigma)[0], atol=1e-5)

    def test_levels_are_spread_evenly_in_their_logarithm(self):
        _, level = Denoiser((1, 1, 1), width=4, sigma_min=0.01).noised(torch.zeros(20_000, 1, 1, 1))
        assert level.min() >= 0.01
        assert level.max() <= 1.0
        assert (level < 0.1).double().mean().item() == pytest.approx(0.5, abs=0.02)


class TestTraining:
    def test_it_learns(self):
        torch.manual_seed(0)
        model = Denoiser((1, 8, 8), width=8, levels=2)
        history = fit(model, data.digits("train"), epochs=15, batch_size=64, progress=False)
        assert history[-1]["loss"] < 0.55 * history[0]["loss"]
        x = data.digits("test").images()[:100]
        noisy = x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        assert (model.denoise(noisy, 0.5) - x).square().mean() < 0.6 * (noisy.clamp(0, 1) - x).square().mean()

    def test_a_classifier_is_answered_for_and_left_alone(self):
        torch.manual_seed(0)
        classifier = nn.Sequential(nn.Flatten(), mlp(64, [16], 10)).train()
        before, model = model_fingerprint(classifier), Denoiser((1, 8, 8), width=4, levels=2)
        history = Trainer(DenoisingObjective(classifier, 10.0), epochs=10, batch_size=64, progress=False).fit(
            model, data.digits("train").first(300)
        )
        assert history[-1]["consistency"] < history[0]["consistency"]
        assert model_fingerprint(classifier) == before
        assert classifier.training
        assert all(p.grad is None for p in classifier.parameters())

    def test_the_objective_is_the_sum_that_it_says(self):
        torch.manual_seed(0)
        classifier, x = nn.Sequential(nn.Flatten(), mlp(64, [16], 10)), data.digits("test").images()[:8]
        model = Denoiser((1, 8, 8), width=4, levels=2)
        found = DenoisingObjective(classifier, 3.0)(model, Batch(x, None, torch.arange(8)), 0)
        assert found["loss"].item() == pytest.approx((found["error"] + 3 * found["consistency"]).item(), rel=1e-6)

    def test_smoothing_takes_it(self):
        model = smooth(nn.Sequential(nn.Flatten(), mlp(64, [16], 10)), 0.5, Denoiser((1, 8, 8), width=4).eval())
        assert model.certify(data.digits("test").images()[:2], n=100).counts.sum(1).tolist() == [100, 100]


class TestErrors:
    def test_one_clear_line(self):
        model = Denoiser((1, 8, 8), width=4)
        with pytest.raises(ValueError, match=r"of noise from 0.1 to 1, got 2: train one with another sigma"):
            model.denoise(torch.zeros(1, 1, 8, 8), 2.0)
        with pytest.raises(ValueError, match=r"of images \(1, 8, 8\), got \(1, 7, 8\)"):
            model.denoise(torch.zeros(1, 1, 7, 8), 0.5)
        with pytest.raises(ValueError, match="sigma_min=2 is above sigma_max=1"):
            Denoiser((1, 8, 8), sigma_min=2, sigma_max=1)
        with pytest.raises(ValueError, match="weight must be a finite number > 0"):
            DenoisingObjective(nn.Identity(), 0.0)

    def test_odd_sizes(self):
        assert UNet(3, 3, width=4, levels=3)(torch.zeros(1, 3, 5, 11), torch.zeros(1)).shape == (1, 3, 5, 11)
