"""EDM and the equations of scores, where the denoiser is the best one of Gaussian images: an untrained Denoiser."""

import math
from itertools import pairwise

import pytest
import torch
from test_ddpm import MEAN, STD, expected_bound, of_gaussian, pictures

from robustgen.generative import DDPM, EDM, VAE, Denoiser, ScoreSDE
from robustgen.generative.blocks.gaussian import gaussian_log_prob
from robustgen.training import Batch

SHAPE, SPREAD = (1, 4, 4), 0.1
F64 = torch.float64


def gaussian(kind=Denoiser, shape=SHAPE, **options):
    """Of pixels N(1/2, SPREAD^2), in float64."""
    options = {"sigma_min": 0.001, "sigma_max": 40.0, "sigma_data": SPREAD, "width": 2, "levels": 1} | options
    return kind(shape, **options).double().eval()


class TestEDM:
    def test_heuns_samples_are_the_flow_of_their_noise(self):
        """x = 1/2 + sd / sqrt(sd^2 + sigma_max^2) (x_max - 1/2), as the flow of a Gaussian scales."""
        errors = []
        for steps in (9, 18, 36):
            model = gaussian(EDM, sample_steps=steps, sigma_max=2.0)
            noise = torch.randn(5, *SHAPE, dtype=F64, generator=torch.Generator().manual_seed(0))
            exact = 0.5 + SPREAD / math.hypot(SPREAD, 2) * 2 * noise
            errors.append((model.sample(5, torch.Generator().manual_seed(0)) - exact).abs().max().item())
        assert errors[0] > 3 * errors[1] > 9 * errors[2]  # of the second order, but for the last step
        assert errors[2] < 3e-3

    def test_sigmas_are_those_of_the_paper(self):
        model = EDM(SHAPE, sample_steps=18)
        sigmas = torch.tensor(model.sigmas()).flip(0) * 2  # in units of [-1, 1]
        assert (sigmas[0].item(), sigmas[-2].item(), sigmas[-1].item()) == (pytest.approx(80), pytest.approx(0.002), 0)
        assert sigmas[9].item() == pytest.approx((80 ** (1 / 7) + 9 / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7)

    def test_noise_in_training_is_log_normal(self):
        torch.manual_seed(0)
        noisy, level = EDM((1, 2, 2), log_sigma_mean=-1.0, log_sigma_std=0.5).noised(torch.zeros(20_000, 1, 2, 2))
        assert level.log().mean().item() == pytest.approx(-1, abs=0.02)
        assert level.log().std().item() == pytest.approx(0.5, rel=0.03)
        assert (noisy / level[:, None, None, None]).std().item() == pytest.approx(1, rel=0.02)

    def test_a_chain_puts_noise_on_and_takes_it_away(self):
        model = gaussian(EDM, sample_steps=30)
        x = 0.5 + SPREAD * torch.randn(2000, *SHAPE, dtype=F64)
        chain, sigma = model.chain(20), model.sigmas()[20]
        assert (len(chain), len(model.chain(20, 10))) == (21, 11)
        noisy = chain[0](x)
        assert (noisy - x).std().item() == pytest.approx(sigma, rel=0.02)
        for step in chain[1:]:
            noisy = step(noisy)
        assert noisy.std().item() == pytest.approx(SPREAD, rel=0.03)
        for depth, steps, message in ((31, None, "more than the 30 steps"), (5, 6, "does not fit between 0 and 5")):
            with pytest.raises(ValueError, match=message):
                model.chain(depth, steps)

    def test_classes(self):
        model = EDM(SHAPE, classes=3, guidance=2.0, width=2, levels=1, sample_steps=2)
        batch = Batch(torch.rand(4, *SHAPE), torch.tensor([0, 1, 2, 0]), torch.arange(4))
        model.training_step(batch, 0)["loss"].backward()
        assert model.network.tell_class.weight.grad is not None
        assert model.sample_classes(torch.tensor([0, 2])).shape == (2, *SHAPE)
        with pytest.raises(ValueError, match="a EDM of classes=3 learns from labelled images"):
            model.training_step(batch._replace(y=None), 0)


def density(x, spread):
    return gaussian_log_prob(x, 0.5, torch.tensor(spread, dtype=F64).log()).flatten(1).sum(1)


class TestScoreSDE:
    def test_the_flows_likelihood_is_the_density_of_a_linear_score(self):
        """With sd = 1/2 its end is exact, with another one up to what is left of data at sigma_max."""
        x = torch.rand(2, *SHAPE, dtype=F64)
        estimated = {"trace": "hutchinson"}  # as good: the score is linear
        adaptive = estimated | {"solver": "dopri5", "tolerance": 1e-4}
        cases = (0.5, {"steps": 3}, 1e-6), (0.1, estimated | {"steps": 20}, 0.02), (0.1, adaptive, 0.03)
        for sd, options, error in cases:
            options = {"trace": "exact"} | options
            model = ScoreSDE(gaussian(sigma_data=sd), dequantization="none", **options).eval()
            assert model.log_prob_kind == {"exact": "exact", "hutchinson": "estimated"}[options["trace"]]
            assert torch.allclose(model.log_prob(x), density(x, math.hypot(sd, 0.001)), rtol=0, atol=error)
            assert torch.allclose(model.from_noise(model.to_noise(x)[0]), x, atol=1e-3)

    def test_hutchinsons_trace_is_exact_of_a_multiple_of_the_identity(self):
        x = torch.rand(3, *SHAPE, dtype=F64)
        exact, estimated = (
            ScoreSDE(gaussian(), dequantization="none", trace=t, steps=4).eval() for t in ("exact", "hutchinson")
        )
        assert estimated.log_prob_kind == "estimated"
        assert torch.allclose(exact.log_prob(x), estimated.log_prob(x))

    def test_it_is_above_the_bound_of_the_same_ddpm(self):
        """Of images with the noise of its first step: those of N(MEAN, STD^2) behind it."""
        base = of_gaussian(steps=1000)
        x = pictures(4)
        model = ScoreSDE(base, dequantization="none", trace="exact", steps=20).eval()
        first = (STD**2 / 4 + base.sigma_min**2) ** 0.5
        exact = gaussian_log_prob(x, (1 + MEAN) / 2, torch.tensor(first, dtype=F64).log()).flatten(1).sum(1)
        found = model.log_prob(x)
        assert torch.allclose(found, exact, atol=0.02)
        per_level = found - 16 * math.log(255)
        assert per_level.mean() > expected_bound(2 * x - 1, base.schedule).mean()

    @pytest.mark.parametrize("sde", ["vp", "ve"])
    @pytest.mark.parametrize("sampler", ["sde", "predictor-corrector"])
    def test_steps_have_the_moments_of_a_linear_score(self, sampler, sde):
        """Variances follow one from the other; of 256 pixels the norms in the corrector's step are those expected."""
        base = gaussian(shape=(1, 16, 16), sigma_min=0.01, sigma_max=5.0)
        model = ScoreSDE(base, sampler=sampler, sde=sde, sample_steps=40, dequantization="none").eval()
        x = model.sample(60, torch.Generator().manual_seed(0))
        levels, scale = model._levels_down(), (lambda s: math.hypot(s, 0.5)) if sde == "vp" else (lambda s: 1.0)
        assert levels == sorted(levels, reverse=True)
        variance = 1.0 if sde == "vp" else levels[0] ** 2 + 0.25
        for high, low in pairwise(levels):
            kept = (scale(low) / scale(high)) ** 2
            added = 1 - kept if sde == "vp" else high**2 - low**2
            variance = (2 - kept**0.5 - added * scale(high) ** 2 / (SPREAD**2 + high**2)) ** 2 * variance + added
            if sampler == "predictor-corrector":
                aim = (SPREAD**2 + low**2) / scale(low) ** 2  # of the density whose score the corrector follows
                size = 2 * kept * 0.16**2 * aim**2 / variance
                variance = (1 - size / aim) ** 2 * variance + 2 * size
        expected = SPREAD**2 / (SPREAD**2 + low**2) * scale(low) * variance**0.5
        assert x.mean().item() == pytest.approx(0.5, abs=0.005)
        assert x.std().item() == pytest.approx(expected, rel=0.02)

    def test_a_base_of_more_noise_than_the_schedule_starts_where_nothing_else_is_left(self):
        most = ScoreSDE(DDPM(SHAPE, schedule="cosine", width=2, levels=1), sample_steps=50)._levels_down()
        least = ScoreSDE(EDM(SHAPE, width=2, levels=1), sample_steps=50)._levels_down()
        assert most[0] == pytest.approx(math.exp(10.05 / 2) / 2, rel=1e-3)
        assert (least[0], least[-1]) == (40, 0.001)

    def test_samples_of_the_flow_are_those_of_the_density(self):
        model = ScoreSDE(gaussian(sigma_data=0.1), sampler="ode", dequantization="none").eval()
        noise = torch.randn(9, *SHAPE, dtype=F64, generator=torch.Generator().manual_seed(0))
        drawn = model.sample(9, torch.Generator().manual_seed(0))
        assert torch.allclose(drawn, 0.5 + SPREAD * noise, atol=2e-3)

    def test_training_trains_the_base(self):
        base = DDPM(SHAPE, width=2, levels=1)
        model = ScoreSDE(base)
        batch = Batch(torch.zeros(4, *SHAPE), None, torch.arange(4))
        for each in (base, model):
            torch.manual_seed(0)
            each.training_step(batch, 0)["loss"].backward()
        assert torch.equal(base.network.out.weight.grad, model.base.network.out.weight.grad)

    def test_one_clear_line(self):
        with pytest.raises(
            TypeError, match="base must be a model that denoises, DDPM, EDM or Denoiser; a VAE does not"
        ):
            ScoreSDE(VAE((1, 8, 8), latent_dim=2, width=4))
        for options, message in (
            ({"sampler": "heun"}, "sampler must be one of ode, sde, predictor-corrector, got 'heun'"),
            ({"sde": "sub-vp"}, "sde must be one of vp, ve, got 'sub-vp'"),
            ({"snr": 0.0}, "snr must be a finite number > 0"),
        ):
            with pytest.raises(ValueError, match=message):
                ScoreSDE(gaussian(), **options)
