"""Weights that users have: state dicts of torch.save, under whatever key and prefix, and no code with them."""

import re
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from robustgen import cli
from robustgen.commands.network_spec import load_weights
from robustgen.files import save_tensors
from robustgen.weights import ENTRIES, read_weights, unwrapped


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(OrderedDict(fc=nn.Linear(4, 3), norm=nn.BatchNorm1d(3)))


def same(found, wanted):
    return found.keys() == wanted.keys() and all(torch.equal(found[k], v) for k, v in wanted.items())


class Marker:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_state_dict_is_loaded_whatever_holds_it(tmp_path):
    path, state = tmp_path / "w.pth", network(1).state_dict()
    held = [state, *({name: state, "epoch": 3, "optimizer": {"state": {}}} for name in ENTRIES)]
    for saved in held:
        for zipped in (True, False):
            torch.save(saved, path, _use_new_zipfile_serialization=zipped)
            net = network()
            load_weights(net, path)
            assert same(net.state_dict(), state)
    torch.save({"w": nn.Parameter(torch.ones(2))}, path)
    assert read_weights(path)["w"].tolist() == [1, 1]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_prefixes_of_wrappers_are_removed_and_said(tmp_path, suffix):
    path, state = tmp_path / f"w{suffix}", network(1).state_dict()
    for prefix in ("module.", "_orig_mod.", "_orig_mod.module."):
        named = {prefix + name: tensor for name, tensor in state.items()}
        torch.save(named, path) if suffix == ".pt" else save_tensors(path, named)
        net = network()
        with pytest.warns(UserWarning, match=f"names without the prefix '{prefix}', which .* gave them"):
            load_weights(net, path)
        assert same(net.state_dict(), state)
    parallel = nn.DataParallel(network())  # the prefix is its own
    torch.save({"module." + name: tensor for name, tensor in state.items()}, path)
    if suffix == ".pt":
        load_weights(parallel, path)
        assert same(parallel.module.state_dict(), state)
    some = {"module.fc.weight": state["fc.weight"], "norm.weight": state["norm.weight"]}
    assert unwrapped(some, state, path).keys() == some.keys()


def test_what_is_no_state_dict_is_named(tmp_path):
    path, state = tmp_path / "w.pt", network().state_dict()
    for saved, message in (
        ({"state_dict": state, "ema": state}, r"w\.pt: holds several state dicts, state_dict, ema: keep the one"),
        ({"epoch": 3, "generator": state}, r"w\.pt: no state dict, nor one under state_dict, .*; it holds epoch, gen"),
        (state | {"epoch": 3}, r"w\.pt: epoch is a int, where a state dict has tensors by name"),
        ({"model": {"epoch": 3}}, r"the entry 'model' of .*w\.pt: epoch is a int"),
        ({"model": {}}, r"the entry 'model' of .*w\.pt: no tensors"),
        ({}, r"w\.pt: no tensors"),
        ([state], r"w\.pt: holds a list, not a state dict"),
        (torch.zeros(3), r"w\.pt: holds a Tensor, not a state dict"),
        ({"w": torch.eye(2).to_sparse()}, r"w\.pt: w is of layout torch\.sparse_coo, weights are dense"),
        ({"w": torch.zeros(2, device="meta")}, r"w\.pt: w is a tensor without values"),
        ({3: torch.zeros(2), "w": torch.zeros(2)}, r"w\.pt: 3 is a Tensor, where a state dict has tensors by name"),
    ):
        torch.save(saved, path)
        with pytest.raises(ValueError, match=message):
            read_weights(path)
    torch.save(state, path)
    other = nn.Linear(4, 4)
    with pytest.raises(ValueError, match=r"does not fit this network: missing weight; .*unexpected fc\.weight"):
        load_weights(other, path)


def test_no_pickle_runs_code(tmp_path):
    marker = tmp_path / "marker"
    for zipped in (True, False):
        torch.save({"w": torch.zeros(2), "x": Marker(marker)}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match=r"w\.pt: holds _?io\.open, which is more than.* No network needs it"):
            read_weights(tmp_path / "w.pt")
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:.*TorchScript")
def test_networks_and_damaged_files_are_called_what_they_are(tmp_path):
    net = network().eval()
    torch.save(net, tmp_path / "whole.pt")
    torch.save({"state_dict": net.state_dict(), "best": np.float64(0.9)}, tmp_path / "numpy.pt")
    torch.jit.trace(net, torch.zeros(2, 4)).save(tmp_path / "jit.pt")
    torch.save(net.state_dict(), tmp_path / "plain.pt")
    data = (tmp_path / "plain.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[: len(data) // 2])
    torch.save(net.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "cut_old.pt").write_bytes((tmp_path / "old.pt").read_bytes()[:-20])
    (tmp_path / "pickle.pt").write_bytes(b"\x80\x04}\x94\x8c\x01a\x94K\x01s.")
    (tmp_path / "text.pt").write_text("no weights at all, but some text")
    with zipfile.ZipFile(tmp_path / "plain.pt") as stored, zipfile.ZipFile(tmp_path / "bomb.pt", "w", 8) as bomb:
        for part in stored.namelist():
            bomb.writestr(part, stored.read(part))
    for name, message in {
        "whole.pt": "holds torch.nn.modules.container.Sequential, which is more than tensors, can run code and is not",
        "numpy.pt": "holds numpy",
        "jit.pt": "a network of torch.jit with its code; save torch.jit.load(",
        "cut.pt": "a damaged or incomplete archive (",
        "cut_old.pt": "damaged, or a pickle that torch.save did not write",
        "pickle.pt": "damaged, or a pickle that torch.save did not write",
        "text.pt": "neither a state dict of torch.save nor a safetensors file",
        "bomb.pt": "a compressed archive, which torch.save does not write",
    }.items():
        with pytest.raises(ValueError, match=re.escape(f"{name}: {message}")) as caught:
            read_weights(tmp_path / name)
        assert "\n" not in str(caught.value)
        if name == "whole.pt":  # the line that it gives converts the file
            exec(str(caught.value).split(" in Python: ")[1].split(" (of a dict")[0])
            assert same(read_weights(tmp_path / "whole.state.pt"), net.state_dict())


@pytest.mark.filterwarnings("always:.*names without the prefix")
def test_the_command_takes_them(tmp_path, capsys):
    small = ["train", "--model", "mlp", "--width", "4", "--epochs", "1", "--quiet", "--limit", "50"]
    assert cli.main([*small, "--run", str(tmp_path / "a")]) == 0
    state = {"module." + k: v for k, v in read_weights(next(tmp_path.glob("a/**/model.safetensors"))).items()}
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "w.pth")
    capsys.readouterr()
    assert cli.main([*small, "--run", str(tmp_path / "b"), "--weights", str(tmp_path / "w.pth")]) == 0
    assert "warning: " in (err := capsys.readouterr().err)
    assert "w.pth: names without the prefix 'module.', which DataParallel gave them" in err
    torch.save(network(), tmp_path / "whole.pth")
    assert cli.main([*small, "--run", str(tmp_path / "c"), "--weights", str(tmp_path / "whole.pth")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "c").exists()


def test_pickles_are_read_in_one_way(tmp_path, monkeypatch):
    """Tensors alone, on the CPU, mapped where the file allows it: so they take no memory of their own."""
    asked, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda path, **how: asked.append(how) or load(path, **how))
    for zipped in (True, False):
        torch.save({"w": torch.zeros(3)}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
        assert read_weights(tmp_path / "w.pt")["w"].tolist() == [0, 0, 0]
    assert asked == [{"map_location": "cpu", "weights_only": True, "mmap": zipped} for zipped in (True, False)]
