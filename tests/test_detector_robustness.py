"""Detectors under attack: linear classifiers and detectors of which everything is known, rates counted by hand."""

import json

import pytest
import torch
from sklearn.exceptions import NotFittedError
from torch import nn

from robustgen.detectors import Detector
from robustgen.evaluation import (
    DetectorRobustness,
    GuardedOutcome,
    ReverseOutcome,
    auroc,
    evaluate_detector_robustness,
    load_report,
    wilson_interval,
)
from robustgen.evaluation.report import draw_markdown

FIRST, DEEPEST = "oblivious PGD, first point that fools", "oblivious PGD, lowest margin"
EPS = 0.05


class Known(Detector):
    """Scores by a given function."""

    def __init__(self, model, function):
        super().__init__(model)
        self.function = function

    def _fit(self, batches):
        return {}

    def _score(self, x):
        return self.function(x)


class TestClosedForms:
    """The classifier looks at coordinates 0 to 4 of ten, linearly; no bound is within eps."""

    def setup_method(self):
        generator = torch.Generator().manual_seed(0)
        self.x, self.held_back = (
            0.3 + 0.4 * torch.rand(n, 10, dtype=torch.float64, generator=generator) for n in (80, 199)
        )
        self.model = nn.Linear(10, 2, bias=False).double()
        w = torch.zeros(10, dtype=torch.float64)
        w[:5] = torch.tensor([0.5, -1.0, 0.7, -0.6, 0.9])
        self.model.weight.data = torch.stack([w, torch.zeros_like(w)])
        self.gap = lambda z: z @ w - 0.25
        self.model = nn.Sequential(self.model, _Shift())
        self.y = (self.gap(self.x) < 0).long()
        self.reach = EPS * w.abs().sum()  # how far the gap can be moved
        self.breakable = self.gap(self.x).abs() < self.reach
        assert 20 < self.breakable.sum() < 70

    def detector(self, function):
        return Known(self.model, function).fit(self.held_back[:100]).calibrate(self.held_back[100:])

    def found(self, function, **options):
        options = {"eps": EPS, "fpr": 0.1} | options
        return evaluate_detector_robustness(self.model, self.detector(function), self.x, self.y, **options)

    def test_a_detector_that_sees_nothing(self):
        """Joint attacks are what the oblivious one is: a success wherever the classifier can be fooled."""
        found = self.found(lambda z: 0 * z.sum(1))
        assert not found.flagged.any()
        for outcome in (*found.outcomes.values(), found.worst_case):
            assert torch.equal(outcome.fooled, self.breakable)
            rates = found.rates(outcome)
            assert rates["flagged"]["value"] == 0
            assert rates["evaded"] == rates["success"]
            assert rates["auroc"] == 0.5
        assert found.guarded_accuracy == (~self.breakable).double().mean().item()

    def test_a_detector_that_sees_everything(self):
        """All inputs are of one class, and the score is how little they look it: to be fooled is to be flagged."""
        one, other = self.held_back[self.gap(self.held_back) > 0.05], self.x[self.gap(self.x) > 0]
        detector = Known(self.model, lambda z: -self.gap(z)).fit(one).calibrate(one)
        y = torch.zeros(len(other), dtype=torch.int64)
        found = evaluate_detector_robustness(self.model, detector, other, y, eps=EPS, fpr=0.1)
        assert found.threshold < 0
        breakable = self.breakable[self.gap(self.x) > 0]
        assert 0 < breakable.sum() < len(breakable)
        for outcome in (*found.outcomes.values(), found.worst_case):
            assert not (outcome.fooled & ~breakable).any()
            rates = found.rates(outcome)
            assert rates["flagged"]["value"] == 1
            assert rates["evaded"]["value"] == 0
            assert rates["auroc"] == 1
        assert torch.equal(found.worst_case.fooled, breakable)
        assert found.guarded_accuracy == 1

    def test_resumed(self, tmp_path):
        """What is kept is not searched for again; another detector with the same attacks is refused."""
        distance = lambda z: (z[:, 5:].mean(1) - 0.7).abs()
        options = {"steps": 5, "batch_size": 10, "formulations": ("sum",), "x_ood": torch.full_like(self.x, 0.3)}
        whole = self.found(distance, **options)
        self.found(distance, **options, run_dir=tmp_path)
        kept = sorted(tmp_path.rglob("*.safetensors"))
        assert len(kept) == 8  # two chunks of 40 for each of three attacks and the reverse one
        for lost in kept[1::2]:
            lost.unlink()
        resumed = self.found(distance, **options, run_dir=tmp_path, resume=True)
        assert resumed.to_dict()["per_example"] == whole.to_dict()["per_example"]
        assert torch.equal(resumed.reverse.after, whole.reverse.after)
        with pytest.raises(ValueError, match="already holds"):
            self.found(distance, **options, run_dir=tmp_path)
        with pytest.raises(ValueError, match="detector's scores differ"):
            self.found(lambda z: distance(z) + 1e-3 * (distance(z) < 0.2), **options, run_dir=tmp_path, resume=True)

    def test_what_is_certified_stands_beside_what_was_attacked(self):
        """A linear score with its slope known: bounds are exact, and no attack goes beyond."""

        class Linear(Known):
            def _lipschitz(self, norm, dimensions):
                return {"Linf": 1.0}.get(norm)

        detector = Linear(self.model, lambda z: z[:, 5:].mean(1)).fit(self.held_back[:100])
        detector.calibrate(self.held_back[100:])
        outside = torch.cat([torch.full((5, 10), 0.69), torch.full((5, 10), 0.65)]).double()
        options = {"eps": EPS, "fpr": 0.3, "steps": 20, "x_ood": outside}
        found = evaluate_detector_robustness(self.model, detector, self.x, self.y, **options)
        entry = found.to_dict()
        sure = entry["certified"]["out_of_distribution"]
        assert sure["flagged"]["value"] <= entry["out_of_distribution"]["after"]["flagged"]["value"]
        assert sure["auroc"] <= entry["out_of_distribution"]["after"]["auroc"] + 1e-9
        certain = found.certified.lowest > found.threshold
        assert certain.any()
        assert torch.allclose(found.certified.lowest, found.scores - EPS, atol=1e-3)
        for outcome in found.outcomes.values():
            assert bool((outcome.scores >= found.certified.lowest).all())
            assert bool((outcome.scores[certain] > found.threshold).all())
        assert "certified: flagged whatever the change" in str(found)
        blind = evaluate_detector_robustness(self.model, detector, self.x, self.y, **options | {"norm": "L2"})
        assert blind.certified is None
        assert blind.to_dict()["certified"] is None

    def test_the_two_are_fooled_apart(self):
        """The detector looks at the other coordinates: the ball allows what it allows of each."""
        distance = lambda z: (z[:, 5:].mean(1) - 0.7).abs()
        eps = 0.02
        outside = torch.full_like(self.x, 0.3)
        found = self.found(distance, eps=eps, fpr=0.3, x_ood=outside)
        assert found.threshold == distance(self.held_back[100:]).sort().values[99 - 30].item()
        breakable = self.gap(self.x).abs() < self.reach * eps / EPS
        lowest = (distance(self.x) - eps).clamp(min=0)
        feasible = breakable & (lowest <= found.threshold)
        assert 0 < feasible.sum() < breakable.sum() < len(self.x)
        assert (breakable & (distance(self.x) > found.threshold) & feasible).any()  # flagged, and need not be
        evaded = found.worst_case.fooled & (found.worst_case.scores <= found.threshold)
        assert torch.equal(evaded, feasible)
        joint = [o for label, o in found.outcomes.items() if label.startswith("joint")]
        assert len(joint) == 4
        for outcome in joint:
            assert torch.equal(outcome.fooled, breakable)
            assert (outcome.scores >= lowest - 1e-12).all()
        orthogonal = found.outcomes["joint, orthogonal"]
        assert torch.allclose(orthogonal.scores[breakable], lowest[breakable], atol=1e-3)
        oblivious = found.rates(found.outcomes[DEEPEST])
        assert oblivious["evaded"]["value"] < found.rates(found.worst_case)["evaded"]["value"]
        assert found.guarded_accuracy == (~feasible).double().mean().item()

        assert torch.allclose(found.reverse.before, torch.tensor(0.4, dtype=torch.float64))
        assert torch.allclose(found.reverse.after, torch.tensor(0.38, dtype=torch.float64), atol=1e-4)

    def test_an_out_of_distribution_input_made_to_look_normal(self):
        distance = lambda z: (z[:, 5:].mean(1) - 0.5).abs()
        far = torch.full((40, 10), 0.5, dtype=torch.float64)
        far[:, 5:] = torch.linspace(0.65, 0.95, 40, dtype=torch.float64)[:, None]
        found = self.found(distance, eps=0.2, x_ood=far, formulations=["selective"])
        after = (distance(far) - 0.2).clamp(min=0)
        assert torch.allclose(found.reverse.after, after, atol=2e-3)
        entry = found.to_dict()["out_of_distribution"]
        assert entry["before"]["flagged"]["value"] == 1
        share = (after > found.threshold).double().mean().item()
        assert 0.1 < share < 0.9
        assert abs(entry["after"]["flagged"]["value"] - share) <= 1 / 40
        assert entry["before"]["auroc"] == auroc(distance(self.x), distance(far))
        assert abs(entry["after"]["auroc"] - auroc(distance(self.x), after)) < 0.02

    def test_where_an_oblivious_attack_stops_matters(self):
        """The detector flags what is near the decision boundary: the first point that fools is, the deepest is not."""
        found = self.found(lambda z: -self.gap(z).abs(), fpr=0.3)
        assert found.threshold < 0
        feasible = self.gap(self.x).abs() - found.threshold < self.reach
        first, deepest = found.rates(found.outcomes[FIRST]), found.rates(found.outcomes[DEEPEST])
        assert first["success"] == deepest["success"]
        assert first["flagged"]["value"] > 0.7
        assert deepest["evaded"]["value"] == feasible.double().mean().item()
        assert found.rates(found.worst_case)["evaded"] == deepest["evaded"]

    def test_the_threshold_is_that_of_the_calibration(self):
        score = lambda z: z.sum(1)
        few = {"formulations": ["sum"], "steps": 2}
        found = self.found(score, **few)
        self.x, self.y = self.x[:9] * 0.5, self.y[:9]
        again = self.found(score, **few)
        assert found.threshold == again.threshold == score(self.held_back[100:]).sort().values[99 - 10].item()
        assert found.n_calibration == 99
        assert torch.equal(found.flagged, found.scores > found.threshold)

    def test_outcomes_go_by_id(self):
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(1))
        score, few = lambda z: (z[:, 4:].mean(1) - 0.5).abs(), {"formulations": ["max"], "steps": 5}
        found = self.found(score, **few)
        self.x, self.y = self.x[order], self.y[order]
        again = self.found(score, **few, ids=order, batch_size=7)
        for label, outcome in found.outcomes.items():
            assert torch.equal(outcome.fooled[order], again.outcomes[label].fooled)
            assert torch.allclose(outcome.scores[order], again.outcomes[label].scores, atol=1e-9)

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"eps": 0.0}, "eps must be"),
            ({"fpr": 0.001}, "99 calibration scores cannot give"),
            ({"formulations": ["score"]}, "unknown formulation 'score'"),
            ({"formulations": []}, "at least one, each once"),
            ({"formulations": ["sum", "sum"]}, "at least one, each once"),
            ({"x_ood": torch.zeros(2, 9, dtype=torch.float64)}, r"x_ood must hold inputs of shape \(10,\)"),
            ({"x_ood": torch.zeros(0, 10, dtype=torch.float64)}, "x_ood must hold inputs"),
            ({"x_ood": torch.full((2, 10), 2.0, dtype=torch.float64)}, "x_ood has values in"),
            ({"norm": "L0"}, "supports norm"),
        ],
    )
    def test_wrong_use(self, options, match):
        with pytest.raises(ValueError, match=match):
            self.found(lambda z: z.sum(1), **options)

    def test_wrong_detectors(self):
        with pytest.raises(TypeError, match=r"must be a robustgen\.detectors\.Detector, got function"):
            evaluate_detector_robustness(self.model, lambda z: z.sum(1), self.x, self.y, eps=EPS)
        fitted = Known(self.model, lambda z: z.sum(1)).fit(self.held_back)
        with pytest.raises(NotFittedError, match="not calibrated"):
            evaluate_detector_robustness(self.model, fitted, self.x, self.y, eps=EPS)
        with pytest.raises(ValueError, match="the score does not depend on x through differentiable"):
            self.found(lambda z: z.detach().sum(1))
        poor = self.detector(lambda z: z.sum(1))
        poor.function = lambda z: z.sum(1) * (1.0 if len(z) < 80 else float("nan"))
        with pytest.raises(ValueError, match="score is NaN for 80 of 80"):
            evaluate_detector_robustness(self.model, poor, self.x, self.y, eps=EPS, steps=1, batch_size=10)
        with pytest.raises(ValueError, match="data set is empty"):
            evaluate_detector_robustness(self.model, poor, self.x[:0], self.y[:0], eps=EPS)


class _Shift(nn.Module):
    def forward(self, z):
        return z + torch.tensor([-0.25, 0.0], dtype=z.dtype)


@pytest.fixture
def by_hand():
    """Six examples, two attacks: classified wrongly are the last two, flagged is what scores above 5."""
    bits = lambda s: torch.tensor([c == "1" for c in s])
    numbers = lambda *v: torch.tensor(v, dtype=torch.float64)
    return DetectorRobustness(
        name="net",
        detector="Known()",
        eps=0.1,
        norm="Linf",
        bounds=(0.0, 1.0),
        fpr=0.05,
        threshold=5.0,
        n_calibration=99,
        ids=torch.arange(6),
        y=torch.zeros(6, dtype=torch.int64),
        clean=bits("111100"),
        scores=numbers(1, 2, 3, 9, 1, 9),
        outcomes={
            "a": GuardedOutcome({}, bits("110111"), numbers(6, 2, 0, 4, 9, 9)),
            "b": GuardedOutcome({}, bits("101011"), numbers(5, 1, 8, 1, 1, 1)),
        },
        reverse=ReverseOutcome({}, numbers(10, 20), numbers(4, 6)),
    )


def test_rates_by_hand(by_hand):
    entry = by_hand.to_dict()
    assert by_hand.clean_accuracy == 4 / 6
    assert {name: s["value"] for name, s in entry["clean"].items()} == {
        "accuracy": 4 / 6,
        "false_alarms": 2 / 6,
        "correct_and_unflagged": 0.5,
    }
    expected = {  # of: 4 correct, the fooled, 4 correct, 6
        "a": ((3, 4), (1, 3), (2, 4), (3, 6), 10.5 / 18),
        "b": ((2, 4), (1, 2), (1, 4), (3, 6), 8 / 12),
        "worst": ((4, 4), (1, 4), (3, 4), (1, 6), 14.5 / 24),
    }
    for label, (*shares, area) in expected.items():
        rates = entry["worst_case"] if label == "worst" else entry["attacks"][label]
        for name, (k, n) in zip(("success", "flagged", "evaded", "guarded_accuracy"), shares, strict=True):
            low, high = wilson_interval(k, n)
            assert rates[name] == {"value": k / n, "low": low, "high": high, "n": n}, (label, name)
        assert abs(rates["auroc"] - area) < 1e-12
    assert by_hand.worst_case.scores.tolist() == [5, 2, 8, 4, 1, 1]
    assert by_hand.guarded_accuracy == 1 / 6
    reverse = entry["out_of_distribution"]
    assert reverse["before"]["flagged"]["value"] == 1
    assert reverse["after"]["flagged"]["value"] == 0.5
    assert reverse["before"]["auroc"] == 1
    assert reverse["after"]["auroc"] == 8 / 12


def test_nothing_fooled_and_nothing_correct(by_hand):
    for outcome in by_hand.outcomes.values():
        outcome.fooled[:] = False
    rates = by_hand.to_dict()["worst_case"]
    assert rates["success"]["value"] == 0
    assert rates["flagged"] is rates["auroc"] is None
    by_hand.clean[:] = False
    assert by_hand.to_dict()["worst_case"]["success"] is None
    assert "of none" in str(by_hand)


def test_the_report_says_what_was_found(by_hand, tmp_path):
    page = by_hand.save(tmp_path, command="made by hand").read_text()
    report = load_report(tmp_path)
    assert report["detector_robustness"] == [json.loads(json.dumps(by_hand.to_dict()))]
    low, high = wilson_interval(3, 4)
    cell = f"75.0% [{low:.1%}, {high:.1%}]"
    for text in (page, draw_markdown(report), str(by_hand)):
        assert cell in text
        assert "worst case per example" in text
        assert "attacked to look normal (n = 2)" in text
        assert "0.604" in text  # 14.5 / 24
    assert "Detectors under attack" in page
    assert "from 99 calibration scores" in str(by_hand)
