"""EDM and the equations of scores, where the denoiser is the best one of Gaussian images: an untrained Denoiser."""

import math
from itertools import pairwise

import pytest
import torch
from test_ddpm import MEAN, STD, expected_bound, of_gaussian, pictures

from robustgen.generative import DDPM, EDM, VAE, Denoiser, ScoreSDE, fit
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
            model = ScoreSDE(gaussian(sigma_data=sd), dequantization="none", clip=False, **options).eval()
            assert model.log_prob_kind == {"exact": "exact", "hutchinson": "estimated"}[options["trace"]]
            assert torch.allclose(model.log_prob(x), density(x, math.hypot(sd, 0.001)), rtol=0, atol=error)
            assert torch.allclose(model.from_noise(model.to_noise(x)[0]), x, atol=1e-3)

    def test_hutchinsons_trace_is_exact_of_a_multiple_of_the_identity(self):
        x = torch.rand(3, *SHAPE, dtype=F64)
        exact, estimated = (
            ScoreSDE(gaussian(), dequantization="none", clip=False, trace=t, steps=4).eval()
            for t in ("exact", "hutchinson")
        )
        assert estimated.log_prob_kind == "estimated"
        assert torch.allclose(exact.log_prob(x), estimated.log_prob(x))

    def test_it_is_above_the_bound_of_the_same_ddpm(self):
        """Of images with the noise of its first step: those of N(MEAN, STD^2) behind it."""
        base = of_gaussian(steps=1000)
        x = pictures(4)
        model = ScoreSDE(base, clip=False, trace="exact", steps=20).eval()
        y, log_q = model._spread(x, fresh=False)
        first = torch.tensor(STD**2 / 4 + base.sigma_min**2, dtype=F64).log() / 2
        exact = gaussian_log_prob(y, (1 + MEAN) / 2, first).flatten(1).sum(1)
        assert torch.allclose(model._density(y), exact, atol=0.02)
        found = model.log_prob(x)
        assert torch.allclose(found, exact - log_q + base.decoded_log_prob(x, y), atol=0.02)
        assert (found - expected_bound(2 * x - 1, base.schedule)).mean() > 16 * 0.5772 / 2

    @pytest.mark.parametrize("sde", ["vp", "ve"])
    @pytest.mark.parametrize("sampler", ["sde", "predictor-corrector"])
    def test_steps_have_the_moments_of_a_linear_score(self, sampler, sde):
        """Variances follow one from the other; of 256 pixels the norms in the corrector's step are those expected."""
        base = gaussian(shape=(1, 16, 16), sigma_min=0.01, sigma_max=5.0)
        options = {"sampler": sampler, "sde": sde, "sample_steps": 40, "dequantization": "none", "clip": False}
        model = ScoreSDE(base, **options).eval()
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
        model = ScoreSDE(gaussian(sigma_data=0.1), sampler="ode", dequantization="none", clip=False).eval()
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


LEVELS = torch.arange(256, dtype=F64) / 255
BLACK = (LEVELS == 0).double()
GREY = ((LEVELS - LEVELS[128]) * 255).square().div(-2).softmax(0)  # with a standard deviation of one level
BIT = 16 * math.log(2)  # an image, in nats


def behind_noise(y, sigma, share):
    """log of the share (..., 256) and density of points y (...) behind noise of standard deviation sigma, jointly."""
    return share.log() + gaussian_log_prob(y[..., None], LEVELS, torch.as_tensor(sigma).to(y)[..., None].log())


def of_levels(share, kind, **options):
    """A model whose network is the best one of pixels on 256 levels, each with these shares and by itself."""
    model = kind(SHAPE, width=2, levels=1, **options).double().eval()

    def expected(x, sigma):
        return behind_noise(x, torch.as_tensor(sigma).view(-1, 1, 1, 1), share).softmax(-1) @ LEVELS

    def outputs(u, kept, y=None, guidance=1.0):
        signal = kept.sqrt().to(u)[:, None, None, None]
        return 2 * expected((u / signal + 1) / 2, (1 / kept - 1).sqrt() / 2) - 1

    setattr(model, *(("_outputs", outputs) if kind is DDPM else ("_denoise", expected)))
    return model


class TestImagesOnLevels:
    """Scores that are right: closed forms, in float64. Hutchinson's trace is exact of pixels that are independent."""

    @pytest.mark.parametrize(("least", "bits", "decoded"), [(0.8192, 1.3992, 0.4557), (0.25, 3.1486, 0.0332)])
    def test_a_model_of_levels_has_little_between_them(self, least, bits, decoded):
        """Of pixels that are always 0, bits by integration: uniform noise is the worse the less the least noise is."""
        base = of_levels(BLACK, Denoiser, sigma_min=least / 255, sigma_max=1000.0)
        for dequantization, expected in (("uniform", bits), ("gaussian", 0.0)):
            model = ScoreSDE(base, dequantization=dequantization, steps=60).eval()
            y, log_q = model._spread(torch.zeros(2000, *SHAPE, dtype=F64), fresh=True)
            by_hand = behind_noise(y, base.sigma_min, BLACK).logsumexp(-1).flatten(1).sum(1)
            assert torch.allclose(model._density(y[:3]), by_hand[:3], rtol=0, atol=0.05)
            assert (log_q - by_hand).mean().item() / BIT == pytest.approx(expected, abs=0.03)
        assert -model._decoded(0 * y[:1], y[:1]).item() / BIT == pytest.approx(decoded, abs=1e-4)

    def test_flow_bound_and_equation_of_one_ddpm(self):
        """Half of the pixels are black, half grey. Bits by integration: entropy 2.05, flow and equation 2.33, bound of
        1000 steps 2.38; with uniform noise the flow has 2.81."""
        share = (BLACK + GREY) / 2
        base = of_levels(share, DDPM, steps=1000, schedule="cosine", prediction="data", terms=100)
        x = LEVELS[share.multinomial(60 * 16, True, generator=torch.Generator().manual_seed(0))].view(-1, *SHAPE)
        exact = share[(255 * x).round().long()].log().flatten(1).sum(1)
        flow, uniform = (ScoreSDE(base, dequantization=d, steps=40).eval() for d in ("gaussian", "uniform"))
        found = {  # nats
            "flow": flow.log_prob(x),
            "equation": flow.sde_log_prob(x, terms=100),
            "bound": base.log_prob(x),
            "uniform": uniform.log_prob(x),
        }
        more = {name: (exact - nats).mean().item() / BIT for name, nats in found.items()}
        assert more["flow"] == pytest.approx(0.281, abs=0.05)
        assert more["equation"] == pytest.approx(more["flow"], abs=0.05)
        assert 0 < more["bound"] - more["flow"] < 0.12
        assert more["uniform"] == pytest.approx(0.753, abs=0.05)
        assert flow.log_prob_kind == uniform.log_prob_kind == "lower_bound"

    @torch.no_grad()
    def test_probabilities_of_all_images_add_up_to_one_and_their_bounds_to_less(self):
        base = gaussian(shape=(1, 1, 2), sigma_min=0.2, sigma_data=0.4)
        model = ScoreSDE(base, levels=3, steps=10, clip=False).eval()
        x = torch.cartesian_prod(*[torch.tensor([0.0, 0.5, 1.0], dtype=F64)] * 2).view(-1, 1, 1, 2)
        many = x.repeat(1000, 1, 1, 1)
        y, log_q = model._spread(many, fresh=True)
        nats = (model._density(y) - log_q + model._decoded(many, y)).view(1000, 9)
        probabilities, bounds = nats.exp().mean(0), nats.mean(0).exp()
        error = float((nats.exp().var(0).sum() / 1000).sqrt())
        assert float(probabilities.sum()) == pytest.approx(1, abs=4 * error + 1e-3)
        assert error < 0.02
        assert bool((bounds <= probabilities).all())

    def test_what_is_denoised_is_put_where_images_are(self):
        """In all that follows the score: as if the base did it."""
        bases = [gaussian(), gaussian()]
        bases[0]._denoise = lambda x, level: 1.2 * x - 0.1
        bases[1]._denoise = lambda x, level: (1.2 * x - 0.1).clamp(0, 1)
        x = (255 * torch.rand(3, *SHAPE, dtype=F64, generator=torch.Generator().manual_seed(0))).round() / 255
        found = []
        for base, clip in ((bases[0], True), (bases[1], False), (bases[0], False)):
            model = ScoreSDE(base, clip=clip, steps=5, sampler="sde", sample_steps=5).eval()
            drawn = model.sample(3, torch.Generator().manual_seed(0)).flatten(1).sum(1)
            found.append(torch.stack([model.log_prob(x), model.sde_log_prob(x), drawn]))
        assert torch.equal(found[0], found[1])
        assert bool((found[0] != found[2]).any(1)[:2].all())

    def test_samples_are_the_nearest_levels(self):
        for sampler in ("ode", "sde"):
            model = ScoreSDE(of_levels(GREY, Denoiser, sigma_min=0.001, sigma_max=40.0), sampler=sampler, steps=60)
            x = 255 * model.eval().sample(200, torch.Generator().manual_seed(0))
            assert torch.allclose(x, x.round(), atol=1e-9)
            assert x.mean().item() == pytest.approx(128, abs=0.1)  # rounded down: 127.5


class TestTwoModelsOfOneScore:
    @pytest.mark.parametrize(("c", "b", "below"), [(0.1, 40.0, True), (3.0, 0.05, False)])
    def test_with_a_wrong_score_the_flow_is_below_the_bound_of_the_equation_or_above(self, c, b, below):
        """A score of N(1/2, s^2) that is 1 + c times too large up to the noise b: with d = log(s^2 + b^2) - log(s^2 +
        sigma_min^2) the flow loses (exp(c d) - 1 - c d) / 2 nats a pixel, the equation c^2 d / 2."""
        x = 0.5 + SPREAD * torch.randn(200, *SHAPE, dtype=F64, generator=torch.Generator().manual_seed(0))
        x, right, wrong = (255 * x).round().clamp(0, 255) / 255, gaussian(), gaussian()
        wrong._denoise = lambda v, level: torch.lerp(
            v, right._denoise(v, level), torch.where(level <= b, 1 + c, 1.0).to(v)[:, None, None, None]
        )
        flows = [ScoreSDE(base, steps=100, clip=False).eval() for base in (right, wrong)]
        by_flow, by_equation = (
            (scores[0] - scores[1]).mean().item() / 16
            for scores in zip(*((f.log_prob(x), f.sde_log_prob(x, terms=400)) for f in flows), strict=True)
        )
        d = math.log((SPREAD**2 + b**2) / (SPREAD**2 + right.sigma_min**2))
        assert by_flow == pytest.approx((math.exp(c * d) - 1 - c * d) / 2, abs=0.05)
        assert by_equation == pytest.approx(c**2 * d / 2, abs=0.05)
        assert (by_flow > by_equation) == below


class TestWhatIsScoredIsWhatIsLearned:
    def test_a_base_learns_images_with_the_noise_that_they_are_scored_with(self):
        seen = []
        for dequantization in ("uniform", "gaussian"):
            model = ScoreSDE(Denoiser(SHAPE, width=2, levels=1), dequantization=dequantization)
            model.base.training_step = lambda batch, step: seen.append(batch.x) or {}
            model.training_step(Batch(torch.ones(500, *SHAPE), None, torch.arange(500)), 0)
        gap = 256 * (1 - seen[0])
        assert bool(((gap > 0) & (gap <= 1)).all())
        assert gap.mean().item() == pytest.approx(0.5, abs=0.02)
        assert bool((seen[1] == 1).all())  # it puts noise on them itself

    def test_one_clear_line(self):
        base = DDPM(SHAPE, width=2, levels=1)
        with pytest.raises(ValueError, match="a DDPM learns levels, not what lies between: train it with"):
            fit(ScoreSDE(base, dequantization="uniform"), torch.zeros(4, *SHAPE), epochs=1, progress=False)
        with pytest.raises(ValueError, match="levels=17: a DDPM decodes to 256 levels"):
            ScoreSDE(base, levels=17)
        with pytest.raises(ValueError, match="one of none, gaussian, uniform, got 'variational'"):
            ScoreSDE(base, dequantization="variational")
        with pytest.raises(ValueError, match="is of images on levels: it needs dequantization='gaussian'"):
            ScoreSDE(base, dequantization="none").sde_log_prob(torch.zeros(1, *SHAPE))
