"""PixelVAEs: their decoders are causal and normalised given z, and become a VAE's without autoregressive layers."""

import pytest
import torch
from torch.autograd.functional import jacobian

from robustgen.generative import VAE, PixelVAE
from robustgen.training import Batch

VARIANTS = [
    {"layers": 0},
    {"layers": 1},
    {"layers": 3, "kernel_size": 3},
    {"layers": 1, "conditioning": "bias"},
    {"layers": 3, "conditioning": "bias"},
]


def _model(shape, **options):
    torch.manual_seed(0)
    return PixelVAE(shape, **{"latent_dim": 2, "width": 8, **options}).double().eval()


def _binary_images(shape):
    c, h, w = shape
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * (c * h * w)).view(-1, c, h, w)


@pytest.mark.parametrize("options", VARIANTS)
def test_the_decoder_is_normalised_given_z(options):
    model, x = _model((1, 2, 3), **options), _binary_images((1, 2, 3))
    for z in 3 * torch.randn(3, 1, 2, dtype=torch.float64):
        log_prob = model.decode_log_prob(x, z.expand(len(x), 2))
        assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-12)
        assert log_prob.std() > 0.01


@pytest.mark.parametrize("options", VARIANTS[1:])
@pytest.mark.parametrize("levels", [2, 3])
def test_given_z_a_pixel_sees_exactly_those_before_it(options, levels):
    shape = (2, 3, 3)
    model = _model(shape, levels=levels, width=24, **options)
    x, z = torch.rand(shape, dtype=torch.float64), torch.randn(1, 2, dtype=torch.float64)
    condition = model._condition(z)
    j = jacobian(lambda x: model.pixel_cnn(x[None], condition).unflatten(1, (2, -1))[0], x)  # (C, K, H, W, *shape)
    order = torch.arange(18).view(shape).permute(1, 2, 0).flatten()  # pixel after pixel, of each its channels
    j = j.abs().sum(1).reshape(18, 18)[order][:, order]
    assert j.triu().count_nonzero() == 0
    assert (j[-1, :-1] > 0).all()


@pytest.mark.parametrize("options", VARIANTS)
def test_every_pixel_depends_on_z(options):
    model = _model((1, 3, 3), **options)
    x, z = torch.rand(1, 1, 3, 3, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    j = jacobian(lambda z: model.pixel_cnn(x, model._condition(z[None])).flatten(), z)
    assert (j != 0).any(1).all()


def test_without_autoregressive_layers_it_is_the_vae():
    shape, x = (1, 6, 5), torch.bernoulli(torch.full((4, 1, 6, 5), 0.5, dtype=torch.float64))
    model = _model(shape, layers=0, kl_warmup=3)
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
        model = _model(shape, levels=levels, **options)
        z, u = torch.randn(5, 2, dtype=torch.float64), torch.rand(5, *shape, dtype=torch.float64)
        cached = model.decode_sample(z, u)
        assert (cached == model.decode_sample(z, u, cached=False)).all()
        assert (cached == model.pixels(cached)).all()
        assert (model.decode_sample(z[:2], u[:2]) == cached[:2]).all()


@pytest.mark.parametrize("shape", [(1, 2, 3), (3, 1, 2)])
def test_samples_follow_the_decoder(shape):
    """Frequencies of all 64 images against their probabilities given z."""
    model, x = _model(shape, width=24, layers=2), _binary_images(shape)
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
    model = _model((1, 4, 4), layers=2, width=24)
    z, u = torch.randn(6, 2, dtype=torch.float64), torch.rand(6, 1, 4, 4, dtype=torch.float64)
    drawn = model.decode_sample(model.prior_sample(z), u)
    assert (drawn == model.decode_sample(model.prior_sample(z), u)).all()
    assert (drawn != model.decode_sample(model.prior_sample(z), u.flip(0))).any()
    assert (drawn != model.decode_sample(model.prior_sample(z.flip(0)), u)).any()


@pytest.mark.parametrize("options", VARIANTS)
def test_scores_do_not_depend_on_the_batch_nor_on_chunks(options):
    model = _model((1, 4, 4), **options)
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
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        PixelVAE((1, 4, 4), width=4, **options)
