"""Deformations against what they are by definition, the contrastive loss against a loop, and what it learns."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustgen.data import digits
from robustgen.networks import encoder
from robustgen.training import Batch, ClassifierObjective, ContrastiveObjective, Deformations, OnDeformed, Trainer
from robustgen.training import deformations as module
from robustgen.training.contrastive import nt_xent

STILL = {"rotation": 0, "scale": 0, "shear": 0, "shift": 0, "bend": 0, "thickness": 0, "gamma": 0, "noise": 0}


def picture(n=3, size=8):
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def extreme(monkeypatch, sign, **settings):
    """The deformations with each random number at the end of its range."""
    monkeypatch.setattr(module, "_uniform", lambda x, *shape: sign * torch.ones(shape, dtype=x.dtype))
    monkeypatch.setattr(torch, "randn", lambda *shape, **about: torch.ones(shape, **about))
    return Deformations(**(STILL | settings))


def test_deformations_at_the_ends_of_their_ranges(monkeypatch):
    x = picture()
    expected = {
        "rotation": (90, 1, x.rot90(1, (2, 3))),
        "shift": (1 / 8, 1, F.pad(x[..., 1:, 1:], (0, 1, 0, 1))),
        "bend": (1 / 4, 1, F.pad(x[..., 2:, 2:], (0, 2, 0, 2))),
        "thickness": (1, 1, F.max_pool2d(x, 3, 1, 1)),
        "gamma": (math.log(2), 1, x.square()),
    }
    for name, (value, sign, result) in expected.items():
        torch.testing.assert_close(extreme(monkeypatch, sign, **{name: value})(x), result, msg=name)
    thinner = extreme(monkeypatch, -1, thickness=1)(x)
    torch.testing.assert_close(thinner, -F.max_pool2d(-x, 3, 1, 1))
    ramp = (torch.arange(16, dtype=torch.float64) + 0.5).expand(1, 1, 16, 16) / 16  # its own position, from 0 to 1
    sheared = extreme(monkeypatch, 1, shear=0.5)(ramp)
    inside = slice(5, 11)
    torch.testing.assert_close(
        sheared[..., inside, inside], (ramp + 0.5 * (ramp.mT - 0.5))[..., inside, inside], rtol=0, atol=1e-12
    )
    smaller = extreme(monkeypatch, 1, scale=math.log(2))(ramp)
    torch.testing.assert_close(smaller[..., 5:11, 5:11], (0.5 + 2 * (ramp - 0.5))[..., 5:11, 5:11], rtol=0, atol=1e-12)


def test_deformed_images_are_images_each_deformed_on_its_own():
    torch.manual_seed(0)
    x = picture(1).expand(5, 1, 8, 8)
    assert torch.allclose(Deformations(**STILL)(x), x)
    y = Deformations()(x)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert y.min() >= 0
    assert y.max() <= 1
    assert all((y[i] - y[j]).abs().max() > 0.1 for i in range(5) for j in range(i))
    for name, value in {"shear": -1.0, "noise": float("nan"), "bend_grid": 1}.items():
        with pytest.raises(ValueError, match=name):
            Deformations(**{name: value})


def test_nt_xent_against_a_loop_and_its_gradient():
    z = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    terms, found = [], 0.0
    for i in range(6):
        similar = [F.cosine_similarity(z[i], z[j], dim=0) / 0.3 for j in range(6)]
        partner = similar[(i + 3) % 6]
        others = [similar[j] for j in range(6) if j != i]
        terms.append(torch.stack(others).logsumexp(0) - partner)
        found += float(partner == max(others)) / 6
    loss, share = nt_xent(z, 0.3)
    torch.testing.assert_close(loss, torch.stack(terms).mean())
    assert share.item() == pytest.approx(found)
    assert torch.autograd.gradcheck(lambda z: nt_xent(z, 0.3)[0], z.requires_grad_())
    with pytest.raises(ValueError, match="temperature"):
        ContrastiveObjective(Deformations(), temperature=0.0)
    with pytest.raises(TypeError, match="deformations must be Deformations, got str"):
        ContrastiveObjective("x")
    with pytest.raises(ValueError, match="raise batch_size"):
        ContrastiveObjective(Deformations())(nn.Flatten(), Batch(picture(1), None, torch.arange(1)), 0)


def test_a_trained_encoder_finds_digits_again():
    torch.manual_seed(0)
    model = encoder(image_size=8, n_outputs=16, width=4)
    trainer = Trainer(
        ContrastiveObjective(Deformations()),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=5e-3),
        epochs=4,
        batch_size=128,
        progress=False,
    )
    history = trainer.fit(model, digits("train").images())  # no labels
    assert history[-1]["loss"] < history[0]["loss"] - 0.7
    assert history[-1]["found"] > 2 * history[0]["found"]


def test_only_training_sees_deformed_images():
    x, seen = picture().float(), []
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    objective = OnDeformed(ClassifierObjective(), Deformations())
    batch = Batch(x, torch.tensor([0, 1, 1]), torch.arange(3))
    objective(model.eval(), batch, 0)
    loss = objective(model.train(), batch, 0)["loss"]
    assert torch.equal(seen[0], x)
    assert not torch.allclose(seen[1], x, atol=0.1)
    torch.testing.assert_close(loss, F.cross_entropy(model(seen[1]), batch.y))


@pytest.mark.parametrize("size", [28, (9, 13), 1])
def test_encoder_takes_images_of_any_size(size):
    height, width = (size, size) if isinstance(size, int) else size
    assert encoder(2, 5, size, width=2)(torch.zeros(3, 2, height, width)).shape == (3, 5)
