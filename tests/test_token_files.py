"""Texts from files of tokens, by command: scored by a network of one's own, or of Hugging Face."""

import csv
import json

import numpy as np
import pytest
import torch

from robustgen import data
from robustgen.cli import main

# networks that have learned nothing are not steady
pytestmark = pytest.mark.filterwarnings("ignore:the fortified network decides otherwise")

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.hidden, self.out = nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask):
        counts = attention_mask[..., None].float()
        return self.out((self.hidden(self.embed(input_ids)) * counts).sum(1) / counts.sum(1))

def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = Net()
    with torch.no_grad():
        found.embed.weight[1:10] = torch.ones(8) + 0.1 * found.embed.weight[1:10]  # so that these are alike
    return found
"""


def run(capsys, *arguments):
    code = main(list(map(str, arguments)))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refused(capsys, *arguments):
    code, _, err = run(capsys, *arguments)
    assert (code, err.count("robustgen: error: ")) == (2, 1), err
    return err


def tokens(n, seed=0, low=1, high=10, length=6):
    """Arrays of n texts of 2 to ``length`` tokens in [low, high)."""
    rng = np.random.default_rng(seed)
    mask = (np.arange(length) < rng.integers(2, length + 1, (n, 1))).astype(np.int64)
    return {"input_ids": rng.integers(low, high, (n, length)).astype(np.int32) * mask, "attention_mask": mask}


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """A folder with files of tokens and a network."""
    np.savez(tmp_path / "train.npz", **tokens(200), y=np.arange(200) % 3)
    np.savez(tmp_path / "test.npz", **tokens(40, seed=1))
    np.savez(tmp_path / "other.npz", **tokens(40, seed=2, low=10, high=20))
    (tmp_path / "own_network_of_tokens.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_file_of_tokens_is_a_data_set(texts):
    found = data.load_tokens(texts / "train.npz")
    assert found.x["input_ids"].dtype == torch.int64
    assert (len(found), found.classes, found.name) == (200, ("0", "1", "2"), "train.npz")
    x, y = found.subset(torch.tensor([5, 3])).batch(torch.tensor([1]))
    assert torch.equal(x["attention_mask"], found.x["attention_mask"][3:4])
    assert y.tolist() == [0]
    assert found.take(3).ids.tolist() == [0, 100, 199]
    train, rest = data.split(found, (0.9, 0.1), seed=0)
    assert sorted(train.ids.tolist() + rest.ids.tolist()) == list(range(200))


def test_a_shared_text_is_found_whatever_its_padding(texts):
    mine = data.load_tokens(texts / "test.npz")
    longer = {name: torch.nn.functional.pad(t[7:8], (0, 3)) for name, t in mine.x.items()}
    with pytest.raises(ValueError, match=r"40 examples of test.npz are also in longer, first at indices 7"):
        data.check_disjoint(mine, data.TokenDataset(longer, name="longer"))
    data.check_disjoint(mine, data.load_tokens(texts / "other.npz"))


def test_texts_are_scored_and_told_apart(capsys, texts):
    chosen = [
        "score",
        "--model",
        "own_network_of_tokens:net",
        "--fit-data",
        "train.npz",
        "--data",
        "test.npz",
        "--quiet",
    ]
    code, out, err = run(capsys, *chosen, "--limit", 20)
    assert code == 0, err
    named = [int(row["input"]) for row in csv.DictReader(out.splitlines())]
    assert (len(named), named[0], named[-1]) == (20, 0, 39)
    code, out, err = run(capsys, *chosen, "--epochs", 60, "--against", "other.npz", "--json", "--report", "report")
    assert code == 0, err
    assert json.loads(out)["populations"]["other.npz"]["auroc"] > 0.9
    assert (texts / "report" / "report.html").is_file()


def test_what_is_no_text_is_refused(capsys, texts):
    np.savez("pixels.npz", x=np.zeros((30, 8, 8), np.uint8))
    np.savez("foreign.npz", **tokens(30, low=20, high=30))
    np.savez("floats.npz", input_ids=np.zeros((30, 8)))
    common = ["score", "--model", "own_network_of_tokens:net", "--quiet", "--fit-data"]
    for arguments, message in (
        (["train.npz", "--data", "pixels.npz"], "pixels.npz holds inputs of shape (1, 8, 8), the network takes tokens"),
        (["pixels.npz", "--data", "test.npz"], "test.npz holds tokens, the network takes (1, 8, 8)"),
        (["train.npz", "--data", "test.npz", "--against", "noise"], "--against noise is made of pixels"),
        (["train.npz", "--data", "test.npz", "--against", "digits"], "the network takes tokens"),
        (["train.npz", "--data", "test.npz", "--against", "test.npz"], "are also in test.npz"),
        (["train.npz", "--data", "foreign.npz"], "the model fails on inputs of input_ids (6,)"),
        (["floats.npz", "--data", "test.npz"], "floats.npz: input_ids is float64; tokens must be integers"),
        (["train.npz", "--data", "test.npz", "--mean", "0", "--std", "1"], "--mean and --std are of pixels"),
    ):
        assert message in refused(capsys, *common, *arguments)
    attack = ["attack", "--model", "own_network_of_tokens:net", "--data", "test.npz"]
    assert "test.npz holds tokens: of the commands, only score takes them" in refused(capsys, *attack)
    assert "only score takes them" in refused(capsys, "train", "--run", "r", "--data", "test.npz")
    with pytest.raises(ValueError, match=r"test\.npz: holds tokens: load_tokens reads them"):
        data.load("test.npz")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_text_classifier_of_hugging_face(capsys, texts):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=3
    )
    with torch.random.fork_rng():
        transformers.BertForSequenceClassification(config).save_pretrained(texts / "bert")
    chosen = ["score", "--model", "hf:bert", "--fit-data", "train.npz", "--data", "test.npz", "--quiet"]
    code, out, err = run(capsys, *chosen, "--out", "rows.jsonl", "--json")
    assert code == 0, err
    assert json.loads(out)["inputs"] == 40
    whole = [json.loads(line)["score"] for line in (texts / "rows.jsonl").read_text().splitlines()]
    short = {name: values[:, :2] for name, values in tokens(40, seed=1).items()}
    np.savez("test.npz", **{name: np.pad(values, ((0, 0), (0, 5))) for name, values in short.items()})
    code, out, err = run(capsys, *chosen, "--out", "rows.jsonl", "--json")
    assert code == 0, err
    again = [json.loads(line)["score"] for line in (texts / "rows.jsonl").read_text().splitlines()]
    two = tokens(40, seed=1)["attention_mask"].sum(1) == 2
    assert np.array(again)[two] == pytest.approx(np.array(whole)[two], rel=1e-4)  # however long the padding
