"""Autoencoders with a density of their codes, variational ones with other priors, densities of hidden states."""

import math

import pytest
import torch
from sklearn import mixture
from torch import nn
from torch.autograd.functional import jacobian

from robustgen.data import digits
from robustgen.detectors import FeatureLikelihood, LatentDensity, Likelihood
from robustgen.fingerprint import model_fingerprint
from robustgen.generative import (
    GLF,
    NCPVAE,
    RAE,
    VAE,
    WAE,
    FlowPosteriorVAE,
    FlowPriorVAE,
    Glow,
    TwoStageVAE,
    VampPriorVAE,
    fit,
    fit_latent_flow,
    prior_hole,
)
from robustgen.generative.blocks.gaussian import Mixture
from robustgen.generative.latent.coders import InfoGANDecoder, InfoGANEncoder
from robustgen.generative.latent.latent_flow import fit_states
from robustgen.generative.latent.prior_hole import mmd_squared
from robustgen.training import Batch, as_source

SHAPE = (1, 8, 8)


def _x(n=64, part="train"):
    return digits(part).images()[:n]


def _batch(x):
    return Batch(x, None, torch.arange(len(x)))


def _glf(**options):
    torch.manual_seed(0)
    return GLF(SHAPE, **{"latent_dim": 4, "architecture": "mlp", "width": 32, "flow_width": 16} | options)


def _moved(module):
    """With other weights than at the start, where a flow is nearly the identity."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return module


@pytest.mark.parametrize("size", [(28, 28), (8, 8), (7, 5), (1, 3)])
def test_infogan_coders_take_images_of_any_size(size):
    shape = (2, *size)
    features = InfoGANEncoder(shape, 4)(torch.rand(3, *shape))
    assert features.shape == (3, 64)
    assert InfoGANDecoder(5, shape, 4, 2)(torch.rand(3, 5)).shape == (3, *shape)


def test_the_flow_does_not_move_the_autoencoder():
    """Bitwise: the gradients of encoder and decoder are those of the reconstruction alone."""
    glf, x = _moved(_glf(architecture="infogan", width=4)).train(), _x()
    own = [p for name, p in glf.named_parameters() if not name.startswith("flow")]
    with_flow = torch.autograd.grad(glf.training_step(_batch(x), 0)["loss"], own)
    alone = torch.autograd.grad(glf._reconstruction(x, glf.decode(glf._encode(x))), own)
    assert all(torch.equal(a, b) for a, b in zip(with_flow, alone, strict=True))
    glf.stop_gradient = False
    moved = torch.autograd.grad(glf.training_step(_batch(x), 0)["loss"], own)
    assert not all(torch.equal(a, b) for a, b in zip(moved, alone, strict=True))


def test_without_the_stop_codes_shrink_and_their_likelihood_grows():
    ends, batch = {}, _batch(_x())
    for stop in (True, False):
        glf = _glf(stop_gradient=stop, flow_blocks=2).train()
        optimizer = torch.optim.Adam(glf.parameters(), lr=2e-2)
        start = glf.training_step(batch, 0)
        for step in range(40):
            found = glf.training_step(batch, step)
            optimizer.zero_grad()
            found["loss"].backward()
            optimizer.step()
        ends[stop] = found
        assert (found["latent_std"] < 0.5 * start["latent_std"]) == (not stop)
    assert ends[False]["latent_nll"] < min(-2, ends[True]["latent_nll"] - 5)
    assert ends[True]["latent_nll"] > 0


def test_weight_decay_is_of_the_flow_alone():
    glf = _glf()
    rest, flow = glf.optimizer(glf.parameters()).param_groups
    assert (rest["weight_decay"], flow["weight_decay"], rest["lr"], flow["lr"]) == (0, 2e-5, 1e-3, 1e-3)
    assert {id(p) for p in flow["params"]} == {id(p) for p in glf.flow.parameters()}
    assert len(rest["params"]) + len(flow["params"]) == len(list(glf.parameters()))


def test_a_latent_flow_has_the_density_of_its_jacobian_and_an_inverse():
    glf = _moved(_glf()).double().eval()
    z = torch.randn(3, 4, dtype=torch.float64)
    eps, log_det = glf.flow.to_noise(z)
    for i in range(3):
        slopes = jacobian(lambda v: glf.flow.to_noise(v[None])[0][0], z[i])
        torch.testing.assert_close(torch.linalg.slogdet(slopes)[1], log_det[i])
    torch.testing.assert_close(glf.prior_sample(eps), z)
    expected = log_det - 0.5 * eps.square().sum(1) - 2 * math.log(2 * math.pi)
    torch.testing.assert_close(glf.flow.log_prob(z), expected)
    x = _x(3).double()
    torch.testing.assert_close(glf.latent_log_prob(x), glf.flow.log_prob(glf.encode(x)))
    by_hand = (x - glf.decode(glf.encode(x))).square().flatten(1).mean(1)
    torch.testing.assert_close(glf.reconstruction_error(x), by_hand)


def test_activations_are_compared_in_place_of_pixels():
    glf, x = _glf(perceptual=["0", "2"]), _x(5)
    with pytest.raises(ValueError, match=r"perceive\(classifier\), before training"):
        glf.training_step(_batch(x), 0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Dropout())
    before = model_fingerprint(net), net.training
    glf.perceive(net)
    decoded = glf.decode(glf._encode(x))
    states = [(net[:1](v), net[:3](v)) for v in (x, decoded)]
    expected = sum((a - b).abs().mean() for a, b in zip(*states, strict=True))
    found = glf.training_step(_batch(x), 0)
    torch.testing.assert_close(found["reconstruction"], expected.detach())
    found["loss"].backward()
    assert all(p.grad is not None for p in glf.parameters())
    assert all(p.grad is None for p in net.parameters())
    assert (model_fingerprint(net), net.training) == before
    assert not [name for name in glf.state_dict() if "classifier" in name]
    assert glf.config["perceptual"] == ["0", "2"]
    with pytest.raises(ValueError, match="no layer '7'"):
        _glf(perceptual=["7"]).perceive(net)
    with pytest.raises(ValueError, match="compares pixels"):
        _glf().perceive(net)
    with pytest.raises(ValueError, match="perceptual must be a list"):
        _glf(perceptual=[])


def test_a_mixture_is_that_of_scikit_learn():
    torch.manual_seed(0)
    scale = torch.tensor([1.0, 100.0, 0.01], dtype=torch.float64)
    z = torch.cat([torch.randn(200, 3) @ torch.randn(3, 3), 4 + torch.randn(100, 3)]).double()
    ours = Mixture(2, 3).double().fit(z * scale)
    std = z.std(0, correction=0)
    points = ((z - z.mean(0)) / std).numpy()
    theirs = mixture.GaussianMixture(2, random_state=0).fit(points)
    expected = torch.from_numpy(theirs.score_samples(points)) - (std * scale).log().sum()
    torch.testing.assert_close(ours.log_prob(z * scale), expected)
    drawn = ours.of_noise(torch.randn(40_000, 4, dtype=torch.float64)) / scale
    torch.testing.assert_close(drawn.mean(0), z.mean(0), rtol=0, atol=0.06)
    torch.testing.assert_close(drawn.T.cov(), z.T.cov(), rtol=0, atol=0.2)


def test_a_mixture_is_of_the_codes_that_the_training_ends_with():
    torch.manual_seed(0)
    rae, x = RAE(SHAPE, latent_dim=2, architecture="mlp", width=16, components=3), _x(40)
    fit(rae, x, x[:8], epochs=2, batch_size=20, ema=0.9, progress=False)
    again = Mixture(3, 2).fit(rae.encode(x).detach())
    torch.testing.assert_close(rae.mixture.means, again.means)
    with pytest.raises(ValueError, match="components=3 Gaussians need as many points, got 2: take fewer"):
        rae.fit_without_gradients(as_source(x[:2]))


def test_what_cannot_be_trained_on_is_refused_before_a_run_is_made(tmp_path):
    rae = RAE(SHAPE, latent_dim=2, architecture="mlp", width=16, components=41)
    before, where = model_fingerprint(rae), tmp_path / "run"
    with pytest.raises(ValueError, match="components=41 Gaussians need as many points, got 40: take fewer"):
        fit(rae, _x(40), run_dir=where, progress=False)
    glf = GLF(SHAPE, latent_dim=2, width=4)
    for n, size in ((9, 4), (1, 4), (4, 1)):
        with pytest.raises(ValueError, match=rf"{n} images in batches of batch_size={size} leave a batch of one"):
            fit(glf, _x(n), batch_size=size, run_dir=where, progress=False)
    assert not where.exists()
    assert model_fingerprint(rae) == before
    with pytest.raises(ValueError, match="infogan's batch norm needs two images at least"):
        glf.train().encode(_x(1))
    assert glf.eval().encode(_x(1)).shape == (1, 2)


def test_decay_of_the_decoder():
    rae = RAE(SHAPE, latent_dim=2, architecture="mlp", width=16, decoder_decay=0.1)
    assert [g["weight_decay"] for g in rae.optimizer(rae.parameters()).param_groups] == [0, 0.1]
    for name in ("gamma", "decoder_decay"):
        with pytest.raises(ValueError, match=f"{name} must be a finite number >= 0"):
            RAE(SHAPE, **{name: math.inf})


def test_mmd_is_the_mean_over_pairs():
    torch.manual_seed(0)
    a, b = torch.randn(4, 2, dtype=torch.float64), 1 + torch.randn(6, 2, dtype=torch.float64)
    k = lambda u, v: 4 / (4 + (u - v).square().sum())
    pairs = lambda z: [k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]
    within = [sum(pairs(z)) / len(pairs(z)) for z in (a, b)]
    across = [k(u, v) for u in a for v in b]
    torch.testing.assert_close(mmd_squared(a, b), sum(within) - 2 * sum(across) / len(across))
    a, b = torch.randn(600, 2, dtype=torch.float64), torch.randn(300, 2, dtype=torch.float64)  # more than at once
    k = lambda u, v: 4 / (4 + torch.cdist(u, v).square())
    within = [(k(z, z).sum() - len(z)) / (len(z) * (len(z) - 1)) for z in (a, b)]
    torch.testing.assert_close(mmd_squared(a, b), sum(within) - 2 * k(a, b).mean())
    with pytest.raises(ValueError, match="at least two points of each kind, got 1 and"):
        mmd_squared(a[:1], b)


def test_mmd_is_unbiased_and_knows_a_shift():
    """Of N(m, 1) and N(0, 1), whose differences are Gaussian: E k by integration over them."""
    grid = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    for m in (0.0, 1.0):
        mean = lambda shift: torch.trapezoid(
            2 / (2 + grid.square()) * torch.exp(-((grid - shift) ** 2) / 4) / math.sqrt(4 * math.pi), grid
        )
        draws = torch.randn(2, 400, 20, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        found = torch.stack([mmd_squared(m + a, b) for a, b in zip(*draws, strict=True)])
        error = (found.mean() - 2 * (mean(0.0) - mean(m))).abs()
        assert error < 4 * found.std() / 20
        assert (found.mean() > 0.05) == (m > 0)


def test_the_prior_hole_of_an_encoder_that_fits_and_of_one_that_does_not():
    torch.manual_seed(0)
    vae, x = (
        VAE((1, 4, 4), latent_dim=2, architecture="mlp", width=4, likelihood="gaussian").eval(),
        torch.rand(500, 1, 4, 4),
    )
    nn.init.zeros_(vae.to_posterior.weight)
    nn.init.zeros_(vae.to_posterior.bias)  # q(z | x) = N(0, I) = p(z)
    assert abs(prior_hole(vae, x)) < 0.005
    nn.init.constant_(vae.to_posterior.bias[:2], 2.0)
    assert prior_hole(vae, x) > 0.1
    with pytest.raises(TypeError, match="needs a model with a prior of codes, Glow has none"):
        prior_hole(Glow((1, 4, 4), scales=1, flow_steps=1, width=4), x)


def test_a_discriminator_of_codes_and_the_autoencoder_take_turns():
    torch.manual_seed(0)
    wae, batch = (
        WAE(SHAPE, latent_dim=2, architecture="mlp", width=16, penalty="gan", discriminator_width=8),
        _batch(_x()),
    )
    z = wae._encode(batch.x)
    found = wae.training_step(batch, 1)
    torch.testing.assert_close(found["penalty"], -wae.discriminator(z).sigmoid().log().mean())
    torch.manual_seed(3)
    noise = torch.randn_like(z)
    torch.manual_seed(3)
    loss = wae.training_step(batch, 0)["loss"]
    by_hand = -wae.discriminator(noise).sigmoid().log().mean() - (1 - wae.discriminator(z).sigmoid()).log().mean()
    torch.testing.assert_close(loss, by_hand)


def test_the_penalty_brings_codes_to_the_prior():
    x, holes = _x(200), []
    for weight in (0.0, 200.0):
        torch.manual_seed(0)
        wae = WAE(SHAPE, latent_dim=2, architecture="mlp", width=32, weight=weight)
        fit(wae, x, epochs=15, batch_size=50, optimizer=lambda p: torch.optim.Adam(p, lr=5e-3), progress=False)
        holes.append(prior_hole(wae, x))
    assert holes[1] < 0.5 * holes[0]


@pytest.mark.parametrize("kind", [FlowPriorVAE, FlowPosteriorVAE])
def test_a_flow_that_is_the_identity_leaves_the_vae(kind):
    torch.manual_seed(0)
    options = {"latent_dim": 3, "architecture": "mlp", "width": 16}
    model = kind(SHAPE, beta=4.0, flow_width=8, flow_blocks=1, **options).double().eval()
    plain = VAE(SHAPE, likelihood="gaussian", scale=0.5, **options).double().eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("flow")})
    x = _x(6).double()
    torch.testing.assert_close(
        model.importance_weighted_log_prob(x, samples=5), plain.importance_weighted_log_prob(x, samples=5)
    )


def test_the_kl_of_a_flow_is_that_of_its_densities():
    """Against densities by the formula of a change of variables, each Jacobian by autograd."""
    x, normal_of = _x(2).double(), torch.distributions.Normal(0.0, 1.0)
    for kind in (FlowPriorVAE, FlowPosteriorVAE):
        torch.manual_seed(0)
        model = _moved(kind(SHAPE, latent_dim=3, architecture="mlp", width=16, flow_width=8).double()).eval()
        posterior, noise = model.encode(x), model.posterior_noise(x)[0]
        start = posterior.mean + posterior.log_std.exp() * noise
        log_q = torch.distributions.Normal(posterior.mean, posterior.log_std.exp()).log_prob(start).sum(1)
        eps = model.flow.to_noise(start)[0]
        slopes = [jacobian(lambda v: model.flow.to_noise(v[None])[0][0], z) for z in start]  # noqa: B023
        log_p = normal_of.log_prob(eps).sum(1) + torch.stack([torch.linalg.slogdet(s)[1] for s in slopes])
        torch.testing.assert_close(model.elbo_terms(x)[1], log_q - log_p)
        z = start if kind is FlowPriorVAE else eps
        torch.testing.assert_close(model.elbo_terms(x)[0], model.decode_log_prob(x, z))


def test_beta_is_a_precision_and_may_be_learned():
    torch.manual_seed(0)
    x, options = _x(5).double(), {"latent_dim": 3, "architecture": "mlp", "width": 16, "flow_width": 8}
    model = FlowPriorVAE(SHAPE, beta=9.0, **options).double().eval()
    z = model.draw_latents(x)
    expected = torch.distributions.Normal(model.decode(z), 1 / 3).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(model.elbo_terms(x)[0], expected)
    assert torch.equal(model.decode_sample(z, torch.rand_like(x)), model.decode(z))
    learned = FlowPriorVAE(SHAPE, beta=None, **options)
    start = float(learned.distribution.scale.detach())
    fit(learned, _x(128), epochs=5, batch_size=16, progress=False)
    assert start == pytest.approx(0.5)
    assert float(learned.distribution.scale.detach()) < start
    with pytest.raises(ValueError, match="beta must be a finite number > 0"):
        FlowPriorVAE(SHAPE, beta=0.0)


def _network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.ReLU(), nn.Linear(5, 3))
    net[2].eval()
    return net


def test_a_network_does_not_notice_that_its_states_are_fitted():
    net, x = _network(), torch.randn(60, 4)
    before, modes = model_fingerprint(net), [m.training for m in net.modules()]
    random = torch.get_rng_state()
    flow = fit_latent_flow(net, "1", x, epochs=2, width=8)
    states, log_prob = flow.states(x), flow.log_prob(x)
    assert model_fingerprint(net) == before
    assert [m.training for m in net.train(net.training).modules()] == [m.training for m in net.modules()]
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    flow.eval()
    assert net.training
    assert not [name for name in flow.state_dict() if not name.startswith("density.")]
    assert modes[0]
    torch.testing.assert_close(states, net.eval()[:2](x))
    again = fit_latent_flow(net, "1", (x, torch.zeros(60, dtype=torch.int64)), epochs=2, width=8)
    assert torch.equal(again.log_prob(x), log_prob)
    x.requires_grad_()
    (slope,) = torch.autograd.grad(flow.log_prob(x).sum(), x)
    assert bool((slope != 0).any(1).all())


def test_states_that_no_flow_can_fit():
    net, x = _network(), torch.randn(20, 4)
    with pytest.raises(ValueError, match="no layer 'encoder'"):
        fit_latent_flow(net, "encoder", x)
    with pytest.raises(ValueError, match="at least two numbers, got 1: name another layer="):
        fit_latent_flow(nn.Sequential(nn.Linear(4, 1), nn.Linear(1, 2)), "0", x)
    with pytest.raises(TypeError, match=r"needs an nn\.Module, got function"):
        fit_latent_flow(lambda x: x, "0", x)
    with pytest.raises(ValueError, match="noise must be a finite number >= 0"):
        fit_latent_flow(net, "0", x, noise=-1.0)
    overflowing = nn.Sequential(nn.Linear(4, 3))
    nn.init.constant_(overflowing[0].bias, math.inf)
    with pytest.raises(ValueError, match="the states hold NaN or Inf"):
        fit_latent_flow(overflowing, "0", x)
    with pytest.raises(TypeError, match="layer must be the name of a layer, a string, got 1"):
        fit_latent_flow(net, 1, x)
    for wrong, said in ((torch.randn(20, 3), r"\(3,\), torch.float32"), (x.double(), r"\(4,\), torch.float64")):
        with pytest.raises(ValueError, match=rf"the model fails on inputs of shape {said}") as raised:
            fit_latent_flow(net, "1", wrong)
        assert "\n" not in str(raised.value)
    flow = fit_latent_flow(net, "1", x, epochs=1, width=4)
    with pytest.raises(ValueError, match=r"the model fails on inputs of shape \(3,\)"):
        flow.log_prob(torch.randn(2, 3))
    with pytest.raises(ValueError, match="the states have 3 numbers each, those that were fitted had 5"):
        flow.density.log_prob(torch.zeros(1, 3))


def test_a_density_of_states_is_that_of_gaussian_ones():
    """Of states that are Gaussian: the mean of log p on new ones is minus their entropy, the integral is one."""
    torch.manual_seed(0)
    mixing = torch.tensor([[3.0, 0.0], [2.0, 0.5]])
    h, new = (torch.randn(n, 2) @ mixing.T + 7 for n in (2000, 500))
    density = fit_states(h, blocks=2, width=16, noise=0.0, epochs=12)
    entropy = math.log(2 * math.pi * math.e) + math.log(1.5)
    assert float(density.log_prob(new).mean()) == pytest.approx(-entropy, abs=0.15)
    grid = torch.linspace(-8, 22, 601)
    points = torch.cartesian_prod(grid, grid)
    assert float(density.log_prob(points).exp().sum()) * (30 / 600) ** 2 == pytest.approx(1, abs=0.02)


def test_units_that_never_fire_have_a_density_with_noise():
    h = torch.cat([torch.randn(200, 3), torch.zeros(200, 2)], 1)
    found = fit_states(h, blocks=2, width=8, noise=0.1, epochs=3).log_prob(h)
    assert bool(found.isfinite().all())
    other = torch.cat([h[:5, :3], torch.ones(5, 2)], 1)
    assert bool((fit_states(h, blocks=2, width=8, noise=0.1, epochs=3).log_prob(other) < found[:5] - 10).all())


def test_detectors_take_the_density_of_states():
    net, x = _network().eval(), torch.randn(60, 4)
    flow = fit_latent_flow(net, "1", x, epochs=3, width=8, blocks=2)
    own = FeatureLikelihood(net, "1", blocks=2, width=8, epochs=3).fit(x)
    torch.testing.assert_close(Likelihood(flow).fit(x).score(x), own.score(x))
    torch.testing.assert_close(own.score(x), -flow.log_prob(x))


def test_a_density_of_codes_and_what_they_lost_are_standardised():
    x, other = _x(60), torch.rand(5, *SHAPE)
    glf = _moved(_glf()).eval()
    latent, error = -glf.latent_log_prob(x), glf.reconstruction_error(x).log()
    a = (-glf.latent_log_prob(other) - latent.mean()) / latent.std(correction=0)
    b = (glf.reconstruction_error(other).log() - error.mean()) / error.std(correction=0)
    torch.testing.assert_close(LatentDensity(glf).fit(x).score(other), (a + b).detach())
    for parts, expected in (
        ("latent", -glf.latent_log_prob(other)),
        ("reconstruction", glf.reconstruction_error(other)),
    ):
        torch.testing.assert_close(LatentDensity(glf, parts=parts).fit(x).score(other), expected.detach())
    with pytest.raises(TypeError, match="VAE has no latent_log_prob"):
        LatentDensity(VAE(SHAPE, width=4))
    with pytest.raises(TypeError, match=r"it has a density of codes: use LatentDensity"):
        Likelihood(glf)


SMALL = {"latent_dim": 2, "architecture": "mlp", "width": 16}


@pytest.mark.parametrize(
    "make",
    [
        lambda **options: TwoStageVAE(SHAPE, second_width=8, **SMALL, **options),
        lambda **options: NCPVAE(SHAPE, classifier_width=8, proposals=5, **SMALL, **options),
    ],
)
def test_the_second_model_leaves_the_first_alone(make):
    torch.manual_seed(0)
    model, batch = make(), _batch(_x())
    own = [p for name, p in model.named_parameters() if not name.startswith("second")]
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    together, z = model._first(batch.x, noise)
    alone = torch.autograd.grad(together["loss"], own)
    both = torch.autograd.grad(model._with_second(*model._first(batch.x, noise))["loss"], own)
    assert all(torch.equal(a, b) for a, b in zip(alone, both, strict=True))
    assert not z.requires_grad
    torch.manual_seed(0)
    staged = make(first_steps=2)
    assert [staged.player_at(step) for step in range(4)] == ["first", "first", "second", "second"]
    first = [p.detach().clone() for p in staged.players["first"].parameters()]
    second = [p.detach().clone() for p in staged.players["second"].parameters()]
    changed = lambda part, before: not all(map(torch.equal, staged.players[part].parameters(), before))
    x = _x(8)
    fit(staged, x, epochs=2, batch_size=8, progress=False)
    assert changed("first", first)
    assert not changed("second", second)
    after_two = make(first_steps=2)
    after_two.load_state_dict(staged.state_dict())
    torch.manual_seed(0)
    staged = make(first_steps=2)
    fit(staged, x, epochs=3, batch_size=8, progress=False)
    assert changed("second", second)
    assert not changed("first", list(after_two.players["first"].parameters()))


def test_two_stages_have_the_density_that_integration_gives():
    """p(z) = E_u p(z | u) on a grid of u: importance sampling comes to it, one sample stays below."""
    torch.manual_seed(0)
    vae = _moved(TwoStageVAE(SHAPE, second_width=8, beta=1.0, **{**SMALL, "latent_dim": 1})).double().eval()
    x = _x(3).double()
    grid = torch.linspace(-7, 7, 281, dtype=torch.float64)[:, None]
    width, normal = 14 / 280, torch.distributions.Normal(0.0, 1.0)
    vae.requires_grad_(False)
    log_p_z = torch.stack([vae.second.log_prob(z.expand(281, 1), grid)[:, 0] for z in grid]) + normal.log_prob(grid).T
    log_p_z = log_p_z.logsumexp(1) + math.log(width)
    log_joint = torch.stack([vae.decode_log_prob(image.expand(281, *SHAPE), grid) for image in x]) + log_p_z
    exact = log_joint.logsumexp(1) + math.log(width)
    torch.testing.assert_close(vae.importance_weighted_log_prob(x, samples=5000), exact, rtol=0, atol=0.1)
    noise = vae.posterior_noise(x, 2000)
    reconstruction, divergence = vae._importance_terms(x, vae.encode(x), noise)
    assert bool(((reconstruction - divergence).mean(0) < exact).all())
    drawn = vae.prior_sample(torch.randn(20_000, 2, dtype=torch.float64))[:, 0]
    mean = (log_p_z.exp() * grid[:, 0]).sum() * width
    assert float((drawn.mean() - mean).abs()) < 5 * float(drawn.std()) / 20_000**0.5


def test_a_vamp_prior_is_the_mixture_of_its_posteriors():
    torch.manual_seed(0)
    vae = VampPriorVAE(SHAPE, prior_components=3, **SMALL).double().eval()
    nn.init.normal_(vae.raw_images, std=20.0)
    parts = vae.encode(vae.pseudo_inputs())
    each = torch.distributions.Independent(torch.distributions.Normal(parts.mean, parts.log_std.exp()), 1)
    prior = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(torch.ones(3).double()), each)
    z = torch.randn(5, 2, dtype=torch.float64)
    torch.testing.assert_close(vae._log_prior(z)[:, 0], prior.log_prob(z))
    drawn = vae.prior_sample(torch.randn(20_000, 3, dtype=torch.float64))
    torch.testing.assert_close(drawn.mean(0), prior.mean, rtol=0, atol=0.05)
    torch.testing.assert_close(drawn.var(0), prior.variance, rtol=0.05, atol=0)


def test_batch_norm_sees_no_images_that_are_learned():
    torch.manual_seed(0)
    vae = VampPriorVAE(SHAPE, latent_dim=2, width=4, architecture="infogan", prior_components=3).train()
    x = _x(16)
    vae.encoder(x)
    once = vae.encoder.norm.running_mean.clone()
    vae.encoder.norm.reset_running_stats()
    vae.training_step(_batch(x), 0)
    torch.testing.assert_close(vae.encoder.norm.running_mean, once)
    assert vae.encoder.training


def test_a_reweighted_prior_is_sampled_by_its_weights():
    """r(z) = exp(a z): N(0, 1) reweighted so is N(a, 1), and log Z = a^2 / 2."""
    torch.manual_seed(0)
    vae = NCPVAE(SHAPE, proposals=50, **{**SMALL, "latent_dim": 1}).double().eval()
    vae.second = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(vae.second.weight, 0.7)
    drawn = vae.prior_sample(torch.randn(10_000, *vae.noise_shape, dtype=torch.float64))
    assert float(drawn.mean().detach()) == pytest.approx(0.7, abs=0.05)
    assert float(drawn.std().detach()) == pytest.approx(1, abs=0.05)
    log_z, error = vae.log_normalizer(20_000)
    assert abs(log_z - 0.245) < 4 * error < 0.05
    z, x = torch.randn(4, 1, dtype=torch.float64), _x(4).double()
    exact = torch.distributions.Normal(0.7, 1.0).log_prob(z)
    torch.testing.assert_close(vae._log_prior(z) - 0.245, exact)
    reconstruction, kl = vae.elbo_terms(x)
    posterior = vae.encode(x)
    plain = 0.5 * (posterior.mean.square() + (2 * posterior.log_std).exp() - 1) - posterior.log_std
    torch.testing.assert_close(kl, (plain - 0.7 * vae.draw_latents(x)).sum(1))
    torch.testing.assert_close(vae.log_prob(x), reconstruction - kl)


def test_a_classifier_of_codes_learns_their_density_ratio():
    """Codes from N(1, 1): log r(z) = z - 1/2."""
    torch.manual_seed(0)
    vae = NCPVAE(SHAPE, classifier_width=16, **{**SMALL, "latent_dim": 1})
    optimizer = torch.optim.Adam(vae.second.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        vae._second_loss(1 + torch.randn(500, 1)).backward()
        optimizer.step()
    z = torch.linspace(-1, 2, 7)[:, None]
    torch.testing.assert_close(vae.log_ratio(z).detach(), z[:, 0] - 0.5, rtol=0, atol=0.35)
