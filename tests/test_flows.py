"""Flows: what goes to noise comes back, log determinants are autograd's, densities integrate to one."""

import itertools
import math

import pytest
import torch
from torch import nn

from robustgen.data import digits
from robustgen.generative import RealNVP, fit, load
from robustgen.generative.blocks.gaussian import gaussian_log_prob
from robustgen.generative.flows.base import Logit, VariationalNoise
from robustgen.generative.flows.coupling import (
    Coupling,
    MaskedCoupling,
    Permutation,
    checkerboard,
    coupling_density,
)
from robustgen.generative.flows.glow import Glow, InvertibleConv
from robustgen.generative.flows.transform import ActNorm, Chain, MultiScale, Squeeze, squeezed_shapes, start
from robustgen.training import Batch

# Each transform with the shape of one input.
TRANSFORMS = {
    "logit": (lambda: Logit(1e-6), (3,)),
    "permutation": (lambda: Permutation([2, 0, 1]), (3,)),
    "squeeze": (Squeeze, (1, 4, 2)),
    "scales": (lambda: MultiScale([Squeeze(), Squeeze()], squeezed_shapes((1, 4, 4), 2)), (1, 4, 4)),
    "actnorm of vectors": (lambda: ActNorm(3), (3,)),
    "actnorm of maps": (lambda: ActNorm(2), (2, 2, 3)),
    "invertible convolution": (lambda: InvertibleConv(4), (4, 2, 2)),
    "coupling of vectors": (lambda: Coupling(nn.Linear(2, 6), kept=2), (5,)),
    "additive coupling": (lambda: Coupling(nn.Linear(2, 3), kept=2, additive=True), (5,)),
    "coupling of channels": (lambda: Coupling(nn.Conv2d(1, 4, 3, padding=1), kept=1), (3, 2, 2)),
    "checkerboard": (lambda: MaskedCoupling(nn.Conv2d(1, 2, 3, padding=1), checkerboard(3, 3)), (1, 3, 3)),
    "additive checkerboard": (
        lambda: MaskedCoupling(nn.Conv2d(2, 2, 3, padding=1), checkerboard(2, 2, first=0), additive=True),
        (2, 2, 2),
    ),
    "density of couplings": (lambda: coupling_density(5, blocks=4, width=8).transform, (5,)),
}
# Densities of two numbers.
DENSITIES = {"couplings": lambda: coupling_density(2, width=16)}
# Each model of images.
FLOWS = {
    "RealNVP": lambda shape, **kw: RealNVP(shape, **{"scales": 1, "width": 4} | kw),
    "Glow": lambda shape, **kw: Glow(shape, **{"scales": 1, "flow_steps": 2, "width": 4} | kw),
    "additive Glow": lambda shape, **kw: Glow(
        shape, **{"scales": 1, "flow_steps": 2, "width": 4, "coupling": "additive", "alpha": None} | kw
    ),
}
every_flow = pytest.mark.parametrize("make", FLOWS.values(), ids=FLOWS)


def stirred(module, scale=0.2):
    """In float64, with other weights than at the start, where most layers do nothing."""
    torch.manual_seed(3)
    module.double().eval()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(scale * torch.randn_like(p))
    return module


def check_transform(transform, x):
    """Inverse and log determinant of single inputs x (N, ...) against what autograd says."""
    y, log_det = transform(x)
    torch.testing.assert_close(transform.inverse(y), x, rtol=0, atol=1e-10)
    jacobians = [torch.autograd.functional.jacobian(lambda v: transform(v[None])[0].flatten(), one) for one in x]
    expected = torch.stack([jacobian.flatten(1).slogdet().logabsdet for jacobian in jacobians])
    assert log_det.shape == (len(x),)
    torch.testing.assert_close(log_det, expected, rtol=1e-10, atol=1e-10)
    transform.float()
    torch.testing.assert_close(transform.inverse(transform(x.float())[0]), x.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_has_its_inverse_and_its_determinant(name):
    make, shape = TRANSFORMS[name]
    check_transform(stirred(make()), torch.rand(4, *shape, dtype=torch.float64))


@every_flow
@pytest.mark.parametrize(("shape", "scales"), [((1, 4, 4), 2), ((3, 2, 6), 1)])
def test_images_go_to_noise_and_back(make, shape, scales):
    model = stirred(make(shape, scales=scales), 0.1)
    x = torch.rand(3, *shape, dtype=torch.float64)
    check_transform(model.transform, x)
    model.double()
    eps, log_det = model.to_noise(x)
    assert eps.shape == (3, *model.noise_shape)
    torch.testing.assert_close(model.from_noise(eps), x, rtol=0, atol=1e-10)
    found = make(shape, scales=scales, dequantization="none").double().eval()
    found.load_state_dict(model.state_dict())
    assert found.log_prob_kind == "exact"
    torch.testing.assert_close(found.log_prob(x), gaussian_log_prob(eps).sum(1) + log_det)
    noise = torch.randn(2, *model.noise_shape, dtype=torch.float64, requires_grad=True)
    assert bool((torch.autograd.grad(model.from_noise(noise).sum(), noise)[0] != 0).any(1).all())


@pytest.mark.parametrize("make", DENSITIES.values(), ids=DENSITIES)
def test_a_density_of_the_plane_integrates_to_one(make):
    density, side = stirred(make()), torch.linspace(-12, 12, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        p = density.log_prob(grid).exp()
        away = (p.sum() * (side[1] - side[0]) ** 2 - 1).abs()
        assert float((p - gaussian_log_prob(grid).sum(1).exp()).abs().max()) > 0.01  # it is not that of the noise
    assert float(away) < 1e-3


@pytest.mark.parametrize("dim", [2, 3, 5, 8])
def test_two_couplings_change_every_number_and_four_make_each_depend_on_all(dim):
    x = torch.rand(4, dim, dtype=torch.float64)
    two, _ = stirred(coupling_density(dim, blocks=2, width=8)).to_noise(x)
    assert not bool(torch.isclose(two[:, :, None], x[:, None, :], rtol=0, atol=1e-9).any())
    four = stirred(coupling_density(dim, blocks=4, width=32))
    jacobian = torch.autograd.functional.jacobian(lambda v: four.to_noise(v)[0].sum(0), x)
    assert bool((jacobian.abs() > 1e-9).any(1).all())


def test_inputs_unlike_any_seen_do_not_overflow():
    coupling = stirred(Coupling(nn.Linear(2, 6), kept=2)).float()
    x = torch.full((1, 5), 1e6)
    y, log_det = coupling(x)
    assert 0 < float(log_det.detach().abs()) <= 6.0001
    torch.testing.assert_close(coupling.inverse(y), x)


def test_the_logit_keeps_its_digits_at_both_ends():
    x = torch.tensor([[0.0], [1e-7], [1.0], [1 - 2.0**-23]])
    y, log_det = Logit(1e-6)(x)
    exact, exact_det = Logit(1e-6)(x.double())
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(log_det.double(), exact_det, rtol=1e-5, atol=0)
    for alpha in (0.0, 0.5):
        with pytest.raises(ValueError, match=r"alpha must lie in \(0, 0.5\)"):
            Logit(alpha)


def test_the_kernel_of_a_convolution_is_a_rotation_at_first_and_its_determinant_is_that_of_the_diagonal():
    conv = InvertibleConv(6).double()
    kernel = conv.kernel().detach()
    torch.testing.assert_close(kernel @ kernel.T, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-6)
    assert float((kernel - torch.eye(6)).abs().max()) > 0.1
    conv = stirred(conv)
    _, log_det = conv(torch.rand(1, 6, 3, 5, dtype=torch.float64))
    torch.testing.assert_close(log_det[0], 15 * conv.kernel().slogdet().logabsdet)
    assert float(log_det.detach().abs()) > 0.1


def test_a_singular_kernel_is_refused():
    model = FLOWS["Glow"]((1, 4, 4)).eval()
    convs = [layer for layer in model.modules() if isinstance(layer, InvertibleConv)]
    with torch.no_grad():
        convs[1].log_diagonal[2] = -200.0
    for call in (lambda: model.sample(2), lambda: model.log_prob(torch.zeros(1, 1, 4, 4))):
        with pytest.raises(ValueError, match="kernel of an invertible 1 x 1 convolution is singular") as raised:
            call()
        assert "\n" not in str(raised.value)


def test_an_actnorm_starts_with_what_it_is_given_once():
    layer, x = ActNorm(3), torch.randn(50, 3, 2, 2) * torch.tensor([1.0, 2.0, 0.0]).view(3, 1, 1) + 5
    torch.testing.assert_close(layer(x)[0], x, rtol=0, atol=0)
    chain = Chain(layer, stirred(InvertibleConv(3)).float(), ActNorm(3))
    start(chain, x)
    for y in (layer(x)[0], chain(x)[0]):
        moments = y.transpose(0, 1).flatten(1)
        torch.testing.assert_close(moments.mean(1), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(layer(x)[0].transpose(0, 1).flatten(1).std(1, correction=0), torch.tensor([1.0, 1, 0]))
    torch.testing.assert_close(moments.std(1, correction=0), torch.ones(3))
    before = {name: value.clone() for name, value in chain.state_dict().items()}
    start(chain, x + 1)
    assert all(bool((chain.state_dict()[name] == value).all()) for name, value in before.items())


def actnorms(model):
    return [layer for layer in model.modules() if isinstance(layer, ActNorm)]


@pytest.mark.parametrize("make", [FLOWS["RealNVP"], FLOWS["Glow"]])
def test_training_begins_with_the_start_and_scores_never_do(make, tmp_path):
    torch.manual_seed(0)
    model, x = make((1, 4, 4), levels=17).train(), digits("train").images()[:32, :, 2:6, 2:6].float()
    model.log_prob(x)
    model.sample(1)
    model.to_noise(x)
    assert not any(layer.initialized for layer in actnorms(model))
    seen = {}
    hooks = [
        layer.register_forward_hook(lambda layer, given, found: seen.__setitem__(layer, found[0].detach()))
        for layer in actnorms(model)
    ]
    model.training_step(Batch(x, None, torch.arange(32)), 0)
    assert all(layer.initialized for layer in actnorms(model))
    for y in (seen[layer] for layer in actnorms(model)):
        channels = y.transpose(0, 1).flatten(1)
        torch.testing.assert_close(channels.mean(1), torch.zeros(len(channels)), rtol=0, atol=1e-4)
        torch.testing.assert_close(channels.std(1, correction=0), torch.ones(len(channels)), rtol=1e-4, atol=0)
    for hook in hooks:
        hook.remove()
    model.save(tmp_path / "saved")
    again = load(tmp_path / "saved").train()
    kept = again.state_dict()
    assert all(bool((kept[name] == value).all()) for name, value in model.state_dict().items())
    again.training_step(Batch(x.flip(3), None, torch.arange(32)), 0)
    assert all(bool((again.state_dict()[name] == value).all()) for name, value in model.state_dict().items())


def test_a_run_that_was_killed_before_its_first_step_starts_as_it_would_have(tmp_path):
    x, states = digits("train").x[:32], []

    def killed(model, rows):
        raise KeyboardInterrupt

    for run in ("whole", "killed"):
        torch.manual_seed(0)
        model = FLOWS["Glow"]((1, 8, 8), levels=17)
        options = {"epochs": 1, "batch_size": 16, "run_dir": tmp_path / run, "resume": True, "progress": False}
        if run == "killed":  # the same object goes on from the checkpoint of step 0
            with pytest.raises(KeyboardInterrupt):
                fit(model, x, after_epoch=killed, checkpoint_every=100, **options)
            assert all(layer.initialized for layer in actnorms(model))
        fit(model, x, **options)
        states.append(model.state_dict())
    assert all(bool((value == states[1][name]).all()) for name, value in states[0].items())


@every_flow
@pytest.mark.parametrize("dequantization", ["uniform", "variational"])
def test_probabilities_of_all_images_add_up_to_one_and_their_bounds_to_less(make, dequantization):
    """E_q p(x + u) / q(u | x) is the probability of the image, the exponential of E_q log is a bound."""
    model = stirred(make((1, 2, 2), levels=2, dequantization=dequantization, alpha=0.05), 0.1)
    x = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)), dtype=torch.float64).view(-1, 1, 2, 2)
    with torch.no_grad():
        many, log_q = model._spread(x.repeat(1000, 1, 1, 1), fresh=True)
        nats = (model._density(many) - log_q).view(1000, 16)
        points = model.from_noise(torch.randn(4000, *model.noise_shape, dtype=torch.float64)).flatten(1)
    inside = ((points >= 0) & (points <= 1)).all(1).double()  # the rest of the mass is of no image
    probabilities, bounds = nats.exp().mean(0), nats.mean(0).exp()
    error = float((nats.exp().var(0).sum() / len(nats) + inside.var() / len(inside)).sqrt())
    assert error < 0.04
    assert float(probabilities.sum()) == pytest.approx(float(inside.mean()), abs=4 * error)
    assert float(inside.mean()) > 0.5
    assert bool((bounds <= probabilities).all())
    assert 0.1 < float(bounds.sum()) < 1
    assert model.log_prob_kind == "lower_bound"
    off = x + 0.2 * (1 - 2 * x)
    for call in (lambda: model.log_prob(off), lambda: model.training_step(Batch(off, None, torch.arange(16)), 0)):
        with pytest.raises(ValueError, match="say how to binarise them"):
            call()


def test_variational_noise_has_the_density_that_it_says():
    noise = stirred(VariationalNoise((1, 2, 2)))
    x, eps = torch.rand(3, 1, 2, 2, dtype=torch.float64), torch.randn(3, 1, 2, 2, dtype=torch.float64)
    u, log_q = noise(x, eps)
    assert bool(((u > 0) & (u < 1)).all())
    assert bool((noise(1 - x, eps)[0] != u).all())
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda e, i=i: noise(x[i : i + 1], e[None])[0].flatten(), eps[i])
        expected = gaussian_log_prob(eps[i]).sum() - jacobian.flatten(1).slogdet().logabsdet
        torch.testing.assert_close(log_q[i], expected)


@every_flow
@pytest.mark.parametrize("dequantization", ["uniform", "variational"])
def test_training_lowers_the_bits_of_a_dimension(make, dequantization):
    model = make((1, 8, 8), levels=17, dequantization=dequantization)
    x = digits("train").images()[:64].float()
    history = fit(model, x, x, epochs=4, batch_size=16, progress=False)
    for name in ("bits_per_dim", "val_bits_per_dim"):
        assert history[-1][name] < history[0][name]
    bits = -model.log_prob(x).mean() / (64 * math.log(2))
    assert history[-1]["val_bits_per_dim"] == pytest.approx(bits.item(), rel=1e-5)


@every_flow
def test_images_a_rounding_step_outside_are_of_finite_noise(make):
    model = make((1, 4, 4), dequantization="none", alpha=1e-7).eval()
    x = torch.tensor([-1e-6, 1 + 9e-7]).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    for found in (*model.to_noise(x), model.log_prob(x)):
        assert bool(found.isfinite().all())


@every_flow
def test_autocast_changes_a_step_little(make):
    model, x = make((1, 8, 8), levels=17), digits("train").images()[:8].float()
    model.training_step(Batch(x, None, torch.arange(8)), 0)
    model = stirred(model, 0.02).float().train()
    losses = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses.append(model.training_step(Batch(x, None, torch.arange(8)), 1)["loss"].item())
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


@every_flow
def test_sides_that_cannot_be_halved_so_often_are_refused(make):
    for shape, scales, message in (
        ((1, 28, 28), 3, r"images of 28 x 28 cannot be halved scales=3 times, 2 at most: pad them, or take fewer"),
        ((3, 8, 6), 2, r"images of 8 x 6 cannot be halved scales=2 times, 1 at most"),
        ((1, 7, 8), 1, r"images of 7 x 8 cannot be halved scales=1 times, 0 at most: pad them$"),
    ):
        with pytest.raises(ValueError, match=message):
            make(shape, scales=scales)


@every_flow
def test_no_images_have_no_noise_and_noise_of_another_shape_is_refused(make):
    model = make((1, 4, 4)).eval()
    eps, log_det = model.to_noise(torch.zeros(0, 1, 4, 4))
    assert (eps.shape, log_det.shape, model.from_noise(eps).shape) == ((0, 16), (0,), (0, 1, 4, 4))
    with pytest.raises(ValueError, match=rf"noise of this {type(model).__name__} is \(N, 16\), got \(2, 15\)"):
        model.from_noise(torch.zeros(2, 15))


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown coupling 'affin'; did you mean 'affine'"):
        Glow((1, 8, 8), coupling="affin")
    with pytest.raises(ValueError, match="dequantization must be one of none, uniform, variational, got 'gaussian'"):
        Glow((1, 8, 8), dequantization="gaussian")
    with pytest.raises(ValueError, match="leave quantization out"):
        RealNVP((1, 8, 8), dequantization="none", quantization="nearest")
    with pytest.raises(ValueError, match="dim must be at least 2"):
        coupling_density(1)
    with pytest.raises(ValueError, match="levels must be at least 2"):
        RealNVP((1, 8, 8), levels=1, dequantization="none")


class _Collapsing(torch.optim.SGD):
    """Whose second step makes a 1 x 1 convolution singular."""

    steps = 0

    def step(self, *args):
        self.steps += 1
        super().step(*args)
        if self.steps == 2:
            with torch.no_grad():
                self.collapsing[0] = -200.0


@pytest.mark.parametrize("n", [8, 12])
def test_a_kernel_that_training_makes_singular_ends_it_and_the_last_good_state_stays(n, tmp_path):
    """By the last step of the epoch, and by a step that another follows."""
    model = Glow((1, 4, 4), levels=2, scales=1, flow_steps=1, width=4)
    kernel = next(layer for layer in model.modules() if isinstance(layer, InvertibleConv))

    def optimizer(parameters):
        made = _Collapsing(parameters, lr=1e-3)
        made.collapsing = kernel.log_diagonal
        return made

    x = torch.randint(0, 2, (n, 1, 4, 4)).float()
    with pytest.raises(FloatingPointError, match=r"singular|not finite") as raised:
        fit(model, x, epochs=1, batch_size=4, optimizer=optimizer, run_dir=tmp_path, progress=False)
    assert "last good state" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert load(tmp_path).log_prob(x).isfinite().all()
