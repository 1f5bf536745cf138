"""DDPM against closed forms: of Gaussian data, whose best prediction is linear, and of its own steps."""

from functools import partial

import pytest
import torch
from torch import nn

from robustgen.data import digits
from robustgen.fortified import smooth
from robustgen.generative import DDPM, fit
from robustgen.generative.blocks.gaussian import discretized_gaussian_log_prob, gaussian_log_prob
from robustgen.generative.diffusion import ddpm
from robustgen.generative.diffusion.ddpm import PREDICTIONS
from robustgen.training import Batch

SHAPE, MEAN, STD = (1, 4, 4), 0.1, 0.2  # of u_0
F64 = torch.float64


def of_gaussian(**options):
    """A model in float64 whose network is the best one for pixels u_0 ~ N(MEAN, STD^2)."""
    model = DDPM(SHAPE, prediction="data", clip=False, width=2, levels=1, **options).double().eval()

    def outputs(u, kept, y=None, guidance=1.0):
        kept = kept.to(u)[:, None, None, None]
        return MEAN + gain(kept) * (u - kept.sqrt() * MEAN)

    model._outputs = outputs
    return model


def gain(kept):
    return STD**2 * kept.sqrt() / (kept * STD**2 + 1 - kept)


def expected_bound(u, schedule):
    """In nats (N,), of u (N, ...) that are exact levels: the noise of every term integrated out."""
    t, s = torch.arange(1, schedule.steps + 1), torch.arange(schedule.steps)
    kept = schedule.alpha_bars[t]
    mean_of_start, variance = schedule.posterior(
        torch.zeros(len(t), 1, dtype=F64), torch.ones(len(t), 1, dtype=F64), t, s
    )
    weight = (mean_of_start.square() / variance / 2).flatten()[1:]
    off = (gain(kept) * kept.sqrt() - 1)[1:] * (u - MEAN).flatten(1)[
        ..., None
    ]  # of the expected u_0, without its noise
    terms = (weight * (off.square() + ((1 - kept) * gain(kept).square())[1:])).sum((1, 2))
    last = kept[-1]
    prior = (last * u.square() - last - (1 - last).log()).flatten(1).sum(1) / 2
    z = torch.linspace(-6, 6, 201, dtype=F64)
    density = gaussian_log_prob(z).softmax(0)
    first, x = kept[0], ((u + 1) / 2).flatten(1)[..., None]
    start = MEAN + gain(first) * (first.sqrt() * (u.flatten(1)[..., None] - MEAN) + (1 - first).sqrt() * z)
    decoded = discretized_gaussian_log_prob(x, (start + 1) / 2, (schedule.betas[1].sqrt() / 2).log(), 256)
    return -(terms + prior - (density * decoded).sum(2).sum(1))


def pictures(n):
    """Images (n, *SHAPE) of N(MEAN, STD^2) on 256 levels, as x in [0, 1]."""
    u = MEAN + STD * torch.randn(n, *SHAPE, dtype=F64, generator=torch.Generator().manual_seed(0))
    return ((u + 1) / 2 * 255).round().clamp(0, 255) / 255


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_bound_on_a_gaussian_is_its_exact_value_and_below_the_likelihood(schedule):
    x = pictures(100)
    model = of_gaussian(steps=60, schedule=schedule, sample_steps=5, terms=None)
    exact = expected_bound(2 * x - 1, model.schedule)
    found = model.log_prob(x)
    assert (found - exact).mean().abs() < 4 * (found - exact).std() / 10
    density = discretized_gaussian_log_prob(x, torch.tensor((1 + MEAN) / 2), torch.tensor(STD / 2).log(), 256)
    assert exact.mean() < density.flatten(1).sum(1).mean()
    few = of_gaussian(steps=60, schedule=schedule, sample_steps=5, terms=12)
    assert len(few._ranges()) <= 12
    less = few.log_prob(x)
    assert (less - exact).mean().abs() < 4 * (less - exact).std() / 10


def test_the_bound_closes_where_steps_are_many_and_variances_right():
    """The variance of q(u_s | u_t, u_0) alone costs sum over t of (x - log(1 + x)) / 2, x = 1 / t: Euler's constant."""
    x = pictures(200)
    density = discretized_gaussian_log_prob(x, torch.tensor((1 + MEAN) / 2), torch.tensor(STD / 2).log(), 256)
    density = density.flatten(1).sum(1)
    exact = [
        expected_bound(2 * x[:9] - 1, of_gaussian(steps=n, schedule="linear").schedule).mean()
        for n in (100, 1000, 10_000)
    ]
    gaps = [(density[:9].mean() - bound).item() / 16 for bound in exact]
    assert gaps[0] > gaps[1] > gaps[2] > 0.5772 / 2
    model = of_gaussian(steps=10_000, schedule="linear", learned_variance=True, terms=100)
    best = model._outputs
    model._outputs = lambda u, kept: torch.cat([best(u, kept), torch.full_like(u, 30.0)], 1)  # all of beta_t
    gap = (density - model.log_prob(x)).mean().item() / 16
    assert -0.02 < gap < 0.05


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_what_is_predicted_is_what_it_says(prediction):
    model = DDPM(SHAPE, prediction=prediction, width=2, levels=1).double()
    u, n, kept = torch.randn(5, *SHAPE, dtype=F64), torch.randn(5, *SHAPE, dtype=F64), torch.rand(5, dtype=F64)
    signal, noise = kept.sqrt()[:, None, None, None], (1 - kept).sqrt()[:, None, None, None]
    assert torch.allclose(model._start(model._target(u, n, kept), signal * u + noise * n, kept), u)


@pytest.mark.parametrize(("t", "s"), [(30, 29), (30, 10), (2, 1)])
def test_ddim_of_eta_one_is_ancestral_sampling(t, s):
    """The mean and the variance of one step are those of q(u_s | u_t, u_0) at the u_0 that is expected."""
    model = of_gaussian(steps=40, schedule="cosine", sample_steps=5)
    u = torch.full((6000, *SHAPE), 0.4, dtype=F64)
    torch.manual_seed(0)
    drawn = model._reverse(u, t, s)
    mean, variance = model.schedule.posterior(u[:1], model._predict(u[:1], t), torch.tensor([t]), torch.tensor([s]))
    assert drawn.mean().item() == pytest.approx(mean.mean().item(), abs=4 * (variance.item() / drawn.numel()) ** 0.5)
    assert drawn.var().item() == pytest.approx(variance.item(), rel=0.02)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_whatever_eta_a_known_image_keeps_its_marginals(eta):
    """Where u_0 is known, u_s is N(sqrt(alpha_bar_s) u_0, 1 - alpha_bar_s) for every eta; lemma 1 of Song et al."""
    model, t, s = of_gaussian(steps=40, sample_steps=5, eta=eta), 30, 12
    model._outputs = lambda u, kept, y=None, guidance=1.0: torch.full_like(u, 0.7)
    torch.manual_seed(0)
    u_0 = torch.full((6000, *SHAPE), 0.7, dtype=F64)
    u = model._reverse(model.schedule.diffuse(u_0, torch.full((6000,), t), torch.randn_like(u_0)), t, s)
    kept = model.schedule.alpha_bars[s]
    assert u.mean().item() == pytest.approx((kept.sqrt() * 0.7).item(), abs=0.01)
    assert u.var().item() == pytest.approx((1 - kept).item(), rel=0.02)


def test_samples_of_the_best_network_are_gaussian():
    """Mean and variance after all steps, by those of one step after the other."""
    model = of_gaussian(steps=100, sample_steps=100)
    x = 2 * model.sample(2000, torch.Generator().manual_seed(0)) - 1
    mean, variance, schedule = torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64), model.schedule
    for t in range(100, 0, -1):
        times, zero, one = (
            (torch.tensor([t]), torch.tensor([t - 1])),
            torch.zeros(1, dtype=F64),
            torch.ones(1, dtype=F64),
        )
        kept = schedule.alpha_bars[t]
        of_now, added = schedule.posterior(one, gain(kept) * one, *times)
        shift, _ = schedule.posterior(zero, (1 - gain(kept) * kept.sqrt()) * MEAN * one, *times)
        mean, variance = of_now * mean + shift, of_now.square() * variance + added
    assert x.mean().item() == pytest.approx(mean.item(), abs=0.005)
    assert x.std().item() == pytest.approx(variance.sqrt().item(), rel=0.02)


def test_samples_of_ddim_are_a_function_of_their_noise():
    """The flow of a Gaussian scales and shifts."""
    model = of_gaussian(steps=1000, sample_steps=1000, eta=0.0)
    noise = torch.randn(9, *SHAPE, dtype=F64, generator=torch.Generator().manual_seed(0))
    x = 2 * model.sample(9, torch.Generator().manual_seed(0)) - 1
    assert torch.allclose(x, MEAN + STD * noise, atol=0.015)


def test_the_bound_teaches_the_variance_alone(monkeypatch):
    batch, gradients = Batch(pictures(8).float(), None, torch.arange(8)), []
    for weight in (0.0, 0.1):
        monkeypatch.setattr(ddpm, "_BOUND_WEIGHT", weight)
        torch.manual_seed(0)
        model = DDPM(SHAPE, schedule="vp", steps=9, learned_variance=True, sample_steps=5, width=2, levels=1)
        nn.init.normal_(model.network.out.weight)
        model.training_step(batch, 0)["loss"].backward()
        gradients.append(model.network.out.weight.grad.split(model.patch**2))  # prediction, variance
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert not gradients[0][1].any()
    assert gradients[1][1].any()


class TestClasses:
    def test_guidance_goes_beyond_the_class(self):
        torch.manual_seed(0)
        model = DDPM(SHAPE, classes=3, width=2, levels=1).double().eval()
        for weight in model.parameters():
            nn.init.normal_(weight)
        u, kept, y = torch.randn(3, *SHAPE, dtype=F64), torch.full((3,), 0.5, dtype=F64), torch.arange(3)
        of_none, of_class, far = (model._outputs(u, kept, *options) for options in ((None,), (y,), (y, 3.0)))
        assert torch.allclose(far, of_none + 3 * (of_class - of_none))
        assert not torch.allclose(of_class, of_none)
        assert torch.equal(model._outputs(u, kept, torch.full((3,), 3)), of_none)

    def test_labels_are_withheld_as_often_as_it_says(self):
        model = DDPM(SHAPE, classes=3, label_dropout=0.2, width=2, levels=1)
        y = torch.arange(6000) % 3
        told = model._labels(Batch(torch.zeros(6000, *SHAPE), y, y))
        withheld = told == 3
        assert withheld.double().mean().item() == pytest.approx(0.2, abs=0.02)
        assert torch.equal(told[~withheld], y[~withheld])

    def test_it_draws_the_class_that_it_is_asked_for(self):
        """Of two classes, black and white images."""
        torch.manual_seed(0)
        y = torch.arange(512) % 2
        x = y.float()[:, None, None, None].expand(512, *SHAPE)
        model = DDPM(SHAPE, schedule="vp", steps=8, sample_steps=8, prediction="data", classes=2, width=8, levels=1)
        fit(model, (x, y), epochs=4, batch_size=64, optimizer=partial(torch.optim.Adam, lr=1e-2), progress=False)
        asked = torch.tensor([0, 1, 1, 0])
        drawn = model.sample_classes(asked, torch.Generator().manual_seed(0)).flatten(1).mean(1)
        assert torch.equal((drawn > 0.5).long(), asked)
        assert model.sample_classes(asked[:0]).shape == (0, *SHAPE)


def test_digits_are_learned():
    torch.manual_seed(0)
    model = DDPM((1, 8, 8), width=8, levels=2, patch=1, prediction="noise", schedule="linear")
    history = fit(model, digits("train"), epochs=8, batch_size=64, progress=False)
    assert history[-1]["loss"] < 0.4 * history[0]["loss"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_steps": 2000}, "sample_steps=2000 is more than the steps=1000 that are trained"),
        ({"guidance": 2.0}, "guidance=2 leads to a class: this DDPM has none"),
        ({"classes": 2, "guidance": -1.0}, "guidance must be a finite number >= 0"),
        ({"prediction": "score"}, "prediction must be one of noise, data, velocity, got 'score'"),
        ({"schedule": "linear", "steps": 20}, "take more than 20, or vp"),
        ({"eta": 1.5}, r"eta must be in \[0, 1\]"),
        ({"label_dropout": 0.0}, r"label_dropout must be in \(0, 1\)"),
        ({"patch": 3}, "images of 4x4 pixels are not made of patches of 3x3"),
        ({"terms": 1}, "terms must be at least 2"),
    ],
)
def test_one_clear_line(options, message):
    with pytest.raises(ValueError, match=message):
        DDPM(SHAPE, **options)


def test_one_clear_line_in_use():
    model = DDPM(SHAPE, classes=3, width=2, levels=1)
    with pytest.raises(ValueError, match="classes=3 learns from labelled images"):
        model.training_step(Batch(torch.zeros(2, *SHAPE), None, torch.arange(2)), 0)
    with pytest.raises(ValueError, match=r"y has labels in \[0, 3\], outside \[0, 3\)"):
        model.sample_classes(torch.tensor([0, 3]))
    with pytest.raises(TypeError, match="was told no classes"):
        DDPM(SHAPE, width=2).sample_classes(torch.tensor([0]))
    with pytest.raises(ValueError, match="a chain of 9 steps does not fit between 0 and 5"):
        model.chain(5, 9)
    with pytest.raises(ValueError, match="more than the 1000 steps that were trained"):
        model.chain(1001)


def test_a_chain_diffuses_and_comes_back_and_smoothing_takes_the_model():
    torch.manual_seed(0)
    model, x = of_gaussian(steps=100, schedule="cosine"), pictures(500)
    off = []
    assert len(model.chain(30, 5)) == 6
    for depth in (2, 6, 60):
        functions, v = model.chain(depth), x
        assert len(functions) == depth + 1
        for function in functions:
            v = function(v)
        off.append((v - x).std().item())
    assert off[0] < off[1] < off[2]
    assert off[2] == pytest.approx(2**0.5 * STD / 2, rel=0.15)  # nothing is left of x: two of the same Gaussian
    smoothed = smooth(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).double(), 0.5, model)
    assert smoothed.certify(x[:2], n=100).counts.sum(1).tolist() == [100, 100]
