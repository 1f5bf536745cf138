"""Substitutes: what the target is asked, and that a network trained on its answers alone can be used against it."""

import copy

import pytest
import torch
from torch import nn

from robustgen.attacks import FGSM, NoiseSearch, TransferAttack
from robustgen.evaluation import train_substitute


class Target(nn.Module):
    """A random network with batch norm and dropout, in train mode; it keeps what it is asked, and in which mode."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))
        self.asked, self.modes = [], []

    def forward(self, x):
        self.asked.append(x.detach().clone())
        self.modes.append(self.body[3].training)
        return self.body(6 * x - 3)


def network():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize(("n", "rounds", "batch_size"), [(10, 1, 128), (10, 4, 128), (7, 3, 4), (1, 2, 1)])
def test_every_query_is_counted(n, rounds, batch_size):
    target = Target()
    found = train_substitute(target, torch.rand(n, 8), network=network, rounds=rounds, epochs=1, batch_size=batch_size)
    assert found.n_queries == sum(map(len, target.asked)) == n * 2 ** (rounds - 1)
    assert max(map(len, target.asked)) <= batch_size


@pytest.mark.parametrize("step", [0.2, -0.1])
def test_the_augmentation_is_its_formula(step):
    """A linear substitute's logit of class k has the gradient w_k everywhere; a tiny lr keeps w where it began."""
    start = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 3))  # dropout sleeps where the gradient is taken
    target, x = Target().eval(), torch.rand(20, 8)
    train_substitute(target, x, network=lambda: copy.deepcopy(start), rounds=3, epochs=1, step=step, lr=1e-12)
    first, second, third = target.asked
    assert torch.equal(first, x)
    y = target(first).argmax(1)
    assert y.unique().numel() > 1
    moved = lambda z, labels: (z + step * start[1].weight.detach()[labels].sign()).clamp(0, 1)
    assert torch.allclose(second, moved(x, y))
    everything = torch.cat([first, second])
    assert torch.allclose(third, moved(everything, target(everything).argmax(1)))


def test_new_inputs_stay_in_the_bounds():
    target = Target()
    x = 4 * torch.rand(10, 8) - 2
    train_substitute(target, x, network=network, rounds=3, epochs=1, step=0.7, bounds=(-2.0, 2.0))
    asked = torch.cat(target.asked)
    assert (asked.min(), asked.max()) == (-2.0, 2.0)


def test_target_and_random_state_are_as_they_were():
    target, x = Target(), torch.rand(10, 8)
    before, random_state = copy.deepcopy(target.state_dict()), torch.get_rng_state()
    train_substitute(target, x, network=network, rounds=2, epochs=1)
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())
    assert not any(target.modes)
    assert all(m.training for m in target.modules())
    assert all(p.requires_grad and p.grad is None for p in target.parameters())
    assert torch.equal(random_state, torch.get_rng_state())


def test_a_function_of_the_seed():
    target, x = Target(), torch.rand(10, 8)
    run = lambda seed: weights(train_substitute(target, x, network=network, rounds=2, epochs=2, seed=seed).network)
    one = run(0)
    torch.rand(3)  # whatever the caller did in between
    assert torch.equal(run(0), one)
    assert not torch.allclose(run(1), one)


def test_the_order_of_the_batches_is_drawn_by_the_seed():
    target, x, start = Target(), torch.rand(10, 8), network()
    one, other = (
        train_substitute(target, x, network=lambda: copy.deepcopy(start), rounds=1, batch_size=3, lr=0.1, seed=seed)
        for seed in (0, 1)
    )
    assert not torch.allclose(weights(one.network), weights(other.network))


def test_only_labels_are_used():
    target, x = Target(), torch.rand(30, 8)
    hard = lambda z: nn.functional.one_hot(target.eval()(z).argmax(1), 3).float()
    one, other = (train_substitute(t, x, network=network, rounds=3, epochs=2) for t in (target, hard))
    assert torch.equal(weights(one.network), weights(other.network))
    assert not one.network.training


def test_agreement_is_measured_on_what_the_target_labelled():
    target, x = Target().eval(), torch.rand(40, 8)
    found = train_substitute(target, x, network=network, rounds=2, epochs=3)
    asked = torch.cat(target.asked)
    same = (found.network(asked).argmax(1) == target(asked).argmax(1)).double().mean()
    assert found.agreement == pytest.approx(same.item())
    assert 0 < found.agreement < 1


def test_it_learns_the_target_and_its_adversarial_inputs_transfer():
    """From 150 inputs and labels alone: FGSM on the substitute beats noise of the same size by far."""
    w = torch.randn(3, 20)
    target = lambda x: (x - 0.5) @ w.T
    x = torch.rand(150, 20)
    found = train_substitute(target, x, network=lambda: nn.Linear(20, 3), rounds=4, epochs=20, step=-0.1, lr=1e-2)
    fresh = torch.rand(500, 20)
    y = target(fresh).argmax(1)
    assert (found.network(fresh).argmax(1) == y).float().mean() > 0.8
    transfer = TransferAttack(surrogate=found.network, attack=FGSM(eps=0.15)).run(target, fresh, y)
    noise = NoiseSearch(eps=0.15, n_queries=1).run(target, fresh, y)
    assert transfer.success.float().mean() > 0.6
    assert noise.success.float().mean() < 0.3
    assert transfer.backwards.max() == 0


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"x": torch.zeros(0, 8)}, ValueError, "x is empty"),
        ({"x": torch.full((3, 8), 1.5)}, ValueError, "outside the bounds"),
        ({"x": torch.zeros(3, 8, dtype=torch.uint8)}, TypeError, "float32"),
        ({"x": torch.zeros(3, 5)}, ValueError, r"the model fails on inputs of shape \(5,\)"),
        ({"rounds": 0}, ValueError, "rounds must be at least 1, got 0"),
        ({"rounds": 1.5}, TypeError, "rounds"),
        ({"epochs": 0}, ValueError, "epochs"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"step": 0.0}, ValueError, "step must be a finite number other than 0"),
        ({"step": -float("inf")}, ValueError, "step"),
        ({"lr": float("nan")}, ValueError, "lr"),
        ({"bounds": (1.0, 0.0)}, ValueError, "bounds"),
        ({"target": lambda x: None}, TypeError, "logits"),
        ({"target": lambda x: x.argmax(1)}, ValueError, "logits"),
        ({"target": lambda x: x[:1]}, ValueError, "1 rows of logits for 3 inputs"),
        ({"target": lambda x: x / 0 * 0}, ValueError, "NaN or Inf logits"),
        ({"network": lambda: torch.relu}, TypeError, r"network\(\) must return an nn.Module"),
        ({"network": lambda: nn.Linear(5, 3)}, ValueError, r"inputs of shape \(8,\)"),
        ({"network": lambda: nn.Linear(8, 2), "target": lambda x: x * 0 + torch.arange(8.0)}, ValueError, "label 7"),
    ],
)
def test_errors(wrong, error, message):
    given = {"target": nn.Linear(8, 3), "x": torch.rand(3, 8), "network": network} | wrong
    with pytest.raises(error, match=message):
        train_substitute(given.pop("target"), given.pop("x"), **given)
