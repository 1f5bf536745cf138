"""A run directory from somebody else is data: nothing in it runs, is fetched, or takes memory."""

import json
import os
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustgen import cli, data
from robustgen.commands.data_spec import DataSpec
from robustgen.commands.opening import load_run
from robustgen.commands.run_info import read_info, recorded_data
from robustgen.detectors import ReconstructionError
from robustgen.detectors import load as load_detector
from robustgen.files import load_tensors, save_tensors
from robustgen.fortified import FortifiedNetwork
from robustgen.generative import load as load_generative

SMALL = ["--data", "digits", "--limit", "200", "--epochs", "1", "--batch-size", "100", "--quiet"]
PLANTED = """
import pathlib
pathlib.Path({marker!r}).touch()
from torch import nn
def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 10))
"""


def run(capsys, *arguments):
    code = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """Runs of a network that is a module's, which writes a marker when it is imported; a folder that holds it."""
    name, marker = "planted_for_tests", tmp_path / "marker"
    (tmp_path / f"{name}.py").write_text(PLANTED.format(marker=str(marker)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for run_name, fortify in (("plain", []), ("fortified", ["--fortify", "auto", "--detach-states"])):
        arguments = ["train", "--run", str(tmp_path / run_name), "--model", f"{name}:build", *SMALL, *fortify]
        assert cli.main(arguments) == 0
    forget(name)
    marker.unlink()
    sys.path[:] = [p for p in sys.path if p != str(tmp_path)]
    yield tmp_path, f"{name}:build", marker
    forget(name)


def forget(name):
    sys.modules.pop(name, None)


@pytest.mark.filterwarnings("ignore:the fortified network decides", "ignore:clean accuracy")
def test_code_that_a_run_names_runs_only_when_the_user_names_it(planted, capsys):
    folder, model, marker = planted
    plain, fortified = folder / "plain", folder / "fortified"
    score = ["score", "--data", "digits", "--limit", 5, "--run"]
    attack = ["attack", "--limit", 5, "--eps", "8/255", "--no-masking-tests", "--quiet"]
    data = ["--fit-data", "digits", "--epochs", 1, "--quiet"]
    refused = [
        [*score, plain, *data],
        [*score, fortified],
        [*attack, "--run", plain],
        [*attack, "--run", fortified, "--detector", "--fpr", 0.5],
        [*attack, "--run", fortified, "--surrogate", plain, "--model", model],
    ]
    for arguments in refused[:-1]:
        code, _, err = run(capsys, *arguments)
        assert (code, err.count("\n")) == (2, 1), err
        assert f"run.json: names code as its network, '{model}'" in err
        assert not marker.exists()
    with pytest.raises(ValueError, match="names code"):
        load_run(plain)
    for arguments in (  # these have no use for the network's code
        ["train", "--run", folder / "new", "--weights", plain, "--model", "mlp", "--width", 6, *SMALL],
        ["sample", "--checkpoint", plain, "--out", folder / "x.png"],
        ["score", "--checkpoint", plain, "--data", "digits"],
        ["train", "--run", plain, "--resume", *SMALL],
        ["report", plain],
    ):
        code, _, err = run(capsys, *arguments)
        assert (code, err.count("\n")) == (2, 1), (arguments, err)
        assert not marker.exists()
    assert str(folder) not in sys.path

    for arguments in ([*refused[0], "--trust"], [*refused[1], "--model", model], [*refused[2], "--model", model]):
        code, _, err = run(capsys, *arguments)
        assert code == 0, err
        assert marker.exists()
    code, _, err = run(capsys, *refused[-1])
    assert (code, "pass --trust" in err) == (2, True)
    assert run(capsys, *refused[-1], "--trust")[0] == 0
    code, _, err = run(capsys, *attack, "--data", "digits", "--model", model, "--trust")
    assert (code, "--trust is about" in err) == (2, True)


def test_a_builtin_network_with_model_is_the_users(planted, capsys):
    """--model says what the network of a run is, and weights that do not fit it are refused."""
    folder, model, _ = planted
    assert run(capsys, "train", "--run", folder / "mlp", "--model", "mlp", "--width", 3, *SMALL)[0] == 0
    code, _, err = run(capsys, "attack", "--run", folder / "mlp", "--model", model, "--limit", 5)
    assert (code, "does not fit this network" in err) == (2, True)
    code, _, err = run(capsys, "attack", "--run", folder / "mlp", "--model", "mlp", "--limit", 5)
    assert (code, "a network of your own is module:function" in err) == (2, True)


def test_no_name_in_a_file_reaches_an_import(planted, capsys):
    """Classes of detectors and models, activations and layers are looked up among the known ones."""
    folder, _, marker = planted
    name = "planted_for_tests:build"

    def changed(path, change):
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))

    vae = folder / "vae"
    tiny = ["--set", "architecture=mlp", "--set", "width=4", "--set", "latent_dim=2", "--set", "quantization=nearest"]
    assert run(capsys, "train", "vae", "--run", vae, *tiny, *SMALL, "--samples", 0)[0] == 0
    config = next((vae / "checkpoints").glob("step-*2")) / "config.json"
    changed(config, lambda c: c["config"].update(model_class=name))
    for load in (lambda: load_generative(vae),):
        with pytest.raises(ValueError, match="holds no generative model"):
            load()
    detector = folder / "fortified" / "detector" / "detector.json"
    network = torch.nn.Identity()
    changed(detector, lambda c: c.update(detector=name))
    with pytest.raises(ValueError, match="unknown detector"):
        load_detector(detector.parent, model=network)
    with pytest.raises(ValueError, match="not a ReconstructionError"):
        ReconstructionError.load(detector.parent, model=network)
    saved = next((folder / "fortified" / "checkpoints").glob("step-*2")) / "config.json"
    changed(saved, lambda c: c["config"]["model"]["options"].update(activation=name))
    with pytest.raises(ValueError, match="unknown activation"):
        FortifiedNetwork.load(folder / "fortified", model=torch.nn.Sequential(*[torch.nn.ReLU()] * 4))
    info = folder / "vae" / "run.json"
    for held in ({"network": {"model": "os:getcwd"}}, {"network": {"model": "mlp", "activation": name}}):
        changed(info, lambda c, held=held: (c.pop("generative", None), c.update(fortify=None, **held)))
        with pytest.raises(ValueError, match=r"run\.json: lacks network\."):
            load_run(vae)
    assert not marker.exists()


def test_data_that_a_run_names_are_not_fetched(planted, tmp_path, monkeypatch):
    folder, _, _ = planted
    path = folder / "plain" / "run.json"
    info = json.loads(path.read_text())
    info["data"] |= {"source": "mnist", "root": str(tmp_path / "elsewhere"), "download": True}
    path.write_text(json.dumps(info))

    def fetch(*_, **__):
        raise AssertionError("fetched")

    monkeypatch.setattr("robustgen.data.vision._download", fetch)
    recorded = recorded_data(read_info(folder / "plain"))
    assert recorded == DataSpec("mnist", str(tmp_path / "elsewhere"), False, 200)
    with pytest.raises(FileNotFoundError, match="MNIST not found"):
        recorded.read("train")
    from robustgen.commands.runs import data_for

    asked = data_for(DataSpec(None, download=True), info)  # nothing is fetched to where a file says
    assert (asked.source, asked.root) == ("mnist", None)


def test_numbers_in_a_file_take_no_memory(planted, capsys):
    folder, _, _ = planted
    assert run(capsys, "train", "--run", folder / "mlp", "--model", "mlp", "--width", 3, *SMALL)[0] == 0
    path = folder / "mlp" / "run.json"
    for change in ({"width": 10**6}, {"width": 10**12}, {"shape": [10**6, 10**6]}, {"shape": [8] * 5}, {"width": 0}):
        info = json.loads(path.read_text())
        info["network"] |= change
        shutil.copytree(folder / "mlp", folder / "changed", dirs_exist_ok=True)
        (folder / "changed" / "run.json").write_text(json.dumps(info))
        code, _, err = run(capsys, "attack", "--run", folder / "changed", "--data", "digits", "--limit", 5)
        assert (code, err.count("\n")) == (2, 1), err
        assert "run.json" in err or "does not fit this network" in err


def test_an_input_that_no_machine_holds_is_refused_where_it_is_read(tmp_path, capsys):
    assert cli.main(["train", "--run", str(tmp_path / "r"), "--model", "resnet", "--width", "4", *SMALL]) == 0
    info = json.loads((tmp_path / "r" / "run.json").read_text())
    info["network"]["shape"] = [1, 100_000, 100_000]  # of a network that any size of image fits
    (tmp_path / "r" / "run.json").write_text(json.dumps(info))
    capsys.readouterr()
    code, _, err = run(capsys, "attack", "--run", tmp_path / "r", "--limit", 5, "--quiet")
    assert code == 2
    assert "run.json: network.shape is of 10000000000 values" in err


def test_nothing_is_removed_or_written_through_a_link_in_a_run(tmp_path, capsys):
    elsewhere = tmp_path / "elsewhere"
    for name in (".download.part", "step-by-step-guide", "step-00000001"):
        (elsewhere / name).mkdir(parents=True)
    common = ["train", "--run", str(tmp_path / "r"), "--model", "mlp", "--width", "4", *SMALL]
    assert cli.main(common) == 0
    checkpoints = tmp_path / "r" / "checkpoints"
    for path in checkpoints.iterdir():
        shutil.move(path, elsewhere)
    checkpoints.rmdir()
    checkpoints.symlink_to(elsewhere)
    before = sorted(p.name for p in elsewhere.iterdir())
    capsys.readouterr()
    code, _, err = run(capsys, *common, "--resume", "--epochs", 3)
    assert code == 2
    assert "is a link" in err
    assert sorted(p.name for p in elsewhere.iterdir()) == before


def test_what_others_put_beside_checkpoints_stays(tmp_path):
    common = ["train", "--run", str(tmp_path / "r"), "--model", "mlp", "--width", "4", *SMALL]
    assert cli.main(common) == 0
    for name in (".download.part", "step-by-step-guide"):
        (tmp_path / "r" / "checkpoints" / name).mkdir()
    assert cli.main([*common, "--resume", "--epochs", "3"]) == 0
    assert {".download.part", "step-by-step-guide"} <= {p.name for p in (tmp_path / "r" / "checkpoints").iterdir()}


# Malformed files of every kind, through the command: one line that names the file, never one of Python's own.

CASES = int(os.environ.get("ROBUSTGEN_FUZZ", "60"))
INTERNALS = ("has no attribute", "KeyError", "indices must be", "NoneType", "Traceback", "object is not", "Errno")
INTERNALS += ("unexpected keyword", "not supported between", "unhashable", "positional argument", "out of range")
INTERNALS += ("mat1", "size of tensor", "can't be", "cannot reshape", "invalid literal", "unpack", "zip()", "recursion")

FEW = ["--limit", "5", "--quiet"]
TRAIN = ["--data", "digits", "--limit", "200", "--batch-size", "100", "--quiet"]
ATTACK = ["--eps", "0.1", "--no-masking-tests", *FEW]
DIGITS = ["--data", "digits"]
SIZED = ["--width", "4", "--model", "mlp"]
VAE = ["--set", "architecture=mlp", "--set", "width=4", "--set", "latent_dim=2", "--set", "quantization=nearest"]

# A file, and a command that reads it. {d} is the folder; "*" in a path stands for the last that fits.
READERS = [
    ("plain/run.json", ["attack", "--run", "{d}/plain", *ATTACK]),
    ("plain/run.json", ["train", "--run", "{d}/plain", *TRAIN, *SIZED, "--epochs", "2", "--resume"]),
    ("plain/checkpoints/latest", ["attack", "--run", "{d}/plain", *ATTACK]),
    ("plain/checkpoints/*/config.json", ["attack", "--run", "{d}/plain", *ATTACK]),
    ("plain/checkpoints/*/config.json", ["train", "--run", "{d}/plain", *TRAIN, *SIZED, "--epochs", "2", "--resume"]),
    ("plain/checkpoints/*/model.safetensors", ["attack", "--run", "{d}/plain", *ATTACK]),
    ("plain/checkpoints/*/training_state.json", ["train", "--run", "{d}/plain", *TRAIN, *SIZED, "--epochs", "2"]),
    (
        "plain/checkpoints/*/training_state.safetensors",
        ["train", "--run", "{d}/plain", *TRAIN, *SIZED, "--epochs", "2"],
    ),
    ("weights.safetensors", ["train", "--run", "{d}/new", *TRAIN, *SIZED, "--weights", "{d}/weights.safetensors"]),
    ("fortified/run.json", ["score", "--run", "{d}/fortified", *DIGITS, *FEW]),
    ("fortified/checkpoints/*/config.json", ["score", "--run", "{d}/fortified", *DIGITS, *FEW]),
    ("fortified/checkpoints/*/model.safetensors", ["score", "--run", "{d}/fortified", *DIGITS, *FEW]),
    ("fortified/detector/detector.json", ["score", "--run", "{d}/fortified", *DIGITS, *FEW]),
    ("fortified/detector/detector.safetensors", ["score", "--run", "{d}/fortified", *DIGITS, *FEW]),
    ("vae/run.json", ["score", "--checkpoint", "{d}/vae", *DIGITS, *FEW]),
    ("vae/checkpoints/*/config.json", ["sample", "--checkpoint", "{d}/vae", "--n", "2", "--out", "{d}/x.png"]),
    ("vae/checkpoints/*/model.safetensors", ["sample", "--checkpoint", "{d}/vae", "--n", "2", "--out", "{d}/x.png"]),
    ("vae/detectors/Likelihood/detector.json", ["score", "--checkpoint", "{d}/vae", *DIGITS, *FEW]),
    ("attacked/report.json", ["report", "{d}/attacked", "--markdown"]),
    ("attacked/report.json", ["report", "{d}/attacked"]),
    ("detected/report.json", ["report", "{d}/detected"]),
    ("detected/report.json", ["report", "{d}/detected", "--markdown"]),
    ("attacked/chunks/plan.json", ["attack", "--run", "{d}/plain", *ATTACK, "--out", "{d}/attacked", "--resume"]),
    ("attacked/options.json", ["attack", "--out", "{d}/attacked", "--resume", "--quiet"]),
    ("attacked/chunks/seconds.json", ["attack", "--out", "{d}/attacked", "--resume", "--quiet"]),
    ("attacked/chunks/wall_clock.json", ["attack", "--out", "{d}/attacked", "--resume", "--quiet"]),
    ("attacked/chunks/*.safetensors", ["attack", "--run", "{d}/plain", *ATTACK, "--out", "{d}/attacked", "--resume"]),
    ("images.npz", ["score", "--run", "{d}/fortified", "--data", "{d}/images.npz", "--quiet"]),
    (
        "images.npz",
        ["train", "--run", "{d}/new", "--data", "{d}/images.npz", *SIZED, "--epochs", "1", "--quiet"],
    ),
    ("images/0.png", ["score", "--run", "{d}/fortified", "--data", "{d}/images", "--strict", "--quiet"]),
    ("results/ahmed-2017/figure-2.4/cpu.jsonl", ["reproduce", "--list", "--out", "{d}/results"]),
]
JUNK = [None, True, -1, 0, 3, 2**70, 10**9, 1e308, 0.5, "text", "", "\x1b[2J", [], {}, [[]], [1, "a"], {"a": [None]}]


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """A folder of small files that are all as they should be."""
    d = tmp_path_factory.mktemp("valid")
    commands = [
        ["train", "--run", "{d}/plain", *TRAIN, *SIZED, "--epochs", "1"],
        ["train", "--run", "{d}/fortified", *TRAIN, *SIZED, "--epochs", "1", "--fortify", "auto", "--detach-states"],
        ["train", "vae", "--run", "{d}/vae", *TRAIN, *VAE, "--epochs", "1", "--samples", "0"],
        ["score", "--checkpoint", "{d}/vae", *DIGITS, *FEW],
        ["score", "--run", "{d}/fortified", *DIGITS, *FEW, "--against", "noise", "--report", "{d}/detected"],
        ["attack", "--run", "{d}/plain", *ATTACK, "--out", "{d}/attacked"],
    ]
    for command in commands:
        assert cli.main([word.format(d=d) for word in command]) == 0
    save_tensors(d / "weights.safetensors", load_tensors(found(d, "plain/checkpoints/*/model.safetensors")))
    few = data.load("digits", n=20)
    data.save_npz(d / "images.npz", few)
    (d / "images").mkdir()
    for k, image in enumerate(few.x[:, 0].numpy()):
        Image.fromarray(image).save(d / "images" / f"{k}.png")
    kept = Path(__file__).parent.parent / "results" / "ahmed-2017" / "figure-2.4"
    shutil.copytree(kept, d / "results" / "ahmed-2017" / "figure-2.4")
    return d


def found(folder, pattern):
    return sorted(folder.glob(pattern))[-1]


def places(value, path=()):
    """The path of every part of a JSON value, of a long list those of its first items."""
    yield path
    if isinstance(value, dict):
        for name, part in value.items():
            yield from places(part, (*path, name))
    elif isinstance(value, list):
        for i, part in enumerate(value[:3]):
            yield from places(part, (*path, i))


def changed_json(text, draw):
    """Another type, a missing field, a name too many, at a place drawn at random."""
    value = json.loads(text)
    path = draw.choice(list(places(value)))
    if not path:
        return json.dumps(draw.choice(JUNK))
    inside = value
    for step in path[:-1]:
        inside = inside[step]
    kind = draw.choice(["junk", "junk", "junk", "missing", "deep", "text"])
    if kind == "missing":
        del inside[path[-1]]
    else:
        inside[path[-1]] = draw.choice(JUNK) if kind == "junk" else "@@@@"
    text = json.dumps(value)
    deep = "[" * 10**5 + "]" * 10**5
    return text.replace(
        '"@@@@"', deep if kind == "deep" else draw.choice(["NaN", "1e999", "Infinity", "9" * 5000, "x"])
    )


def changed_tensors(path, draw):
    """Weights of other shapes, dtypes or names, NaN among them, in a file that is whole."""
    tensors = load_tensors(path)
    name = draw.choice(sorted(tensors))
    other = tensors.pop(name)
    kind = draw.choice(["missing", "renamed", "shape", "dtype", "empty"])
    if kind == "renamed":
        tensors["\x1b[31mother"] = other
    elif kind in ("shape", "dtype"):
        tensors[name] = torch.zeros(3, 2) if kind == "shape" else other.to(draw.choice([torch.int32, torch.int16]))
    save_tensors(path, {} if kind == "empty" else tensors)


def changed_arrays(path, draw):
    with np.load(path) as file:
        arrays = dict(file)
    name = draw.choice(sorted(arrays))
    x = arrays.pop(name)
    junk = [np.zeros(3), np.zeros((2, 2, 2, 2, 2)), x.astype("U8"), np.array([b"a"]), x[:-1] if x.ndim else x]
    junk += [
        np.full(x.shape, 2**40),
        np.full(x.shape, np.nan),
        np.zeros(()),
        x.astype(complex) if x.dtype.kind in "iu" else x,
    ]
    chosen = draw.randrange(len(junk) + 1)
    np.savez(path, **arrays, **({name: junk[chosen]} if chosen < len(junk) else {}))


def malform(path, draw):
    """Change the file at ``path`` in one of the ways that suit it."""
    whole = path.read_bytes()
    ways = ["cut", "flip", "flip", "nothing", "folder", "text", "noise", "gone"]
    if path.suffix == ".json":
        ways += ["json"] * 16
    if path.suffix == ".jsonl":
        ways += ["line"] * 16
    if path.suffix == ".safetensors":
        ways += ["tensors"] * 8 + ["pickle"]
    if path.suffix == ".npz":
        ways += ["arrays"] * 8 + ["pickle"]
    way = draw.choice(ways)
    if way == "json":
        path.write_text(changed_json(whole.decode(), draw))
    elif way == "line":
        lines = whole.decode().splitlines()
        k = draw.randrange(len(lines))
        path.write_text("\n".join([*lines[:k], changed_json(lines[k], draw), *lines[k + 1 :]]) + "\n")
    elif way == "tensors":
        changed_tensors(path, draw)
    elif way == "arrays":
        changed_arrays(path, draw)
    elif way == "cut":
        path.write_bytes(whole[: draw.randrange(len(whole))])
    elif way == "flip":
        flipped = bytearray(whole)
        for _ in range(draw.choice([1, 3, 30])):
            flipped[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(flipped))
    elif way == "pickle":
        torch.save({"w": torch.zeros(2)}, path)
    elif way in ("folder", "gone"):
        path.unlink()
        if way == "folder":
            path.mkdir()
    else:
        path.write_bytes({"nothing": b"", "text": b"hello, world\n", "noise": draw.randbytes(500)}[way])
    return way


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", range(CASES))
def test_one_line_names_the_file(valid, tmp_path, capsys, case):
    draw = random.Random(case)
    pattern, command = READERS[case % len(READERS)]
    top = pattern.split("/")[0]
    d = tmp_path
    for name in {word.format(d="").strip("/").split("/")[0] for word in command if "{d}/" in word} | {top}:
        source = valid / name
        if source.is_dir():
            shutil.copytree(source, d / name)
        elif source.exists():
            shutil.copy(source, d / name)
    path = found(d, pattern)
    if "training_state" in pattern:
        command = [*command, "--resume"]
    way = malform(path, draw)
    capsys.readouterr()
    code = cli.main([word.format(d=d) for word in command])
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith(("robustgen: warning: ", "robustgen: note: "))]
    what = f"case {case}: {way} of {pattern}, {' '.join(command)}: {err}"
    assert "\x1b" not in out + err, what
    if code == 0:
        assert not lines, what
        return
    assert code in (1, 2), what
    assert len(lines) == 1, what
    assert lines[0].startswith("robustgen: error: "), what
    assert not [word for word in INTERNALS if word in lines[0]], what
    named = (path.name, str(d / top), "--", "the network takes")  # the last of data of another shape, which are named
    assert any(name in lines[0] for name in named), what
