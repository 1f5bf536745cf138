"""Closed forms of a diffusion against products of its steps, and against published values."""

import math

import pytest
import torch

from robustgen.generative.diffusion.noise_schedule import SCHEDULES, NoiseSchedule

F64 = torch.float64


def test_vp_has_the_published_values_of_four_steps() -> None:
    schedule = NoiseSchedule("vp", 4)
    assert schedule.alpha_bars[1:].tolist() == pytest.approx([0.52368, 0.079064, 0.003441, 4.32e-5], rel=1e-3)
    variances = schedule.posterior(torch.zeros(4, 1), torch.zeros(4, 1), torch.arange(1, 5), torch.arange(4))[1]
    assert variances.flatten().tolist() == pytest.approx([0, 0.43913, 0.88389, 0.98410], abs=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_few_steps_end_where_many_do(name: str) -> None:
    few, many = NoiseSchedule(name, 50), NoiseSchedule(name, 1000)
    if name == "vp":
        assert torch.allclose(few.alpha_bars, many.alpha_bars[::20])
        assert few.alpha_bars[-1].item() == pytest.approx(math.exp(-10.05))
    assert few.alpha_bars[-1] < 1e-3
    assert many.alpha_bars[-1] < 1e-3


@pytest.mark.parametrize("name", SCHEDULES)
def test_diffusing_in_one_go_is_diffusing_step_by_step(name: str) -> None:
    """A linear map of x_0 and of independent noise: gain and variance of the two ways agree."""
    schedule = NoiseSchedule(name, 30)
    gain, variance = torch.ones(1, dtype=F64), torch.zeros(1, dtype=F64)
    zero, one = torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64)
    for t in range(1, 31):
        now, before = torch.tensor([t]), torch.tensor([t - 1])
        gain = schedule.diffuse(gain, now, zero, before)
        variance = (
            schedule.diffuse(one, now, zero, before).square() * variance
            + schedule.diffuse(zero, now, one, before).square()
        )
    last = torch.tensor([30])
    assert torch.allclose(gain, schedule.diffuse(one, last, zero))
    assert torch.allclose(variance, schedule.diffuse(zero, last, one).square())


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("s", "t"), [(0, 1), (0, 12), (5, 6), (5, 12), (11, 12)])
def test_posterior_by_bayes_on_a_grid(name: str, s: int, t: int) -> None:
    """q(x_s | x_0) q(x_t | x_s) / q(x_t | x_0), integrated over x_s."""
    schedule, x_0, x_t = NoiseSchedule(name, 30), 0.7, -0.4
    at_s, kept = schedule.alpha_bars[s], schedule.alpha_bars[t] / schedule.alpha_bars[s]
    times = torch.tensor([t]), torch.tensor([s])
    mean, variance = schedule.posterior(torch.tensor([x_t], dtype=F64), torch.tensor([x_0], dtype=F64), *times)
    if s == 0:
        assert (mean.item(), variance.item()) == (pytest.approx(x_0), pytest.approx(0))
        return
    grid = torch.linspace(-8, 8, 200_001, dtype=F64)
    log_weight = -(grid - at_s.sqrt() * x_0).square() / (2 * (1 - at_s))
    log_weight = log_weight - (x_t - kept.sqrt() * grid).square() / (2 * (1 - kept))
    weight = log_weight.softmax(0)
    by_bayes = (weight * grid).sum()
    assert mean.item() == pytest.approx(by_bayes.item(), abs=1e-6)
    assert variance.item() == pytest.approx((weight * (grid - by_bayes).square()).sum().item(), rel=1e-4)


def test_schedules_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match="schedule must be one of linear, cosine, vp, got 'sine'"):
        NoiseSchedule("sine", 10)
    with pytest.raises(ValueError, match="more than 20, or vp"):
        NoiseSchedule("linear", 20)
    with pytest.raises(ValueError, match="steps"):
        NoiseSchedule("vp", 0)
