"""Malformed files of every kind, through the command: one line that names the file, never one of Python's own.

Cases are a function of their number. ``ROBUSTGEN_FUZZ=1000`` in the environment runs so many of them.
"""

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustgen import cli, data
from robustgen.files import load_tensors, save_tensors

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
