"""One contract for every generative model, found in ``generative.__all__``; what is particular to each is elsewhere."""

import copy
import inspect
import json
import math
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import numpy_numbers

import robustgen.generative as room
from robustgen.data import digits
from robustgen.fingerprint import fingerprint, model_fingerprint
from robustgen.generative import GenerativeModel, fit, load, model_classes
from robustgen.generative.latent.autoencoder import AutoEncoder
from robustgen.training import Batch, latest_checkpoint

SHAPE = (1, 8, 8)

# For each public model, tiny configurations for images of 8 x 8; one without fails the test below.
SMALL = {
    "VAE": [
        lambda: room.VAE(SHAPE, latent_dim=3, width=4, quantization="stochastic", kl_warmup=8),
        lambda: room.VAE(SHAPE, latent_dim=3, architecture="mlp", width=16, likelihood="gaussian"),
        lambda: room.VAE(SHAPE, latent_dim=3, width=4, quantization="nearest", importance_samples=3),
        lambda: room.VAE(
            SHAPE, latent_dim=3, architecture="mlp", width=16, likelihood="discretized_logistic", levels=17
        ),
    ],
    "IAFVAE": [
        lambda: room.IAFVAE(SHAPE, latent_dim=3, width=4, flow_width=8, context_dim=4, quantization="nearest"),
        lambda: room.IAFVAE(
            SHAPE,
            latent_dim=16,
            architecture="mlp",
            width=16,
            flow_network="conv",
            flow_width=4,
            quantization="nearest",
        ),
    ],
    "GLF": [
        lambda: room.GLF(SHAPE, latent_dim=3, architecture="mlp", width=16, flow_width=8),
        lambda: room.GLF(SHAPE, latent_dim=4, width=4, flow_blocks=2, flow_width=8, stop_gradient=False, beta=50.0),
    ],
    "FlowPriorVAE": [
        lambda: room.FlowPriorVAE(SHAPE, latent_dim=3, architecture="mlp", width=16, beta=None, flow_width=8),
        lambda: room.FlowPriorVAE(SHAPE, latent_dim=3, width=4, beta=20.0, flow_width=8, importance_samples=2),
    ],
    "FlowPosteriorVAE": [
        lambda: room.FlowPosteriorVAE(
            SHAPE, latent_dim=3, architecture="mlp", width=16, beta=20.0, flow_width=8, kl_warmup=8
        ),
    ],
    "TwoStageVAE": [
        lambda: room.TwoStageVAE(SHAPE, latent_dim=3, architecture="mlp", width=16, second_width=8),
    ],
    "NCPVAE": [
        lambda: room.NCPVAE(SHAPE, latent_dim=3, architecture="mlp", width=16, classifier_width=8, proposals=5),
        lambda: room.NCPVAE(SHAPE, latent_dim=3, width=4, classifier_width=8, proposals=5, beta=20.0, first_steps=6),
    ],
    "VampPriorVAE": [
        lambda: room.VampPriorVAE(SHAPE, latent_dim=3, architecture="mlp", width=16, prior_components=5),
        lambda: room.VampPriorVAE(SHAPE, latent_dim=3, width=4, prior_components=5, beta=20.0, kl_warmup=8),
    ],
    "RAE": [lambda: room.RAE(SHAPE, latent_dim=3, architecture="mlp", width=16, components=2)],
    "WAE": [
        lambda: room.WAE(SHAPE, latent_dim=3, architecture="mlp", width=16),
        lambda: room.WAE(SHAPE, latent_dim=3, width=4, penalty="gan", discriminator_width=8),
    ],
    "TopDownVAE": [
        lambda: room.TopDownVAE(SHAPE, groups=3, latent_channels=2, width=4),
        lambda: room.TopDownVAE(SHAPE, groups=1, latent_channels=1, width=4, scale=0.1, importance_samples=2),
    ],
    "Tilted": [
        lambda: room.Tilted(room.RealNVP(SHAPE, levels=17, width=4), width=4, steps=3, sample_steps=3),
        lambda: room.Tilted(
            room.TopDownVAE(SHAPE, groups=2, latent_channels=1, width=4),
            architecture="residual",
            layers=1,
            width=4,
            space="joint",
            steps=2,
            sample_steps=2,
            persistent=0.6,
            warm_up=4,
            buffer_size=40,
            spectral=0.2,
        ),
        lambda: room.Tilted(room.DCGAN(SHAPE, latent_dim=4, width=4), width=4, steps=0, sample_steps=2, base_lr=1e-4),
    ],
    "PixelVAE": [
        lambda: room.PixelVAE(SHAPE, latent_dim=3, layers=2, kernel_size=3, width=4, quantization="stochastic"),
        lambda: room.PixelVAE(SHAPE, latent_dim=3, conditioning="bias", layers=1, width=4, levels=17, kl_warmup=8),
    ],
    "HierarchicalPixelVAE": [
        lambda: room.HierarchicalPixelVAE(
            SHAPE,
            latent_channels=2,
            top_latent_dim=3,
            width=4,
            layers=1,
            prior_layers=1,
            levels=2,
            quantization="nearest",
        ),
    ],
    "PixelCNN": [lambda: room.PixelCNN(SHAPE, levels=2, quantization="nearest", width=8, layers=2)],
    "GatedPixelCNN": [
        lambda: room.GatedPixelCNN(SHAPE, levels=2, quantization="stochastic", width=8, layers=2, kernel_size=3),
        lambda: room.GatedPixelCNN(SHAPE, levels=17, width=8, layers=1, kernel_size=3),
    ],
    "PixelCNNPlusPlus": [lambda: room.PixelCNNPlusPlus(SHAPE, levels=17, width=8, blocks=1, components=3)],
    "PixelRNN": [
        lambda: room.PixelRNN(SHAPE, levels=2, quantization="nearest", variant="row", width=4, layers=2),
        lambda: room.PixelRNN(SHAPE, levels=2, quantization="nearest", variant="diagonal", width=4, layers=1),
    ],
    "DCGAN": [
        lambda: room.DCGAN(SHAPE, latent_dim=4, width=4),
        lambda: room.DCGAN(SHAPE, latent_dim=4, width=4, bn_in_discriminator=True, virtual_batch_norm=5),
    ],
    "LSGAN": [
        lambda: room.LSGAN(
            SHAPE,
            latent_dim=4,
            width=4,
            bn_in_discriminator=True,
            generator_objective="feature_matching",
            historical_averaging=0.1,
            input_noise=0.2,
        )
    ],
    "WGANGP": [lambda: room.WGANGP(SHAPE, latent_dim=4, width=4, n_critic=2)],
    "DDPM": [
        lambda: room.DDPM(SHAPE, steps=40, prediction="velocity", width=4, levels=2, sample_steps=4, terms=8),
        lambda: room.DDPM(
            SHAPE,
            steps=8,
            schedule="vp",
            prediction="velocity",
            learned_variance=True,
            sample_steps=8,
            terms=None,
            width=4,
            levels=2,
        ),
        lambda: room.DDPM(SHAPE, steps=8, schedule="cosine", eta=0.0, sample_steps=3, width=4),
    ],
    "DDGAN": [
        lambda: room.DDGAN(SHAPE, steps=2, latent_dim=3, width=4, levels=2, patch=1, r1_every=2),
        lambda: room.DDGAN(SHAPE, latent_dim=0, width=4, levels=2, prediction="noise"),
        lambda: room.DDGAN(SHAPE, latent_dim=3, architecture="mlp", width=8, prediction="previous"),
        lambda: room.DDGAN(SHAPE, latent_dim=3, width=4, levels=2, one_shot=True),
    ],
    "Denoiser": [lambda: room.Denoiser(SHAPE, width=4, levels=2, sample_steps=3)],
    "EDM": [
        lambda: room.EDM(SHAPE, width=4, levels=2, sample_steps=3),
        lambda: room.EDM(SHAPE, width=4, levels=1, patch=1, log_sigma_mean=-1.0, sample_steps=2),
    ],
    "ScoreSDE": [
        lambda: room.ScoreSDE(
            room.DDPM(SHAPE, steps=40, prediction="velocity", width=4, levels=2, sample_steps=4),
            sample_steps=4,
            steps=2,
        ),
        lambda: room.ScoreSDE(
            room.Denoiser(SHAPE, sigma_min=0.01, width=4, levels=2),
            dequantization="uniform",
            sde="ve",
            sample_steps=4,
            sampler="sde",
            steps=2,
        ),
        lambda: room.ScoreSDE(room.EDM(SHAPE, width=4, levels=2), sampler="ode", dequantization="none", steps=2),
    ],
    "RealNVP": [
        lambda: room.RealNVP(SHAPE, levels=17, width=4),
        lambda: room.RealNVP(SHAPE, levels=2, dequantization="variational", quantization="nearest", width=4, scales=1),
    ],
    "Glow": [
        lambda: room.Glow(SHAPE, levels=17, flow_steps=2, width=4),
        lambda: room.Glow(SHAPE, dequantization="none", flow_steps=1, width=4, coupling="additive", alpha=0.05),
    ],
    "MAF": [
        lambda: room.MAF(SHAPE, levels=17, flow_steps=2, width=16),
        lambda: room.MAF(SHAPE, dequantization="none", flow_steps=1, width=80, layers=2, alpha=0.05),
    ],
    "ResidualFlow": [
        lambda: room.ResidualFlow(SHAPE, levels=17, blocks=2, width=4, terms=3),
        lambda: room.ResidualFlow(SHAPE, dequantization="none", blocks=1, width=4, terms=2, draws=2, alpha=0.05),
    ],
    "ContinuousFlow": [
        lambda: room.ContinuousFlow(SHAPE, levels=17, width=4, steps=2, draws=2),
        lambda: room.ContinuousFlow(
            SHAPE,
            levels=2,
            dequantization="variational",
            quantization="nearest",
            width=4,
            steps=1,
            adjoint=True,
        ),
    ],
    "DBM": [
        lambda: room.DBM(SHAPE, hidden=[6, 4], chains=20, sample_steps=5, quantization="nearest"),
        lambda: room.DBM(SHAPE, hidden=[6, 4, 3], chains=20, sample_steps=5, k=2, quantization="stochastic"),
    ],
    "EnergyModel": [
        lambda: room.EnergyModel(SHAPE, width=4, steps=3, sample_steps=5, buffer_size=32),
        lambda: room.EnergyModel(SHAPE, width=4, objective="dsm", sample_steps=5),
        lambda: room.EnergyModel(SHAPE, width=4, objective="ssm", sample_steps=5),
        lambda: room.EnergyModel(SHAPE, width=4, steps=3, chains="noise"),
        lambda: room.EnergyModel(SHAPE, width=4, steps=3, sample_steps=5, chains="data"),
    ],
    "JEM": [lambda: room.JEM(SHAPE, width=4, steps=3, sample_steps=5, buffer_size=32)],
    "EquilibriumMatching": [
        lambda: room.EquilibriumMatching(SHAPE, width=4, levels=2, sample_steps=5),
        lambda: room.EquilibriumMatching(SHAPE, width=4, levels=2, form="l2", sample_steps=5, momentum=0.0),
    ],
    "NoiseFreeEBM": [
        lambda: room.NoiseFreeEBM(SHAPE, width=4, steps=2, draws=2),
        lambda: room.NoiseFreeEBM(SHAPE, width=4, dynamics="steps", steps=3, generator_loss=True),
        lambda: room.NoiseFreeEBM(SHAPE, architecture="residual", width=4, layers=1, dynamics="noisy", steps=3),
    ],
    "ProductOfExperts": [lambda: room.ProductOfExperts(SHAPE, width=70, sample_steps=5)],
    "GaussianMixture": [
        lambda: room.GaussianMixture(SHAPE, components=2, floor=0.1),
        lambda: room.GaussianMixture(SHAPE, components=3, covariance="diag"),
    ],
    "NCE": [
        lambda: room.NCE(SHAPE, width=4, proposals=20),
        lambda: room.NCE(SHAPE, width=4, proposals=20, noise="uniform", noise_samples=3),
        lambda: room.NCE(
            SHAPE, width=4, proposals=20, base=room.RealNVP(SHAPE, dequantization="none", width=4, scales=1)
        ),
    ],
    "RBM": [
        lambda: room.RBM(SHAPE, hidden=6, chains=20, sample_steps=5, quantization="nearest"),
        lambda: room.RBM(SHAPE, hidden=6, method="cd", k=2, sample_steps=5, quantization="stochastic"),
    ],
}

MODELS = sorted(model_classes())


def cases(names):
    return [pytest.param(make, id=f"{name}-{i}") for name in names for i, make in enumerate(SMALL.get(name, []))]


contract = pytest.mark.parametrize("make", cases(MODELS))
LIKELIHOODS = [name for name in MODELS if model_classes()[name].log_prob_kind not in (None, "unnormalised")]


def built(make, seed=0):
    torch.manual_seed(seed)
    return make().double().eval()


def images(model, n=12, part="test"):
    """Digits as the model takes them: on its levels where it has levels."""
    x = digits(part).images()[:n].to(next(model.parameters()).dtype)
    return model.pixels(x) if getattr(model, "pixels", None) is not None else x


def scores(model, x):
    """What the model says of each image: its likelihood or, without one, its energy, its discriminator or what it takes
    away."""
    if isinstance(model, room.Denoiser):
        return (model.denoise(x := model.check(x), 0.3) - x).flatten(1).norm(dim=1)
    if isinstance(model, AutoEncoder):
        return model.latent_log_prob(x) - model.reconstruction_error(x)
    if model.log_prob_kind is not None:
        return model.log_prob(x)
    return -model.energy(model.check(x)) if hasattr(model, "energy") else model.discriminate(x)


def of_shape(name, shape, **options):
    """A model of images of ``shape``; one that holds another is made of a small one."""
    cls = model_classes()[name]
    if next(iter(inspect.signature(cls).parameters)) == "base":
        if name == "ScoreSDE":
            return cls(room.Denoiser(shape, width=4, levels=1), **options)
        return cls(room.VAE(shape, latent_dim=3, architecture="mlp", width=4, likelihood="gaussian"), **options)
    return cls(shape, **options)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_under_contract(name):
    assert SMALL.get(name), f"add a tiny configuration of {name} to SMALL"


def test_the_room_exports_what_it_has():
    assert all(hasattr(room, name) for name in room.__all__)


@contract
def test_scores_do_not_depend_on_the_batch_nor_on_the_call(make):
    model, x = built(make), None
    x = images(model)
    state = torch.get_rng_state()
    with torch.no_grad():
        whole = scores(model, x)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
        alone = torch.cat([scores(model, x[i : i + 1]) for i in range(len(x))])
        shuffled = scores(model, x[order])[order.argsort()]
    assert whole.shape == (len(x),)
    assert whole.dtype == torch.float64
    assert bool(whole.isfinite().all())
    assert len(whole.unique()) > 1
    torch.testing.assert_close(alone, whole, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(shuffled, whole, rtol=1e-10, atol=1e-10)
    assert bool((torch.get_rng_state() == state).all())


@contract
def test_scores_are_differentiable(make):
    model = built(make)
    x = images(model, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(scores(model, x).sum(), x)
    assert bool(gradient.isfinite().all())
    assert bool((gradient != 0).flatten(1).any(1).all())
    assert all(p.grad is None for p in model.parameters())


@contract
def test_samples_are_images_and_follow_their_generator(make):
    model = built(make).float()
    state = torch.get_rng_state()
    x, again, other = (model.sample(3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert bool((torch.get_rng_state() == state).all())
    assert x.shape == (3, *SHAPE)
    assert x.dtype == torch.float32
    assert not x.requires_grad
    assert 0 <= float(x.min()) <= float(x.max()) <= 1
    torch.testing.assert_close(x, again, rtol=0, atol=0)
    assert bool((x != other).any())
    assert bool((model.sample(2) != model.sample(2)).any())  # the global generator is used, and moves
    assert bool(scores(model, x).isfinite().all())
    assert model.sample(0).shape == (0, *SHAPE)
    with pytest.raises(ValueError, match="negative"):
        model.sample(-1)


@contract
def test_every_parameter_learns(make):
    torch.manual_seed(0)
    model = make().train()
    batch = Batch(digits("train").images()[:16], digits("train").labels()[:16], torch.arange(16))
    turns = {model.player_at(step): step for step in range(20)} if model.players else {"": 0}
    assert set(turns) == set(model.players or {""})
    for player, step in turns.items():
        model.zero_grad()
        found = model.training_step(batch, step)
        assert found["loss"].ndim == 0
        assert all(bool(torch.as_tensor(v).isfinite()) for v in found.values())
        found["loss"].backward()
        own = model.players[player] if player else model
        for name, p in own.named_parameters():
            if p.requires_grad:
                assert p.grad is not None, f"{name} has no gradient"
                assert bool(p.grad.isfinite().all()), name


@pytest.mark.parametrize("make", cases(LIKELIHOODS))
def test_training_raises_the_likelihood_of_digits(make):
    torch.manual_seed(0)
    model = make()
    x = digits("train").x[:128]
    before = model.eval().log_prob(images(model, 128, "train")).mean()
    history = fit(model, x, epochs=4, batch_size=16, progress=False)
    assert history[-1]["loss"] < history[0]["loss"]
    assert not model.training
    assert model.log_prob(images(model, 128, "train")).mean() > before + 1


@contract
def test_a_resumed_training_ends_as_one_that_was_not_interrupted(make, tmp_path):
    x = digits("train").x[:32]
    finals = []
    for run, epochs in (("whole", [2]), ("parts", [1, 2])):
        for n in epochs:
            torch.manual_seed(0)
            model = make()
            fit(model, x, x[:8], epochs=n, batch_size=8, run_dir=tmp_path / run, resume=True, progress=False)
        finals.append(model_fingerprint(model))
    assert finals[0] == finals[1]
    assert model_fingerprint(load(tmp_path / "parts")) == finals[0]


# What older versions wrote beside the weights, one model of each family: its class has no module.
SAVED = {
    "PixelCNN": {"shape": [1, 8, 8], "levels": 2, "quantization": None, "width": 4, "layers": 2},
    "VAE": {
        "shape": [1, 8, 8],
        "latent_dim": 3,
        "architecture": "mlp",
        "width": 8,
        "likelihood": "bernoulli",
        "quantization": "stochastic",
        "levels": None,
        "components": None,
        "scale": None,
        "free_bits": 0.0,
        "kl_warmup": 0,
        "importance_samples": 1,
    },
    "EnergyModel": {
        "shape": [1, 8, 8],
        "width": 4,
        "objective": "langevin",
        "sigma": 0.03,
        "temperature": 0.0001,
        "step_size": 5e-05,
        "steps": 60,
        "sample_steps": 1000,
        "buffer_size": 10000,
        "reinitialised": 0.05,
        "regularisation": 0.1,
    },
    "DCGAN": {
        "shape": [1, 8, 8],
        "latent_dim": 4,
        "width": 4,
        "bn_in_discriminator": False,
        "generator_objective": "non_saturating",
        "real_target": 1.0,
        "minibatch_discrimination": 0,
        "historical_averaging": 0.0,
        "virtual_batch_norm": 0,
        "input_noise": 0.0,
        "input_noise_steps": 10000,
    },
}


@pytest.mark.parametrize("name", SAVED)
def test_a_model_is_found_by_the_name_of_its_class(name, tmp_path):
    model = getattr(room, name)(**SAVED[name])
    model.save(tmp_path)
    path = latest_checkpoint(tmp_path) / "config.json"
    since = {"chains": "persistent"} if name == "EnergyModel" else {}
    record = {"format": 1, "step": 0, "config": {"model_class": name, "model": SAVED[name] | since}}
    assert json.loads(path.read_text()) == record
    again = load(tmp_path)
    assert type(again) is type(model)
    assert model_fingerprint(again) == model_fingerprint(model)


@contract
def test_it_is_saved_and_loaded_whole(make, tmp_path):
    torch.manual_seed(1)
    model = make().eval()
    x = images(model)
    model.save(tmp_path)
    again = load(tmp_path)
    assert type(again) is type(model)
    assert json.dumps(again.config) == json.dumps(model.config)
    assert not again.training
    assert bool((scores(again, x) == scores(model, x)).all())
    assert fingerprint(dict(again.state_dict())) == fingerprint(dict(model.state_dict()))
    other = next(c for c in model_classes().values() if c is not type(model))
    with pytest.raises(ValueError, match=f"holds a {type(model).__name__}, not {other.__name__}"):
        other.load(tmp_path)
    path = latest_checkpoint(tmp_path) / "config.json"
    record = json.loads(path.read_text())
    record["config"]["model"]["nothing"] = 1
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="is no argument of"):
        load(tmp_path)


@contract
def test_a_copy_is_the_same_model(make):
    model = built(make)
    x = images(model, 3)
    assert bool((scores(copy.deepcopy(model), x) == scores(model, x)).all())


@contract
def test_wrong_input_is_refused_in_one_line(make):
    model = built(make)
    x = images(model, 2)
    for wrong, error, message in (
        (x[:, :, :7], ValueError, r"of images \(1, 8, 8\), got \(1, 7, 8\)"),
        (x.expand(2, 3, 8, 8), ValueError, r"got \(3, 8, 8\)"),
        (x + 1.5, ValueError, "outside the bounds"),
        (torch.full_like(x, float("nan")), ValueError, "NaN"),
        ((255 * x).to(torch.uint8), TypeError, "float32 or float64"),
    ):
        with pytest.raises(error, match=message) as raised:
            scores(model, wrong)
        assert "\n" not in str(raised.value)
    if model.log_prob_kind is None:
        with pytest.raises(TypeError, match="no likelihood"):
            model.log_prob(x)
    assert scores(model, x[:0]).shape == (0,)


@pytest.mark.parametrize("name", model_classes())
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_defaults_take_images_of_any_channels(name, channels):
    model = of_shape(name, (channels, 8, 8)).eval()
    x = torch.ones(2, channels, 8, 8)
    assert model.sample(0).shape == (0, channels, 8, 8)
    if model.log_prob_kind is not None:
        assert model.log_prob(x).isfinite().all()


@contract
def test_noise_becomes_images_or_is_refused_in_one_line(make):
    model = make().eval()
    if model.noise_shape is None:
        with pytest.raises(TypeError, match="makes no images of normal noise alone"):
            model.from_noise(torch.zeros(2, 3))
        return
    eps = torch.randn(3, *model.noise_shape, dtype=torch.float64)
    with torch.no_grad():
        images = model.from_noise(eps)
        assert (images.shape, images.dtype) == ((3, *SHAPE), torch.float32)
        assert bool((images == model.from_noise(eps.float())).all())
        assert model.from_noise(eps[:0]).shape == (0, *SHAPE)
    for wrong, kind, message in (
        (eps.flatten(1)[:, 1:], ValueError, rf"noise of this {type(model).__name__} is \(N, "),
        (eps * math.nan, ValueError, "eps holds NaN or Inf"),
        (eps.long(), TypeError, "eps must be float32 or float64"),
        ([1.0], TypeError, r"eps must be a torch\.Tensor"),
    ):
        with pytest.raises(kind, match=message) as raised:
            model.from_noise(wrong)
        assert "\n" not in str(raised.value)


@contract
def test_half_precision_is_the_models_fault(make):
    model = make().eval().half()
    x = torch.ones(2, *SHAPE)
    with pytest.raises(TypeError, match=rf"this {type(model).__name__} is in torch\.float16, .*: \.float\(\) it"):
        model.check(x)
    model.float().check(x)


def test_half_toned_images_need_a_stated_binarization():
    pixels = room.Pixels(levels=2)
    with pytest.raises(ValueError, match="say how to binarise"):
        pixels(torch.full((1, 1, 2, 2), 0.5))


def test_dynamic_binarization_has_the_grey_level_as_its_mean():
    pixels = room.Pixels(levels=2, quantization="stochastic")
    x = (torch.arange(4000) % 256 / 255).reshape(4000, 1).repeat(1, 64)
    x[:, 0] = torch.arange(4000) // 256 / 255  # no image twice
    drawn = pixels(x)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    spread = (drawn - x)[:, 1:].mean(0)
    assert float(spread.abs().max()) < 5 * 0.5 / 4000**0.5
    assert abs(float(spread.mean())) < 5 * 0.5 / (4000 * 63) ** 0.5
    torch.testing.assert_close(pixels(x[7:9]), drawn[7:9])


class Nothing(GenerativeModel):
    """A model that is not public."""

    def __init__(self, shape):
        super().__init__(shape)
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def _sample(self, n, generator):
        return torch.zeros(n, *self.shape)

    def training_step(self, batch, step):
        return {"loss": (self.weight * float("nan")).sum()}


def test_a_training_that_diverges_stops_and_names_its_last_good_state(tmp_path):
    with pytest.raises(FloatingPointError, match=r"not finite at step 0.*another run_dir.*last good state: "):
        fit(Nothing(SHAPE), digits("train").x[:8], epochs=1, run_dir=tmp_path, progress=False)
    with pytest.raises(ValueError, match="no generative model"):
        load(tmp_path)


@contract
@pytest.mark.parametrize("part", ["training", "validation"])
def test_training_and_validation_take_images_of_its_kind_alone(make, part):
    x = digits("train").x[:4].float() / 255
    for wrong, error, message in (
        (5 * x, ValueError, "outside the bounds"),
        (2 * x - 1, ValueError, "outside the bounds"),
        (x[:, :, :7], ValueError, r"of images \(1, 8, 8\), got \(1, 7, 8\)"),
        ((16 * x).long(), TypeError, "float32 or float64, got torch.int64"),
    ):
        data = (wrong, None) if part == "training" else (images(make(), 4, "train"), wrong)
        with pytest.raises(error, match=message):
            fit(make(), *data, batch_size=4, progress=False)


@contract
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_of_either_dtype_are_scored_in_that_of_the_model(make, dtype):
    model = built(make).to(dtype)
    for given in (torch.float32, torch.float64):
        x = images(model, 3).to(given).requires_grad_()
        found = scores(model, x)
        (gradient,) = torch.autograd.grad(found.sum(), x)
        assert found.dtype == dtype
        assert gradient.dtype == given
        assert bool((found == scores(model, x.to(dtype))).all())
    assert model.sample(2).dtype == model.sample(0).dtype == scores(model, x[:0]).dtype == dtype


def test_saving_does_not_end_a_run(tmp_path):
    model, x = room.EnergyModel(SHAPE, width=4, objective="dsm"), digits("train").images()[:8].float()
    for epochs in (1, 2):
        fit(model, x, epochs=epochs, batch_size=4, run_dir=tmp_path / "run", resume=True, progress=False)
        with pytest.raises(ValueError, match="holds a training run"):
            model.save(tmp_path / "run")
    for _ in range(2):
        model.save(tmp_path / "saved")
    with pytest.raises(ValueError, match="not a run to resume"):
        fit(model, x, batch_size=4, run_dir=tmp_path / "saved", resume=True, progress=False)


# What no argument of a type may be, by its annotation; numbers that are too low or too high are each model's own.
BAD = {int: [-1, 2.5, "two", True], float: ["two", True], bool: ["False", 1]}


@pytest.mark.parametrize("name", MODELS)
def test_arguments_of_the_wrong_type_or_below_their_range_are_named(name):
    for argument, parameter in inspect.signature(model_classes()[name]).parameters.items():
        kinds = typing.get_args(parameter.annotation) or (parameter.annotation,)
        for bad in (value for kind in kinds for value in BAD.get(kind, [])):
            given = {argument: bad}
            if name in ("VAE", "IAFVAE"):  # some arguments belong to one likelihood
                given["likelihood"] = "gaussian" if argument == "scale" else "discretized_logistic"
            with pytest.raises((TypeError, ValueError), match=argument) as raised:
                of_shape(name, SHAPE, **given)
            assert "\n" not in str(raised.value)


@contract
def test_numbers_of_numpy_are_numbers(make):
    model = make()
    config = {k: v for k, v in model.config.items() if k != "shape"}
    first = {"shape": tuple(np.array(SHAPE))} if "shape" in model.config else {}
    again = type(model)(**first | config | numpy_numbers(config))
    assert json.dumps(again.config) == json.dumps(model.config)


@contract
def test_pixels_a_rounding_step_outside_are_taken(make):
    model = make().eval()
    x = images(model, 2)
    beyond = torch.where(x == 1, 1 + 1.2e-7, x)
    assert beyond.max() > 1
    torch.testing.assert_close(scores(model, beyond), scores(model, x), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(28, 28), (), (1, 0, 8), (1, 8.0, 8), 8, "abc"])
def test_shapes_that_are_not_of_images_are_refused(name, shape):
    with pytest.raises(ValueError, match=r"shape must be \(channels, height, width\)"):
        of_shape(name, shape)


def test_no_network_is_made_of_nothing():
    for name in MODELS:
        if "width" not in inspect.signature(model_classes()[name]).parameters:
            continue
        with pytest.raises(ValueError, match="width must be at least 1, got 0"):
            of_shape(name, SHAPE, width=0)
    with pytest.raises(ValueError, match="first_kernel_size must be at least 3, got 1"):
        room.PixelVAE(SHAPE, first_kernel_size=1)


EVERY_MODEL = """
import json, sys
from pathlib import Path
import torch, torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from test_generative import SHAPE, SMALL
from robustgen.generative import fit

torch.set_num_threads(1)
x = (torch.rand(16, *SHAPE, generator=torch.Generator().manual_seed(0)) * 16).round() / 16
found = {}
for name, makes in SMALL.items():
    for i, make in enumerate(makes):
        torch.manual_seed(0)
        model = make()
        last = fit(model, x, x[:4], epochs=2, batch_size=8, progress=False)[-1]
        weights = torch.cat([p.detach().flatten() for p in model.parameters()])
        if dist.is_initialized():
            every = [torch.empty_like(weights) for _ in range(2)]
            dist.all_gather(every, weights)
            assert torch.equal(*every), f"{name}-{i}: the processes end with different weights"
        found[f"{name}-{i}"] = last | {"norm of the weights": weights.norm().item()}
if not dist.is_initialized() or dist.get_rank() == 0:
    print(json.dumps(found), end="")
if dist.is_initialized():  # a thread of the group that is there at exit may abort the process
    dist.destroy_process_group()
    assert not [name for name in Path("/proc/self/task").glob("*/comm") if "gloo" in name.read_text()]
"""
DRAWS_NOTHING = ("PixelCNN-0", "GatedPixelCNN-1", "PixelRNN-0", "PixelRNN-1")  # in training


def test_every_model_trains_under_torchrun_and_without_noise_as_in_one_process(tmp_path):
    (tmp_path / "script.py").write_text(EVERY_MODEL)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    one, two = (
        subprocess.run(
            [*command, str(tmp_path / "script.py"), str(Path(__file__).parent)],
            capture_output=True,
            text=True,
            timeout=300,
        )
        for command in ([sys.executable], torchrun)
    )
    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    alone, shared = json.loads(one.stdout), json.loads(two.stdout)
    assert set(alone) == set(shared) > set(DRAWS_NOTHING)
    for name, numbers in shared.items():
        assert all(math.isfinite(value) for value in numbers.values()), name
        if name in DRAWS_NOTHING:
            assert numbers == pytest.approx(alone[name], rel=1e-4)
        expected = pytest.approx(alone[name]["norm of the weights"], rel=1e-2, abs=0.03)  # a machine's begin near 0
        assert numbers["norm of the weights"] == expected, name
