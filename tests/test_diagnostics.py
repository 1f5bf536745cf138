"""Indicators of attack failure and the binarization test: raised where they should be, quiet on a healthy network."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from robustgen import data
from robustgen.attacks import FGSM, PGD, NoiseSearch
from robustgen.attacks.ball import Ball
from robustgen.evaluation import binarization_test, evaluate_robustness, indicators_of_failure
from robustgen.evaluation.attack_trace import trace_attack
from robustgen.evaluation.binarization import _Binarized
from robustgen.evaluation.chunks import Job, run_jobs
from robustgen.evaluation.diagnostics import _verified
from robustgen.networks import mlp

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
