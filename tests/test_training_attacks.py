"""Attacks made for training: what they return is what their papers train on."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustgen.attacks import FGSM, KLPGD, Engine, RandomStartFGSM
from robustgen.divergence import kl_divergence

NORMS = {"Linf": float("inf"), "L2": 2, "L1": 1}


def linear(n_classes=3, scale=4.0):
    torch.manual_seed(1)
    model = nn.Linear(6, n_classes).double()
    model.weight.data.mul_(scale)
    return model


def images(n=40):
    return 0.4 + 0.2 * torch.rand(n, 6, dtype=torch.float64)


# --- the divergence ----------------------------------------------------------------------------------------------


def test_the_divergence_is_its_formula():
    logits, other = torch.randn(2, 5, 4, dtype=torch.float64).mul(3)
    p, q = logits.softmax(1), other.softmax(1)
    assert torch.allclose(kl_divergence(logits, other), (p * (p / q).log()).sum(1))
    per_batch = F.kl_div(other.log_softmax(1), p, reduction="batchmean")
    assert torch.allclose(kl_divergence(logits, other).mean(), per_batch)
    assert not torch.allclose(kl_divergence(logits, other), kl_divergence(other, logits))
    assert torch.equal(kl_divergence(logits, logits), torch.zeros(5, dtype=torch.float64))


def test_gradients_of_the_divergence():
    logits, other = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(kl_divergence, (logits, other))
    (gradient,) = torch.autograd.grad(kl_divergence(logits, other).sum(), other)
    assert torch.allclose(gradient, other.softmax(1) - logits.softmax(1))


def test_the_divergence_of_sure_predictions_is_finite():
    logits, other = torch.tensor([[1e4, 0.0, -1e4]]), torch.tensor([[-1e4, 0.0, 1e4]])
    assert kl_divergence(logits, other).item() == pytest.approx(2e4)


# --- KLPGD -------------------------------------------------------------------------------------------------------


def test_the_clean_logits_are_queried_once():
    model, x, sizes = linear(), images(), []
    attack = KLPGD(eps=0.1, steps=7).for_training()

    def counted(z):
        sizes.append((len(z), bool(torch.equal(z, x[: len(z)]))))
        return model(z)

    result = attack.run(counted, x, torch.zeros(40, dtype=torch.int64))
    full = [clean for n, clean in sizes if n == 40]
    assert full == [True] + [False] * 8  # x once, then the start, six iterates and the end
    assert result.forwards.tolist() == [9] * 40
    assert result.backwards.tolist() == [7] * 40


@pytest.mark.parametrize("norm", NORMS)
def test_it_maximises_the_divergence(norm):
    """Along logits that are linear in x, KL is convex in x: its maximum is on the rim, and its ends have closed forms.

    With two classes the maximum of a step-wise ascent is one of the two corners x +- eps * s, s the steepest direction.
    """
    model, x = linear(2), images()
    eps = 0.1
    x_adv = KLPGD(eps=eps, norm=norm, steps=20).for_training()(model, x, torch.zeros(40, dtype=torch.int64))
    w = (model.weight[1] - model.weight[0]).detach()
    steepest = {
        "Linf": w.sign(),
        "L2": w / w.norm(),
        "L1": w.sign() * (w.abs() == w.abs().max()),
    }[norm]
    clean = model(x).detach()
    ends = torch.stack([kl_divergence(clean, model(x + sign * eps * steepest)) for sign in (-1, 1)])
    found = kl_divergence(clean, model(x_adv))
    assert torch.minimum((found - ends[0]).abs(), (found - ends[1]).abs()).max() < 1e-6
    assert ((x_adv - x).norm(p=NORMS[norm], dim=1) > 0.999 * eps).all()


def test_what_training_gets_is_the_highest_divergence_and_not_the_lowest_margin():
    """On a wavy network the last iterate is neither."""
    seen = []

    def wavy(z):
        m = torch.cos(9 * z).sum(1, keepdim=True)
        seen.append(z.detach())
        return torch.cat([m, torch.zeros_like(m)], 1)

    x, y = torch.rand(30, 2, dtype=torch.float64), torch.zeros(30, dtype=torch.int64)
    attack = KLPGD(eps=0.4, steps=10)
    x_adv = attack.for_training()(wavy, x, y)
    visited = torch.stack([z for z in seen if len(z) == 30 and not torch.equal(z, x)])
    divergences = torch.stack([kl_divergence(wavy(x), wavy(z)) for z in visited])
    assert torch.allclose(kl_divergence(wavy(x), wavy(x_adv)), divergences.amax(0))
    assert (divergences[-1] < divergences.amax(0) - 1e-3).any()
    other = KLPGD(eps=0.4, steps=10, early_stop=False)(wavy, x, y)
    assert (other != x_adv).any()
    assert (kl_divergence(wavy(x), wavy(other)) < divergences.amax(0) - 1e-3).any()


def test_it_does_not_look_at_labels():
    model, x = linear(), images()
    attack = KLPGD(eps=0.1).for_training()
    first, second = (attack(model, x, torch.full((40,), k)) for k in (0, 2))
    assert torch.equal(first, second)


def test_the_start_is_gaussian_and_tiny():
    model, x = linear(), images(400)
    starts = []

    def watched(z):
        starts.append(z.detach())
        return model(z)

    KLPGD(eps=0.1, steps=1, bounds=(-4.0, 6.0)).for_training()(
        watched, x, torch.zeros(400, dtype=torch.int64), engine=Engine(slots=400, prepare=False)
    )
    noise = next(z for z in starts if len(z) == 400 and not torch.equal(z, x)) - x
    assert noise.std().item() == pytest.approx(0.01, rel=0.05)  # a thousandth of the width of the bounds
    assert abs(noise.mean().item()) < 0.001


def test_wrong_settings():
    for wrong in ({"targeted": True}, {"selection": "best"}, {"step_size": 0.0}, {"steps": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            KLPGD(**wrong)
    with pytest.raises(ValueError, match="early_stop=False"):
        KLPGD(selection="divergence")
    for wrong in (0.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="alpha"):
            RandomStartFGSM(alpha=wrong)


# --- RandomStartFGSM ---------------------------------------------------------------------------------------------


def test_one_step_from_a_uniform_start():
    model, x, y, seen = linear(2), images(2000), torch.zeros(2000, dtype=torch.int64), []

    def watched(z):
        seen.append(z.detach())
        return model(z)

    result = RandomStartFGSM(eps=0.1, early_stop=False).run(watched, x, y, engine=Engine(slots=2000, prepare=False))
    start = next(z for z in seen if len(z) == 2000)
    direction = (model.weight[1] - model.weight[0]).sign().detach()
    assert torch.allclose(result.x_adv, x + (start - x + 0.125 * direction).clamp(-0.1, 0.1), atol=1e-12)
    u = (start - x) / 0.1
    assert abs(u.mean().item()) < 0.02
    assert u.var().item() == pytest.approx(1 / 3, rel=0.03)
    assert result.backwards.tolist() == [1] * 2000
    # 1.25 reaches the corner from all starts above -0.25; the mean from the others is 0.625
    share = ((result.x_adv - x) * direction / 0.1).mean().item()
    assert share == pytest.approx(0.625 + 0.375 * 0.625, abs=0.01)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_very_long_step_ends_where_fgsm_ends_on_a_linear_network(norm):
    model, x, y = linear(2), images(), torch.zeros(40, dtype=torch.int64)
    ours = RandomStartFGSM(eps=0.1, alpha=50.0, norm=norm, early_stop=False)(model, x, y)
    theirs = FGSM(eps=0.1, norm=norm, early_stop=False)(model, x, y)
    gain = [F.cross_entropy(model(z), y).item() for z in (x, ours, theirs)]
    assert gain[1] - gain[0] == pytest.approx(gain[2] - gain[0], rel={"Linf": 1e-9, "L2": 0.02}[norm])


def test_the_start_is_new_at_every_id():
    model, x, y = linear(2), images(1).expand(50, -1).contiguous(), torch.zeros(50, dtype=torch.int64)
    first, again, other = (RandomStartFGSM(eps=0.1, seed=k, early_stop=False)(model, x, y) for k in (0, 0, 1))
    assert len(first.unique(dim=0)) == 50
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
