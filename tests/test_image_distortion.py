"""The image distortion model against loops over pixels, and what its definition says of strokes."""

import pytest
import torch

from robustgen.detectors import ImageDistortion
from robustgen.detectors.image_distortion import distortions


def features(n, seed, channels=2):
    return torch.rand(n, channels, 5, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_loops(a, b, window):
    """D(a, b) of one pair, pixel by pixel."""
    _, height, width = a.shape

    def at(image, i, j):
        inside = 0 <= i < height and 0 <= j < width
        return image[:, i, j] if inside else torch.zeros(len(image), dtype=image.dtype)

    total = torch.zeros((), dtype=a.dtype)
    moves = range(-window, window + 1)
    around = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    for i in range(height):
        for j in range(width):
            context = [(i + u, j + v) for u, v in around]
            total += (
                min(
                    sum((at(a, p, q) - at(b, p + di, q + dj)).square().sum() for p, q in context)
                    for di in moves
                    for dj in moves
                )
                ** 2
            )
    return total.sqrt()


@pytest.mark.parametrize("window", [0, 1, 2])
def test_distortion_against_loops(window):
    a, b = features(3, 0), features(3, 1)
    found = distortions(a, b, window)
    for first, second, cost in ((a, b, found[0]), (b, a, found[1])):
        expected = torch.stack([by_loops(x, y, window) for x, y in zip(first, second, strict=True)])
        torch.testing.assert_close(cost, expected, rtol=1e-12, atol=1e-12)


def test_distortion_falls_with_the_window_and_has_the_right_gradient():
    a, b = features(2, 0, channels=1), features(2, 1, channels=1)
    costs = torch.stack([torch.stack(distortions(a, b, window)) for window in range(4)])
    assert (costs[:-1] >= costs[1:]).all()
    assert torch.autograd.gradcheck(lambda a, b: distortions(a, b, 1), (a.requires_grad_(), b.requires_grad_()))


def strokes(*columns):
    x = torch.zeros(1, 1, 12, 16, dtype=torch.float64)
    for column in columns:
        x[..., 2:10, column] = 1
    return x


def test_a_missing_stroke_costs_in_one_direction_a_moved_one_in_none():
    one, both = strokes(3), strokes(3, 11)
    there, missing = (cost.item() for cost in distortions(one, both, 2))
    assert there == 0
    assert missing > 1
    for column, near in ((5, True), (6, False)):
        for cost in distortions(one, strokes(column), 2):
            assert (cost.item() == 0) == near
    detector = ImageDistortion(shortlist=2, k=1).fit(torch.cat([both, strokes(2, 13)]))
    assert detector.score(strokes(4, 11)).item() < 1e-6
    assert detector.score(one).item() > 0.1  # all of it fits, but half of every image of fit is missing


def test_detector_against_all_pairs():
    generator = torch.Generator().manual_seed(0)
    bank, x = (torch.rand(n, 1, 6, 6, generator=generator, dtype=torch.float64) for n in (4, 3))
    kernel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], dtype=torch.float64)[None, None] / 8
    across, down = (torch.nn.functional.conv2d(bank, k, padding=1) for k in (kernel, kernel.mT))
    theirs = torch.cat([across, down], dim=1)
    across, down = (torch.nn.functional.conv2d(x, k, padding=1) for k in (kernel, kernel.mT))
    ours = torch.cat([across, down], dim=1)
    cost = torch.tensor([[max(by_loops(a, b, 1), by_loops(b, a, 1)) for b in theirs] for a in ours])
    nearest = cost.sort(1).values[:, :3].mean(1) / ours.flatten(1).norm(dim=1).sqrt()
    score = ImageDistortion(window=1, shortlist=4, k=3).fit(bank).score(x)
    torch.testing.assert_close(score, nearest)
    assert torch.equal(ImageDistortion(window=1, shortlist=4, k=3, batch_size=1).fit(bank).score(x[2:3]), score[2:3])
    undivided = ImageDistortion(window=1, shortlist=4, k=3, exponent=0).fit(bank).score(x)
    torch.testing.assert_close(undivided, nearest * ours.flatten(1).norm(dim=1).sqrt())


def test_errors():
    with pytest.raises(ValueError, match="k must be at most the short list of 3, got 4"):
        ImageDistortion(k=4, shortlist=3)
    with pytest.raises(ValueError, match="as many images in fit, got 3"):
        ImageDistortion(shortlist=5).fit(torch.zeros(3, 1, 8, 8))
    for shape in ((30, 64), (30, 8, 8), (30, 1, 1, 1)):
        with pytest.raises(ValueError, match=r"images \(N, C, H, W\) of several pixels are needed, got shape \("):
            ImageDistortion().fit(torch.zeros(shape))
