"""Exponential tilting against closed forms, its chains, what is kept of them, and its guard."""

import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import robustgen.generative as room
from robustgen.data import digits
from robustgen.detectors import Likelihood
from robustgen.files import check_state
from robustgen.generative import GenerativeModel, Tilted, fit, load
from robustgen.generative.energy.energy_guard import EnergyGuard, energy_overlap
from robustgen.generative.energy.langevin import langevin
from robustgen.training import Batch, load_checkpoint
from robustgen.training.distributed import World

SHAPE = (1, 8, 8)


class Line(GenerativeModel):
    """x = 2 z + 1, z ~ N(0, 1): a number for an image, N(1, 4)."""

    log_prob_kind = "exact"

    def __init__(self, shape=(1, 1, 1)):
        super().__init__(shape)
        self.scale = nn.Parameter(torch.tensor(2.0))

    noise_shape = property(lambda self: (1,))

    def _from_noise(self, eps):
        return (self.scale * eps + 1).view(-1, 1, 1, 1)

    def _log_prob(self, x):
        return torch.distributions.Normal(1.0, 2.0).log_prob(x).flatten(1).sum(1)

    def _sample(self, n, generator):
        return self._from_noise(torch.randn(n, 1, generator=generator))

    def training_step(self, batch, step):
        raise NotImplementedError


class Parabola(nn.Module):
    """(x - 3)^2 / 2."""

    def __init__(self):
        super().__init__()
        self.centre = nn.Parameter(torch.tensor(3.0))

    def forward(self, x):
        return (x - self.centre).square().flatten(1).sum(1) / 2


class Steep(nn.Module):
    """An energy that falls without end."""

    def forward(self, x):
        return -1e3 * x.square().flatten(1).sum(1)


def vae(**options):
    """One with Gaussian pixels whose decoder is no straight line."""
    torch.manual_seed(1)
    model = room.VAE(SHAPE, latent_dim=3, architecture="mlp", width=16, likelihood="gaussian", scale=0.1, **options)
    with torch.no_grad():
        for p in model.decoder.parameters():
            p *= 3
    return model


def images(n=32):
    return digits("train").images()[:n]


# --- the density -------------------------------------------------------------------------------------------------


def test_a_gaussian_tilted_by_a_parabola_is_the_gaussian_of_the_product():
    """N(1, 4) exp(-(x - 3)^2 / 2) has precision 1/4 + 1, mean 2.6 and variance 0.8."""
    model = Tilted(Line(), Parabola(), step_size=0.05, adjusted=True).eval()
    generator = torch.Generator().manual_seed(0)
    x, eps = model._chains(model._fresh(20_000, generator), 200, generator)
    assert torch.allclose(x.flatten(), 2 * eps.flatten() + 1)
    assert x.mean().item() == pytest.approx(2.6, abs=4 * math.sqrt(0.8 / 20_000))
    assert x.var().item() == pytest.approx(0.8, rel=0.05)


class Wells(nn.Module):
    """Two wells of the line, 12 apart with a wall between them, the right one log 3 deeper."""

    def __init__(self):
        super().__init__()
        self.depth = nn.Parameter(torch.tensor(math.log(3.0)))

    def forward(self, x):
        x = x.flatten()
        return torch.where((x - 1).abs() < 1, 50.0, 0.0) - torch.where(x > 1, self.depth, 0.0)


def test_chains_find_how_likely_far_modes_are():
    """Of N(1, 4) outside the wall the two sides are alike, so three in four samples lie on the right."""
    model = Tilted(Line(), Wells(), step_size=0.01, adjusted=True, steps=5).eval()
    generator = torch.Generator().manual_seed(0)
    x = model._chains(model._fresh(4000, generator), 100, generator)[0].flatten()
    assert (x > 1).double().mean().item() == pytest.approx(0.75, abs=0.03)
    assert ((x - 1).abs() > 1).all()


def test_log_z_of_that_gaussian():
    """Z = N(3; 1, 5) sqrt(2 pi)."""
    exact = torch.distributions.Normal(1.0, math.sqrt(5)).log_prob(torch.tensor(3.0)).item() + 0.5 * math.log(
        2 * math.pi
    )
    found = Tilted(Line(), Parabola()).log_partition(100_000, torch.Generator().manual_seed(0))
    assert abs(found.value - exact) < 3 * found.standard_error < 0.05
    assert 1000 < found.effective_samples < 100_000


def test_the_gradient_is_that_of_the_likelihood():
    """Of -E log p by the parabola's centre c: E_data (c - x) - E_p (c - x), with p the product's Gaussian."""
    torch.manual_seed(0)
    model = Tilted(Line(), Parabola(), step_size=0.05, adjusted=True, steps=100, regularisation=0.0).train()
    x = 0.5 + 0.1 * torch.randn(20_000, 1, 1, 1)
    model.training_step(Batch(x, None, torch.arange(len(x))), 0)["loss"].backward()
    assert model.network.centre.grad.item() == pytest.approx(2.6 - x.mean().item(), abs=0.04)
    assert all(p.grad is None for p in model.base.parameters())


def test_without_a_tilt_the_noise_stays_standard_normal_where_the_base_has_noise_of_its_own_scale():
    """f = 0 leaves N(0, I) alone; a chain that forgot the change of scale would drift to where scales are small."""
    model = Tilted(room.TopDownVAE(SHAPE, groups=2, latent_channels=1, width=4), space="joint", step_size=0.1)
    with torch.no_grad():
        for p in model.base.way_down.parameters():
            p += 0.3 * torch.randn_like(p)  # scales that depend on the groups above
        for p in model.network.parameters():
            p.zero_()
    generator = torch.Generator().manual_seed(0)
    model.adjusted = True
    eps = model._chains(model._fresh(2000, generator), 20, generator)[1]
    assert eps.mean().abs().item() < 0.01
    assert eps.var().item() == pytest.approx(1, abs=0.01)


def test_a_chain_in_noise_is_one_in_latents_with_steps_of_their_scale():
    """eps-chains of step a and chains of c = m + s eps of step s^2 a are the same, noise for noise (equation 4.29)."""
    m, s, a = 0.7, 0.3, 0.02

    def of_c(c):
        return c.pow(4).sum(1) + ((c - m) / s).square().sum(1) / 2

    eps = langevin(
        lambda e: of_c(m + s * e), torch.zeros(5, 2).double(), 30, a, generator=torch.Generator().manual_seed(0)
    )
    c = langevin(of_c, torch.full((5, 2), m).double(), 30, s * s * a, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(m + s * eps, c, atol=1e-10)


def test_steps_that_are_too_large_are_refused_not_taken():
    """E = 5000 x^2: steps of 0.01 blow up; by the rule of Metropolis and Hastings chains stay finite."""
    energy = lambda x: 5000 * x.square().sum(1)
    start = torch.full((100, 1), 0.01)
    assert not langevin(energy, start, 50, 0.01).isfinite().all()
    adjusted = langevin(energy, start, 50, 0.01, adjusted=True)
    assert (energy(adjusted) <= energy(start) + 20).all()
    with pytest.raises(ValueError, match="choose one"):
        langevin(energy, start, 1, 0.01, adjusted=True, reflected=True)


def test_the_score_is_that_of_the_base_less_the_energy_and_the_base_is_left():
    base = vae().eval()
    before = {k: v.clone() for k, v in base.state_dict().items()}
    model = Tilted(base, width=4, space="joint", steps=2)
    fit(model, images(), epochs=1, batch_size=16, progress=False)
    x = images(5)
    assert torch.equal(model.log_prob(x), base.log_prob(x) - model.energy(x))
    assert torch.equal(
        model.importance_weighted_log_prob(x, samples=7), base.importance_weighted_log_prob(x, 7) - model.energy(x)
    )
    for now in (base.state_dict(), model.base.state_dict()):
        assert all(torch.equal(now[k], v) for k, v in before.items())
    assert all(p.requires_grad for p in base.parameters())
    assert Likelihood(model, importance_samples=3).fit(x).score(x).shape == (5,)
    assert not hasattr(Tilted(room.RealNVP(SHAPE, width=4), width=4), "importance_weighted_log_prob")


def test_a_flow_and_its_energy_see_the_same_points():
    """Levels alone must not tell data from negatives: f sees both with dequantization noise, and scores are fixed."""
    model = Tilted(room.RealNVP(SHAPE, levels=17, width=4), width=4).eval()
    x = images(4)
    seen = []
    model.network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    assert torch.equal(model.energy(x), model.energy(x))
    v = (16 * x).round() / 16
    assert torch.equal(seen[0], seen[1])
    assert ((seen[0] * 17).floor() / 16 - v).abs().max() < 1e-5
    assert not torch.equal(seen[0], v)


@pytest.mark.parametrize("space", ["noise", "joint", "image", "pair"])
def test_every_space_gives_images_and_learns(space):
    model = Tilted(vae(), width=4, space=space, steps=2, sample_steps=2, step_size=1e-3)
    weights = [p.clone() for p in model.network.parameters()]
    history = fit(model, images(), epochs=1, batch_size=16, progress=False)
    assert {"data_energy", "sample_energy", "overlap", "loss"} <= history[0].keys()
    assert not all(torch.equal(a, b) for a, b in zip(weights, model.network.parameters(), strict=True))
    assert model.sample(3).shape == (3, *SHAPE)
    assert model.log_prob(images(2)).shape == (2,)


def test_in_the_space_of_images_the_base_only_begins_chains():
    model = Tilted(vae(), width=4, space="image").eval()
    x = images(3)
    assert torch.equal(model.log_prob(x), -model.energy(x))
    with pytest.raises(ValueError, match="no tilt of the base"):
        model.log_partition(10)
    assert not hasattr(model, "importance_weighted_log_prob")  # of a density that the base is no part of
    with pytest.raises(TypeError, match="has no importance-weighted bound"):
        Likelihood(model, importance_samples=5)


@pytest.mark.parametrize("space", ["noise", "joint", "pair"])
def test_chains_that_leave_for_good_are_named(space):
    model = Tilted(Line() if space == "noise" else vae(), Steep(), space=space, step_size=1.0).eval()
    with pytest.raises(FloatingPointError, match="left the range of the data for good: take a smaller step_size"):
        model.sample(2)


def test_an_energy_of_ones_own_is_copied():
    own = Parabola()
    model = Tilted(Line(), own).double()
    assert own.centre.dtype == torch.float32
    assert model.network.centre.dtype == torch.float64


# --- what is kept, and what changes the base ---------------------------------------------------------------------


def test_chains_go_on_from_the_buffer():
    model = Tilted(vae(), width=4, space="joint", steps=1, step_size=1e-6, persistent=1.0, warm_up=0, buffer_size=16)
    kept = model.replay.clone()
    model.train().training_step(Batch(images(16), None, torch.arange(16)), 0)
    moved = (model.replay - kept).abs().amax(1)
    assert (moved > 0).all()
    assert (moved < 0.02).all()  # each from where it was, none anew


def test_a_killed_training_resumes_bitwise_with_its_chains(tmp_path):
    def made():
        torch.manual_seed(0)
        return Tilted(vae(), width=4, space="joint", steps=2, persistent=0.9, warm_up=3, buffer_size=32)

    options = {"batch_size": 16, "seed": 3, "progress": False}
    whole, half = made(), made()
    fit(whole, images(), epochs=4, **options)
    fit(half, images(), epochs=2, run_dir=tmp_path, **options)
    again = made()
    fit(again, images(), epochs=4, run_dir=tmp_path, resume=True, **options)
    a, b = whole.state_dict(), again.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert "replay" in a
    assert torch.equal(
        load(tmp_path).base.sample(2, torch.Generator().manual_seed(0)),
        vae().eval().sample(2, torch.Generator().manual_seed(0)),
    )


def test_a_buffer_of_another_base_is_named(tmp_path):
    options = {"width": 4, "space": "joint", "steps": 1, "persistent": 0.5, "buffer_size": 32}
    Tilted(vae(), **options).save(tmp_path)
    other = Tilted(
        room.VAE(SHAPE, latent_dim=5, architecture="mlp", width=16, likelihood="gaussian", scale=0.1), **options
    )
    with pytest.raises(ValueError, match="replay"):
        check_state(other, load_checkpoint(tmp_path).model_state, "model.safetensors")


def test_a_base_that_learns_lowers_the_energy_of_its_samples():
    """Equation 4.34: its step is that of a generator of a Wasserstein GAN, and the encoder is left."""
    base = vae()
    model = Tilted(base, width=4, steps=0, base_lr=1e-2)
    encoder = {k: v.clone() for k, v in model.base.encoder.state_dict().items()}
    eps = torch.randn(200, 3)
    before = model.energy(model.base.from_noise(eps)).mean()
    assert model.player_at(1) == "generator"
    optimizer = model.optimizer(p for p in model.base.parameters() if p.requires_grad)
    assert optimizer.param_groups[0]["lr"] == 1e-2
    for _ in range(5):
        optimizer.zero_grad()
        model.training_step(Batch(images(16), None, torch.arange(16)), 1)["loss"].backward()
        optimizer.step()
    assert model.energy(model.base.from_noise(eps)).mean() < before
    assert all(torch.equal(v, encoder[k]) for k, v in model.base.encoder.state_dict().items())
    history = fit(model, images(), epochs=1, batch_size=8, progress=False)
    assert {"energy_loss", "generator_loss"} <= history[0].keys()


def test_a_discriminator_is_a_tilt_of_its_generator():
    gan = room.DCGAN(SHAPE, latent_dim=4, width=4).eval()
    model = Tilted(gan, "discriminator", sample_steps=3).eval()
    x = images(3)
    assert torch.equal(model.energy(x), -gan.discriminate(x))
    assert model.log_prob_kind is None
    assert model.sample(2).shape == (2, *SHAPE)
    assert Tilted(**json.loads(json.dumps(model.config))).energy_kind == "discriminator"


def test_the_spectral_penalty_is_the_largest_singular_value():
    model = Tilted(vae(), width=4, layers=1, architecture="mlp", spectral=0.2)
    for _ in range(30):
        found = model._vectors(model.network)
    exact = sum(torch.linalg.matrix_norm(m.weight, 2) for m in model.network.modules() if isinstance(m, nn.Linear))
    assert found.item() == pytest.approx(exact.item(), rel=1e-3)
    (gradient,) = torch.autograd.grad(found, model.network[1].weight)
    u, _, v = torch.linalg.svd(model.network[1].weight)
    assert torch.allclose(gradient, u[:, :1] @ v[:1], atol=1e-2)


def test_overlap():
    a = torch.randn(100)
    assert energy_overlap(a, a).item() == pytest.approx(1, abs=1e-6)
    assert energy_overlap(a, a + 100).item() == energy_overlap(a + 100, a).item() == 0


# --- the guard ---------------------------------------------------------------------------------------------------


def test_where_energies_part_the_weights_from_before_come_back():
    """With its defaults, on a base that makes other images than data: f learns to tell them apart."""
    torch.manual_seed(0)
    model = Tilted(vae(), width=8, steps=0)
    assert model.guard() == EnergyGuard()
    options = {"optimizer": lambda p: torch.optim.Adam(p, lr=1e-2), "guard": EnergyGuard(every=2)}
    with pytest.warns(
        UserWarning, match=r"energies have parted at step \d+: .* the run ends with the weights of step \d+"
    ):
        history = fit(model, images(), epochs=80, batch_size=16, progress=False, **options)
    assert history[-1]["step"] < 160
    assert model.overlap >= 0.08
    assert history[-1]["kept_step"] < history[-1]["step"]


def test_where_energies_have_parted_by_the_first_look_the_weights_of_the_start_come_back(tmp_path):
    torch.manual_seed(0)
    model = Tilted(vae(), width=8, steps=0, regularisation=0.0)
    start = {k: v.clone() for k, v in model.state_dict().items()}
    options = {"batch_size": 16, "progress": False, "guard": EnergyGuard(least=0.999, every=1)}
    for resume in (False, True):
        with pytest.warns(UserWarning, match=r"have parted at step 1: .* ends with the weights of step 0"):
            history = fit(model, images(), epochs=2, run_dir=tmp_path, resume=resume, **options)
        assert history[-1]["kept_step"] == 0
        assert all(torch.equal(v, start[k]) for k, v in model.state_dict().items())
        assert all(torch.equal(v, start[k]) for k, v in load_checkpoint(tmp_path).model_state.items())


def test_all_processes_judge_by_the_mean_of_their_overlaps():
    class Two(World):
        def reduce(self, tensor, lowest=False):
            return tensor.add_(0.01)  # the overlap of the other

    model = Tilted(vae(), width=4)
    model.overlap.fill_(0.025)
    found = EnergyGuard().judge(model, Batch(images(2), None, torch.arange(2)), 50, Two(0, 2), 0.0)
    assert found.row["overlap_of_late"] == pytest.approx(0.0175)
    assert "overlap by 0.018 of 1" in found.wrong
    assert model.overlap.item() == pytest.approx(0.025)


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Tilted(nn.Linear(1, 1)), TypeError, "base must be a generative model, got Linear"),
        (
            lambda: Tilted(room.PixelCNN(SHAPE, width=4, layers=1)),
            ValueError,
            "PixelCNN makes no images of normal noise",
        ),
        (
            lambda: Tilted(room.HierarchicalPixelVAE(SHAPE, width=4, latent_channels=1, layers=0, prior_layers=1)),
            ValueError,
            "have no gradient",
        ),
        (lambda: Tilted(vae(), nn.Linear(3, 1)), ValueError, "the energy does not take images"),
        (lambda: Tilted(vae(), nn.Flatten()), ValueError, r"one number for each image, \(N,\); of two images"),
        (lambda: Tilted(vae(), "other"), TypeError, "'network', 'discriminator' or a module"),
        (lambda: Tilted(vae(), "discriminator"), ValueError, "of a GAN: VAE has none"),
        (lambda: Tilted(vae(), space="z"), ValueError, "space must be one of noise, joint, image, pair"),
        (lambda: Tilted(room.RealNVP(SHAPE, width=4), space="joint"), ValueError, "of a VAE with Gaussian pixels"),
        (lambda: Tilted(vae(), step_size=2.0), ValueError, r"step_size must lie in \(0, 2\)"),
        (lambda: Tilted(vae(), persistent=1.5), ValueError, r"persistent must be in \[0, 1\]"),
        (lambda: Tilted(vae(), persistent=0.5, space="image"), ValueError, "chains persist in noise alone"),
        (lambda: Tilted(vae(), persistent=0.5, base_lr=1e-3), ValueError, "set base_lr or persistent"),
        (lambda: Tilted(vae(), space="image", adjusted=True), ValueError, "leave adjusted out"),
        (
            lambda: fit(Tilted(vae(), persistent=0.5, buffer_size=8), images(), batch_size=16, progress=False),
            ValueError,
            "a batch of 16 needs as many chains: set buffer_size to at least 16",
        ),
        (
            lambda: Tilted(vae(), persistent=0.5, buffer_size=8).training_step(
                Batch(images(9), None, torch.arange(9)), 0
            ),
            ValueError,
            "set buffer_size to at least 9",
        ),
        (lambda: Tilted(vae(), spectral=-1.0), ValueError, "spectral must be a finite number >= 0"),
        (lambda: Tilted({"model_class": "VAE"}), ValueError, "base: lacks model"),
        (lambda: Tilted({"model_class": "Nothing", "model": {}}), ValueError, "holds no generative model"),
        (lambda: Tilted({"model_class": "VAE", "model": {"wide": 3}}), ValueError, "is no argument of VAE"),
        (lambda: EnergyGuard(least=1.0), ValueError, "least must be"),
    ],
)
def test_wrong_input_is_one_line(make, error, message):
    with pytest.raises(error, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_an_energy_of_ones_own_is_saved_but_not_built_again(tmp_path):
    model = Tilted(vae(), nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Flatten(0)))
    model.save(tmp_path)
    with pytest.raises(ValueError, match="a module of its user's"):
        load(tmp_path)


def test_energies_of_any_network_have_a_gradient_and_their_architecture():
    x = torch.rand(3, *SHAPE).double()
    for architecture in ("conv", "residual", "mlp", "fourier"):
        network = room.Tilted(vae(), width=4, architecture=architecture).network.double()
        assert torch.autograd.gradcheck(network, x.requires_grad_())
        assert F.mse_loss(network(x[:1]), network(x)[:1]).item() < 1e-20
    with pytest.raises(ValueError, match="leave layers out"):
        room.Tilted(vae(), layers=2)
    with pytest.raises(ValueError, match="architecture must be one of"):
        room.Tilted(vae(), architecture="resnet")
