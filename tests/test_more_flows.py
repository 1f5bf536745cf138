"""Autoregressive, residual and continuous flows: inverses, log determinants, estimators, closed forms."""

import json
import math
import sys

import pytest
import torch
from test_flows import check_transform, stirred
from torch import nn
from torch.autograd import gradcheck
from torch.autograd.functional import jacobian
from torch.distributions import MultivariateNormal

from robustgen.generative import MAF, ContinuousFlow, ResidualFlow, load, reverse_kl
from robustgen.generative.blocks.gaussian import gaussian_log_prob
from robustgen.generative.blocks.made import MADE, MADEColumns
from robustgen.generative.flows.continuous import Continuous, Dynamics
from robustgen.generative.flows.maf import InverseAutoregressive, MaskedAutoregressive
from robustgen.generative.flows.residual import Contraction, LipSwish, Residual, spectral_bound
from robustgen.generative.flows.transform import Chain, Density, KeyedChain
from robustgen.training import latest_checkpoint


def within_error(values, expected, standard_errors=4.5):
    """Whether the mean over draws (K, ...) is what it should be."""
    error = values.std(0) / math.sqrt(len(values))
    return bool(((values.mean(0) - expected).abs() <= standard_errors * error + 1e-12).all())


# Masked autoregressive flow.


@pytest.mark.parametrize(("dim", "width"), [(6, 4), (5, 5), (6, 16), (1, 3)])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("context", [0, 2])
def test_outputs_one_after_the_other_are_those_of_a_whole_pass(dim, width, layers, context):
    torch.manual_seed(0)
    made = MADE(dim, width, context, layers).double()
    z, c = torch.randn(3, dim, dtype=torch.float64), torch.randn(3, context, dtype=torch.float64) if context else None
    whole = made(z, c)
    for graph in (False, True):
        with torch.set_grad_enabled(graph):
            columns = MADEColumns(made, 3, c)
            found = [torch.stack(columns(*([z[:, i - 1]] if i else []))) for i in range(dim)]
        torch.testing.assert_close(torch.stack(found, 2).transpose(0, 1), whole)


def test_saved_steps_with_a_context_and_few_units_compute_what_they_did():
    made = MADE(dim=5, width=3, context=2)
    seen = torch.arange(3)
    assert bool((made.first.mask.bool() == (seen[:, None] > torch.arange(5))).all())
    assert bool((made.last.mask.bool() == (torch.arange(5)[:, None] >= seen).repeat(2, 1)).all())


@pytest.mark.parametrize("dim", [2, 5, 9])
def test_every_input_is_seen_by_all_later_outputs_even_where_units_are_few(dim):
    made = stirred(MADE(dim, 8, layers=2))
    j = jacobian(lambda z: made(z[None])[0, 0], torch.randn(dim, dtype=torch.float64))
    assert j.triu().count_nonzero() == 0
    seen = made._seen(torch.device("cpu"))
    assert [int((seen == i).sum()) for i in range(dim)] == [len(seen[made._units(i)]) for i in range(dim)]
    if dim <= 8:
        assert bool((j[torch.ones(dim, dim).tril(-1).bool()] != 0).all())
    else:  # the last output sees all but what no unit was left for
        assert int((j[-1] != 0).sum()) == int(seen.max())


def in_full_passes(step, y):
    """The inverse of a step by as many passes through its network as there are numbers."""
    x = torch.zeros_like(y)
    order = (lambda v: v.flip(1)) if step.backwards else lambda v: v
    for i in range(y.shape[1]):
        m, a = step.made(x).unbind(1)
        x[:, i] = m[:, i] + order(y)[:, i] * (5 * torch.tanh(a[:, i] / 5)).exp()
    return order(x)


STEPS = {
    "masked": lambda: MaskedAutoregressive(6, 16, layers=2),
    "backwards": lambda: MaskedAutoregressive(6, 4, backwards=True),
    "inverse": lambda: InverseAutoregressive(6, 16, layers=2),
    "inverse, backwards": lambda: InverseAutoregressive(6, 4, backwards=True),
}


@pytest.mark.parametrize("make", STEPS.values(), ids=STEPS)
def test_an_autoregressive_step_and_its_inverse(make, monkeypatch):
    step, x = stirred(make(), 0.5), torch.randn(4, 6, dtype=torch.float64)
    fast = step.inverse if isinstance(step, InverseAutoregressive) else lambda v: step(v)[0]
    j = jacobian(lambda v: fast(v[None])[0], x[0])
    assert (j.tril(-1) if step.backwards else j.triu(1)).count_nonzero() == 0
    assert j.count_nonzero() > 12
    y, log_det = step(x)
    for graph in (False, True):
        with torch.set_grad_enabled(graph):
            again, same = step.inverse_and_log_det(y)
            torch.testing.assert_close(again, x, rtol=0, atol=1e-10)
            torch.testing.assert_close(same, log_det)
    assert gradcheck(step.inverse_and_log_det, (y.detach().requires_grad_(),))
    images = stirred(make(), 0.5)
    torch.testing.assert_close(images(x.view(4, 1, 2, 3))[0], images(x)[0].view(4, 1, 2, 3))
    if not isinstance(step, InverseAutoregressive):
        with torch.no_grad():
            torch.testing.assert_close(step.inverse(y), in_full_passes(step, y), rtol=0, atol=1e-10)
            monkeypatch.setattr(step.made, "forward", None)
            step.inverse(y)  # not one pass
    check_transform(stirred(make(), 0.5), x)


def test_weights_get_the_gradient_of_the_inverse():
    step, y = stirred(MaskedAutoregressive(3, 6, layers=2), 0.5), torch.randn(2, 3, dtype=torch.float64)
    names, values = zip(*_Inverse(step).named_parameters(), strict=True)

    def inverse(*values):
        return torch.func.functional_call(_Inverse(step), dict(zip(names, values, strict=True)), y)

    assert gradcheck(inverse, tuple(v.detach().requires_grad_() for v in values))


class _Inverse(nn.Module):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def forward(self, y):
        return self.step.inverse(y)


def test_scales_stay_bounded_far_from_the_data():
    step = stirred(MaskedAutoregressive(4, 8), 0.5).float()
    y, log_det = step(torch.full((1, 4), 1e6))
    assert bool(y.isfinite().all())
    assert float(log_det.detach().abs()) <= 20


def test_a_maf_gives_images_back():
    model = stirred(MAF((2, 3, 2), flow_steps=3, width=24), 0.2)
    x = torch.rand(3, 2, 3, 2, dtype=torch.float64)
    check_transform(model.transform, x)


# Residual flow.


def strong(shape, width=8, contraction=0.9, factor=1):
    """A contraction with large weights, of which the bound takes off most."""
    torch.manual_seed(1)
    network = Contraction(shape, width, contraction, factor).double()
    for layer in network.layers:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias, std=2.0)
    for activation in network.activations:
        nn.init.constant_(activation.raw, 2.0)
    return network


@pytest.mark.parametrize("size", [(), (5, 6), (1, 2), (1, 1)])
@pytest.mark.parametrize("kernel", [1, 3])
def test_the_bound_of_a_layer_is_above_its_largest_singular_value_and_near_it(size, kernel):
    torch.manual_seed(0)
    for numbers in ((2, 5), (5, 2)):
        layer = nn.Conv2d(*numbers, kernel, padding=kernel // 2) if size else nn.Linear(*numbers)
        whole = jacobian(layer.double(), torch.zeros(1, numbers[0], *size, dtype=torch.float64))
        largest = torch.linalg.matrix_norm(whole.reshape(numbers[1] * math.prod(size), -1), 2)
        bound = spectral_bound(layer.weight, size).detach()
        assert float(largest) <= float(bound) + 1e-12
        if kernel == 1 or size in ((), (5, 6)):
            assert float(bound) < (1.2 if kernel == 3 and size else 1 + 1e-9) * float(largest)
        assert gradcheck(lambda weight: spectral_bound(weight, size), (layer.weight,))


def test_neighbours_of_a_small_map_do_not_cancel_what_is_in_it():
    weight = torch.tensor([[-1.0, 0, -1], [0, 4, 0], [-1, 0, -1]]).view(1, 1, 3, 3)
    for size in ((1, 1), (2, 2), (1, 4)):
        assert float(spectral_bound(weight, size)) >= 4


@pytest.mark.parametrize(("shape", "factor"), [((5,), 1), ((2, 3, 3), 1), ((1, 4, 4), 2)])
def test_a_contraction_shortens_distances(shape, factor):
    network = strong(shape, factor=factor)
    a, b = 3 * torch.randn(2, 200, *shape, dtype=torch.float64)
    with torch.no_grad():
        moved = (network(a) - network(b)).flatten(1).norm(dim=1)
        assert bool((network(a, network.bounded()) == network(a)).all())
    assert bool((moved <= 0.9 * (a - b).flatten(1).norm(dim=1)).all())
    assert float(moved.max()) > 0.05
    for weight in network.bounded():
        assert float(spectral_bound(weight, network.size).detach()) == pytest.approx(0.9 ** (1 / 3))
    for layer in network.layers:
        nn.init.constant_(layer.weight, 1e-3)
    assert all(bool((w == layer.weight).all()) for w, layer in zip(network.bounded(), network.layers, strict=True))


def test_lipswish_lengthens_nothing():
    x = torch.linspace(-20, 20, 4001, dtype=torch.float64, requires_grad=True)
    for raw in (-2.0, 0.5, 5.0):
        activation = LipSwish().double()
        nn.init.constant_(activation.raw, raw)
        (slope,) = torch.autograd.grad(activation(x).sum(), x)
        assert 0.99 < float(slope.abs().max()) <= 1


@pytest.mark.parametrize(("shape", "factor"), [((3,), 1), ((1, 2, 4), 2)])
def test_a_residual_block_and_its_inverse(shape, factor):
    step = Residual(strong(shape, factor=factor), 0.9, "exact", tolerance=1e-13).eval()
    x = 2 * torch.randn(4, *shape, dtype=torch.float64)
    check_transform(step, x)
    step.double()
    y = step(x)[0].detach().requires_grad_()
    assert gradcheck(step.inverse, (y,), check_undefined_grad=False)
    loose = Residual(step.network, 0.9, tolerance=1e-3).eval()
    assert 1e-9 < float((loose.inverse(y) - x).abs().max().detach()) < 1e-3 * float(x.abs().max())


def test_weights_get_the_gradient_of_a_residual_inverse():
    step, y = Residual(strong((2,)), 0.9, tolerance=1e-13).eval(), torch.randn(3, 2, dtype=torch.float64)
    bias = step.network.layers[0].bias
    (found,) = torch.autograd.grad(step.inverse(y).square().sum(), bias)
    for i in range(3):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                bias[i] += sign * 1e-5
                values.append(float(step.inverse(y).square().sum()))
                bias[i] -= sign * 1e-5
        assert float(found[i]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


def test_what_is_no_contraction_has_no_inverse_found():
    step = Residual(nn.Linear(2, 2), 0.9).eval()
    with torch.no_grad():
        step.network.weight.copy_(2 * torch.eye(2))
    with pytest.raises(ArithmeticError, match=r"does not shorten distances by 0\.9") as raised:
        step.inverse(torch.ones(1, 2))
    assert "\n" not in str(raised.value)


def test_the_series_of_training_is_unbiased_and_so_is_its_gradient():
    """Of J = 0.6 Q, Q a rotation, whose powers do not vanish: later terms of the series count."""
    torch.manual_seed(0)
    network, x = nn.Linear(3, 3, bias=False).double(), torch.zeros(100, 3, dtype=torch.float64)
    network.weight.data = 0.6 * torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    value = (torch.eye(3) + network.weight).logdet()
    gradient = torch.autograd.grad(value, network.weight, retain_graph=True)[0].flatten()
    step, values, gradients = Residual(network, 0.7).train(), [], []
    for _ in range(1500):  # each of another length of the series
        log_det = step(x)[1].mean()
        values.append(log_det.detach())
        gradients.append(torch.autograd.grad(log_det, network.weight)[0].flatten())
    values, gradients = torch.stack(values), torch.stack(gradients)
    assert within_error(values, value.detach())
    assert within_error(gradients, gradient)
    assert not within_error(values, value.detach() + 0.05)  # less than what the third term is
    assert not within_error(gradients, gradient + 0.1)
    torch.testing.assert_close(Residual(network, 0.7, "exact")(x[:1])[1][0], value)
    z = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    curved = strong((3,))
    exact = torch.autograd.grad(Residual(curved, 0.9, "exact")(z)[1].sum(), z)[0]
    torch.manual_seed(0)
    draws = [torch.autograd.grad(Residual(curved, 0.9)(z)[1].sum(), z)[0] for _ in range(400)]
    assert within_error(torch.stack(draws), exact)
    assert not within_error(torch.stack(draws), 1.5 * exact)


def test_the_series_of_scores_converges_to_the_exact_value_in_terms_and_draws():
    network, x = strong((3,)), torch.randn(4, 3, dtype=torch.float64)
    exact = Residual(network, 0.9, "exact").eval()(x)[1]
    one, two = Residual(network, 0.9, terms=60).eval(), Residual(network, 0.9, terms=60, draws=2).eval()
    with torch.no_grad():
        many = [step(x.repeat(1000, 1), torch.arange(4000))[1].view(1000, 4) for step in (one, two)]
    assert all(within_error(values, exact) for values in many)
    assert within_error(many[0] - many[1], 0.0)
    assert bool((many[1].var(0) < 0.7 * many[0].var(0)).all())
    ids = torch.tensor([5, 9, 2, 4])
    assert bool((one(x, ids)[1] == one(x, ids)[1]).all())
    assert bool((one(x, ids)[1] != one(x, ids + 1)[1]).any())
    y = x.clone().requires_grad_()
    assert gradcheck(lambda y: Residual(network, 0.9, terms=3).eval()(y, ids)[1], (y,))
    with torch.no_grad():
        torch.testing.assert_close(one(x, ids)[1], one(y, ids)[1], rtol=1e-12, atol=0)
    with torch.inference_mode():
        torch.testing.assert_close(one(x.clone(), ids)[1], one(y, ids)[1].detach(), rtol=1e-12, atol=0)


def test_truncation_bias_is_what_more_terms_change_and_nothing_where_the_value_is_exact():
    x = torch.rand(6, 1, 2, 2, dtype=torch.float64)
    options = {"blocks": 2, "width": 4, "dequantization": "none", "terms": 1}
    model = stirred(ResidualFlow((1, 2, 2), **options), 2.0)
    longer = ResidualFlow((1, 2, 2), **options | {"terms": 4}).double().eval()
    longer.load_state_dict(model.state_dict())
    bias = model.truncation_bias(x)
    assert float(bias.abs().max()) > 1e-4
    torch.testing.assert_close(bias, (longer.log_prob(x) - model.log_prob(x)).detach())
    exact = ResidualFlow((1, 2, 2), **options, log_det="exact").double().eval()
    assert bool((exact.truncation_bias(x) == 0).all())
    assert (model.log_prob_kind, exact.log_prob_kind) == ("estimated", "exact")
    assert ResidualFlow((1, 2, 2), width=4).log_prob_kind == "lower_bound"


def test_random_vectors_are_keyed_by_the_image_and_differ_from_block_to_block():
    seen = []

    class Watching(Residual):
        def forward(self, x, ids=None):
            seen.append((self.signs(x, ids, 1), ids))
            return super().forward(x, ids)

    network = strong((1, 2, 2))
    chain = KeyedChain(*(Watching(network, 0.9) for _ in range(2)), levels=16).eval()
    x = torch.tensor([0.2, 0.8], dtype=torch.float64).view(2, 1, 1, 1) * torch.ones(2, 1, 2, 2, dtype=torch.float64)
    noisy = (x * 15 + torch.linspace(0, 0.999, 8, dtype=torch.float64).view_as(x)) / 16
    chain(noisy)
    chain(noisy.flip(0))
    (first, ids), (second, others), (again, flipped), _ = seen
    assert bool((ids == flipped.flip(0)).all())
    assert bool((first == again.flip(1)).all())
    assert bool((ids != others).all())
    assert bool((first != second).any())
    assert set(first.flatten().tolist()) <= {1.0, -1.0}
    chain(x * 15 / 16)
    assert bool((seen[4][1] == ids).all())  # whatever the dequantization noise was


# Continuous flow.


class Linear(nn.Module):
    """dx/dt = A x + b."""

    def __init__(self, dim):
        super().__init__()
        torch.manual_seed(2)
        self.a = nn.Parameter(torch.randn(dim, dim, dtype=torch.float64) / 2)
        self.b = nn.Parameter(torch.randn(dim, dtype=torch.float64))

    def forward(self, t, x):
        return x @ self.a.T + self.b

    def solution(self):
        """M and m of x(1) = M x + m."""
        whole = torch.zeros(len(self.b) + 1, len(self.b) + 1, dtype=torch.float64)
        whole[:-1, :-1], whole[:-1, -1] = self.a.detach(), self.b.detach()
        moved = torch.matrix_exp(whole)
        return moved[:-1, :-1], moved[:-1, -1]


SOLVED = {
    "rk4": {"solver": "rk4", "steps": 40},
    "dopri5": {"solver": "dopri5", "tolerance": 1e-8},
    "adjoint": {"solver": "dopri5", "tolerance": 1e-8, "adjoint": True},
}


@pytest.mark.parametrize("options", SOLVED.values(), ids=SOLVED)
def test_linear_dynamics_make_a_gaussian_whose_density_is_known(options):
    dynamics = Linear(3)
    m, shift = dynamics.solution()
    density = Density(Continuous(dynamics, trace="exact", **options), 3).eval()
    z = torch.randn(5, 3, dtype=torch.float64)
    back = torch.linalg.inv(m)
    expected = MultivariateNormal(-back @ shift, back @ back.T)
    torch.testing.assert_close(density.log_prob(z), expected.log_prob(z), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(density.to_noise(z)[0], z @ m.T + shift, rtol=0, atol=1e-6)
    torch.testing.assert_close(density.to_noise(z)[1], dynamics.a.detach().trace().expand(5), rtol=0, atol=1e-9)
    torch.testing.assert_close(density.from_noise(z @ m.T + shift), z, rtol=0, atol=1e-6)
    (gradient,) = torch.autograd.grad(density.log_prob(z).sum(), dynamics.a)
    a = dynamics.a.detach().clone().requires_grad_()
    whole = torch.cat([torch.cat([a, dynamics.b.detach()[:, None]], 1), a.new_zeros(1, 4)])
    moved = torch.matrix_exp(whole)
    eps = z @ moved[:-1, :-1].T + moved[:-1, -1]
    (known,) = torch.autograd.grad((gaussian_log_prob(eps).sum(1) + a.trace()).sum(), a)
    torch.testing.assert_close(gradient, known, rtol=1e-4, atol=1e-4)


def test_hutchinsons_trace_is_right_on_average():
    dynamics, x = Linear(3), torch.randn(2, 3, dtype=torch.float64)
    torch.manual_seed(0)
    for step in (Continuous(dynamics, steps=2).train(), Continuous(dynamics, steps=2, draws=3).eval()):
        with torch.no_grad():
            values = step(x.repeat(500, 1), torch.arange(1000))[1].view(500, 2)
        assert within_error(values, dynamics.a.detach().trace())
        assert float(values.std(0).min()) > 0.01
    assert bool((step(x)[1] == step(x)[1]).all())


def test_dynamics_of_images_and_their_log_determinant():
    for shape, factor in (((1, 2, 4), 2), ((2, 3, 2), 1), ((3,), 1)):
        dynamics = Dynamics(shape, width=6)
        assert dynamics.factor == factor
        x = torch.randn(3, *shape, dtype=torch.float64)
        assert bool((dynamics.double()(torch.tensor(0.3, dtype=torch.float64), x) == 0).all())
        step = stirred(Continuous(dynamics, steps=12, trace="exact"), 0.4)
        y, log_det = step(x)
        torch.testing.assert_close(step.inverse(y), x, rtol=0, atol=1e-5)
        assert float((y - x).abs().max().detach()) > 0.1
        back = jacobian(lambda v, step=step: step.inverse(v[None]).flatten(), y[0].detach()).flatten(1)
        torch.testing.assert_close(log_det[0], -back.slogdet().logabsdet, rtol=0, atol=1e-5)
        ahead = step.dynamics(torch.tensor(0.9, dtype=torch.float64), x)
        assert bool((ahead != step.dynamics(torch.tensor(0.1, dtype=torch.float64), x)).all())


def test_an_adaptive_solver_takes_each_image_alone_in_eval_mode():
    step = stirred(Continuous(Dynamics((2,), 8), "dopri5", tolerance=1e-2, trace="exact"), 1.0)
    x = torch.cat([torch.zeros(1, 2), 30 * torch.randn(3, 2)]).double()
    with torch.no_grad():
        y, log_det = step(x)
        for i in range(4):
            assert bool((step(x[i : i + 1])[0] == y[i : i + 1]).all())
            assert bool((step(x[i : i + 1])[1] == log_det[i : i + 1]).all())
        together = step.train()(x)[0]
    assert bool((together != y).any())
    assert step.eval()(x[:0])[1].shape == (0,)


def test_solver_error_falls_with_the_steps_and_exact_traces_are_exact():
    x = torch.rand(4, 1, 2, 2, dtype=torch.float64)
    errors = []
    for steps in (1, 8):
        model = stirred(
            ContinuousFlow((1, 2, 2), width=4, steps=steps, dequantization="none", trace="exact", alpha=0.05), 0.7
        )
        assert model.log_prob_kind == "exact"
        errors.append(float(model.solver_error(x).abs().max()))
    assert 0 < errors[1] < errors[0] / 20
    assert ContinuousFlow((1, 2, 2), dequantization="none").log_prob_kind == "estimated"


def test_without_torchdiffeq_the_line_says_what_to_install(monkeypatch):
    model = ContinuousFlow((1, 4, 4), width=4).eval()
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(ImportError, match=r"pip install 'robustgen\[ode\]'") as raised:
        model.log_prob(torch.zeros(1, 1, 4, 4))
    assert "\n" not in str(raised.value)


def test_an_equation_that_cannot_be_solved_says_so():
    step = Continuous(Dynamics((2,), 4), "dopri5").eval()
    with pytest.raises(FloatingPointError, match="cannot be solved"):
        step(torch.full((1, 2), math.nan))


# All of them.

DENSITIES = {
    "masked": lambda: stirred(Chain(MaskedAutoregressive(2, 16), MaskedAutoregressive(2, 16, backwards=True)), 0.3),
    "inverse": lambda: stirred(Chain(InverseAutoregressive(2, 16), InverseAutoregressive(2, 16, backwards=True)), 0.2),
    "residual": lambda: Residual(strong((2,), 16), 0.9, "exact").eval(),
    "continuous": lambda: stirred(Continuous(Dynamics((2,), 8), steps=6, trace="exact"), 0.6),
}


@pytest.mark.parametrize("make", DENSITIES.values(), ids=DENSITIES)
def test_a_density_of_the_plane_integrates_to_one(make):
    density, side = Density(make(), 2), torch.linspace(-14, 14, 141, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        p = density.log_prob(grid).exp()
    assert float((p - gaussian_log_prob(grid).sum(1).exp()).abs().max()) > 0.01
    assert float((p.sum() * (side[1] - side[0]) ** 2 - 1).abs()) < 2e-3


@pytest.mark.parametrize("kind", [InverseAutoregressive, MaskedAutoregressive])
def test_reverse_kl_fits_a_gaussian_energy_to_its_closed_form(kind):
    torch.manual_seed(0)
    goal = MultivariateNormal(torch.tensor([1.0, -0.5]), torch.tensor([[1.0, 0.6], [0.6, 0.5]]))
    log_z = 0.7

    def energy(z):
        return -goal.log_prob(z) - log_z

    density = Density(Chain(kind(2, 16)), 2)
    optimizer = torch.optim.Adam(density.parameters(), lr=0.02)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        before = reverse_kl(density, energy, 2000, generator) + log_z
    for _ in range(300):
        optimizer.zero_grad()
        reverse_kl(density, energy, 64, generator).backward()
        optimizer.step()
    with torch.no_grad():
        after = reverse_kl(density, energy, 2000, generator) + log_z
        z = density.from_noise(torch.randn(4000, 2, generator=generator))
    assert float(before) > 1
    assert abs(float(after)) < 0.02
    torch.testing.assert_close(z.mean(0), goal.mean, rtol=0, atol=0.15)
    torch.testing.assert_close(z.T.cov(), goal.covariance_matrix, rtol=0, atol=0.15)


def test_reverse_kl_has_the_gradient_of_the_divergence_whatever_the_flow():
    """Of a residual flow, whose draws are found by iteration: against differences of the value at fixed noise."""
    density = Density(Residual(strong((2,)), 0.9, "exact", tolerance=1e-13), 2).eval()
    bias = density.transform.network.layers[0].bias

    def value():
        return reverse_kl(density, lambda z: z.pow(4).sum(1), 16, torch.Generator().manual_seed(0))

    (found,) = torch.autograd.grad(value(), bias)
    for i in range(2):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                bias[i] += sign * 1e-5
            values.append(float(value().detach()))
            with torch.no_grad():
                bias[i] -= sign * 1e-5
        assert float(found[i]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-8)


def test_reverse_kl_needs_a_number_for_each_point():
    density = Density(Chain(), 2)
    with pytest.raises(ValueError, match=r"the energy of 3 points must have shape \(3,\), got \(3, 2\)"):
        reverse_kl(density, lambda z: z, 3)
    with pytest.raises(ValueError, match=r"must have shape \(3,\), got a float"):
        reverse_kl(density, lambda z: 1.0, 3)
    with pytest.raises(ValueError, match="n must be at least 1"):
        reverse_kl(density, lambda z: z.sum(1), 0)


def test_wrong_arguments_are_named():
    for arguments, message in (
        ({"contraction": 1.0}, r"contraction must lie in \(0, 1\), got 1"),
        ({"tolerance": 0.0}, r"tolerance must lie in \(0, 1\)"),
        ({"log_det": "trace"}, "log_det must be one of series, exact, got 'trace'"),
    ):
        with pytest.raises(ValueError, match=message):
            ResidualFlow((1, 4, 4), **arguments)
    for arguments, message in (
        ({"solver": "euler"}, "solver must be one of rk4, dopri5, got 'euler'"),
        ({"trace": "series"}, "trace must be one of hutchinson, exact"),
        ({"tolerance": 0.0}, "tolerance must be a finite number > 0"),
    ):
        with pytest.raises(ValueError, match=message):
            ContinuousFlow((1, 4, 4), **arguments)


def test_autoregressive_and_continuous_flows_are_those_of_zuko():
    transforms = pytest.importorskip("zuko.transforms")
    from torch.distributions.transforms import AffineTransform

    with torch.no_grad():
        step, x = stirred(MaskedAutoregressive(6, 16, layers=2), 0.5), torch.randn(7, 6, dtype=torch.float64)

        def affine(v):
            m, a = step.made(v).unbind(1)
            scale = (-5 * torch.tanh(a / 5)).exp()
            return transforms.DependentTransform(AffineTransform(-m * scale, scale), 1)

        theirs = transforms.AutoregressiveTransform(affine, passes=6)
        y, log_det = step(x)
        torch.testing.assert_close(y, theirs(x))
        torch.testing.assert_close(log_det, theirs.log_abs_det_jacobian(x, y))
        torch.testing.assert_close(step.inverse(y), theirs.inv(y))

        dynamics, x = stirred(Dynamics((4,), 8), 0.5), torch.randn(3, 4, dtype=torch.float64)
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        theirs = transforms.FreeFormJacobianTransform(dynamics, *ends, exact=True, atol=1e-8, rtol=1e-8)
        ours = Continuous(dynamics, "dopri5", tolerance=1e-7, trace="exact").eval()(x)
        for one, other in zip(ours, theirs.call_and_ladj(x), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [InverseAutoregressive, MaskedAutoregressive])
@pytest.mark.parametrize("graph", [False, True])
def test_log_determinants_keep_their_digits_under_autocast(kind, graph):
    step, x = stirred(kind(64, 32), 0.1).float(), torch.randn(5, 64)
    with torch.set_grad_enabled(graph), torch.autocast("cpu", torch.bfloat16):
        for _, log_det in (step(x), step.inverse_and_log_det(x)):
            assert log_det.dtype == torch.float32
            assert bool((log_det.bfloat16() != log_det).any())


def test_vectors_of_another_length_have_no_density():
    density = Density(MaskedAutoregressive(4, 8), 4)
    for call in (density.log_prob, density.to_noise, density.from_noise):
        for wrong in (torch.zeros(2, 3), torch.zeros(2, 5), torch.zeros(4)):
            with pytest.raises(ValueError, match=r"of this density is \(N, 4\), got"):
                call(wrong)


def test_an_inverse_that_has_become_infinite_is_given_up_at_once():
    calls = []

    class Watched(nn.Linear):
        def forward(self, x):
            calls.append(None)
            return super().forward(x)

    step = Residual(Watched(2, 2), 0.999999).eval()
    with pytest.raises(ArithmeticError, match="or its input is not finite"), torch.no_grad():
        step.inverse(torch.full((1, 2), math.inf))
    assert len(calls) == 1


def test_files_state_no_endless_series(tmp_path):
    for model, name in (
        (ResidualFlow((1, 2, 2), blocks=1, width=2), "terms"),
        (ContinuousFlow((1, 2, 2), width=2), "draws"),
    ):
        model.save(tmp_path / name)
        path = latest_checkpoint(tmp_path / name) / "config.json"
        head = json.loads(path.read_text())
        head["config"]["model"][name] = 500_000
        path.write_text(json.dumps(head))
        with pytest.raises(ValueError, match=rf"config\.model\.{name} must be a whole number from 1 to 1000, not"):
            load(tmp_path / name)
