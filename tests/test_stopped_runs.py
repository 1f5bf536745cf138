"""What a run is held to before its network is used: a finished training, a best epoch that is the best."""

import io
import json
import shutil
import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from robustgen import ReconstructionError, cli, data, fortify, progress
from robustgen.attacks import FGSM, PGD
from robustgen.commands.opening import load_run, saved_detector
from robustgen.commands.runs import parts
from robustgen.data import digits
from robustgen.detectors import Likelihood, LikelihoodRegret
from robustgen.evaluation import evaluate_detector_robustness, evaluate_robustness, write_report
from robustgen.generative import VAE
from robustgen.progress import bar, showing, time_left, track
from robustgen.training import best_checkpoint, epochs_done, latest_checkpoint
from robustgen.training.recipes import find

pytestmark = pytest.mark.filterwarnings("always:run .* was stopped", "always:clean accuracy")

SMALL = ["--data", "digits", "--limit", "400", "--width", "4", "--quiet"]
ATTACK = ["--data", "digits", "--limit", "20", "--eps", "0.05", "--no-masking-tests", "--quiet"]


def run(capsys, *arguments):
    code = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A fortified, adversarially trained network, whose best epoch is not its last."""
    where = tmp_path_factory.mktemp("runs")
    for seed in range(9):
        run_dir = where / str(seed)
        options = ["--adversarial", "fast", "--epochs", "5", "--fortify", "auto", "--seed", str(seed)]
        assert cli.main(["train", "--run", str(run_dir), *SMALL, *options]) == 0
        if best_checkpoint(run_dir) != latest_checkpoint(run_dir):
            return run_dir
    raise AssertionError("no run whose best epoch is not its last")


@pytest.fixture
def copied(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def stop_early(run_dir, epochs):
    """Make it a run that was to have so many epochs."""
    path = latest_checkpoint(run_dir) / "config.json"
    head = json.loads(path.read_text())
    head["config"]["epochs"] = epochs
    path.write_text(json.dumps(head))


def test_a_training_that_was_not_finished_is_said(capsys, copied, tmp_path):
    line = f"run {copied} was stopped after epoch 5 of 9"
    assert line not in run(capsys, "attack", "--run", copied, *ATTACK)[2]
    stop_early(copied, 9)
    assert epochs_done(copied) == (5, 9)
    code, out, err = run(capsys, "attack", "--run", copied, *ATTACK, "--out", tmp_path / "a")
    assert code == 0, err
    assert f"robustgen: warning: {line}\n" in err
    assert line in out
    assert line in json.loads((tmp_path / "a" / "report.json").read_text())["networks"][0]["notes"]
    code, out, err = run(capsys, "attack", "--run", "example:digits", "--surrogate", copied, *ATTACK)
    assert (code, line in err, line in out) == (0, True, True), err
    code, _, err = run(capsys, "score", "--run", copied, "--data", "digits", "--limit", "5")
    assert (code, line in err) == (0, True), err
    against = ["--data", "digits", "--limit", "20", "--against", "noise", "--report", tmp_path / "b"]
    code, _, err = run(capsys, "score", "--run", copied, *against)
    assert (code, line in err) == (0, True), err
    assert line in json.loads((tmp_path / "b" / "report.json").read_text())["remarks"]
    begun = ["train", "--run", tmp_path / "c", *SMALL, "--weights", copied, "--epochs", "1", "--fortify", "auto"]
    assert line in run(capsys, *begun)[2]


def test_of_a_generative_model_too(capsys, tmp_path):
    vae = ["vae", "--set", "latent_dim=2", "--set", "quantization=stochastic", "--data", "digits", "--limit", "100"]
    assert run(capsys, "train", *vae, "--run", tmp_path, "--epochs", "1", "--quiet")[0] == 0
    sample = ["sample", "--checkpoint", tmp_path, "--n", "1", "--quiet", "--out", tmp_path / "x.png"]
    assert run(capsys, *sample)[2] == ""
    stop_early(tmp_path, 2)
    assert f"run {tmp_path} was stopped after epoch 1 of 2" in run(capsys, *sample)[2]


def test_a_best_epoch_that_is_missing_is_an_error(capsys, copied):
    pointer = copied / "checkpoints" / "best"
    pointer.unlink()
    message = f"{pointer}: is missing; it names the checkpoint of the best epoch"
    for command in (["attack", "--run", copied, *ATTACK], ["train", "--run", copied, "--resume", "--quiet"]):
        code, _, err = run(capsys, *command)
        assert (code, message in err, err.count("\n")) == (2, True, 1), err
    assert not pointer.exists()


def test_a_best_epoch_that_is_another_is_an_error(capsys, copied):
    pointer = copied / "checkpoints" / "best"
    pointer.write_text(f"{latest_checkpoint(copied).name}\n")
    for command in (["attack", "--run", copied, *ATTACK], ["train", "--run", copied, "--resume", "--quiet"]):
        code, _, err = run(capsys, *command)
        assert (code, f"{pointer}: names the checkpoint at step" in err, err.count("\n")) == (2, True, 1), err


def test_a_garbled_best_is_an_error_where_the_latest_is_the_best_too(capsys, tmp_path):
    assert run(capsys, "train", "--run", tmp_path, *SMALL, "--adversarial", "fast", "--epochs", "1")[0] == 0
    pointer = tmp_path / "checkpoints" / "best"
    pointer.write_text("garbled\n")
    code, _, err = run(capsys, "train", "--run", tmp_path, "--resume", "--quiet")
    assert (code, f"{pointer}: names 'garbled'" in err, err.count("\n")) == (2, True, 1), err
    assert pointer.read_text() == "garbled\n"


def test_the_best_epoch_is_held_against_run_json(copied):
    path = copied / "run.json"
    info = json.loads(path.read_text())
    load_run(copied)
    path.write_text(json.dumps(info | {"best": {"epoch": 1, "step": info["best"]["step"] + 1}}))
    with pytest.raises(ValueError, match="the best epoch is 1, at step"):
        load_run(copied)
    path.write_text(json.dumps(info | {"best": "yes"}))
    with pytest.raises(ValueError, match="best must be an object"):
        load_run(copied)


def test_the_summary_is_of_the_best_epoch(trained, copied, capsys):
    code, out, err = run(capsys, "train", "--run", copied, "--resume", "--json", "--quiet")
    assert code == 0, err
    found, info = json.loads(out), json.loads((copied / "run.json").read_text())
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    best = rows[info["best"]["epoch"] - 1]
    assert found["best epoch"] == best["epoch"] < len(rows)
    assert all(found[name] == value for name, value in best.items() if name not in ("epoch", "step"))
    assert found["epochs"] == 5


def test_what_chooses_the_epoch_calibrates_no_detector(copied, capsys):
    """Of 40 held-back images 20 choose, and the scores of the detector are of the 20 others."""
    network, info = load_run(copied)
    assert info["held_back"] == {"choose_the_epoch": 20, "calibrate": 20}
    _, _, held_back = parts(digits("train").first(400), ())
    recipe = find("digits-fast")
    watched, others = recipe.watched(held_back), recipe.unwatched(held_back)
    assert sorted([*watched.ids.tolist(), *others.ids.tolist()]) == sorted(held_back.ids.tolist())
    detector = saved_detector(copied, network)
    scores = detector.score(others.images())
    assert detector.calibration.scores.sort().values.tolist() == pytest.approx(scores.sort().values.tolist())


@pytest.mark.filterwarnings("ignore:the fortified network decides")
def test_nor_a_detector_that_is_fitted_afterwards(tmp_path, capsys, monkeypatch):
    from robustgen.commands import score
    from robustgen.detectors import ReconstructionError

    seen = {}
    calibrate = ReconstructionError.calibrate
    monkeypatch.setattr(
        score.ReconstructionError,
        "calibrate",
        lambda self, data: seen.update(ids=set(data.ids.tolist())) or calibrate(self, data),
    )
    whole = [word for word in SMALL if word not in ("--limit", "400")]
    assert run(capsys, "train", "--run", tmp_path, *whole, "--adversarial", "fast", "--epochs", "1")[0] == 0
    few = ["--data", "digits", "--limit", "3", "--fit-data", "digits", "--epochs", "1", "--quiet"]
    code, _, err = run(capsys, "score", "--run", tmp_path, *few)
    assert code == 0, err
    held_back = json.loads((tmp_path / "run.json").read_text())["held_back"]
    _, _, kept = parts(digits("train"), ())
    assert seen["ids"] == set(find("digits-fast").unwatched(kept).ids.tolist())
    assert len(seen["ids"]) == held_back["calibrate"] == 72


def test_few_images_that_choose_the_epoch_are_said(capsys, tmp_path):
    few = ["--data", "digits", "--limit", "30", "--width", "4", "--adversarial", "fast", "--epochs", "1"]
    code, out, err = run(capsys, "train", "--run", tmp_path / "a", *few)
    assert code == 0, err
    line = "1 held-back image (few: a standard error of up to 50 points)"
    assert line in err
    assert f"chosen on: {line}" in out
    few[few.index("30")] = "12"
    code, _, err = run(capsys, "train", "--run", tmp_path / "b", *few, "--quiet")
    assert (code, "1 example is kept from training" in err) == (2, True)


@pytest.mark.filterwarnings("always:the detector points the wrong way")
def test_a_detector_that_points_the_wrong_way_is_warned_of(tmp_path, capsys):
    """Jointly trained for a few epochs, autoencoders reconstruct noise better than digits."""
    arguments = ["--data", "digits", "--fortify", "auto", "--epochs", "3", "--quiet"]
    assert cli.main(["train", *arguments, "--run", str(tmp_path / "r")]) == 0
    assert "the detector points the wrong way: it takes uniform noise" in capsys.readouterr().err


def test_a_run_whose_checkpoints_are_gone_is_not_trained_anew(copied, capsys):
    shutil.rmtree(copied / "checkpoints")
    rows = (copied / "metrics.jsonl").read_bytes()
    code, _, err = run(capsys, "train", "--run", copied, "--resume", "--quiet")
    assert (code, err.count("\n")) == (2, 1)
    assert "holds metrics.jsonl and no checkpoint" in err
    assert (copied / "metrics.jsonl").read_bytes() == rows


# Bars: on a terminal, where they are asked for, of what takes long, with its name and about how long is left.


class Stream(io.StringIO):
    """What is written to stderr, which is a terminal or is none."""

    def __init__(self, terminal=True):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.fixture
def stderr(monkeypatch):
    """A terminal, on which nothing is too short for a bar."""
    monkeypatch.setattr(progress, "DELAY", 0.0)
    monkeypatch.setattr(progress, "EVERY", 0.0)
    monkeypatch.setattr(progress, "LOGGED", 0.0)
    stream = Stream()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=stream))  # pytest puts its own in place of sys.stderr
    return stream


def test_a_bar_has_a_name_and_the_time_left(stderr):
    with showing():
        assert list(track(range(3), "counting")) == [0, 1, 2]
    shown = stderr.getvalue()
    assert "counting:  33%" in shown
    assert "a few seconds left" in shown
    assert shown.rstrip().endswith("done")


def test_of_an_unknown_number_it_counts(stderr):
    with showing():
        list(track(iter(range(3)), "counting"))
    assert "2 done" in stderr.getvalue()


def test_nothing_is_shown_that_was_not_asked_for(stderr):
    list(track(range(3), "counting"))
    with showing():
        with showing(False):
            list(track(range(3), "counting"))
        other = threading.Thread(target=lambda: list(track(range(3), "counting")))
        other.start()
        other.join()
    assert stderr.getvalue() == ""


def test_nothing_is_shown_of_what_is_short(stderr, monkeypatch):
    monkeypatch.setattr(progress, "DELAY", 3600.0)
    with showing():
        list(track(range(3), "counting"))
    assert stderr.getvalue() == ""


def test_where_stderr_is_no_terminal_only_the_bars_that_were_always_there(stderr):
    stderr.terminal = False
    with showing():
        list(track(range(3), "counting"))
        assert stderr.getvalue() == ""
        with bar("an evaluation", 2, logged=True) as shown:
            shown.update()
    assert "an evaluation:  50%" in stderr.getvalue()


def test_one_process_of_several_speaks(stderr, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with showing():
        list(track(range(3), "counting"))
    assert stderr.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "a few seconds"), (12, "about 10 s"), (89, "about 90 s"), (95, "about 2 min"), (5390, "about 90 min"),
     (5500, "about 1.5 h"), (36000, "about 10 h")],
)  # fmt: skip
def test_time_left_is_said_as_roughly_as_it_is_known(seconds, words):
    assert time_left(seconds) == f"{words} left"


def detector():
    net = fortify(
        nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)), ["1"], example_input=torch.rand(2, 8), init="random"
    )
    return ReconstructionError(net.eval(), batch_size=10)


def vae():
    return VAE((1, 8, 8), architecture="mlp", width=8).eval()


def fit():
    detector().fit(torch.rand(30, 8))


def calibrate():
    detector().fit(torch.rand(30, 8)).calibrate(torch.rand(30, 8))


def score():
    detector().fit(torch.rand(30, 8)).score(torch.rand(30, 8))


def score_data():
    images = data.noise(30, (1, 8, 8), seed=0)
    others = torch.utils.data.TensorDataset(torch.eye(8).expand(20, 1, 8, 8))
    Likelihood(vae(), batch_size=10).fit(images.images().round()).score(others)


def regret():
    LikelihoodRegret(vae(), steps=3).fit(torch.eye(8).expand(4, 1, 8, 8))


def place():
    fortify(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)), "auto", example_input=torch.rand(2, 8))


def attacked():
    net = nn.Linear(8, 3)
    x = torch.rand(20, 8)
    attacks = [PGD(eps=0.1, steps=3)]
    return evaluate_robustness(net, x, net(x).argmax(1), eps=0.1, attacks=attacks, progress=True, name="mine")


def attack_detector():
    guard = detector().fit(torch.rand(30, 8)).calibrate(torch.rand(30, 8))
    x = torch.rand(10, 8)
    evaluate_detector_robustness(
        guard.model, guard, x, guard.model(x).argmax(1), eps=0.1, steps=2, name="mine", progress=True
    )


@pytest.mark.filterwarnings("ignore:clean accuracy")
@pytest.mark.parametrize(
    ("work", "names"),
    [
        (fit, ["ReconstructionError, fit:  33%"]),
        (calibrate, ["ReconstructionError, calibration:  33%"]),
        (score, ["ReconstructionError, scores:  33%"]),
        (score_data, ["Likelihood, scores:  50%"]),
        (regret, ["likelihood regret of a batch:  25%"]),
        (place, ["placement of fortified layers:  33%"]),
        (attacked, ["mine, clean", "mine, PGD", "mine, sweep: 0.1", "mine, diagnostics", "standing"]),
        (attack_detector, ["mine, detector, joint, sum", "mine, detector, oblivious PGD, lowest margin"]),
    ],
)  # fmt: skip
def test_every_long_stage_has_a_bar(stderr, work, names):
    with showing():
        work()
    for name in names:
        assert name in stderr.getvalue()


def test_a_report_has_a_bar_of_its_figures(stderr, tmp_path):
    report = attacked().to_dict()
    with showing():
        write_report({"networks": [report]}, tmp_path)
    assert "report, figures: 100%" in stderr.getvalue()


@pytest.mark.filterwarnings("ignore")
def test_placement_with_a_bar_is_that_without_one(stderr):
    net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    x = torch.rand(2, 8)
    without = fortify(net, "auto", example_input=x)
    with showing():
        with_bar = fortify(net, "auto", example_input=x)
    assert list(with_bar.state_dict()) == list(without.state_dict())
    assert not any(module._forward_hooks for module in net.modules())


def test_outcomes_do_not_depend_on_bars(stderr):
    net = nn.Linear(8, 3)
    x = torch.rand(30, 8)
    y = net(x).argmax(1)
    options = {"eps": 0.1, "attacks": [FGSM(eps=0.1), PGD(eps=0.1, steps=5)], "sweep_examples": 6}
    found = [evaluate_robustness(net, x, y, progress=shown, **options).to_dict() for shown in (False, True)]
    for report in found:
        report.pop("wall_seconds")
    assert found[0] == found[1]


@pytest.mark.filterwarnings("ignore")
def test_quiet_commands_show_nothing_and_others_what_they_do(stderr, tmp_path, monkeypatch):
    run = ["--data", "digits", "--limit", "400", "--width", "4", "--epochs", "1"]
    assert cli.main(["train", "--run", str(tmp_path / "r"), *run, "--fortify", "auto", "--quiet"]) == 0
    data_ = ["--run", str(tmp_path / "r"), "--data", "digits", "--limit", "50"]
    attack = ["attack", *data_, "--eps", "0.1", "--no-masking-tests", "--out", str(tmp_path / "a")]
    score = ["score", *data_, "--out", str(tmp_path / "x.csv")]
    for command in (attack, score):
        assert cli.main([*command, "--quiet"]) == 0
    assert "%|" not in stderr.getvalue()
    assert cli.main([*attack, "--resume"]) == 0
    assert "digits/test, FGSM:" in stderr.getvalue()
    assert "report, figures: 100%" in stderr.getvalue()
    assert cli.main(score) == 0
    assert "scores of digits/test: 100%" in stderr.getvalue()
    list(track(range(3), "after the command"))
    assert "after the command" not in stderr.getvalue()
