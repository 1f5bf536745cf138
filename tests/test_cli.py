"""The command as a user meets it: exit codes, one-line errors, files written, runs resumed."""

import csv
import inspect
import json
import math
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from robustgen import cli, data
from robustgen.cli import app, main
from robustgen.commands import DataSpec, kept_by_run
from robustgen.commands.opening import load_run
from robustgen.detectors import PCAResidual, ReconstructionError, Typicality
from robustgen.files import save_tensors
from robustgen.generative import DDGAN, VAE, EnergyModel, PixelCNN, load
from robustgen.networks import convnet
from robustgen.training import latest_checkpoint
from robustgen.turns import seeded

pytestmark = pytest.mark.filterwarnings("always:clean accuracy")  # networks trained for a moment are printed about

DIGITS = ["--data", "digits", "--width", "4", "--quiet"]


def run(capsys, *arguments):
    """Exit code, stdout and stderr of one call."""
    code = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def process(*arguments, **options):
    command = [sys.executable, "-m", "robustgen", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, **options)


@pytest.fixture(scope="module")
def fortified_run(tmp_path_factory):
    where = tmp_path_factory.mktemp("runs") / "fortified"
    code = cli.main(["train", "--run", str(where), *DIGITS, "--attack", "fgsm", "--eps", "0.1", "--fortify", "auto",
                     "--detach-states", "--epochs", "2", "--hold-out", "9"])  # fmt: skip
    assert code == 0
    return where


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory):
    where = tmp_path_factory.mktemp("runs") / "plain"
    assert cli.main(["train", "--run", str(where), *DIGITS, "--epochs", "8"]) == 0
    return where


@pytest.fixture
def own_model(tmp_path, monkeypatch):
    """A network that is not ours: a module in the current folder, and its weights."""
    (tmp_path / "my_module_for_tests.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))\n"
        "def not_a_network():\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import importlib

    network = importlib.import_module("my_module_for_tests").build()
    save_tensors(tmp_path / "w.safetensors", network.state_dict())
    return "my_module_for_tests:build", tmp_path / "w.safetensors"


def test_help_is_fast_and_does_not_import_torch():
    for arguments in ([], ["train"], ["attack"], ["score"], ["report"], ["demo"]):
        probe = "import sys; from robustgen.cli import main; main(sys.argv[1:]); print('torch' in sys.modules)"
        found = subprocess.run([sys.executable, "-c", probe, *arguments, "--help"], capture_output=True, text=True)
        assert found.stdout.strip().endswith("False"), found.stderr
        assert "Usage: robustgen" in found.stdout


def test_version(capsys):
    assert run(capsys, "--version")[:2] == (0, "robustgen 0.1.0\n")


def test_train_attack_score_report(capsys, fortified_run, tmp_path):
    info = json.loads((fortified_run / "run.json").read_text())
    assert info["fortify"]["chosen"] == ["3", "5"]
    assert info["network"]["n_classes"] == 9
    out = tmp_path / "attack"
    common = ["--run", fortified_run, "--eps", "0.1", "--limit", "60", "--quiet"]
    code, text, err = run(capsys, "attack", *common, "--out", out)
    assert code == 0
    assert "robustgen: warning: clean accuracy" in err
    assert "worst case (upper bound)" in text
    assert "masking test" in text
    report = json.loads((out / "report.json").read_text())
    assert report["networks"][0]["clean_accuracy"]["n"] < 60  # the held-out class is left out of the first 60
    (out / "report.html").unlink()
    assert run(capsys, "report", out)[0] == 0
    assert (out / "report.html").stat().st_size > 10_000
    code, text, _ = run(capsys, "attack", *common, "--json", "--no-masking-tests", "--norm", "L2")
    assert json.loads(text)["threat_model"]["norm"] == "L2"

    code, text, _ = run(capsys, "score", "--run", fortified_run, "--data", "digits", "--limit", "20")
    rows = list(csv.DictReader(text.splitlines()))
    assert code == 0
    assert list(rows[0]) == ["input", "score", "p_value", "flag"]
    assert len(rows) == 20
    assert all(0 < float(r["p_value"]) <= 1 for r in rows)
    noise = tmp_path / "noise.npz"
    np.savez(noise, x=np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8))
    lines = tmp_path / "scores.jsonl"
    code, text, _ = run(capsys, "score", "--run", fortified_run, "--data", noise, "--out", lines, "--json")
    assert json.loads(text)["inputs"] == 30
    assert [json.loads(line)["input"] for line in lines.read_text().splitlines()] == list(range(30))

    chosen = ["--run", fortified_run, "--data", "digits", "--limit", "50", "--eps", "0.1"]
    against = [word for other in ("noise", "fgsm", "pgd", "heldout", noise) for word in ("--against", other)]
    code, text, err = run(capsys, "score", *chosen, *against, "--report", tmp_path / "detection")
    assert code == 0, err
    assert text.count("AUROC") == 5
    entry = json.loads((tmp_path / "detection" / "report.json").read_text())["detection"][0]
    assert f"uniform noise: AUROC {entry['populations']['uniform noise']['auroc']:.3f}" in text
    assert "| FGSM, Linf eps 0.1 (n = " in run(capsys, "report", tmp_path / "detection", "--markdown")[1]


def test_a_report_of_scores_holds_what_the_rows_say(capsys, fortified_run, tmp_path):
    chosen = ["--run", fortified_run, "--data", "digits", "--limit", "60", "--quiet", "--report", tmp_path]
    code, rows, err = run(capsys, "score", *chosen)
    assert code == 0
    assert f"report: {tmp_path / 'report.html'}" in err
    scored = list(csv.DictReader(rows.splitlines()))
    assert len(scored) == 60  # the CSV alone is on stdout
    report = json.loads((tmp_path / "report.json").read_text())
    (entry,) = report["scores"]
    assert entry["n"] == 60
    assert entry["flagged"]["value"] == sum(row["flag"] == "True" for row in scored) / 60
    by_score = sorted((float(row["score"]), row["input"]) for row in scored)
    assert [row["score"] for row in entry["most"]] == [s for s, _ in reversed(by_score[-8:])]
    assert [row["score"] for row in entry["least"]] == [s for s, _ in by_score[:8]]
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png") == 16
    assert "threshold: above it an input is flagged" in page
    assert "| most | " in run(capsys, "report", tmp_path, "--markdown")[1]


def test_the_detector_under_attack(capsys, fortified_run, plain_run, tmp_path):
    noise = tmp_path / "noise.npz"
    np.savez(noise, x=np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8))
    common = ["--eps", "0.1", "--limit", "12", "--no-masking-tests", "--quiet"]
    attack = ["attack", "--run", fortified_run, *common, "--detector", "--fpr", "0.1"]
    code, text, err = run(capsys, *attack, "--ood", noise, "--out", tmp_path / "a", "--json")
    assert code == 0, err
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    (entry,) = report["detector_robustness"]
    assert entry["fpr"] == 0.1
    saved = ReconstructionError.load(fortified_run / "detector", model=load_run(fortified_run)[0])
    assert entry["threshold"] == saved.calibration.threshold(0.1)
    assert entry["out_of_distribution"]["before"]["flagged"]["n"] == 6
    assert entry["per_example"]["ids"] == report["networks"][0]["per_example"]["ids"]
    assert "Detectors under attack" in (tmp_path / "a" / "report.html").read_text()
    assert "joint, orthogonal" in run(capsys, "report", tmp_path / "a", "--markdown")[1]
    assert json.loads(text)["detector_robustness"] == entry

    for arguments, message in [
        (["--run", plain_run, "--detector"], "has no detector: its network is not fortified"),
        (["--model", "nowhere:build", "--detector"], "--detector is about the one that a --run"),
        (["--run", fortified_run, "--ood", noise], "--ood is about --detector"),
        (["--run", fortified_run, "--fpr", "0.1"], "--fpr is about --detector"),
        (["--run", fortified_run, "--detector", "--fpr", "0.0001"], "calibration scores cannot give"),
    ]:
        code, _, err = run(capsys, "attack", *arguments, *common)
        assert code == 2
        assert message in err


def test_an_image_folder_is_scored_by_file_name(capsys, fortified_run, tmp_path):
    from PIL import Image

    for k in range(3):
        Image.fromarray(np.full((8, 8, 3), 40 * k, np.uint8)).save(tmp_path / f"{k}.png")
    code, text, err = run(capsys, "score", "--run", fortified_run, "--data", tmp_path)
    assert code == 0, err
    assert [row["input"].endswith(f"{k}.png") for k, row in enumerate(csv.DictReader(text.splitlines()))] == [True] * 3
    assert "3 image files," in err
    assert ": 1 image file," in run(capsys, "score", "--run", fortified_run, "--data", tmp_path / "0.png")[2]


@pytest.mark.filterwarnings("default:the fortified network decides")
def test_a_network_that_is_not_ours(capsys, own_model, tmp_path):
    model, weights = own_model
    chosen = ["--model", model, "--weights", weights, "--limit", "40", "--quiet"]
    code, text, err = run(capsys, "attack", *chosen, "--data", "digits", "--eps", "0.1", "--no-masking-tests")
    assert code == 0, err
    assert "PGD-40" in text
    code, text, err = run(capsys, "score", *chosen, "--data", "digits", "--fit-data", "digits", "--epochs", "1")
    assert code == 0, err
    assert "decides otherwise" not in err  # autoencoders that start as the identity change next to no decision
    assert len(text.splitlines()) == 41


@pytest.mark.filterwarnings("always:the detector points the wrong way", "ignore:the fortified network decides")
def test_a_fitted_detector_that_takes_noise_for_usual_is_warned_of(capsys, plain_run, monkeypatch):
    chosen = ["score", "--run", plain_run, "--data", "digits", "--limit", "3", "--fit-data", "digits", "--epochs", "1"]
    for sign, warned in ((1, True), (-1, False)):  # the pixels of digits spread wider than those of uniform noise
        monkeypatch.setattr(ReconstructionError, "_score", lambda self, x, sign=sign: sign * x.flatten(1).std(1))
        code, _, err = run(capsys, *chosen, "--quiet")
        assert (code, "the detector points the wrong way" in err, "for more --epochs" in err) == (0, warned, warned)


@pytest.mark.filterwarnings("ignore:the fortified network decides")
def test_a_pretrained_network_is_fortified_afterwards(capsys, plain_run, tmp_path):
    where = tmp_path / "afterwards"
    code, _, err = run(capsys, "train", "--run", where, *DIGITS, "--weights", plain_run, "--fortify", "auto",
                          "--freeze-backbone", "--epochs", "30", "--batch-size", "32")  # fmt: skip
    assert code == 0, err
    from robustgen.commands.opening import load_run

    network, _ = load_run(where)
    original, _ = load_run(plain_run)
    x = data.digits("test").images()
    assert torch.equal(network.unfortified()(x), original(x))


def test_classes_are_matched_by_name_and_training_data_are_refused(capsys, tmp_path):
    digits = data.digits("all")
    folder = tmp_path / "folder"
    from PIL import Image

    for part, chosen, start in (("train", range(10), 0), ("test", range(1, 10), 1200)):  # the test part lacks class 0
        for label in chosen:
            (folder / part / f"c{label}").mkdir(parents=True)
            for k in (digits.labels()[start : start + 600] == label).nonzero().squeeze(1).tolist():
                image = digits.x[start + k, 0].numpy()
                Image.fromarray(image).save(folder / part / f"c{label}" / f"{k}.png")
    chosen = ["--data", folder, "--width", "8", "--epochs", "15", "--quiet"]
    assert run(capsys, "train", "--run", tmp_path / "r", *chosen)[0] == 0
    code, text, err = run(
        capsys, "attack", "--run", tmp_path / "r", "--eps", "0.01", "--no-masking-tests", "--json", "--quiet"
    )
    assert code == 0, err
    assert json.loads(text)["clean_accuracy"]["value"] > 0.6

    one = tmp_path / "all.npz"
    data.save_npz(one, digits.first(400))
    assert (
        run(capsys, "train", "--run", tmp_path / "s", "--data", one, "--hold-out", "0", *DIGITS[2:], "--epochs", "1")[0]
        == 0
    )
    code, _, err = run(capsys, "attack", "--run", tmp_path / "s", "--eps", "0.1")
    assert code == 2
    assert "pass --data with other inputs" in err
    other = tmp_path / "other.npz"
    data.save_npz(other, digits.subset(torch.arange(400, 700)))
    chosen = ["--run", tmp_path / "s", "--data", other, "--eps", "0.01", "--no-masking-tests", "--json", "--quiet"]
    code, text, err = run(capsys, "attack", *chosen)
    assert code == 0, err
    labels = json.loads(text)["per_example"]["labels"]
    expected = [int(v) - 1 for v in digits.labels()[400:700].tolist() if v]  # renumbered, the held-out class gone
    assert labels == expected


def test_a_refused_resume_leaves_the_run_intact(capsys, tmp_path):
    assert run(capsys, "train", "--run", tmp_path, *DIGITS, "--epochs", "1")[0] == 0
    before = (tmp_path / "run.json").read_bytes()
    for other in (["--width", "8"], ["--activation", "tanh"], ["--attack", "fgsm"], ["--hold-out", "3"]):
        code, _, err = run(capsys, "train", "--run", tmp_path, "--resume", *DIGITS, "--epochs", "1", *other)
        assert code == 2
        assert "other settings" in err
    assert (tmp_path / "run.json").read_bytes() == before
    assert run(capsys, "train", "--run", tmp_path, "--resume", *DIGITS, "--epochs", "2")[0] == 0
    assert json.loads((tmp_path / "run.json").read_text())["training"]["epochs"] == 2


def test_noise_at_test_leaves_no_detector_and_says_so(capsys, tmp_path):
    code, text, _ = run(
        capsys, "train", "--run", tmp_path, *DIGITS, "--epochs", "1", "--fortify", "auto", "--noise-at-test"
    )
    assert code == 0
    assert "detector: none" in text
    code, _, err = run(capsys, "score", "--run", tmp_path, "--data", "digits")
    assert code == 2
    assert "has no detector" in err


@pytest.mark.filterwarnings("ignore:the fortified network decides")
def test_held_out_classes_stay_out_of_a_detector_fitted_later(capsys, tmp_path, monkeypatch):
    from robustgen.commands import score

    assert run(capsys, "train", "--run", tmp_path, *DIGITS, "--epochs", "1", "--hold-out", "3")[0] == 0
    seen = []
    split = score.split
    monkeypatch.setattr(score, "split", lambda known, *a, **k: seen.append(known) or split(known, *a, **k))
    chosen = [
        "--run",
        tmp_path,
        "--data",
        "digits",
        "--fit-data",
        "digits",
        "--epochs",
        "1",
        "--limit",
        "50",
        "--quiet",
    ]
    assert run(capsys, "score", *chosen)[0] == 0
    assert "3" not in seen[0].classes


def test_an_input_autoencoder_and_activations_from_the_command_line(capsys, tmp_path):
    options = ["--fortify", "5", "--input-autoencoder", "--autoencoder-activation", "tanh", "--attack", "fgsm"]
    code, _, err = run(capsys, "train", "--run", tmp_path, *DIGITS, "--epochs", "1", *options, "--eps", "0.1")
    assert code == 0, err
    config = json.loads((tmp_path / "run.json").read_text())["fortify"]
    assert config["input_autoencoder"]
    assert config["activation"] == "tanh"


@pytest.mark.parametrize("method", ["madry", "trades", "mart", "fast"])
def test_methods_of_adversarial_training(capsys, tmp_path, method):
    """With and without fortified layers and weight perturbation, the command trains what Python trains."""
    from robustgen.attacks import KLPGD, PGD, RandomStartFGSM
    from robustgen.data import split
    from robustgen.training import AWP, ClassifierObjective, Mart, OverfittingGuard, Trades, Trainer, load_checkpoint

    chosen = [*DIGITS, "--epochs", "1", "--limit", "100", "--adversarial", method, "--eps", "0.1"]
    chosen += ["--lr", "0.001", "--schedule", "constant", "--batch-size", "128"]
    chosen += ["--steps", "3"] if method != "fast" else []
    chosen += ["--start", "bounds"] if method != "trades" else []
    weighted = ["--beta", "2"] if method in ("trades", "mart") else []
    assert run(capsys, "train", "--run", tmp_path / "a", *chosen, *weighted, "--awp", "0.01")[0] == 0
    fast, pgd = RandomStartFGSM(eps=0.1), PGD(eps=0.1, steps=3)
    guard = OverfittingGuard(weak=fast, strong=PGD(eps=0.1, steps=10)) if method == "fast" else None
    objective = {
        "madry": lambda: ClassifierObjective(pgd, clean_weight=0.0),
        "trades": lambda: ClassifierObjective(KLPGD(eps=0.1, steps=3), loss=Trades(beta=2.0)),
        "mart": lambda: ClassifierObjective(pgd, loss=Mart(beta=2.0)),
        "fast": lambda: ClassifierObjective(fast, clean_weight=0.0),
    }[method]()
    train, _ = split(data.digits("train").first(100), (0.9, 0.1), seed=0)
    torch.manual_seed(0)
    network = convnet(1, 10, 8, width=4)
    Trainer(AWP(objective, gamma=0.01), epochs=1, guard=guard, progress=False).fit(network, train)
    saved = load_checkpoint(tmp_path / "a").model_state
    assert all(torch.equal(v, saved[k]) for k, v in network.state_dict().items())
    code, text, err = run(capsys, "train", "--run", tmp_path / "b", *chosen, "--fortify", "auto")
    assert (code, err) == (0, "")
    assert "rec_loss" in text
    found = json.loads((tmp_path / "b" / "run.json").read_text())["training"]
    assert (found["method"], found["steps"], found["eps"], found["awp"]) == (
        method,
        7 if method == "fast" else 3,
        0.1,
        None,
    )
    code, _, err = run(capsys, "train", "--run", tmp_path / "b", "--resume", *chosen, "--fortify", "auto", "--awp", "1")
    assert (code, "training.awp was null, now 1.0" in err) == (2, True)


def test_black_box_surrogate(capsys, fortified_run, plain_run):
    chosen = ["--run", plain_run, "--surrogate", plain_run, "--eps", "0.1", "--limit", "30"]
    code, text, err = run(capsys, "attack", *chosen, "--no-masking-tests", "--quiet")
    assert code == 0, err
    assert "transfer PGD" in text
    hold = next(line for line in text.split("\n") if "masking tests that hold:" in line)
    assert "white-box is at least as strong as black-box" in hold


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["train"], "--run"),
        (["train", "--run", "{tmp}/r", "--epochs", "many"], "--epochs"),
        (["train", "--run", "{tmp}/r", "--data", "minst"], "did you mean 'mnist'"),
        (["train", "--run", "{tmp}/r", "--data", "mnist"], "--data-root"),
        (["train", "--run", "{tmp}/r", "--data", "mnist", "--data-root", "{tmp}"], "MNIST not found in"),
        (["train", "--run", "{tmp}/r", "--model", "alexnet"], "unknown network 'alexnet'"),
        (["train", "--run", "{tmp}/r", "--model", "no_such_module:build"], "cannot import 'no_such_module'"),
        (["train", "--run", "{tmp}/r", "--model", "robustgen.networks:nothing"], "no function 'nothing'"),
        (["train", "--run", "{tmp}/r", "--attack", "cw"], "unknown attack 'cw'"),
        (["train", "--run", "{tmp}/r", "--fortify", "3x", "--width", "4"], "no layer '3x'; did you mean '3'"),
        (["train", "--run", "{tmp}/r", "--fortify", "auto", "--freeze-backbone"], "pass its --weights"),
        (
            ["train", "--run", "{tmp}/r", "--clean-weight", "0"],
            "--clean-weight is of fgsm and pgd, this training is plain",
        ),
        (["train", "--run", "{tmp}/r", "--adversarial", "free"], "unknown method 'free'; known: fast, madry, trades"),
        (["train", "--run", "{tmp}/r", "--adversarial", "trades", "--attack", "pgd"], "leave out --attack"),
        (
            ["train", "--run", "{tmp}/r", "--adversarial", "mart", "--clean-weight", "1"],
            "--clean-weight is of fgsm and pgd, this",
        ),
        (["train", "--run", "{tmp}/r", "--adversarial", "madry", "--beta", "6"], "--beta is of trades and mart"),
        (["train", "--run", "{tmp}/r", "--adversarial", "mart", "--beta", "-1"], "beta must be"),
        (["train", "--run", "{tmp}/r", "--awp", "0.01"], "pass --adversarial, --recipe or --attack"),
        (["train", "--run", "{tmp}/r", "--attack", "fgsm", "--awp", "-1"], "gamma must be"),
        (
            [
                "train",
                "--run",
                "{tmp}/r",
                "--fortify",
                "auto",
                "--freeze-backbone",
                "--weights",
                "{plain}",
                "--adversarial",
                "trades",
            ],
            "leave out --attack, --adversarial and --recipe",
        ),
        (["attack", "--run", "{fortified}", "--resume"], "pass it"),
        (["train", "--run", "{tmp}/r", "--epochs", "0", "--width", "4"], "epochs must be at least 1"),
        (["train", "--run", "{tmp}/r", "--hold-out", "77"], "77"),
        (["train", "--run", "{tmp}/r", "--data", "{tmp}/empty"], "empty"),
        (["train", "--run", "{tmp}/r", "--limit", "0"], "Invalid value for '--limit'"),
        (["attack", "--eps", "0.1"], "say which network"),
        (["attack", "--run", "{tmp}/nothing"], "no finished robustgen run"),
        (["attack", "--model", "convnet", "--data", "digits"], "module:function"),
        (
            ["attack", "--run", "{fortified}", "--suite", "huge", "--eps", "0.1", "--limit", "10"],
            "unknown suite 'huge'",
        ),
        (["attack", "--run", "{fortified}", "--eps", "-1", "--limit", "10"], "eps"),
        (["attack", "--run", "{fortified}", "--norm", "L3", "--limit", "10"], "Linf, L2 or L1"),
        (["attack", "--run", "{fortified}", "--limit", "0"], "Invalid value for '--limit'"),
        (["score", "--run", "{fortified}", "--data", "{tmp}/broken.npz"], "broken.npz"),
        (["score", "--run", "{fortified}", "--data", "{tmp}/large.npz"], "the network takes (1, 8, 8)"),
        (["score", "--run", "{fortified}", "--data", "digits", "--out", "{tmp}/x.txt"], ".csv, .jsonl or .parquet"),
        (
            ["score", "--run", "{fortified}", "--data", "digits", "--fpr", "0.0001"],
            "cannot give a false-alarm rate of 0.0001",
        ),
        (["score", "--run", "{plain}", "--data", "digits"], "pass --fit-data"),
        (
            ["score", "--run", "{plain}", "--data", "digits", "--fit-data", "digits", "--fpr", "0.001"],
            "--fit-data: of its 1438 inputs a tenth at most calibrates: 144 calibration scores cannot give",
        ),
        (["report", "{tmp}/nothing"], "no such report"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(capsys, fortified_run, plain_run, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 not quite")
    np.savez(tmp_path / "large.npz", x=np.zeros((2, 9, 9), np.uint8))
    names = {"tmp": tmp_path, "fortified": fortified_run, "plain": plain_run}
    code, out, err = run(
        capsys, *(a.format(**names) for a in arguments), *(["--quiet"] if arguments[0] == "train" else [])
    )
    assert code == 2, (out, err)
    assert message in err
    assert err.startswith("robustgen: error: ")
    assert len(err.strip().splitlines()) == 1


def test_weights_of_another_architecture_are_named(capsys, own_model, tmp_path):
    model, weights = own_model
    save_tensors(weights, convnet(1, 10, 8, width=4).state_dict())
    code, _, err = run(capsys, "attack", "--model", model, "--weights", weights, "--data", "digits")
    assert code == 2
    assert "missing 1.weight" in err
    assert "unexpected 0.weight" in err
    weights.write_bytes(weights.read_bytes()[:100])
    assert "not a complete safetensors file" in run(capsys, "attack", "--model", model, "--weights", weights)[2]
    code, _, err = run(capsys, "attack", "--model", "my_module_for_tests:not_a_network", "--data", "digits")
    assert (code, "returned int" in err) == (2, True)


def test_a_run_is_not_overwritten(capsys, plain_run):
    code, _, err = run(capsys, "train", "--run", plain_run, *DIGITS)
    assert code == 2
    assert "already holds a run" in err


def test_a_full_disk_keeps_the_last_good_checkpoint(capsys, tmp_path):
    arguments = ["train", "--run", tmp_path / "r", *DIGITS, "--width", "16", "--limit", "200"]
    assert run(capsys, *arguments, "--epochs", "1")[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "r").rglob("*") if path.is_file()}
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    failed = process(*arguments, "--epochs", "3", "--resume", preexec_fn=limit)
    assert failed.returncode == 1
    assert "could not be written" in failed.stderr
    assert "Traceback" not in failed.stderr
    for path, content in before.items():
        assert path.read_bytes().startswith(content)  # metrics.jsonl may have another line
    assert run(capsys, *arguments, "--epochs", "3", "--resume")[0] == 0


def test_ctrl_c_in_training_is_resumable_and_exact(capsys, tmp_path):
    arguments = ["train", *DIGITS, "--width", "8", "--epochs", "20", "--fortify", "auto", "--attack", "fgsm"]
    command = [sys.executable, "-m", "robustgen", *map(str, arguments), "--run", str(tmp_path / "cut")]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    while not (tmp_path / "cut" / "checkpoints" / "latest").exists():
        time.sleep(0.05)
    time.sleep(0.2)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 1, err
    assert "interrupted" in err
    assert "Traceback" not in err
    assert run(capsys, *arguments, "--run", tmp_path / "cut", "--resume")[0] == 0
    assert run(capsys, *arguments, "--run", tmp_path / "whole")[0] == 0
    from robustgen.training import load_checkpoint

    cut, whole = (load_checkpoint(tmp_path / name).model_state for name in ("cut", "whole"))
    assert all(torch.equal(cut[k], whole[k]) for k in whole)


def test_debug_shows_the_traceback(monkeypatch, capsys):
    monkeypatch.setenv("ROBUSTGEN_DEBUG", "1")
    with pytest.raises(ValueError, match="say which network"):
        cli.main(["attack"])


def test_the_demo_smoke_run_writes_what_it_prints(tmp_path):
    found = process("demo", "--smoke", "--out", tmp_path, "--quiet")
    assert found.returncode == 0, found.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    names = [n["name"] for n in report["networks"]]
    assert names == ["plain", "plain, fortified afterwards", "adversarial", "fortified adversarial"]
    for network in report["networks"]:
        assert f"{100 * network['worst_case_accuracy']['value']:.1f}" in found.stdout
    assert len(report["detection"]) == 2
    assert [len(entry["per_example"]["ids"]) for entry in report["detector_robustness"]] == [10, 10]
    said = " ".join(found.stdout.split())
    assert [step["title"] in said and step["text"] in said for step in report["story"]] == 4 * [True]
    assert sum("measurable difference" in line for line in found.stdout.split("\n")) <= 1
    page = (tmp_path / "report.html").read_text()
    assert page.index("How it falls") < page.index("data:image/png") < page.index("How it is guarded")


def test_training_from_python_and_from_the_command_agree(capsys, tmp_path):
    """The command is a thin layer: the same settings in Python give the same weights."""
    from robustgen.data import split
    from robustgen.training import ClassifierObjective, Trainer, load_checkpoint

    assert run(capsys, "train", "--run", tmp_path, *DIGITS, "--epochs", "1")[0] == 0
    train, _ = split(data.digits("train"), (0.9, 0.1), seed=0)
    torch.manual_seed(0)
    network = convnet(1, 10, 8, width=4)
    Trainer(ClassifierObjective(), epochs=1, progress=False).fit(network, train)
    saved = load_checkpoint(tmp_path).model_state
    assert all(torch.equal(v, saved[k]) for k, v in network.state_dict().items())


def test_import_is_lazy():
    script = textwrap.dedent(
        """
        import sys, robustgen
        assert "torch" not in sys.modules
        assert robustgen.fortify and robustgen.attacks.PGD and "torch" in sys.modules
        assert set(robustgen.__all__) <= set(dir(robustgen))
        for name in robustgen.__all__:
            getattr(robustgen, name)
        """
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


# The help of the long commands: every option under a heading that says what it is about, and examples that parse.

LONG = {
    "train": ["Data", "Network", "Adversarial training", "Fortify", "Optimisation", "Generative models", "Run"],
    "attack": ["Data", "Network", "Attack", "Detector", "Purifier", "Run"],
    "score": ["Data", "Network", "Generative models", "Attack", "Detector", "Run"],
}


def shown(capsys, command):
    assert main([command, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", LONG)
def test_every_option_is_under_its_heading(capsys, command):
    text = shown(capsys, command)
    headings = re.findall(r"^(\w[\w ]*):$", text, re.MULTILINE)
    assert [name for name in headings if name != "Arguments"] == LONG[command]
    parameters = typer.main.get_command(app).commands[command].params
    for parameter in parameters:
        if parameter.param_type_name == "option":
            assert parameter.rich_help_panel in LONG[command], parameter.name
            assert re.search(rf"^  {parameter.opts[0]}\b", text, re.MULTILINE), parameter.name


def test_the_help_names_every_generative_model(capsys):
    from robustgen.generative import model_classes

    named = re.split(r";\s+char-lm", shown(capsys, "train").partition("A generative model:")[2])[0]
    words = re.sub(r"-\n\s+", "-", named).replace("++", "-plus-plus").split(",")
    named = {word.strip().replace("-", "") for word in words}
    assert (named - {"ebm"}) | {"energymodel"} == {name.lower() for name in model_classes()}


@pytest.mark.parametrize("command", LONG)
def test_its_examples_are_commands(capsys, command):
    examples = shown(capsys, command).partition("Examples:\n")[2].splitlines()
    assert 3 <= len(examples) <= 4
    for line in examples:
        words = shlex.split(line)
        assert words[:2] == ["robustgen", command]
        typer.main.get_command(app).commands[command].make_context(command, words[2:])  # raises on an unknown option


SMALL = ["--set", "architecture=mlp", "--set", "width=64", "--set", "latent_dim=4"]
BINARY = ["--set", "quantization=stochastic"]


@pytest.fixture(scope="module")
def vae_run(tmp_path_factory):
    where = tmp_path_factory.mktemp("runs") / "vae"
    arguments = ["train", "vae", "--run", str(where), *SMALL, *BINARY, "--epochs", "20", "--batch-size", "32"]
    assert cli.main([*arguments, "--hold-out", "0", "--quiet"]) == 0
    return where


def test_a_training_leaves_model_curves_and_samples(vae_run):
    model = load(vae_run)
    assert isinstance(model, VAE)
    assert (model.latent_dim, model.width) == (4, 64)
    rows = [json.loads(line) for line in (vae_run / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 20
    assert rows[-1]["val_loss"] < rows[0]["val_loss"] - 1
    grids = sorted(path.name for path in (vae_run / "samples").iterdir())
    assert grids == [f"epoch-{k:04}.png" for k in range(1, 21)]
    for path in (vae_run / "curves.png", vae_run / "samples" / grids[-1]):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_a_model_is_tilted_by_command_resumed_without_its_base_sampled_and_scored(vae_run, tmp_path, capsys):
    base, tilt = tmp_path / "base", tmp_path / "tilt"
    shutil.copytree(vae_run, base)
    small = ["--set", "width=4", "--set", "steps=2", "--set", "sample_steps=2", "--quiet"]
    code, _, err = run(capsys, "train", "tilted", "--base", base, "--run", tilt, "--epochs", 1, *small)
    assert code == 0, err
    info = json.loads((tilt / "run.json").read_text())
    assert (info["data"]["source"], info["held_out"]) == ("digits", ["0"])
    resume = ["train", "tilted", "--run", tilt, "--resume", "--epochs", 2, "--quiet"]
    for other in (vae_run, tmp_path / "none"):
        code, _, err = run(capsys, *resume, "--base", other)
        assert (code, err.count("\n")) == (2, 1)
        assert f"{tilt} was begun with --base {base}, not {other}: leave --base out, or take another --run" in err
    shutil.rmtree(base)
    code, _, err = run(capsys, *resume, "--base", base)
    assert code == 0, err
    assert (tilt / "metrics.jsonl").read_text().count("overlap") == 4  # training and held-back data, twice
    assert torch.equal(load(tilt).base.decoder[0].weight, load(vae_run).decoder[0].weight)
    code, _, err = run(capsys, "sample", "--run", tilt, "--n", 4, "--out", tmp_path / "s.png")
    assert code == 0, err
    for more in ([], ["--detector", "model-energy"]):
        code, out, err = run(capsys, "score", "--checkpoint", tilt, "--data", "digits", "--limit", 5, *more)
        assert code == 0, err
        assert len(out.splitlines()) >= 5


def test_bases_that_are_none_are_refused_in_one_line(vae_run, tmp_path, capsys):
    load(vae_run).save(tmp_path / "saved")
    new = tmp_path / "new"
    wide = tmp_path / "wide.npz"
    np.savez(wide, x=np.zeros((40, 1, 9, 9), np.uint8), y=np.arange(40) % 4)
    for arguments, message in (
        (["tilted"], "begins with a trained model: name its run, --base RUN"),
        (["tilted", "--base", tmp_path / "none"], "no checkpoint here"),
        (["tilted", "--base", tmp_path / "saved"], "names no data: pass --data"),
        (["tilted", "--base", vae_run, "--data", wide, "--hold-out", "1"], "its images are (1, 8, 8)"),
        (["tilted", "--base", vae_run, "--set", "base=3"], "name the run of a model, --base RUN"),
        (["vae", "--base", vae_run], "a VAE begins with no other model"),
    ):
        code, _, err = run(capsys, "train", *arguments, "--run", new)
        assert code == 2
        assert message in err
        assert err.count("\n") == 1
        assert not new.exists()


def test_an_unknown_setting_names_each_argument_once(tmp_path, capsys):
    code, _, err = run(capsys, "train", "vae", "--run", tmp_path / "new", "--set", "zzz=3")
    assert code == 2
    for name in list(inspect.signature(VAE).parameters)[1:]:
        assert len(re.findall(rf"\b{name}\b", err)) == 1


def test_a_resumed_training_keeps_its_settings_and_refuses_others(tmp_path, capsys):
    begun = ["train", "vae", "--run", tmp_path, *SMALL, *BINARY, "--limit", 60, "--samples", 0, "--quiet"]
    assert run(capsys, *begun, "--epochs", 1)[0] == 0
    config = json.loads((tmp_path / "run.json").read_text())["generative"]["config"]
    resume = ["train", "--run", tmp_path, "--resume", "--quiet"]
    for setting, line in (
        ("width=32", f"{tmp_path} was begun with --set width=64, not width=32: leave --set out, or take another --run"),
        ("kl_warmup=5", "other settings: generative.config.kl_warmup was 0, now 5; take another --run"),
    ):
        code, _, err = run(capsys, *resume, "--epochs", 2, "--set", setting)
        assert (code, err.count("\n")) == (2, 1)
        assert line in err
    for epochs, more in ((2, ["--set", "width=64", "--set", "kl_warmup=0"]), (3, [])):
        code, _, err = run(capsys, *resume, "--epochs", epochs, *more)
        assert code == 0, err
        info = json.loads((tmp_path / "run.json").read_text())
        assert info["generative"]["config"] == config
        assert info["training"]["epochs"] == epochs


def test_samples_are_written_as_grid_or_array(vae_run, tmp_path, capsys):
    for name in ("a.npz", "b.npz", "c.png"):
        code, _, err = run(capsys, "sample", "--checkpoint", vae_run, "--n", 5, "--out", tmp_path / name)
        assert code == 0, err
    a, b = (np.load(tmp_path / name)["x"] for name in ("a.npz", "b.npz"))
    assert a.shape == (5, 1, 8, 8)
    assert a.dtype == np.uint8
    assert set(np.unique(a)) <= {0, 255}
    assert (a == b).all()
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_scores_of_known_and_unknown_inputs(vae_run, capsys):
    arguments = ["score", "--checkpoint", vae_run, "--data", "digits", "--json"]
    code, out, err = run(capsys, *arguments, "--against", "noise", "--against", "heldout")
    assert code == 0, err
    entry = json.loads(out)
    assert entry["detector"] == "Likelihood"
    assert entry["false_alarms"] < 0.12
    assert entry["populations"]["uniform noise"]["auroc"] > 0.95
    assert "held-out 0" in entry["populations"]
    kept = vae_run / "detectors" / "Likelihood" / "detector.json"
    before = kept.stat().st_mtime_ns
    code, out, _ = run(capsys, *arguments, "--limit", 5)
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert len(rows) == 5
    assert kept.stat().st_mtime_ns == before  # the detector of the run is used again
    kept.write_text("{}")  # damaged: it is fitted again
    code, again, err = run(capsys, *arguments, "--limit", 5)
    assert (code, again) == (0, out), err
    x = data.load("digits").take(5).images()
    expected = -load(vae_run).log_prob(x)
    torch.testing.assert_close(torch.tensor([row["score"] for row in rows]), expected.detach())


def test_a_detector_takes_its_options(vae_run, capsys):
    arguments = ["score", "--checkpoint", vae_run, "--detector", "likelihood-regret", "--data", "digits"]
    code, out, err = run(capsys, *arguments, "--set", "steps=2", "--limit", 3)
    assert code == 0, err
    assert len(out.splitlines()) == 4
    record = json.loads((vae_run / "detectors" / "LikelihoodRegret" / "detector.json").read_text())
    assert record["config"]["steps"] == 2


def test_wrong_use_is_one_line(vae_run, tmp_path, capsys):
    new = tmp_path / "new"
    checkpoint = ["score", "--checkpoint", vae_run, "--data", "digits"]
    load(vae_run).save(tmp_path / "saved")
    for arguments, message in (
        (["train", "vae", "--run", new, *SMALL], "say how to binarise them"),
        (["train", "vea", "--run", new], "did you mean 'vae'?"),
        (["train", "vae", "--run", new, "--set", "widht=3"], "did you mean 'width'?"),
        (["train", "vae", "--run", new, "--set", "width"], "write name=value"),
        (["train", "vae", "--run", new, "--lr", "-1"], "lr must be a finite number > 0, got -1.0"),
        (["train", "vae", "--run", new, *SMALL, *BINARY, "--epochs", "0"], "--epochs must be at least 1"),
        (["train", "vae", "--run", new, *SMALL, *BINARY, "--samples", "-1"], "samples must not be negative"),
        (["train", "vae", "--run", new, *SMALL, *BINARY, "--ema", "2"], "ema must be a decay"),
        (["train", "vae", "--run", new, *SMALL, *BINARY, "--limit", "3"], "leave no tenth to keep from training"),
        (["train", "vae", "--run", new, *SMALL, *BINARY, "--clip-norm", "nan"], "--clip-norm must be a finite"),
        (["train", "vae", "--run", new, *SMALL, *BINARY, "--device", "gpuu"], "--device gpuu: "),
        (["train", "vae", "--run", tmp_path / "saved", *SMALL, *BINARY], "holds a training without run.json"),
        (["train", "--run", new, "--epochs", "0"], "epochs must be at least 1"),
        (["train", "vae", "--run", new, "--limit", "99"], "--set quantization=stochastic (Bernoulli"),
        (
            ["train", "vae", "--run", new, *SMALL, *BINARY, "--set", "latent_dim="],
            "--set latent_dim must be",
        ),
        (["train", "--run", new, "--lr", "nan"], "lr must be a finite number"),
        ([*checkpoint, "--checkpoint", vae_run], "Likelihood is of one model"),
        (["train", "vae", "--run", new, "--attack", "fgsm"], "--attack is an option of a classifier"),
        (["train", "--run", new, "--precision", "bfloat16"], "--precision is an option of a generative model"),
        (["train", "vae", "--run", vae_run, *SMALL, *BINARY], "already holds a run"),
        (["sample", "--checkpoint", vae_run, "--out", tmp_path / "a.gif"], "name it .png or .npz"),
        (["sample", "--checkpoint", tmp_path, "--out", tmp_path / "a.png"], "no checkpoint here"),
        ([*checkpoint, "--detector", "discriminator"], "VAE has no discriminate"),
        ([*checkpoint, "--detector", "likelyhood"], "did you mean 'likelihood'"),
        ([*checkpoint, "--fpr", "0.0001"], "9999 are needed"),
        ([*checkpoint, "--against", "fgsm"], "attacks a classifier"),
        ([*checkpoint, "--against", "noise", "--split", "train"], "are also in digits/train"),
        ([*checkpoint, "--against", "digits"], "are also in digits/test"),
        ([*checkpoint, "--detector", "waic"], "pass --checkpoint more than once"),
        (
            [*checkpoint, "--layers", "conv1"],
            "--layers is of a detector that is fitted on --fit-data; this",
        ),
        (["score", "--checkpoint", tmp_path / "saved", "--data", "digits"], "no run of `robustgen train` here"),
        ([*checkpoint, "--run", vae_run], "--run is of"),
        (
            ["score", "--run", vae_run, "--data", "digits", "--layers", "conv1"],
            "--layers is of a detector that is fitted",
        ),
        (["attack", "--run", vae_run, "--eps", "0.1"], "holds a VAE, not a classifier"),
    ):
        code, _, err = run(capsys, *arguments)
        assert code == 2, (arguments, err)
        assert message in err
        assert err.count("\n") == 1
        assert not new.exists()
        assert not (tmp_path / "saved" / "run.json").exists()


@pytest.mark.filterwarnings("always")
def test_what_cannot_be_kept_is_fitted_each_time(vae_run, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("robustgen.detectors.base.save_tensors", full)
    code, out, err = run(
        capsys, "score", "--checkpoint", vae_run, "--data", "digits", "--detector", "mean-brightness", "--limit", 4
    )
    assert code == 0, err
    assert len(out.splitlines()) == 5
    assert "the fitted detector cannot be kept: [Errno 28]" in err


def test_a_generative_run_is_scored_by_either_name(vae_run, capsys):
    found = [
        run(capsys, "score", name, vae_run, "--data", "digits", "--limit", 4) for name in ("--run", "--checkpoint")
    ]
    assert found[0] == found[1]
    assert found[0][0] == 0
    assert len(found[0][1].splitlines()) == 5


def test_certified_columns(vae_run, capsys, tmp_path):
    arguments = ["score", "--checkpoint", vae_run, "--data", "digits", "--limit", "4", "--certify-radius", "0.5"]
    code, _, err = run(capsys, *arguments, "--detector", "input-complexity")
    assert code == 2
    assert "no bound is known of how far a InputComplexity can be moved: --smooth-sigma 0.25 makes it" in err
    near = ["--detector", "nearest-neighbour"]
    for more in (near, ["--smooth-sigma", "0.2", "--smooth-draws", "20", *near]):
        code, out, err = run(capsys, *arguments, *more)
        assert code == 0, err
        rows = [line.split(",") for line in out.splitlines()]
        assert rows[0] == ["input", "score", "p_value", "flag", "p_lowest", "p_highest"]
        assert all(float(row[4]) <= float(row[2]) <= float(row[5]) for row in rows[1:])
    code, out, err = run(capsys, *arguments, "--detector", "nearest-neighbour", "--out", tmp_path / "rows.csv")
    assert "certified" in out
    code, _, err = run(capsys, *arguments, "--against", "noise")
    assert "name a file for them, --out" in err


def test_typicality_is_fitted_on_images_that_the_model_has_not_seen(vae_run, capsys):
    code, _, err = run(capsys, "score", "--checkpoint", vae_run, "--data", "digits", "--detector", "typicality")
    assert code == 0, err
    rest = data.heldout_classes(data.load("digits", split="train"), [0])[0]
    _, held_back = data.split(rest, (0.9, 0.1), seed=0)
    fresh, calibration = data.split(held_back, (0.5, 0.5), seed=0, stratified=False)
    found = Typicality.load(vae_run / "detectors" / "Typicality", model=load(vae_run))
    expected = -load(vae_run).log_prob(fresh.images()).double().mean()
    torch.testing.assert_close(found.statistics["entropy"], expected.detach())
    assert len(found.calibration.scores) == len(calibration)


@pytest.mark.filterwarnings("always")
def test_a_score_that_points_the_other_way_is_told(vae_run, tmp_path, capsys):
    data.save_npz(tmp_path / "black.npz", data.ArrayDataset(torch.zeros(9, 1, 8, 8), name="black"))
    arguments = ["score", "--checkpoint", vae_run, "--data", "digits", "--detector", "mean-brightness"]
    _, out, _ = run(capsys, *arguments, "--against", "noise", "--against", tmp_path / "black.npz")
    told = [line for line in out.splitlines() if "below 0.5" in line]
    assert len(told) == 1
    assert told[0].startswith("black")


def test_a_model_of_images_without_labels_scores_labelled_ones(tmp_path, capsys):
    data.save_npz(tmp_path / "plain.npz", data.ArrayDataset(data.load("digits", split="train").x))
    new = tmp_path / "run"
    code, _, err = run(capsys, "train", "vae", "--run", new, "--data", tmp_path / "plain.npz", *SMALL, *BINARY)
    assert code == 0, err
    code, out, err = run(capsys, "score", "--checkpoint", new, "--data", "digits", "--against", "noise")
    assert code == 0, err
    assert "in-distribution inputs" in out


def test_baselines_on_the_pixels_of_a_run(vae_run, capsys):
    arguments = ["score", "--checkpoint", vae_run, "--detector", "nearest-neighbour", "--data", "digits", "--json"]
    code, out, err = run(capsys, *arguments, "--against", "heldout")
    assert code == 0, err
    assert json.loads(out)["populations"]["held-out 0"]["auroc"] > 0.9


@pytest.mark.filterwarnings("always")
def test_otherwise_made_pixels_are_told(vae_run, tmp_path, capsys):
    x = data.load("digits").first(50).images()
    data.save_npz(tmp_path / "paler.npz", data.ArrayDataset(0.9 * x))
    code, _, err = run(
        capsys, "score", "--checkpoint", vae_run, "--data", "digits", "--against", tmp_path / "paler.npz"
    )
    assert code == 0
    assert "preprocessed otherwise" in err


@pytest.mark.parametrize("channels", [3, 4])
def test_colour_images_train_with_the_defaults(tmp_path, capsys, channels):
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "colour.npz", x=generator.integers(0, 256, (40, channels, 8, 8), dtype=np.uint8))
    shared = ["--data", tmp_path / "colour.npz", "--epochs", 1, "--batch-size", 20, "--quiet"]
    code, _, err = run(capsys, "train", "pixelcnn", "--run", tmp_path / "run", *shared, "--set", "layers=1")
    assert code == 0, err
    assert load(tmp_path / "run").width == 64


def test_a_hopeless_rate_is_refused_before_a_detector_is_fitted(vae_run, tmp_path, capsys, monkeypatch):
    def never(*_, **__):
        raise AssertionError("fitted")

    scored = ["score", "--checkpoint", vae_run, "--data", "digits", "--fpr", "0.001"]
    monkeypatch.setattr(PCAResidual, "fit", never)
    assert run(capsys, "score", "--checkpoint", vae_run, "--data", "digits", "--out", tmp_path / "rows.csv")[0] == 0
    code, _, err = run(capsys, *scored, "--detector", "likelihod")
    assert (code, "unknown detector 'likelihod'; did you mean 'likelihood'" in err) == (2, True)
    for detector in ("likelihood", "pca-residual"):  # one is kept in the run
        code, out, err = run(capsys, *scored, "--detector", detector)
        assert (code, out) == (2, "")
        assert "cannot give a false-alarm rate of 0.001" in err


def test_a_file_asks_for_no_more_time_than_is_meant(tmp_path):
    for model, name in ((EnergyModel((1, 4, 4), width=2), "sample_steps"), (PixelCNN((1, 4, 4), width=2), "layers")):
        model.save(tmp_path / name)
        path = latest_checkpoint(tmp_path / name) / "config.json"
        head = json.loads(path.read_text())
        head["config"]["model"][name] = 500_000
        path.write_text(json.dumps(head))
        with pytest.raises(ValueError, match=rf"config\.json: config\.model\.{name} must be a whole number from 1 to"):
            load(tmp_path / name)


def test_named_sets_are_where_those_of_the_run_were(vae_run, tmp_path):
    shutil.copytree(vae_run, tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    info = json.loads(path.read_text())
    info["data"]["root"] = "somewhere"
    path.write_text(json.dumps(info))
    assert kept_by_run(DataSpec("mnist"), tmp_path / "run").root == "somewhere"
    assert kept_by_run(DataSpec("mnist", "elsewhere"), tmp_path / "run").root == "elsewhere"
    assert kept_by_run(DataSpec("mnist", download=True), tmp_path / "run").root is None
    assert kept_by_run(DataSpec("mnist"), tmp_path).root is None


def test_samples_are_of_a_run_too(vae_run, tmp_path, capsys):
    assert run(capsys, "sample", "--run", vae_run, "--out", tmp_path / "a.png", "--n", 2)[0] == 0


def test_what_lies_between_two_noises_and_what_a_model_makes_of_images(vae_run, tmp_path, capsys):
    model, out = load(vae_run), tmp_path / "a.npz"
    assert run(capsys, "sample", "--run", vae_run, "--interpolate", 2, "--seed", 3, "--out", out)[0] == 0
    x = np.load(out)["x"]
    assert x.shape == (16, 1, 8, 8)
    ends = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(3))
    middle = math.cos(math.pi / 7) * ends[0] + math.sin(math.pi / 7) * ends[1]
    with torch.no_grad():
        for row, eps in ((0, ends[0]), (2, middle), (7, ends[1])):
            expected = 255 * model.from_noise(eps).clamp(0, 1).numpy()
            np.testing.assert_allclose(x[[row, row + 8]], expected, atol=0.51)
    asked = ["sample", "--run", vae_run, "--reconstruct", "--n", 3, "--out", out]
    assert run(capsys, *asked)[0] == 0
    x = np.load(out)["x"]
    assert x.shape == (6, 1, 8, 8)
    np.testing.assert_array_equal(x[::2], (255 * data.digits("test").take(3).images()).round().numpy())
    with torch.no_grad():
        expected = 255 * model.reconstruct(torch.from_numpy(x[::2]) / 255).numpy()
    np.testing.assert_allclose(x[1::2], expected, atol=1)
    for options, size in ((["--interpolate", 3], (8 * 10 + 2, 3 * 10 + 2)), (asked[3:6], (4 * 10 + 2, 2 * 10 + 2))):
        assert run(capsys, "sample", "--run", vae_run, *options, "--out", tmp_path / "a.png")[0] == 0
        with Image.open(tmp_path / "a.png") as picture:
            assert picture.size == size


def test_a_diffusion_is_trained_and_drawn_with_other_steps_and_guidance(vae_run, tmp_path, capsys):
    where, out = tmp_path / "ddpm", tmp_path / "a.npz"
    settings = ("steps=30", "sample_steps=4", "classes=10", "width=4", "levels=1")
    options = [part for setting in settings for part in ("--set", setting)]
    small = ["--limit", 60, "--epochs", 2, "--batch-size", 8, "--samples", 1, *options]
    assert run(capsys, "train", "ddpm", "--data", "digits", "--run", where, *small)[0] == 0
    drawn = []
    for asked in ([], ["--steps", 2], ["--guidance", 1000]):
        assert run(capsys, "sample", "--run", where, *asked, "--n", 2, "--out", out)[0] == 0
        drawn.append(np.load(out)["x"])
    assert all((drawn[0] != other).any() for other in drawn[1:])
    out.unlink()
    for which, asked, message in (
        (where, ["--steps", 31], "--steps 31: sample_steps=31 is more than the steps=30 that are trained"),
        (where, ["--guidance", -1], "--guidance -1: guidance must be a finite number >= 0"),
        (where, ["--steps", 3, "--reconstruct"], "--steps and --guidance are of samples"),
        (vae_run, ["--steps", 3], "--steps 3: a VAE has no sample_steps"),
        (vae_run, ["--guidance", 2], "--guidance 2: a VAE has no guidance"),
    ):
        code, _, err = run(capsys, "sample", "--run", which, *asked, "--out", out)
        assert (code, err.count("\n")) == (2, 1), err
        assert message in err
    assert not out.exists()


def test_images_are_edited_by_diffusing_them_and_coming_back(tmp_path, capsys):
    model, run_dir, out = DDGAN((1, 8, 8), width=4, levels=2).eval(), tmp_path / "ddgan", tmp_path / "a.npz"
    model.save(run_dir)
    asked = ["sample", "--run", run_dir, "--edit", 2, "--data", "digits", "--n", 3, "--seed", 5, "--out", out]
    assert run(capsys, *asked)[0] == 0
    x, given = np.load(out)["x"], data.digits("test").take(3).images()
    np.testing.assert_array_equal(x[::2], (255 * given).round().numpy())
    with seeded(5):
        np.testing.assert_allclose(x[1::2], 255 * model.edit(given, 2).numpy(), atol=0.51)


def test_other_models_and_options_are_refused_in_one_line(vae_run, tmp_path, capsys):
    PixelCNN((1, 8, 8), width=2, layers=1).save(tmp_path / "cnn")
    DDGAN((1, 8, 8), width=4, levels=2).save(tmp_path / "ddgan")
    np.savez(tmp_path / "large.npz", x=np.zeros((3, 1, 9, 9), np.uint8))
    for where, options, message in (
        (tmp_path / "cnn", ["--interpolate", 2], "PixelCNN makes no images of normal noise alone"),
        (tmp_path / "cnn", ["--reconstruct", "--data", "digits"], "PixelCNN does not reconstruct images"),
        (tmp_path / "cnn", ["--edit", 2, "--data", "digits"], "PixelCNN edits no images: it is no diffusion"),
        (tmp_path / "ddgan", ["--edit", 5, "--data", "digits"], "depth=5 is more than the 4 steps that were trained"),
        (vae_run, ["--edit", 2, "--reconstruct"], "two kinds of pairs: leave one out"),
        (vae_run, ["--interpolate", 2, "--n", 3], "leave out --n, --reconstruct and --edit"),
        (vae_run, ["--interpolate", 2, "--reconstruct"], "leave out --n, --reconstruct and --edit"),
        (vae_run, ["--data", "digits"], "--data and the options on it go with --reconstruct"),
        (vae_run, ["--reconstruct", "--n", 0], "n must be at least 1"),
        (vae_run, ["--reconstruct", "--data", tmp_path / "large.npz"], "holds inputs of shape (1, 9, 9)"),
    ):
        code, _, err = run(capsys, "sample", "--run", where, *options, "--out", tmp_path / "a.png")
        assert (code, err.count("\n")) == (2, 1), err
        assert message in err
    assert not (tmp_path / "a.png").exists()
