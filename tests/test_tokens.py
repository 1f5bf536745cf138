"""Tokens, padding and dicts of keyword arguments, from fitting autoencoders to flags; outputs that keep their type."""

import csv
import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.models import VisionTransformer

from robustgen import data, detectors
from robustgen.attacks import FGSM
from robustgen.cli import main
from robustgen.detectors import Energy, KNearestFeatures, Mahalanobis, MaxLogit, MaxSoftmax, ReconstructionError
from robustgen.features import FeatureExtractor
from robustgen.fortified import FortifiedNetwork, FortifiedObjective, fortify
from robustgen.inputs import check_inputs, mean_over_positions
from robustgen.recurrent_networks import TextClassifier
from robustgen.training import ClassifierObjective, Trainer, as_source

T, SYMBOLS, PAD = 9, 12, 0
ROWS, CPU = torch.arange(40), torch.device("cpu")


@dataclass
class Output:
    """What models of the transformers library return."""

    logits: Tensor
    pooled: Tensor | None = None


class Transformer(nn.Module):
    """Reads a class from the mean of the tokens that count; keyword arguments only."""

    def __init__(self, nested=False):
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
        self.head = nn.Linear(8, 3)

    def states(self, input_ids, attention_mask):
        place = torch.arange(input_ids.shape[1]).div(10).sin()[:, None]
        return self.encoder(self.embedding(input_ids) + place, src_key_padding_mask=attention_mask == 0)

    def forward(self, *, input_ids, attention_mask):
        h = self.states(input_ids, attention_mask)
        mask = attention_mask[:, : h.shape[1], None]
        return Output(self.head((h * mask).sum(1) / mask.sum(1)), h)


def batch(n, seed=0, longest=T, low=1):
    """Random sentences of symbols from ``low`` on, of 3 to ``longest`` tokens, filled up to ``longest``."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, longest + 1, (n,), generator=draw)
    lengths[0] = longest
    mask = (torch.arange(longest) < lengths[:, None]).long()
    ids = torch.randint(low, SYMBOLS, (n, longest), generator=draw) * mask + PAD * (1 - mask)
    return {"input_ids": ids, "attention_mask": mask}


def padded(x, more=4):
    """The same sentences, filled up with other tokens that do not count."""
    ids = torch.cat([x["input_ids"], torch.full((len(x["input_ids"]), more), 5)], 1)
    return {"input_ids": ids, "attention_mask": nn.functional.pad(x["attention_mask"], (0, more))}


def some(x, rows):
    return {name: t[rows] for name, t in x.items()}


def fortified(nested=False, **options):
    torch.manual_seed(0)
    return fortify(
        Transformer(nested).eval(),
        ["encoder.layers.0", "encoder.layers.1"],
        example_input=batch(5),
        init="random",
        **options,
    )


DETECTORS = {
    "Energy": lambda: Energy(Transformer().eval()),
    "MaxSoftmax": lambda: MaxSoftmax(Transformer().eval()),
    "MaxLogit": lambda: MaxLogit(Transformer().eval()),
    "KNearestFeatures": lambda: KNearestFeatures(Transformer().eval(), k=3),
    "KNearestFeatures of a layer": lambda: KNearestFeatures(Transformer().eval(), "encoder.layers.0", k=3),
    "Mahalanobis": lambda: Mahalanobis(Transformer().eval(), "encoder.layers.1"),
    "ReconstructionError": lambda: ReconstructionError(fortified()),
    "ReconstructionError, relative": lambda: ReconstructionError(fortified(), relative=True),
    "ReconstructionError of nested tensors": lambda: ReconstructionError(fortified(nested=True)),
    "KNearestFeatures of nested tensors": lambda: KNearestFeatures(Transformer(True).eval(), "encoder.layers.0", k=3),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("make", DETECTORS.values(), ids=DETECTORS)
def test_detectors_take_dicts_and_no_score_depends_on_padding_or_company(make, tmp_path):
    torch.manual_seed(0)
    detector = make().fit(batch(40)).calibrate(batch(40, seed=1))
    x = batch(30, seed=2)
    scores = detector.score(x)
    assert scores.shape == (30,)
    assert scores.std() > 0
    assert torch.allclose(detector.score(padded(x)), scores, atol=1e-5)
    rows = torch.tensor([7, 3])
    assert torch.allclose(detector.score(some(x, rows)), scores[rows], atol=1e-5)
    assert torch.equal(detector.flag(x, 0.1), detector.p_value(x) <= 0.1)
    labelled = {name: t.numpy() for name, t in x.items()} | {"labels": torch.zeros(30, dtype=torch.int64)}
    assert torch.equal(detector.score(labelled), scores)
    detector.save(tmp_path)
    again = type(detector).load(tmp_path, model=detector.model)
    assert torch.equal(again.score(x), scores)
    assert detector._fixed_scores()
    with pytest.raises(ValueError, match="input_ids"):
        detector.score({"input_ids": x["input_ids"]})


@pytest.mark.parametrize("name", [n for n in DETECTORS if "nested" not in n])
def test_the_saved_scores_of_tokens_tell_another_model(name, tmp_path):
    detector = DETECTORS[name]().fit(batch(40))
    detector.save(tmp_path)
    network = getattr(detector.model, "backbone", detector.model)
    network.embedding.register_forward_hook(lambda _, __, output: 2 * output)  # no tensor shows it
    with pytest.raises(ValueError, match="other scores"):
        detectors.load(tmp_path, model=detector.model)


def test_a_mean_over_positions_is_that_of_those_that_count():
    x = torch.rand(4, 6, 5, dtype=torch.float64)
    mask = torch.tensor([[1] * k + [0] * (6 - k) for k in (6, 3, 1, 4)])
    expected = torch.stack([row[:k].mean(0) for row, k in zip(x, (6, 3, 1, 4), strict=True)])
    x[1, 4] = torch.nan  # of padding
    assert torch.allclose(mean_over_positions(x, mask), expected)
    assert torch.allclose(mean_over_positions(x.transpose(0, 1), mask.bool(), batch=1, positions=0), expected)
    assert torch.allclose(mean_over_positions(x.mT, mask, positions=2), expected)
    longer = nn.functional.pad(mask, (0, 3))
    assert torch.allclose(mean_over_positions(x, longer), expected)
    for wrong in (mask[:, :5], mask[:3], nn.functional.pad(mask, (1, 0))):
        with pytest.raises(ValueError, match="name a layer that keeps the positions"):
            mean_over_positions(x, wrong)


@pytest.mark.parametrize("batch_first", [True, False])
def test_the_errors_of_states_are_means_over_the_tokens_that_count(batch_first):
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.rnn = nn.Embedding(SYMBOLS, 4), nn.LSTM(4, 6, batch_first=batch_first)
            self.head = nn.Linear(6, 3)

        def forward(self, input_ids, attention_mask):
            h = self.embedding(input_ids)
            h = self.rnn(h)[0] if batch_first else self.rnn(h.transpose(0, 1))[0].transpose(0, 1)
            return self.head(h[torch.arange(len(h)), attention_mask.sum(1) - 1])

    net, x = fortify(Reader().eval(), ["rnn"], example_input=batch(5)), batch(7)
    _, states = net(**x, return_states=True)
    squares = (states["rnn"][1] - states["rnn"][0]).square().mean(-1)
    squares = squares if batch_first else squares.T
    norms = states["rnn"][0].square().mean(-1) if batch_first else states["rnn"][0].square().mean(-1).T
    lengths = x["attention_mask"].sum(1)
    expected = torch.stack([row[:k].mean() for row, k in zip(squares, lengths, strict=True)])
    norm = torch.stack([row[:k].mean() for row, k in zip(norms, lengths, strict=True)])
    assert torch.allclose(net.reconstruction_errors(**x)["rnn"], expected)
    assert torch.allclose(net.reconstruction_errors(**x, relative=True)["rnn"], expected / norm)


@pytest.mark.filterwarnings("ignore:the fortified network decides otherwise")
def test_autoencoders_are_fitted_on_what_counts_alone():
    x, made = batch(30), []
    for given in (x, padded(x, 3) | {"labels": torch.zeros(30, dtype=torch.int64)}):
        net = fortified(noise_std=0.0)  # noise is drawn for padding too
        history = net.fit_autoencoders(given, epochs=2, batch_size=15, lr=1e-2, progress=False)
        assert history[-1]["loss"] < history[0]["loss"]
        made.append(net.autoencoders()[1].state_dict())
    for name, value in made[0].items():
        assert torch.allclose(made[1][name], value, atol=1e-5)


@pytest.mark.filterwarnings("ignore:the fortified network decides otherwise")
def test_tokens_alone_of_an_lstm_are_fitted_scored_and_flagged(tmp_path):
    torch.manual_seed(0)
    tokens, others = torch.randint(6, SYMBOLS, (200, T)), torch.randint(1, 6, (200, T))
    net = fortify(TextClassifier("lstm", 16, SYMBOLS, 3).eval(), ["rnn"], example_input=tokens[:3], hidden=6)
    net.fit_autoencoders(tokens[:100], epochs=20, batch_size=25, lr=1e-2, progress=False)
    detector = ReconstructionError(net).fit(tokens[:100]).calibrate(tokens[100:])
    assert detector.flag(others, fpr=0.1).double().mean() > 0.5
    assert torch.allclose(detector.score(tokens[:5, :4])[1], detector.score(tokens[1:2, :4]))
    assert not detector.score(tokens[:5]).requires_grad
    assert len(detector.score(tokens[:0])) == 0
    for cls in (Energy, MaxSoftmax, MaxLogit, Mahalanobis, KNearestFeatures):
        made = cls(net.backbone).fit(tokens, torch.arange(200) % 3).calibrate(tokens)
        assert torch.allclose(made.score(tokens[3:5]), made.score(tokens)[3:5], atol=1e-5)
        made.save(tmp_path / cls.__name__)
        assert detectors.load(tmp_path / cls.__name__, model=net.backbone).flag(tokens).shape == (200,)


def test_a_model_returns_what_it_returned_before_and_its_detectors_understand_it():
    net, x = fortified(), batch(6)
    output = net(**x)
    assert isinstance(output, Output)
    assert output.pooled.shape == (6, T, 8)
    logits, states = net(**x, return_states=True)
    assert torch.equal(output.logits, logits)
    assert set(states) == {"encoder.layers.0", "encoder.layers.1"}
    assert torch.equal(Energy(net).fit(x).score(x), -logits.logsumexp(1))
    assert isinstance(net.unfortified()(**x), Output)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_transformer_that_leaves_out_padding_is_given_back_as_it_was():
    model = Transformer(nested=True).eval()
    net = fortify(model, ["encoder.layers.0"], example_input=batch(5))
    x = batch(4)
    padding = x["attention_mask"] == 0
    with torch.no_grad():
        assert net(**x).pooled[padding].any()  # the padding was kept
        for one in (model, net.unfortified()):
            assert not one(**x).pooled[padding].any()  # left out, then filled up


@pytest.mark.filterwarnings("ignore:the fortified network decides otherwise")
def test_loaders_that_pad_each_batch_by_itself_are_fitted_and_scored():
    x = batch(40)
    sentences = [ids[mask == 1] for ids, mask in zip(x["input_ids"], x["attention_mask"], strict=True)]

    def collated(few):
        ids = nn.utils.rnn.pad_sequence(few, batch_first=True, padding_value=PAD)
        return {"input_ids": ids, "attention_mask": nn.utils.rnn.pad_sequence([torch.ones_like(s) for s in few], True)}

    loader = DataLoader(sentences, 7, shuffle=True, collate_fn=collated)
    kept = torch.get_rng_state()
    net = fortified(noise_std=0.0)
    torch.set_rng_state(kept)
    net.fit_autoencoders(loader, epochs=1, batch_size=9, progress=False)
    detector = ReconstructionError(net, batch_size=9).fit(loader).calibrate(loader)
    assert torch.equal(torch.get_rng_state(), kept)
    assert torch.allclose(detector.score(loader), detector.score(x), atol=1e-5)
    assert torch.allclose(detector.p_value(loader), detector.p_value(x), atol=0.05)
    assert detector.flag(loader).shape == (40,)


def test_attacks_understand_the_output_object_of_a_fortified_network():
    class Classifier(nn.Sequential):
        def forward(self, x):
            return Output(super().forward(x))

    torch.manual_seed(0)
    parts = nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)
    x, y = torch.rand(12, 4), torch.arange(12) % 3
    found = []
    for kind in (Classifier, nn.Sequential):
        torch.manual_seed(1)
        found.append(FGSM(eps=0.1)(fortify(kind(*parts).eval(), ["1"], example_input=x), x, y))
    assert torch.equal(*found)
    assert not torch.equal(found[0], x)


def test_auto_takes_the_blocks_of_a_transformer():
    assert fortify(Transformer(), "auto", example_input=batch(5)).layers == ("encoder.layers.0", "encoder.layers.1")
    with torch.random.fork_rng():
        vit = VisionTransformer(16, 8, 3, 4, 8, 16, num_classes=5)
    blocks = ("encoder.layers.encoder_layer_1", "encoder.layers.encoder_layer_2")
    assert fortify(vit, "auto", example_input=torch.rand(2, 3, 16, 16)).layers == blocks


@pytest.mark.parametrize(
    "objective", [ClassifierObjective(), FortifiedObjective(), FortifiedObjective(reduction="sum")]
)
def test_classifiers_are_trained_on_dicts(objective):
    x = batch(40)
    losses = []
    for given in (x, padded(x)):
        net = fortified(noise_std=0.0)
        with torch.no_grad():
            losses.append(objective(net, as_source((given, x["input_ids"][:, 0] % 3)).fetch(ROWS, CPU), 0)["loss"])
    assert torch.allclose(losses[0], losses[1])  # whatever the padding
    given = x | {"labels": x["input_ids"][:, 0] % 3}
    history = Trainer(objective, epochs=4, batch_size=20, progress=False).fit(net, given)
    assert history[-1]["loss"] < history[0]["loss"]
    with pytest.raises(ValueError, match="no dict of keyword arguments"):
        Trainer(ClassifierObjective(FGSM(eps=0.1)), progress=False).fit(net, given)


def test_a_network_is_loaded_in_eval_mode(tmp_path):
    fortified().train().save(tmp_path)
    net = FortifiedNetwork.load(tmp_path, model=Transformer().train())
    assert not any(module.training for module in net.modules())


def test_bad_tokens_and_dicts_are_named():
    detector, x = Energy(Transformer().eval()).fit(batch(8)), batch(4)
    ids, mask = x["input_ids"], x["attention_mask"]
    for wrong, error, line in (
        (x | {"attention_mask": mask * 0}, ValueError, "leaves an input no position"),
        (x | {"attention_mask": mask[0]}, ValueError, "one row for each input, got input_ids"),
        (x | {"input_ids": -ids}, ValueError, "negative tokens"),
        (x | {"input_ids": ids.float()}, ValueError, r"is of inputs input_ids \(9,\), torch.int64"),
        (x | {"input_ids": ids.to(torch.uint8)}, TypeError, "must be float32, float64, int64, int32 or bool"),
        (x | {"input_ids": ids.tolist()}, TypeError, "must be a tensor"),
        (x | {"input_ids": ids + SYMBOLS}, ValueError, "the model fails on inputs of input_ids .*index out of range"),
        ({}, ValueError, "got none"),
        (ids, ValueError, "as in fit"),
    ):
        with pytest.raises(error, match=line):
            detector.score(wrong)
    with pytest.raises(ValueError, match=r"tokens \(N, T\) with T >= 1"):
        check_inputs(ids[:, :0])
    with pytest.raises(TypeError, match="takes tensors of floats"):
        detectors.PCAResidual().fit(x)
    with pytest.raises(TypeError, match="float32 or float64"):
        detectors.PCAResidual().fit(ids)


def test_features_of_other_positions_than_the_mask_s_are_refused():
    class Shorter(Transformer):
        def states(self, input_ids, attention_mask):
            return super().states(input_ids, attention_mask)[:, 1:]

        def forward(self, *, input_ids, attention_mask):
            return self.head(nn.functional.relu(self.states(input_ids, attention_mask))).mean(1)

    with pytest.raises(ValueError, match=r"at 8 positions, but attention_mask \(5, 9\)"):
        FeatureExtractor(Shorter().eval())(batch(5))


# Texts from files of tokens, by command: scored by a network of one's own, or of Hugging Face.

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
