"""``robustgen train char-lm``: trained, stopped, resumed, drawn from and scored; what its files may do."""

import csv
import json
import math
import shutil

import pytest
import torch

from robustgen import cli
from robustgen.commands import text
from robustgen.data import babble, encode, load_text, windows
from robustgen.fortified import FortifiedNetwork
from robustgen.recurrent_networks import CharLM
from robustgen.training import latest_checkpoint

SMALL = ["--set", "units=16", "--set", "rnn=gru", "--quiet"]


def run(capsys, *arguments):
    code = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a text, another one by the same author, and a run of two epochs on the first."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "read.txt").write_text(babble(12_000))
    (folder / "other.txt").write_text(babble(3_000, seed=1).capitalize() + ".\n")
    arguments = ["train", "char-lm", "--data", str(folder / "read.txt"), "--run", str(folder / "run")]
    assert cli.main([*arguments, *SMALL, "--epochs", "2"]) == 0
    return folder


def opened(folder):
    return FortifiedNetwork.load(folder, model=CharLM("gru", 16))


def test_a_stopped_run_goes_on_as_if_it_had_not_been(capsys, trained, tmp_path):
    train = ["train", "char-lm", "--data", trained / "read.txt", "--run", tmp_path, *SMALL]
    assert run(capsys, *train, "--epochs", 1)[0] == 0
    code, out, _ = run(capsys, "train", "--run", tmp_path, "--resume", "--epochs", 2, "--quiet", "--json")
    assert (code, json.loads(out)["epochs"]) == (0, 2)
    (whole, resumed) = (latest_checkpoint(folder) / "model.safetensors" for folder in (trained / "run", tmp_path))
    assert whole.read_bytes() == resumed.read_bytes()
    for epoch in ("0001", "0002"):
        drawn = [folder / "samples" / f"epoch-{epoch}.txt" for folder in (trained / "run", tmp_path)]
        assert drawn[0].read_text() == drawn[1].read_text() != ""


def test_it_learns_and_says_so(capsys, trained, tmp_path):
    train = ["train", "char-lm", "--data", trained / "read.txt", "--run", tmp_path, *SMALL[:-1], "--epochs", 1]
    code, out, err = run(capsys, *train)
    rows = [json.loads(line) for line in (trained / "run" / "metrics.jsonl").read_text().splitlines()]
    bits = [row["val_bits_per_character"] for row in rows]
    assert code == 0
    assert f"epoch 1: {bits[0]:.3f} bits per character of held-back text: " in err
    assert f"val_bits_per_character: {bits[0]:.4g}\n" in out
    assert bits[1] < bits[0] < math.log2(27)  # what guessing costs


def test_samples(capsys, trained, tmp_path):
    sample = ["sample", "--checkpoint", trained / "run", "--length", 30, "--quiet"]
    code, out, err = run(capsys, *sample, "--n", 2, "--prompt", "The Queen,", "--seed", 3)
    assert (code, err) == (0, "")
    first, second = out.removesuffix("\n").split("\n\n")
    assert first != second
    assert all(len(drawn) == 40 and drawn.startswith("the queen ") for drawn in (first, second))
    written = ["--n", 2, "--prompt", "the queen ", "--seed", 3, "--out", tmp_path / "a.txt"]
    assert run(capsys, *sample, *written)[1] == f"{tmp_path / 'a.txt'}\n"
    assert (tmp_path / "a.txt").read_text().splitlines() == [first, second]
    assert run(capsys, *sample, "--seed", 4)[1] != run(capsys, *sample, "--seed", 5)[1]
    cold = run(capsys, *sample, "--prompt", "th", "--temperature", 1e-4)[1].strip("\n")  # as good as the likeliest
    symbols = encode(cold)[None]
    with torch.no_grad():
        logits = opened(trained / "run")(symbols[:, :-1])[0, 1:]
    assert bool((logits.amax(1) - logits.gather(1, symbols.T[2:])[:, 0] < 5e-3).all())


def test_scores_are_bits_per_character(capsys, trained, tmp_path):
    """Beside the network that is asked for one symbol after another, and with ranks among the held-back windows."""
    score = ["score", "--run", trained / "run", "--data", trained / "other.txt"]
    code, out, err = run(capsys, *score, "--out", tmp_path / "s.csv", "--fpr", 0.1, "--json")
    found, rows = json.loads(out), list(csv.DictReader((tmp_path / "s.csv").read_text().splitlines()))
    texts, network = windows(load_text(trained / "other.txt"), 101), opened(trained / "run").double()
    assert (code, err, len(rows), found["windows"]) == (0, "", len(texts), len(texts))
    bits, state = torch.zeros(len(texts), dtype=torch.float64), None
    with torch.no_grad():
        for now, after in zip(texts[:, :-1].T, texts[:, 1:].T, strict=True):
            logits, state = network.backbone(now[:, None], state)
            bits -= logits[:, 0].log_softmax(1).gather(1, after[:, None])[:, 0] / math.log(2) / 100
    measured = torch.tensor([float(row["score"]) for row in rows], dtype=torch.float64)
    torch.testing.assert_close(measured, bits, rtol=1e-5, atol=0)
    assert found["bits per character"] == pytest.approx(float(bits.mean()), rel=1e-5)
    order = bits.argsort()
    p = torch.tensor([float(row["p_value"]) for row in rows])[order]
    assert bool((p[1:] <= p[:-1]).all())
    assert all((float(row["p_value"]) <= 0.1) == (row["flag"] == "True") for row in rows)

    (tmp_path / "keys.txt").write_text("qzxjkvw" * 100)
    code, out, _ = run(capsys, *score[:-1], tmp_path / "keys.txt", "--fpr", 0.1)
    rows = list(csv.DictReader(out.splitlines()))
    assert (code, {row["flag"] for row in rows}, min(float(row["score"]) for row in rows) > 4.5) == (0, {"True"}, True)
    last = json.loads((trained / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert found["of held-back text"] == pytest.approx(last["val_bits_per_character"], rel=1e-5)


def test_a_run_of_another_kind_is_said_in_a_line(capsys, trained, tmp_path):
    held = trained / "run"
    no_classifier = "holds a model of text, not a classifier"
    no_images = "holds a model of text, not of images"
    for arguments, line in (
        (["attack", "--run", held, "--data", "digits"], no_classifier),
        (["certify", "--run", held, "--denoiser", held, "--sigma", 0.5], no_classifier),
        (["quality", "--checkpoint", held], no_images),
        (["score", "--checkpoint", held, "--data", "digits"], no_images),
        (["score", "--run", held, "--data", "digits"], "digits: no such file"),
        (["score", "--run", held, "--data", trained / "other.txt", "--limit", 3], "--limit is of no use"),
        (["score", "--run", held, "--data", trained / "read.txt"], "was trained on all of"),
        (["sample", "--checkpoint", held, "--out", tmp_path / "x.png"], "name it .txt"),
        (["sample", "--checkpoint", held, "--interpolate", 2], "--interpolate is about images"),
        (["sample", "--checkpoint", held, "--n", 0], "--n must be"),
        (["sample", "--checkpoint", "example:digits", "--prompt", "a"], "--prompt is about text"),
        (["train", "tilted", "--base", held, "--data", "digits", "--run", tmp_path / "t"], no_images),
    ):
        code, _, err = run(capsys, *arguments)
        assert (code, err.count("\n"), line in err) == (2, 1, True), err


@pytest.mark.parametrize(
    ("held", "line"),
    [
        (b"", "the text is empty"),
        (b"\xff\xfe\x00a" * 900, "not UTF-8 text (byte 0)"),
        ("zoë has " * 50, "350 letters and spaces; 1010 are needed"),
        ("too long " * 200, "1800 bytes of text, more than the 1500 that are read"),
        (None, "no such file"),
    ],
)
def test_a_text_that_cannot_be_read_leaves_nothing(capsys, tmp_path, monkeypatch, held, line):
    monkeypatch.setattr(text, "LARGEST", 1500 if held == "too long " * 200 else 10**5)
    if held is not None:
        (tmp_path / "a.txt").write_bytes(held if isinstance(held, bytes) else held.encode())
    code, _, err = run(capsys, "train", "char-lm", "--data", tmp_path / "a.txt", "--run", tmp_path / "run", "--quiet")
    assert (code, err.count("\n"), line in err, (tmp_path / "run").exists()) == (2, 1, True, False), err


def test_options_that_make_no_model(capsys, trained, tmp_path):
    train = ["train", "char-lm", "--run", tmp_path / "run", "--quiet"]
    of_text = [*train, "--data", trained / "read.txt"]
    for arguments, line in (
        (train, "pass --data FILE"),
        ([*of_text, "--limit", 5], "--limit is about images"),
        ([*of_text, "--fortify", "auto"], "--fortify is an option of a classifier"),
        ([*of_text, "--set", "layers=2"], "no such argument"),
        ([*of_text, "--set", "units=0"], "units must be"),
        ([*of_text, "--set", "rnn=lstn"], "did you mean 'lstm'"),
        ([*of_text, "--set", "rnn=3"], "unknown recurrent layer 3"),
        ([*of_text, "--epochs", 0], "--epochs must be"),
        ([*of_text, "--lr", -1], "--lr must be"),
        ([*of_text, "--no-guard"], "char-lm has no guard"),
        (["train", "ddpm", "--data", "digits", "--limit", 40, *train[2:], "--no-guard"], "a DDPM has no guard"),
    ):
        code, _, err = run(capsys, *arguments)
        assert (code, err.count("\n"), line in err, (tmp_path / "run").exists()) == (2, 1, True, False), err


@pytest.mark.parametrize("settings", [[], {"units": "16"}, {"units": 10**9}, {"units": 10**5}, {"n_symbols": 5}])
def test_settings_in_a_file_are_not_believed(capsys, trained, tmp_path, settings):
    shutil.copytree(trained / "run", tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"language_model": settings}))
    code, _, err = run(capsys, "sample", "--checkpoint", tmp_path / "run")
    assert (code, err.count("\n")) == (2, 1), err
    assert "run.json" in err or "does not fit this network" in err
