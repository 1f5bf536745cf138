"""Inverse autoregressive flows: Jacobians, densities and what they add to a posterior."""

import math

import pytest
import torch
from torch.autograd.functional import jacobian

from robustgen.generative import IAFVAE
from robustgen.generative.latent.autoregressive_flow import MADE, InverseAutoregressiveStep, MaskedConvNet
from robustgen.generative.latent.base import Posterior


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


def test_bad_arguments_are_named():
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
