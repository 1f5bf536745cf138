"""Tokens, padding and dicts of keyword arguments, from fitting autoencoders to flags; outputs that keep their type."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from robustgen import detectors
from robustgen.detectors import Energy, KNearestFeatures, Mahalanobis, MaxLogit, MaxSoftmax, ReconstructionError
from robustgen.fortified import fortify

T, SYMBOLS, PAD = 9, 12, 0


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


def fortified(nested=False, layers=("encoder.layers.0", "encoder.layers.1")):
    torch.manual_seed(0)
    return fortify(Transformer(nested).eval(), layers, example_input=batch(5))


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
