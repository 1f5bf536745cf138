"""Purifiers against closed forms, gradients through their chains, and a ledger whose numbers are known beforehand."""

import json
import math
import re
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch
from scipy.stats import binom, binomtest
from torch import nn

from robustgen import cli
from robustgen.attacks import APGD, PGD
from robustgen.attacks.ball import Ball
from robustgen.attacks.problem import LowestMargin
from robustgen.attacks.queries import Oracle
from robustgen.evaluation import RandomDefenceReport, random_defence
from robustgen.evaluation.random_defence import _fewer
from robustgen.evaluation.random_defence_page import (
    load_random_defence,
    random_defence_html,
    random_defence_markdown,
    write_random_defence,
)
from robustgen.evaluation.random_defence_rows import all_of_k, mean_share
from robustgen.fortified import DeepImagePrior, DefenseGAN, LangevinChain, Projection, purify
from robustgen.generative import DCGAN, DDGAN, DDPM, EDM, GLF, Denoiser, EnergyModel, GenerativeModel, PixelCNN, RealNVP
from robustgen.generative.diffusion.base import Diffusion
from robustgen.generative.diffusion.noise_schedule import NoiseSchedule
from robustgen.generative.energy.langevin import langevin
from robustgen.model import check_rows_alone, is_stochastic, untouched
from robustgen.turns import seeded

SHAPE = (1, 4, 4)


class TinyDiffusion(Diffusion):
    """Guesses u_0 by one convolution, and draws from the posterior that would be right if the guess were."""

    def __init__(self, shape=SHAPE, steps=4):
        super().__init__(shape)
        self.schedule, self.sample_steps = NoiseSchedule("vp", steps), steps
        self.network = nn.Conv2d(shape[0], shape[0], 3, padding=1, bias=False)
        with torch.no_grad():
            self.network.weight.mul_(0.3)[:, :, 1, 1] += 1  # so that something of the image is left

    @property
    def config(self):
        return {"shape": self.shape}

    def _predict(self, u, t):
        return self.network(u).tanh()

    def _reverse(self, u, t, s, generator=None):
        at, before = (torch.full((len(u),), time) for time in (t, s))
        mean, variance = self.schedule.posterior(u, self._predict(u, t), at, before)
        return mean + variance.sqrt() * torch.randn(u.shape, generator=generator, dtype=u.dtype)

    def training_step(self, batch, step):
        raise NotImplementedError


class Bowl(GenerativeModel):
    """The energy weight / 2 |x - 1/2|^2."""

    def __init__(self, weight, shape=SHAPE):
        super().__init__(shape)
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))

    def energy(self, x):
        return self.weight / 2 * (x - 0.5).square().flatten(1).sum(1)

    def _sample(self, n, generator):
        raise NotImplementedError

    training_step = TinyDiffusion.training_step


class Linear(GenerativeModel):
    """Images 1/2 + W z."""

    def __init__(self, w, shape=SHAPE):
        super().__init__(shape)
        self.w = nn.Parameter(w)

    @property
    def noise_shape(self):
        return (self.w.shape[1],)

    def _from_noise(self, eps):
        return 0.5 + (eps @ self.w.T).view(-1, *self.shape)

    _sample = Bowl._sample
    training_step = TinyDiffusion.training_step


class Coin(nn.Module):
    """Gives an image back as it is, or with probability ``flip`` its negative: a defence of which all is known."""

    def __init__(self, flip):
        super().__init__()
        self.flip = flip

    def check(self, x):
        return x

    def chain(self, depth, steps=None):
        def toss(x):
            heads = torch.rand(len(x), 1, 1, 1, dtype=x.dtype) < self.flip
            return torch.where(heads, 1 - x, x)

        return [toss]


class Threshold(nn.Module):
    """Class 1 where the mean is above 1/2."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, x):
        z = self.scale * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([-z, z], 1)


def classifier(pixels=16):
    with seeded(0):
        linear = nn.Linear(pixels, 3, bias=False)
        nn.init.normal_(linear.weight)
    return nn.Sequential(nn.Flatten(), linear).eval()


def images(n=3, shape=SHAPE, dtype=torch.float32):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def coin(flip, **more):
    return purify(Threshold().eval(), Coin(flip), **more)


@pytest.fixture(scope="module", autouse=True)
def own_random_state():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def purifiers():
    with seeded(1):
        glf = GLF((1, 8, 8), latent_dim=2, architecture="mlp", width=16).eval()
        denoiser = Denoiser((1, 8, 8), width=2, levels=2).eval()
        for p in denoiser.parameters():
            nn.init.normal_(p, std=0.2)  # it begins without effect
        return {
            "diffusion": (TinyDiffusion().eval(), 4, None),
            "diffusion, fewer steps": (TinyDiffusion().eval(), 4, 2),
            "ddpm": (DDPM((1, 8, 8), width=4, levels=2, steps=20, schedule="cosine", sample_steps=5).eval(), 6, 3),
            "ddgan": (DDGAN((1, 8, 8), width=4, levels=2, steps=4).eval(), 2, None),
            "edm": (EDM((1, 8, 8), width=4, levels=2, sample_steps=6).eval(), 3, None),
            "denoiser": (denoiser, 0.5, 3),
            "energy": (EnergyModel((1, 8, 8), width=2, buffer_size=1).eval(), 3, None),
            "projection": (glf, None, None),
            "defense-gan, unrolled": (DefenseGAN(glf, restarts=2, gradient="unrolled"), 3, None),
            "defense-gan": (DefenseGAN(glf, restarts=2), 3, None),
            "deep image prior": (DeepImagePrior((1, 8, 8), width=2), 3, None),
        }


PURIFIERS = purifiers()
BY_NAME = pytest.mark.parametrize("name", PURIFIERS)


def behind(name, **more):
    generative, depth, steps = PURIFIERS[name]
    pixels = 16 if "diffusion" in name else 64
    return purify(classifier(pixels), generative, depth, steps, **more), images(3, SHAPE if pixels == 16 else (1, 8, 8))


class TestGradients:
    @BY_NAME
    def test_checkpointed_ones_are_bitwise_the_plain_ones(self, name):
        found = []
        for checkpointing in (True, False):
            model, x = behind(name, checkpointing=checkpointing)
            x.requires_grad_()
            with seeded(3):
                logits = model(x)
                after = torch.get_rng_state()
                (gradient,) = torch.autograd.grad(logits.logsumexp(1).sum(), x)
                assert torch.equal(after, torch.get_rng_state())  # to compute anew draws nothing new
            found.append((logits, gradient))
        assert torch.equal(found[0][0], found[1][0])
        assert torch.equal(found[0][1], found[1][1])
        assert bool((found[0][1] != 0).any())

    def test_they_are_those_of_the_functions_one_after_the_other(self):
        model, x = behind("diffusion")
        x.requires_grad_()
        with seeded(3):
            (gradient,) = torch.autograd.grad(model(x)[:, 0].sum(), x)
        with seeded(3):
            state = x
            for function in model.purifier.chain(4):
                state = function(state)
            (expected,) = torch.autograd.grad(model.model(state)[:, 0].sum(), x)
        assert torch.equal(gradient, expected)

    def test_only_one_image_is_kept_of_each_function(self):
        def kept(steps, checkpointing):
            chain = purify(classifier(), TinyDiffusion(steps=steps).eval(), steps, checkpointing=checkpointing)._chain
            sizes, x = [], images(8).requires_grad_()

            def pack(t):
                sizes.append(t.nbytes)
                return t

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                chain(x)
            return sum(sizes)

        assert kept(8, False) - kept(4, False) > 2 * 4 * images(8).nbytes  # two tensors of each of the four
        assert [kept(n, True) for n in (4, 8)] == [(n + 1) * images(8).nbytes for n in (4, 8)]  # the first diffuses

    def test_through_langevin_steps_in_closed_form(self):
        x, weight, size = images(dtype=torch.float64).mul(0.2).add(0.4).requires_grad_(), 2.0, 0.1
        model = purify(nn.Flatten(), LangevinChain(Bowl(weight), step_size=size, noise=0.0), 5)
        model.model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, dtype=torch.float64))
        purified = model.purify(x)
        factor = (1 - size * weight) ** 5
        assert torch.allclose(purified, 0.5 + factor * (x - 0.5))
        (gradient,) = torch.autograd.grad(purified.sum(), x)
        assert torch.allclose(gradient, torch.full_like(x, factor))

    def test_through_descent_on_noise_it_is_the_projection(self):
        w = torch.linalg.qr(torch.randn(16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
        chain = DefenseGAN(Linear(w), restarts=2, step_size=4.0, gradient="unrolled").double()
        model, x = purify(classifier().double(), chain, depth=120), images(dtype=torch.float64).requires_grad_()
        purified = model.purify(x)
        onto = w @ w.T
        assert torch.allclose(purified.flatten(1), 0.5 + (x.flatten(1) - 0.5) @ onto, atol=1e-6)
        (gradient,) = torch.autograd.grad(purified[1, 0, 2, 1], x)
        assert torch.allclose(gradient[1].flatten(), onto[9], atol=1e-6)
        assert not gradient[[0, 2]].any()

    def test_what_has_none_gets_that_of_the_identity(self):
        model, x = behind("deep image prior")
        (gradient,) = torch.autograd.grad(model(x.requires_grad_())[:, 1].sum(), x)
        assert torch.equal(gradient.flatten(1), model.model[1].weight[1].expand(3, -1))
        assert not model.exact

    def test_stand_ins(self):
        model, x = behind("diffusion")
        for view, expected in (
            (model.with_identity_gradient(), lambda z: z),
            (model.with_gradient_of(1), purify(model.model, model.purifier, 4, 1).purify),
        ):
            z = x.clone().requires_grad_()
            with seeded(5):
                logits = view(z)
            (gradient,) = torch.autograd.grad(logits[:, 0].sum(), z)
            v = x.clone().requires_grad_()
            with seeded(5):
                (shown,) = torch.autograd.grad((expected(v) * model.model[1].weight[0].view(SHAPE)).sum(), v)
                assert torch.equal(logits, model(x))  # what is drawn behind the stand-in
            assert torch.allclose(gradient, shown, atol=1e-6)

    def test_of_a_known_defence_their_mean_over_draws(self):
        """The gradient of each draw is w or -w; of n draws the mean points the wrong way as often as a coin says."""
        model, x, rows = coin(0.25).requires_grad_(False), torch.full((2000, 1, 2, 2), 0.6), torch.arange(2000)
        for n in (1, 9):
            with untouched(model, None):
                oracle = Oracle(model, x, slots=500, seed=n)
                ball = Ball(x, torch.full((2000,), 0.1, dtype=torch.float64), "Linf", (0.0, 1.0))
                problem = LowestMargin(
                    oracle, x, torch.ones_like(rows), rows, ball, targeted=False, early_stop=True, votes=9
                )
                [(_, direction)] = oracle.answer([problem.gradient(rows, x, "margin", n)])
            against = (direction.flatten(1).mean(1) > 0).double().mean().item()
            chance = binom.cdf(n // 2, n, 0.75)
            assert against == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / 2000))


class TestPurifiers:
    def test_a_langevin_chain_is_langevin_dynamics(self):
        model, x = PURIFIERS["energy"][0], images(2, (1, 8, 8))
        chain = LangevinChain(model, step_size=0.01)
        with seeded(0):
            expected = langevin(model.energy, x, 3, 0.01, reflected=True)
        with seeded(0), torch.no_grad():
            for step in chain.chain(3):
                x = step(x)
        assert torch.equal(x, expected)

    def test_fewer_steps_are_longer(self):
        x = torch.full((1, *SHAPE), 0.5, dtype=torch.float64)
        chain = LangevinChain(Bowl(0.0), step_size=0.001)
        with seeded(0):
            ends = []
            for steps in (8, 2):
                state = x.expand(4000, *SHAPE)
                for step in chain.chain(8, steps):
                    state = step(state)
                ends.append(state.var().item())
        assert ends == pytest.approx([2 * 0.001 * 8] * 2, rel=0.02)

    def test_a_denoiser_goes_back_as_its_samples_do(self):
        denoiser, x = PURIFIERS["denoiser"][0], images(2, (1, 8, 8))
        noise, one = denoiser.chain(0.5)
        with seeded(0):
            noisy = noise(x)
        with seeded(0):
            assert torch.equal(noisy, x + 0.5 * torch.randn_like(x))
        assert torch.allclose(one(noisy), denoiser.denoise(noisy, 0.5), atol=1e-6)
        assert len(denoiser.chain(0.5, 4)) == 5

    def test_the_nearest_of_several_starts(self):
        with seeded(0):
            generator = DCGAN((1, 8, 8), latent_dim=2, width=4).eval()
            chain = DefenseGAN(generator, restarts=8)
            x = images(2, (1, 8, 8))
            start, *steps, nearest = chain.chain(3)
            state = start(x)
            for step in steps:
                state = step(state)
            found = nearest(state)
        ends = generator.from_noise(state[1].flatten(0, 1)).unflatten(0, (2, 8))
        errors = (ends - x[:, None]).square().flatten(2).mean(2)
        assert torch.allclose((found - x).square().flatten(1).mean(1), errors.amin(1))

    def test_what_is_regular_comes_first(self):
        """Of a smooth image with noise, the early fit is nearer to the image than what was given."""
        line = torch.linspace(0.2, 0.8, 16)
        clean = (line[:, None] * line).expand(2, 1, 16, 16)
        noisy = (clean + 0.15 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
        model = purify(classifier(256), DeepImagePrior((1, 16, 16), width=8), depth=100)
        with seeded(0):
            fitted = model.purify(noisy)
        assert (fitted - clean).square().mean() < 0.5 * (noisy - clean).square().mean()

    @pytest.mark.parametrize(
        ("model", "kind"),
        [
            (lambda: TinyDiffusion(), TinyDiffusion),
            (lambda: EnergyModel((1, 8, 8), width=2, buffer_size=1), LangevinChain),
            (lambda: PURIFIERS["projection"][0], Projection),
            (lambda: DCGAN((1, 8, 8), latent_dim=2, width=4), DefenseGAN),
            (lambda: RealNVP(SHAPE, width=4, blocks=1), DefenseGAN),
        ],
    )
    def test_the_usual_one_of_a_kind(self, model, kind):
        model = model()
        depth = None if kind is Projection else 2
        assert type(purify(classifier(), model, depth).purifier) is kind


class TestDraws:
    @BY_NAME
    def test_each_row_draws_for_itself(self, name):
        model, x = behind(name)
        same = x[:1].expand(4, *x.shape[1:])
        with torch.no_grad(), untouched(model):
            purified = model.purify(same)
        assert (len(purified.unique(dim=0)) == 4) == (name != "projection")

    @BY_NAME
    def test_a_seed_is_a_network_without_chance(self, name):
        model, x = behind(name)
        fixed, state = model.fixed(7).eval(), torch.get_rng_state()
        with torch.no_grad():
            first = fixed(x)
            assert not is_stochastic(lambda: fixed(x))
            check_rows_alone(fixed, x)
            assert torch.equal(first, model.fixed(7)(x))
            assert torch.equal(first, model.fixed(8)(x)) == (name == "projection")
            assert torch.allclose(fixed(x[1:2].expand(5, *x.shape[1:])), first[1].expand(5, -1), atol=1e-5)
        assert torch.equal(state, torch.get_rng_state())
        gradients = []
        for checkpointing in (True, False):
            model.checkpointing = checkpointing
            z = x.clone().requires_grad_()
            gradients += torch.autograd.grad(model.fixed(7)(z).logsumexp(1).sum(), z)
        assert torch.equal(*gradients)

    def test_predictions_are_of_the_image_alone(self):
        model, x = behind("diffusion")
        order = torch.tensor([2, 0, 1])
        answers, state = model.answers(x, 20), torch.get_rng_state()
        assert torch.equal(answers[order], model.answers(x[order], 20))
        assert torch.equal(answers[1:2], model.answers(x[1:2], 20))
        assert not torch.equal(answers, model.answers(x, 20, seed=1))
        assert torch.equal(model.answers(x, 20, seed=1), purify(model.model, model.purifier, 4, seed=1).answers(x, 20))
        assert torch.equal(state, torch.get_rng_state())
        counts = nn.functional.one_hot(answers, 3).sum(1)
        assert torch.equal(model.predict(x, k=20), counts.argmax(1))

    def test_a_secret_seed(self):
        one, other = (coin(0.5, seed=None) for _ in range(2))
        x = torch.full((1, 1, 2, 2), 0.7)
        assert torch.equal(one.answers(x, 40), one.answers(x, 40))
        assert not torch.equal(one.answers(x, 40), other.answers(x, 40))
        assert str(one._key) not in repr(one)

    def test_attacks_see_it_and_leave_it_alone(self):
        model, x = behind("diffusion")
        model.train()
        model.purifier.eval()
        flags = [m.training for m in model.modules()]
        state, needed = torch.get_rng_state(), [p.requires_grad for p in model.parameters()]
        result = PGD(eps=0.1, steps=2, eot_samples=2).run(model, x, torch.tensor([0, 1, 2]))
        assert bool((result.forwards > 9).all())  # votes
        assert torch.equal(state, torch.get_rng_state())
        assert [m.training for m in model.modules()] == flags
        assert [p.requires_grad for p in model.parameters()] == needed
        assert all(p.grad is None for p in model.parameters())

    def test_one_chance_in_every_draw(self):
        rows, i = torch.full((400, 1, 2, 2), 0.6), torch.arange(400)
        rows[:, 0, 0] += torch.stack([i % 20, i // 20], 1) / 255  # of the same content draws are the same
        wrong = (coin(0.3).answers(rows, 10) == 0).double().mean().item()
        assert wrong == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 4000))


class TestErrors:
    @pytest.mark.parametrize(
        ("build", "error", "line"),
        [
            (lambda m: purify(lambda x: x, TinyDiffusion(), 2), TypeError, "purify takes an nn.Module, got function"),
            (lambda m: purify(m, nn.Linear(1, 1), 2), TypeError, r"Linear has no chain\(depth, steps\)"),
            (lambda m: purify(m, PixelCNN(SHAPE, width=4), 2), TypeError, "PixelCNN has no chain that purifies"),
            (lambda m: purify(m, TinyDiffusion()), TypeError, "depth must be an integer, got None"),
            (lambda m: purify(m, TinyDiffusion(), 5), ValueError, "depth=5 is more than the 4 steps that were trained"),
            (lambda m: purify(m, TinyDiffusion(), 3, 4), ValueError, "a chain of 4 steps does not fit"),
            (lambda m: purify(m, PURIFIERS["projection"][0], 2), ValueError, "by GLF has no depth and no steps"),
            (lambda m: purify(m, PURIFIERS["denoiser"][0], 3.0), ValueError, r"from 0.1 to 1, as was trained, got 3"),
            (lambda m: purify(m, PURIFIERS["energy"][0], 2, 3), ValueError, "a chain of depth=2 has at most as many"),
            (lambda m: purify(m, Bowl(1.0), 2), ValueError, "a chain on Bowl needs a step size"),
            (lambda m: LangevinChain(PURIFIERS["projection"][0]), TypeError, "GLF has no energy"),
            (lambda m: LangevinChain(Bowl(1.0), 0.1, -1.0), ValueError, "noise must be a finite number >= 0"),
            (lambda m: Projection(TinyDiffusion()), TypeError, "TinyDiffusion does not reconstruct images"),
            (lambda m: Projection(m), TypeError, "Projection is made of a generative model, got Sequential"),
            (lambda m: DefenseGAN(TinyDiffusion()), TypeError, "TinyDiffusion makes no images of normal noise alone"),
            (
                lambda m: DefenseGAN(PURIFIERS["projection"][0], gradient="no"),
                ValueError,
                "gradient must be 'identity'",
            ),
            (lambda m: purify(m, DeepImagePrior(SHAPE), 2, 1), ValueError, "a fit of depth=2 has as many steps, not 1"),
            (lambda m: purify(m, TinyDiffusion(), 2, seed=2**70), ValueError, r"seed must be below 2\^63"),
            (lambda m: purify(m, TinyDiffusion(), 2).predict(images(), 0), ValueError, "n must be at least 1, got 0"),
            (lambda m: purify(m, TinyDiffusion(), 2)(images(2, (1, 8, 8))), ValueError, r"is of images \(1, 4, 4\)"),
            (lambda m: purify(m, TinyDiffusion(), 2)(4 * images()), ValueError, r"outside the bounds \(0.0, 1.0\)"),
            (lambda m: purify(m, DeepImagePrior(SHAPE), 2)(4 * images()), ValueError, "outside the bounds"),
            (
                lambda m: purify(m, DeepImagePrior(SHAPE), 2)(images(1, (1, 8, 8))),
                ValueError,
                r"is of images \(1, 4, 4\)",
            ),
        ],
    )
    def test_one_clear_line(self, build, error, line):
        with pytest.raises(error, match=line):
            build(classifier())

    def test_gradients_that_would_not_fit(self, monkeypatch):
        module = sys.modules["robustgen.fortified.purify"]
        monkeypatch.setattr(module, "_free", lambda device: 2**20)
        model, x = purify(classifier(), TinyDiffusion().eval(), 4, checkpointing=False), images(2000).requires_grad_()
        line = (
            r"gradients through a chain of 5 functions keep about [\d.e-]+ GB for 2000 images, and 0.000977 GB are "
            r"free: set checkpointing=True, which keeps [\d.e-]+ GB, or ask for at most (\d+) at once \(batch_size\)"
        )
        with pytest.raises(ValueError, match=line) as caught:
            model(x)
        few = int(re.search(r"at most (\d+)", str(caught.value))[1])
        model(x[:few])  # and these fit
        with torch.no_grad():
            model(x)  # without gradients nothing is kept
        monkeypatch.setattr(module, "_free", lambda device: None)
        model(x)  # nobody says how much there is


class TestCounting:
    def test_all_of_k_is_p_to_the_k(self):
        """Its mean over the draws, exactly: closed form against closed form."""
        for n, k in ((10, 1), (12, 5), (20, 20)):
            counts = torch.arange(n + 1)
            for p in (0.1, 0.5, 0.9):
                chances = torch.from_numpy(binom.pmf(counts.numpy(), n, p))
                assert (chances * all_of_k(counts, n, k)).sum().item() == pytest.approx(p**k, rel=1e-9)

    def test_intervals_of_a_mean(self):
        assert mean_share(torch.tensor([0.0, 1.0, 1.0, 1.0])) == pytest.approx(
            {"value": 0.75, "low": 0.3006, "high": 0.9544, "n": 4}, abs=1e-4
        )
        between = mean_share(torch.full((10,), 0.55))
        assert between["low"] < mean_share(torch.tensor([0.0] * 5 + [1.0] * 5))["low"] + 1e-9
        assert between["high"] > mean_share(torch.tensor([0.0] * 4 + [1.0] * 6))["high"] - 1e-9


SETTINGS = {"eps": 0.05, "k": 5, "draws": 100, "eot": 2, "steps": 3, "n_queries": 5}


@pytest.fixture(scope="module")
def ledger():
    """Of 40 inputs none falls within eps: whether an answer is right, the coin alone says."""
    x = 0.7 + torch.arange(40).view(-1, 1, 1, 1).expand(40, 1, 2, 2) / 160
    return random_defence(coin(0.2), x, torch.ones(40, dtype=torch.int64), **SETTINGS)


class TestLedger:
    def test_of_a_known_defence(self, ledger):
        for row in ledger.rows.values():
            assert row.one_draw == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / 4000))
            assert row.all_right.mean().item() == pytest.approx(0.8**5, abs=0.05)
            low, high = row.bounds
            for k in range(3):
                interval = binomtest(int(row.counts[k]), 100).proportion_ci(0.95, "exact")
                assert (low[k].item(), high[k].item()) == pytest.approx((interval.low, interval.high))
        assert ledger.rows["clean"].vote.double().mean().item() == pytest.approx(binom.sf(2, 5, 0.8), abs=0.15)
        assert bool(ledger.undefended.all())
        assert ledger.fixed.double().mean() in (0.0, 1.0)  # one draw, of all inputs
        assert {"clean", "oblivious", "pgd", "apgd", "bpda", "square", "seed", "worst"} == ledger.rows.keys()

    def test_the_parts_add_up(self, ledger):
        split, total = ledger.split, 0.0
        wanted = [
            ledger.undefended.double().mean().item(),
            ledger.fixed.double().mean().item(),
            ledger.worst.one_draw,
            ledger.worst.all_right.mean().item(),
        ]
        for name, accuracy in zip(("undefended", "removal", "randomness", "resubmission"), wanted, strict=True):
            total += split[name]
            assert total == pytest.approx(accuracy)

    def test_an_attack_through_it_wins_where_the_purifier_is_weak(self):
        with seeded(0):
            model, x = purify(classifier(), TinyDiffusion(steps=8).eval(), 2), images(10)
        y = model.predict(x, k=50)
        report = random_defence(model, x, y, eps=0.3, k=2, draws=20, eot=2, steps=5, attacks=["pgd", "surrogate"])
        assert report.rows["pgd"].one_draw < report.rows["clean"].one_draw - 0.3
        assert report.worst.one_draw < report.rows["clean"].one_draw - 0.3
        assert report.rows["surrogate"].label == "PGD-5, mean of 2 draws, gradient of 1 step"
        assert report.rows["pgd"].rejected == 0

    def test_text_and_record(self, ledger):
        text, found = str(ledger), ledger.to_dict()
        assert "all of 5 right" in text
        assert "a seed that the attacker knows" in text
        assert "an attacker who may submit 5 times takes" in text
        assert json.loads(json.dumps(found)) == found
        assert found["per_example"]["right"]["pgd"] == ledger.rows["pgd"].counts.tolist()

    @pytest.mark.parametrize(
        ("name", "depth", "steps", "fewer"),
        [
            ("diffusion", 4, None, 1),
            ("diffusion", 1, None, 0),
            ("denoiser", 0.5, 8, 2),
            ("energy", 8, None, 2),
            ("energy", 16, 9, 2),
            ("energy", 2, None, 1),
            ("energy", 1, None, 0),
            ("defense-gan, unrolled", 7, None, 1),
            ("defense-gan, unrolled", 8, None, 2),
            ("defense-gan, unrolled", 1, None, 0),
            ("projection", None, None, 0),
        ],
    )
    def test_a_surrogate_takes_a_quarter_of_the_steps(self, name, depth, steps, fewer):
        model = purify(Threshold(), PURIFIERS[name][0], depth, steps)
        assert _fewer(model) == fewer
        if fewer:
            model.with_gradient_of(fewer)

    def test_doubts_are_added_once_and_not_to_the_list_that_was_given(self, ledger):
        blind = replace(ledger.rows["oblivious"], answers=torch.zeros_like(ledger.rows["oblivious"].answers))
        given = ["of the caller"]
        report = replace(ledger, rows=ledger.rows | {"oblivious": blind}, notes=given)
        assert given == ["of the caller"]
        assert len(report.notes) == 2
        assert "stronger attacks are missing" in report.notes[1]
        assert replace(report, name="again").notes == report.notes

    def test_one_draw_of_a_gradient_is_no_adaptive_attack(self):
        x, y = torch.full((2, 1, 2, 2), 0.7), torch.tensor([1, 1])
        with pytest.warns(UserWarning, match=r"eot=1 .* of a random defence that is no adaptive attack"):
            report = random_defence(coin(0.2), x, y, attacks=["pgd"], **SETTINGS | {"eot": 1})
        assert "eot=1" in report.notes[0]

    def test_what_draws_nothing_is_asked_once(self):
        model, x = behind("projection")
        with torch.no_grad():
            y = model(x).argmax(1)
        report = random_defence(model, x, y, attacks=["apgd"], **SETTINGS | {"eot": 1})
        assert (report.k, report.draws, report.eot) == (1, 1, 1)
        assert torch.equal(report.fixed, report.worst.vote)
        assert "nothing is drawn" in str(report)
        assert "seed" not in report.rows

    def test_nothing_is_shown_without_an_adaptive_row(self, ledger):
        x, y = torch.full((2, 1, 2, 2), 0.7), torch.tensor([1, 1])
        with pytest.raises(ValueError, match="attacks must hold pgd or apgd"):
            random_defence(coin(0.2), x, y, attacks=["bpda", "square"], **SETTINGS)
        others = {key: row for key, row in ledger.rows.items() if row.kind != "adaptive"}
        line = "a purified accuracy is not shown without its adaptive row"
        with pytest.raises(ValueError, match=line):
            RandomDefenceReport(**{**vars(ledger), "rows": others})
        record = {"format": 1, "defence": ledger.to_dict() | {"rows": {k: r.to_dict() for k, r in others.items()}}}
        for draw in (random_defence_html, random_defence_markdown):
            with pytest.raises(ValueError, match=line):
                draw(record)

    @pytest.mark.parametrize(
        ("change", "error", "line"),
        [
            ({"model": Threshold()}, TypeError, "takes what robustgen.purify gives, got Threshold"),
            ({"draws": 4}, ValueError, "draws=4 cannot say what k=5 draws do"),
            ({"attacks": ["pdg"]}, ValueError, "unknown attack 'pdg'; did you mean 'pgd'"),
            ({"attacks": ["pgd", "surrogate"]}, ValueError, "no fewer steps to take a gradient of"),
            ({"eot": 0}, ValueError, "eot must be at least 1"),
            ({"x": torch.zeros(0, 1, 2, 2), "y": torch.zeros(0).long()}, ValueError, "the data set is empty"),
            (
                {"model": purify(Threshold(), DeepImagePrior((1, 2, 2), width=2), 1), "attacks": ["pgd", "bpda"]},
                ValueError,
                "this purifier has no gradient of its own",
            ),
        ],
    )
    def test_errors(self, change, error, line):
        asked = {"model": coin(0.2), "x": torch.full((2, 1, 2, 2), 0.7), "y": torch.tensor([1, 1]), **SETTINGS} | change
        with pytest.raises(error, match=line):
            random_defence(asked.pop("model"), asked.pop("x"), asked.pop("y"), **asked)

    @pytest.mark.parametrize("steps", [0, 5])
    def test_steps_that_the_chain_has_not_are_refused_before_any_attack(self, steps):
        with pytest.raises(ValueError, match="steps"):
            purify(Threshold(), TinyDiffusion().eval(), 4).with_gradient_of(steps)

    def test_a_killed_one_goes_on(self, tmp_path, monkeypatch):
        x, y = torch.full((6, 1, 2, 2), 0.7), torch.ones(6, dtype=torch.int64)
        x += torch.arange(6).view(-1, 1, 1, 1) / 100
        asked = SETTINGS | {"attacks": ["pgd"], "batch_size": 2}
        whole = random_defence(coin(0.2), x, y, **asked)

        def killed(*args, **kwargs):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("robustgen.attacks.pgd.PGD._search", killed)
            with pytest.raises(KeyboardInterrupt):
                random_defence(coin(0.2), x, y, run_dir=tmp_path, **asked)
        with pytest.raises(ValueError, match="already holds draws: resume"):
            random_defence(coin(0.2), x, y, run_dir=tmp_path, **asked)
        with pytest.raises(ValueError, match="draws of another evaluation: purifier differs"):
            random_defence(
                purify(Threshold().eval(), TinyDiffusion((1, 2, 2)), 2), x, y, run_dir=tmp_path, resume=True, **asked
            )
        runs, run = [], APGD.run
        monkeypatch.setattr("robustgen.attacks.apgd.APGD.run", lambda *a, **k: runs.append(a) or run(*a, **k))
        resumed = random_defence(coin(0.2), x, y, run_dir=tmp_path, resume=True, **asked)
        assert len(runs) == 3  # those on one seed; the oblivious ones were done
        left_out = ("environment", "wall_seconds")
        first, second = ({k: v for k, v in r.to_dict().items() if k not in left_out} for r in (whole, resumed))
        assert first == second


class TestPage:
    def test_it_is_drawn_again_from_the_record(self, ledger, tmp_path, capsys):
        path = ledger.save(tmp_path, command="robustgen attack <b>")
        page = path.read_text()
        assert path.name == "random_defence.html"
        assert "&lt;b&gt;" in page
        assert "<b>" not in page.replace("<b>", "", 0) or "attack <b>" not in page
        for words in (
            "What purification is worth",
            "The ledger",
            "resubmission, 5 times",
            "APGD-3 on draws of one seed",
        ):
            assert words in page
        path.unlink()
        assert cli.main(["report", str(tmp_path)]) == 0
        assert path.read_text() == page
        capsys.readouterr()
        assert cli.main(["report", str(tmp_path), "--markdown"]) == 0
        assert "removal of perturbations" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("spoil", "line"),
        [
            (lambda d: d.pop("rows"), "lacks defence.rows"),
            (lambda d: d["rows"].pop("clean"), "defence.rows lacks clean"),
            (lambda d: d["rows"]["pgd"].update(kind="best"), "unknown kind 'best'"),
            (lambda d: d["rows"]["pgd"]["vote"].update(value=2), "defence.rows.pgd.vote.value"),
            (lambda d: d["rows"]["pgd"]["vote"].update(n=7), "every share must be of the same inputs"),
            (lambda d: d["fixed"].update(value=0.5, low=0.6), "a share lies outside its interval"),
            (lambda d: d.update(k=0), "defence.k"),
            (lambda d: [row.update(kind="oblivious") for row in d["rows"].values()], "without its adaptive row"),
        ],
    )
    def test_a_spoilt_record_is_refused(self, ledger, tmp_path, spoil, line):
        found = json.loads(json.dumps(ledger.to_dict()))
        spoil(found)
        path = tmp_path / "random_defence.json"
        path.write_text(json.dumps({"format": 1, "defence": found}))
        with pytest.raises(ValueError, match=re.escape(line)):
            load_random_defence(path)

    def test_an_accuracy_that_tries_take_back(self, ledger, tmp_path):
        entry = json.loads(json.dumps(ledger.to_dict()))
        entry["undefended"] = {"value": 0.1, "low": 0.05, "high": 0.2, "n": 40}
        entry["rows"]["worst"]["all_right"] = {"value": 0.1, "low": 0.05, "high": 0.2, "n": 40}
        page = write_random_defence(entry, tmp_path).read_text()
        assert "What it adds to the network alone is gone where the attacker may submit 5 times." in page


class TestCommand:
    def test_the_ledger_from_the_shell(self, tmp_path, capsys, monkeypatch):
        run, out = tmp_path / "denoiser", tmp_path / "out"
        with seeded(0):
            Denoiser((1, 8, 8), width=2, levels=1).save(run)
        monkeypatch.setattr("robustgen.commands.purify.random_defence", _quick)
        common = ["--run", "example:digits", "--limit", "4", "--quiet"]
        purified = [
            "attack",
            *common,
            "--purify",
            str(run),
            "--depth",
            "0.2",
            "--eot",
            "2",
            "--draws",
            "6",
            "--resubmit",
            "3",
        ]
        assert cli.main([*purified, "--out", str(out)]) == 0
        shown = capsys.readouterr().out
        assert "mean of 2 draws" in shown
        assert "all of 3 right" in shown
        assert f"what it is worth: {out / 'random_defence.html'}" in shown
        assert cli.main(["attack", "--out", str(out), "--resume", "--quiet"]) == 0  # with its options
        assert "all of 3 right" in capsys.readouterr().out
        assert cli.main(["attack", "--out", str(out), "--resume", "--eot", "3"]) == 2
        assert "--eot was 2, now 3" in capsys.readouterr().err

    def test_two_processes_share_the_work_and_give_the_ledger_of_one(self, tmp_path):
        with seeded(0):
            Denoiser((1, 8, 8), width=2, levels=1).save(tmp_path / "denoiser")
        (tmp_path / "script.py").write_text(SCRIPT)
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "--"]
        found = {}
        for name, command in (("one", [sys.executable]), ("two", torchrun)):
            options = ["--purify", "denoiser", "--depth", "0.2", "--eot", "2", "--draws", "4", "--resubmit", "2"]
            options += ["--run", "example:digits", "--limit", "4", "--batch-size", "3", "--quiet", "--out", name]
            done = subprocess.run(
                [*command, "script.py", "attack", *options], cwd=tmp_path, capture_output=True, text=True, timeout=600
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout.count("what it is worth: ") == 1
            found[name] = json.loads((tmp_path / name / "random_defence.json").read_text())["defence"]
            for differs in ("wall_seconds", "environment"):
                found[name].pop(differs)
        assert found["one"] == found["two"]
        runs = [int((tmp_path / f"runs-{name}").read_text()) for name in ("0-of-2", "1-of-2", "0-of-1")]
        assert runs[0] + runs[1] == runs[2]
        assert min(runs) > 0

    @pytest.mark.parametrize(
        ("options", "line"),
        [
            (["--depth", "2"], "--depth is about --purify"),
            (["--purify", "{run}", "--depth", "0.2", "--suite", "quick"], "--suite does not go with --purify"),
            (["--purify", "{run}", "--depth", "7"], "depth is a standard deviation from 0.1 to 1"),
            (["--purify", "{other}", "--depth", "0.2"], "is of images (1, 4, 4), the network takes (1, 8, 8)"),
            (["--purify", "{run}", "--depth", "0.2", "--draws", "3"], "--draws 3 cannot say what --resubmit 10 draws"),
            (["--purify", "{run}", "--depth", "0.2", "--resubmit", "0"], "--resubmit must be at least 1, got 0"),
            (["--purify", "{run}", "--depth", "nan"], "--depth must be a finite number > 0, got nan"),
            (["--purify", "{run}", "--depth", "0.2", "--eot", "-1"], "--eot must be at least 1, got -1"),
            (["--purify", "{run}", "--depth", "0.2", "--draws", "0"], "--draws must be at least 1, got 0"),
            (["--purify", "{run}", "--depth", "0.2", "--chain-steps", "0"], "--chain-steps must be at least 1, got 0"),
            (["--purify", "{run}", "--depth", "0.2", "--resume"], "--resume goes on with the evaluation in --out"),
        ],
    )
    def test_wrong_use(self, tmp_path, capsys, options, line):
        for name, shape in (("run", (1, 8, 8)), ("other", (1, 4, 4))):
            Denoiser(shape, width=2, levels=1).save(tmp_path / name)
        options = [o.format(run=tmp_path / "run", other=tmp_path / "other") for o in options]
        assert cli.main(["attack", "--run", "example:digits", "--limit", "4", "--quiet", *options]) == 2
        assert line in capsys.readouterr().err


SCRIPT = textwrap.dedent(
    """
    import os, pathlib, sys, torch
    from functools import partial
    from robustgen import cli
    from robustgen.attacks import Attack
    from robustgen.commands import purify
    torch.set_num_threads(1)
    purify.random_defence = partial(purify.random_defence, steps=2, n_queries=2)
    runs, run = [], Attack.run
    Attack.run = lambda *a, **k: runs.append(a) or run(*a, **k)
    code = cli.main(sys.argv[1:])
    rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    pathlib.Path(f"runs-{rank}-of-{size}").write_text(str(len(runs)))
    sys.exit(code)
    """
)


def _quick(*args, **settings):
    return random_defence(*args, steps=2, n_queries=2, **settings)
