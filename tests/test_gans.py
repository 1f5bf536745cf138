"""Adversarial models: their losses against closed forms, their turns, and when a discriminator may score."""

import multiprocessing
import os
import socket

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustgen.data import digits
from robustgen.generative import DCGAN, LSGAN, WGANGP, GenerativeObjective, fit
from robustgen.generative.adversarial import dcgan, lsgan, wgan_gp
from robustgen.generative.adversarial.improved_techniques import (
    HistoricalAverage,
    MinibatchDiscrimination,
    VirtualBatchNorm,
    WithReference,
)
from robustgen.generative.adversarial.strided import Discriminator, Generator
from robustgen.training import Batch, Trainer

SMALL = {"latent_dim": 4, "width": 4}
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch._dynamo", "robustgen.generative"])  # imported once


def images(n=24):
    return digits(split="train").batch(torch.arange(n))[0]


def batch(n=24):
    return Batch(images(n), None, torch.arange(n))


def states(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


# --- losses on the line ------------------------------------------------------------------------------------------

P, Q = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(1.0, 1.5)
LINE = torch.linspace(-9, 11, 4001)[:, None]


def trained(loss, lr, steps, seed=0):
    """A small network trained on samples of P (real) and Q (generated)."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1), nn.Flatten(0))
    real, fake = P.sample((10_000, 1)), Q.sample((10_000, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    for step in range(steps):
        i = torch.randint(10_000, (1_000,)) if step < steps - 30 else slice(None)
        value = loss(net, real[i], fake[i])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return net, value.detach()


@pytest.mark.parametrize("paper", [dcgan, lsgan])
def test_the_best_discriminator_of_two_gaussians(paper):
    net, value = trained(lambda d, x, y: paper.discriminator_loss(d(x), d(y)), 1e-2, 400)
    p, q = P.log_prob(LINE).exp(), Q.log_prob(LINE).exp()
    bulk = (P.cdf(LINE) * (1 - P.cdf(LINE)) > 0.005).squeeze(1)
    with torch.no_grad():
        d = torch.sigmoid(net(LINE)) if paper is dcgan else net(LINE)
    assert (d - (p / (p + q)).squeeze(1))[bulk].abs().max() < 0.05
    width = 20 / 4000
    if paper is dcgan:  # the value of the game is 2 JS - 2 log 2, here by quadrature
        m = (p + q) / 2
        js = 0.5 * width * (p * (p / m).log() + q * (q / m).log()).sum()
        assert -value.item() == pytest.approx(2 * js.item() - 2 * torch.tensor(2.0).log().item(), abs=0.02)
    else:  # E (1 - D)^2 / 2 + E D^2 / 2 at D = p / (p + q)
        assert value.item() == pytest.approx((0.5 * width * p * q / (p + q)).sum().item(), abs=0.01)


def test_smoothing_moves_the_optimum_to_t_p_over_p_plus_q():
    for paper, optimum in ((dcgan, torch.logit(torch.tensor(0.45))), (lsgan, torch.tensor(0.45))):
        a = optimum.double().clone().requires_grad_()  # p = q: the same value on real and generated
        loss = paper.discriminator_loss(a.expand(3), a.expand(3), real_target=0.9)
        (slope,) = torch.autograd.grad(loss, a, create_graph=True)
        assert slope.abs() < 1e-7
        assert torch.autograd.grad(slope, a)[0] > 0


def test_minimax_saturates_where_the_discriminator_is_sure():
    a = torch.tensor([-10.0], requires_grad=True)
    slopes = [torch.autograd.grad(dcgan.generator_loss(a, minimax), a)[0].item() for minimax in (True, False)]
    assert slopes == pytest.approx([-torch.sigmoid(a).item(), -torch.sigmoid(-a).item()], rel=1e-5)


@pytest.mark.parametrize("dimensions", [1, 2])
def test_the_critic_estimates_the_shift_between_gaussians(dimensions):
    """With penalty weight w the best linear critic has slope 1 + shift / (2 w): the estimate is a little too large."""
    weight, shift = 10.0, torch.eye(dimensions)[0]
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(dimensions, 32), nn.Tanh(), nn.Linear(32, 1), nn.Flatten(0))
    if dimensions == 1 and critic(shift[None]) < critic(0 * shift[None]):
        # On a line no critic turns round: the penalty holds |slope| near 1 and slope 0 is a barrier between 1 and -1.
        critic[2].weight.data.neg_()
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-2, betas=(0.0, 0.9))
    for _ in range(300):
        real, fake = torch.randn(500, dimensions) + shift, torch.randn(500, dimensions)
        loss = wgan_gp.critic_loss(critic(real), critic(fake))
        loss = loss + weight * wgan_gp.gradient_penalty(critic, real, fake)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = torch.randn(50_000, dimensions)
    with torch.no_grad():
        gap = -wgan_gp.critic_loss(critic(x + shift), critic(x)).item()
    assert gap == pytest.approx(1 + 1 / (2 * weight), rel=0.06)
    points = (torch.linspace(-0.5, 1.5, 50)[:, None] * shift).requires_grad_()
    (slope,) = torch.autograd.grad(critic(points).sum(), points)
    assert (slope - shift).norm(dim=1).max() < 0.25  # towards the real data everywhere between the two


# --- the gradient penalty ----------------------------------------------------------------------------------------


def test_the_penalty_of_a_quadratic_critic():
    """grad |x|^2 / 2 = x; pairs with one epsilon each lie on segments."""
    real, fake, epsilon = torch.randn(5, 3, 2), torch.randn(5, 3, 2), torch.rand(5)
    mixed = torch.stack([e * x + (1 - e) * y for e, x, y in zip(epsilon, real, fake, strict=True)])
    found = wgan_gp.gradient_penalty(lambda x: x.flatten(1).square().sum(1) / 2, real, fake, epsilon)
    torch.testing.assert_close(found, (mixed.flatten(1).norm(dim=1) - 1).square().mean())
    half = wgan_gp.gradient_penalty(lambda x: x.flatten(1).sum(1) / 12, real[:, :1], fake[:, :1])
    assert half.item() == pytest.approx((1 - 2**0.5 / 12) ** 2)  # two-sided: too flat costs too
    seen = []
    wgan_gp.gradient_penalty(
        lambda x: seen.append(x) or x.sum((1, 2, 3)), torch.ones(50, 2, 2, 2), torch.zeros(50, 2, 2, 2)
    )
    drawn = seen[0].flatten(1)
    assert (drawn == drawn[:, :1]).all()
    assert 0 < drawn.min() < 0.2 < 0.8 < drawn.max() < 1
    assert len(drawn[:, 0].unique()) == 50


def test_double_backward_equals_finite_differences():
    torch.manual_seed(1)
    gan = WGANGP((1, 8, 8), **SMALL).double()
    critic = gan.discriminator
    with torch.no_grad():
        for p in critic.parameters():
            p.mul_(5).add_(0.1 * torch.randn_like(p))
    real, fake, epsilon = (
        torch.rand(3, 4, 1, 8, 8, dtype=torch.float64)[0],
        torch.rand(4, 1, 8, 8).double(),
        torch.rand(4),
    )
    epsilon = epsilon.double()

    def penalty():
        return wgan_gp.gradient_penalty(critic, real, fake, epsilon)

    x = (epsilon.reshape(-1, 1, 1, 1) * real + (1 - epsilon.reshape(-1, 1, 1, 1)) * fake)[0:1]
    h = 1e-6
    with torch.no_grad():  # the gradient norm of the first example, one pixel at a time
        basis = torch.eye(64, dtype=torch.float64).reshape(64, 1, 8, 8) * h
        norm = ((critic(x + basis) - critic(x - basis)) / (2 * h)).norm()
    one = wgan_gp.gradient_penalty(critic, real[:1], fake[:1], epsilon[:1])
    assert one.item() == pytest.approx((norm.item() - 1) ** 2, rel=1e-5)
    parameters = list(critic.parameters())
    gradients = torch.autograd.grad(penalty(), parameters, allow_unused=True, materialize_grads=True)
    for p, gradient in zip(parameters, gradients, strict=True):
        direction = torch.randn_like(p)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                p.add_(sign * h * direction)
            values.append(penalty().item())
            with torch.no_grad():
                p.sub_(sign * h * direction)
        assert (values[0] - values[1]) / (2 * h) == pytest.approx(
            (gradient * direction).sum().item(), rel=1e-4, abs=1e-8
        )
    assert sum(g.abs().max() > 1e-4 for g in gradients) >= 4


# --- networks and switches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 8, 8), (3, 9, 14)])
def test_networks_of_any_size(shape):
    generated = Generator(shape, 6, 2, nn.BatchNorm2d)(torch.randn(3, 6))
    assert generated.shape == (3, *shape)
    assert Discriminator(shape, 2)(generated).shape == (3,)


def test_the_published_sizes():
    gan = DCGAN((1, 28, 28))
    convs = [m for m in gan.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert [m.in_channels for m in convs] + [convs[-1].out_channels] == [256, 128, 64, 1, 64, 128, 256]
    assert gan.generator.layers[0].out_features == gan.discriminator.linear.in_features == 4 * 4 * 256
    assert not any(isinstance(m, nn.BatchNorm2d) for m in gan.discriminator.modules())


def test_minibatch_discrimination_is_the_sum_of_closeness():
    layer, f = MinibatchDiscrimination(6, 3, 2), torch.randn(5, 6)
    out = layer(f)
    for i in range(5):
        for b in range(3):
            t = layer.weight[:, b]
            want = sum((-(f[i] @ t - f[j] @ t).abs().sum()).exp() for j in range(5))
            torch.testing.assert_close(out[i, 6 + b], want)
    assert torch.equal(out[:, :6], f)


def test_virtual_batch_norm_is_batch_norm_of_the_reference_and_the_example():
    reference, x = torch.randn(7, 3, 4, 4), 2 * torch.randn(5, 3, 4, 4) + 1
    layer = VirtualBatchNorm(3, 7)
    found = WithReference(layer, reference)(x)
    for i in range(5):
        want = F.batch_norm(torch.cat([reference, x[i : i + 1]]), None, None, training=True)[-1]
        torch.testing.assert_close(found[i], want, rtol=1e-4, atol=1e-5)
    alone = layer(torch.cat([reference, x]))[:7]
    torch.testing.assert_close(alone, F.batch_norm(reference, None, None, training=True), rtol=1e-4, atol=1e-5)


def test_historical_average():
    player = nn.Linear(1, 1)
    history, past = HistoricalAverage(2), []
    for _ in range(4):
        with torch.no_grad():
            player.weight.normal_()
            player.bias.normal_()
        past.append(torch.cat([player.weight.flatten(), player.bias]).detach())
        penalty = history(player)
        away = past[-1] - torch.stack(past).mean(0)
        torch.testing.assert_close(penalty, away.square().sum())
    gradients = torch.autograd.grad(penalty, list(player.parameters()))
    torch.testing.assert_close(torch.cat([g.flatten() for g in gradients]), 2 * away)  # the mean is a constant


def test_feature_matching_compares_mean_features():
    gan = DCGAN((1, 8, 8), **SMALL, generator_objective="feature_matching")
    real, fake = torch.rand(2, 6, 1, 8, 8)
    f, g = gan.discriminator.features(real), gan.discriminator.features(fake)
    want = sum((f[:, k].mean() - g[:, k].mean()) ** 2 for k in range(f.shape[1]))
    torch.testing.assert_close(gan._generator_step(real, fake, 1)["loss"], want)
    assert gan._generator_step(real, real.flip(0), 1)["loss"] < 1e-10  # the same images in another order
    with torch.autocast("cpu", torch.bfloat16):
        assert gan._generator_step(real, fake, 1)["loss"].dtype == torch.float32


def test_input_noise_falls_linearly_to_nothing():
    gan, seen = LSGAN((1, 8, 8), **SMALL, input_noise=0.5, input_noise_steps=10), []
    gan.discriminator.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    real = torch.zeros(500, 1, 8, 8)
    for step in (0, 4, 10):
        seen.clear()
        gan._discriminator_step(real, real, step)
        assert [s.std().item() for s in seen] == pytest.approx([0.5 * (1 - step / 10)] * 2, rel=0.02)


def test_losses_are_those_that_the_switches_name():
    real, fake = 2 * torch.rand(2, 6, 1, 8, 8) - 1
    for make, paper in ((DCGAN, dcgan), (LSGAN, lsgan)):
        gan = make((1, 8, 8), **SMALL, real_target=0.9, historical_averaging=0.5)
        on_real, on_fake = gan.discriminator(real), gan.discriminator(fake)
        want = paper.discriminator_loss(on_real, on_fake, 0.9), paper.generator_loss(on_fake)
        assert (gan._discriminator_step(real, fake, 0)["loss"], gan._generator_step(real, fake, 1)["loss"]) == want
        with torch.no_grad():
            weights = list(gan.generator.parameters())
            weights[0] += 1.0  # its mean over two steps is half as far: |0.5|^2 for each number
        moved = gan._generator_step(real, fake, 3)["loss"]
        assert (moved - want[1]).item() == pytest.approx(0.5 * 0.25 * weights[0].numel(), rel=1e-4)
    minimax = DCGAN((1, 8, 8), **SMALL, generator_objective="minimax")
    assert minimax._generator_step(real, fake, 1)["loss"] == dcgan.generator_loss(minimax.discriminator(fake), True)


def test_arguments():
    with pytest.raises(ValueError, match="'non_saturating', 'minimax', 'feature_matching', got 'hinge'"):
        DCGAN((1, 8, 8), generator_objective="hinge")
    with pytest.raises(ValueError, match="real_target must be in"):
        LSGAN((1, 8, 8), real_target=0.4)
    with pytest.raises(ValueError, match="penalty_weight must be"):
        WGANGP((1, 8, 8), penalty_weight=-1.0)
    with pytest.raises(ValueError, match="n_critic must be at least 1"):
        WGANGP((1, 8, 8), n_critic=0)


# --- scores ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: DCGAN((1, 8, 8), **SMALL),
        lambda: LSGAN((1, 8, 8), **SMALL),
        lambda: WGANGP((1, 8, 8), **SMALL),
        lambda: DCGAN((1, 8, 8), **SMALL, bn_in_discriminator=True).eval(),
        lambda: DCGAN((1, 8, 8), **SMALL, bn_in_discriminator=True, virtual_batch_norm=8),
    ],
    ids=["DCGAN", "LSGAN", "WGANGP", "BN in eval mode", "virtual BN"],
)
def test_a_score_is_a_function_of_the_image_alone(make):
    gan = make().double()
    mode = gan.training
    x = images().double()
    fit(gan, x, epochs=3, batch_size=12, progress=False)
    gan.train(mode)
    together = gan.discriminate(x)
    alone = torch.cat([gan.discriminate(one[None]) for one in x])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)
    assert together.std() > 0


def test_a_set_function_does_not_score():
    x = images(4)
    with pytest.raises(ValueError, match="minibatch discrimination an image's value depends on its batch"):
        LSGAN((1, 8, 8), **SMALL, minibatch_discrimination=2).eval().discriminate(x)
    gan = LSGAN((1, 8, 8), **SMALL, bn_in_discriminator=True)
    with pytest.raises(ValueError, match=r"call eval\(\) first"):
        gan.discriminate(x)
    gan.eval().discriminate(x)


def test_batch_statistics_change_the_ranking_of_a_batch_that_is_all_foreign():
    """Why the switch is off: the same foreign images rank otherwise beside digits than among themselves."""
    gan = DCGAN((1, 8, 8), **SMALL, bn_in_discriminator=True)
    fit(gan, images(96), epochs=10, batch_size=24, seed=1, progress=False)
    d, foreign = gan.discriminator, torch.rand(24, 1, 8, 8)
    with torch.no_grad():
        gan.train()
        among, beside = (d(2 * x - 1)[:24] for x in (foreign, torch.cat([foreign, images(72)])))
        gan.eval()
        fixed = [gan.discriminate(x)[:24] for x in (foreign, torch.cat([foreign, images(72)]))]
    assert not torch.equal(among.argsort(), beside.argsort())
    assert torch.equal(fixed[0].argsort(), fixed[1].argsort())


# --- training ----------------------------------------------------------------------------------------------------


class Recording(GenerativeObjective):
    """Keeps the weights at every training step, and stops the run at one."""

    def __init__(self, stop=None):
        self.stop, self.seen = stop, []

    def __call__(self, model, batch, step):
        if model.training:
            if step == self.stop:
                raise KeyboardInterrupt
            self.seen.append({n: p.detach().clone() for n, p in model.named_parameters()})
        return super().__call__(model, batch, step)


@pytest.mark.parametrize("make", [DCGAN, WGANGP])
def test_one_player_moves_the_other_stays_bitwise(make):
    gan, objective = make((1, 8, 8), **SMALL), Recording()
    Trainer(objective, optimizer=gan.optimizer, epochs=4, batch_size=8, progress=False).fit(gan, images())
    turns = [gan.player_at(step) for step in range(len(objective.seen) - 1)]
    assert turns.count("generator") == {DCGAN: 5, WGANGP: 1}[make]
    for player, before, after in zip(turns, objective.seen, objective.seen[1:], strict=False):
        moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
        assert moved == {player}


EVERYTHING = {
    "bn_in_discriminator": True,
    "virtual_batch_norm": 5,
    "historical_averaging": 0.1,
    "input_noise": 0.3,
    "input_noise_steps": 9,
    "minibatch_discrimination": 2,
    "generator_objective": "feature_matching",
    "real_target": 0.9,
}


@pytest.mark.parametrize(
    ("make", "options"), [(DCGAN, {}), (LSGAN, EVERYTHING), (WGANGP, {"n_critic": 2})], ids=["DCGAN", "LSGAN", "WGANGP"]
)
def test_a_killed_training_resumes_bitwise(make, options, tmp_path):
    def run(stop=None, **where):
        torch.manual_seed(5)
        gan, objective = make((1, 8, 8), **SMALL, **options), Recording(stop)
        trainer = Trainer(objective, optimizer=gan.optimizer, epochs=3, batch_size=6, progress=False, **where)
        return gan, trainer.fit(gan, images(), images(8))

    whole, history = run()
    with pytest.raises(KeyboardInterrupt):
        run(stop=7, run_dir=tmp_path, checkpoint_every=5)
    resumed, again = run(run_dir=tmp_path, checkpoint_every=5, resume=True)
    assert history == again
    for (name, a), (_, b) in zip(states(whole).items(), states(resumed).items(), strict=True):
        assert torch.equal(a, b), name
    assert {"discriminator_gap", "generator_loss", "val_gap", "val_loss"} <= history[0].keys()


def test_the_reference_is_of_the_first_batch():
    gan = DCGAN((1, 8, 8), **SMALL, bn_in_discriminator=True, virtual_batch_norm=5)
    first = Batch(images(3), None, torch.arange(3))
    gan.training_step(first, 0)
    gan.training_step(batch(), 2)
    assert torch.equal(gan.discriminator.body.reference, (2 * images(3) - 1)[[0, 1, 2, 0, 1]])
    z = torch.randn(6, 4)
    torch.testing.assert_close(gan.generator(z)[:2], gan.generator(z[:2]))  # its own reference is fixed too


def test_validation_is_the_gap_on_held_back_data():
    gan = WGANGP((1, 8, 8), **SMALL).eval()
    torch.manual_seed(3)
    found = gan.validation_step(batch(), 0)
    samples = gan.sample(24, torch.Generator().manual_seed(3))
    gap = (gan.discriminate(images()).mean() - gan.discriminate(samples).mean()).detach()
    torch.testing.assert_close(found["gap"], gap, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["loss"], -gap, rtol=1e-4, atol=1e-6)


def rank_job(rank, port, queue):
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.manual_seed(rank)  # begin apart: DDP makes the ranks alike
    gan = WGANGP((1, 8, 8), **SMALL, n_critic=1)
    history = fit(gan, images(), epochs=2, batch_size=12, progress=False)
    queue.put((history, {name: p.tolist() for name, p in gan.named_parameters()}))


def test_two_processes_train_a_gan():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = CONTEXT.SimpleQueue()
    ranks = [CONTEXT.Process(target=rank_job, args=(r, port, queue)) for r in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(300)
    assert [process.exitcode for process in ranks] == [0, 0]
    (history, weights), (other_history, other_weights) = queue.get(), queue.get()
    assert history == other_history
    assert weights == other_weights  # with gradients of both ranks' images
    assert {"discriminator_penalty", "generator_loss"} <= history[-1].keys()
