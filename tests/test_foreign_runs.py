"""A run directory from somebody else is data: nothing in it runs, is fetched, or takes memory."""

import json
import shutil
import sys

import pytest
import torch

from robustgen import cli
from robustgen.commands.data_spec import DataSpec
from robustgen.commands.opening import load_run
from robustgen.commands.run_info import read_info, recorded_data
from robustgen.detectors import ReconstructionError
from robustgen.detectors import load as load_detector
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
