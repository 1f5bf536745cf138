"""The evaluator's suites: who is attacked by what, on one process and on two, in two precisions."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from robustgen.attacks import DDN, FGSM, PGD, AutoAttack
from robustgen.evaluation import evaluate_robustness
from robustgen.evaluation.suites import SUITES, suite_of


@pytest.fixture
def setting():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(25, 30), nn.ReLU(), nn.Linear(30, 4)).eval()
    x = torch.rand(60, 1, 5, 5)
    return net, x, net(x).argmax(1)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("name", SUITES)
def test_every_suite_is_one_threat_model(name, norm):
    stages = suite_of(name, 0.2, norm, (-1.0, 1.0), 7)
    for stage in stages.values():
        assert (stage.attack.eps, stage.attack.norm, stage.attack.bounds) == (0.2, norm, (-1.0, 1.0))
        assert stage.attack.seed == 7
    on_all = [stage.on_standing for stage in stages.values()]
    assert on_all == sorted(on_all)  # those that see everything first


def test_standard_is_autoattack_with_its_budgets():
    parts = [stage.attack for stage in suite_of("standard", 0.3, "Linf", (0.0, 1.0), 0).values()][3:]
    assert tuple(parts) == AutoAttack(eps=0.3).parts()
    assert [type(p).__name__ for p in parts] == ["APGD", "APGDT", "AtEps", "Square"]
    assert (parts[0].steps, parts[1].steps, parts[2].attack.steps, parts[3].n_queries) == (100, 100, 100, 5000)
    assert (parts[1].n_targets, parts[2].attack.n_targets) == (9, 9)
    rand = suite_of("standard", 0.3, "Linf", (0.0, 1.0), 0, stochastic=True)
    assert [name for name, stage in rand.items() if stage.on_standing] == ["APGD-CE", "APGD-DLR"]
    assert list(suite_of("thorough", 0.3, "L2", (0.0, 1.0), 0))[3:] == [
        "APGD-CE", "APGD-DLR", "FAB", "Square", "APGD-T", "FAB-T", "PGD-200 margin, 10 restarts"
    ]  # fmt: skip


def cheap(monkeypatch):
    """AutoAttack with budgets for a test."""
    monkeypatch.setattr("robustgen.evaluation.suites.AutoAttack", lambda **k: AutoAttack(**k, steps=8, n_queries=30))


def test_later_attacks_see_what_stands(setting, monkeypatch):
    cheap(monkeypatch)
    net, x, y = setting
    report = evaluate_robustness(net, x, y, eps=0.04, suite="standard", masking_tests=False)
    outcomes = list(report.outcomes.values())
    assert all(bool(o.attacked.all()) for o in outcomes[:3])
    fallen = ~report.clean
    for k, outcome in enumerate(outcomes):
        if k >= 3:
            assert torch.equal(outcome.attacked, ~fallen)
            assert (outcome.success | ~fallen)[fallen].all()
            assert outcome.forwards[fallen].sum() == 0
        fallen = fallen | outcome.success
    assert torch.equal(report.standing, ~fallen)
    assert 0 < report.robust_accuracy < 0.9
    alone = AutoAttack(eps=0.04, steps=8, n_queries=30).run(net, x, y)
    assert not (report.standing & alone.success).any()


def test_bfloat16_is_checked_in_float32(setting):
    net, x, y = setting
    report = evaluate_robustness(net, x, y, eps=0.04, precision="bfloat16", masking_tests=False)
    exact = evaluate_robustness(net, x, y, eps=0.04, masking_tests=False)
    assert list(report.outcomes)[-1] == "float32 check"
    assert report.outcomes["float32 check"].settings["attack"] == "PGD"
    assert abs(report.robust_accuracy - exact.robust_accuracy) <= 2 / 60
    broken = net(report.examples[1]).argmax(1) != y[report.shown]
    assert torch.equal(broken, ~report.standing[report.shown])
    with pytest.raises(ValueError, match="PGD or APGD"):
        evaluate_robustness(net, x, y, eps=0.04, precision="bfloat16", attacks=[FGSM(eps=0.04)])


def test_minimal_norm_attacks_are_asked_at_eps(setting):
    net, x, y = setting
    radius = DDN(steps=50).run(net, x, y)
    report = evaluate_robustness(net, x, y, eps=0.2, norm="L2", attacks=[DDN(steps=50)], masking_tests=False)
    assert torch.equal(report.outcomes["DDN"].success, radius.success & (radius.distance <= 0.2))


def test_stochastic_networks_get_the_suite_for_them(setting, monkeypatch):
    cheap(monkeypatch)
    net, x, y = setting

    class Noisy(nn.Module):
        def forward(self, z):
            return net(z + 0.01 * torch.randn_like(z))

    report = evaluate_robustness(Noisy(), x[:10], y[:10], eps=0.04, suite="standard", masking_tests=False)
    assert "APGD-DLR" in report.outcomes
    assert report.outcomes["PGD-40"].settings["eot_samples"] == 20


def test_a_stage_does_not_take_credit_for_what_fell_before_it():
    """Steps of an eighth with a slope that points the wrong way: noise fools what no gradient attack does."""

    class Misleading(nn.Module):
        def forward(self, z):
            z = z.flatten(1)
            value = ((8 * z).round() / 8).mean(1).detach() - 0.5 - 1e-4 * (z.mean(1) - 0.5)
            return torch.stack([value, -value], 1)

    x = (0.5 + 0.4 * (torch.rand(60, 16, generator=torch.Generator().manual_seed(0)) - 0.35)).clamp(0, 1)
    net = Misleading()
    report = evaluate_robustness(net, x, net(x).argmax(1), eps=0.1, suite="standard", masking_tests=False)
    noise, standing = report.outcomes["noise"], int((~report.outcomes["noise"].success).sum())
    assert noise.success.any()
    assert f"attacked: the {standing} still standing" in str(report)
    assert sum(report.to_dict()["per_example"]["attacked"]["APGD-CE"]) == report.outcomes["APGD-CE"].attacked.sum() < 60
    verdicts = {test.name: test for test in report.masking}
    own = [o.success & o.attacked for label, o in report.outcomes.items() if label not in ("noise", "Square")]
    black = noise.success | report.outcomes["Square"].success
    test = verdicts["no example falls to black-box attacks alone"]
    assert test.verdict == "violated"
    assert f"{int((black & ~torch.stack(own).any(0)).sum())} of 60" in test.detail
    assert verdicts["gradients are at least as strong as noise"].difference > 0


SCRIPT = textwrap.dedent(
    """
    import json, sys, torch
    import torch.distributed as dist
    from torch import nn
    from robustgen.attacks import APGDT, PGD, Square
    from robustgen.evaluation import evaluate_robustness
    from robustgen.training.distributed import join
    torch.set_num_threads(1); torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Conv1d(1, 3, 5), nn.ReLU(), nn.Flatten(), nn.Linear(63, 4)).eval()
    net = nn.Sequential(nn.Unflatten(1, (1, 25)), *net[1:]).eval()
    x = torch.rand(70, 25); y = net(x).argmax(1)
    world, _ = join("cpu", net)
    attacks = {"PGD": PGD(eps=0.03, steps=5), "T": APGDT(eps=0.03, steps=6), "S": Square(eps=0.03, n_queries=20)}
    where = sys.argv[1] if len(sys.argv) > 1 else None
    report = evaluate_robustness(net, x, y, eps=0.03, attacks=attacks, batch_size=4, run_dir=where, sweep_examples=20)
    found = report.to_dict(); found.pop("wall_seconds"); found.pop("environment")
    print(json.dumps(found) if world.rank == 0 else "", end="")
    """
)


@pytest.mark.parametrize("stored", [False, True])
def test_two_processes_give_the_table_of_one(tmp_path, stored):
    (tmp_path / "script.py").write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    one, two = (
        subprocess.run(
            [*command, str(tmp_path / "script.py"), *([str(tmp_path / f"run{k}")] if stored else [])],
            capture_output=True,
            text=True,
            timeout=300,
        )
        for k, command in enumerate(([sys.executable], torchrun))
    )
    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    assert json.loads(two.stdout) == json.loads(one.stdout)
    assert 0 < json.loads(one.stdout)["worst_case_accuracy"]["value"] < 1


def test_float32_outcomes_of_batch_size_one_are_those_of_many():
    """In float64 the contract test asks for equality; here the share of float32 verdicts that differ is bounded."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()
    x = torch.rand(64, 1, 8, 8)
    y = net(x).argmax(1)
    attack = PGD(eps=0.03, steps=20)
    many = attack.run(net, x, y)
    single = torch.cat([attack.run(net, x[k : k + 1], y[k : k + 1], ids=torch.tensor([k])).success for k in range(64)])
    assert 0 < many.success.sum() < 64
    assert (many.success != single).sum() <= 1
