"""Detectors over generative models, against closed forms."""

import io
import math
import zlib
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import Critic, Gaussian, LinearGaussian
from PIL import Image
from scipy.stats import gaussian_kde, multivariate_normal
from sklearn.svm import OneClassSVM
from torch import nn

from robustgen.data import digits
from robustgen.detectors import (
    WAIC,
    AutoencoderReconstruction,
    CompressedSize,
    DensityOfStates,
    Discriminator,
    InputComplexity,
    Likelihood,
    LikelihoodRatio,
    LikelihoodRegret,
    Typicality,
    load,
    mutate,
)
from robustgen.detectors.density_of_states import model_statistics
from robustgen.generative import IAFVAE, VAE, GatedPixelCNN, Pixels, RealNVP, Tilted
from robustgen.generative.latent.base import LatentVariableModel

SHAPE = (1, 2, 3)
D = 6


def gaussian(seed=0, shape=SHAPE, scale=0.1, pixels=None):
    n = math.prod(shape)
    root = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    covariance = scale**2 * (root @ root.T / n + 0.1 * torch.eye(n))
    return Gaussian(torch.full((n,), 0.5, dtype=torch.float64), covariance, shape, pixels)


def linear(**options):
    q = torch.linalg.qr(torch.randn(D, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64))[0]
    return LinearGaussian(q * torch.tensor([0.3, 0.15], dtype=torch.float64), 0.1, shape=SHAPE, **options)


def images(n, seed=1, shape=SHAPE):
    return torch.rand(n, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def density(model, x):
    """log p by scipy, which shares no code with the model."""
    mean, covariance = model.mean.detach().numpy(), model.covariance.numpy()
    return torch.from_numpy(multivariate_normal(mean, covariance).logpdf(x.flatten(1).numpy()))


def test_likelihood_is_minus_the_log_density():
    model, x = gaussian(), images(20)
    torch.testing.assert_close(Likelihood(model).fit(x).score(x), -density(model, x))


def test_the_mean_over_draws_is_that_of_each_and_of_the_image_alone():
    torch.manual_seed(0)
    vae = VAE(SHAPE, latent_dim=2, architecture="mlp", width=8, quantization="stochastic").double().eval()
    x = images(6)
    detector = Likelihood(vae, draws=3).fit(x)
    drawn = [vae.pixels(x, draw=draw) for draw in range(3)]
    torch.testing.assert_close(detector.score(x), -torch.stack([vae.log_prob(v) for v in drawn]).mean(0))
    assert torch.equal(vae.log_prob(drawn[0]), vae.log_prob(x))  # the draw of a single one
    assert not any(torch.equal(drawn[0], other) for other in drawn[1:])
    torch.testing.assert_close(detector.score(x[4:5]), detector.score(x)[4:5])
    with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
        Likelihood(vae, draws=0)
    for still in (VAE(SHAPE, architecture="mlp", width=8, quantization="nearest"), gaussian()):
        with pytest.raises(TypeError, match="draws no pixels"):
            Likelihood(still, draws=2)


def test_importance_weights_make_the_bound_exact_where_the_posterior_is():
    x = images(20)
    exact, wrong = linear(), linear(error=0.3)
    for k in (1, 5):
        score = Likelihood(exact, importance_samples=k).fit(x).score(x)
        torch.testing.assert_close(score, -exact.exact(x).detach())
    elbo, one, many = (Likelihood(wrong, importance_samples=k).fit(x).score(x).mean() for k in (None, 1, 200))
    assert many < min(elbo, one)  # a tighter bound on the same likelihood
    assert (many + wrong.exact(x).mean()).abs() < 0.05 < elbo + wrong.exact(x).mean()


def test_models_that_cannot_answer_are_refused_in_one_line():
    critic, latent, exact = Critic(torch.zeros(D), SHAPE), linear(), gaussian()
    for build in (Likelihood, InputComplexity, Typicality, DensityOfStates):
        with pytest.raises(
            TypeError, match=f"{build.__name__} needs a model with a likelihood, Critic .*Discriminator"
        ):
            build(critic)
    for build in (LikelihoodRatio, WAIC):
        with pytest.raises(TypeError, match="Critic"):
            build([exact, critic])
        with pytest.raises(ValueError, match="two models"):
            build([exact])
    with pytest.raises(ValueError, match="two models"):
        LikelihoodRatio([exact] * 3)
    with pytest.raises(TypeError, match="Gaussian has no importance-weighted bound"):
        Likelihood(exact, importance_samples=5)
    with pytest.raises(ValueError, match="importance_samples"):
        Likelihood(latent, importance_samples=0)
    with pytest.raises(TypeError, match="Gaussian has no discriminate"):
        Discriminator(exact)
    with pytest.raises(TypeError, match="Gaussian has no reconstruct"):
        AutoencoderReconstruction(exact)
    with pytest.raises(TypeError, match="latent variables, Gaussian has none"):
        LikelihoodRegret(exact)
    with pytest.raises(TypeError, match=r"importance_samples must be an integer, got 2\.5"):
        Likelihood(latent, importance_samples=2.5)
    for lr in (0.0, float("inf")):
        with pytest.raises(ValueError, match="lr must be a finite number > 0"):
            LikelihoodRegret(latent, lr=lr)
    with pytest.raises(ValueError, match="'kde' or 'svm'"):
        DensityOfStates(exact, estimator="gmm")
    energies = [gaussian(), gaussian(1)]
    for energy in energies:
        energy.log_prob_kind = "unnormalised"
    with pytest.raises(ValueError, match="Gaussian is unnormalised"):
        WAIC(energies)
    assert LikelihoodRatio(energies).fit(images(3)).score(images(3)).isfinite().all()
    with pytest.raises(TypeError, match=r"nn\.Module, got int"):
        WAIC([gaussian(), 3])


def test_likelihoods_of_other_kinds_are_not_compared():
    def vae(**options):
        return VAE((1, 8, 8), latent_dim=2, architecture="mlp", width=8, **options)

    binary = vae()
    others = [vae(likelihood="gaussian"), vae(quantization="nearest"), vae(likelihood="discretized_logistic")]
    others.append(GatedPixelCNN((1, 8, 8), levels=2, width=4, layers=1, kernel_size=3))
    for build in (LikelihoodRatio, WAIC):
        for other in others:
            with pytest.raises(ValueError, match=r"likelihoods of one kind, got lower_bound of 2 levels .* and "):
                build([binary, other])
        for one in (binary, gaussian()):
            with pytest.raises(TypeError, match=f"{build.__name__} needs several models in a list, got one "):
                build(one)
        build([vae(likelihood="gaussian"), vae(likelihood="gaussian")])
    with pytest.raises(ValueError, match="InputComplexity needs a model of discrete pixels, this VAE gives a density"):
        InputComplexity(others[0])


def test_discriminator_is_turned_round():
    x, centre = images(9), torch.full((D,), 0.5, dtype=torch.float64)
    score = Discriminator(Critic(centre, SHAPE)).fit(x).score(x)
    torch.testing.assert_close(score, (x.flatten(1) - 0.5).square().sum(1))


# the likelihood ratio


def test_likelihood_ratio_cancels_what_both_models_share():
    """p(x) = p(first pixel) p(others); a background model of the same p(others) leaves the first pixel's part."""
    x, mean = images(20), torch.full((D,), 0.5, dtype=torch.float64)
    variances = torch.tensor([0.01, 0.02, 0.03, 0.04, 0.05, 0.06], dtype=torch.float64)
    wide = variances.clone()
    wide[0] = 1.0
    models = [Gaussian(mean, v.diag(), SHAPE) for v in (variances, wide)]
    first = x.flatten(1)[:, 0]
    expected = (first - 0.5) ** 2 / 2 * (1 / 0.01 - 1) + 0.5 * math.log(0.01)
    torch.testing.assert_close(LikelihoodRatio(models).fit(x).score(x), expected)


def test_mutation():
    x = 0.3 + 0.1 * torch.rand(200, 1, 10, 10)
    assert mutate(x, 0.0).equal(x)
    for levels, rate in ((2, 0.3), (256, 0.3), (5, 1.0)):
        mutated = mutate(x, rate, levels)
        changed = mutated != x
        n = changed.numel()
        assert abs(changed.double().mean() - rate) <= 4 * math.sqrt(rate * (1 - rate) / n)
        drawn = (mutated[changed] * (levels - 1)).double()
        assert (drawn - drawn.round()).abs().max() < 1e-4
        counts = drawn.round().long().bincount(minlength=levels).double()
        expected = len(drawn) / levels
        chi2 = ((counts - expected) ** 2 / expected).sum()
        assert abs(chi2 - (levels - 1)) < 5 * math.sqrt(2 * (levels - 1))
    assert not mutate(x, 0.3).equal(mutate(x, 0.3, seed=1))
    distinct = images(5).float()
    assert mutate(distinct, 0.5)[2:3].equal(mutate(distinct[2:3], 0.5))
    for rate, levels in ((1.1, 2), (-0.1, 2), (0.5, 1)):
        with pytest.raises(ValueError, match="rate must be"):
            mutate(distinct, rate, levels)
    with pytest.raises(ValueError, match="outside"):
        mutate(distinct + 1, 0.1)


# complexity


def _png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=9)
    return len(file.getvalue())


def test_compressed_size_is_the_shorter_of_two():
    x = digits("test").images()[:20]
    pixels = (x * 255).round().to(torch.uint8).numpy()
    expected = [8.0 * min(_png(p[0]), len(zlib.compress(p.tobytes(), 9))) for p in pixels]
    assert CompressedSize().fit(x).score(x).tolist() == expected

    # A smooth colour picture, for which PNG's prediction pays, and one of four channels, laid below one another.
    ramp = torch.arange(64).view(1, 1, 1, 64).expand(1, 3, 64, 64) * 3 + torch.arange(64).view(1, 1, 64, 1)
    colour = CompressedSize().fit(ramp / 255).score(ramp / 255)
    raw = ramp[0].to(torch.uint8).numpy()
    assert (
        colour.item() == 8 * _png(np.ascontiguousarray(raw.transpose(1, 2, 0))) < 8 * len(zlib.compress(raw.tobytes()))
    )
    four = torch.cat([ramp, ramp[:, :1]], 1)
    stacked = four.to(torch.uint8).numpy().reshape(256, 64)
    expected = 8 * min(_png(stacked), len(zlib.compress(stacked.tobytes(), 9)))
    assert CompressedSize().fit(four / 255).score(four / 255).item() == expected
    with pytest.raises(ValueError, match="outside the bounds"):
        CompressedSize().fit(x).score(2 * x)
    with pytest.raises(ValueError, match="images"):
        CompressedSize().fit(x).score(x.flatten(1))


def test_input_complexity_takes_the_size_from_the_code_length():
    model, x = gaussian(shape=(1, 8, 8), pixels=Pixels(256, "nearest")), digits("test").images()[:30].double()
    bits = CompressedSize().fit(x).score(x)
    torch.testing.assert_close(InputComplexity(model).fit(x).score(x), -density(model, x) / math.log(2) - bits)


def test_input_complexity_compresses_what_the_model_sees():
    torch.manual_seed(0)
    vae = VAE((1, 8, 8), latent_dim=2, architecture="mlp", width=8, quantization="nearest").eval()
    x = digits("test").images()[:20]
    binary = Pixels(2, "nearest")(x)
    detector = InputComplexity(vae).fit(x)
    assert detector.score(x).equal(detector.score(binary))
    assert not CompressedSize().fit(x).score(x).equal(CompressedSize().fit(x).score(binary))


# typicality and ensembles


def test_typicality_finds_the_mode_unusual_where_likelihood_finds_it_best():
    torch.manual_seed(1)
    n = 64
    model = Gaussian(torch.full((n,), 0.5).double(), 0.05**2 * torch.eye(n).double(), (1, 8, 8))
    x = (0.5 + 0.05 * torch.randn(500, 1, 8, 8, dtype=torch.float64)).clamp(0, 1)
    mode = torch.full((1, 1, 8, 8), 0.5).double()
    typicality, likelihood = Typicality(model).fit(x), Likelihood(model).fit(x)
    expected = (density(model, x) - density(model, x).mean()).abs()
    torch.testing.assert_close(typicality.score(x), expected)
    assert likelihood.score(mode) < likelihood.score(x).min()
    assert typicality.score(mode) > typicality.score(x).max()
    # For a Gaussian the entropy is known, and the mode lies n / 2 nats above it.
    torch.testing.assert_close(typicality.score(mode), torch.tensor([n / 2]).double(), rtol=0.02, atol=0)


def test_waic_by_hand():
    models, x = [gaussian(s) for s in range(3)], images(20)
    log_p = np.stack([density(m, x).numpy() for m in models])
    expected = -(log_p.mean(0) - log_p.var(0, ddof=1))
    torch.testing.assert_close(WAIC(models).fit(x).score(x), torch.from_numpy(expected))
    same = WAIC([models[0]] * 4).fit(x).score(x)
    torch.testing.assert_close(same, Likelihood(models[0]).fit(x).score(x))


def test_several_models_are_saved_and_loaded_in_order(tmp_path):
    x, models = images(30), [gaussian(0), gaussian(1)]
    LikelihoodRatio(models).fit(x).calibrate(x).save(tmp_path)
    for again in ([gaussian(0), gaussian(1)], nn.ModuleList([gaussian(0), gaussian(1)])):
        loaded = load(tmp_path, model=again)
        assert loaded.score(x).equal(LikelihoodRatio(models).fit(x).score(x))
    with pytest.raises(ValueError, match="other weights"):
        load(tmp_path, model=[gaussian(1), gaussian(0)])


# latent variables


def test_regret_is_the_divergence_of_the_encoder_from_the_true_posterior():
    """max over q of ELBO is log p(x) here, so that the regret is KL(q(z | x) || p(z | x)), in closed form."""
    x, model = images(30), linear(error=0.4, reach=1.5)
    gap = model.exact(x) - model.log_prob(x)
    true, given = model.posterior(x), model.encode(x)
    distributions = [torch.distributions.Normal(q.mean, q.log_std.exp()) for q in (given, true)]
    divergence = torch.distributions.kl_divergence(*distributions).sum(1)
    torch.testing.assert_close(gap, divergence)
    regret = LikelihoodRegret(model, steps=150, lr=0.03).fit(x).score(x)
    torch.testing.assert_close(regret, divergence.detach(), rtol=2e-3, atol=2e-3)
    assert (regret <= divergence + 1e-9).all()


def test_regret_never_falls_with_more_steps_and_is_none_at_the_optimum():
    x = images(30)
    by_steps = [LikelihoodRegret(linear(error=0.4), steps=s).fit(x).score(x) for s in (1, 5, 20, 60)]
    for fewer, more in pairwise(by_steps):
        assert (more >= fewer).all()
    assert (by_steps[0] >= 0).all()
    assert (by_steps[1] > 0).all()
    assert LikelihoodRegret(linear(), steps=20).fit(x).score(x).abs().max() < 1e-10


def test_regret_is_differentiated_at_the_best_posterior():
    x = images(5).requires_grad_()
    model = linear(error=0.4, reach=1.5)
    (model.exact(x) - model.log_prob(x)).sum().backward()
    expected, x.grad = x.grad, None
    LikelihoodRegret(model, steps=300, lr=0.01).fit(x.detach()).score(x).sum().backward()
    torch.testing.assert_close(x.grad, expected, rtol=0.05, atol=0.05)


def test_reconstruction_of_a_linear_model_is_a_projection():
    x, model = images(20), linear()
    centred = x.flatten(1) - 0.5
    shrunk = model.w.square().sum(0) / (model.w.square().sum(0) + model.s**2)
    basis = model.w / model.w.norm(dim=0)
    residual = centred - centred @ basis * shrunk @ basis.T
    expected = residual.square().mean(1).detach()
    torch.testing.assert_close(AutoencoderReconstruction(model).fit(x).score(x), expected)


# the density of states


def test_kernel_density_estimates_are_scipys():
    x, fresh, model = images(200), images(20, seed=2), linear(reach=2.0)
    detector = DensityOfStates(model).fit(x)
    known, new = (torch.stack(model_statistics(model, v), 1).detach().numpy() for v in (x, fresh))
    moving = [k for k in range(known.shape[1]) if known[:, k].std() > 1e-9]
    assert moving == [0, 1, 3, 4]  # the entropy of q is the same for all x here
    expected = -sum(gaussian_kde(known[:, k]).logpdf(new[:, k]) for k in moving)
    constant = detector.score(fresh) - torch.from_numpy(expected)
    torch.testing.assert_close(constant, constant[:1].expand(20))

    one = DensityOfStates([gaussian(0), gaussian(1)]).fit(x)
    log_p = [[density(gaussian(s), v).numpy() for v in (x, fresh)] for s in (0, 1)]
    expected = -sum(gaussian_kde(k).logpdf(n) for k, n in log_p)
    torch.testing.assert_close(one.score(fresh), torch.from_numpy(expected))


def test_statistics_of_a_latent_variable_model():
    x, model = images(20), linear(error=0.2, reach=2.0)
    reconstruction, kl, entropy, cross_entropy, bound = model_statistics(model, x)
    torch.testing.assert_close(reconstruction - kl, model.log_prob(x))
    q = model.encode(x)
    normal = torch.distributions.Normal(q.mean, q.log_std.exp())
    torch.testing.assert_close(entropy, normal.entropy().sum(1))
    # E_q[-log N(z; 0, I)] in closed form
    expected = 0.5 * (q.mean.square() + (2 * q.log_std).exp() + math.log(2 * math.pi)).sum(1)
    torch.testing.assert_close(cross_entropy, expected)
    torch.testing.assert_close(bound, model.importance_weighted_log_prob(x, samples=16))


def test_statistics_in_front_of_a_flow():
    torch.manual_seed(0)
    model = (
        IAFVAE((1, 8, 8), latent_dim=3, width=4, flow_width=8, context_dim=4, quantization="nearest").double().eval()
    )
    x = digits("test").images()[:6].double()
    reconstruction, kl, entropy, cross_entropy, _ = model_statistics(model, x)
    q, prior = model.encode(x), torch.distributions.Normal(0, torch.ones((), dtype=torch.float64))
    normal = torch.distributions.Normal(q.mean, q.log_std.exp())
    assert reconstruction.equal(model.elbo_terms(x)[0])
    torch.testing.assert_close(kl, torch.distributions.kl_divergence(normal, prior).sum(1))
    torch.testing.assert_close(entropy, normal.entropy().sum(1))
    torch.testing.assert_close(cross_entropy, kl + entropy)


def test_states_of_a_tilt_are_what_its_base_says_and_its_energy():
    base = RealNVP((1, 8, 8), width=4)
    model, x = Tilted(base, width=4, steps=2).eval(), torch.rand(5, 1, 8, 8)
    of_base, energy = model_statistics(model, x)
    assert torch.equal(of_base, model.base.log_prob(x))
    assert torch.allclose(of_base - energy, model.log_prob(x))
    assert len(model_statistics(Tilted(base, space="image", width=4, steps=2).eval(), x)) == 2


def test_support_vectors_are_scikit_learns():
    x, fresh, models = images(100), images(20, seed=2), [gaussian(0), gaussian(1)]
    known, new = (np.stack([density(m, v).numpy() for m in models], 1) for v in (x, fresh))
    mean, std = known.mean(0), known.std(0, ddof=1)
    svm = OneClassSVM(gamma=0.5).fit((known - mean) / std)
    score = DensityOfStates(models, estimator="svm").fit(x).score(fresh)
    np.testing.assert_allclose(score.numpy(), -svm.decision_function((new - mean) / std), rtol=1e-8)


# on real models


@pytest.mark.parametrize(
    "build",
    [
        lambda: VAE((1, 8, 8), latent_dim=2, architecture="mlp", width=8, quantization="stochastic"),
        lambda: VAE((1, 8, 8), latent_dim=2, width=4, likelihood="gaussian"),
        lambda: IAFVAE((1, 8, 8), latent_dim=2, width=4, flow_width=8, context_dim=4, quantization="nearest"),
        lambda: GatedPixelCNN((1, 8, 8), levels=2, width=4, layers=1, kernel_size=3, quantization="nearest"),
    ],
)
def test_every_score_of_a_real_model(build):
    torch.manual_seed(0)
    model, other = build().double().eval(), build().double().eval()
    x = digits("test").images()[:12].double()
    found = [
        LikelihoodRatio([model, other]),
        Typicality(model),
        WAIC([model, other]),
        DensityOfStates([model, other]),
    ]
    if model.pixels is not None:
        found.append(InputComplexity(model))
    if isinstance(model, LatentVariableModel):
        found += [
            Likelihood(model, importance_samples=4),
            LikelihoodRegret(model, steps=3, samples=2),
            AutoencoderReconstruction(model),
        ]
    for detector in found:
        scores = detector.fit(x).score(x)
        assert scores.isfinite().all()
        alone = torch.cat([detector.score(x[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(alone, scores[:3], rtol=1e-8, atol=1e-8)
        v = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(detector.score(v).sum(), v)
        assert gradient.isfinite().all()
        assert gradient.flatten(1).norm(dim=1).min() > 0
