"""What reports that were stopped and resumed say of their making: the seconds of all calls, the command that began."""

import json
import sys
import time

import pytest
import torch
from torch import nn

from robustgen import cli
from robustgen.attacks import PGD
from robustgen.detectors import ReconstructionError
from robustgen.evaluation import (
    certify_robustness,
    evaluate_detector_robustness,
    evaluate_robustness,
    random_defence,
)
from robustgen.evaluation.wall_clock import WallClock
from robustgen.fortified import fortify, purify, smooth
from robustgen.generative import Denoiser


class Slow(nn.Module):
    """A network whose every pass takes a second of its own clock; once ``left`` passes are gone, one is broken off."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3))
        self.now, self.left = 100.0, 10**9

    def forward(self, x):
        self.now += 1
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.body(x)


@pytest.fixture
def network(monkeypatch):
    torch.manual_seed(0)
    network = Slow().eval()
    for clock in ("perf_counter", "monotonic"):
        monkeypatch.setattr(time, clock, lambda: network.now)
    return network


def robustness(network, x, y):
    attacks = {"PGD": PGD(eps=0.05, steps=4), "longer": PGD(eps=0.05, steps=8)}
    return lambda **o: evaluate_robustness(
        network, x, y, eps=0.05, attacks=attacks, batch_size=2, masking_tests=False, **o
    )


def guarded(network, x, y):
    net = fortify(network, ["body.2"], example_input=x, init="random", copy=False).eval()
    detector = ReconstructionError(net).fit(x).calibrate(x.flip(3))
    return lambda **o: evaluate_detector_robustness(
        net, detector, x, y, eps=0.05, fpr=0.2, steps=3, formulations=["sum"], x_ood=1 - x, batch_size=2, **o
    )


def certificates(network, x, y):
    smoothed = smooth(network, 0.25, batch_size=50)
    return lambda **o: certify_robustness(smoothed, x, y, n=100, radii=(0.1,), n_attacked=2, attack_steps=3, **o)


def ledger(network, x, y):
    behind = purify(network, Denoiser((1, 8, 8), width=2, levels=1).eval(), depth=0.2)
    settings = {"attacks": ["pgd"], "k": 2, "draws": 3, "eot": 2, "steps": 2, "batch_size": 3}
    return lambda **o: random_defence(behind, x, y, eps=0.05, **settings, **o)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [robustness, guarded, certificates, ledger])
def test_seconds_are_those_of_all_calls_and_a_finished_report_keeps_them(kind, network, tmp_path):
    x = torch.rand(8, 1, 8, 8)
    with torch.no_grad():
        y = network(x).argmax(1)
    evaluate = kind(network, x, y)
    began = network.now
    assert evaluate(run_dir=tmp_path / "whole").wall_seconds == network.now - began > 20
    spent, left = 0.0, (network.now - began) // 4
    for resume in (False, True):
        began, network.left = network.now, left
        with pytest.raises(KeyboardInterrupt):
            evaluate(run_dir=tmp_path / "cut", resume=resume)
        spent += network.now - began
    began, network.left = network.now, 10**9
    report = evaluate(run_dir=tmp_path / "cut", resume=True)
    assert report.wall_seconds == spent + network.now - began
    again = evaluate(run_dir=tmp_path / "cut", resume=True)
    assert again.wall_seconds == report.wall_seconds
    assert getattr(again, "stage_seconds", None) == getattr(report, "stage_seconds", None)


def test_a_refused_call_adds_no_seconds_and_one_that_makes_a_piece_anew_adds_its_own(network, tmp_path):
    x = torch.rand(8, 1, 8, 8)
    with torch.no_grad():
        y = network(x).argmax(1)
    report = robustness(network, x, y)(run_dir=tmp_path)
    with pytest.raises(ValueError, match="another evaluation"):
        robustness(network, 1 - x, y)(run_dir=tmp_path, resume=True)
    (tmp_path / "chunks" / "001-000000.safetensors").unlink()  # something of a finished evaluation is made once more
    began = network.now
    assert robustness(network, x, y)(run_dir=tmp_path, resume=True).wall_seconds == (
        report.wall_seconds + network.now - began
    )


def test_a_damaged_clock_is_named(tmp_path):
    (tmp_path / "wall_clock.json").write_text('{"seconds": -1, "finished": true}')
    with pytest.raises(ValueError, match=r"wall_clock.json: seconds must be"):
        WallClock(tmp_path)


@pytest.fixture
def command(monkeypatch, capsys):
    def command(*arguments):
        """The command line of one call that succeeds."""
        words = [*map(str, arguments), "--quiet"]
        monkeypatch.setattr(sys, "argv", ["robustgen", *words])
        assert cli.main(words) == 0
        capsys.readouterr()
        return " ".join(["robustgen", *words])

    return command


DIGITS = ("--run", "example:digits", "--data", "digits", "--limit", 4)


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_report_names_the_command_that_began_it(tmp_path, command, monkeypatch):
    Denoiser((1, 8, 8), width=2, levels=1).save(tmp_path / "denoiser")
    monkeypatch.setattr(
        "robustgen.commands.purify.random_defence", lambda *a, **o: random_defence(*a, **o, steps=2, n_queries=2)
    )
    purifier = ("--purify", tmp_path / "denoiser", "--depth", 0.2, "--eot", 2, "--draws", 4, "--resubmit", 2)
    for name, options in (("report", ["--no-masking-tests"]), ("random_defence", purifier)):
        out = tmp_path / name
        first = command("attack", *DIGITS, *options, "--out", out)
        record = json.loads((out / f"{name}.json").read_text())
        command("attack", "--out", out, "--resume")
        again = json.loads((out / f"{name}.json").read_text())
        assert record["command"] == again["command"] == first
        assert record == again  # and its times


def test_certificates_name_the_command_that_makes_them_anew(tmp_path, command):
    options = ("certify", *DIGITS, "--n", 100, "--out", tmp_path, "--sigma", 0.2)
    first = command(*options)
    command(*options, "--resume")
    assert json.loads((tmp_path / "certification.json").read_text())["command"] == first
    wider = command(*options, "--sigma", 0.4, "--resume")  # what is shown is what this one asks for
    assert json.loads((tmp_path / "certification.json").read_text())["command"] == wider.replace(" --resume", "")
