"""The denoiser against closed forms, and before a classifier."""

import pytest
import torch
from torch import nn

from robustgen import data
from robustgen.fingerprint import model_fingerprint
from robustgen.fortified import smooth
from robustgen.generative import Denoiser, DenoisingObjective, fit
from robustgen.generative.diffusion.unet import UNet
from robustgen.networks import mlp
from robustgen.training import Batch, Trainer


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
