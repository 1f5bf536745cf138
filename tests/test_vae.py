"""Variational autoencoders: bounds, closed forms and gradients."""

import math
from itertools import pairwise

import pytest
import torch
from torch.distributions import MultivariateNormal

from robustgen.data import digits
from robustgen.generative import VAE, fit
from robustgen.generative.blocks.discretized_logistic import DiscretizedLogisticMixture
from robustgen.generative.blocks.gaussian import bounded_log_std, gaussian_kl, gaussian_log_prob
from robustgen.generative.blocks.pixel_likelihood import Bernoulli, Gaussian
from robustgen.generative.blocks.softmax import Softmax
from robustgen.generative.latent.base import LatentVariableModel, Posterior
from robustgen.generative.latent.coders import ConvDecoder, ConvEncoder
from robustgen.training import Batch


class LinearGaussian(LatentVariableModel):
    """x = W z + b + s e with orthogonal columns of W, so that the true posterior is a diagonal Gaussian.

    ``error`` moves the encoder away from it.
    """

    def __init__(self, error: float = 0.0) -> None:
        super().__init__((1, 2, 3), 2, None, 0.0, 0, 1)
        self.error, self.s = error, 0.1
        q = torch.linalg.qr(torch.randn(6, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64))[0]
        self.w = torch.nn.Parameter(q * torch.tensor([0.3, 0.15], dtype=torch.float64))

    def _encode(self, v):
        precision = 1 + self.w.square().sum(0) / self.s**2
        mean = (v.flatten(1) - 0.5) @ self.w / self.s**2 / precision
        return Posterior(mean + self.error, -0.5 * precision.log().expand_as(mean) + self.error)

    def decode(self, z):
        return (0.5 + z @ self.w.T).view(-1, 1, 2, 3)

    def _decode_log_prob(self, v, z):
        return gaussian_log_prob(v, self.decode(z), math.log(self.s)).flatten(1).sum(1)

    def decode_sample(self, z, uniforms):
        return self.decode(z) + self.s * torch.special.ndtri(uniforms)

    def exact(self, x):
        covariance = self.w @ self.w.T + self.s**2 * torch.eye(6, dtype=x.dtype)
        return MultivariateNormal(torch.full((6,), 0.5, dtype=x.dtype), covariance).log_prob(x.flatten(1))


def _uniform_images(n, shape=(1, 2, 3)):
    return torch.rand(n, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _vae(**options):
    torch.manual_seed(0)
    return VAE((1, 4, 4), **{"latent_dim": 2, "width": 4, **options}).double().eval()


def test_analytic_kl_is_the_monte_carlo_kl():
    torch.manual_seed(2)
    mean, log_std, prior_mean, prior_log_std = torch.randn(4, 5, dtype=torch.float64)
    noise = torch.randn(40_000, 5, dtype=torch.float64)
    z = mean + log_std.exp() * noise
    draws = gaussian_log_prob(z, mean, log_std) - gaussian_log_prob(z, prior_mean, prior_log_std)
    error = (draws.mean(0) - gaussian_kl(mean, log_std, prior_mean, prior_log_std)).abs()
    assert (error < 4 * draws.std(0) / math.sqrt(len(draws))).all()
    assert (gaussian_kl(mean, log_std, mean, log_std) == 0).all()


def test_log_std_is_smooth_and_tame():
    a = torch.tensor([-1e-6, 1e-6], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(bounded_log_std(a).sum(), a)
    torch.testing.assert_close(gradient, torch.ones(2, dtype=torch.float64), atol=1e-5, rtol=0)
    assert bounded_log_std(torch.tensor(1e6)).exp() == pytest.approx(1e6 + 1, rel=1e-4)


def test_kl_of_the_model_is_the_mean_of_its_importance_terms():
    vae, x = _vae(), torch.bernoulli(_uniform_images(2, (1, 4, 4)))
    _, kl = vae.elbo_terms(x)
    draws = vae._importance_terms(x, vae.encode(x), vae.posterior_noise(x, 2000))[1]
    assert ((draws.mean(0) - kl).abs() < 4 * draws.std(0) / math.sqrt(2000)).all()


def test_every_bound_is_exact_where_the_posterior_is():
    model, x = LinearGaussian(), _uniform_images(5)
    exact = model.exact(x)
    torch.testing.assert_close(model.importance_weighted_log_prob(x, samples=1), exact)
    torch.testing.assert_close(model.importance_weighted_log_prob(x, samples=7), exact)
    noise = model.posterior_noise(x, 20_000)
    reconstruction = model._importance_terms(x, model.encode(x), noise)[0]
    bound = reconstruction - model.elbo_terms(x)[1]
    assert ((bound.mean(0) - exact).abs() < 4 * bound.std(0) / math.sqrt(len(noise))).all()


def test_importance_weighting_rises_to_the_exact_value():
    model = LinearGaussian(error=0.5)
    z, u = torch.randn(300, 2, dtype=torch.float64), torch.rand(300, 1, 2, 3, dtype=torch.float64)
    x = model.decode_sample(z, u).clamp(0, 1).detach()
    exact = model.exact(x).mean()
    gaps = [(exact - model.importance_weighted_log_prob(x, samples=k).mean()).item() for k in (1, 5, 25, 125)]
    assert all(worse > 1.5 * better for worse, better in pairwise(gaps)), gaps
    assert 0 < gaps[-1] < 0.02 * gaps[0], gaps
    assert model.log_prob(x).mean() < exact - gaps[1]


def test_importance_weighting_does_not_depend_on_chunks_and_goes_on_where_fewer_ended():
    vae, x = _vae(), torch.bernoulli(_uniform_images(3, (1, 4, 4)))
    whole = vae.importance_weighted_log_prob(x, samples=10)
    torch.testing.assert_close(vae.importance_weighted_log_prob(x, samples=10, chunk=3), whole, rtol=1e-13, atol=0)
    assert (vae.posterior_noise(x, 10)[:4] == vae.posterior_noise(x, 4)).all()
    assert (vae.posterior_noise(x, 10)[4:] == vae.posterior_noise(x, 6, first=4)).all()
    by_hand = [vae.decode_log_prob(x, vae._draw(vae.encode(x), e)[0]) for e in vae.posterior_noise(x, 10)]
    _, divergence = vae._importance_terms(x, vae.encode(x), vae.posterior_noise(x, 10))
    torch.testing.assert_close((torch.stack(by_hand) - divergence).logsumexp(0) - math.log(10), whole)


def test_reparameterised_gradient_is_that_of_the_closed_form():
    """E log p(x | z) of a linear decoder is quadratic in z, so that its gradient in q's parameters is known."""
    model, x = LinearGaussian(), _uniform_images(2)
    mean = torch.tensor([[0.3, -0.2], [0.1, 0.9]], dtype=torch.float64, requires_grad=True)
    log_std = torch.tensor([[-0.5, 0.2], [0.1, -1.0]], dtype=torch.float64, requires_grad=True)
    noise = torch.randn(50, 2, 2, dtype=torch.float64)
    noise = torch.cat([noise, -noise])
    noise = noise / noise.square().mean(0).sqrt()  # mean 0 and variance 1 exactly: no Monte-Carlo error is left
    z, _ = model._draw(Posterior(mean.repeat(len(noise), 1), log_std.repeat(len(noise), 1)), noise.flatten(0, 1))
    average = model._decode_log_prob(x.repeat(len(noise), 1, 1, 1), z).view(-1, 2).mean(0)
    gradients = torch.autograd.grad(average.sum(), (mean, log_std))
    gram = model.w.square().sum(0) / model.s**2
    with torch.no_grad():
        by_mean = (x.flatten(1) - 0.5) @ model.w / model.s**2 - gram * mean
        by_log_std = -gram * (2 * log_std).exp()
    torch.testing.assert_close(gradients[0], by_mean)
    torch.testing.assert_close(gradients[1], by_log_std)


def test_elbo_under_the_models_own_posterior_is_log_prob():
    for model in (_vae(), _vae(architecture="mlp", likelihood="gaussian", width=8)):
        x = torch.bernoulli(_uniform_images(3, (1, 4, 4)))
        posterior = model.encode(x)
        own = model.elbo_of(x, posterior.mean, posterior.log_std, model.posterior_noise(x)[0])
        torch.testing.assert_close(own, model.log_prob(x))
    mean = posterior.mean.detach().requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda m: model.elbo_of(x, m, posterior.log_std.detach(), model.posterior_noise(x)[0]), mean
    )


@pytest.mark.parametrize("options", [{}, {"importance_samples": 3}, {"free_bits": 0.5}, {"kl_warmup": 4}])
def test_the_loss_is_the_stated_bound(options):
    vae = _vae(architecture="mlp", width=8, **options)
    x = torch.bernoulli(_uniform_images(4, (1, 4, 4)))
    x[0], x[1] = 0, 1
    vae.to_posterior.weight.data *= 10  # so that the KLs of images lie on both sides of the free bits
    batch = Batch(x, None, torch.arange(4))
    torch.manual_seed(5)
    found = vae.training_step(batch, step=0)
    torch.manual_seed(5)
    noise = torch.randn(options.get("importance_samples", 1), 4, 2, dtype=torch.float64)
    posterior = vae.encode(x)
    z = [posterior.mean + posterior.log_std.exp() * e for e in noise]
    reconstruction = torch.stack([vae.decode_log_prob(x, one) for one in z])
    kl = gaussian_kl(posterior.mean, posterior.log_std)
    if "importance_samples" in options:
        q = torch.stack([gaussian_log_prob(one, posterior.mean, posterior.log_std).sum(1) for one in z])
        weights = reconstruction + torch.stack([gaussian_log_prob(one).sum(1) for one in z]) - q
        expected = -weights.exp().mean(0).log().mean()
    else:
        cost = kl.mean(0).clamp(min=options.get("free_bits", 0.0)).sum() * (0.25 if "kl_warmup" in options else 1)
        expected = cost - reconstruction.mean()
    torch.testing.assert_close(found["loss"], expected)
    torch.testing.assert_close(found["elbo"], found["reconstruction"] - found["kl"])


@pytest.mark.parametrize("scale", [0.3, None])
def test_gaussian_pixels_are_a_density_and_are_sampled_from_it(scale):
    logits = torch.full((1, 1, 1, 1), -3.0, dtype=torch.float64)
    grid = torch.linspace(-4, 5, 20_001, dtype=torch.float64)
    pixels = Gaussian(1, scale).double()
    assert torch.trapezoid(pixels.log_prob(grid.view(-1, 1, 1, 1), logits).exp(), grid).item() == pytest.approx(1)
    assert torch.as_tensor(pixels.scale).item() == pytest.approx(scale or 0.5)
    narrow = Gaussian(1, 0.01).sample(logits, torch.rand(20_000, 1, 1, 1, dtype=torch.float64))
    assert narrow.std().item() == pytest.approx(0.01, rel=0.03)
    assert narrow.mean().item() == pytest.approx(torch.sigmoid(logits).item(), abs=4e-4)


def test_means_of_discrete_pixels_are_those_of_their_samples():
    u = torch.rand(20_000, 2, 1, 1, dtype=torch.float64)
    for pixels in (Bernoulli(2), Softmax(2, 5), DiscretizedLogisticMixture(2, 200, components=2)):
        parameters = torch.randn(1, pixels.parameters_per_pixel, 1, 1, dtype=torch.float64)
        if isinstance(pixels, DiscretizedLogisticMixture):
            parameters = parameters / 5
            parameters[:, [3, 4, 9, 10]] = -3.0  # narrow, so that little is cut off at the ends
            parameters[:, 5] = 1.0
        drawn = pixels.sample(parameters.expand(len(u), -1, -1, -1), u)
        torch.testing.assert_close(pixels.mean(parameters)[0], drawn.mean(0), atol=0.015, rtol=0)


def test_decoders_are_normalised_given_z():
    images = torch.cartesian_prod(*[torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)] * 4).view(-1, 1, 2, 2)
    torch.manual_seed(0)
    for architecture in ("conv", "mlp"):
        options = {"latent_dim": 2, "width": 4, "architecture": architecture}
        vae = VAE((1, 2, 2), likelihood="discretized_logistic", levels=3, **options).double()
        z = torch.randn(1, 2, dtype=torch.float64).expand(len(images), 2)
        assert vae.decode_log_prob(images, z).exp().sum().item() == pytest.approx(1)


def test_convolutions_keep_the_scale_of_a_signal():
    torch.manual_seed(0)
    decoder = ConvDecoder(16, (1, 32, 32), width=32)
    with torch.no_grad():
        z = torch.randn(8, 16)
        start, end = decoder.linear(z).square().mean(), decoder(z).square().mean()
        x = torch.randn(8, 1, 32, 32)
        features = ConvEncoder((1, 32, 32), width=32)(x).square().mean()
    assert 0.1 < end / start < 10  # what is lost is lost at the borders of small maps
    assert 0.1 < features < 10


def test_trained_on_digits_it_beats_independent_pixels():
    x = (digits("train").x > 127).float()
    held = (digits("test").x > 127).float()
    torch.manual_seed(0)
    vae = VAE((1, 8, 8), latent_dim=8, architecture="mlp", width=64)
    history = fit(vae, x, held, epochs=8, batch_size=25, optimizer=lambda p: torch.optim.Adam(p, 4e-3), progress=False)
    rate = x.mean(0).clamp(1e-3, 1 - 1e-3)
    independent = (held * rate.log() + (1 - held) * (1 - rate).log()).flatten(1).sum(1).mean()
    with torch.no_grad():
        elbo, weighted = vae.log_prob(held).mean(), vae.importance_weighted_log_prob(held, samples=50).mean()
        error = (vae.reconstruct(held) - held).square().mean()
    assert history[-1]["val_loss"] < history[0]["val_loss"]
    assert weighted > elbo > independent + 1
    assert error < held.var(0).mean()


def test_scores_do_not_depend_on_the_batch():
    x = torch.bernoulli(_uniform_images(5, (1, 4, 4)))
    for vae in (_vae(), _vae(quantization="stochastic"), _vae(likelihood="gaussian")):
        for score in (vae.log_prob, vae.importance_weighted_log_prob, vae.latents, vae.reconstruct):
            torch.testing.assert_close(score(x)[2:4], score(x[2:4]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "cnn"}, "architecture"),
        ({"likelihood": "normal"}, "likelihood"),
        ({"likelihood": "gaussian", "quantization": "nearest"}, "quantization"),
        ({"scale": 0.1}, "gaussian"),
        ({"levels": 8}, "discretized_logistic"),
        ({"likelihood": "discretized_logistic", "components": 0}, "components"),
        ({"likelihood": "gaussian", "scale": 0.0}, "scale"),
        ({"latent_dim": 0}, "latent_dim"),
        ({"width": 0}, "width"),
        ({"kl_warmup": -1}, "kl_warmup"),
        ({"importance_samples": 2, "free_bits": 0.1}, "free_bits"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        VAE((1, 4, 4), **options)


def test_grey_images_need_a_stated_binarization():
    with pytest.raises(ValueError, match="quantization"):
        _vae().elbo_terms(_uniform_images(2, (1, 4, 4)))
    with pytest.raises(ValueError, match="samples"):
        _vae().importance_weighted_log_prob(torch.zeros(1, 1, 4, 4, dtype=torch.float64), samples=0)
