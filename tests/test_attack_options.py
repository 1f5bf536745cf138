"""``robustgen attack`` that is stopped and resumed: its minutes, and the options that it remembers."""

import json
import shutil
import sys
from types import SimpleNamespace

import pytest

from robustgen import cli
from robustgen.data import digits
from robustgen.evaluation.stages import Stages

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
