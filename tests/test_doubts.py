"""What an evaluation warns of before any of its numbers counts, and which inputs it shows."""

import json

import pytest
import torch
from torch import nn

from robustgen import ReconstructionError, fortify
from robustgen.attacks import FGSM, PGD, NoiseSearch
from robustgen.checks import eps_spans_bounds
from robustgen.evaluation import evaluate_detector_robustness, evaluate_robustness
from robustgen.evaluation.doubts import at_chance
from robustgen.evaluation.report import draw_markdown
from robustgen.training import ClassifierObjective, Trainer


def lines(n_right, n):
    """Which of ``n`` examples are right: the first ``n_right``."""
    return torch.arange(n) < n_right


class TestChance:
    def test_a_network_that_guesses(self):
        y = torch.arange(1000) % 10
        assert "10.0% (one of 10 classes)" in at_chance(lines(90, 1000), y, 10)
        generator = torch.Generator().manual_seed(0)
        guesses = torch.randint(10, (1000,), generator=generator)
        assert "preprocessing" in at_chance(guesses == y, y, 10)
        assert at_chance(lines(130, 1000), y, 10) is None  # 13 %: its interval begins above a tenth

    def test_a_constant_answer(self):
        y = torch.cat([torch.ones(1135), torch.arange(8865) % 9 + (torch.arange(8865) % 9 > 0)]).long()
        assert y.bincount()[1] == 1135  # MNIST's ones
        assert "11.3% (the most frequent class)" in at_chance(y == 1, y, 10)  # though it is above a tenth
        assert at_chance((y == 1) | (torch.arange(10000) % 2 == 0), y, 10) is None

    def test_many_of_one_class_are_no_reason(self):
        y = (torch.arange(100) >= 90).long()
        right = torch.ones(100, dtype=torch.bool)
        right[:12] = False  # worse than the constant answer, but it knows both classes
        assert at_chance(right, y, 10) is None
        assert at_chance(lines(90, 100), y, 10) is not None
        assert at_chance(torch.ones(50).bool(), torch.zeros(50).long(), 10) is None
        assert "one of 10" in at_chance(torch.zeros(50).bool(), torch.zeros(50).long(), 10)

    def test_too_few_to_tell(self):
        assert at_chance(lines(0, 1), torch.tensor([0]), 2) is None
        assert at_chance(lines(2, 2), torch.tensor([0, 1]), 2) is None


@pytest.mark.parametrize(
    ("eps", "norm", "bounds", "line"),
    [
        (8, "Linf", (0.0, 1.0), "did you mean 8/255 = 0.0314?"),
        (1.0, "Linf", (0.0, 1.0), None),
        (8, "Linf", (-1.0, 1.0), "did you mean 8/255 * 2 = 0.0627?"),
        (300.0, "Linf", (0.0, 1.0), "the whole range of the bounds (0, 1)"),
        (8, "Linf", (0.0, 255.0), None),
        (
            128,
            "L2",
            (0.0, 1.0),
            "the distance of any two inputs in the bounds (0, 1), 4: did you mean 128/255 = 0.502?",
        ),
        (4, "L2", (0.0, 1.0), None),
        (17, "L1", (0.0, 1.0), "did you mean 17/255"),
        (15, "L1", (0.0, 1.0), None),
    ],
)
def test_an_eps_that_holds_every_input(eps, norm, bounds, line):
    found = eps_spans_bounds(eps, norm, bounds, 16)
    assert found is None if line is None else line in found


@pytest.fixture
def setting():
    torch.manual_seed(1)
    x = torch.rand(100, 1, 4, 4)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    return net, x, net(x).argmax(1)


def test_doubts_are_warned_of_and_kept(setting, tmp_path):
    net, x, y = setting
    options = {"masking_tests": False, "attacks": [FGSM(eps=0.01)]}
    with pytest.warns(UserWarning, match="not above chance"):
        report = evaluate_robustness(net, x, (y + 1) % 3, eps=0.01, **options)
    with pytest.warns(UserWarning, match="did you mean 8/255"):
        far = evaluate_robustness(net, x, y, eps=8, **options)
    for found, word in ((report, "preprocessing"), (far, "did you mean 8/255")):
        page = found.save(tmp_path).read_text()
        entry = json.loads((tmp_path / "report.json").read_text())
        assert word in entry["networks"][0]["notes"][0]
        assert word in page
        assert word in draw_markdown(entry)
        assert word in str(found)


def test_doubts_about_a_guarded_network(setting, tmp_path):
    net, x, y = setting
    net = fortify(net, ["1"], example_input=x[:2], init="random")
    detector = ReconstructionError(net).fit(x[:40]).calibrate(x[40:80])
    y = (net(x[80:]).argmax(1) + 1) % 3
    with pytest.warns(UserWarning, match="eps 2|not above chance") as found:
        report = evaluate_detector_robustness(net, detector, x[80:], y, eps=2.0, fpr=0.1, steps=1, formulations=["sum"])
    assert [str(w.message)[:5] for w in found] == ["eps 2", "clean"]
    page = report.save(tmp_path).read_text()
    assert all(note in page for note in ("not above chance", "eps 2 is larger"))
    assert report.notes == report.to_dict()["notes"]
    assert report.notes[0] in str(report)


class TestPictures:
    def test_only_what_was_right_is_shown_and_first_what_fell(self, setting):
        net, x, y = setting
        y = torch.where(torch.arange(100) % 3 == 0, (y + 1) % 3, y)  # a third is wrong from the start
        gap = net(x).detach().topk(2).values.diff().abs().squeeze()
        eps = gap[:64].median().item() / 8
        report = evaluate_robustness(net, x, y, eps=eps, attacks=[PGD(eps=eps)], masking_tests=False)
        shown = report.shown
        assert len(shown) == 8
        assert report.clean[shown].all()
        fell = ~report.standing[shown]
        assert fell.tolist() == sorted(fell.tolist(), reverse=True)
        assert fell.sum() == min(8, (report.clean & ~report.standing)[:64].sum())
        clean, adversarial = report.examples
        assert torch.equal(clean, x[shown])
        assert torch.equal((net(adversarial).argmax(1) != y[shown]), fell)
        assert ((adversarial - clean).flatten(1).abs().amax(1) > 0).equal(fell)

    def test_the_page_says_which(self, setting, tmp_path):
        net, x, y = setting
        y = torch.cat([(y[:50] + 1) % 3, y[50:54], (y[54:] + 1) % 3])
        ids = torch.arange(100) + 1000
        attack = NoiseSearch(eps=1e-6, n_queries=1)
        with pytest.warns(UserWarning, match="chance"):
            report = evaluate_robustness(net, x, y, eps=1e-6, attacks=[attack], masking_tests=False, ids=ids)
        page = report.save(tmp_path).read_text()
        assert "stood under every attack" in page
        assert all(f"({k})" in page for k in (1050, 1051, 1052, 1053))
        assert "right and fell" not in page
        assert json.loads((tmp_path / "report.json").read_text())["networks"][0]["pictures"]["shape"][1] == 4

    def test_no_input_that_was_right_no_pictures(self, setting, tmp_path):
        net, x, y = setting
        with pytest.warns(UserWarning, match="chance"):
            report = evaluate_robustness(net, x, (y + 1) % 3, eps=0.1, attacks=[FGSM(eps=0.1)], masking_tests=False)
        assert report.to_dict()["pictures"] == {}
        assert "data:image" not in report.save(tmp_path).read_text()


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_an_attack_called_by_hand_or_in_training_says_so_too(norm):
    net, x, y = nn.Linear(3, 2), torch.rand(4, 3), torch.arange(4) % 2
    with pytest.warns(UserWarning, match="did you mean 8/255 = 0.0314"):
        PGD(eps=8, norm=norm, steps=1)(net, x, y)
    with pytest.warns(UserWarning, match="did you mean 8/255 = 0.0314"):
        Trainer(ClassifierObjective(PGD(eps=8, norm=norm, steps=1)), progress=False).fit(net, (x, y))
    PGD(eps=0.1, norm=norm, steps=1)(net, x, y)
