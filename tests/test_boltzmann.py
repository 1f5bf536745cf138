"""Boltzmann machines against enumeration, noise-contrastive estimation and mixtures against closed forms."""

import itertools
import math

import pytest
import torch
from sklearn import mixture
from torch import nn

from robustgen.data import digits
from robustgen.detectors import DensityRatio, Likelihood
from robustgen.generative import DBM, MAF, NCE, RBM, VAE, GaussianMixture, GenerativeObjective, RealNVP, fit, load
from robustgen.generative.energy.annealed_importance_sampling import (
    Machine,
    anneal,
    anneal_back,
    draw,
    exact_log_partition,
    of_log_weights,
)
from robustgen.training import Batch, Trainer, as_source

SHAPE = (1, 8, 8)


def states(n):
    """All (2^n, n) of zeros and ones."""
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=n)), dtype=torch.float64)


def tiny(a=4, b=3, scale=1.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    parts = (scale * torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((a, b), (a,), (b,)))
    return Machine(*parts)


def random_weights(model, scale, seed=0):
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(scale * torch.randn_like(p))
    return model.double().eval()


def images(n=24, part="train"):
    return digits(part).images()[:n].round()


# --- the machine, unit by unit -----------------------------------------------------------------------------------


def energies(m):
    """E (2^A, 2^B) from its definition, one state after the other."""
    return torch.stack(
        [
            torch.stack([-(a @ m.weight @ b) - a @ m.near - b @ m.far for b in states(len(m.far))])
            for a in states(len(m.near))
        ]
    )


@pytest.mark.parametrize(("a", "b"), [(4, 3), (3, 5)])
def test_log_z_marginals_and_conditionals_are_those_of_the_enumeration(a, b):
    m = tiny(a, b)
    joint = -energies(m)
    torch.testing.assert_close(exact_log_partition(m), joint.flatten().logsumexp(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(m.log_marginal(states(a)), joint.logsumexp(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(m.turned().log_marginal(states(b)), joint.logsumexp(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(m.far_given(states(a)), joint.softmax(1) @ states(b))
    torch.testing.assert_close(m.near_given(states(b)), joint.softmax(0).T @ states(a))


def test_sixteen_units_are_summed_in_parts_and_seventeen_refused():
    m = Machine(torch.zeros(20, 16), torch.zeros(20), torch.arange(16) / 8)
    expected = 20 * math.log(2) + nn.functional.softplus(m.far.double()).sum()
    torch.testing.assert_close(exact_log_partition(m), expected)
    with pytest.raises(ValueError, match=r"17 units have 2\^17 states: an exact sum takes 16 units at most"):
        exact_log_partition(Machine(torch.zeros(20, 17), torch.zeros(20), torch.zeros(17)))


def test_gibbs_sampling_is_in_detailed_balance_and_is_what_it_says():
    m = tiny(3, 2)
    p, every = m.log_marginal(states(3)).softmax(0), states(3)
    b_given, a_given = m.far_given(every), m.near_given(states(2))
    of_b = torch.stack([(b * b_given + (1 - b) * (1 - b_given)).prod(1) for b in states(2)], 1)
    of_a = torch.stack([(a * a_given + (1 - a) * (1 - a_given)).prod(1) for a in every], 1)
    t = of_b @ of_a
    torch.testing.assert_close(p[:, None] * t, (p[:, None] * t).T, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(p @ t, p, rtol=1e-12, atol=0)
    n, powers = 40_000, torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)
    for k in (2, 5):
        ends = m.gibbs(every[k].repeat(n, 1), 1, torch.Generator().manual_seed(k)) @ powers
        found = ends.histc(8, -0.5, 7.5) / n
        assert bool(((found - t[k]).abs() < 5 * (t[k] * (1 - t[k]) / n).sqrt() + 1e-4).all())
    torch.testing.assert_close(draw(torch.tensor([0.0, 1.0])), torch.tensor([0.0, 1.0]))


# --- annealing ---------------------------------------------------------------------------------------------------


def test_annealed_importance_sampling_finds_log_z_within_its_error():
    exact = exact_log_partition(tiny(8, 6)).item()
    for base in (torch.zeros(8), torch.linspace(-2, 2, 8)):
        weights = anneal(tiny(8, 6), base, steps=300, chains=1000, generator=torch.Generator().manual_seed(1))
        found = of_log_weights(weights)
        assert abs(found.value - exact) < 3 * found.standard_error
        assert found.standard_error < 0.1
        assert 100 < found.effective_samples < 1000


def test_weights_of_few_steps_are_right_on_average_and_their_spread_is_said():
    """One step is importance sampling from the base; an estimate's error is that of estimates made again and again."""
    m, exact = tiny(4, 3, scale=0.7), exact_log_partition(tiny(4, 3, scale=0.7)).item()
    for steps in (1, 2, 5):
        weights = anneal(m, torch.zeros(4), steps=steps, chains=100_000, generator=torch.Generator().manual_seed(2))
        assert of_log_weights(weights).value == pytest.approx(exact, abs=0.02)
        means = weights.view(1000, 100)
        spread = (means.logsumexp(1) - math.log(100)).std().item()
        said = sum(of_log_weights(part).standard_error for part in means) / 1000
        assert said == pytest.approx(spread, rel=0.15)


@pytest.mark.parametrize("steps", [1, 3, 30])
def test_reverse_annealing_of_samples_bounds_the_likelihood_from_below(steps):
    """Of exact samples E exp(-back) = 1 / Z; log weights fall short of log p on average, less with more steps."""
    m, n = tiny(4, 3), 40_000
    log_p = m.log_marginal(states(4)) - exact_log_partition(m)
    chosen = torch.multinomial(log_p.exp(), n, replacement=True, generator=torch.Generator().manual_seed(3))
    back = anneal_back(m, torch.zeros(4), states(4)[chosen], steps=steps, generator=torch.Generator().manual_seed(4))
    below = log_p[chosen] - (m.log_marginal(states(4)[chosen]) - back)
    inverse = (exact_log_partition(m) - back).exp()
    assert inverse.mean().item() == pytest.approx(1, abs=5 * inverse.std().item() / n**0.5)
    assert below.mean() > 3 * below.std() / n**0.5
    assert below.mean() < {1: 10, 3: 4, 30: 0.5}[steps]


def test_reverse_annealing_estimates_the_probability_that_annealing_ends_there():
    """p_ann(a) = sum over all paths: base, then T at 1/2 and 1; the mean weight of RAISE is exactly that."""
    m, base = tiny(2, 2), torch.tensor([0.5, -0.3], dtype=torch.float64)
    p = torch.stack([(a * base).sum() for a in states(2)]).softmax(0)
    for t in (0.5, 1.0):
        at = Machine(t * m.weight, (1 - t) * base + t * m.near, t * m.far)
        of_b = at.far_given(states(2))
        of_b = torch.stack([(b * of_b + (1 - b) * (1 - of_b)).prod(1) for b in states(2)], 1)
        of_a = at.near_given(states(2))
        of_a = torch.stack([(a * of_a + (1 - a) * (1 - of_a)).prod(1) for a in states(2)], 1)
        p = p @ of_b @ of_a
    n = 100_000
    for k, a in enumerate(states(2)):
        back = anneal_back(m, base, a.repeat(n, 1), steps=2, generator=torch.Generator().manual_seed(k))
        weights = (m.log_marginal(a[None]) - back).exp()
        assert weights.mean().item() == pytest.approx(p[k].item(), abs=5 * weights.std().item() / n**0.5)


# --- the models --------------------------------------------------------------------------------------------------


def exact_nll(model, v):
    """-log p (N,) of pixels v by summing over all states of all layers, in the plainest way."""
    sizes = [len(b) for b in model.biases]
    every = [states(n) for n in sizes]
    grids = torch.cartesian_prod(*[torch.arange(len(e)) for e in every])
    x = [e[grids[:, i]] for i, e in enumerate(every)]
    minus = sum(layer @ bias for layer, bias in zip(x, model.biases, strict=True))
    minus = minus + sum(((x[i] @ w) * x[i + 1]).sum(1) for i, w in enumerate(model.weights))
    of_v = minus.view(len(every[0]), -1).logsumexp(1)
    index = (v.flatten(1) * 2.0 ** torch.arange(sizes[0] - 1, -1, -1)).sum(1).long()
    return minus.logsumexp(0) - of_v[index]


def test_the_likelihood_of_a_restricted_machine_is_exact():
    rbm = random_weights(RBM((1, 2, 3), hidden=3), 1.0)
    x = states(6).view(-1, 1, 2, 3)
    found = rbm.log_likelihood(x, rbm.log_partition())
    torch.testing.assert_close(found, -exact_nll(rbm, x), rtol=1e-10, atol=1e-10)
    assert found.exp().sum().item() == pytest.approx(1)
    torch.testing.assert_close(rbm.free_energy(x), -rbm.log_prob(x))


@pytest.mark.parametrize("hidden", [[2, 3], [2, 2, 2], [1, 2, 1, 2]])
def test_a_deep_machine_has_the_two_sides_of_a_restricted_one_and_a_bound_below_its_likelihood(hidden):
    dbm = random_weights(DBM((1, 2, 2), hidden=hidden, mean_field_steps=60), 0.8)
    x = states(4).view(-1, 1, 2, 2)
    exact, bound = -exact_nll(dbm, x), dbm.log_likelihood(x, dbm.log_partition())
    assert bool((bound <= exact + 1e-9).all())
    assert 1e-4 < (exact - bound).mean() < 0.3
    ais = dbm.log_partition("ais", steps=200, chains=1000, generator=torch.Generator().manual_seed(0))
    assert abs(ais.value - dbm.log_partition().value) < 3 * ais.standard_error
    flat = random_weights(DBM((1, 2, 2), hidden=hidden), 0.0)
    torch.testing.assert_close(flat.log_likelihood(x, flat.log_partition()), -exact_nll(flat, x))


def test_mean_field_is_at_a_maximum_of_the_bound():
    dbm = random_weights(DBM((1, 2, 2), hidden=[2, 3], mean_field_steps=100), 0.8)
    v, machine = states(4), dbm.machine.detach()
    hidden = dbm._mean_field(machine, v).requires_grad_()
    entropy = torch.special.entr(hidden) + torch.special.entr(1 - hidden)
    bound = machine.log_marginal(torch.cat([v, hidden], 1)) + entropy.sum(1)
    torch.testing.assert_close(bound, -dbm._free_energy(machine, v))
    (gradient,) = torch.autograd.grad(bound.sum(), hidden)
    assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize("options", [{"method": "cd", "k": 200}, {"method": "pcd", "k": 200, "chains": 20_000}])
def test_the_gradient_with_long_chains_is_that_of_the_likelihood(options):
    rbm = random_weights(RBM((1, 2, 2), hidden=3, **options), 0.7)
    x = states(4)[torch.randint(16, (20_000,)) * torch.randint(2, (20_000,))].view(-1, 1, 2, 2)
    rbm.training_step(Batch(x, None, torch.arange(len(x))), 0)["loss"].backward()
    found = [p.grad.clone() for p in rbm.parameters()]
    exact = torch.autograd.grad(exact_nll(rbm, x).mean(), list(rbm.parameters()))
    assert max(g.abs().max() for g in exact) > 0.1
    for ours, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02)


def test_one_step_from_the_data_is_contrastive_divergence():
    """<v h> of the data less <v h> after one step, h by its mean: the formula, from the same chain."""
    rbm = random_weights(RBM((1, 2, 2), hidden=3, method="cd"), 0.7)
    v = states(4)
    torch.manual_seed(7)
    after = rbm.machine.gibbs(v, 1)
    torch.manual_seed(7)
    rbm.training_step(Batch(v.view(-1, 1, 2, 2), None, torch.arange(16)), 0)["loss"].backward()
    m = rbm.machine.detach()
    expected = (after.T @ m.far_given(after) - v.T @ m.far_given(v)) / 16
    torch.testing.assert_close(rbm.weights[0].grad, expected)
    torch.testing.assert_close(rbm.biases[0].grad, after.mean(0) - v.mean(0))


def test_a_deep_machine_learns_by_the_gradient_of_its_bound():
    """Against finite differences of bound less exact log Z, with so many chains that they stand for the model."""
    dbm = random_weights(DBM((1, 2, 2), hidden=[2, 2], mean_field_steps=60, k=100, chains=40_000), 0.7)
    x = states(4)[[3, 5, 5, 12]].view(-1, 1, 2, 2)
    dbm.training_step(Batch(x, None, torch.arange(4)), 0)["loss"].backward()
    for p in dbm.parameters():
        for index in ((0,) * p.ndim, (-1,) * p.ndim):
            values = []
            for step in (1e-5, -2e-5):
                p.data[index] += step
                values.append(-dbm.log_likelihood(x, dbm.log_partition()).mean().item())
            p.data[index] += 1e-5
            assert p.grad[index].item() == pytest.approx((values[0] - values[1]) / 2e-5, abs=0.015)


def test_samples_are_those_of_the_machine():
    rbm = random_weights(RBM((1, 2, 2), hidden=2, sample_steps=30), 1.0)
    x = rbm.sample(40_000, torch.Generator().manual_seed(0)).flatten(1)
    found = (x @ torch.tensor([8.0, 4, 2, 1]).double()).histc(16, -0.5, 15.5) / 40_000
    exact = (-exact_nll(rbm, states(4).view(-1, 1, 2, 2))).exp()
    assert (found - exact).abs().max() < 0.012


def test_raise_through_the_models():
    rbm = random_weights(RBM((1, 2, 3), hidden=4, sample_steps=50), 1.2)
    x = rbm.sample(2000, torch.Generator().manual_seed(0))
    exact = rbm.log_likelihood(x, rbm.log_partition())
    options = {"steps": 20, "chains": 5, "generator": torch.Generator().manual_seed(1)}
    below = exact - rbm.raise_log_likelihood(x, **options)
    assert 0 < below.mean() < 0.2
    high = rbm.log_partition("raise", data=x, **options)
    assert high.value - rbm.log_partition().value == pytest.approx(below.mean().item(), abs=4 * high.standard_error)
    dbm = random_weights(DBM((1, 2, 2), hidden=[2, 3], sample_steps=50), 0.8)
    x = dbm.sample(2000, torch.Generator().manual_seed(0))
    below = -exact_nll(dbm, x) - dbm.raise_log_likelihood(x, steps=50, chains=20)
    assert 0 < below.mean() < 0.1


def test_annealing_starts_from_how_often_pixels_are_on():
    x = images(200)
    rbm = RBM(SHAPE, hidden=4, quantization="nearest")
    rbm.fit_without_gradients(as_source(x))
    torch.testing.assert_close(rbm.odds.sigmoid(), (x.flatten(1).sum(0) + 1) / 202)
    with torch.no_grad():
        rbm.biases[0].copy_(rbm.odds)
        rbm.weights[0].zero_()
    one = rbm.log_partition("ais", steps=1, chains=2)  # the base-rate machine itself
    assert one.standard_error == pytest.approx(0, abs=1e-12)
    assert one.value == pytest.approx(rbm.log_partition().value)


def test_it_learns_digits():
    test, optimizer = images(300, "test"), lambda p: torch.optim.SGD(p, lr=0.2)
    for make in (
        lambda: RBM(SHAPE, hidden=12, quantization="nearest"),
        lambda: DBM(SHAPE, hidden=[12, 8], quantization="nearest"),
    ):
        torch.manual_seed(0)
        model, found = make(), []
        for epochs in (1, 6):
            fit(model, digits("train"), epochs=epochs, batch_size=20, optimizer=optimizer, progress=False)
            found.append(model.log_likelihood(test, model.log_partition()).mean().item())
        assert found[1] > found[0] > -64 * math.log(2)
        assert found[1] > -23.5  # the pixels alone: -25.3
        noise = torch.rand(300, *SHAPE).round()
        assert (model.log_prob(test)[:, None] > model.log_prob(noise)[None]).float().mean() > 0.95


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
        lambda: RBM(SHAPE, hidden=5, chains=10, quantization="stochastic"),
        lambda: DBM(SHAPE, hidden=[5, 4], chains=10, quantization="nearest"),
        lambda: NCE(SHAPE, width=4),
    ],
)
def test_a_killed_training_resumes_bitwise(make, tmp_path):
    def run(stop=None, **where):
        torch.manual_seed(5)
        model, x = make(), digits("train").images()[:24]
        trainer = Trainer(
            Stopping(stop), optimizer=model.optimizer, epochs=3, batch_size=6, ema=0.9, progress=False, **where
        )
        return model, trainer.fit(model, x, x[:8])

    whole, history = run()
    with pytest.raises(KeyboardInterrupt):
        run(stop=7, run_dir=tmp_path, checkpoint_every=5)
    resumed, again = run(run_dir=tmp_path, checkpoint_every=5, resume=True)
    assert history == again
    state = resumed.state_dict()
    assert ("near" in state) == (not isinstance(whole, NCE))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_chains_go_on_in_training_alone():
    rbm = RBM(SHAPE, hidden=5, chains=10, quantization="nearest")
    batch, before = Batch(images(), None, torch.arange(24)), rbm.near.clone()
    rbm.eval().validation_step(batch, 0)
    assert torch.equal(rbm.near, before)
    rbm.train().training_step(batch, 0)
    assert not torch.equal(rbm.near, before)
    assert rbm.near.unique().tolist() == [0, 1]
    assert "near" not in RBM(SHAPE, hidden=5, method="cd").state_dict()


def test_pseudo_likelihood_is_that_of_a_pixel_given_the_others():
    rbm = random_weights(RBM((1, 1, 3), hidden=2, quantization="nearest"), 1.0)
    log_p = -exact_nll(rbm, states(3).view(-1, 1, 1, 3))
    v = states(3)[[6]]  # 1, 1, 0
    others = torch.tensor([2, 4, 7])  # a pixel flipped
    expected = -(log_p[6] - torch.stack([log_p[6].expand(3), log_p[others]]).logsumexp(0)).sum()
    batch = Batch(v.repeat(20_000, 1).view(-1, 1, 1, 3), None, torch.arange(20_000))
    assert rbm.validation_step(batch, 0)["pseudo_nll"].item() == pytest.approx(expected.item(), rel=0.03)


def test_bad_arguments_of_machines_are_one_line():
    for make, match in (
        (lambda: RBM(SHAPE, method="pc"), "unknown method 'pc'; did you mean 'pcd'"),
        (lambda: RBM(SHAPE, hidden=0), "hidden must be at least 1, got 0"),
        (lambda: RBM(SHAPE, quantization="no"), "quantization must be None, 'nearest' or 'stochastic'"),
        (lambda: DBM(SHAPE, hidden=[4]), r"hidden must be the units of two layers or more"),
        (lambda: DBM(SHAPE, hidden=[4, 0]), "hidden must be at least 1, got 0"),
        (lambda: RBM(SHAPE).log_partition(), r"64 units|128 units|2\^64"),
        (lambda: RBM(SHAPE).log_partition("ess"), "method must be one of exact, ais, raise, got 'ess'"),
        (lambda: RBM(SHAPE).log_partition("raise"), "method='raise' goes back from images: pass data"),
        (lambda: RBM(SHAPE).log_partition("ais", data=images()), "pass data, and to no other method"),
        (lambda: RBM(SHAPE).log_partition("raise", data=images(1)), "needs at least two images, got 1"),
        (lambda: RBM(SHAPE).log_partition("ais", chains=1), "chains must be at least 2, got 1"),
        (lambda: RBM(SHAPE).log_partition("ais", steps=0), "steps must be at least 1, got 0"),
        (lambda: RBM(SHAPE).log_prob(torch.full((1, *SHAPE), 0.5)), "binary images are needed"),
    ):
        with pytest.raises(ValueError, match=match) as raised:
            make()
        assert "\n" not in str(raised.value)


# --- noise-contrastive estimation ----------------------------------------------------------------------------------


class Quadratic(nn.Module):
    """f = (x - m)^2 / 2 s^2, of one pixel."""

    def __init__(self, m=0.5, s=0.2):
        super().__init__()
        self.m, self.log_s = nn.Parameter(torch.tensor(m)), nn.Parameter(torch.tensor(s).log())

    def forward(self, x):
        return ((x.flatten(1) - self.m) / self.log_s.exp()).square().sum(1) / 2


def fitted_pixel(m=0.4, s=0.15, **options):
    """An NCE of one pixel with a Gaussian for its energy, trained on N(m, s^2)."""
    torch.manual_seed(0)
    nce = NCE((1, 1, 1), width=2, architecture="mlp", layers=1, **options)
    nce.network = Quadratic()
    x = (m + s * torch.randn(20_000, 1, 1, 1)).clamp(0, 1)
    optimizer = lambda p: torch.optim.Adam(p, lr=3e-2)
    fit(nce, x, epochs=8, batch_size=500, optimizer=optimizer, schedule=_down, progress=False)
    return nce, x


def _down(progress):
    return 1 - progress


@pytest.mark.parametrize("options", [{"noise": "gaussian"}, {"noise": "uniform"}, {"noise_samples": 5}])
def test_the_learned_constant_is_log_z(options):
    nce, x = fitted_pixel(**options)
    s = nce.network.log_s.exp().item()
    assert nce.network.m.item() == pytest.approx(x.mean().item(), abs=0.01)
    assert s == pytest.approx(0.15, abs=0.01)
    assert nce.log_z.item() == pytest.approx(math.log(s * math.sqrt(2 * math.pi)), abs=0.04)
    grid = torch.linspace(-1, 2, 3001).view(-1, 1, 1, 1) if options.get("noise") != "uniform" else None
    if grid is not None:
        assert (nce._log_prob(grid).exp().sum() * 0.001).item() == pytest.approx(1, abs=0.04)


def test_the_loss_is_the_cross_entropy_of_data_and_noise():
    """At p = data the logit is log p - log q - log nu, and the constant of p is a minimum of the expected loss."""
    nce = NCE((1, 1, 1), noise="uniform", noise_samples=2, width=2, architecture="mlp", layers=1).double()
    nce.network = nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.Flatten(0)).double()  # f = w x + b
    with torch.no_grad():
        nce.network[1].weight.fill_(3.0)
        nce.network[1].bias.zero_()
        nce.log_z.fill_(math.log((1 - math.exp(-3)) / 3))
    torch.manual_seed(0)
    u = torch.rand(200_000, 1, 1, 1, dtype=torch.float64)
    x = -torch.log1p(u * (math.exp(-3) - 1)) / 3  # of p ~ exp(-3 x) on [0, 1]
    nce.training_step(Batch(x, None, torch.arange(len(x))), 0)["loss"].backward()
    assert abs(nce.log_z.grad.item()) < 0.005
    assert abs(nce.network[1].weight.grad.item()) < 0.005


def test_a_flow_as_the_noise_stays_as_it_is_and_is_saved_along(tmp_path):
    torch.manual_seed(0)
    flow = RealNVP(SHAPE, dequantization="none", width=4, scales=1)
    x = digits("train").images()[:64]
    fit(flow, x, epochs=1, batch_size=32, progress=False)
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    nce = NCE(SHAPE, base=flow, width=4)
    fit(nce, x, epochs=2, batch_size=32, run_dir=tmp_path, progress=False)
    for name, value in flow.state_dict().items():
        assert torch.equal(value, before[name])
        assert torch.equal(value, nce.base.state_dict()[name])
    again = load(tmp_path)
    torch.testing.assert_close(again.log_ratio(x), nce.log_prob(x) - flow.log_prob(x))
    assert not any(p.requires_grad for p in again.base.parameters())
    assert again.config == nce.config


def test_noise_off_the_cube_has_the_density_of_the_flow_there():
    """Of noise eps, log q(x) = log N(eps) less the log determinant of the way to x: on [0, 1] and beyond it."""
    torch.manual_seed(0)
    flow = MAF((2, 1, 1), dequantization="none", width=4, layers=1, alpha=0.1).double()
    nce = NCE((2, 1, 1), base=flow, architecture="mlp", width=4).double()
    eps = 2.5 * torch.randn(200, 2, 1, 1, dtype=torch.float64)
    x = flow.from_noise(eps)
    assert 20 < int(((x < 0) | (x > 1)).flatten(1).any(1).sum()) < 180
    way = lambda e: flow.from_noise(e.view(1, 2, 1, 1)).flatten()
    log_det = torch.stack([torch.autograd.functional.jacobian(way, e).det().abs().log() for e in eps.view(-1, 2)])
    expected = -eps.square().flatten(1).sum(1) / 2 - math.log(2 * math.pi) - log_det
    torch.testing.assert_close(nce._log_noise(x), expected)
    nce.float()
    assert nce._log_noise(nce.base.from_noise(torch.full((1, 2, 1, 1), 80.0))).isfinite()  # rounded to the very end


def test_resampled_noise_has_the_moments_of_the_model():
    nce, _ = fitted_pixel()
    with torch.no_grad():
        nce.network.m.fill_(0.45)
        nce.network.log_s.fill_(math.log(0.1))
    x = nce.resample(20_000, 20_000, torch.Generator().manual_seed(0))
    assert x.mean().item() == pytest.approx(0.45, abs=0.005)
    assert x.std().item() == pytest.approx(0.1, abs=0.005)
    assert nce._draw(20_000, torch.Generator().manual_seed(0)).std().item() == pytest.approx(0.18, abs=0.02)
    assert nce.sample(50, torch.Generator().manual_seed(0)).unique().numel() > 20


def test_it_tells_digits_from_what_is_none_and_rejects_at_a_quantile():
    torch.manual_seed(0)
    nce, train = NCE(SHAPE, width=8, noise="uniform"), digits("train")
    fit(nce, train.first(1000), epochs=8, batch_size=50, progress=False)
    test, noise = digits("test").images()[:200], torch.rand(200, *SHAPE)
    for detector in (DensityRatio(nce), Likelihood(nce)):
        detector.fit(train.first(300)).calibrate(digits("test").images()[200:400])
        assert detector.flag(test, fpr=0.05).float().mean() < 0.12
        assert detector.flag(noise, fpr=0.05).float().mean() > 0.9
    torch.testing.assert_close(DensityRatio(nce).fit(test).score(test), -nce.log_ratio(test))
    with pytest.raises(TypeError, match="DensityRatio needs a ratio of densities, VAE has no log_ratio"):
        DensityRatio(VAE(SHAPE, width=4))


def test_bad_arguments_of_noise_are_one_line():
    flow = RealNVP(SHAPE, dequantization="none", width=4)
    for options, error, match in (
        ({"noise": "normal"}, ValueError, "noise must be one of gaussian, uniform, base, got 'normal'"),
        ({"noise": "base"}, ValueError, "noise='base' needs a base and no other noise takes one"),
        ({"noise": "uniform", "base": flow}, ValueError, "noise='base' needs a base and no other noise takes one"),
        ({"base": RealNVP(SHAPE, width=4)}, ValueError, "noise needs an exact density .*: RealNVP's is lower_bound"),
        ({"base": RealNVP((1, 4, 4), dequantization="none", width=4)}, ValueError, r"base is of images \(1, 4, 4\)"),
        ({"base": nn.Linear(2, 2)}, TypeError, "base must be a generative model, got Linear"),
        ({"noise_samples": 0}, ValueError, "noise_samples must be at least 1"),
        ({"proposals": 0}, ValueError, "proposals must be at least 1"),
    ):
        with pytest.raises(error, match=match) as raised:
            NCE(SHAPE, **options)
        assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="proposals must be at least 1, got 0"):
        NCE(SHAPE, width=4).resample(3, 0)


# --- mixtures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_a_mixture_of_pixels_is_that_of_scikit_learn(covariance):
    x = digits("train").images()[:300].double()
    model = GaussianMixture(SHAPE, components=3, covariance=covariance, floor=0.05).double()
    fit(model, x, x[:20], epochs=2, batch_size=100, ema=0.9, progress=False)
    points = x.flatten(1)
    theirs = mixture.GaussianMixture(3, covariance_type=covariance, random_state=0, reg_covar=0.05**2)
    theirs.fit((points - points.mean(0)).numpy())
    expected = torch.from_numpy(theirs.score_samples((points - points.mean(0)).numpy()))
    torch.testing.assert_close(model.log_prob(x).detach(), expected, rtol=1e-6, atol=1e-4)
    assert bool((model.shift == 0).all())
    drawn = model.from_noise(torch.randn(20_000, 65, dtype=torch.float64)).flatten(1).detach()
    torch.testing.assert_close(drawn.mean(0), points.mean(0), rtol=0, atol=0.02)
    torch.testing.assert_close(drawn.var(0), points.var(0, correction=0) + 0.05**2, rtol=0.1, atol=2e-3)


def test_the_density_of_a_mixture_has_an_integral_of_one_and_a_gradient():
    torch.manual_seed(0)
    model = GaussianMixture((1, 1, 1), components=3, floor=0.02).double()
    fit(model, torch.rand(200, 1, 1, 1).square(), epochs=1, batch_size=50, progress=False)
    grid = torch.linspace(-1, 2, 30_001, dtype=torch.float64).view(-1, 1, 1, 1)
    assert (model._log_prob(grid).exp().sum() * 1e-4).item() == pytest.approx(1, abs=1e-6)
    x = torch.rand(4, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model.log_prob, x)


def test_bad_arguments_of_mixtures_are_one_line(tmp_path):
    for options, match in (
        ({"covariance": "tied"}, "covariance must be one of full, diag, got 'tied'"),
        ({"components": 0}, "components must be at least 1"),
        ({"floor": 0.0}, "floor must be a finite number > 0"),
    ):
        with pytest.raises(ValueError, match=match):
            GaussianMixture(SHAPE, **options)
    with pytest.raises(ValueError, match="components=30 Gaussians need as many points, got 20: take fewer"):
        fit(GaussianMixture(SHAPE, components=30), images(20), run_dir=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
