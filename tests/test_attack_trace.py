"""Diagnostics of an attack see what it asks, also where it searches on a prepared copy of the network."""

import pytest
import torch
from torch import nn

from robustgen.attacks import APGD, FGSM, MIFGSM, PGD, Engine
from robustgen.evaluation import binarization_test, evaluate_robustness, indicators_of_failure
from robustgen.evaluation.attack_trace import trace_attack

NOT_ASKED = "what fools the attacked model fools the network"  # there is no other model


@pytest.fixture
def normed():
    """A convolutional network with batch norms, of which a copy is prepared, and inputs that it gets right."""
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 30), nn.BatchNorm1d(30),
        nn.ReLU(), nn.Linear(30, 4),
    ).double()  # fmt: skip
    x = torch.rand(40, 1, 8, 8, dtype=torch.float64)
    for _ in range(5):
        net(x)  # statistics
    net.eval()
    return net, x[:8], net(x[:8]).argmax(1)


@pytest.mark.parametrize("kind", [FGSM, MIFGSM, PGD, APGD])
def test_searches_on_a_copy_are_traced(normed, kind):
    net, x, y = normed
    assert Engine().prepare
    for trace, plain in zip(
        trace_attack(kind(eps=0.02), net, x, y), trace_attack(kind(eps=0.02), lambda z: net(z), x, y), strict=True
    ):
        steps = len(plain.gradient_norms)
        assert len(trace.gradient_norms) == steps > 0
        assert torch.allclose(trace.losses[:steps], plain.losses[:steps], atol=1e-9)
        assert torch.allclose(trace.gradient_norms, plain.gradient_norms, rtol=1e-6)


def test_every_indicator_is_run_on_a_convolutional_network(normed):
    net, x, y = normed
    tests = indicators_of_failure(net, x, y, PGD(eps=0.02), eps=0.02, unbounded=PGD(eps=1.0, steps=100), surrogate=net)
    assert [t.verdict for t in tests if t.verdict == "not run"] == []
    report = evaluate_robustness(net, x, y, eps=0.02)
    not_run = [t.name for t in report.masking if t.verdict == "not run" and t.name.startswith("PGD-40: ")]
    assert not_run == [f"PGD-40: {NOT_ASKED}"]


def test_a_gradient_that_vanishes_is_seen_through_the_copy(normed):
    net, x, _ = normed

    class Quantised(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, z):
            return self.net((8 * z).round() / 8)

    quantised = Quantised().eval()
    tests = indicators_of_failure(quantised, x, quantised(x).argmax(1), PGD(eps=0.02), eps=0.02)
    assert tests[0].verdict == "violated"


def test_the_binarization_test_is_the_same_with_a_copy(normed):
    net, x, _ = normed
    on_copy, on_model = (binarization_test(m, x, PGD(steps=20), eps=0.1) for m in (net, Unprepared(net)))
    assert on_copy.feasible.any()
    for name in ("feasible", "found", "random"):
        assert torch.equal(getattr(on_copy, name), getattr(on_model, name)), name


class Unprepared(nn.Sequential):
    """A model that cannot be copied."""

    def __deepcopy__(self, memo):
        raise TypeError("not to be copied")
