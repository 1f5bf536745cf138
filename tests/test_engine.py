"""The engine: full batches whatever falls, honest copies, circles that end; and attacks that know a detector."""

import copy
import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from robustgen import turns
from robustgen.attacks import APGDT, PGD, Engine, JointAttack, Square, TransferAttack
from robustgen.attacks.ball import Ball
from robustgen.attacks.pgd import Visited
from robustgen.attacks.prepare import prepare
from robustgen.detectors import Energy, KNearestFeatures
from robustgen.fortified import fortify
from robustgen.training import ClassifierObjective, Trainer
from robustgen.turns import (
    RANDOM_STATE,
    DeadlockError,
    RandomStream,
    _keys,
    taking_turns,
    training_alone,
    warnings_set_to,
)


def normed_net(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 36, 12),
        nn.BatchNorm1d(12),
        nn.ReLU(),
        nn.Linear(12, 3),
    )
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 2)
    return net.eval()


class Counting(nn.Module):
    """Counts rows of every pass."""

    def __init__(self, net):
        super().__init__()
        self.net, self.sizes = net, []

    def forward(self, x):
        self.sizes.append(len(x))
        return self.net(x)


class TestSlots:
    def setup_method(self):
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(8, 30), nn.Tanh(), nn.Linear(30, 4)).double()
        self.net[0].weight.data.mul_(4)
        self.x = torch.rand(90, 8, dtype=torch.float64)
        self.y = self.net(self.x).argmax(1)

    @pytest.mark.parametrize("attack", [PGD(eps=0.08, restarts=3), APGDT(eps=0.08, steps=15), Square(n_queries=40)])
    def test_any_number_of_slots_finds_the_same(self, attack):
        eps = torch.linspace(0, 0.4, 90)
        whole = attack.run(self.net, self.x, self.y, eps=eps, engine=Engine(slots=1000))
        assert 0.1 < whole.success.double().mean() < 0.9
        for slots in (1, 7, 64):
            found = attack.run(self.net, self.x, self.y, eps=eps, engine=Engine(slots=slots))
            assert torch.allclose(found.x_adv, whole.x_adv, atol=1e-12, rtol=0)
            for field in ("success", "forwards", "backwards"):
                assert torch.equal(getattr(found, field), getattr(whole, field)), field

    def test_slots_are_refilled_and_never_exceeded(self):
        model = Counting(self.net)
        result = PGD(eps=0.02, steps=30, restarts=4).run(model, self.x, self.y, engine=Engine(slots=16))
        assert max(model.sizes) <= 16
        work = int(result.forwards.sum())
        assert len(model.sizes) <= 1.35 * work / 16  # nearly all passes are full
        few = Counting(self.net)
        for rows in torch.arange(90).split(16):  # what it would be without
            PGD(eps=0.02, steps=30, restarts=4).run(few, self.x[rows], self.y[rows])
        assert len(few.sizes) > 1.1 * len(model.sizes)

    @pytest.mark.parametrize("wrong", [{"slots": 0}, {"slots": 1.5}, {"precision": "int8"}])
    def test_options_are_checked(self, wrong):
        with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
            Engine(**wrong)
        with pytest.raises(ValueError, match="prepare"):
            Engine(precision="bfloat16", prepare=False)


class TestPrepare:
    def test_folds_what_it_can_and_agrees(self):
        net = normed_net()
        x = torch.rand(5, 1, 8, 8)
        with torch.no_grad():
            found = prepare(net, x)
            assert found.steps == ("folded 2 batch norms", "channels_last")
            assert torch.allclose(found.model(x), net(x), atol=1e-5)
        assert not any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in found.model.modules())
        assert isinstance(net[1], nn.BatchNorm2d)

    def test_gradients_are_those_of_the_model(self):
        net = normed_net().double()
        x = torch.rand(5, 1, 8, 8, dtype=torch.float64, requires_grad=True)
        with torch.no_grad():
            model = prepare(net, x.detach()).model
        slopes = [torch.autograd.grad(m(x)[:, 0].sum(), x)[0] for m in (net, model)]
        assert torch.allclose(*slopes, atol=1e-12)

    def test_hooks_and_shared_weights_stay(self):
        net = normed_net()
        net[0].register_forward_hook(lambda module, args, output: 2 * output)
        x = torch.rand(5, 1, 8, 8)
        with torch.no_grad():
            assert prepare(net, x).steps[0] == "folded 1 batch norm"
            twice = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
            twice = nn.Sequential(twice[0], twice[1], twice[0])
            assert prepare(twice, torch.rand(3, 4)).steps == ("none: no batch norm to fold, no convolutions",)

    def test_an_output_that_goes_elsewhere_too_is_found_out(self):
        class Skip(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
                self.norm.running_var.fill_(3)

            def forward(self, x):
                h = self.layer(x)
                return h + self.norm(h)

        with torch.no_grad():
            found = prepare(Skip().eval(), torch.rand(3, 4))
        assert found.steps == ("none: the copy gives other logits",)

    def test_around_skips_what_can_be_folded_is(self):
        """Of two norms behind a convolution each, the first one's input goes around it too."""

        class Block(nn.Module):
            def __init__(self):
                super().__init__()
                self.one, self.two = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
                self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2))
                for norm in self.norms:
                    norm.running_mean.normal_()
                    norm.running_var.fill_(3)

            def forward(self, x):
                x = self.one(x)
                return (x + self.norms[1](self.two(torch.relu(self.norms[0](x))))).mean((2, 3))

        net, x = Block().eval(), torch.rand(3, 1, 5, 5)
        with torch.no_grad():
            found = prepare(net, x)
            assert found.steps == ("folded 1 batch norm", "channels_last")
            assert isinstance(found.model.norms[0], nn.BatchNorm2d)
            assert torch.allclose(found.model(x), net(x), atol=1e-5)

    def test_a_fortified_network_keeps_its_layers(self):
        x = torch.rand(6, 1, 8, 8)
        net = fortify(normed_net(), ["2"], example_input=x).eval()
        with torch.no_grad():
            found = prepare(net, x)
            assert found.steps[0] == "folded 2 batch norms"
            assert torch.allclose(found.model(x), net(x), atol=1e-5)
            changed = copy.deepcopy(net)  # layers of the copy, not those of the original
            for p in (p for name, p in changed.named_parameters() if "backbone" not in name):
                p.mul_(2)
            assert torch.allclose(prepare(changed, x).model(x), changed(x), atol=1e-5)
            assert not torch.allclose(changed(x), net(x), atol=1e-3)

    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_every_success_is_one_of_the_model(self, precision):
        net = normed_net()
        x = torch.rand(40, 1, 8, 8)
        y = net(x).argmax(1)
        eps = torch.linspace(0, 1, 40)
        result = PGD(steps=10).run(net, x, y, eps=eps, engine=Engine(precision=precision))
        assert 0 < result.success.sum() < 40
        assert result.x_adv.dtype == torch.float32
        assert torch.equal(net(result.x_adv).argmax(1) != y, result.success)

    @pytest.mark.parametrize("early_stop", [True, False])
    def test_a_copy_that_lies_wins_nothing(self, monkeypatch, early_stop):
        """Searched on a copy that is always fooled, no success survives the model's own verdict."""
        net = nn.Linear(4, 2)
        x = torch.rand(10, 4)
        y = net(x).argmax(1)
        lie = lambda z: -net(z)
        monkeypatch.setattr("robustgen.attacks.base.prepare", lambda *a, **k: type("", (), {"model": lie}))
        result = PGD(eps=1e-6, steps=5, early_stop=early_stop).run(net, x, y, engine=Engine(prepare=True))
        assert not result.success.any()


class TestCircles:
    def test_a_search_that_comes_back_ends(self):
        """One dimension, a peak between two points: the step jumps over it, there and back."""
        peak = lambda z: torch.stack([1 + (z[:, 0] - 0.5).abs(), 0 * z[:, 0]], 1)
        x, y = torch.full((1, 1), 0.52, dtype=torch.float64), torch.tensor([0])
        attack = PGD(eps=0.2, steps=500, step_size=0.05, random_start=False)
        result = attack.run(peak, x, y)
        assert result.backwards.item() < 10
        assert not result.success.any()
        every = PGD(eps=0.2, steps=500, step_size=0.05, random_start=False, early_stop=False).run(peak, x, y)
        assert every.backwards.item() == 500
        assert torch.equal(result.x_adv, every.x_adv)

    def test_the_same_is_found_with_and_without(self):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3)).double()
        x = torch.rand(60, 6, dtype=torch.float64)
        y = net(x).argmax(1)
        attack = PGD(eps=0.05, steps=200, step_size=0.02)
        short, whole = attack.run(net, x, y), PGD(eps=0.05, steps=200, step_size=0.02, early_stop=False).run(net, x, y)
        assert torch.equal(short.success, whole.success)
        assert torch.allclose(short.x_adv[~short.success], whole.x_adv[~short.success])
        assert short.backwards[~short.success].double().mean() < 100

    def test_points_are_told_apart(self):
        seen, rows = Visited(torch.zeros(3)), torch.arange(3)
        x = torch.rand(3, 50)
        assert not seen.again(rows, x).any()
        near = x.clone()
        near[0, 7] = torch.nextafter(near[0, 7], torch.tensor(2.0))
        assert seen.again(rows, near).tolist() == [False, True, True]
        assert seen.again(rows[1:], x[:2]).tolist() == [False, False]  # where another row was


class TestJointAttack:
    """Logits +-a.x and a score along b: what can be had is known."""

    def setup_method(self):
        torch.manual_seed(0)
        self.x = 0.3 + 0.4 * torch.rand(50, 10, dtype=torch.float64)
        self.net = nn.Linear(10, 2).double()
        self.y = self.net(self.x).argmax(1)
        self.centre = self.x[0, 5:].mean().item()
        self.score = lambda z: 100 * (z[:, 5:] - self.centre).square().mean(1)

    def feasible(self, threshold, eps):
        """Whether there is a point that is misclassified, passes, and is in the ball: a convex programme each."""
        w = (self.net.weight[0] - self.net.weight[1]).detach().numpy()
        bias = (self.net.bias[0] - self.net.bias[1]).item()
        found = []
        for x, y in zip(self.x.numpy(), self.y.tolist(), strict=True):
            sign = -1 if y == 0 else 1
            best = minimize(
                lambda z, sign=sign: -sign * (z @ w + bias),
                x,
                bounds=[(max(0, v - eps), min(1, v + eps)) for v in x],
                constraints={"type": "ineq", "fun": lambda z: threshold - 100 * ((z[5:] - self.centre) ** 2).mean()},
                method="SLSQP",
            )
            passes = threshold - 100 * ((best.x[5:] - self.centre) ** 2).mean() > -1e-6
            found.append(bool(best.fun < 0 and passes))
        return torch.tensor(found)

    @pytest.mark.parametrize("formulation", ["sum", "max", "selective", "orthogonal", "score"])
    def test_scores_keep_their_precision(self, formulation):
        """Scores near a million in float64, logits in bfloat16: rounded as those, every score would be the same."""
        net = self.net.bfloat16()
        logits = lambda z: net(z.bfloat16())
        score = lambda z: 1e6 + self.score(z)
        threshold = score(self.x).median().item()
        y = logits(self.x).argmax(1)
        attack = JointAttack(eps=0.3, score=score, threshold=threshold, formulation=formulation, steps=40)
        result = attack.run(logits, self.x, y)
        assert result.success.sum() > 0
        assert (score(result.x_adv)[result.success] <= threshold).all()

    @pytest.mark.parametrize("formulation", ["sum", "max", "selective", "orthogonal"])
    def test_success_is_both_and_found_where_there_is_one(self, formulation):
        threshold = self.score(self.x).median().item()
        attack = JointAttack(score=self.score, threshold=threshold, formulation=formulation, eps=0.3, restarts=2)
        result = attack.run(self.net, self.x, self.y)
        fools = self.net(result.x_adv).argmax(1) != self.y
        assert torch.equal(result.success, fools & (self.score(result.x_adv) <= threshold))
        feasible = self.feasible(threshold, 0.3)
        assert 20 < feasible.sum() < 50
        assert not (result.success & ~feasible).any()
        assert result.success.sum() >= (0.8 if formulation == "sum" else 0.95) * feasible.sum()
        oblivious = PGD(eps=0.3).run(self.net, self.x, self.y)
        assert result.success.sum() > 4 * (oblivious.success & (self.score(oblivious.x_adv) <= threshold)).sum()

    def test_fooled_already_but_detected_is_work_to_do(self):
        wrong = 1 - self.y
        threshold = self.score(self.x).median().item()
        result = JointAttack(score=self.score, threshold=threshold, eps=0.1).run(self.net, self.x, wrong)
        detected = self.score(self.x) > threshold
        assert result.backwards[detected].min() > 0
        assert result.backwards[~detected].max() == 0
        assert result.success.sum() > (~detected).sum()

    def test_an_outlier_made_to_look_normal(self):
        far = 1 - 0.05 * torch.rand(20, 10, dtype=torch.float64)
        threshold = self.score(self.x).max().item()
        attack = JointAttack(score=self.score, threshold=threshold, formulation="score", eps=0.5)
        assert (self.score(far) > threshold).all()
        result = attack.run(self.net, far, torch.zeros(20, dtype=torch.int64))
        assert result.success.all()
        assert (self.score(result.x_adv) <= threshold).all()
        closest = far.clone()
        closest[:, 5:] = closest[:, 5:] - 0.1
        assert (
            not JointAttack(
                score=self.score, threshold=self.score(closest).min().item() - 1e-6, formulation="score", eps=0.1
            )
            .run(self.net, far, torch.zeros(20, dtype=torch.int64))
            .success.any()
        )

    def test_returns_the_lowest_score_of_what_fools(self):
        result = JointAttack(score=self.score, threshold=-1.0, eps=0.3).run(self.net, self.x, self.y)
        assert not result.success.any()
        assert (self.net(result.x_adv).argmax(1) != self.y).double().mean() > 0.7
        oblivious = PGD(eps=0.3).run(self.net, self.x, self.y)
        both = (self.net(result.x_adv).argmax(1) != self.y) & oblivious.success
        assert (self.score(result.x_adv) < self.score(oblivious.x_adv))[both].double().mean() > 0.9

    def test_targeted(self):
        net = nn.Linear(10, 4).double()
        target = (net(self.x).argmax(1) + 1) % 4
        result = JointAttack(score=self.score, threshold=5.0, eps=0.4, targeted=True).run(net, self.x, target)
        assert torch.equal(result.success, (net(result.x_adv).argmax(1) == target) & (self.score(result.x_adv) <= 5))
        assert result.success.any()

    def test_errors(self):
        for wrong, match in [
            ({"formulation": "both"}, "unknown formulation"),
            ({"weight": -1.0}, "weight"),
            ({"threshold": float("nan")}, "threshold"),
        ]:
            with pytest.raises(ValueError, match=match):
                JointAttack(**{"score": self.score, "threshold": 0.0} | wrong)
        with pytest.raises(ValueError, match="score must return one number"):
            JointAttack(score=lambda z: z, threshold=0.0)(self.net, self.x, self.y)
        with pytest.raises(ValueError, match="score does not depend on x"):
            JointAttack(score=lambda z: z.detach().sum(1), threshold=0.0)(self.net, self.x, self.y)

    def test_a_point_at_the_gradients_right_angle(self):
        """Orthogonal: with the two gradients in disjoint coordinates, neither loses anything of its own."""
        from robustgen.attacks.joint import _without

        v, w = torch.randn(3, 6, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
        assert (_without(v, w) * w).sum(1).abs().max() < 1e-12
        ball = Ball(v.sigmoid(), torch.ones(3, dtype=torch.float64), "L2", (0.0, 1.0))
        assert ball.project(torch.arange(3), v).shape == v.shape


# Threads that share a model, or the process's random state, get the results of one after the other.

THREADS = 8


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 3)).train()


class Noisy(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x) + 0.1 * torch.randn(len(x), 3)


def in_threads(tasks):
    """What each task returns, all begun at one moment."""
    barrier = threading.Barrier(len(tasks))

    def run(task):
        barrier.wait()
        return task()

    with ThreadPoolExecutor(len(tasks)) as pool:
        return list(pool.map(run, tasks))


def trace(model):
    return [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("shared", [True, False])
def test_attacks_in_threads_find_what_they_find_one_by_one(stochastic, shared):
    x, y = torch.rand(20, 12), torch.arange(20) % 3
    models = [network()] * THREADS if shared else [network() for _ in range(THREADS)]
    models = [Noisy(m) for m in models] if stochastic else models  # each is another module around the same one
    attacks = [PGD(eps=0.05 * (k + 1), steps=5, seed=k) for k in range(THREADS)]
    one_by_one = [a(m, x, y) for a, m in zip(attacks, models, strict=True)]
    before, state = trace(models[0]), torch.get_rng_state()
    found = in_threads([lambda a=a, m=m: a(m, x, y) for a, m in zip(attacks, models, strict=True)])
    assert all(torch.equal(a, b) for a, b in zip(found, one_by_one, strict=True))
    assert trace(models[0]) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_attacks_scores_and_training_on_one_network():
    """Training is what it is without company, and so is everything else on the networks that stay as they are."""
    x, y = torch.rand(64, 12), torch.arange(64) % 3
    trainer = Trainer(
        ClassifierObjective(PGD(eps=0.1, steps=2, early_stop=False)), epochs=3, batch_size=16, progress=False
    )
    alone = network()
    trainer.fit(alone, (x, y))
    learner, other = network(), network()
    energy, features = Energy(other).fit(x), KNearestFeatures(other, k=3).fit(x)
    scores = energy.score(x), features.score(x)
    state = torch.get_rng_state()
    busy = threading.Event()

    def repeatedly(task):
        results = []
        while not busy.is_set():
            results.append(task())
        return results

    def train():
        try:
            return trainer.fit(learner, (x, y))
        finally:
            busy.set()

    guarded = JointAttack(score=energy.score, threshold=0.0, eps=0.1, steps=3)
    across = TransferAttack(surrogate=other, attack=PGD(eps=0.1, steps=2))
    _, ours, theirs, noisy, joint, _ = in_threads(
        [
            train,
            lambda: repeatedly(lambda: energy.score(x)),
            lambda: repeatedly(lambda: features.score(x)),
            lambda: repeatedly(lambda: PGD(eps=0.1, steps=2)(Noisy(other), x[:4], y[:4])),
            lambda: repeatedly(lambda: guarded(other, x[:4], y[:4])),
            lambda: repeatedly(lambda: across(learner, x[:4], y[:4])),
        ]
    )
    assert all(torch.equal(a, b) for a, b in zip(learner.parameters(), alone.parameters(), strict=True))
    assert all(torch.equal(s, scores[0]) for s in ours)
    assert all(torch.equal(s, scores[1]) for s in theirs)
    assert all(torch.equal(a, b[0]) for b in (noisy, joint) for a in b)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(m.training for m in learner.modules())
    assert all(p.requires_grad for p in other.parameters())


def test_a_score_does_not_disturb_what_another_thread_draws():
    """Only what draws itself may fork the random state, else it would put back the state of a while ago."""
    detector = Energy(network()).fit(torch.rand(9, 12))
    generator = torch.Generator().manual_seed(5)
    expected = torch.rand(2000, generator=generator)
    torch.manual_seed(5)
    done = threading.Event()

    def draw():
        numbers = torch.cat([torch.rand(1) for _ in range(2000)])
        done.set()
        return numbers

    def score():
        while not done.is_set():
            detector.score(torch.ones(1, 12))

    drawn, _ = in_threads([draw, score])
    assert torch.equal(drawn, expected)


def test_taking_turns_is_for_modules_with_all_their_parts():
    net, order = nn.Sequential(nn.Sequential(nn.Linear(1, 1))), []
    inside = threading.Event()

    def whole():
        with taking_turns(net):
            inside.set()
            with taking_turns(net[0][0]):  # the same thread may
                order.append("whole")
                threading.Event().wait(0.05)
                order.append("whole ends")

    def part():
        inside.wait()
        with taking_turns(net[0][0]):
            order.append("part")

    in_threads([whole, part])
    assert order == ["whole", "whole ends", "part"]


def test_waiting_in_a_circle_is_an_error_not_a_hang():
    a, b = nn.Linear(1, 1), nn.Linear(1, 1)
    meet = threading.Barrier(2)

    def take(first, second):
        with taking_turns(first):
            meet.wait()
            try:
                with taking_turns(second):
                    return "both"
            except DeadlockError as error:
                return str(error)

    results = in_threads([lambda: take(a, b), lambda: take(b, a)])
    assert sorted(r == "both" for r in results) == [False, True]
    with taking_turns(a, b, RANDOM_STATE):  # everything was given back
        pass


def test_streams_take_turns():
    def draw(seed):
        stream, numbers = RandomStream(seed), []
        for _ in range(20):
            with stream.drawing():
                numbers.append(torch.rand(2))
        return torch.cat(numbers)

    for seed, numbers in enumerate(in_threads([lambda s=s: draw(s) for s in range(THREADS)])):
        assert torch.equal(numbers, torch.rand(40, generator=torch.Generator().manual_seed(seed)))


def test_who_came_first_is_first():
    """A thread that always comes back at once does not keep out one that waits."""
    net, order, held = nn.Linear(1, 1), [], threading.Event()

    def greedy():
        with taking_turns(net):
            held.set()
            while not turns._waiting:
                pass
        with taking_turns(net):
            order.append("greedy")

    def patient():
        held.wait()
        with taking_turns(net):
            order.append("patient")

    in_threads([greedy, patient])
    assert order == ["patient", "greedy"]


def test_what_is_called_with_a_model_is_taken_with_it():
    net, other = nn.Linear(2, 2), nn.Linear(2, 2)
    energy = Energy(other)
    parts = {id(m) for m in (other, other.weight, other.bias)}
    for thing in (other, lambda x: other(x), other.forward, partial(other, 1), energy.score, lambda x: energy.score(x)):
        assert parts <= set(_keys(thing))
    attack = JointAttack(score=lambda x: energy.score(x), threshold=0.0)
    assert parts <= {key for thing in attack._asked_too() for key in _keys(thing)}
    transfer = TransferAttack(surrogate=other, attack=PGD())
    assert parts <= {key for thing in transfer._asked_too() for key in _keys(thing)}
    tied = nn.Linear(2, 2)
    tied.weight = net.weight
    assert set(_keys(tied)) & set(_keys(net)) == {id(net.weight)}


def test_two_trainings_of_one_network_are_refused():
    net, inside, done = nn.Sequential(nn.Linear(2, 2)), threading.Event(), threading.Event()

    def one():
        with training_alone(net), training_alone(net[0]):
            inside.set()
            done.wait()

    def two():
        inside.wait()
        try:
            with pytest.raises(RuntimeError, match="another thread trains"):
                Trainer(ClassifierObjective(), progress=False).fit(net[0], (torch.rand(4, 2), torch.arange(4) % 2))
        finally:
            done.set()

    in_threads([one, two])
    Trainer(ClassifierObjective(), progress=False).fit(net[0], (torch.rand(4, 2), torch.arange(4) % 2))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a fork beside threads
def test_a_forked_process_does_not_wait_for_threads_that_it_lacks():
    net, inside, done = nn.Linear(2, 2), threading.Event(), threading.Event()

    def hold():
        with taking_turns(net):
            inside.set()
            done.wait()

    def fork():
        inside.wait()
        child = os.fork()
        if child == 0:
            with taking_turns(net):
                os._exit(7)
        done.set()
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert in_threads([hold, fork])[1] == 7


def test_filters_of_warnings_are_as_before():
    before = list(warnings.filters)

    def ignore():
        for _ in range(50):
            with warnings_set_to("ignore"):
                pass

    in_threads([ignore] * 4)
    assert warnings.filters == before
