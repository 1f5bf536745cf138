"""Score matching, energies whose chains make no noise, equilibrium matching, products of experts: closed forms."""

import math
from collections import Counter
from functools import partial
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.func import functional_call

from robustgen.data import digits
from robustgen.detectors import Likelihood, ModelEnergy
from robustgen.experiments.training_cache import TrainingCache
from robustgen.experiments.xiao2022 import noise_free_toys as toys
from robustgen.fingerprint import model_fingerprint
from robustgen.generative import (
    VAE,
    EnergyModel,
    EquilibriumMatching,
    GenerativeObjective,
    NoiseFreeEBM,
    ProductOfExperts,
    fit,
)
from robustgen.generative.energy.equilibrium_matching import truncated_decay
from robustgen.generative.energy.noise_free import descend
from robustgen.generative.energy.score_matching import (
    denoising_score_matching,
    implicit_score_matching,
    sliced_score_matching,
)
from robustgen.training import Batch, Trainer

SHAPE, PLANE = (1, 8, 8), (2, 1, 1)


def images(n=24):
    return digits("train").images()[:n]


def batch(x):
    return Batch(x, None, torch.arange(len(x)))


class Quadratic(nn.Module):
    """u' A u / 2 of what a network of energies is given, (u + 1) / 2."""

    def __init__(self, a):
        super().__init__()
        self.a = nn.Parameter(a)

    def forward(self, x):
        u = (2 * x - 1).flatten(1)
        return ((u @ self.a) * u).sum(1) / 2


def on_the_plane(network=None, **options):
    torch.manual_seed(0)
    options = {"architecture": "mlp", "width": 16, "layers": 2, "trace": "exact"} | options
    model = NoiseFreeEBM(PLANE, **options).double().eval()
    if network is not None:
        model.network = network
    return model


def grid(n, dtype=torch.float64):
    side = (torch.arange(n, dtype=dtype) + 0.5) / n
    return torch.stack(torch.meshgrid(side, side, indexing="ij"), -1).view(-1, *PLANE)


def slope_along(loss, parameter, direction, h=1e-5):
    """Of ``loss()`` along a direction of a parameter, by central differences."""
    values = []
    for sign in (1, -1):
        parameter.data += sign * h * direction
        values.append(loss().item())
        parameter.data -= sign * h * direction
    return (values[0] - values[1]) / (2 * h)


# --- score matching ----------------------------------------------------------------------------------------------


def losses(sigma):
    """Each loss of an energy at the same noisy data, of clean data x and noise; and its constant on N(0, S)."""
    signs = lambda x: torch.randint(0, 2, x.shape).double() * 2 - 1
    return {
        "implicit": lambda e, x, noise: implicit_score_matching(e, x + sigma * noise),
        "sliced": lambda e, x, noise: sliced_score_matching(e, x + sigma * noise, torch.randn_like(x)),
        "variance reduced": lambda e, x, noise: sliced_score_matching(
            e, x + sigma * noise, signs(x), variance_reduced=True
        ),
        "denoising": lambda e, x, noise: denoising_score_matching(e, x, sigma, noise) / sigma**2,
    }


def test_all_are_the_fisher_divergence_up_to_a_constant():
    """On N(0, S) of noisy data, with E = x' A x / 2: tr (A - S^-1) S (A - S^-1) / 2, less tr S^-1 / 2; denoising has
    D / (2 sigma^2) more, the mean of |noise|^2."""
    torch.manual_seed(0)
    n, sigma, d = 400_000, 0.8, 3
    root = torch.tensor([[0.9, 0.0, 0.0], [0.4, 0.6, 0.0], [-0.2, 0.3, 0.7]], dtype=torch.float64)
    x, noise = torch.randn(n, d).double() @ root.T, torch.randn(n, d).double()
    s = root @ root.T + sigma**2 * torch.eye(d)
    a = torch.tensor([[1.1, 0.2, 0.0], [0.2, 0.7, -0.3], [0.0, -0.3, 1.6]], dtype=torch.float64)
    off = a - s.inverse()
    divergence = (off @ s @ off).trace().item() / 2
    constants = dict.fromkeys(losses(sigma), -s.inverse().trace().item() / 2)
    constants["denoising"] += d / (2 * sigma**2)
    for name, loss in losses(sigma).items():
        found = loss(lambda v: ((v @ a) * v).sum(1) / 2, x, noise).item()
        assert found - constants[name] == pytest.approx(divergence, rel=0.06), name
        assert abs(found - divergence) > 3 * 0.06 * divergence, name  # the constant is no small number


@pytest.mark.parametrize("name", losses(0.3))
def test_gradients_equal_finite_differences(name):
    torch.manual_seed(1)
    model = EnergyModel((1, 4, 4), width=2, objective="dsm").double()
    x, noise = torch.rand(3, 1, 4, 4).double(), torch.randn(3, 1, 4, 4).double()

    def loss():
        torch.manual_seed(2)  # the same directions every time
        return losses(0.3)[name](model.energy, x, noise)

    parameters = list(model.parameters())
    for p, gradient in zip(parameters, torch.autograd.grad(loss(), parameters), strict=True):
        direction = torch.randn(p.shape, dtype=p.dtype)
        expected = (gradient * direction).sum().item()
        assert slope_along(loss, p, direction) == pytest.approx(expected, rel=1e-5, abs=1e-8)
    with torch.no_grad():
        assert not loss().requires_grad


def test_the_variance_reduced_form_varies_less():
    torch.manual_seed(0)
    x, energy = torch.randn(1, 6, dtype=torch.float64), lambda x: x.square().sum(1) / 2
    loss = lambda form: sliced_score_matching(energy, x, torch.randn(1, 6).double().sign(), variance_reduced=form)
    spread = {form: torch.stack([loss(form) for _ in range(200)]).std() for form in (False, True)}
    assert spread[True] < 1e-12  # signs make the trace of a unit matrix exact
    assert spread[False] > 0.5


def test_an_energy_learns_a_gaussian_by_slices():
    """sigma^2 + s^2 is the variance of what it sees: the best k of k x^2 / 2 is its inverse."""
    torch.manual_seed(0)
    x = 0.7 * torch.randn(200_000, 1, dtype=torch.float64)
    k = torch.zeros((), dtype=torch.float64, requires_grad=True)
    loss = sliced_score_matching(lambda x: k * x.square().sum(1) / 2, x, torch.randn_like(x))
    (slope,) = torch.autograd.grad(loss, k, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, k)
    assert -slope.item() / curvature.item() == pytest.approx(1 / 0.49, rel=0.02)


def test_an_exact_trace_has_its_limit():
    with pytest.raises(ValueError, match="for 64 dimensions at most, got 65: take sliced_score_matching"):
        implicit_score_matching(lambda x: x.square().sum(1), torch.zeros(1, 65))
    with pytest.raises(ValueError, match="for 64 dimensions at most, got 192: take trace='hutchinson'"):
        NoiseFreeEBM((3, 8, 8), trace="exact")


# --- the energy model's new objectives ---------------------------------------------------------------------------


def test_chains_start_where_they_are_said_to():
    torch.manual_seed(0)
    x = torch.full((200, 1, 4, 4), 0.5)
    for chains, spread in (("data", 0.0), ("noise", 12**-0.5)):
        model = EnergyModel((1, 4, 4), width=2, steps=1, step_size=1e-10, sigma=1e-6, chains=chains)
        samples, _ = model._short(x)
        assert samples.std().item() == pytest.approx(spread, abs=0.01)
        assert not model.state_dict().keys() & {"replay"}
    with pytest.raises(ValueError, match="chains must be one of persistent, noise, data, got 'buffer'"):
        EnergyModel(SHAPE, chains="buffer")
    with pytest.raises(ValueError, match="objective='ssm' trains without chains"):
        EnergyModel(SHAPE, objective="ssm", chains="data")


def test_a_short_run_samples_with_the_steps_it_was_trained_with():
    model = EnergyModel((1, 4, 4), width=2, steps=3, sample_steps=500, chains="noise").eval()
    persistent = EnergyModel((1, 4, 4), width=2, steps=3, sample_steps=3, buffer_size=8).eval()
    persistent.network.load_state_dict(model.network.state_dict())
    made = [m.sample(4, torch.Generator().manual_seed(0)) for m in (model, persistent)]
    assert torch.equal(*made)


# --- noise-free dynamics: the flow -------------------------------------------------------------------------------

A = torch.tensor([[2.0, 0.5], [0.5, -1.0]], dtype=torch.float64)


def flowed_log_prob(u, a, time):
    """log N(u; 0, e^(-2 a time)), where x' = -a x carries N(0, I)."""
    covariance = torch.linalg.matrix_exp(-2 * time * a)
    return torch.distributions.MultivariateNormal(torch.zeros(2).double(), covariance).log_prob(u)


@pytest.mark.parametrize("solver", ["rk4", "dopri5"])
def test_the_density_of_a_quadratic_energy(solver):
    model = on_the_plane(Quadratic(A), scale=1.5, time=0.7, steps=30, solver=solver, tolerance=1e-9)
    x = torch.rand(3, *PLANE, dtype=torch.float64)
    expected = flowed_log_prob(1.5 * (2 * x.flatten(1) - 1), A, 0.7) + 2 * math.log(3.0)
    torch.testing.assert_close(model.log_prob(x), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.energy(x), Quadratic(A)((1.5 * (2 * x - 1) + 1) / 2))
    assert model.log_prob_kind == "exact"
    assert model.solver_error(x).abs().max() < 1e-5


def test_the_trace_is_estimated_without_bias_and_says_so():
    """v' A v of signs v is tr A + 2 v_1 v_2 A_12."""
    model = on_the_plane(Quadratic(A), trace="hutchinson", draws=1, time=0.7, steps=50)
    x = torch.rand(400, *PLANE, dtype=torch.float64)
    expected = flowed_log_prob(2 * x.flatten(1) - 1, A, 0.7) + 2 * math.log(2.0)
    off = model.log_prob(x) - expected
    torch.testing.assert_close(off.abs(), torch.full_like(off, 0.7), rtol=1e-4, atol=1e-4)
    assert off.mean().abs() < 0.15
    assert model.log_prob_kind == "estimated"


def test_samples_have_that_density():
    model = on_the_plane(Quadratic(A), scale=6.0, time=0.7, steps=20)
    u = 6 * (2 * model.sample(40_000, torch.Generator().manual_seed(0)).flatten(1) - 1)
    torch.testing.assert_close(u.T.cov(), torch.linalg.matrix_exp(-1.4 * A), rtol=0.05, atol=0.02)


def test_the_density_integrates_to_one_and_the_way_back_leads_back():
    model = on_the_plane(scale=5.0, width=32, time=1.0, steps=8)
    for p in model.network.parameters():
        p.data *= 2.0  # a map that is no longer nearly linear
    x = grid(60)
    with torch.no_grad():
        density = model.log_prob(x).exp()
        assert density.mean().item() == pytest.approx(1, abs=0.03)
        straight = flowed_log_prob(5 * (2 * x.flatten(1) - 1), 0 * A, 1.0)
        assert (model.log_prob(x) - 2 * math.log(10) - straight).std() > 0.1
        eps = torch.randn(50, *PLANE, dtype=torch.float64)
        inside = model.from_noise(eps)
        inside = inside[((inside >= 0) & (inside <= 1)).flatten(1).all(1)]
        back, log_det = model.to_noise(inside)
        assert len(inside) > 30
        assert (model.from_noise(back) - inside).abs().max() < 1e-3 / 10
    image = lambda e: model.from_noise(e[None])[0].flatten()
    jacobians = torch.stack([torch.autograd.functional.jacobian(image, e).flatten(1) for e in back[:5]])
    torch.testing.assert_close(-torch.linalg.slogdet(jacobians)[1], log_det[:5], rtol=1e-4, atol=1e-4)


def test_likelihood_gradients_equal_finite_differences():
    model = on_the_plane(objective="likelihood", steps=4)
    x = torch.rand(5, *PLANE, dtype=torch.float64)
    loss = lambda: model.training_step(batch(x), 0)["loss"]
    parameters = list(model.parameters())
    for p, gradient in zip(parameters, torch.autograd.grad(loss(), parameters), strict=True):
        direction = torch.randn(p.shape, dtype=p.dtype)
        assert slope_along(loss, p, direction) == pytest.approx((gradient * direction).sum().item(), rel=1e-5, abs=1e-9)


def test_likelihood_training_learns_a_gaussian():
    """The loss reaches that of the best Gaussian, log(2 pi e) + log det of the data's covariance / 2."""
    torch.manual_seed(0)
    x = (0.5 + 0.15 * torch.randn(256, *PLANE)).clamp(0, 1)
    model = NoiseFreeEBM(
        PLANE, architecture="mlp", width=16, layers=2, objective="likelihood", trace="exact", steps=3, time=1.0
    )
    fast = partial(torch.optim.Adam, lr=0.02)
    history = Trainer(GenerativeObjective(), optimizer=fast, epochs=10, batch_size=32, progress=False).fit(model, x)
    best = math.log(2 * math.pi * math.e) + torch.linalg.slogdet(x.flatten(1).T.cov())[1].item() / 2
    assert history[0]["loss"] > best + 0.5
    assert history[-1]["loss"] == pytest.approx(best, abs=0.08)


# --- noise-free dynamics: steps ----------------------------------------------------------------------------------


def test_a_step_is_the_formula():
    torch.manual_seed(0)
    u = torch.randn(4, *PLANE, dtype=torch.float64)
    model = on_the_plane(Quadratic(A), dynamics="steps", steps=1, step_size=0.3)
    moved = 2 * model.from_noise(u) - 1
    torch.testing.assert_close(moved.flatten(1), u.flatten(1) @ (torch.eye(2).double() - 0.3 * A))
    many = on_the_plane(Quadratic(A), dynamics="steps", steps=2000, step_size=0.7 / 2000)
    flow = on_the_plane(Quadratic(A), time=0.7, steps=20)
    torch.testing.assert_close(many.from_noise(u), flow.from_noise(u), rtol=0, atol=1e-3)  # the same flow
    torch.manual_seed(1)
    noisy = on_the_plane(Quadratic(A), dynamics="noisy", steps=1, step_size=0.3, noise_scale=0.4)
    start = torch.zeros(50_000, *PLANE, dtype=torch.float64)
    assert noisy._descended(start, None).std().item() == pytest.approx(0.4, rel=0.02)


def test_neither_steps_have_a_likelihood():
    for dynamics in ("steps", "noisy"):
        model = on_the_plane(dynamics=dynamics)
        x = torch.rand(2, *PLANE, dtype=torch.float64)
        assert model.log_prob_kind is None
        with pytest.raises(TypeError, match="NoiseFreeEBM has no likelihood"):
            model.log_prob(x)
        with pytest.raises(TypeError, match=f"dynamics='{dynamics}' have no inverse"):
            model.to_noise(x)
        with pytest.raises(TypeError, match="needs a model with a likelihood"):
            Likelihood(model)
    assert on_the_plane(dynamics="noisy").noise_shape is None


def test_momentum_looks_ahead():
    """x_1 = x_0 - a g(x_0), x_2 = x_1 - a g(x_1 + mu (x_1 - x_0))."""
    x, a, mu = torch.tensor([[1.0]], dtype=torch.float64), 0.1, 0.3
    g = lambda x: x**3
    first = x - a * g(x)
    second = first - a * g(first + mu * (first - x))
    torch.testing.assert_close(descend(g, x, 2, a, momentum=mu), second)


# --- the generator's loss ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamics", ["ode", "steps", "noisy"])
def test_the_generator_loss_is_split_as_it_says(dynamics):
    model = on_the_plane(dynamics=dynamics, steps=3, generator_loss=True, regularisation=0.0, width=8).train()
    x = torch.rand(6, *PLANE, dtype=torch.float64)
    parameters = list(model.network.parameters())
    plain = on_the_plane(dynamics=dynamics, steps=3, width=8).train()
    plain.load_state_dict(model.state_dict())
    found = {}
    for name, m in (("both", model), ("energy", plain)):
        torch.manual_seed(5)
        loss = m.training_step(batch(x), 0)["loss"]
        found[name] = loss.detach(), torch.autograd.grad(loss, list(m.network.parameters()))
    on_data = model.energy(x).mean()
    torch.testing.assert_close(found["both"][0], on_data.detach())  # E of samples cancels in value
    torch.manual_seed(5)
    start = torch.randn(6, *PLANE, dtype=torch.float64)
    samples = model._descended(start, None)
    third = model._fixed_energy(samples).mean()
    own = torch.autograd.grad(third, parameters, retain_graph=True)
    for both, energy, generator in zip(found["both"][1], found["energy"][1], own, strict=True):
        torch.testing.assert_close(both, energy + generator)  # and does not in gradient
    assert max(g.abs().max() for g in own) > 1e-6
    with pytest.raises(RuntimeError, match="does not require grad"):  # nothing reaches the copy that evaluates
        model._fixed_energy(samples.detach()).mean().backward()

    def value():  # of samples alone, by a copy that stays
        torch.manual_seed(5)
        torch.randn(6, *PLANE, dtype=torch.float64)
        with torch.no_grad():
            return functional_call(fixed, kept, ((model._descended(start, None) + 1) / 2,)).mean()

    fixed, kept = on_the_plane(width=8).network, {k: v.clone() for k, v in model.network.state_dict().items()}
    for p, gradient in zip(parameters, own, strict=True):
        direction = torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=p.dtype)
        assert slope_along(value, p, direction) == pytest.approx(
            (gradient * direction).sum().item(), rel=1e-4, abs=1e-8
        )


class Held:
    """A tensor that autograd keeps, and how much memory those that it keeps have at a time, each storage once."""

    alive = peak = 0
    holders: ClassVar[Counter] = Counter()

    def __init__(self, t):
        self.t, storage = t, t.untyped_storage()
        self.place, self.bytes = storage.data_ptr(), storage.nbytes()
        Held.holders[self.place] += 1
        Held.alive += self.bytes * (Held.holders[self.place] == 1)
        Held.peak = max(Held.peak, Held.alive)

    def __del__(self):
        Held.holders[self.place] -= 1
        Held.alive -= self.bytes * (Held.holders[self.place] == 0)


def kept_bytes(model, x):
    """The most that autograd keeps at a time in a training step."""
    Held.alive = Held.peak = 0
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.t):
        model.training_step(batch(x), 0)
    return Held.peak


def test_memory_is_flat_in_the_steps_save_for_the_generator_loss():
    x = images(8)
    sizes = {
        (flag, steps): kept_bytes(
            NoiseFreeEBM(SHAPE, width=8, dynamics="steps", steps=steps, generator_loss=flag, step_size=0.01), x
        )
        for flag in (False, True)
        for steps in (4, 8, 12)
    }
    assert sizes[False, 12] == sizes[False, 4]
    per_step = [(sizes[True, k + 4] - sizes[True, k]) / 4 for k in (4, 8)]
    assert per_step[0] == pytest.approx(per_step[1], rel=0.3)
    assert per_step[0] > 0.2 * sizes[False, 4]


# --- equilibrium matching ----------------------------------------------------------------------------------------


def test_the_decay_is_flat_and_then_a_line_to_zero():
    gamma = torch.linspace(0, 1, 11, dtype=torch.float64)
    c = truncated_decay(gamma, 0.6, 3.0)
    torch.testing.assert_close(c[:7], torch.full_like(c[:7], 3.0))
    torch.testing.assert_close(c[6:], 3.0 * (1 - gamma[6:]) / 0.4)


@pytest.mark.parametrize("form", ["dot", "l2"])
def test_the_gradient_is_that_of_the_energy(form):
    torch.manual_seed(0)
    model = EquilibriumMatching(SHAPE, width=4, levels=2, form=form).double().eval()
    x = torch.rand(2, *SHAPE, dtype=torch.float64)
    u, direction, h = 2 * x - 1, torch.randn_like(x), 1e-5
    expected = (model.energy(x + h * direction / 2) - model.energy(x - h * direction / 2)) / (2 * h)
    torch.testing.assert_close((model._gradient(u) * direction).flatten(1).sum(1), expected, rtol=1e-4, atol=1e-7)
    field = model.network(u, torch.zeros(2).double()).flatten(1)
    by_hand = (u.flatten(1) * field).sum(1) if form == "dot" else -field.square().sum(1) / 2
    torch.testing.assert_close(model.energy(x), by_hand)


def test_one_image_is_where_all_descents_end():
    """Of a single image the target is (eps - u) c(gamma) = (u_gamma - u) c / (1 - gamma), whose zero is that image."""
    torch.manual_seed(0)
    x = images(1).expand(64, *SHAPE)
    model = EquilibriumMatching(SHAPE, width=8, levels=2, form="implicit", sample_steps=60, step_size=0.02)
    fit = Trainer(
        GenerativeObjective(), optimizer=partial(torch.optim.Adam, lr=3e-3), epochs=100, batch_size=64, progress=False
    )
    fit.fit(model, x)
    samples = model.eval().sample(20, torch.Generator().manual_seed(0))
    assert (samples - x[:1]).square().mean() < 0.1 * (torch.rand(20, *SHAPE) - x[:1]).square().mean()
    with pytest.raises(TypeError, match="form='implicit' has a gradient without an energy"):
        model.energy(x)


# --- products of experts -----------------------------------------------------------------------------------------


def test_the_closed_form_is_implicit_score_matching():
    torch.manual_seed(0)
    model = ProductOfExperts((1, 2, 3), width=9).double()
    model.log_alpha.data = torch.randn(9, dtype=torch.float64)
    model.filters.weight.data *= 3
    x = torch.rand(5, 1, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(model.score_matching(x), implicit_score_matching(model.energy, x))
    y = x.flatten(1) @ model.filters.weight.T + model.filters.bias
    torch.testing.assert_close(model.energy(x), ((1 + y**2 / 2).log() * model.log_alpha.exp()).sum(1))


def test_it_tells_digits_from_noise():
    torch.manual_seed(0)
    model = ProductOfExperts(SHAPE, width=128, sigma=0.1)
    Trainer(GenerativeObjective(), optimizer=model.optimizer, epochs=20, batch_size=64, progress=False).fit(
        model, images(600)
    )
    test = digits("test").images()[:50]
    with torch.no_grad():
        assert (model.eval().log_prob(test)[:, None] > model.log_prob(torch.rand(50, *SHAPE))).float().mean() > 0.95


# --- the detector, resuming, bad input ---------------------------------------------------------------------------


def test_the_two_scores_of_a_model():
    model = on_the_plane(Quadratic(A), time=0.7)
    x = torch.rand(30, *PLANE, dtype=torch.float64)
    assert torch.equal(ModelEnergy(model).fit(x).score(x), model.energy(x))
    assert torch.equal(Likelihood(model).fit(x).score(x), -model.log_prob(x))
    with pytest.raises(TypeError, match=r"ModelEnergy needs a model with an energy, VAE has none$"):
        ModelEnergy(VAE(SHAPE))
    with pytest.raises(TypeError, match=r"Identity has none \(of the logits of a classifier: use Energy\)"):
        ModelEnergy(nn.Identity())
    with pytest.raises(TypeError, match="has a gradient without an energy"):
        ModelEnergy(EquilibriumMatching(SHAPE, width=4, form="implicit")).fit(images(4))


class Stopping(GenerativeObjective):
    def __init__(self, stop):
        self.stop = stop

    def __call__(self, model, batch, step):
        if model.training and step == self.stop:
            raise KeyboardInterrupt
        return super().__call__(model, batch, step)


@pytest.mark.parametrize(
    "make",
    [
        lambda: NoiseFreeEBM(SHAPE, width=4, dynamics="noisy", steps=3, generator_loss=True),
        lambda: NoiseFreeEBM(SHAPE, width=4, steps=2),
        lambda: EnergyModel(SHAPE, width=4, steps=3, chains="noise"),
        lambda: EquilibriumMatching(SHAPE, width=4, levels=2),
    ],
)
def test_a_killed_training_resumes_bitwise(make, tmp_path):
    def run(stop=None, **where):
        torch.manual_seed(5)
        model = make()
        options = {"epochs": 2, "batch_size": 6, "progress": False} | where
        return model, Trainer(Stopping(stop), optimizer=model.optimizer, **options).fit(model, images(), images(8))

    whole, history = run()
    with pytest.raises(KeyboardInterrupt):
        run(stop=5, run_dir=tmp_path, checkpoint_every=3)
    resumed, again = run(run_dir=tmp_path, checkpoint_every=3, resume=True)
    assert history == again
    assert model_fingerprint(whole) == model_fingerprint(resumed)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(NoiseFreeEBM, SHAPE, dynamics="sde"), "dynamics must be one of ode, steps, noisy, got 'sde'"),
        (partial(NoiseFreeEBM, SHAPE, objective="nce"), "objective must be one of contrastive, likelihood, got 'nce'"),
        (partial(NoiseFreeEBM, SHAPE, objective="likelihood"), "is for 2 dimensions, got 64: leave objective out"),
        (partial(NoiseFreeEBM, PLANE, objective="likelihood", dynamics="steps"), "is for dynamics='ode'"),
        (partial(NoiseFreeEBM, SHAPE, time=0.0), "time must be a finite number > 0"),
        (partial(NoiseFreeEBM, SHAPE, architecture="rnn"), "architecture must be one of"),
        (partial(EquilibriumMatching, SHAPE, form="sum"), "form must be one of dot, l2, implicit, got 'sum'"),
        (partial(EquilibriumMatching, SHAPE, decay=1.0), r"decay must be in \[0, 1\), got 1.0"),
        (
            partial(EquilibriumMatching, SHAPE, step_size=0.1),
            "overshoots data and leaves them for good: take less",
        ),
        (partial(ProductOfExperts, SHAPE, sigma=0.0), "sigma must be a finite number > 0"),
    ],
)
def test_arguments(make, message):
    with pytest.raises(ValueError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("dynamics", "remedy"), [("steps", "step_size"), ("noisy", "step_size"), ("ode", "time")])
def test_chains_that_leave_for_good_are_an_error(dynamics, remedy):
    away = {"time": 8.0} if dynamics == "ode" else {"step_size": 8.0}
    model = on_the_plane(Quadratic(-A), dynamics=dynamics, steps=20, **away)
    for act in (partial(model.sample, 3), partial(model.training_step, batch(torch.rand(3, *PLANE).double()), 0)):
        with pytest.raises(FloatingPointError, match=f"left the range of the data for good: .*smaller {remedy}"):
            act()


# --- the toys of the figures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", toys.DATA)
def test_the_truth_of_a_toy_is_the_density_of_its_points(name):
    draw, log_prob = toys.DATA[name]
    square = toys.square(120, toys.BOX)
    density = log_prob(square).exp() * (2 * toys.BOX / 120) ** 2
    assert density.sum().item() == pytest.approx(1, abs=1e-3)
    z = draw(20_000, 3).double()
    assert z.abs().max() < toys.BOX
    entropy = -(density * log_prob(square)).sum().item()
    assert -log_prob(z).mean().item() == pytest.approx(entropy, abs=0.03)  # they follow it
    torch.testing.assert_close(
        z.T.cov(), ((square - density @ square).T * density) @ (square - density @ square), rtol=0.03, atol=0.02
    )


def test_both_scores_of_a_toy_are_those_of_one_network(tmp_path):
    cache = TrainingCache(tmp_path, say=lambda line: None)
    found = {
        row: toys.EXPERIMENT.measure(toys.Cell(row, "grid", 0), "smoke", cache)
        for row in ("contrastive-flow", "contrastive-energy", "truth")
    }
    assert len(list(tmp_path.iterdir())) == 1
    flow, energy, truth = found.values()
    assert flow.value < truth.value
    assert energy.value < truth.value
    assert flow.verdicts[0]["verdict"] == "holds"
    assert flow.numbers["log p of the data"]["value"] == truth.value
    kept = {row: {"row": row, "column": "grid", "seed": 0, "value": m.value} for row, m in found.items()}
    assert toys.EXPERIMENT.conclusion(kept, lambda _: {}).startswith(
        f"In {int(flow.value > energy.value)} of 1 networks"
    )


def test_an_energy_is_normalised_on_the_square():
    """E = 0 has the density 1 / 16 on [-2, 2]^2."""
    model = on_the_plane(Quadratic(torch.zeros(2, 2).double()), scale=toys.SCALE)
    log_p, checks, _ = toys._of_the_energy(model, torch.zeros(3, 2).double(), 20)
    torch.testing.assert_close(log_p, torch.full_like(log_p, -math.log(16)))
    assert next(iter(checks.values())) == pytest.approx(-math.log(64))
    log_p, checks, _ = toys._of_the_flow(model, torch.zeros(3, 2).double(), 40)
    torch.testing.assert_close(log_p, torch.full_like(log_p, -math.log(2 * math.pi)))  # N(0, I) stays as it is
    assert checks["integral of the density"] == pytest.approx(1, abs=1e-3)


def test_regularisation_keeps_the_generators_loss_from_running_away():
    """Without it E of samples falls hundreds below that of data within a few epochs."""
    x = digits("train").images()[:200]
    gaps = []
    for regularisation in (0.0, None):
        torch.manual_seed(0)
        options = {"dynamics": "steps", "steps": 5, "step_size": 0.4, "width": 8, "generator_loss": True}
        model = NoiseFreeEBM((1, 8, 8), **options, regularisation=regularisation)
        history = fit(
            model, x, epochs=12, batch_size=50, progress=False, optimizer=lambda p: torch.optim.Adam(p, lr=2e-3)
        )
        gaps.append(min(row["gap"] for row in history))
    assert gaps[0] < 5 * gaps[1] - 5
