"""Bars: on a terminal, where they are asked for, of what takes long, with its name and about how long is left."""

import io
import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from robustgen import ReconstructionError, cli, data, fortify, progress
from robustgen.attacks import FGSM, PGD
from robustgen.detectors import Likelihood, LikelihoodRegret
from robustgen.evaluation import evaluate_detector_robustness, evaluate_robustness, write_report
from robustgen.generative import VAE
from robustgen.progress import bar, showing, time_left, track


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
