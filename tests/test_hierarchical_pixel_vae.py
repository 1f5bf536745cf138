"""Two latent levels: the autoregressive prior, what each level costs, and noise at one level."""

import math

import pytest
import torch
from torch.autograd.functional import jacobian

from robustgen.generative import HierarchicalPixelVAE
from robustgen.generative.blocks.gaussian import gaussian_log_prob
from robustgen.generative.latent.base import Posterior


def _model(shape=(1, 8, 8), **options):
    torch.manual_seed(0)
    options = {"latent_channels": 2, "top_latent_dim": 3, "width": 8, "layers": 1, "prior_layers": 2, **options}
    return HierarchicalPixelVAE(shape, levels=2, **options).double().eval()


def _images(n, shape=(1, 8, 8)):
    return torch.bernoulli(torch.full((n, *shape), 0.5, dtype=torch.float64))


def test_the_prior_of_a_point_knows_the_points_before_and_the_top_level():
    model = _model((1, 10, 11))  # z_1 is 2 x 3 x 3
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
    model = _model((1, 10, 11), prior_layers=prior_layers)
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
    model, x = _model(), _images(2)
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
def test_the_decoder_is_normalised_given_z(layers):
    model = _model((1, 2, 3), layers=layers)
    x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 6).view(-1, 1, 2, 3)
    z = torch.randn(1, model.latent_dim, dtype=torch.float64).expand(len(x), -1)
    assert model.decode_log_prob(x, z).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_noise_can_be_changed_at_one_level():
    model = _model()
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
def test_scores_do_not_depend_on_the_batch(shape):
    model, x = _model(shape, width=6), _images(4, shape)
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
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        HierarchicalPixelVAE((1, 8, 8), width=4, **options)
