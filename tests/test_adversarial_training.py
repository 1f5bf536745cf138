"""Losses of adversarial training: closed forms, gradients, and that they make a network robust."""

import copy
import math
import multiprocessing
import os
import socket

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustgen import data, fortify
from robustgen.attacks import FGSM, KLPGD, PGD, Engine, RandomStartFGSM
from robustgen.fortified import FortifiedObjective, HiddenMatchingNetwork, HiddenMatchingObjective
from robustgen.model import kl_divergence
from robustgen.networks import convnet, mlp
from robustgen.recurrent_networks import TextClassifier
from robustgen.training import AWP, Batch, ClassifierObjective, Mart, OverfittingGuard, Trades, Trainer

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["pytest", "torch._dynamo", "robustgen.data", "robustgen.training"])  # imported once


def batch(n=12, units=8, classes=3):
    g = torch.Generator().manual_seed(2)
    x = torch.rand(n, units, generator=g, dtype=torch.float64)
    return Batch(x, torch.randint(classes, (n,), generator=g), torch.arange(n))


def network(*extra, classes=3):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(8, 16), *extra, nn.Tanh(), nn.Linear(16, classes)).double()


def gradients(model, loss):
    return torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def shift(model, x, y, *, ids):
    return x + 0.25


# --- TRADES and MART ---------------------------------------------------------------------------------------------


def test_trades_is_its_formula():
    clean, adversarial, y = torch.randn(7, 4), torch.randn(7, 4), torch.randint(4, (7,))
    loss, logged = Trades(beta=3.0)(clean, adversarial, y)
    kl = F.kl_div(adversarial.log_softmax(1), clean.softmax(1), reduction="batchmean")
    assert torch.allclose(loss, F.cross_entropy(clean, y) + 3 * kl)
    assert torch.allclose(logged["divergence"], kl)
    assert logged["accuracy"] == (clean.argmax(1) == y).float().mean()
    assert logged["adv_accuracy"] == (adversarial.argmax(1) == y).float().mean()


def test_mart_is_its_formula():
    (clean, adversarial), y = 2 * torch.randn(2, 7, 4, dtype=torch.float64), torch.randint(4, (7,))
    loss, logged = Mart(beta=3.0)(clean, adversarial, y)
    total = 0.0
    for p, q, k in zip(clean.softmax(1).tolist(), adversarial.softmax(1).tolist(), y.tolist(), strict=True):
        boosted = -math.log(q[k]) - math.log(1 - max(q[j] for j in range(4) if j != k))
        kl = sum(p[j] * math.log(p[j] / q[j]) for j in range(4))
        total += boosted + 3 * kl * (1 - p[k])
    assert loss.item() == pytest.approx(total / 7)
    assert logged["boosted_loss"].item() < loss.item()


def test_boosted_cross_entropy_of_two_classes_is_the_cross_entropy_twice():
    clean, adversarial, y = torch.randn(5, 2), torch.randn(5, 2), torch.randint(2, (5,))
    assert torch.allclose(Mart(beta=0.0)(clean, adversarial, y)[0], 2 * F.cross_entropy(adversarial, y))


def test_mart_of_sure_and_wrong_predictions_keeps_its_gradient():
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    loss, _ = Mart()(torch.zeros(1, 3), logits, torch.tensor([1]))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert loss > 395  # 200 for the true class, 200 less log 2 for the wrong one, and the divergence
    assert gradient[0, 0] > 1.9
    sure = Mart()(torch.tensor([[0.0, 200.0, 0.0]]), torch.tensor([[0.0, 200.0, 0.0]]), torch.tensor([1]))[0]
    assert sure.item() == 0.0


@pytest.mark.parametrize("loss", [Trades(beta=6.0), Mart(beta=5.0)])
def test_gradients_reach_both_halves(loss):
    clean, adversarial = (torch.randn(5, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    y = torch.randint(4, (5,))
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, y)[0], (clean, adversarial))
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(loss(clean, adversarial, y)[0], (clean, adversarial)))


@pytest.mark.parametrize("loss", [Trades(), Mart()])
def test_gradients_reach_every_parameter(loss):
    model = network(nn.BatchNorm1d(16))
    found = ClassifierObjective(KLPGD(eps=0.1), loss=loss)(model, batch(), 0)
    assert all(g.abs().sum() > 0 for k, g in enumerate(gradients(model, found["loss"])) if k != 1)  # before the norm
    assert not any(value.requires_grad for name, value in found.items() if name != "loss")


def test_beta_zero_is_the_plain_loss():
    model, b = network(), batch()
    plain = ClassifierObjective()(model, b, 0)["loss"]
    trades = ClassifierObjective(shift, loss=Trades(beta=0.0))(model, b, 0)["loss"]
    assert torch.allclose(trades, plain)
    for ours, theirs in zip(gradients(model, trades), gradients(model, plain), strict=True):
        assert torch.allclose(ours, theirs)


@pytest.mark.parametrize("loss", [Trades(), Mart()])
def test_a_loss_costs_one_forward_of_both_halves(loss):
    model, sizes = network(), []
    model.register_forward_hook(lambda m, i, o: sizes.append((len(o), m.training)))
    ClassifierObjective(KLPGD(eps=0.1, steps=4), loss=loss)(model, batch(), 0)
    assert [n for n, training in sizes if training] == [24]
    assert [n for n, training in sizes if not training and n > 4] == [12] * 6  # x once, the start, three, the end


def test_the_attack_of_trades_is_handed_over_for_training():
    model, b = network(), batch()
    x, y = ClassifierObjective(KLPGD(eps=0.1, steps=4), loss=Trades()).inputs(model, b, 3)
    attack = KLPGD(eps=0.1, steps=4).for_training()
    assert torch.equal(x[12:], attack(model, b.x, b.y, ids=b.ids + 3 * 2**32))
    assert torch.equal(y, b.y)


@pytest.mark.parametrize("loss", [Trades(beta=2.0), Mart(beta=2.0)])
def test_a_fortified_objective_is_the_sum_of_its_parts(loss):
    model, b = network(), batch()
    net = fortify(model, ["1"], example_input=b.x, noise_std=0.0)
    x_adv = shift(net, b.x, b.y, ids=b.ids)
    found = FortifiedObjective(shift, lambda_rec=0.3, lambda_adv=0.7, loss=loss)(net, b, 0)
    clean, clean_states = net(b.x, return_states=True)
    adversarial, adv_states = net(x_adv, return_states=True)
    (h, decoded), (_, adv_decoded) = clean_states["1"], adv_states["1"]
    expected = loss(clean, adversarial, b.y)[0]
    expected = expected + 0.3 * (decoded - h).square().mean() + 0.7 * (adv_decoded - h).square().mean()
    assert torch.allclose(found["loss"], expected)
    assert {"rec_loss", "adv_rec_loss", "relative_error/1", "adv_accuracy"} <= found.keys()
    for ours, theirs in zip(gradients(net, found["loss"]), gradients(net, expected), strict=True):
        assert torch.allclose(ours, theirs)


def test_wrong_settings():
    for make in (Trades, Mart):
        for beta in (-1.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="beta"):
                make(beta=beta)
        with pytest.raises(ValueError, match=f"{make.__name__} compares .* pass an attack"):
            ClassifierObjective(loss=make())
        with pytest.raises(ValueError, match=f"{make.__name__} takes the place .* clean_weight, label_smoothing"):
            ClassifierObjective(shift, label_smoothing=0.1, loss=make())
        with pytest.raises(ValueError, match=f"{make.__name__} takes the place .* clean_weight, label_smoothing"):
            FortifiedObjective(shift, clean_weight=0.5, loss=make())
        with pytest.raises(ValueError, match="label 3, outside"):
            ClassifierObjective(shift, loss=make())(network(), batch()._replace(y=torch.full((12,), 3)), 0)
    for gamma in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="gamma"):
            AWP(ClassifierObjective(), gamma=gamma)


def test_descriptions():
    assert ClassifierObjective().describe() == {
        "objective": "ClassifierObjective",
        "attack": None,
        "clean_weight": 1.0,
        "label_smoothing": 0.0,
    }
    attack = KLPGD(eps=0.1)
    found = AWP(FortifiedObjective(attack, loss=Trades(beta=1.0)), gamma=0.005).describe()
    assert found == {
        "objective": "AWP",
        "gamma": 0.005,
        "of": {
            "objective": "FortifiedObjective",
            "attack": attack.describe(),
            "loss": "Trades",
            "beta": 1.0,
            "lambda_rec": 0.1,
            "lambda_adv": 0.1,
            "detach_states": False,
            "reduction": "mean",
        },
    }


# --- AWP ---------------------------------------------------------------------------------------------------------


def moved_by_hand(model, objective, b, gamma):
    """A copy of the model at w + v, from the objective's gradient at w."""
    other = copy.deepcopy(model)
    weights = [p for p in other.parameters() if p.requires_grad]
    found = torch.autograd.grad(objective(other, b, 0)["loss"], weights, allow_unused=True)
    with torch.no_grad():
        for w, g in zip(weights, found, strict=True):
            if w.ndim > 1 and g is not None:
                w.add_(gamma * w.norm() / g.norm() * g)
    return other


OBJECTIVES = {
    "plain": ClassifierObjective(),
    "madry": ClassifierObjective(shift, clean_weight=0.0),
    "trades": ClassifierObjective(shift, loss=Trades()),
    "mart": ClassifierObjective(shift, loss=Mart()),
    "anything": lambda model, b, step: {"loss": model(b.x).square().mean()},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_gradient_is_that_at_perturbed_weights(name):
    model, b, objective = network(), batch(), OBJECTIVES[name]
    found = AWP(objective, gamma=0.1)(model, b, 0)
    there = moved_by_hand(model, objective, b, 0.1)
    expected = objective(there, b, 0)["loss"]
    assert torch.allclose(found["loss"], expected)
    for ours, theirs in zip(gradients(model, found["loss"]), gradients(there, expected), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    plain = objective(model, b, 0)
    assert torch.equal(found["unperturbed_loss"], plain["loss"])
    assert all(torch.equal(found[k], plain[k]) for k in plain if k != "loss")
    assert found["loss"] > plain["loss"]


def test_gamma_zero_is_the_objective_itself():
    model, b, objective = network(), batch(), ClassifierObjective(shift, loss=Trades())
    found, plain = AWP(objective, gamma=0.0)(model, b, 0)["loss"], objective(model, b, 0)["loss"]
    assert torch.equal(found, plain)
    for ours, theirs in zip(gradients(model, found), gradients(model, plain), strict=True):
        assert torch.equal(ours, theirs)


def test_the_perturbation_is_layer_wise_and_leaves_vectors_and_frozen_weights():
    model, b, seen = network(nn.LayerNorm(16)), batch(), []
    nn.init.ones_(model[1].bias)
    model.append(nn.Linear(3, 3).double().requires_grad_(False))
    before = state(model)
    model.register_forward_hook(lambda m, i, o: seen.append(state(m)))
    AWP(ClassifierObjective(), gamma=0.1)(model, b, 0)
    (first, second) = seen
    assert same(first, before)
    size = {k: ((second[k] - before[k]).norm() / before[k].norm()).item() for k in before}
    assert size == pytest.approx({k: 0.1 if k in ("0.weight", "3.weight") else 0.0 for k in before})


def test_weights_buffers_and_random_state_are_those_of_one_plain_step():
    b = batch()
    model = network(nn.BatchNorm1d(16), nn.Dropout(0.5))
    other, objective = copy.deepcopy(model), ClassifierObjective(PGD(eps=0.1, steps=2), clean_weight=0.0)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    random_state = torch.get_rng_state()
    found = AWP(objective, gamma=0.3)(model, b, 0)
    after = torch.get_rng_state()
    torch.set_rng_state(random_state)
    plain = objective(other, b, 0)
    assert torch.equal(after, torch.get_rng_state())
    assert same(before, dict(model.named_parameters()))
    assert same(dict(model.named_buffers()), dict(other.named_buffers()))
    assert torch.equal(found["unperturbed_loss"], plain["loss"])
    assert model[0].weight.grad.eq(1).all()


def test_both_passes_draw_the_same_noise():
    model, b, masks = network(nn.Dropout(0.5)), batch(), []
    model[1].register_forward_hook(lambda m, i, o: masks.append(o == 0))
    AWP(ClassifierObjective(), gamma=0.1)(model, b, 0)
    assert torch.equal(*masks)


def test_a_weight_with_a_gradient_hook_is_refused():
    model = network()
    model[0].weight.register_hook(lambda g: 0.1 * g)
    with pytest.raises(ValueError, match=r"a gradient hook on 0.weight would act twice"):
        AWP(ClassifierObjective())(model, batch(), 0)


def test_weights_are_restored_after_an_exception():
    model, b, calls = network(), batch(), []

    def fails(model, b, step):
        calls.append(state(model))
        if len(calls) == 2:
            raise RuntimeError("the power went out")
        return {"loss": model(b.x).square().mean()}

    before = state(model)
    with pytest.raises(RuntimeError, match="power"):
        AWP(fails, gamma=0.1)(model, b, 0)
    assert not same(calls[1], before)
    assert same(state(model), before)


def test_the_attack_runs_once_at_the_weights_themselves():
    model, b, seen = network(), batch(), []

    def attack(model, x, y, *, ids):
        seen.append(state(model))
        return x + 0.25

    AWP(ClassifierObjective(attack, loss=Trades()), gamma=0.1)(model, b, 0)
    assert len(seen) == 1
    assert same(seen[0], state(model))


def test_a_weight_without_gradient_gets_none_and_a_zero_gradient_moves_nothing():
    model, b = network(), batch()
    model.spare = nn.Linear(2, 2).double()
    model.forward = lambda x: nn.Sequential.forward(nn.Sequential(*list(model)[:3]), x)
    AWP(ClassifierObjective(), gamma=0.1)(model, b, 0)["loss"].backward()
    assert model.spare.weight.grad is None
    assert model[0].weight.grad.abs().sum() > 0
    constant = lambda m, b, step: {"loss": (0 * m(b.x)).sum()}
    found = AWP(constant, gamma=0.1)(model, b, 0)["loss"]
    assert found.item() == 0.0
    found.backward()
    assert model[0].weight.grad.isfinite().all()


def test_recurrent_weights_are_moved():
    """Their layers read flattened copies of references: a perturbation that they did not see would do nothing."""
    model = TextClassifier("lstm", units=8, n_classes=3).double()
    b = Batch(torch.randint(27, (6, 5)), torch.randint(3, (6,)), torch.arange(6))
    found = AWP(ClassifierObjective(), gamma=0.1)(model, b, 0)["loss"]
    there = moved_by_hand(model, ClassifierObjective(), b, 0.1)
    expected = ClassifierObjective()(there, b, 0)["loss"]
    assert torch.allclose(found, expected)
    for ours, theirs in zip(gradients(model, found), gradients(there, expected), strict=True):
        assert torch.allclose(ours, theirs)


def test_around_fortified_and_hidden_matching_objectives():
    model, b = network(), batch()
    net = fortify(model, ["1"], example_input=b.x, noise_std=0.0)
    objective = FortifiedObjective(FGSM(eps=0.1), loss=Trades())
    found = AWP(objective, gamma=0.1)(net, b, 0)
    x, _ = objective.inputs(net, b, 0)
    fixed = FortifiedObjective(lambda *a, ids: x[12:], loss=Trades())
    there = moved_by_hand(net, fixed, b, 0.1)
    expected = fixed(there, b, 0)["loss"]
    assert torch.allclose(found["loss"], expected)
    for ours, theirs in zip(gradients(net, found["loss"]), gradients(there, expected), strict=True):
        assert torch.allclose(ours, theirs)
    watched = HiddenMatchingNetwork(mlp(8, [16], 3).double(), "2", b.x)
    found = AWP(HiddenMatchingObjective(shift), gamma=0.1)(watched, b, 0)
    assert found["loss"] > found["unperturbed_loss"]


class ThirdOfTheGradient(torch.autograd.Function):
    """A backward pass that autocast would round, were it on."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return (gradient.float() @ torch.eye(gradient.shape[1])).div(3).to(gradient.dtype)


class Third(nn.Module):
    def forward(self, x):
        return ThirdOfTheGradient.apply(x.float())


def test_under_autocast_the_perturbation_is_seen():
    """Autocast keeps its casts of weights for as long as it lasts."""
    model, b = network(Third()).float(), batch()
    b = b._replace(x=b.x.float())
    with torch.autocast("cpu", torch.bfloat16):
        zero, small = (AWP(ClassifierObjective(), gamma=g)(model, b, 0)["loss"] for g in (0.0, 0.5))
        plain = ClassifierObjective()(model, b, 0)["loss"]
    assert torch.equal(zero, plain)
    assert small > plain + 0.1
    for ours, theirs in zip(gradients(model, zero), gradients(model, plain), strict=True):
        assert torch.equal(ours, theirs)


def test_validation_is_at_the_weights():
    b = batch()
    model = network()
    trainer = Trainer(AWP(ClassifierObjective(), gamma=0.5), epochs=1, batch_size=6, progress=False)
    (row,) = trainer.fit(model, (b.x, b.y), val=(b.x, b.y))
    assert row["val_loss"] == pytest.approx(F.cross_entropy(model(b.x), b.y).item())
    assert row["loss"] > row["unperturbed_loss"]
    assert "val_unperturbed_loss" not in row


def job():
    torch.set_num_threads(1)
    b, model = batch(33), network()
    trainer = Trainer(
        AWP(ClassifierObjective(FGSM(eps=0.1), loss=Trades()), gamma=0.1),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        epochs=2,
        batch_size=20,
        guard=OverfittingGuard(weak=FGSM(eps=0.1), strong=PGD(eps=0.1, steps=3), every=2),
        progress=False,
    )
    return model, trainer.fit(model, (b.x, b.y), val=(b.x[:7], b.y[:7]))


def rank_job(rank, port, queue):
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    model, history = job()
    queue.put((history, {k: v.tolist() for k, v in model.state_dict().items()}))


def test_two_processes_equal_one():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = CONTEXT.SimpleQueue()
    ranks = [CONTEXT.Process(target=rank_job, args=(r, port, queue)) for r in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0, 0]
    model, history = job()
    for found, weights in [queue.get() for _ in ranks]:
        for name, value in model.state_dict().items():
            torch.testing.assert_close(torch.tensor(weights[name], dtype=torch.float64), value, rtol=1e-9, atol=1e-9)
        for row, ours in zip(found, history, strict=True):
            assert row == pytest.approx(ours, rel=1e-9)


# --- what they are for -------------------------------------------------------------------------------------------

EPS = 0.1
RECIPES = {
    "madry": ClassifierObjective(PGD(eps=EPS, steps=5), clean_weight=0.0),
    "trades": ClassifierObjective(KLPGD(eps=EPS, steps=5), loss=Trades(beta=6.0)),
    "mart": ClassifierObjective(PGD(eps=EPS, steps=5), loss=Mart(beta=5.0)),
    "fast": ClassifierObjective(RandomStartFGSM(eps=EPS), clean_weight=0.0),
    "awp": AWP(ClassifierObjective(PGD(eps=EPS, steps=5), clean_weight=0.0), gamma=0.005),
}


def trained(objective, epochs=8):
    torch.manual_seed(0)
    model = convnet(1, 10, 8, width=8)
    Trainer(objective, epochs=epochs, batch_size=64, progress=False).fit(model, data.digits("train"))
    return model.eval()


def accuracy_under(attack, model, test):
    return 1 - attack.run(model, test.images(), test.labels()).success.double().mean().item()


@pytest.fixture(scope="module")
def plain():
    torch.set_num_threads(1)
    return trained(ClassifierObjective())


@pytest.mark.parametrize("name", RECIPES)
def test_robust_accuracy_rises(name, plain):
    test, strong = data.digits("test"), PGD(eps=EPS, steps=20)
    model = trained(RECIPES[name])
    before, after = (accuracy_under(strong, m, test) for m in (plain, model))
    clean = (model(test.images()).argmax(1) == test.labels()).double().mean()
    assert after > before + 0.15
    assert clean > 0.85


# Attacks made for training: what they return is what their papers train on.

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


def test_wrong_settings_of_training_attacks():
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
