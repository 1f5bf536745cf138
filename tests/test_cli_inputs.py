"""What the command makes of its options and of what it reads: fractions, empty values, names, data of no use."""

import csv
import json
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from robustgen import cli
from robustgen.commands import write_rows
from robustgen.data import load
from robustgen.files import save_tensors
from robustgen.networks import build, convnet, encoder, mlp, resnet, strided
from robustgen.printable import printable
from robustgen.recurrent_networks import CharLM, TextClassifier

SMALL = ["--model", "mlp", "--width", "4", "--epochs", "1", "--quiet"]


def run(capsys, *arguments):
    code = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys, *arguments):
    """The one line of a call that is wrong use."""
    code, _, err = run(capsys, *arguments)
    assert (code, err.count("\n")) == (2, 1), (arguments, err)
    assert err.startswith("robustgen: error: ")
    return err


def test_eps_is_a_number_or_a_fraction(capsys, tmp_path):
    common = ["train", *SMALL, "--attack", "fgsm", "--limit", 50]
    for k, (eps, value) in enumerate((("8/255", 8 / 255), ("0.1", 0.1), ("1e-3", 1e-3))):
        code, _, err = run(capsys, *common, "--run", tmp_path / str(k), "--eps", eps)
        assert code == 0, err
        assert json.loads((tmp_path / str(k) / "run.json").read_text())["training"]["eps"] == value
    for command in (common, ["attack", "--run", tmp_path], ["score", "--run", tmp_path, "--data", "digits"]):
        for wrong in ("8/0", "nan", "-1", "0", "inf", "8/", "/8", "1/2/3", "eight", "8:255"):
            where = ["--run", tmp_path / "new"] if command is common else []
            assert f"'--eps': {wrong}: it is a number > 0" in refused(capsys, *command, *where, "--eps", wrong)
    assert not (tmp_path / "new").exists()
    assert "8/255" in run(capsys, "attack", "--help")[1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--run", "{tmp}/r", "--data", ""],
        ["train", "--run", ""],
        ["train", "--run", "{tmp}/r", "--data="],
        ["train", "--run", "{tmp}/r", "--model", ""],
        ["train", "--run", "{tmp}/r", "--device", ""],
        ["train", "--run", "{tmp}/r", "--adversarial", ""],
        ["train", "--run", "{tmp}/r", "--weights", ""],
        ["train", "", "--run", "{tmp}/r"],
        ["attack", "--run", "{tmp}", "--out", ""],
        ["attack", "--run", "{tmp}", "--surrogate", ""],
        ["attack", "--run", "{tmp}", "--suite", ""],
        ["score", "--data", "", "--run", "{tmp}"],
        ["score", "--data", "digits", "--checkpoint", "{tmp}", "--detector", ""],
        ["score", "--data", "digits", "--run", "{tmp}", "--against", ""],
        ["score", "--data", "digits", "--run", "{tmp}", "--layers="],
        ["sample", "--checkpoint", "{tmp}", "--out", ""],
        ["report", ""],
        ["report", "{tmp}", "--out", ""],
        ["reproduce", "", "--list"],
        ["reproduce", "--list", "--out", ""],
        ["demo", "--out", ""],
    ],
)
def test_an_empty_value_is_no_default(capsys, tmp_path, arguments):
    assert "is empty: give it a value" in refused(capsys, *(a.format(tmp=tmp_path) for a in arguments))
    assert not list(tmp_path.iterdir())


def test_zero_is_no_default(capsys, tmp_path):
    for arguments, message in (
        (["--width", 0], "width must be at least 1, got 0"),
        (["--width", -1], "width must be at least 1, got -1"),
        (["--fortify", "auto", "--hidden", 0], "hidden must be at least 1"),
        (["--fortify", ""], "no layers to fortify"),
        (["--limit", 0], "Invalid value for '--limit'"),
        (["--limit", -5], "Invalid value for '--limit'"),
        (["--epochs", 0], "epochs must be at least 1"),
        (["--batch-size", 0], "--batch-size must be at least 1"),
        (["--lr", 0], "lr must be"),
    ):
        assert message in refused(capsys, "train", "--run", tmp_path / "r", "--quiet", *arguments)
    assert not (tmp_path / "r").exists()
    for name in ("convnet", "mlp", "resnet"):
        with pytest.raises(ValueError, match="width must be at least 1"):
            build(name, torch.zeros(1, 1, 8, 8), 10, 0)
    for make in (
        lambda: convnet(width=0),
        lambda: convnet(n_classes=0),
        lambda: encoder(width=0),
        lambda: encoder(image_size=0),
        lambda: convnet(image_size=(8, 0)),
        lambda: strided(image_size=0),
        lambda: mlp(4, [0], 2),
        lambda: resnet(widths=(4, 0)),
        lambda: CharLM(embedding=0),
        lambda: TextClassifier(units=0),
    ):
        with pytest.raises(ValueError, match="must be at least 1, got 0"):
            make()
    with pytest.raises(ValueError, match="name or path of the data set is empty"):
        load("")


def test_what_cannot_be_trained_leaves_nothing(capsys, tmp_path, monkeypatch):
    """Data of one class, too few of them, a device that computes nothing, a network that does not fit the data."""
    (tmp_path / "own_networks_for_tests.py").write_text(
        "from torch import nn\n"
        "def net(n_inputs, n_classes, *more):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(n_inputs, 8), *more, nn.ReLU(), nn.Linear(8, n_classes))\n"
        "def few_classes():\n    return net(64, 9)\n"
        "def other_inputs():\n    return net(65, 10)\n"
        "def batch_norm():\n    return net(64, 10, nn.BatchNorm1d(8))\n"
        "class Noisy(nn.Module):\n    def forward(self, x):\n        return x + x.new_empty(x.shape).normal_()\n"
        "def noisy():\n    return net(64, 10, Noisy())\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    np.savez(tmp_path / "one.npz", x=np.zeros((40, 8, 8), np.uint8), y=np.zeros(40, int))
    np.savez(tmp_path / "two.npz", x=np.zeros((40, 8, 8), np.uint8), y=np.arange(40) % 2)
    own = "own_networks_for_tests:"
    auto = ["--fortify", "auto"]
    for arguments, message in (
        (["--data", tmp_path / "one.npz"], "one.npz: all examples to train on are of the class '0'"),
        (["--data", tmp_path / "two.npz", "--hold-out", 1], "two.npz: all examples to train on are of the class '0'"),
        (
            ["--limit", 1],
            "digits/train: 1 example leaves no tenth to keep from training: pass more data, or a larger --limit",
        ),
        (["--device", "meta"], "--device meta: "),
        (["--device", "cuda:99"], "--device cuda:99: "),
        (["--device", "fridge"], "--device fridge: "),
        (["--model", f"{own}few_classes"], "digits/train has 10 classes, the network has 9"),
        (["--model", f"{own}other_inputs"], "the model fails on inputs of shape (1, 8, 8)"),
        (["--model", f"{own}batch_norm", "--batch-size", 1], "more than 1 value per channel"),
        (["--model", f"{own}noisy", *auto], "the model is stochastic in eval mode"),
        ([*auto, "--input-autoencoder", "--freeze-backbone", "--weights", tmp_path / "mlp"], "FortifiedObjective"),
    ):
        if "--weights" in arguments:
            assert run(capsys, "train", "--run", tmp_path / "mlp", *SMALL, "--limit", 50)[0] == 0
        model = SMALL if "--model" not in arguments else SMALL[4:]
        assert message in refused(capsys, "train", "--run", tmp_path / "r", *model, *arguments)
        assert not (tmp_path / "r").exists()
    vae = ["train", "vae", "--run", tmp_path / "r", "--quiet", "--set", "quantization=nearest"]
    assert "--device meta: it holds no numbers" in refused(capsys, *vae, "--device", "meta")
    for command in (["attack"], ["score", "--fit-data", "digits"]):
        arguments = [*command, "--run", tmp_path / "mlp", "--data", "digits", "--limit", 5, "--device", "meta"]
        assert "--device meta: " in refused(capsys, *arguments)
    assert not (tmp_path / "r").exists()


def test_names_of_files_are_text(capsys, tmp_path):
    """In a spreadsheet no name is a formula; on the terminal none moves the cursor; JSON keeps the name."""
    names = ["=1+1.png", "+a.png", "-a.png", "@a.png", "\ta.png", "a\x1b[2Jb.png", "a\nb.png", "plain.png"]
    cells = ["'=1+1.png", "'+a.png", "'-a.png", "'@a.png", "'\\x09a.png", "a\\x1b[2Jb.png", "a\\x0ab.png", "plain.png"]
    rows = [{"input": name, "score": -1.5, "p_value": 0.5, "flag": False} for name in names]
    write_rows(rows, tmp_path / "rows.csv")
    found = list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()))
    assert [row["input"] for row in found] == cells
    assert {row["score"] for row in found} == {"-1.5"}
    write_rows(rows, tmp_path / "rows.jsonl")
    assert [json.loads(line)["input"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == names
    write_rows(rows, None)
    assert "\x1b" not in capsys.readouterr().out


def test_control_characters_are_written_out(capsys, tmp_path):
    assert printable("a\x1b[31m\x07\x9b\x7f\u202e\u2028\udcffb\tc\n") == (
        "a\\x1b[31m\\x07\\x9b\\x7f\\u202e\\u2028\\udcffb\tc\n"
    )
    evil = "\x1b]0;owned\x07"
    err = refused(capsys, "report", tmp_path / f"{evil}.json")
    assert "\\x1b]0;owned\\x07.json: no such report" in err
    folder = tmp_path / "images"
    for name in (f"{evil}a", f"{evil}b"):
        (folder / name).mkdir(parents=True)
        for k in range(10):
            Image.fromarray(np.full((8, 8), k, np.uint8)).save(folder / name / f"{k}.png")
    assert run(capsys, "train", "--run", tmp_path / f"{evil}r", "--data", folder, *SMALL)[0] == 0
    outputs = [
        run(capsys, "train", "--run", tmp_path / f"{evil}s", "--data", folder, *SMALL, "--hold-out", "c"),
        run(capsys, "attack", "--run", tmp_path / f"{evil}nothing"),
    ]
    (tmp_path / "report.json").write_text(json.dumps({"format": 1, "networks": [], "title": evil, "command": evil}))
    outputs.append(run(capsys, "report", tmp_path, "--markdown"))
    for code, out, err in outputs:
        assert "\x1b" not in out + err
        assert "\\x1b" in out + err, (code, out, err)


def test_weights_in_another_format_are_called_what_they_are(capsys, tmp_path):
    state = mlp(64, [4, 4], 10).state_dict()
    np.savez(tmp_path / "arrays.npz", w=np.zeros(3))
    (tmp_path / "keras.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64))
    (tmp_path / "graph.onnx").write_bytes(b"\x08\x07\x12\x07pytorch" + bytes(64))
    (tmp_path / "language.gguf").write_bytes(b"GGUF" + bytes(64))
    (tmp_path / "text.safetensors").write_text("hello, I am not weights at all")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    header = b'{"w":{"dtype":"F32","shape":[1000000000],"data_offsets":[0,4000000000]}}'
    (tmp_path / "huge.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    for name, message in {
        "arrays.npz": "a .npz archive, not weights",
        "keras.h5": "an HDF5 file",
        "graph.onnx": "an ONNX graph",
        "language.gguf": "a GGUF file",
        "text.safetensors": "not a complete safetensors file",
        "empty.safetensors": "not a complete safetensors file",
        "huge.safetensors": "not a complete safetensors file",
        "missing.safetensors": "no such file",
    }.items():
        err = refused(capsys, "train", "--run", tmp_path / "r", *SMALL, "--weights", tmp_path / name)
        assert f"{name}: {message}" in err
    whole = {k: (100 * v).round().long() for k, v in state.items()}
    save_tensors(tmp_path / "whole.safetensors", whole)
    err = refused(capsys, "train", "--run", tmp_path / "s", *SMALL, "--weights", tmp_path / "whole.safetensors")
    assert "1.weight is torch.int64, the network has torch.float32" in err


def test_a_function_that_needs_arguments_is_no_network(capsys, tmp_path, monkeypatch):
    (tmp_path / "own_builders.py").write_text(
        "from torch import nn\n"
        "def wide(width, *, depth, bias=True):\n    return nn.Linear(64, width)\n"
        "def any_of(*args, **kwargs):\n    return 5\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = refused(capsys, "attack", "--model", "own_builders:wide", "--data", "digits")
    assert "--model own_builders:wide: wide needs arguments (width, depth): name a function that needs none" in found
    assert "returned int" in refused(capsys, "attack", "--model", "own_builders:any_of", "--data", "digits")


def test_messages_on_files_say_what_to_change_in_the_file(capsys, tmp_path):
    levels = np.arange(50 * 64).reshape(50, 8, 8) % 256
    wrong = {
        "floats": ({"x": levels.astype(np.float32)}, "divide pixels of 0..255 by 255"),
        "gap": (
            {"x": levels.astype(np.uint8), "y": np.array([0, 2] * 25)},
            "if 2 says of no class, leave its examples out of the file",
        ),
        "cube": (
            {"x": np.zeros((5, 8, 8, 8), np.uint8)},
            "add an array 'layout' that says 'NCHW' or 'NHWC' to the file",
        ),
    }
    for name, (arrays, message) in wrong.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        assert message in refused(capsys, "train", "--run", tmp_path / "r", "--data", tmp_path / f"{name}.npz")


def test_score_refuses_what_it_has_no_use_for(capsys):
    scored = ["score", "--run", "example:digits", "--data", "digits", "--limit", 20]
    for option in (["--layers", 3], ["--epochs", 9], ["--batch-size", 9], ["--fit-data", "digits"]):
        line = f"{option[0]} is of a detector that is fitted on --fit-data; this is a fortified --run"
        assert line in refused(capsys, *scored, *option)
    assert "--detector is of a run of a generative model" in refused(capsys, *scored, "--detector", "waic")
    for option in (["--eps", "0.1"], ["--norm", "l2"]):
        assert f"{option[0]} is of the attacks" in refused(capsys, *scored, "--against", "noise", *option)
    assert run(capsys, *scored, "--against", "fgsm", "--eps", "0.1")[0] == 0
    assert "--smooth-draws goes with" in refused(capsys, *scored, "--smooth-draws", 9)
    assert "--against: unknown data set 'digitss'" in refused(capsys, *scored, "--against", "digitss")


def test_a_folder_of_other_classes_than_the_network_is_refused(capsys, tmp_path, monkeypatch):
    for name in ("cat", "dog", "ship"):
        (tmp_path / "three" / name).mkdir(parents=True)
        for k in range(2):
            Image.new("L", (4, 4), 40 * k).save(tmp_path / "three" / name / f"{k}.png")
    (tmp_path / "nets_of_sizes.py").write_text(
        "from torch import nn\n\ndef of(n):\n    return nn.Sequential(nn.Flatten(), nn.Linear(16, n))\n\n"
        "def two():\n    return of(2)\n\ndef three():\n    return of(3)\n\ndef ten():\n    return of(10)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    data = ["--data", tmp_path / "three", "--quiet"]
    for model, outputs in (("two", 2), ("ten", 10)):
        line = f"three has 3 classes (cat, dog, ship), the network has {outputs}: labels"
        assert line in refused(capsys, "attack", "--model", f"nets_of_sizes:{model}", *data)
        assert line in refused(capsys, "certify", "--model", f"nets_of_sizes:{model}", "--sigma", "0.5", *data)
    run(capsys, "attack", "--model", "nets_of_sizes:three", "--no-masking-tests", *data)


def test_a_diffusion_gan_is_scored_by_its_discriminator_unless_a_detector_is_named(capsys, tmp_path):
    gan = ["train", "ddgan", "--data", "digits", "--limit", 300, "--epochs", 1, "--quiet", "--run", tmp_path / "gan"]
    code, _, err = run(capsys, *gan, "--set", "width=4")
    assert code == 0, err
    scored = ["--data", "digits", "--against", "noise", "--limit", 30, "--quiet"]
    code, out, err = run(capsys, "score", "--checkpoint", tmp_path / "gan", *scored)
    assert code == 0, err
    assert "uniform noise: AUROC" in out
