"""Indicators of attack failure and the binarization test: raised where they should be, quiet on a healthy network."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from robustgen import ReconstructionError, data, fortify
from robustgen.attacks import APGD, FGSM, MIFGSM, PGD, Engine, NoiseSearch
from robustgen.attacks.ball import Ball
from robustgen.checks import eps_spans_bounds
from robustgen.evaluation import (
    binarization_test,
    evaluate_detector_robustness,
    evaluate_robustness,
    indicators_of_failure,
)
from robustgen.evaluation.binarization import _Binarized
from robustgen.evaluation.chunks import Job, run_jobs
from robustgen.evaluation.diagnostics import _verified
from robustgen.evaluation.doubts import at_chance
from robustgen.evaluation.indicators import trace_attack
from robustgen.evaluation.report import draw_markdown
from robustgen.networks import mlp
from robustgen.training import ClassifierObjective, Trainer

EPS = 0.1
NAMES = ("gradients", "stable", "silent", "complete", "transfer", "unbounded")


@pytest.fixture(scope="module")
def healthy():
    """A small network with digits in [0, 1] that it gets right."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    train, test = data.digits("train"), data.digits("test")
    net = mlp(64, [64, 64], 10)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    x, y = train.images(), train.labels()
    for _ in range(8):
        for i in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[i]), y[i]).backward()
            optimizer.step()
    return net.eval(), test.images()[:20], test.labels()[:20]


def cross_entropy(logits, y):
    return nn.functional.cross_entropy(logits, y, reduction="none")


def plain_pgd(eps, steps=40, step=None, loss=cross_entropy):
    """The textbook attack: float32 cross-entropy, from x, and the last point is returned."""

    def attack(model, x, y):
        ball = Ball(x, torch.full((len(x),), eps, dtype=torch.float64), "Linf", (0.0, 1.0))
        i, z = torch.arange(len(x)), x
        for _ in range(steps):
            z = z.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss(model(z), y).sum(), z)
            z = ball.project(i, z.detach() + (step or 2.5 * eps / steps) * gradient.sign())
        model(z)
        return z

    return attack


def raised(model, x, y, attack, **options):
    tests = indicators_of_failure(model, x, y, attack, eps=EPS, **options)
    assert all(t.advice.endswith(".") and t.detail for t in tests)
    return {name for name, t in zip(NAMES, tests, strict=True) if t.verdict == "violated"}


def test_a_healthy_network_raises_none(healthy):
    net, x, y = healthy
    assert raised(net, x, y, PGD(eps=EPS), unbounded=PGD(eps=1.0, steps=100)) == set()
    assert raised(net, x, y, NoiseSearch(eps=EPS), unbounded=PGD(eps=1.0, steps=100)) == set()
    scaled = lambda z: 1e4 * net(z)  # the losses of this package do not saturate
    assert raised(scaled, x, y, PGD(eps=EPS), unbounded=PGD(eps=1.0, steps=100)) == set()


def test_saturated_cross_entropy_has_no_gradient(healthy):
    net, x, y = healthy
    scaled = lambda z: 1e4 * net(z)
    options = {"loss": cross_entropy, "unbounded": plain_pgd(1.0, 100)}
    assert raised(scaled, x, y, plain_pgd(EPS), **options) == {"gradients", "unbounded"}


def test_quantised_inputs_have_no_gradient(healthy):
    net, x, y = healthy
    quantised = lambda z: net((8 * z).round() / 8)
    assert raised(quantised, x, y, PGD(eps=EPS), unbounded=PGD(eps=1.0, steps=100)) >= {"gradients", "unbounded"}
    cut = lambda z: net(z.detach())
    assert raised(cut, x, y, PGD(eps=EPS)) == {"gradients"}
    # shown the network without its quantisation, the attack gets through, or is told where it does not
    through = indicators_of_failure(quantised, x, y, PGD(eps=EPS), eps=EPS, surrogate=net)
    assert through[0].verdict == "holds"
    assert through[4].verdict != "not run"


def test_shattered_and_stochastic_responses_are_unstable(healthy):
    net, x, y = healthy
    waves = torch.linspace(-1, 1, 640).reshape(64, 10)
    shattered = lambda z: net(z) + 8 * torch.sin(2000 * z.flatten(1) @ waves)
    assert "stable" in raised(shattered, x, y, PGD(eps=EPS))
    steps = lambda z: 40 * (net(z) / 40).round() + 0.001 * net(z)
    assert raised(steps, x, y, PGD(eps=EPS)) <= {"stable", "complete"}
    stochastic = lambda z: net(z + 0.3 * torch.randn_like(z))
    assert "stable" in raised(stochastic, x, y, PGD(eps=EPS))


def test_too_few_or_too_short_steps_are_incomplete(healthy):
    net, x, y = healthy
    small = PGD(eps=EPS, step_size=1e-4, random_start=False)
    assert raised(net, x, y, small) == {"complete"}
    one = plain_pgd(EPS, steps=40, step=2.0)  # from corner to corner
    assert "complete" not in raised(net, x, y, one, loss=cross_entropy)


def test_a_success_that_is_thrown_away_is_silent(healthy):
    net, x, y = healthy

    def forgetful(model, x, y):
        PGD(eps=EPS)(model, x, y)
        return x

    assert "silent" in raised(net, x, y, forgetful)
    beyond = lambda model, x, y: [PGD(eps=0.5)(model, x, y), x][1]  # what it finds is outside the ball
    assert "silent" not in raised(net, x, y, beyond)


def test_a_surrogate_that_differs_fails_to_transfer(healthy):
    net, x, y = healthy
    weights = {k: torch.randn_like(v) * v.std() for k, v in net.state_dict().items()}
    other = lambda z: torch.func.functional_call(net, weights, z)
    assert "transfer" in raised(net, x, y, PGD(eps=EPS), surrogate=other)
    assert "transfer" not in raised(net, x, y, PGD(eps=EPS), surrogate=lambda z: net(z) * 2)


def test_inputs_that_are_wrong_already_do_not_count(healthy):
    net, x, y = healthy
    tests = indicators_of_failure(net, x, (y + 1) % 10, PGD(eps=EPS), eps=EPS)
    assert {t.verdict for t in tests} == {"not run"}


def test_a_trace_is_the_path(healthy):
    """On a linear network the loss of every step and the gradient are known."""
    w = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]], dtype=torch.float64)
    linear = lambda z: z @ w.T
    x = torch.tensor([[0.9, 0.1, 0.5]], dtype=torch.float64)
    attack = PGD(eps=0.04, steps=4, step_size=0.01, random_start=False)
    (trace,) = trace_attack(attack, linear, x, torch.tensor([0]), loss="margin")
    fall = 0.01 * w[0].abs().sum().item()
    expected = torch.tensor([-(0.95 - k * fall) for k in range(5)], dtype=torch.float64)
    assert torch.allclose(trace.losses, expected)
    (by_ce,) = trace_attack(attack, linear, x, torch.tensor([0]))
    assert torch.allclose(by_ce.gradient_norms, w[0].norm().expand(4))


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.1), ("L2", 0.5), ("L1", 2.0)])
def test_binarization_tells_attacks_apart(healthy, norm, eps):
    net, x, _ = healthy
    before = {k: v.clone() for k, v in net.state_dict().items()}
    good = binarization_test(net, x, PGD(norm=norm), eps=eps)
    assert good.to_test().verdict == "holds", good.to_test().detail
    assert good.feasible.sum() >= 10
    assert good.random.sum() < 0.5 * good.feasible.sum()
    assert good.features == "features before 5"
    useless = PGD(norm=norm, steps=1, step_size=1e-12, random_start=False)
    assert not binarization_test(net, x[:5], useless, eps=eps).found.any()
    assert binarization_test(net, x[:5], useless, eps=eps).to_test().verdict == "violated"
    quantised = lambda z: net((8 * z).round() / 8)
    assert binarization_test(quantised, x, PGD(norm=norm), eps=eps).to_test().verdict == "violated"
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_the_read_out_is_the_linear_discriminant():
    """Against the definition with the matrix written out, and separation exactly at the threshold."""
    torch.manual_seed(0)
    for n, d in ((50, 6), (20, 60)):
        inner, surface = torch.randn(n, d, dtype=torch.float64), 3 * torch.ones(d, dtype=torch.float64)
        binary = _Binarized(lambda z: z, None)
        assert binary.fit(inner, surface)
        centred = inner - inner.mean(0)
        covariance = centred.T @ centred / n
        ridge = covariance.trace() / min(n, d) * torch.eye(d)
        solved = torch.linalg.solve(covariance + ridge, surface - inner.mean(0))
        assert torch.allclose(nn.functional.cosine_similarity(solved, binary.direction, dim=0), torch.ones(()).double())
        assert (binary(inner).argmax(1) == 0).all()
        values = binary(torch.cat([inner, surface[None]]))[:, 1]
        assert torch.allclose(values[-1] - values[:-1].max(), torch.ones(()).double())  # rescaled to 1
        assert torch.allclose(values[-1], torch.tensor(0.3).double())
    assert not _Binarized(lambda z: z, None).fit(inner, inner.mean(0))
    assert not _Binarized(lambda z: z, None).fit(torch.ones(9, 3), torch.zeros(3))


def test_binarization_says_when_it_cannot_tell(healthy):
    net, x, _ = healthy
    constant = lambda z: torch.zeros(len(z), 3) + 0 * z.flatten(1).sum(1, keepdim=True)
    test = binarization_test(constant, x[:3], PGD(), eps=0.1).to_test()
    assert (test.verdict, test.n) == ("not run", 0)
    assert binarization_test(net, x[:0], PGD(), eps=0.1).to_test().verdict == "not run"
    with pytest.raises(ValueError, match="untargeted"):
        binarization_test(net, x, PGD(targeted=True), eps=0.1)
    with pytest.raises(ValueError, match="eps"):
        binarization_test(net, x, PGD(), eps=0.0)


def test_the_report_shows_verdicts_and_advice(healthy, tmp_path):
    net, x, y = healthy
    report = evaluate_robustness(net, x, y, eps=EPS)
    verdicts = {t.name: t.verdict for t in report.masking}
    assert "violated" not in verdicts.values()
    assert verdicts["PGD-40: the attack finds examples that are known to be there"] == "holds"
    assert verdicts["every success is verified"] == "holds"
    assert verdicts["successes survive 8-bit rounding"] == "holds"
    weak = evaluate_robustness(net, x, y, eps=EPS, attacks=[PGD(eps=EPS, step_size=1e-4, random_start=False)])
    found = {t.name: t for t in weak.masking}
    for name in ("another loss breaks nothing more", "PGD: the attack has converged"):
        assert found[name].verdict == "violated"
        assert found[name].advice in str(weak)
        assert found[name].advice in weak.save(tmp_path).read_text()
    assert weak.to_dict()["masking_tests"][0]["advice"]


def test_what_only_black_box_attacks_find_is_counted(healthy):
    net, x, y = healthy
    quantised = lambda z: net((4 * z).round() / 4)
    right = quantised(x).argmax(1) == y
    attacks = [FGSM(eps=0.2), NoiseSearch(eps=0.2, n_queries=200)]
    report = evaluate_robustness(quantised, x[right], y[right], eps=0.2, attacks=attacks)
    alone = next(t for t in report.masking if "black-box attacks alone" in t.name)
    assert alone.verdict == "violated"
    assert alone.difference > 0.1


def test_claims_that_are_not_so_are_rejected(healthy, monkeypatch):
    net, x, y = healthy
    monkeypatch.setattr(Ball, "project", lambda self, i, z: z.clamp(0, 1))  # a bug: the ball is forgotten
    report = evaluate_robustness(net, x, y, eps=0.05, attacks=[PGD(eps=0.05, step_size=0.05)])
    verified = next(t for t in report.masking if t.name == "every success is verified")
    assert verified.verdict == "violated"
    assert "outside the ball" in verified.detail


def test_one_point_outside_the_ball_is_enough():
    """A vote may be lost by chance and is judged by its standard error; a point outside the ball is not."""
    wrong = lambda z: torch.stack([z[:, 0] - 0.5, 0 * z[:, 0]], 1)  # class 1 below a half
    x, y = torch.full((50, 2), 0.55), torch.zeros(50, dtype=torch.int64)
    attack = PGD(eps=0.1)
    result = attack.run(wrong, x, y)
    for value, verdict in ((0.56, "holds"), (0.2, "violated")):  # it does not fool; it is too far
        claimed = result.x_adv.clone()
        claimed[7] = value

        class Claims(PGD):
            def run(self, *args, claimed=claimed, **options):
                return replace(result, x_adv=claimed)

        job = Job(Claims(eps=0.1), 50, checked=True)
        found = run_jobs({"PGD": job}, wrong, x, y, torch.arange(50), batch_size=50)
        assert not found["PGD"].success[7]
        assert found["PGD"].success.sum() == result.success.sum() - 1
        test = _verified(found)
        assert test.verdict == verdict
        assert test.difference == 1 / 50
        assert "PGD at example 7" in test.detail


# What an evaluation warns of before any of its numbers counts, and which inputs it shows.


def lines(n_right, n):
    """Which of ``n`` examples are right: the first ``n_right``."""
    return torch.arange(n) < n_right


class TestChance:
    def test_a_network_that_guesses(self):
        y = torch.arange(1000) % 10
        assert "10.0% (one of 10 classes)" in at_chance(lines(90, 1000), y, 10)
        generator = torch.Generator().manual_seed(0)
        guesses = torch.randint(10, (1000,), generator=generator)
        assert "preprocessing" in at_chance(guesses == y, y, 10)
        assert at_chance(lines(130, 1000), y, 10) is None  # 13 %: its interval begins above a tenth

    def test_a_constant_answer(self):
        y = torch.cat([torch.ones(1135), torch.arange(8865) % 9 + (torch.arange(8865) % 9 > 0)]).long()
        assert y.bincount()[1] == 1135  # MNIST's ones
        assert "11.3% (the most frequent class)" in at_chance(y == 1, y, 10)  # though it is above a tenth
        assert at_chance((y == 1) | (torch.arange(10000) % 2 == 0), y, 10) is None

    def test_many_of_one_class_are_no_reason(self):
        y = (torch.arange(100) >= 90).long()
        right = torch.ones(100, dtype=torch.bool)
        right[:12] = False  # worse than the constant answer, but it knows both classes
        assert at_chance(right, y, 10) is None
        assert at_chance(lines(90, 100), y, 10) is not None
        assert at_chance(torch.ones(50).bool(), torch.zeros(50).long(), 10) is None
        assert "one of 10" in at_chance(torch.zeros(50).bool(), torch.zeros(50).long(), 10)

    def test_too_few_to_tell(self):
        assert at_chance(lines(0, 1), torch.tensor([0]), 2) is None
        assert at_chance(lines(2, 2), torch.tensor([0, 1]), 2) is None


@pytest.mark.parametrize(
    ("eps", "norm", "bounds", "line"),
    [
        (8, "Linf", (0.0, 1.0), "did you mean 8/255 = 0.0314?"),
        (1.0, "Linf", (0.0, 1.0), None),
        (8, "Linf", (-1.0, 1.0), "did you mean 8/255 * 2 = 0.0627?"),
        (300.0, "Linf", (0.0, 1.0), "the whole range of the bounds (0, 1)"),
        (8, "Linf", (0.0, 255.0), None),
        (
            128,
            "L2",
            (0.0, 1.0),
            "the distance of any two inputs in the bounds (0, 1), 4: did you mean 128/255 = 0.502?",
        ),
        (4, "L2", (0.0, 1.0), None),
        (17, "L1", (0.0, 1.0), "did you mean 17/255"),
        (15, "L1", (0.0, 1.0), None),
    ],
)
def test_an_eps_that_holds_every_input(eps, norm, bounds, line):
    found = eps_spans_bounds(eps, norm, bounds, 16)
    assert found is None if line is None else line in found


@pytest.fixture
def setting():
    torch.manual_seed(1)
    x = torch.rand(100, 1, 4, 4)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    return net, x, net(x).argmax(1)


def test_doubts_are_warned_of_and_kept(setting, tmp_path):
    net, x, y = setting
    options = {"masking_tests": False, "attacks": [FGSM(eps=0.01)]}
    with pytest.warns(UserWarning, match="not above chance"):
        report = evaluate_robustness(net, x, (y + 1) % 3, eps=0.01, **options)
    with pytest.warns(UserWarning, match="did you mean 8/255"):
        far = evaluate_robustness(net, x, y, eps=8, **options)
    for found, word in ((report, "preprocessing"), (far, "did you mean 8/255")):
        page = found.save(tmp_path).read_text()
        entry = json.loads((tmp_path / "report.json").read_text())
        assert word in entry["networks"][0]["notes"][0]
        assert word in page
        assert word in draw_markdown(entry)
        assert word in str(found)


def test_doubts_about_a_guarded_network(setting, tmp_path):
    net, x, y = setting
    net = fortify(net, ["1"], example_input=x[:2], init="random")
    detector = ReconstructionError(net).fit(x[:40]).calibrate(x[40:80])
    y = (net(x[80:]).argmax(1) + 1) % 3
    with pytest.warns(UserWarning, match="eps 2|not above chance") as found:
        report = evaluate_detector_robustness(net, detector, x[80:], y, eps=2.0, fpr=0.1, steps=1, formulations=["sum"])
    assert [str(w.message)[:5] for w in found] == ["eps 2", "clean"]
    page = report.save(tmp_path).read_text()
    assert all(note in page for note in ("not above chance", "eps 2 is larger"))
    assert report.notes == report.to_dict()["notes"]
    assert report.notes[0] in str(report)


class TestPictures:
    def test_only_what_was_right_is_shown_and_first_what_fell(self, setting):
        net, x, y = setting
        y = torch.where(torch.arange(100) % 3 == 0, (y + 1) % 3, y)  # a third is wrong from the start
        gap = net(x).detach().topk(2).values.diff().abs().squeeze()
        eps = gap[:64].median().item() / 8
        report = evaluate_robustness(net, x, y, eps=eps, attacks=[PGD(eps=eps)], masking_tests=False)
        shown = report.shown
        assert len(shown) == 8
        assert report.clean[shown].all()
        fell = ~report.standing[shown]
        assert fell.tolist() == sorted(fell.tolist(), reverse=True)
        assert fell.sum() == min(8, (report.clean & ~report.standing)[:64].sum())
        clean, adversarial = report.examples
        assert torch.equal(clean, x[shown])
        assert torch.equal((net(adversarial).argmax(1) != y[shown]), fell)
        assert ((adversarial - clean).flatten(1).abs().amax(1) > 0).equal(fell)

    def test_the_page_says_which(self, setting, tmp_path):
        net, x, y = setting
        y = torch.cat([(y[:50] + 1) % 3, y[50:54], (y[54:] + 1) % 3])
        ids = torch.arange(100) + 1000
        attack = NoiseSearch(eps=1e-6, n_queries=1)
        with pytest.warns(UserWarning, match="chance"):
            report = evaluate_robustness(net, x, y, eps=1e-6, attacks=[attack], masking_tests=False, ids=ids)
        page = report.save(tmp_path).read_text()
        assert "stood under every attack" in page
        assert all(f"({k})" in page for k in (1050, 1051, 1052, 1053))
        assert "right and fell" not in page
        assert json.loads((tmp_path / "report.json").read_text())["networks"][0]["pictures"]["shape"][1] == 4

    def test_no_input_that_was_right_no_pictures(self, setting, tmp_path):
        net, x, y = setting
        with pytest.warns(UserWarning, match="chance"):
            report = evaluate_robustness(net, x, (y + 1) % 3, eps=0.1, attacks=[FGSM(eps=0.1)], masking_tests=False)
        assert report.to_dict()["pictures"] == {}
        assert "data:image" not in report.save(tmp_path).read_text()


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_an_attack_called_by_hand_or_in_training_says_so_too(norm):
    net, x, y = nn.Linear(3, 2), torch.rand(4, 3), torch.arange(4) % 2
    with pytest.warns(UserWarning, match="did you mean 8/255 = 0.0314"):
        PGD(eps=8, norm=norm, steps=1)(net, x, y)
    with pytest.warns(UserWarning, match="did you mean 8/255 = 0.0314"):
        Trainer(ClassifierObjective(PGD(eps=8, norm=norm, steps=1)), progress=False).fit(net, (x, y))
    PGD(eps=0.1, norm=norm, steps=1)(net, x, y)


# Diagnostics of an attack see what it asks, also where it searches on a prepared copy of the network.

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
