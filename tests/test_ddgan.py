"""Denoising diffusion GANs: the conditional game, its penalty, the way back, and what each switch changes."""

import math

import pytest
import torch

from robustgen.data import digits
from robustgen.generative import DDGAN
from robustgen.generative.adversarial.dcgan import generator_loss
from robustgen.generative.diffusion.ddgan import r1_penalty
from robustgen.training import Batch
from robustgen.training.players import Players

SHAPE = (1, 8, 8)
SMALL = {"latent_dim": 3, "width": 4, "levels": 2}


def batch(n=6):
    return Batch(digits("train").images()[:n].double(), None, torch.arange(n))


def model(**options):
    """With weights everywhere: blocks of a new U-Net hand on what they are given."""
    torch.manual_seed(0)
    net = DDGAN(SHAPE, **SMALL | options).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net


def constant(net, value):
    """A generator that gives one image, whatever it is told."""
    net.generator.forward = lambda u, t, z: torch.as_tensor(value, dtype=u.dtype).expand_as(u)
    return net


# --- the game ----------------------------------------------------------------------------------------------------


def test_one_step_is_a_gan_whose_noise_hardly_knows_the_image():
    net, x = model(steps=1), 2 * batch().x - 1
    assert net.schedule.alpha_bars[1].item() == pytest.approx(math.exp(-10.05))
    fakes, noises = [], []
    for u_0 in (x, -x, x):
        torch.manual_seed(1 if len(fakes) < 2 else 2)
        u_s, u_t, s, t = net._pair(u_0)
        assert torch.equal(u_s, u_0)
        assert (s.unique().item(), t.unique().item()) == (0, 1)
        noises.append(u_t)
        fakes.append(net._back(u_t, t, s).detach())
    assert (noises[0] - noises[1]).abs().max() < 3 * math.exp(-10.05 / 2)
    (other_image, other_noise) = ((fakes[0] - fake).norm().item() for fake in fakes[1:])
    assert other_image < 0.05 * other_noise
    assert net.times(1) == [1, 0]
    torch.manual_seed(3)
    loss = net.training_step(batch(), 1)["loss"]
    torch.manual_seed(3)
    u_s, u_t, s, t = net._pair(x)
    torch.testing.assert_close(loss, generator_loss(net.discriminator(net._back(u_t, t, s), u_t, t)))


def test_pairs_are_one_step_of_the_diffusion_apart():
    net = model(steps=3)
    u_0 = torch.full((60_000, 1, 1, 1), 0.7, dtype=torch.float64)
    torch.manual_seed(1)
    u_s, u_t, s, t = net._pair(u_0)
    assert torch.equal(s + 1, t)
    for time in (1, 2, 3):
        of = t == time
        assert of.double().mean().item() == pytest.approx(1 / 3, abs=0.01)
        beta, before = net.schedule.betas[time], net.schedule.alpha_bars[time - 1]
        residue = u_t[of] - (1 - beta).sqrt() * u_s[of]
        for found, mean, variance in ((residue, 0.0, beta), (u_s[of], 0.7 * before.sqrt(), 1 - before)):
            assert found.mean().item() == pytest.approx(float(mean), abs=0.03)
            assert found.var().item() == pytest.approx(variance.item(), rel=0.04, abs=1e-12)
        assert abs((residue * u_s[of]).mean().item()) < 0.03


def test_the_discriminators_step_knows_nothing_of_the_generators_weights():
    net, seen = model(), []
    net.generator.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    for step in (0, 2):
        net.training_step(batch(), step)["loss"].backward()
    assert seen == [False, False]
    assert all(p.grad is None for p in net.generator.parameters())
    assert all(p.grad is not None for p in net.discriminator.parameters())
    net.training_step(batch(), 1)["loss"].backward()
    assert all(p.grad is not None for p in net.generator.parameters())


def test_of_the_updates_of_the_discriminator_some_pay_for_all():
    net, free = model(r1=2.0, r1_every=3), model(r1=0.0)
    losses = []
    for step in range(8):
        both = []
        for one in (net, free):
            torch.manual_seed(step)
            both.append(one.training_step(batch(), step)["loss"].item())
        losses.append(both[0] - both[1])
    assert [step for step, more in enumerate(losses) if more] == [0, 6]
    torch.manual_seed(0)
    u_s, u_t, _, t = net._pair(2 * batch().x - 1)
    penalty = r1_penalty(net.discriminator(u_s.requires_grad_(), u_t, t), u_s)
    assert losses[0] == pytest.approx(2.0 / 2 * 3 * penalty.item())


def test_the_penalty_and_its_gradient_by_finite_differences():
    net, h = model(r1=4.0, r1_every=1), 1e-6
    u_s, u_t, _, t = net._pair(2 * batch(1).x - 1)
    basis = h * torch.eye(64, dtype=torch.float64).view(64, *SHAPE)
    with torch.no_grad():
        ends = [net.discriminator(u_s + way * basis, u_t.expand(64, *SHAPE), t.expand(64)) for way in (1, -1)]
    found = r1_penalty(net.discriminator(u_s.requires_grad_(), u_t, t), u_s)
    assert found.item() == pytest.approx(((ends[0] - ends[1]) / (2 * h)).square().sum().item(), rel=1e-5)

    def loss():
        torch.manual_seed(5)
        return net.training_step(batch(), 0)["loss"]

    parameters = list(net.discriminator.parameters())
    for p, gradient in zip(parameters, torch.autograd.grad(loss(), parameters), strict=True):
        direction, values = torch.randn_like(p), []
        for way in (1, -1):
            with torch.no_grad():
                p.add_(way * h * direction)
            values.append(loss().item())
            with torch.no_grad():
                p.sub_(way * h * direction)
        assert (values[0] - values[1]) / (2 * h) == pytest.approx((gradient * direction).sum().item(), rel=1e-4)


def test_the_generator_learns_more_slowly_by_its_factor():
    net = model()
    players = Players(net, net.optimizer)
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in players.optimizers.items()}
    assert rates == {"discriminator": 1e-3, "generator": pytest.approx(2e-4)}
    players.scale_lr(0.5)
    assert players.optimizers["generator"].param_groups[0]["lr"] == pytest.approx(1e-4)


# --- the way back ------------------------------------------------------------------------------------------------


def test_steps_back_are_drawn_from_the_posterior_of_what_is_generated():
    """Bayes: precisions of q(u_2 | u_0) and of q(u_3 | u_2) as a likelihood of u_2 add up."""
    net = constant(model(), math.atanh(0.6))
    kept, beta = net.schedule.alpha_bars[2].item(), net.schedule.betas[3].item()
    u_3 = torch.full((40_000, *SHAPE[:1], 1, 1), -0.8, dtype=torch.float64)
    torch.manual_seed(0)
    u_2 = net._reverse(u_3, 3, 2)
    precision = 1 / (1 - kept) + (1 - beta) / beta
    mean = (kept**0.5 * 0.6 / (1 - kept) + (1 - beta) ** 0.5 * -0.8 / beta) / precision
    assert u_2.mean().item() == pytest.approx(mean, abs=4 * (precision * 40_000) ** -0.5)
    assert u_2.var().item() == pytest.approx(1 / precision, rel=0.03)
    torch.testing.assert_close(net._reverse(u_3, 1, 0), torch.full_like(u_3, 0.6))  # the last adds no noise
    x = torch.rand(2, *SHAPE, dtype=torch.float64)
    for function in net.chain(2):
        x = function(x)
    torch.testing.assert_close(x, torch.full_like(x, 0.8))


def test_the_chain_is_differentiable_and_draws_afresh():
    net, x = model(), batch().x.requires_grad_()
    ends = []
    for _ in range(2):
        u = x
        for function in net.chain(2):
            u = function(u)
        ends.append(u)
    assert (ends[0] - ends[1]).abs().max() > 1e-3
    (gradient,) = torch.autograd.grad(ends[0].sum(), x)
    assert bool((gradient != 0).flatten(1).any(1).all())


# --- the switches of Table 6.2 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"architecture": "mlp"}], ids=["unet", "mlp"])
def test_without_z_the_generator_is_a_function_of_its_input(options):
    u = torch.randn(3, *SHAPE, dtype=torch.float64)
    for latent_dim, same in ((0, True), (3, False)):
        net = model(latent_dim=latent_dim, **options)
        assert torch.equal(net._predict(u, 2), net._predict(u, 2)) == same
        if same:
            assert not torch.allclose(net._predict(u, 2), net._predict(u, 1), atol=1e-3)  # it is told the time
    assert sum(p.numel() for p in model(latent_dim=0).parameters()) < sum(p.numel() for p in model().parameters())


def test_direct_denoising_adds_no_noise_and_leaves_no_step_out():
    net = constant(model(prediction="previous"), 3.0)
    u = torch.randn(5, *SHAPE, dtype=torch.float64)
    assert bool((net._reverse(u, 3, 2) == 3).all())
    calls = []
    net.generator.forward = lambda u, t, z: calls.append(t[0].item()) or u
    net._predict(u, 3)
    assert calls == [3, 2, 1]
    with pytest.raises(ValueError, match="leaves no step out, got steps=2 from depth=4"):
        net.chain(4, 2)


def test_predicted_noise_gives_the_image_that_was_noised():
    net, u_0 = model(prediction="noise"), 2 * batch().x - 1
    for t in (1, 3):
        noise = torch.randn_like(u_0)
        u_t = net.schedule.diffuse(u_0, torch.full((6,), t), noise)
        net.generator.forward = lambda u, t, z, noise=noise: noise
        torch.testing.assert_close(net._predict(u_t, t), u_0)


def test_one_shot_augments_by_diffusion_with_a_gradient_through_it():
    net = model(one_shot=True)
    net.discriminator.forward = lambda u_s, u_t, t: seen.append((u_s, t)) or u_s.square().flatten(1).sum(1) / 64
    u_0, seen = 2 * batch(600).x - 1, []
    u_s, u_t, s, t = net._pair(u_0)
    assert torch.equal(u_s, u_0)
    assert (s.unique().item(), t.unique().item()) == (0, 4)
    net._judge(u_s, u_t, t)
    augmented, times = seen[0]
    assert times.unique().tolist() == [0, 1, 2, 3]
    clean = times == 0
    assert torch.equal(augmented[clean], u_0[clean])
    kept = net.schedule.alpha_bars[3].item()
    noise = (augmented - kept**0.5 * u_0)[times == 3]
    assert noise.var().item() == pytest.approx(1 - kept, rel=0.05)
    net.training_step(batch(), 1)["loss"].backward()
    assert all(bool(p.grad.any()) for p in net.generator.parameters())
    assert net.times(4) == [4, 0]
    assert net.sample_steps == 1
    for wrong, line in (((2,), "begins at 4, got depth=2"), ((4, 2), "takes one step, got steps=2")):
        with pytest.raises(ValueError, match=line):
            net.chain(*wrong)


@pytest.mark.parametrize(
    ("options", "error", "line"),
    [
        ({"prediction": "x0"}, ValueError, "prediction must be one of data, previous, noise, got 'x0'"),
        ({"architecture": "cnn"}, ValueError, "architecture must be one of unet, mlp, got 'cnn'"),
        ({"patch": 3}, ValueError, "images of 8x8 pixels are not made of patches of 3x3"),
        ({"r1": -1.0}, ValueError, "r1 must be a finite number, at least 0, got -1.0"),
        ({"schedule": "sine"}, ValueError, "schedule must be one of"),
        ({"schedule": "linear"}, ValueError, "take more than 20, or vp"),
        ({"one_shot": 1}, TypeError, "one_shot must be True or False, got 1"),
        ({"latent_dim": -1}, ValueError, "latent_dim must be at least 0, got -1"),
    ],
)
def test_arguments_that_make_no_model(options, error, line):
    with pytest.raises(error, match=line):
        DDGAN(SHAPE, **options)
    with pytest.raises(ValueError, match="depth=5 is more than the 4 steps that were trained"):
        DDGAN(SHAPE, **SMALL).chain(5)
