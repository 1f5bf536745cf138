"""The evaluator: whom its suites attack by what; and its verifier, which accepts what is legal and fools the model."""

import json
import math
import shutil
import subprocess
import sys
import textwrap
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from test_attacks import ADAPTERS, CASES, FIXED_EPS, MINIMAL_NORM, RUNNING, make
from torch import nn

from robustgen import cli, detectors
from robustgen.attacks import APGD, DDN, FGSM, FMN, PGD, AutoAttack, Square
from robustgen.attacks.ball import perturbation_norm
from robustgen.data import digits
from robustgen.evaluation import evaluate_robustness, verify
from robustgen.evaluation.stages import Stages
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


# ``robustgen attack`` that is stopped and resumed: its minutes, and the options that it remembers.

pytestmark = pytest.mark.filterwarnings("ignore:clean accuracy")

EVALUATION = ["--data", "digits", "--limit", "30", "--eps", "0.1", "--seed", "3", "--no-masking-tests"]
MODULE = """
import pathlib
pathlib.Path({marker!r}).touch()
from torch import nn
def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 10))
"""


def run(capsys, *arguments):
    """Exit code, stdout and stderr of one call."""
    code = cli.main([*map(str, arguments), "--quiet"])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    where = tmp_path_factory.mktemp("runs") / "plain"
    train = ["train", "--run", str(where), "--data", "digits", "--width", "4", "--epochs", "2", "--quiet"]
    assert cli.main(train) == 0
    return where


@pytest.fixture(scope="module")
def begun(network, tmp_path_factory):
    """An evaluation that was finished, and its options."""
    out = tmp_path_factory.mktemp("evaluations") / "whole"
    assert cli.main(["attack", "--run", str(network), *EVALUATION, "--out", str(out), "--quiet"]) == 0
    return out


@pytest.fixture
def out(begun, tmp_path):
    shutil.copytree(begun, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def looks(monkeypatch):
    """The time is used up when it has been looked at so many times."""
    looks = SimpleNamespace(n=0, after=10**9)

    def out_of_time(self):
        looks.n += 1
        return self.until is not None and looks.n > looks.after

    monkeypatch.setattr(Stages, "out_of_time", property(out_of_time))
    return looks


def numbers(out):
    """A report without what differs between equal evaluations."""
    report = json.loads((out / "report.json").read_text())
    for part in (report, *report["networks"], *report["detector_robustness"]):
        for name in ("wall_seconds", "stage_seconds", "environment", "command"):
            part.pop(name, None)
    return report


def test_out_and_resume_are_all_that_is_needed(capsys, begun, out):
    (out / "report.json").unlink()
    for chunk in sorted((out / "chunks").glob("*.safetensors"))[2:]:
        chunk.unlink()
    code, _, err = run(capsys, "attack", "--out", out, "--resume")
    assert (code, err) == (0, "")
    assert numbers(out) == numbers(begun)
    assert numbers(out)["networks"][0]["threat_model"]["eps"] == 0.1
    assert len(numbers(out)["networks"][0]["per_example"]["ids"]) == 30


def test_an_option_may_be_given_again_and_not_otherwise(capsys, out, network, tmp_path):
    resume = ["attack", "--out", out, "--resume"]
    shutil.copytree(network, tmp_path / "moved")
    assert run(capsys, *resume, "--run", tmp_path / "moved", "--eps", "0.1", "--data", "digits")[0] == 0
    for other, line in (
        (["--eps", "0.2"], "--eps was 0.1, now 0.2"),
        (["--limit", "20"], "--limit was 30, now 20"),
        (["--seed", "0"], "--seed was 3, now 0"),
        (["--norm", "l2"], '--norm was "Linf", now "L2"'),
        (["--suite", "standard"], '--suite was "quick", now "standard"'),
        (["--masking-tests"], "--masking-tests was false, now true"),
        (["--data", "mnist"], '--data was "digits", now "mnist"'),
        (["--detector"], "--detector was false, now true"),
    ):
        code, _, err = run(capsys, *resume, *other)
        assert (code, err.count("\n")) == (2, 1)
        assert line in err
        assert "leave it out, or choose another directory" in err


@pytest.fixture(scope="module")
def robust(tmp_path_factory):
    where = tmp_path_factory.mktemp("runs") / "robust"
    train = ["train", "--run", str(where), "--data", "digits", "--width", "4", "--epochs", "2", "--quiet"]
    assert cli.main([*train, "--adversarial", "fast", "--eps", "0.07", "--norm", "L2"]) == 0
    return where


def test_without_eps_it_is_the_ball_of_the_training(capsys, robust, network, tmp_path):
    def ball(run_dir, *asked):
        few = ["--data", "digits", "--limit", "5", "--no-masking-tests", "--json"]
        code, out, err = run(capsys, "attack", "--run", run_dir, *few, *asked)
        assert code == 0, err
        threat = json.loads(out)["threat_model"]
        return threat["eps"], threat["norm"], "which the run was trained against" in err

    assert ball(robust) == (0.07, "L2", True)
    assert ball(robust, "--norm", "L2") == (0.07, "L2", True)
    assert ball(robust, "--eps", "0.2") == (0.2, "L2", False)
    assert ball(robust, "--norm", "Linf") == (0.3, "Linf", False)
    assert ball(network) == (0.3, "Linf", False)
    out = tmp_path / "out"
    assert ball(robust, "--out", out) == (0.07, "L2", True)
    assert json.loads((out / "options.json").read_text())["options"]["eps"] == 0.07
    code, _, err = run(capsys, "attack", "--out", out, "--resume")
    assert (code, err) == (0, "")
    code, _, err = run(capsys, "attack", "--out", out, "--resume", "--eps", "0.3")
    assert (code, "--eps was 0.07, now 0.3" in err) == (2, True)
    score = ["score", "--run", "example:digits", "--data", "digits", "--limit", "5", "--against"]
    code, out, err = run(capsys, *score, "fgsm")
    assert (code, "FGSM, Linf eps 0.15" in out, "eps 0.15 in Linf, which the run" in err) == (0, True, True), err
    assert "which the run" not in run(capsys, *score, "noise")[2]


def test_a_ball_that_is_none_is_not_believed(capsys, robust, tmp_path):
    shutil.copytree(robust, tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    info = json.loads(path.read_text())
    for wrong in ({"eps": -1}, {"norm": "L7"}, {"eps": "wide"}):
        path.write_text(json.dumps(info | {"training": info["training"] | wrong}))
        code, _, err = run(capsys, "attack", "--run", tmp_path / "run", "--data", "digits")
        assert (code, str(path) in err, err.count("\n")) == (2, True, 1), err


def test_limit_takes_examples_from_all_over_the_data(capsys, network):
    few = ["--data", "digits", "--limit", "5", "--eps", "0.1", "--no-masking-tests", "--json"]
    code, out, err = run(capsys, "attack", "--run", network, *few)
    assert code == 0, err
    test = digits("test")
    assert json.loads(out)["per_example"]["ids"] == test.take(5).ids.tolist() != test.first(5).ids.tolist()
    code, out, err = run(capsys, "score", "--run", "example:digits", "--data", "digits", "--limit", "5")
    assert [int(line.split(",")[0]) for line in out.splitlines()[1:]] == test.take(5).ids.tolist()


def test_what_is_refused_leaves_no_options_that_count(capsys, network, tmp_path):
    attack = ["attack", "--run", network, *EVALUATION, "--out", tmp_path / "out"]
    assert run(capsys, *attack, "--suite", "huge")[0] == 2
    assert run(capsys, *attack, "--resume")[0] == 0
    options = json.loads((tmp_path / "out" / "options.json").read_text())["options"]
    assert (options["suite"], options["seed"], options["run"]) == ("quick", 3, str(network))
    assert not {"download", "trust", "out", "resume"} & set(options)


def test_an_evaluation_without_options_is_resumed_with_those_given(capsys, begun, out, network):
    (out / "options.json").unlink()  # of an earlier version
    code, _, err = run(capsys, "attack", "--out", out, "--resume")
    assert code == 2
    assert "say which network" in err
    assert run(capsys, "attack", "--run", network, *EVALUATION, "--out", out, "--resume")[0] == 0
    assert numbers(out) == numbers(begun)


@pytest.fixture
def code_of_ones_own(tmp_path, monkeypatch):
    """A module that leaves a mark when it is imported."""
    name, marker = "planted_for_options", tmp_path / "marker"
    (tmp_path / f"{name}.py").write_text(MODULE.format(marker=str(marker)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    yield f"{name}:build", marker
    sys.modules.pop(name, None)


def test_code_that_the_options_name_is_run_only_when_the_user_names_it(capsys, code_of_ones_own, tmp_path, looks):
    model, marker = code_of_ones_own
    weights = tmp_path / "weights.safetensors"
    assert run(capsys, "train", "--run", tmp_path / "r", "--model", model, "--data", "digits", "--epochs", "1")[0] == 0
    from robustgen.files import save_tensors
    from robustgen.training import load_checkpoint

    save_tensors(weights, load_checkpoint(tmp_path / "r").model_state)
    out = tmp_path / "out"
    looks.after = 3
    code, _, err = run(
        capsys, "attack", "--model", model, "--weights", weights, *EVALUATION, "--out", out, "--max-minutes", "1"
    )
    assert code == 1
    assert err.rstrip().endswith(f"robustgen attack --out {out} --resume --model {model}")
    looks.after = 10**9
    sys.modules.pop(model.split(":")[0])
    marker.unlink()
    code, _, err = run(capsys, "attack", "--out", out, "--resume")
    assert (code, err.count("\n")) == (2, 1)
    assert "a file may not have code run" in err
    assert not marker.exists()
    assert run(capsys, "attack", "--out", out, "--resume", "--trust")[0] == 0
    assert marker.exists()
    assert run(capsys, "attack", "--out", out, "--resume", "--model", model)[0] == 0


def test_minutes_that_are_used_up_end_in_a_report_and_exit_code_1(capsys, begun, network, tmp_path, looks):
    out = tmp_path / "out"
    looks.after = 40
    code, said, err = run(capsys, "attack", "--run", network, *EVALUATION, "--out", out, "--max-minutes", "2.5")
    assert code == 1
    assert err == f"robustgen: error: stopped after 2.5 minutes; to go on: robustgen attack --out {out} --resume\n"
    assert "cut short after 2.5 minutes: attacks finished: noise" in said
    assert "counted as standing" in said
    cut = numbers(out)["networks"][0]
    assert set(cut["attacks"]) | set(cut["unfinished"]) == {"noise", "FGSM", "PGD-40", "PGD-40 margin"}
    assert "cut short after 2.5 minutes" in (out / "report.html").read_text()
    code, said, err = run(capsys, "attack", "--out", out, "--resume", "--max-minutes", "1", "--json")
    assert (code, json.loads(said)["unfinished"] != {}) == (1, True)
    looks.after = 10**9
    assert run(capsys, "attack", "--out", out, "--resume", "--max-minutes", "1")[0] == 0
    assert numbers(out) == numbers(begun)
    assert "cut short" not in (out / "report.html").read_text()
    assert json.loads((out / "report.json").read_text())["stage_seconds"].keys() >= {"clean", "attack: FGSM"}


def test_minutes_are_positive_and_need_a_directory(capsys, network, tmp_path):
    for minutes in ("0", "-1", "nan", "inf"):
        code, _, err = run(capsys, "attack", "--run", network, "--out", tmp_path / "o", "--max-minutes", minutes)
        assert (code, err.count("\n")) == (2, 1)
        assert f"--max-minutes {minutes}: it is a number of minutes > 0" in err
    code, _, err = run(capsys, "attack", "--run", network, "--max-minutes", "1")
    assert (code, err) == (2, "robustgen: error: --max-minutes keeps what is done in --out: pass it\n")
    assert not (tmp_path / "o").exists()


def test_a_detector_whose_attacks_were_not_finished_is_not_reported(capsys, tmp_path, looks):
    network, out = tmp_path / "r", tmp_path / "out"
    train = ["train", "--run", network, "--data", "digits", "--width", "4", "--epochs", "1", "--fortify", "auto"]
    assert run(capsys, *train, "--detach-states")[0] == 0
    attack = ["attack", "--run", network, *EVALUATION, "--limit", "6", "--detector"]
    assert run(capsys, *attack, "--out", tmp_path / "whole", "--max-minutes", "1")[0] == 0
    looks.after, looks.n = looks.n - 20, 0
    code, said, err = run(capsys, *attack, "--out", out, "--max-minutes", "1")
    assert code == 1
    assert "stopped after 1 minutes" in err
    assert "the attacks on the detector were finished: not shown" in said
    cut = numbers(out)
    assert cut["networks"][0]["unfinished"] == {"detector": "not finished"}
    assert cut["detector_robustness"] == []
    looks.after = 10**9
    assert run(capsys, "attack", "--out", out, "--resume")[0] == 0
    assert numbers(out) == numbers(tmp_path / "whole")
    seconds = json.loads((out / "report.json").read_text())["stage_seconds"]
    assert "attacked-detector: joint, sum" in seconds


ZERO = torch.zeros(1, dtype=torch.int64)


def always_wrong(x):
    return torch.stack([torch.zeros(len(x)), torch.ones(len(x))], 1) + 0 * x.flatten(1).sum(1, keepdim=True)


def up(z):
    return torch.nextafter(z, torch.full_like(z, 2.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_one_ulp_decides(norm, dtype):
    """Points whose distance is exactly eps in dyadic numbers, and their neighbours."""
    x = torch.full((1, 4), 0.5, dtype=dtype)
    step = {"Linf": [0.25, 0, 0.25, 0], "L2": [0.1875, 0.25, 0, 0], "L1": [0.125, 0.0625, 0.0625, 0.0625]}[norm]
    eps = {"Linf": 0.25, "L2": 0.3125, "L1": 0.3125}[norm]
    on = x + torch.tensor([step], dtype=dtype)
    rules = {"norm": norm, "y": ZERO}
    assert verify(always_wrong, x, on, eps=eps, **rules).accepted.item()
    assert not verify(always_wrong, x, on, eps=math.nextafter(eps, 0), **rules).accepted.item()
    for k in (0, 1) if norm != "Linf" else (0, 2):
        past = on.clone()
        past[0, k] = up(on[0, k])
        found = verify(always_wrong, x, past, eps=eps, **rules)
        assert not found.accepted.item()
        assert found.reasons[0].startswith("outside the ball")


def test_the_ball_is_exact_where_float64_rounds():
    """1 + 2^-60 away rounds to 1 in float64: only exact arithmetic sees that it is outside."""
    tiny = 2.0**-60
    x = torch.tensor([[-tiny, 0.0], [tiny, 0.0]])
    z = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    for norm in ("Linf", "L2", "L1"):
        found = verify(always_wrong, x, z, ZERO.expand(2), eps=1.0, norm=norm, bounds=(-1.0, 1.0))
        assert found.accepted.tolist() == [False, True]


@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_random_points_against_fractions(norm):
    torch.manual_seed(1)
    x, z = torch.rand(40, 30), torch.rand(40, 30)
    power = 2 if norm == "L2" else 1
    exact = [
        sum(abs(Fraction(b) - Fraction(a)) ** power for a, b in zip(*rows, strict=True))
        for rows in zip(x.tolist(), z.tolist(), strict=True)
    ]
    eps = torch.tensor([float(e) ** (1 / power) for e in exact], dtype=torch.float64)  # as close as it gets
    eps[::2] = torch.nextafter(eps[::2], torch.zeros(20, dtype=torch.float64))
    found = verify(always_wrong, x, z, ZERO.expand(40), eps=eps, norm=norm)
    inside = [e <= Fraction(r) ** power for e, r in zip(exact, eps.tolist(), strict=True)]
    assert found.accepted.tolist() == inside
    assert 5 < sum(inside) < 35


def test_every_reason():
    model = lambda x: torch.stack([x.sum(1), 1 - x.sum(1)], 1)  # class 0 where the sum is over a half
    x = torch.tensor([[0.5, 0.25]]).repeat(6, 1)
    z = torch.tensor([[0.25, 0.125], [float("nan"), 0.1], [0.25, -1e-30], [0.5, 0.25], [0.0, 0.0], [0.2, float("inf")]])
    eps = torch.tensor([0.25, 0.25, 0.5, 0.25, 0.25, 0.25])
    found = verify(model, x, z, torch.zeros(6, dtype=torch.int64), eps=eps, norm="Linf")
    assert found.accepted.tolist() == [True, False, False, False, False, False]
    expected = ["", "NaN or Inf", "outside the bounds", "does not fool", "outside the ball", "NaN or Inf"]
    assert all(r.startswith(e) for r, e in zip(found.reasons, expected, strict=True))
    assert found.distance.isnan().tolist() == [False, True, False, False, False, True]
    double = verify(model, x, z.double(), torch.zeros(6, dtype=torch.int64), eps=0.25, norm="Linf")
    assert double.reasons[0] == "torch.float64 instead of torch.float32"
    targets = torch.ones(6, dtype=torch.int64)
    assert verify(model, x, z, targets, eps=0.25, norm="Linf", targeted=True).accepted.tolist() == [True] + 5 * [False]
    assert verify(model, x[:0], z[:0], ZERO[:0], eps=0.25, norm="L0").reasons == ()


def test_logits_that_are_not_finite_predict_nothing():
    broken = lambda x: torch.stack([x[:, 0] / 0, x[:, 0]], 1)
    x = torch.full((1, 2), 0.5)
    assert verify(broken, x, x, ZERO, eps=0.1, norm="L2").accepted.item()
    assert not verify(broken, x, x, ZERO, eps=0.1, norm="L2", targeted=True).accepted.item()


def test_the_model_is_asked_in_eval_mode_and_left_alone():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.9), nn.Linear(8, 2)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.rand(50, 4)
    state = torch.get_rng_state()
    with torch.no_grad():
        y = model.eval()(x).argmax(1)
    model.train()
    found = verify(model, x, x, y, eps=0.0, norm="Linf", rounding=True)
    assert not found.accepted.any()  # in train mode dropout alone would fool it
    assert set(found.votes.tolist()) == {0.0}
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_stochastic_model_takes_a_majority():
    def often(share):
        def model(x):
            wrong = (torch.rand(len(x)) < share).float()
            return torch.stack([1 - wrong, wrong], 1)

        return model

    x, y = torch.rand(400, 3), torch.zeros(400, dtype=torch.int64)
    rare = verify(often(0.2), x, x, y, eps=0.0, norm="Linf")
    assert rare.accepted.double().mean() < 0.06  # one draw would accept a fifth
    assert any("fools only" in r for r in rare.reasons)
    assert verify(often(0.8), x, x, y, eps=0.0, norm="Linf").accepted.double().mean() > 0.94


def test_what_the_attacks_claim_is_verified():
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4))
    x = torch.rand(60, 20)
    y = model(x).argmax(1)
    for norm, eps in (("Linf", 0.1), ("L2", 0.4), ("L1", 1.5)):
        result = PGD(eps=eps, norm=norm).run(model, x, y)
        assert result.success.sum() > 0
        found = verify(model, x, result.x_adv, y, eps=eps, norm=norm)
        assert torch.equal(found.accepted, result.success), found.reasons
    nearest = FMN(norm="L0").run(model, x, y)
    found = verify(model, x, nearest.x_adv, y, eps=nearest.distance, norm="L0")
    assert torch.equal(found.accepted, nearest.success)


def test_rounding_to_8_bits():
    """Class 1 from a mean of 0.55 on; the inputs are 128 / 255, a step 1 / 255."""
    model = lambda x: torch.stack([0.55 - x.mean(1), x.mean(1) - 0.55], 1)
    x = torch.full((3, 4), 128 / 255)
    z = torch.stack([torch.full((4,), v / 255) for v in (140.9, 140.1, 128 + 16.0)])
    found = verify(model, x, z, ZERO.expand(3), eps=16 / 255 + 1e-6, norm="Linf", rounding=True)
    assert found.accepted.tolist() == [True, False, True]  # 140.25 is the boundary
    rounded = found.rounded
    assert (rounded.x_adv * 255).round()[:, 0].tolist() == [140, 140, 144]  # towards x, and a level stays
    assert rounded.fooled.tolist() == [False, False, True]
    assert rounded.inside.all()
    to_nearest = verify(model, x, z, ZERO.expand(3), eps=12.5 / 255 * 2, norm="L2", rounding=True).rounded
    assert (to_nearest.x_adv * 255).round()[:, 0].tolist() == [141, 140, 144]
    assert torch.allclose(to_nearest.distance, torch.tensor([26.0, 24.0, 32.0]).double() / 255)
    assert to_nearest.inside.tolist() == [False, True, False]
    down = verify(model, x, x - 2.5 / 255, ZERO.expand(3), eps=0.1, norm="Linf", rounding=True).rounded
    assert (down.x_adv * 255).round().unique().tolist() == [126]


def test_wrong_use():
    x = torch.rand(2, 3)
    y = ZERO.expand(2)
    with pytest.raises(ValueError, match="shape"):
        verify(always_wrong, x, x[:1], y, eps=0.1, norm="Linf")
    with pytest.raises(ValueError, match="'L3'"):
        verify(always_wrong, x, x, y, eps=0.1, norm="L3")
    for eps in (-1.0, float("nan"), torch.ones(3)):
        with pytest.raises(ValueError, match="eps"):
            verify(always_wrong, x, x, y, eps=eps, norm="L2")


def test_it_says_what_the_model_takes_an_example_for():
    logits = torch.tensor([[9.0, 1.0, 0.0], [0.0, 1.0, 9.0], [float("nan"), 0.0, 0.0]])
    model = lambda x: logits[x[:, 0].long()]
    x = torch.tensor([[0.0], [1.0], [2.0], [0.0]])
    y = torch.tensor([1, 0, 0, 0])
    found = verify(model, x, torch.tensor([[0.0], [1.0], [2.0], [9.0]]), y, eps=0.5, norm="Linf", bounds=(0.0, 2.0))
    assert found.predicted.tolist() == [0, 2, -1, -1]  # the last is outside the bounds and was not asked
    assert found.accepted.tolist() == [True, True, True, False]


# Elements that may not change, elements with an eps of their own, and models whose rows are not their own.

SUPPORTED = [n for n in RUNNING if n not in (*ADAPTERS, "SpherePGD")]


@pytest.fixture
def problem():
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 3))
    x = torch.rand(9, 1, 6, 6)
    return net, x, net(x).argmax(1)


@pytest.mark.parametrize(("name", "norm"), [(n, norm) for n, norm in CASES if n in SUPPORTED])
def test_what_is_masked_stays_and_the_rest_is_searched(name, norm, problem):
    net, x, y = problem
    mask = torch.rand(9, 1, 6, 6) < 0.6
    eps = {"Linf": 0.6, "L2": 3.0, "L1": 9.0}[norm]
    attack = make(name, net, eps=eps, norm=norm)
    result = attack.run(net, x, y, mask=mask, eps=eps)
    assert torch.equal(result.x_adv[~mask], x[~mask])
    assert torch.equal(result.distance, perturbation_norm(result.x_adv - x, norm))
    assert torch.equal(result.success, net(result.x_adv).argmax(1) != y)  # a success of what is returned
    assert result.success.any()


@pytest.mark.parametrize("name", [n for n in SUPPORTED if n in FIXED_EPS])
def test_eps_of_each_element(name, problem):
    net, x, y = problem
    eps = torch.rand(9, 1, 6, 6, dtype=torch.float64) * (torch.rand(9, 1, 6, 6) < 0.7)
    eps[:, :, 0] *= 0.1
    result = make(name, net, eps=0.3, norm="Linf").run(net, x, y, eps=eps)
    inside = ((result.x_adv.double() - x.double()).abs() <= eps).flatten(1).all(1)
    assert bool(inside[result.success].all())
    assert torch.equal(result.success, net(result.x_adv).argmax(1) != y)
    if name != "AtEps":  # it returns a near miss where it fails
        assert bool(inside.all())
    assert result.success.any() or name == "AtEps"


def test_one_eps_is_the_same_for_all_elements(problem):
    net, x, y = problem
    for attack in (PGD(eps=0.1), APGD(eps=0.1, steps=10), FGSM(eps=0.1), Square(eps=0.1, n_queries=20)):
        everywhere = attack(net, x, y, eps=torch.full_like(x, 0.1, dtype=torch.float64))
        assert torch.equal(attack(net, x, y), everywhere)
        assert torch.equal(attack(net, x, y, mask=torch.ones(1, 1, 6, 6, dtype=torch.bool)), everywhere)


def test_fgsm_steps_as_far_as_each_element_may(problem):
    net, x, y = problem
    x = 0.25 + x / 2
    eps = 0.2 * torch.rand(9, 1, 6, 6, dtype=torch.float64)
    result = FGSM(early_stop=False).run(net, x, y, eps=eps)
    assert torch.allclose((result.x_adv - x).abs().double(), eps, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"mask": torch.ones(3, 3, dtype=torch.bool)}, "does not fit x"),
        ({"mask": torch.ones(9, 1, 6, 6)}, "bool"),
        ({"eps": torch.ones(9, 1, 6)}, "or have shape"),
        ({"eps": -torch.ones(9, 1, 6, 6)}, ">= 0"),
    ],
)
def test_masks_and_radii_that_do_not_fit(given, error, problem):
    with pytest.raises((TypeError, ValueError), match=error):
        FGSM()(*problem, **given)


def test_who_takes_no_mask_says_so(problem):
    net, x, y = problem
    with pytest.raises(ValueError, match="for norm Linf"):
        PGD(norm="L2")(net, x, y, eps=torch.ones_like(x))
    with pytest.raises(ValueError, match="takes no mask"):
        make("SpherePGD", net)(net, x, y, mask=x > 0)
    for name in MINIMAL_NORM:
        if name not in ADAPTERS and "Linf" in type(make(name, net)).norms:
            with pytest.raises(ValueError, match="eps of each element"):
                make(name, net, norm="Linf")(net, x, y, eps=torch.rand_like(x))


class BatchStatistics(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
        )

    def forward(self, x):
        return self.net(x)


class ScaleOfTheBatch(BatchStatistics):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))

    def forward(self, x):
        return self.net(x / x.amax())


class CentredOnTheBatch(ScaleOfTheBatch):
    """One logit is large and constant, that of a class which is masked out."""

    def forward(self, x):
        logits = self.net(x)
        return torch.cat([logits - logits.mean(0), torch.full((len(x), 1), -1e3)], 1)


@pytest.mark.parametrize("kind", [BatchStatistics, ScaleOfTheBatch, CentredOnTheBatch])
def test_a_model_whose_rows_depend_on_their_company_is_refused_by_name(kind):
    model, x = kind().eval(), torch.rand(12, 1, 6, 6)
    x[:, 0, 0, 0] = 1  # every image has the same maximum
    y = model(x).argmax(1)
    for use in (
        lambda: PGD(eps=0.1)(model, x, y),
        lambda: PGD(eps=0.1)(model, x[:1], y[:1]),
        lambda: evaluate_robustness(model, x, y, eps=0.1, masking_tests=False),
        lambda: verify(model, x, x, y, eps=0.1, norm="Linf", bounds=(0.0, 1.0)),
        lambda: detectors.Energy(model).fit(x),
    ):
        with pytest.raises(ValueError, match="depends on the others in its batch"):
            use()


def test_a_mask_as_a_closure_over_the_clean_images_is_refused(problem):
    net, x, y = problem
    mask = torch.rand(1, 1, 6, 6) < 0.5
    with pytest.raises(ValueError, match="closure over other inputs"):
        PGD(eps=0.3)(lambda z: net(torch.where(mask, z, x[: len(z)])), x, y)


def test_an_ordinary_network_is_not_taken_for_one():
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)).eval()
    for scale in (1e-6, 1.0, 1e6):
        model = lambda z, scale=scale: scale * net(z)
        x = torch.rand(5, 1, 6, 6)
        FGSM()(model, x, model(x).argmax(1))
