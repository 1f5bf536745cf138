"""Variational autoencoders: bounds, closed forms and gradients."""

import math
from itertools import pairwise

import pytest
import torch
from torch.autograd.functional import jacobian
from torch.distributions import MultivariateNormal

from robustgen.data import digits
from robustgen.generative import IAFVAE, VAE, HierarchicalPixelVAE, PixelVAE, fit
from robustgen.generative.blocks.discretized_logistic import DiscretizedLogisticMixture
from robustgen.generative.blocks.gaussian import bounded_log_std, gaussian_kl, gaussian_log_prob
from robustgen.generative.blocks.made import MADE
from robustgen.generative.blocks.pixel_likelihood import Bernoulli, Gaussian
from robustgen.generative.blocks.softmax import Softmax
from robustgen.generative.latent.autoregressive_flow import InverseAutoregressiveStep, MaskedConvNet
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


# Inverse autoregressive flows: Jacobians, densities and what they add to a posterior.


def _step(network, backwards):
    """With large weights, so that nothing is near the identity."""
    torch.manual_seed(0)
    step = InverseAutoregressiveStep(network(), backwards).double()
    for p in step.parameters():
        torch.nn.init.normal_(p, std=0.8)
    return step


def _order(network):
    """In which the network sees the dimensions: a map's pixel after pixel, of each its channels."""
    if isinstance(network, MADE):
        return torch.arange(6)
    return torch.arange(6).view(network.shape).permute(1, 2, 0).flatten()


NETWORKS = [lambda: MADE(6, 16, 3), lambda: MADE(6, 4, 3), lambda: MaskedConvNet((2, 1, 3), 5, 3)]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("backwards", [False, True])
def test_a_steps_jacobian_is_triangular_and_its_log_det_is_the_sum_of_log_gates(network, backwards):
    step = _step(network, backwards)
    z, context = torch.randn(6, dtype=torch.float64), torch.randn(1, 3, dtype=torch.float64)
    j = jacobian(lambda z: step(z[None], context)[0][0], z)
    order = _order(step.network)
    j = j[order][:, order]
    assert (j.tril(-1) if backwards else j.triu(1)).count_nonzero() == 0
    strict = j.triu(1) if backwards else j.tril(-1)
    assert strict.count_nonzero() > 0
    torch.testing.assert_close(step(z[None], context)[1].sum(), j.logdet())
    torch.testing.assert_close(step(z[None], context)[1][0].exp()[order], j.diagonal())


@pytest.mark.parametrize("network", NETWORKS)
def test_every_dimension_hears_of_the_context(network):
    step = _step(network, False)
    z, context = torch.randn(1, 6, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    assert (jacobian(lambda c: step.network(z, c[None]).flatten(), context) != 0).all()


def test_at_the_start_a_step_changes_little():
    torch.manual_seed(0)
    step = InverseAutoregressiveStep(MADE(6, 16, 3), backwards=False)
    z = torch.randn(100, 6)
    new, log_gate = step(z, torch.randn(100, 3))
    assert log_gate.exp().mean() > 0.8
    assert (new - z).square().mean() < 0.1


@pytest.mark.parametrize("options", [{}, {"flow_network": "conv"}, {"flow_steps": 3}])
def test_log_q_is_that_of_the_change_of_variables(options):
    model = _model(latent_dim=4, **options)
    noise, context = torch.randn(4, dtype=torch.float64), torch.randn(1, 3, dtype=torch.float64)
    mean, log_std = torch.randn(2, 1, 4, dtype=torch.float64)
    posterior = Posterior(mean, log_std, context)
    j = jacobian(lambda e: model._draw(posterior, e[None])[0][0], noise)
    base = -0.5 * noise.square().sum() - 2 * math.log(2 * math.pi)
    torch.testing.assert_close(model._draw(posterior, noise[None])[1].sum(), base - j.det().abs().log())
    assert j.tril(-1).count_nonzero() > 0
    assert j.triu(1).count_nonzero() > 0  # two orders together correlate everything


def test_q_integrates_to_one_on_a_grid():
    """The density at points z of a grid, found by inverting the flow one dimension after the other."""
    model = _model(latent_dim=2)
    axis = torch.linspace(-9, 9, 241, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    context = torch.tensor([[0.5, -1.0, 0.3]], dtype=torch.float64).expand(len(grid), 3)
    mean = torch.tensor([[0.3, -0.4]], dtype=torch.float64).expand(len(grid), 2)
    posterior = Posterior(mean, torch.full_like(mean, -0.1), context)
    z = grid
    for step in reversed(model.flow):
        target, z = z, torch.zeros_like(z)
        for _ in range(2):  # each pass makes one dimension more exact
            new, log_gate = step(z, context)
            z = z + (target - new) / log_gate.exp()
    noise = (z - mean) / posterior.log_std.exp()
    back, log_q = model._draw(posterior, noise)
    torch.testing.assert_close(back, grid)
    density = log_q.sum(1).exp()
    assert (density.sum() * (axis[1] - axis[0]) ** 2).item() == pytest.approx(1, abs=1e-3)
    assert density.max() > 100 * density.mean()


def test_kl_is_its_value_at_the_drawn_point_and_positive_on_average():
    model = _model(latent_dim=4)
    x = torch.bernoulli(torch.full((3, 1, 2, 2), 0.5, dtype=torch.float64))
    posterior, noise = model.encode(x), model.posterior_noise(x, 500)
    values = torch.stack([model._elbo(x, posterior, e)[1].sum(1) for e in noise])
    torch.testing.assert_close(values[0], model.elbo_terms(x)[1])
    assert (values.mean(0) > 0).all()
    torch.testing.assert_close(values, model._importance_terms(x, posterior, noise)[1])


def test_elbo_of_keeps_the_context_of_the_image():
    model = _model(latent_dim=4)
    x = torch.bernoulli(torch.full((3, 1, 2, 2), 0.5, dtype=torch.float64))
    posterior = model.encode(x)
    own = model.elbo_of(x, posterior.mean, posterior.log_std, model.posterior_noise(x)[0])
    torch.testing.assert_close(own, model.log_prob(x))


def test_bad_arguments_are_named_of_iaf_vae():
    for options, message in (
        ({"flow_network": "made"}, "flow_network"),
        ({"flow_steps": 0}, "flow_steps"),
        ({"latent_dim": 5, "flow_network": "conv"}, "no multiple"),
    ):
        with pytest.raises(ValueError, match=message):
            IAFVAE((1, 28, 28), width=2, **options)


def _model(**options):
    torch.manual_seed(0)
    model = IAFVAE((1, 2, 2), architecture="mlp", width=8, flow_width=12, context_dim=3, **options).double().eval()
    for p in model.flow.parameters():
        torch.nn.init.normal_(p, std=0.6)
    return model


# PixelVAEs: their decoders are causal and normalised given z, and become a VAE's without autoregressive layers.

VARIANTS = [
    {"layers": 0},
    {"layers": 1},
    {"layers": 3, "kernel_size": 3},
    {"layers": 1, "conditioning": "bias"},
    {"layers": 3, "conditioning": "bias"},
]


def _model_of_pixel_vae(shape, **options):
    torch.manual_seed(0)
    return PixelVAE(shape, **{"latent_dim": 2, "width": 8, **options}).double().eval()


def _binary_images(shape):
    c, h, w = shape
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * (c * h * w)).view(-1, c, h, w)


@pytest.mark.parametrize("options", VARIANTS)
def test_the_decoder_is_normalised_given_z(options):
    model, x = _model_of_pixel_vae((1, 2, 3), **options), _binary_images((1, 2, 3))
    for z in 3 * torch.randn(3, 1, 2, dtype=torch.float64):
        log_prob = model.decode_log_prob(x, z.expand(len(x), 2))
        assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-12)
        assert log_prob.std() > 0.01


@pytest.mark.parametrize("options", VARIANTS[1:])
@pytest.mark.parametrize("levels", [2, 3])
def test_given_z_a_pixel_sees_exactly_those_before_it(options, levels):
    shape = (2, 3, 3)
    model = _model_of_pixel_vae(shape, levels=levels, width=24, **options)
    x, z = torch.rand(shape, dtype=torch.float64), torch.randn(1, 2, dtype=torch.float64)
    condition = model._condition(z)
    j = jacobian(lambda x: model.pixel_cnn(x[None], condition).unflatten(1, (2, -1))[0], x)  # (C, K, H, W, *shape)
    order = torch.arange(18).view(shape).permute(1, 2, 0).flatten()  # pixel after pixel, of each its channels
    j = j.abs().sum(1).reshape(18, 18)[order][:, order]
    assert j.triu().count_nonzero() == 0
    assert (j[-1, :-1] > 0).all()


@pytest.mark.parametrize("options", VARIANTS)
def test_every_pixel_depends_on_z(options):
    model = _model_of_pixel_vae((1, 3, 3), **options)
    x, z = torch.rand(1, 1, 3, 3, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    j = jacobian(lambda z: model.pixel_cnn(x, model._condition(z[None])).flatten(), z)
    assert (j != 0).any(1).all()


def test_without_autoregressive_layers_it_is_the_vae():
    shape, x = (1, 6, 5), torch.bernoulli(torch.full((4, 1, 6, 5), 0.5, dtype=torch.float64))
    model = _model_of_pixel_vae(shape, layers=0, kl_warmup=3)
    vae = VAE(shape, latent_dim=2, width=8, kl_warmup=3).double().eval()
    names = {"decoder.": "decoder.0.", "pixel_cnn.head.": "decoder.1."}
    weights = model.state_dict().items()
    vae.load_state_dict({_renamed(name, names): value for name, value in weights})
    found = []
    for each in (model, vae):
        torch.manual_seed(2)
        found.append(each.training_step(Batch(x, None, torch.arange(4)), step=0))
    assert found[0] == found[1]
    assert (model.log_prob(x) == vae.log_prob(x)).all()
    assert (model.importance_weighted_log_prob(x, 5) == vae.importance_weighted_log_prob(x, 5)).all()
    assert (model.reconstruct(x) == vae.reconstruct(x)).all()
    u = torch.rand(4, *shape, dtype=torch.float64)
    assert (model.decode_sample(model.latents(x), u) == vae.decode_sample(vae.latents(x), u)).all()


def _renamed(name, names):
    return next((new + name.removeprefix(old) for old, new in names.items() if name.startswith(old)), name)


@pytest.mark.parametrize("options", VARIANTS)
def test_cached_sampling_is_naive_sampling(options):
    for shape, levels in (((1, 4, 3), 2), ((2, 3, 3), 4)):
        model = _model_of_pixel_vae(shape, levels=levels, **options)
        z, u = torch.randn(5, 2, dtype=torch.float64), torch.rand(5, *shape, dtype=torch.float64)
        cached = model.decode_sample(z, u)
        assert (cached == model.decode_sample(z, u, cached=False)).all()
        assert (cached == model.pixels(cached)).all()
        assert (model.decode_sample(z[:2], u[:2]) == cached[:2]).all()


@pytest.mark.parametrize("shape", [(1, 2, 3), (3, 1, 2)])
def test_samples_follow_the_decoder(shape):
    """Frequencies of all 64 images against their probabilities given z."""
    model, x = _model_of_pixel_vae(shape, width=24, layers=2), _binary_images(shape)
    model.pixel_cnn.head.out.weight.data *= 4  # so that pixels depend on each other
    z = torch.tensor([[0.3, -0.8]], dtype=torch.float64)
    n = 8000
    drawn = model.decode_sample(z.expand(n, 2), torch.rand(n, *shape, dtype=torch.float64))
    index = (drawn.flatten(1) * 2 ** torch.arange(5, -1, -1)).sum(1).long()
    expected = model.decode_log_prob(x, z.expand(64, 2)).exp() * n
    found = torch.bincount(index, minlength=64)
    independent = drawn.mean(0).clamp(1e-9, 1 - 1e-9)
    independent = (x * independent.log() + (1 - x) * (1 - independent).log()).flatten(1).sum(1).exp() * n
    assert (independent - expected).abs().sum() > 0.05 * n
    chi_square = ((found - expected).square() / expected.clamp(min=1)).sum()
    assert chi_square < 64 + 5 * (2 * 64) ** 0.5


def test_noise_of_latents_and_of_pixels_is_set_apart():
    model = _model_of_pixel_vae((1, 4, 4), layers=2, width=24)
    z, u = torch.randn(6, 2, dtype=torch.float64), torch.rand(6, 1, 4, 4, dtype=torch.float64)
    drawn = model.decode_sample(model.prior_sample(z), u)
    assert (drawn == model.decode_sample(model.prior_sample(z), u)).all()
    assert (drawn != model.decode_sample(model.prior_sample(z), u.flip(0))).any()
    assert (drawn != model.decode_sample(model.prior_sample(z.flip(0)), u)).any()


@pytest.mark.parametrize("options", VARIANTS)
def test_scores_do_not_depend_on_the_batch_nor_on_chunks(options):
    model = _model_of_pixel_vae((1, 4, 4), **options)
    x = torch.bernoulli(torch.full((5, 1, 4, 4), 0.5, dtype=torch.float64))
    for score in (model.log_prob, model.importance_weighted_log_prob, model.latents, model.reconstruct):
        torch.testing.assert_close(score(x)[2:4], score(x[2:4]), rtol=1e-10, atol=1e-12)
    whole, parts = (model.importance_weighted_log_prob(x, 20, chunk=k) for k in (20, 7))
    torch.testing.assert_close(whole, parts, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conditioning": "concat"}, "conditioning"),
        ({"conditioning": "bias", "layers": 0}, "at least 1 autoregressive"),
        ({"layers": -1}, "layers must be at least 0"),
        ({"kernel_size": 4}, "kernel"),
        ({"levels": 1}, "levels"),
    ],
)
def test_bad_arguments_are_named_of_pixel_vae(options, message):
    with pytest.raises(ValueError, match=message):
        PixelVAE((1, 4, 4), width=4, **options)


# Two latent levels: the autoregressive prior, what each level costs, and noise at one level.


def _model_of_hierarchical_pixel_vae(shape=(1, 8, 8), **options):
    torch.manual_seed(0)
    options = {"latent_channels": 2, "top_latent_dim": 3, "width": 8, "layers": 1, "prior_layers": 2, **options}
    return HierarchicalPixelVAE(shape, levels=2, **options).double().eval()


def _images(n, shape=(1, 8, 8)):
    return torch.bernoulli(torch.full((n, *shape), 0.5, dtype=torch.float64))


def test_the_prior_of_a_point_knows_the_points_before_and_the_top_level():
    model = _model_of_hierarchical_pixel_vae((1, 10, 11))  # z_1 is 2 x 3 x 3
    z = torch.randn(model.latent_dim, dtype=torch.float64)
    j = jacobian(lambda z: model._prior(z[None])[0][0], z)
    order = torch.arange(18).view(2, 3, 3).permute(1, 2, 0).flatten()  # point after point
    blocks = j[:18, :18][order][:, order].abs().view(9, 2, 9, 2).sum((1, 3))
    assert blocks.triu().count_nonzero() == 0
    assert (blocks[-1, :-1] > 0).all()
    assert (j[:18, 18:] != 0).any(1).all()
    assert j[18:].count_nonzero() == 0  # p(z_2) is a standard Gaussian
    mean, log_std = model._prior(z[None])
    assert (mean[0, 18:] == 0).all()
    assert (log_std[0, 18:] == 0).all()


@pytest.mark.parametrize("prior_layers", [0, 2])
def test_the_prior_is_sampled_as_its_density_says(prior_layers):
    """Standardised by the parameters of one parallel pass, what the sampler drew is the noise that it was given."""
    model = _model_of_hierarchical_pixel_vae((1, 10, 11), prior_layers=prior_layers)
    noise = torch.randn(4, model.latent_dim, dtype=torch.float64)
    z = model.prior_sample(noise)
    mean, log_std = model._prior(z)
    torch.testing.assert_close((z - mean) / log_std.exp(), noise)
    torch.testing.assert_close(model._log_prior(z), gaussian_log_prob(noise) - log_std)
    j = jacobian(lambda e: _drawn(model, e), noise[0])
    torch.testing.assert_close(j.det().log(), log_std[0].sum())


def _drawn(model, noise):
    """prior_sample, as a function that has a derivative: points are put in one after the other."""
    bottom, _ = model.split(noise[None])
    z = noise[None]
    for _ in range(math.prod(bottom.shape[2:])):  # each pass makes one more point right
        mean, log_std = model._prior(z)
        z = mean + log_std.exp() * noise
    return z[0]


def test_kl_of_each_level_is_the_mean_of_its_log_ratio():
    model, x = _model_of_hierarchical_pixel_vae(), _images(2)
    n = 1500
    posterior, noise = model.encode(x), model.posterior_noise(x, n)
    many = Posterior(posterior.mean.repeat(n, 1), posterior.log_std.repeat(n, 1))
    with torch.no_grad():
        z, log_q = model._draw(many, noise.flatten(0, 1))
        closed = model._kl(many, z, log_q).view(n, 2, -1)
        ratio = (log_q - model._log_prior(z)).view(n, 2, -1)
    assert (closed >= 0).all()
    for level in (slice(0, -3), slice(-3, None)):
        difference = (ratio - closed)[:, :, level].sum(2)
        assert (difference.mean(0).abs() < 4 * difference.std(0) / math.sqrt(n)).all()
    terms = model.kl_terms(x)
    torch.testing.assert_close(terms["z_1"], closed[0, :, :-3].sum(1))
    torch.testing.assert_close(terms["z_2"], closed[0, :, -3:].sum(1))
    torch.testing.assert_close(terms["z_1"] + terms["z_2"], model.elbo_terms(x)[1])


@pytest.mark.parametrize("layers", [0, 2])
def test_the_decoder_is_normalised_given_z_of_hierarchical_pixel_vae(layers):
    model = _model_of_hierarchical_pixel_vae((1, 2, 3), layers=layers)
    x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 6).view(-1, 1, 2, 3)
    z = torch.randn(1, model.latent_dim, dtype=torch.float64).expand(len(x), -1)
    assert model.decode_log_prob(x, z).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_noise_can_be_changed_at_one_level():
    model = _model_of_hierarchical_pixel_vae()
    noise, u = torch.randn(1, model.latent_dim, dtype=torch.float64), torch.rand(1, 1, 8, 8, dtype=torch.float64)
    z_1, z_2 = model.split(model.prior_sample(noise))
    assert z_1.shape == (1, 2, 2, 2)
    bottom, top = noise.clone(), noise.clone()
    model.split(bottom)[0].normal_()
    model.split(top)[1].normal_()
    other_1, other_2 = model.split(model.prior_sample(bottom))
    assert (other_2 == z_2).all()
    assert (other_1 != z_1).any()
    other_1, other_2 = model.split(model.prior_sample(top))
    assert (other_2 != z_2).any()
    assert (other_1 != z_1).any()  # by what z_2 says of it alone: the noise of z_1 is the same
    z = model.prior_sample(noise)
    assert (model.decode_sample(z, u) == model.decode_sample(z, u, cached=False)).all()
    assert (model.decode_sample(z, u) != model.decode_sample(z, u.flip(3))).any()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 5)])
def test_scores_do_not_depend_on_the_batch_of_hierarchical_pixel_vae(shape):
    model, x = _model_of_hierarchical_pixel_vae(shape, width=6), _images(4, shape)
    for score in (model.log_prob, model.importance_weighted_log_prob, model.latents):
        torch.testing.assert_close(score(x)[1:3], score(x[1:3]), rtol=1e-10, atol=1e-12)
    whole, parts = (model.importance_weighted_log_prob(x, 20, chunk=k) for k in (20, 7))
    torch.testing.assert_close(whole, parts, rtol=1e-13, atol=0)
    assert model.sample(2).shape == (2, *shape)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_channels": 0}, "latent_channels"),
        ({"top_latent_dim": 0}, "top_latent_dim"),
        ({"prior_layers": -1}, "prior_layers"),
        ({"layers": -1}, "layers"),
    ],
)
def test_bad_arguments_are_named_of_hierarchical_pixel_vae(options, message):
    with pytest.raises(ValueError, match=message):
        HierarchicalPixelVAE((1, 8, 8), width=4, **options)
