"""Split-conformal p-values: exactness, and the guarantee itself."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustgen.calibration import ConformalCalibration

settings.register_profile("no deadline", deadline=None)  # a busy machine is not a failure
settings.load_profile("no deadline")

INF = float("inf")
tied = st.lists(st.sampled_from([-INF, -2.0, -1.0, 0.0, 1.0, 2.0, INF]), min_size=1, max_size=25)


def test_small_example():
    calibration = ConformalCalibration([3.0, 1.0, 2.0, 2.0])
    p = calibration.p_value([0.0, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, INF])
    assert p.tolist() == [1.0, 1.0, 0.8, 0.8, 0.4, 0.4, 0.2, 0.2]
    assert calibration.threshold(0.2) == 3.0
    assert calibration.threshold(0.4) == 2.0
    assert calibration.flag([2.5, 3.0, 3.1], fpr=0.2).tolist() == [False, False, True]
    assert calibration.flag([2.0, 2.5, 3.1], fpr=0.4).tolist() == [False, True, True]


@given(tied, tied)
def test_p_value_is_its_definition(calibration, scores):
    p = ConformalCalibration(calibration).p_value(scores)
    assert p.tolist() == [(1 + sum(c >= s for c in calibration)) / (len(calibration) + 1) for s in scores]


@given(tied, tied, st.integers(1, 25), st.sampled_from([0.0, 1e-9, 0.01]))
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
