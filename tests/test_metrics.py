"""Detection metrics against scikit-learn, closed forms and simulation."""

import copy
import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from robustgen.calibration import ConformalCalibration
from robustgen.evaluation.metrics import (
    aupr_davis_goadrich,
    aupr_trapezoid,
    auroc,
    average_precision,
    detection_metrics,
    fpr_at_tpr,
    roc_curve,
    wilson_interval,
)

settings.register_profile("no deadline", deadline=None)  # a busy machine is not a failure
settings.load_profile("no deadline")

METRICS = [auroc, average_precision, aupr_trapezoid, aupr_davis_goadrich, fpr_at_tpr, roc_curve, detection_metrics]
tied = st.lists(st.integers(-3, 3), min_size=1, max_size=30)  # few values: many ties
real = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30)
scores = tied | real


def labelled(a, b):
    return np.r_[np.zeros(len(a)), np.ones(len(b))], np.r_[a, b].astype(float)


@given(scores, scores)
def test_agrees_with_sklearn(a, b):
    y, s = labelled(a, b)
    assert auroc(a, b) == pytest.approx(sk.roc_auc_score(y, s), abs=1e-12)
    assert average_precision(a, b) == pytest.approx(sk.average_precision_score(y, s), abs=1e-12)
    precision, recall, _ = sk.precision_recall_curve(y, s)
    assert aupr_trapezoid(a, b) == pytest.approx(sk.auc(recall, precision), abs=1e-12)
    fpr, tpr, thresholds = sk.roc_curve(y, s, drop_intermediate=False)
    ours = roc_curve(a, b)
    np.testing.assert_allclose(ours.fpr, fpr, atol=1e-15)
    np.testing.assert_allclose(ours.tpr, tpr, atol=1e-15)
    np.testing.assert_array_equal(ours.thresholds, thresholds)


@given(tied, tied, st.sampled_from([0.5, 0.8, 0.95, 1.0]))
def test_fpr_at_tpr_is_the_smallest_over_all_thresholds(a, b, tpr):
    rates = [(np.mean(np.array(a) >= t), np.mean(np.array(b) >= t)) for t in {*a, *b}]
    assert fpr_at_tpr(a, b, tpr) == min(f for f, t in rates if t >= tpr)


@given(tied, tied)
def test_auroc_is_the_share_of_ordered_pairs(a, b):
    pairs = [(y > x) + (y == x) / 2 for x in a for y in b]
    assert auroc(a, b) == pytest.approx(np.mean(pairs), abs=1e-12)


@given(scores, scores)
def test_swapping_the_sides_complements_auroc_exactly(a, b):
    assert auroc(a, b) + auroc(b, a) == 1


@given(tied, tied, st.sampled_from([lambda s: s**3, np.exp, lambda s: 7 * s - 2, np.arctan]))
def test_invariant_under_increasing_maps(a, b, f):
    mapped = detection_metrics(f(np.array(a, float)), f(np.array(b, float)))
    assert mapped == detection_metrics(a, b)


@given(tied, tied)
def test_infinities_are_the_extreme_scores(a, b):
    def far(s):
        return [{-3: -np.inf, 3: np.inf}.get(v, v) for v in s]

    assert detection_metrics(far(a), far(b)) == detection_metrics(a, b)


@given(tied, tied, st.randoms())
def test_order_and_container_do_not_matter(a, b, random):
    expected = detection_metrics(a, b)
    random.shuffle(a)
    random.shuffle(b)
    assert detection_metrics(torch.tensor(a, dtype=torch.bfloat16), np.array(b)) == expected


def test_extremes():
    worst = np.mean([i / (4 + i) for i in (1, 2)])  # both positives ranked below four negatives
    assert average_precision([3, 4, 5, 6], [1, 2]) == pytest.approx(worst)
    assert (auroc([3, 4], [1, 2]), fpr_at_tpr([3, 4], [1, 2])) == (0.0, 1.0)
    assert (auroc([1, 2], [3, 4]), fpr_at_tpr([1, 2], [3, 4])) == (1.0, 0.0)
    constant = detection_metrics([0.0] * 6, [0.0] * 2)
    assert (constant["auroc"], constant["average_precision"], constant["fpr_at_95_tpr"]) == (0.5, 0.25, 1.0)


@pytest.mark.parametrize(("n_id", "n_ood"), [(1, 1), (5, 1), (3, 4), (30, 10)])
def test_chance_is_the_expectation_over_random_rankings(n_id, n_ood):
    rng = np.random.default_rng(0)
    step, trapezoid = [], []
    for _ in range(4000):
        ranking = rng.permutation(n_id + n_ood)
        step.append(average_precision(ranking[:n_id], ranking[n_id:]))
        trapezoid.append(aupr_trapezoid(ranking[:n_id], ranking[n_id:]))
    for values in (step, trapezoid):
        error = np.std(values) / np.sqrt(len(values))
        assert abs(np.mean(values) - values[0].chance) < 4 * error
        assert values[0].prevalence == n_ood / (n_id + n_ood)


@pytest.mark.parametrize(("n_id", "n_ood"), [(1, 1), (3, 1), (1, 4), (2, 3), (3, 2)])
def test_minimum_is_the_lowest_over_all_rankings_with_and_without_ties(n_id, n_ood):
    rankings = list(itertools.product(range(n_id + n_ood), repeat=n_id + n_ood))
    for metric in (average_precision, aupr_trapezoid):
        values = [metric(ranking[:n_id], ranking[n_id:]) for ranking in rankings]
        assert min(values) == pytest.approx(values[0].minimum, abs=1e-15)


def test_minimum_of_many_is_the_closed_form_of_the_limit():
    """1 + (1 - p) ln(1 - p) / p; Davis and Goadrich's area has it at every size."""
    n_id, n_ood = 9000, 1000
    p = n_ood / (n_id + n_ood)
    limit = 1 + (1 - p) * np.log(1 - p) / p
    negated = np.arange(n_id) + n_ood, np.arange(n_ood)
    assert aupr_davis_goadrich(*negated) == pytest.approx(limit, rel=1e-12)
    area = average_precision(*negated)
    assert area == area.minimum == pytest.approx(limit, abs=1e-4)


@given(tied, tied)
def test_davis_goadrich_is_the_integral_of_precision_along_mixed_thresholds(a, b):
    """Thresholds mixed in 400 proportions between neighbours, summed by the midpoint rule."""
    a, b, area, above = np.array(a), np.array(b), 0.0, (0, 0)
    for threshold in sorted({*a, *b}, reverse=True):
        at = (np.sum(b >= threshold), np.sum(a >= threshold))
        share = (np.arange(400) + 0.5) / 400
        hits, misses = (below + share * (now - below) for below, now in zip(above, at, strict=True))
        area += (at[0] - above[0]) / len(b) * np.mean(hits / (hits + misses))
        above = at
    assert aupr_davis_goadrich(a, b) == pytest.approx(area, abs=1e-3)


def test_aupr_is_a_float_that_knows_its_chance_level():
    area = average_precision([0.1, 0.2, 0.3], [0.4, 0.15])
    assert isinstance(area, float)
    assert "prevalence=0.4000" in repr(area)
    assert f"chance={area.chance:.4f}" in repr(area)
    twin = copy.deepcopy(area)
    assert vars(twin) == vars(area) == {"prevalence": 0.4, "chance": area.chance, "minimum": area.minimum}
    assert json.loads(json.dumps(detection_metrics([0.1], [0.2, 0.3])))["average_precision"] == 1.0


def test_read_only_arrays_and_graphs_are_fine():
    a = np.arange(4.0)
    a.setflags(write=False)
    b = torch.arange(4.0, requires_grad=True) + 1
    assert auroc(a, b) == auroc(a.tolist(), b.tolist())


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("bad", "message"), [([], "empty"), ([1.0, float("nan")], "NaN"), ([[1.0]], "1-D"), (2.0, "1-D")]
)
def test_wrong_scores(metric, bad, message):
    with pytest.raises(ValueError, match=f"scores_id.*{message}"):
        metric(bad, [1.0])
    with pytest.raises(ValueError, match=f"scores_ood.*{message}"):
        metric([1.0], bad)


@pytest.mark.parametrize("tpr", [0, -1, 1.01, float("nan")])
def test_wrong_tpr(tpr):
    with pytest.raises(ValueError, match="tpr must be"):
        fpr_at_tpr([0.0], [1.0], tpr)


@settings(max_examples=30)
@given(st.integers(1, 300), st.data())
def test_wilson_interval_solves_its_equation(n, data):
    k = data.draw(st.integers(0, n))
    z = 1.959963984540054
    low, high = wilson_interval(k, n)
    assert 0 <= low <= k / n <= high <= 1
    for p in (low, high):  # the ends are the rates from which k / n is z standard errors away
        assert (k / n - p) ** 2 == pytest.approx(z**2 * p * (1 - p) / n, abs=1e-9)


@pytest.mark.parametrize("wrong", [(1, 0), (-1, 5), (6, 5), (1, 5, 1.0)])
def test_wilson_interval_refuses(wrong):
    with pytest.raises(ValueError, match="need n >= 1"):
        wilson_interval(*wrong)


# Split-conformal p-values: exactness, and the guarantee itself.

settings.register_profile("no deadline", deadline=None)  # a busy machine is not a failure
settings.load_profile("no deadline")

INF = float("inf")
some_tied = st.lists(st.sampled_from([-INF, -2.0, -1.0, 0.0, 1.0, 2.0, INF]), min_size=1, max_size=25)


def test_small_example():
    calibration = ConformalCalibration([3.0, 1.0, 2.0, 2.0])
    p = calibration.p_value([0.0, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, INF])
    assert p.tolist() == [1.0, 1.0, 0.8, 0.8, 0.4, 0.4, 0.2, 0.2]
    assert calibration.threshold(0.2) == 3.0
    assert calibration.threshold(0.4) == 2.0
    assert calibration.flag([2.5, 3.0, 3.1], fpr=0.2).tolist() == [False, False, True]
    assert calibration.flag([2.0, 2.5, 3.1], fpr=0.4).tolist() == [False, True, True]


@given(some_tied, some_tied)
def test_p_value_is_its_definition(calibration, scores):
    p = ConformalCalibration(calibration).p_value(scores)
    assert p.tolist() == [(1 + sum(c >= s for c in calibration)) / (len(calibration) + 1) for s in scores]


@given(some_tied, some_tied, st.integers(1, 25), st.sampled_from([0.0, 1e-9, 0.01]))
def test_flag_is_p_value_at_most_fpr(calibration, scores, k, more):
    fitted = ConformalCalibration(calibration)
    fpr = min(k, len(calibration)) / (len(calibration) + 1) + more  # also exactly on the grid of p-values
    if fpr < 1:
        flags = fitted.p_value(scores) <= fpr
        assert fitted.flag(scores, fpr).equal(flags)
        assert (torch.tensor(scores) > fitted.threshold(fpr)).equal(flags)


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=20))
def test_super_uniform_over_every_choice_of_the_test_point(pool):
    """With exchangeable scores each of n + 1 is the test point equally often: P(p <= k / (n + 1)) counts them."""
    n = len(pool) - 1
    p = [ConformalCalibration(pool[:i] + pool[i + 1 :]).p_value(pool[i : i + 1]).item() for i in range(n + 1)]
    for k in range(1, n + 2):
        assert sum(v <= k / (n + 1) for v in p) <= k
    if len(set(pool)) == n + 1:  # without ties exactly uniform
        assert sorted(p) == [(i + 1) / (n + 1) for i in range(n + 1)]


@pytest.mark.parametrize("fpr", [0.05, 0.1, 0.33])
def test_false_alarm_rate_over_many_draws(fpr):
    rng = np.random.default_rng(0)
    n, draws, tests = 40, 2000, 20
    rates = [
        ConformalCalibration(rng.normal(size=n)).flag(rng.normal(size=tests), fpr).double().mean().item()
        for _ in range(draws)
    ]
    expected = int(fpr * (n + 1) + 1e-9) / (n + 1)
    assert expected <= fpr
    assert abs(np.mean(rates) - expected) < 4 * np.std(rates) / draws**0.5


def test_too_few_scores_for_the_rate():
    nineteen = ConformalCalibration(torch.arange(19))
    assert nineteen.flag([100.0], 0.05).tolist() == [True]
    with pytest.raises(ValueError, match=r"18 calibration scores .* of 0\.05: 19 are needed"):
        ConformalCalibration(torch.arange(18)).flag([100.0], 0.05)


@pytest.mark.parametrize("fpr", [0.0, 1.0, -0.1, float("nan")])
def test_wrong_rate(fpr):
    with pytest.raises(ValueError, match="fpr must be in"):
        ConformalCalibration([1.0, 2.0]).threshold(fpr)


@pytest.mark.parametrize(("bad", "message"), [([], "empty"), ([1.0, float("nan")], "NaN"), ([[1.0]], "1-D")])
def test_wrong_calibration_scores(bad, message):
    with pytest.raises(ValueError, match=message):
        ConformalCalibration(bad)


def test_a_nan_score_is_never_silently_normal():
    calibration = ConformalCalibration(range(50))
    for judge in (calibration.p_value, calibration.flag):
        with pytest.raises(ValueError, match="NaN"):
            judge([0.0, float("nan")])


def test_empty_input_and_read_only_arrays():
    scores = np.arange(30.0)[::-1]
    scores.setflags(write=False)
    calibration = ConformalCalibration(scores)
    assert calibration.p_value([]).shape == (0,)
    assert calibration.flag(torch.zeros(0)).dtype == torch.bool
    assert len(calibration) == 30
    assert calibration.p_value(scores).tolist() == [(i + 2) / 31 for i in range(30)]


def test_float32_scores_tie_with_themselves():
    scores = torch.rand(100)
    p = ConformalCalibration(scores).p_value(scores.sort().values)
    assert p.equal(torch.arange(101, 1, -1).double() / 101)
