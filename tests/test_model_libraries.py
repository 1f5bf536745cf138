"""Networks of other libraries by name, on pixels that are normalised for them: built here, weights the user's own."""

import json
import re
import socket
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

from robustgen import Normalize, cli
from robustgen.commands.model_libraries import of_library, outputs_of_weights
from robustgen.commands.network_spec import NetworkSpec, load_weights
from robustgen.commands.opening import load_run, open_network
from robustgen.data import ArrayDataset
from robustgen.data.npz import save_npz
from robustgen.files import save_tensors
from robustgen.model import logits_of
from robustgen.weights import ENTRIES, read_weights, unwrapped

SMALL = "torchvision:squeezenet1_1"
NORMAL = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.2, 0.3)}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refused(*_):
        raise AssertionError("somebody is called")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


def run(capsys, *arguments):
    code = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys, *arguments):
    code, _, err = run(capsys, *arguments)
    assert (code, err.count("\n")) == (2, 1), (arguments, err)
    return err


def squeezenet(n_classes=3):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return models.squeezenet1_1(num_classes=n_classes).eval()


@pytest.fixture
def photos(tmp_path):
    """Twenty-four images of 32x32 in colour, three classes, in an .npz."""
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (24, 3, 32, 32), generator=g).to(torch.uint8)
    save_npz(tmp_path / "photos.npz", ArrayDataset(x, torch.arange(24) % 3, classes=("a", "b", "c"), name="photos"))
    return tmp_path / "photos.npz"


def test_weights_say_how_many_classes(tmp_path):
    state = torch.random.get_rng_state()
    x, net = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), squeezenet(7)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    torch.save({"state_dict": nn.DataParallel(net).state_dict()}, tmp_path / "parallel.pth")
    found, info = open_network(None, SMALL, tmp_path / "w.pth")
    with pytest.warns(UserWarning, match="without the prefix 'module.'"):
        parallel, _ = open_network(None, SMALL, tmp_path / "parallel.pth")
    assert torch.equal(found(x), net(x))
    assert torch.equal(parallel(x), net(x))
    assert (info, found.training) == ({}, False)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert outputs_of_weights("torchvision:resnet18", net.state_dict()) is None
    regnet = models.regnet_y_400mf(num_classes=5).state_dict()  # not to be built without memory
    assert outputs_of_weights("torchvision:regnet_y_400mf", regnet) == 5
    with pytest.raises(ValueError, match=r"does not fit this network: missing conv1\.weight"):
        open_network(None, "torchvision:resnet18", tmp_path / "w.pth")


def test_what_normalises_is_inside_the_network(tmp_path):
    x, net = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), squeezenet()
    torch.save(net.state_dict(), tmp_path / "w.pth")
    found, _ = open_network(None, SMALL, tmp_path / "w.pth", **NORMAL)
    assert torch.equal(found(x), net(Normalize(*NORMAL.values())(x)))
    found, _ = open_network(None, SMALL, tmp_path / "w.pth", mean=(0.5,), std=(0.25,))
    assert torch.equal(found(x), net((x - 0.5) / 0.25))
    with pytest.raises(ValueError, match="--mean and --std go with --model; a --run has its own"):
        open_network(tmp_path, None, None, **NORMAL)


def test_a_run_remembers_library_and_normalisation(capsys, tmp_path, photos):
    common = ["train", "--model", SMALL, "--data", photos, "--epochs", 1, "--quiet", "--run"]
    normal = ["--mean", "0.4,0.5,0.6", "--std", "0.2,0.2,0.3"]
    assert run(capsys, *common, tmp_path / "r", *normal)[0] == 0
    network = json.loads((tmp_path / "r" / "run.json").read_text())["network"]
    assert (network["model"], network["mean"], network["std"]) == (SMALL, [0.4, 0.5, 0.6], [0.2, 0.2, 0.3])
    loaded, _ = load_run(tmp_path / "r")
    assert isinstance(loaded.normalize, Normalize)
    # what was trained starts another network: its weights are those of the network inside
    bare = squeezenet()
    load_weights(bare, tmp_path / "r")
    inside = loaded.network.state_dict()
    assert all(torch.equal(v, inside[k]) for k, v in bare.state_dict().items())
    assert run(capsys, *common, tmp_path / "s", "--weights", tmp_path / "r", *normal)[0] == 0
    assert run(capsys, *common, tmp_path / "r", *normal, "--resume")[0] == 0
    assert run(capsys, *common, tmp_path / "r", "--resume")[0] == 0  # what is not given is remembered
    other = ["--mean", "0.5", "--std", "0.5"]
    assert "network.mean was" in refused(capsys, *common, tmp_path / "r", "--resume", *other)


def test_a_run_of_other_weights_keeps_their_outputs(capsys, tmp_path, photos):
    torch.save(squeezenet(5).state_dict(), tmp_path / "w.pt")
    arguments = ["--model", SMALL, "--weights", tmp_path / "w.pt", "--epochs", 1, "--quiet", "--fortify", "auto"]
    assert run(capsys, "train", "--run", tmp_path / "r", "--data", photos, *arguments)[0] == 0
    assert json.loads((tmp_path / "r" / "run.json").read_text())["network"]["outputs"] == 5
    assert load_run(tmp_path / "r")[0](torch.zeros(1, 3, 32, 32)).shape == (1, 5)
    torch.save(squeezenet(2).state_dict(), tmp_path / "w.pt")
    assert "has 3 classes, the network has 2" in refused(
        capsys, "train", "--run", tmp_path / "s", "--data", photos, *arguments
    )
    assert not (tmp_path / "s").exists()


@pytest.mark.filterwarnings("ignore:clean accuracy")
def test_the_commands_take_them(capsys, tmp_path, photos):
    torch.save(squeezenet().state_dict(), tmp_path / "w.pt")
    network = ["--model", SMALL, "--weights", tmp_path / "w.pt", "--mean", "0.5", "--std", "0.25,0.25,0.25"]
    attack = ["attack", "--eps", "8/255", "--norm", "l2", "--no-masking-tests", "--json", "--quiet"]
    code, out, err = run(capsys, *attack, *network, "--data", photos, "--limit", 4)
    assert code == 0, err
    assert json.loads(out)["threat_model"]["norm"] == "L2"
    code, out, err = run(capsys, "score", *network, "--data", photos, "--fit-data", photos, "--epochs", 1, "--fpr", 0.5)
    assert code == 0, err
    assert out.startswith("input,score,p_value,flag\n")


def test_what_cannot_be_opened_is_one_line(capsys, tmp_path, photos, monkeypatch):
    (tmp_path / "empty").mkdir()
    attack = ["attack", "--data", photos, "--limit", 4, "--model"]
    for arguments, message in (
        (["torchvision:resnt18"], "torchvision has no classifier 'resnt18'; did you mean 'resnet18'"),
        (["torchvision:fasterrcnn_resnet50_fpn"], "torchvision has no classifier 'fasterrcnn_resnet50_fpn'"),
        (["torchvision:"], "torchvision has no classifier ''"),
        ([SMALL], f"--model {SMALL} has learned nothing: pass its --weights FILE"),
        (["resnet18"], "a network of your own is module:function, one of a library torchvision:NAME"),
        ([f"hf:{tmp_path / 'empty'}"], "no folder with a config.json; nothing is fetched"),
        (["hf:google/vit-base-patch16-224"], "no folder with a config.json; nothing is fetched"),
        ([SMALL, "--mean", "0.5"], "--mean and --std go together"),
        ([SMALL, "--mean", "a", "--std", "1"], "--mean a: it is a number, or one for each channel"),
        ([SMALL, "--mean", "nan", "--std", "1"], "--mean nan: it is a number, or one for each channel"),
        ([SMALL, "--mean", "0.5", "--std", "0"], "--std 0: each number must be > 0"),
        ([SMALL, "--mean", "1,2", "--std", "1,2,3"], "--mean 1,2 has 2 channels, --std 1,2,3 has 3"),
        ([SMALL, "--norm", "L7"], "L7: it is Linf, L2 or L1"),
    ):
        assert message in refused(capsys, *attack, *arguments)
    torch.save(squeezenet().state_dict(), tmp_path / "w.pt")
    two = ["--weights", tmp_path / "w.pt", "--mean", "1,2", "--std", "1"]
    assert "expected 2 channels in dimension 1" in refused(capsys, *attack, SMALL, *two)
    for package in ("timm", "transformers"):
        monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "empty" / "config.json").write_text("{}")
    save_tensors(tmp_path / "empty" / "model.safetensors", {"w": torch.zeros(1)})
    for arguments, extra in ((["timm:resnet18", *two[:2]], "timm"), ([f"hf:{tmp_path / 'empty'}"], "hf")):
        code, _, err = run(capsys, *attack, *arguments)
        assert (code, err.count("\n")) == (1, 1)
        assert f"is not installed: pip install 'robustgen[{extra}]'" in err


def test_no_name_in_a_run_reaches_beyond_the_known_ones(capsys, tmp_path, photos):
    assert run(capsys, "train", "--run", tmp_path / "r", "--data", photos, "--model", "mlp", "--epochs", 1)[0] == 0
    path = tmp_path / "r" / "run.json"
    info = json.loads(path.read_text())
    for change, message in (
        (
            {"model": "torchvision:os.system"},
            r"no network has these settings \(torchvision has no classifier",
        ),
        ({"model": SMALL}, "does not fit this network: missing features"),
        ({"model": SMALL, "outputs": 2**16 - 1}, "does not fit this network: missing features"),
        ({"model": SMALL, "outputs": 0}, r"run\.json: network\.outputs must be a whole number from 1"),
        ({"mean": ["a"], "std": [1]}, r"run\.json: network\.mean\[0\] must be a finite number"),
        ({"mean": [1], "std": [0]}, r"run\.json: no network has these settings \(mean and std"),
        ({"model": "torchvision.models:resnet18"}, r"run\.json: names code as its network"),
    ):
        path.write_text(json.dumps(info | {"network": info["network"] | change}))
        with pytest.raises(ValueError, match=message):
            load_run(tmp_path / "r")


def test_timm_by_name(tmp_path):
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng():
        net = timm.create_model("resnet10t", pretrained=False, num_classes=4).eval()
    torch.save(net.state_dict(), tmp_path / "w.pth")
    found, _ = open_network(None, "timm:resnet10t", tmp_path / "w.pth", **NORMAL)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found(x), net(Normalize(*NORMAL.values())(x)))
    with pytest.raises(ValueError, match="timm has no network 'resnt10t'; did you mean 'resnet10t'"):
        of_library("timm:resnt10t", 3)
    for address in ("hf-hub:timm/resnet18.a1_in1k", "hf_hub:timm/resnet18", "local-dir:/tmp", "timm/resnet18", "../x"):
        with pytest.raises(ValueError, match="timm has no network"):
            of_library(f"timm:{address}", 3)


@pytest.fixture
def vit(tmp_path):
    """The folder of a small vision transformer of four classes, and the network."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=32, patch_size=16,
        num_labels=4,
    )  # fmt: skip
    with torch.random.fork_rng():
        net = transformers.ViTForImageClassification(config).eval()
    net.save_pretrained(tmp_path / "vit")
    return tmp_path / "vit", net


def test_hugging_face_from_a_folder(capsys, tmp_path, photos, vit):
    folder, net = vit
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    with pytest.warns(UserWarning, match=r"was trained on normalised pixels: pass --mean 0\.5,0\.5,0\.5 --std"):
        open_network(None, f"hf:{folder}", None)
    (folder / "preprocessor_config.json").unlink()
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found, _ = open_network(None, f"hf:{folder}", None, **NORMAL)
    assert torch.allclose(found(x).logits, net(Normalize(*NORMAL.values())(x)).logits, atol=1e-6)
    train = ["train", "--data", photos, "--model", f"hf:{folder}", "--epochs", 1, "--quiet", "--fortify", "auto"]
    assert run(capsys, *train, "--run", tmp_path / "r")[0] == 0
    assert logits_of(load_run(tmp_path / "r")[0](x)).shape == (2, 4)
    (folder / "model.safetensors").rename(tmp_path / "w.safetensors")
    found, _ = open_network(None, f"hf:{folder}", tmp_path / "w.safetensors")
    assert torch.allclose(found(x).logits, net(x).logits, atol=1e-6)
    torch.save(nn.DataParallel(net).state_dict(), tmp_path / "w.pth")
    with pytest.warns(UserWarning, match="without the prefix"):
        found, _ = open_network(None, f"hf:{folder}", tmp_path / "w.pth")
    assert torch.allclose(found(x).logits, net(x).logits, atol=1e-6)
    with pytest.raises(ValueError, match="has learned nothing: pass its --weights FILE"):
        open_network(None, f"hf:{folder}", None)
    torch.save(squeezenet().state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth does not fit this network: missing classifier\.bias"):
        open_network(None, f"hf:{folder}", tmp_path / "w.pth")
    assert of_library(f"hf:{folder}", 7)(x).logits.shape == (2, 7)


def test_hugging_face_of_text(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=3
    )
    with torch.random.fork_rng():
        net = transformers.BertForSequenceClassification(config).eval()
    net.save_pretrained(tmp_path / "bert")
    found, _ = open_network(None, f"hf:{tmp_path / 'bert'}", None)
    tokens = torch.arange(10).reshape(2, 5)
    assert torch.allclose(found(tokens).logits, net(tokens).logits, atol=1e-6)
    transformers.BertModel(config).save_pretrained(tmp_path / "no_classifier")
    path = tmp_path / "no_classifier" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": ["BertForSequenceClassification"]}))
    with pytest.raises(ValueError, match=r"fit this network: missing classifier\.bias; missing classifier\.weight"):
        open_network(None, f"hf:{tmp_path / 'no_classifier'}", None)


@pytest.mark.parametrize(
    "change",
    [
        {
            "model_type": "evil",
            "auto_map": {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Net"},
        },
        {"auto_map": {"AutoModelForImageClassification": "somebody/evil--evil.Net"}},
        {"attn_implementation": "somebody/evil"},
        {"_attn_implementation": "somebody/evil"},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"model_type": "timm_wrapper", "architecture": "hf-hub:somebody/evil"},
        {"model_type": ["vit"]},
        {"hidden_size": "wide"},
        {"_name_or_path": "somebody/evil"},
    ],
    ids=str,
)
def test_a_configuration_runs_no_code_and_fetches_nothing(vit, change):
    folder, _ = vit
    marker = folder / "marker"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refusals, networks = [], []
    for opened in (lambda: open_network(None, f"hf:{folder}", None), lambda: of_library(f"hf:{folder}", 3)):
        try:
            found = opened()
            networks.append(found[0] if isinstance(found, tuple) else found)
        except ValueError as error:
            refusals.append(str(error))
    assert all(line.startswith((f"hf:{folder}: ", f"{path}: ")) and "\n" not in line for line in refusals)
    assert all(network.config._attn_implementation == "eager" for network in networks)
    assert len(networks) == (2 if "attn" in str(change) else len(networks))
    assert not marker.exists()


def test_specs_of_old_runs_are_read():
    old = {"model": "mlp", "shape": [1, 8, 8], "n_classes": 10, "width": None, "activation": "relu"}
    spec = NetworkSpec.recorded(old)
    assert spec.to_record() | {"shape": [1, 8, 8]} == old


# Weights that users have: state dicts of torch.save, under whatever key and prefix, and no code with them.


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
