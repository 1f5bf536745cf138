"""The runs that come with the package: attacked and scored before anything is trained."""

import json

import pytest
import torch

from robustgen import cli, data
from robustgen.commands.opening import load_run, saved_detector
from robustgen.examples import EXAMPLES, run_directory
from robustgen.examples.__main__ import pack
from robustgen.training.recipes import find


def run(capsys, *arguments):
    code = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def path(name):
    from pathlib import Path

    return Path(f"example:{name}")


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_its_recipe_and_small(name):
    network, info = load_run(path(name))
    recipe = find(info["training"]["name"])
    assert recipe.record().items() <= info["training"].items()
    assert network(torch.rand(2, *recipe.shape)).shape == (2, 10)
    files = [file for file in run_directory(path(name)).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 4_000_000
    assert not any(str(part) in json.dumps(info) for part in ("/tmp", "/home", "/work", "..")), info["command"]


def test_all_together_are_under_five_megabytes():
    files = [f for name in EXAMPLES for f in run_directory(path(name)).rglob("*") if f.is_file()]
    assert sum(file.stat().st_size for file in files) < 5_000_000


def test_the_digits_are_robust_and_their_detector_keeps_its_rate(capsys):
    few = ["--data", "digits", "--quiet", "--json"]
    code, out, err = run(capsys, "attack", "--run", "example:digits", *few, "--eps", "0.15", "--suite", "quick")
    assert code == 0, err
    found = json.loads(out)
    assert found["clean_accuracy"]["value"] > 0.95
    assert found["worst_case_accuracy"]["value"] > 0.7
    network, _ = load_run(path("digits"))
    detector = saved_detector(path("digits"), network)
    x = data.digits("test").images()
    assert detector.flag(x, fpr=0.05).double().mean() < 0.1
    assert detector.flag(data.noise(50, (1, 8, 8), seed=0).images(), fpr=0.05).all()


def test_an_unknown_example_is_one_line(capsys):
    code, _, err = run(capsys, "attack", "--run", "example:digist", "--eps", "0.1")
    assert (code, "no example is called 'digist'; did you mean 'digits'" in err) == (2, True)


def test_what_is_packed_is_the_best_epoch(tmp_path, capsys):
    few = ["--data", "digits", "--limit", "120", "--width", "4", "--epochs", "4", "--quiet", "--adversarial", "fast"]
    assert run(capsys, "train", "--run", tmp_path / "run", *few, "--fortify", "auto")[0] == 0
    pack(tmp_path / "run", tmp_path / "packed")
    x = data.digits("test").images()[:50]
    one, two = (load_run(tmp_path / name) for name in ("run", "packed"))
    assert torch.equal(one[0](x), two[0](x))
    assert one[1] == two[1]
    scores = [saved_detector(tmp_path / n, net).score(x) for n, (net, _) in (("run", one), ("packed", two))]
    assert torch.equal(*scores)
