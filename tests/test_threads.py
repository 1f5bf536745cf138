"""Threads that share a model, or the process's random state, get the results of one after the other."""

import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch import nn

from robustgen import turns
from robustgen.attacks import PGD, JointAttack, TransferAttack
from robustgen.detectors import Energy, KNearestFeatures
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
