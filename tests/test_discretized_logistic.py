"""The discretised mixture of logistics: it adds up to one, in the tails too, and samples invert its distribution."""

import itertools

import pytest
import torch

from robustgen.generative.blocks.discretized_logistic import (
    DiscretizedLogisticMixture,
    discretized_logistic_mixture_log_prob,
    discretized_logistic_mixture_sample,
    parameters_per_component,
)


def levels_of(levels, channels):
    """Every value of a pixel, (levels ** channels, channels, 1, 1)."""
    values = torch.linspace(0, 1, levels, dtype=torch.float64).tolist()
    return torch.tensor(list(itertools.product(values, repeat=channels)), dtype=torch.float64)[..., None, None]


def random_parameters(channels, components=3, scale=1.0, seed=0):
    size = components * parameters_per_component(channels)
    drawn = torch.randn(1, size, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return scale * drawn


@pytest.mark.parametrize(("levels", "channels"), [(2, 1), (3, 1), (17, 1), (256, 1), (4, 3), (2, 3), (5, 2)])
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_it_adds_up_to_one(levels, channels, scale):
    x = levels_of(levels, channels)
    for seed in range(5):
        parameters = random_parameters(channels, scale=scale, seed=seed).expand(len(x), -1, 1, 1)
        total = discretized_logistic_mixture_log_prob(x, parameters, levels).exp().sum()
        assert float(total) == pytest.approx(1, abs=1e-10)


def test_it_is_the_mass_of_each_bin():
    """Section 2.1 as it is written, with the channels of section 2.2, for colours and moderate parameters."""
    x = levels_of(4, 3)
    r, g, _ = v = (2 * x - 1).view(-1, 3).T
    parameters = random_parameters(3)
    weights, total = parameters.view(3, 10)[:, 0].softmax(0), 0
    for k in range(3):
        _, m_r, m_g, m_b, s_r, s_g, s_b, a_gr, a_br, a_bg = parameters.view(3, 10)[k]
        means = (m_r, m_g + a_gr.tanh() * r, m_b + a_br.tanh() * r + a_bg.tanh() * g)
        mass = weights[k]
        for c, (mean, log_scale) in enumerate(zip(means, (s_r, s_g, s_b), strict=True)):
            upper = ((v[c] + 1 / 3 - mean) / log_scale.exp()).sigmoid()
            lower = ((v[c] - 1 / 3 - mean) / log_scale.exp()).sigmoid()
            mass = mass * (torch.where(v[c] == 1, 1.0, upper) - torch.where(v[c] == -1, 0.0, lower))
        total = total + mass
    found = discretized_logistic_mixture_log_prob(x, parameters.expand(len(x), -1, 1, 1), 4)[:, 0, 0]
    torch.testing.assert_close(found.exp(), total)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_stays_finite_at_extreme_parameters(dtype):
    extremes = torch.tensor([-1e4, -30.0, 0.0, 30.0, 200.0, 1e4], dtype=dtype)
    parameters = torch.cartesian_prod(extremes, extremes, extremes)[:, :, None, None]  # weight, mean, log scale
    parameters = torch.cat([parameters, parameters.flip(0)], 1).requires_grad_()
    for value in (0.0, 1 / 255, 0.5, 1.0):
        x = torch.full((len(parameters), 1, 1, 1), value, dtype=dtype)
        log_prob = discretized_logistic_mixture_log_prob(x, parameters, 256)
        assert bool(log_prob.isfinite().all())
        assert float(log_prob.detach().max()) <= 1e-4
        (gradient,) = torch.autograd.grad(log_prob.sum(), parameters)
        assert bool(gradient.isfinite().all())
        drawn = discretized_logistic_mixture_sample(parameters.detach(), x * 0.999, 256)
        assert bool(((drawn >= 0) & (drawn <= 1)).all())


def test_its_gradient_is_that_of_finite_differences():
    x = levels_of(3, 2)
    parameters = random_parameters(2, seed=1).expand(len(x), -1, 1, 1).clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: discretized_logistic_mixture_log_prob(x, p, 3), parameters)
    narrow = torch.tensor([0.3, 0.1, -6.5], dtype=torch.float64).view(1, 3, 1, 1).expand(5, -1, 1, 1).clone()
    narrow.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: discretized_logistic_mixture_log_prob(levels_of(5, 1), p, 5), narrow)


@pytest.mark.parametrize("levels", [2, 5, 6])
def test_samples_have_its_probabilities_channel_after_channel(levels):
    parameters = random_parameters(2, scale=1.5, seed=2)
    n = 400
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    uniforms = torch.cartesian_prod(u, u)[..., None, None]
    x = discretized_logistic_mixture_sample(parameters.expand(n * n, -1, 1, 1), uniforms, levels)
    values = levels_of(levels, 2)
    expected = discretized_logistic_mixture_log_prob(values, parameters.expand(len(values), -1, 1, 1), levels).exp()
    found = torch.stack([(x == v).flatten(1).all(1).double().mean() for v in values])
    torch.testing.assert_close(found, expected.flatten(), rtol=0, atol=4 / n)
    first = x[::n, 0].flatten()
    assert bool((first.diff() >= 0).all())  # the inverse of a distribution function


@pytest.mark.parametrize("levels", [2, 7])
def test_the_mean_of_one_channel_is_exact(levels):
    parameters, x = random_parameters(1, seed=3), levels_of(levels, 1)
    p = discretized_logistic_mixture_log_prob(x, parameters.expand(len(x), -1, 1, 1), levels).exp().flatten()
    mean = DiscretizedLogisticMixture(1, levels, components=3).mean(parameters)
    assert float(mean) == pytest.approx(float(p @ x.flatten()))


def test_the_mean_of_colours_is_exact_where_channels_do_not_depend_on_each_other():
    parameters = random_parameters(3, seed=4).view(3, 10)
    parameters[:, 7:] = 0
    parameters, x = parameters.view(1, 30, 1, 1), levels_of(3, 3)
    p = discretized_logistic_mixture_log_prob(x, parameters.expand(len(x), -1, 1, 1), 3).exp().flatten()
    mean = DiscretizedLogisticMixture(3, 3, components=3).mean(parameters)
    torch.testing.assert_close(mean.flatten(), p @ x.flatten(1))


def test_a_wrong_number_of_parameters_is_refused():
    with pytest.raises(ValueError, match="multiple of 10 parameters a pixel, got 12"):
        discretized_logistic_mixture_log_prob(torch.zeros(1, 3, 1, 1), torch.zeros(1, 12, 1, 1), 4)
