"""What is kept of a stream of scores: exact counts at the threshold, both ends, and no more the longer it is."""

import json

import numpy as np
import pytest
import torch

from robustgen.evaluation import draw_html
from robustgen.evaluation.score_summary import ScoreSummary


def summary(scores, threshold=1.0, x=None, parts=1):
    """Of ``scores``, told in so many batches."""
    found = ScoreSummary("mine", "Detector()", fpr=0.1, threshold=threshold, n_calibration=9)
    scores = torch.as_tensor(scores, dtype=torch.float64)
    x = torch.zeros(len(scores), 3) if x is None else x
    for i in torch.arange(len(scores)).chunk(parts):
        found.add(i.tolist(), x[i], scores[i], torch.full((len(i),), 0.5), scores[i] > threshold)
    return found


SCALES = {
    "usual": lambda z: z,
    "tiny": lambda z: 1e-9 * z,
    "likelihoods": lambda z: -1e4 + 50 * z,
    "heavy tails": lambda z: z.sinh().sinh(),
}


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_the_histogram_counts_every_score_and_none_on_the_wrong_side(scale):
    scores = scale(torch.randn(3000, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    threshold = scores.quantile(0.9).item()
    entry = summary(scores, threshold, parts=7).to_dict()
    histogram = entry["histogram"]
    edges, counts = np.array(histogram["edges"]), np.array(histogram["counts"])
    assert counts.sum() + histogram["below"] + histogram["above"] == 3000
    assert histogram["below"] + histogram["above"] <= 32
    middle = (edges[1:] + edges[:-1]) / 2
    assert counts[middle > threshold].sum() + histogram["above"] == (scores > threshold).sum()
    assert 20 <= len(counts) <= 110
    exact, _ = np.histogram(scores, edges)
    assert np.abs(exact - counts).sum() <= 0.05 * 3000  # a score far from the threshold may lie in the next bin
    assert entry["flagged"]["value"] == pytest.approx(0.1)


def test_it_does_not_depend_on_batches():
    scores = torch.randn(500, generator=torch.Generator().manual_seed(1))
    assert summary(scores, parts=1).to_dict() == summary(scores, parts=50).to_dict()


def test_the_ends_are_kept_with_their_pictures():
    scores = torch.randperm(100, generator=torch.Generator().manual_seed(0)).double()
    entry = summary(scores, x=scores[:, None, None, None].expand(100, 1, 2, 2) / 255, parts=9).to_dict()
    assert [row["score"] for row in entry["most"]] == list(range(99, 91, -1))
    assert [row["score"] for row in entry["least"]] == list(range(8))
    assert all(scores[row["input"]] == row["score"] for row in entry["most"] + entry["least"])
    pictures = summary(torch.tensor([3.0]), x=torch.full((1, 1, 2, 2), 0.2)).to_dict()["most"][0]["picture"]
    assert pictures == {"shape": [1, 2, 2], "uint8": "MzMzMw=="}


def test_of_few_inputs_none_is_at_both_ends():
    entry = summary([3.0, 1.0, 2.0]).to_dict()
    assert [row["input"] for row in entry["most"]] == [0, 2]
    assert [row["input"] for row in entry["least"]] == [1]


def test_memory_does_not_grow_with_the_stream():
    found = summary(torch.randn(1000))
    sizes = []
    for k in range(2, 60):
        scores = torch.randn(5000, generator=torch.Generator().manual_seed(k))
        found.add(list(range(5000)), torch.zeros(5000, 3), scores, torch.ones(5000), scores > 1)
        sizes.append(len(found._counts))
    assert found._n > 290_000
    assert sizes[-1] < 1.3 * sizes[len(sizes) // 2] < 40_000
    assert len(found._most) == len(found._least) == 8


@pytest.mark.parametrize(
    ("scores", "threshold"),
    [([], 1.0), ([2.0], 1.0), ([1.0, 1.0], 1.0), ([float("inf"), -float("inf"), 0.0], 1.0), ([1.0], float("inf"))],
)
def test_odd_scores_have_a_page(scores, threshold):
    entry = summary(scores, threshold).to_dict()
    assert entry["n"] == len(scores)
    histogram = entry["histogram"]
    if scores:
        assert sum(histogram["counts"]) + histogram["below"] + histogram["above"] == len(scores)
    entry = json.loads(json.dumps(entry, allow_nan=False))
    page = draw_html({"networks": [], "scores": [entry]})
    assert "cannot be drawn" not in page
