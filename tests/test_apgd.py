"""Auto-PGD, what it climbs (the difference of logits ratio), and the L1 ball in the box on which it climbs."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn

from robustgen.attacks import APGD, APGDT, PGD, apgd
from robustgen.attacks.apgd import _checkpoints, _Run, _SparsePace, plan
from robustgen.attacks.ball import Ball, perturbation_norm
from robustgen.attacks.losses import LOSSES, difference_of_logits_ratio, margin

NORMS = {"Linf": float("inf"), "L2": 2, "L1": 1}
DUAL = {"Linf": 1, "L2": 2, "L1": float("inf")}


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_bisection(x, z, radius, bounds):
    """The nearest point to ``z`` (D,) in the L1 ball about ``x`` and the bounds: halve the threshold's interval."""

    def shrunk(t):
        return (x + (z - x).sign() * ((z - x).abs() - t).clamp(min=0)).clamp(*bounds)

    low, high = 0.0, float((z - x).abs().max()) if len(x) else 0.0
    if float((shrunk(0.0) - x).abs().sum()) <= radius:
        return shrunk(0.0)
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if float((shrunk(middle) - x).abs().sum()) > radius else (low, middle)
    return shrunk(high)


def best_linear(c, x, radius, bounds):
    """max of c . (q - x) over the same set: fill the steepest coordinates up to their bounds while the radius lasts."""
    value, left = 0.0, radius
    for j in c.abs().argsort(descending=True).tolist():
        room = bounds[1] - float(x[j]) if c[j] > 0 else float(x[j]) - bounds[0]
        value, left = value + abs(float(c[j])) * min(room, left), left - min(room, left)
    return value


class TestProjectionOnL1AndBox:
    @settings(max_examples=80, deadline=None)
    @given(
        eps=st.floats(0, 8),
        low=st.floats(-3, 0),
        span=st.floats(0.1, 5),
        reach=st.sampled_from([1e-3, 1.0, 1e4]),
        d=st.integers(1, 12),
        corners=st.booleans(),
        seed=st.integers(0, 10**6),
    )
    def test_is_the_nearest_point(self, eps, low, span, reach, d, corners, seed):
        bounds = (low, low + span)
        x = uniform(seed, 5, d)
        x = (low + span * (x.round() if corners else x)).clamp(*bounds)
        z = x + reach * normal(seed + 1, 5, d)
        ball, rows = Ball(x, torch.full((5,), eps, dtype=torch.float64), "L1", bounds), torch.arange(5)
        p = ball.project(rows, z)
        assert (p - x).abs().sum(1).max() <= eps
        assert p.min() >= bounds[0]
        assert p.max() <= bounds[1]
        assert torch.allclose(ball.project(rows, p), p, atol=1e-13, rtol=0)
        for row in range(5):
            assert torch.allclose(p[row], by_bisection(x[row], z[row], eps, bounds), atol=1e-11 * max(1, reach), rtol=0)
            # and by what makes a nearest point: no q of the set has (z - p) . (q - p) > 0
            c = z[row] - p[row]
            gap = best_linear(c, x[row], eps, bounds) - float(c @ (p[row] - x[row]))
            assert gap <= 1e-9 * max(1, reach) * max(1, eps)

    def test_is_not_one_after_the_other(self):
        x, z = torch.tensor([[0.9, 0.5]]), torch.tensor([[2.0, 0.9]])
        ball = Ball(x, torch.tensor([0.4]), "L1", (0.0, 1.0))
        # The ball alone would leave nothing for the second coordinate; the box leaves the first only 0.1 of 0.4.
        assert torch.allclose(ball.project(torch.arange(1), z), torch.tensor([[1.0, 0.8]]), atol=1e-5)

    def test_rows_do_not_touch_each_other(self):
        x, z = uniform(0, 6, 9), 3 * normal(1, 6, 9)
        eps = torch.tensor([0.0, 0.1, 0.5, 1.0, 3.0, 50.0], dtype=torch.float64)
        whole = Ball(x, eps, "L1", (0.0, 1.0)).project(torch.arange(6), z)
        for row in range(6):
            alone = Ball(x[row : row + 1], eps[row : row + 1], "L1", (0.0, 1.0))
            assert torch.allclose(alone.project(torch.arange(1), z[row : row + 1])[0], whole[row], atol=1e-14)
        assert torch.equal(whole[0], x[0])
        assert torch.allclose(whole[5], z[5].clamp(0, 1), atol=1e-15)

    def test_many_coordinates_in_float32(self):
        x = uniform(3, 4, 3, 64, 64).float()
        ball = Ball(x, torch.full((4,), 12.0), "L1", (0.0, 1.0))
        z = ball.project(torch.arange(4), x + normal(4, 4, 3, 64, 64).float())
        size = (z.double() - x.double()).flatten(1).abs().sum(1)
        assert size.max() <= 12
        assert size.min() >= 12 * (1 - 1e-4)


class TestStepInL1:
    def test_raises_a_linear_loss_most_that_length_and_bounds_allow(self):
        x, c = uniform(0, 20, 7), normal(1, 20, 7)
        ball, rows = Ball(x, torch.full((20,), 9.0), "L1", (0.0, 1.0)), torch.arange(20)
        for size in (0.05, 0.7, 2.0):
            moved = (x + ball.step(rows, c, torch.full((20,), size), at=x, spread=1)).clamp(0, 1) - x
            best = [best_linear(c[j], x[j], size, (0.0, 1.0)) for j in rows.tolist()]
            assert torch.allclose((c * moved).sum(1), torch.tensor(best, dtype=torch.float64), atol=1e-6)

    def test_spreads_over_the_steepest_of_each_sample(self):
        """Sizes of gradients differ by many orders between samples: a maximum over the batch would silence most."""
        c = torch.stack([10.0 ** (-6 * j) * normal(j, 250) for j in range(5)])
        ball = Ball(torch.full((5, 250), 0.5, dtype=torch.float64), torch.full((5,), 9.0), "L1", (0.0, 1.0))
        step = ball.step(torch.arange(5), c, torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]))
        assert (step != 0).sum(1).tolist() == [3] * 5
        assert torch.allclose(perturbation_norm(step, "L1"), torch.arange(1, 6).double() / 10, atol=1e-6)
        assert ((step != 0) == (c.abs() >= c.abs().topk(3, dim=1).values[:, -1:])).all()
        assert (step * c >= 0).all()
        spread = torch.tensor([1.0, 2.0, 4.0, 5.0, 2.5])
        step = ball.step(torch.arange(5), c, torch.ones(5), spread=spread)
        assert (step > 1e-9).sum(1).max() <= 5
        assert torch.allclose(step.abs().amax(1), 1 / spread.double())

    def test_what_is_at_a_bound_is_held_there_for_free(self):
        x = torch.tensor([[1.0, 0.5, 0.5, 0.2]])
        ball = Ball(x, torch.tensor([0.1]), "L1", (0.0, 1.0))
        step = ball.step(torch.arange(1), torch.tensor([[4.0, 3.0, -2.0, 1.0]]), torch.tensor([0.3]), at=x, spread=2)
        assert torch.allclose(step, torch.tensor([[0.15, 0.15, -0.15, 0.0]]), atol=1e-6)

    def test_no_gradient_no_step(self):
        ball = Ball(torch.rand(2, 6), torch.ones(2), "L1", (0.0, 1.0))
        assert not ball.step(torch.arange(2), torch.zeros(2, 6), torch.ones(2)).any()


def test_draws_in_the_l1_ball():
    """Uniform: the norm over eps has the mean D / (D + 1), and each element the same distribution around zero."""
    n, d = 4000, 4
    ball, rows = Ball(torch.full((n, d), 0.5), torch.full((n,), 0.4), "L1", (0.0, 1.0)), torch.arange(n)
    delta = ball.uniform(rows, 0, rows, (0,)) - 0.5
    size = delta.abs().sum(1) / 0.4
    assert size.max() <= 1
    assert abs(size.mean() - d / (d + 1)) < 0.01
    assert delta.mean(0).abs().max() < 0.01
    assert (delta.abs().mean(0) / 0.4 - 1 / (d + 1)).abs().max() < 0.01
    share = delta.abs() / delta.abs().sum(1, keepdim=True)  # uniform on the simplex: Beta(1, D - 1) each
    assert abs(share.square().mean() - 2 / (d * (d + 1))) < 0.004
    wide = Ball(torch.full((n, 50), 0.5), torch.full((n,), 0.4), "L1", (0.0, 1.0))
    gaussian = wide.gaussian(rows, 0, rows, (0,)) - 0.5
    assert 0.8 < gaussian.abs().sum(1).mean() / 0.4 <= 1


class TestDifferenceOfLogitsRatio:
    @pytest.mark.parametrize(("targeted", "expected"), [(False, [-2 / 5, 2 / 5, 1.0, 1.5]), (True, [2, -2, -5, -7.5])])
    def test_closed_values(self, targeted, expected):
        logits = torch.tensor([[4.0, 2.0, -1.0, -3.5, -9.0]], dtype=torch.float64).expand(4, -1)
        ours = difference_of_logits_ratio(logits, torch.arange(4), targeted)
        expected = torch.tensor(expected, dtype=torch.float64)
        assert torch.allclose(ours, expected / 6.25 if targeted else expected)  # 4 - (-1 - 3.5) / 2

    @pytest.mark.parametrize("targeted", [False, True])
    def test_few_classes(self, targeted):
        sign = -1 if targeted else 1
        two = torch.tensor([[3.0, 1.0]])
        assert difference_of_logits_ratio(two, torch.tensor([0]), targeted).item() == -2 * sign
        three = torch.tensor([[3.0, 2.0, -1.0]] * 3)
        expected = torch.tensor([0.4, -0.4, -1.6] if targeted else [-0.25, 0.25, 1.0])
        assert torch.allclose(difference_of_logits_ratio(three, torch.arange(3), targeted), expected)

    @pytest.mark.parametrize("targeted", [False, True])
    @pytest.mark.parametrize("n_classes", [2, 3, 4, 5, 10])
    def test_has_a_gradient_wherever_the_attack_still_has_work(self, targeted, n_classes):
        """For untargeted rows the label is on top, for targeted ones not; the target may be the lowest class of all."""
        logits = normal(n_classes, 40, n_classes)
        order = logits.argsort(1, descending=True)
        y = order[torch.arange(40), torch.arange(40) % (n_classes - 1) + 1] if targeted else order[:, 0]
        leaf = logits.clone().requires_grad_(True)
        f = lambda z: difference_of_logits_ratio(z, y, targeted)
        (gradient,) = torch.autograd.grad(f(leaf).sum(), leaf)
        assert gradient.norm(dim=1).min() > 1e-3
        assert torch.autograd.gradcheck(f, leaf)
        assert torch.equal(LOSSES["dlr"](logits, y, targeted), f(logits))
        assert torch.equal(f(logits).sign(), -margin(logits, y, targeted).sign())

    @settings(max_examples=30, deadline=None)
    @given(
        shift=st.floats(-100, 100),
        scale=st.floats(1e-3, 1e3),
        n_classes=st.integers(3, 12),
        targeted=st.booleans(),
        seed=st.integers(0, 10**6),
    )
    def test_shift_and_scale_of_the_logits_do_not_matter(self, shift, scale, n_classes, targeted, seed):
        logits = normal(seed, 8, n_classes)
        y = (uniform(seed, 8) * n_classes).long()
        ours = difference_of_logits_ratio(logits, y, targeted)
        assert torch.allclose(difference_of_logits_ratio(scale * logits + shift, y, targeted), ours, atol=1e-8)
        if not targeted:
            assert ours[logits.argmax(1) == y].abs().le(1).all()

    def test_equal_and_missing_logits(self):
        leaf = torch.zeros(1, 5, requires_grad=True)
        value = difference_of_logits_ratio(leaf, torch.tensor([2]))
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        assert value.item() == 0
        assert gradient.isfinite().all()
        assert difference_of_logits_ratio(torch.full((1, 4), float("nan")), torch.tensor([0])).isnan().all()


def plain_apgd(model, loss, x, y, eps, norm, steps, rho):
    """Algorithm 1 of the paper as it stands, for one sample (1, D), from x; the losses at all points visited."""
    f = lambda z: LOSSES[loss](model(z), y, False).detach()

    def gradient(z):
        leaf = z.clone().requires_grad_(True)
        return torch.autograd.grad(LOSSES[loss](model(leaf), y, False).sum(), leaf)[0]

    def project(z):
        delta = z - x
        if norm == "L1":
            return by_bisection(x[0], z[0], eps, (0.0, 1.0))[None]
        delta = delta.clamp(-eps, eps) if norm == "Linf" else delta * min(1.0, eps / max(float(delta.norm()), 1e-300))
        return (x + delta).clamp(0, 1)

    size, now, before, sparse = (eps if norm == "L1" else 2 * eps), x, x, 0.2 * x.numel()
    best, top, last, values = x, float(f(x)), float(f(x)), [float(f(x))]
    rises, check, top_check, halved, count = 0, 0, top, False, x.numel()
    for k in range(1, steps + 1):
        g = gradient(now)
        if norm == "L1":
            picked = g.abs().argsort(dim=1, descending=True)[0]
            push = torch.zeros_like(g)
            for j in range(math.ceil(sparse)):
                push[0, picked[j]] = g[0, picked[j]].sign() * size / sparse * min(1.0, sparse - j)
            new = project(now + push)
        else:
            z = project(now + size * (g.sign() if norm == "Linf" else g / g.norm().clamp(min=1e-300)))
            new = z if k == 1 else project(now + 0.75 * (z - now) + 0.25 * (now - before))
        before, now = now, new
        value = float(f(now))
        rises += value > last
        last = value
        values.append(value)
        if value > top:
            best, top = now, value
        again = False
        if norm == "L1" and k % math.ceil(0.04 * steps) == 0:
            support = int((best != x).sum())
            again = support < 0.95 * count
            size = eps if again else max(size / 1.5, eps / 10)
            count, sparse = support, max(1.0, support / 1.5)
        if norm != "L1" and k in (11, 21, 29, 35, 40, 44, 47, 50):
            again = rises < rho * (k - check) or (not halved and top == top_check)
            size, halved = (size / 2 if again else size), again
            rises, check, top_check = 0, k, top
        if again:
            now, before, last = best, best, top
    return values


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["ce", "dlr", "margin"])
def test_is_its_algorithm(norm, loss):
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(10, 30), nn.Tanh(), nn.Linear(30, 5)).double()
    model[2].weight.data.mul_(6)
    x = uniform(7, 4, 10)
    y = model(x).argmax(1)
    eps = {"Linf": 0.15, "L2": 0.4, "L1": 0.9}[norm]
    seen = []

    def spy(z):
        seen.append(z.detach().clone())
        return model(z)

    rho = 0.0 if loss == "margin" else 0.75  # without condition 1, all depends on condition 2
    attack = APGD(norm=norm, loss=loss, eps=eps, steps=50, rho=rho, random_start=False, early_stop=False)
    for row in range(3):
        seen.clear()
        one = slice(row, row + 1)
        attack(spy, x[one], y[one])
        points = torch.cat(seen[2:])  # the first two: whether it is stochastic
        assert len(points) == 51
        values = LOSSES[loss](model(points), y[one].expand(51), False).detach()
        expected = plain_apgd(model, loss, x[one], y[one], eps, norm, 50, rho)
        assert torch.allclose(values, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


def test_pace_of_sparse_steps():
    x = torch.full((1, 20), 0.5)
    pace = _SparsePace(Ball(x, torch.tensor([3.0]), "L1", (0.0, 1.0)), torch.arange(1), 100, x)
    run = _Run.start(x + 0.1 * (torch.arange(20) < 9))
    assert pace.spread.item() == 4
    assert pace.check(3, x, run, torch.ones(1) > 0) is None
    sizes = []
    for k in range(4, 52, 4):
        went_back = pace.check(k, x, run, torch.ones(1) > 0)
        assert went_back.item() == (k == 4)  # from 20 to 9 elements, then no fewer
        sizes.append(pace.size.item())
    assert sizes == pytest.approx([max(3 / 1.5**j, 0.3) for j in range(12)])
    assert pace.spread.item() == 6


def test_sparsity_begins_with_what_a_search_in_a_larger_ball_left():
    x = torch.full((3, 20), 0.5)
    start = x + 0.1 * (torch.arange(20) < torch.tensor([[0], [1], [9]]))
    ball, rows = Ball(x, torch.full((3,), 3.0), "L1", (0.0, 1.0)), torch.arange(3)
    pace = _SparsePace(ball, rows, 30, start)
    assert pace.spread.tolist() == [4, 1, 6]
    assert pace.count.tolist() == [20, 1, 9]
    assert [_SparsePace(ball, rows, steps, x).every for steps in (1, 24, 30, 49, 50, 100)] == [1, 1, 1, 1, 2, 4]


def test_a_sparse_step_has_its_length_where_slopes_are_few():
    """A fifth of 20 coordinates would move, but two have a slope: they share the whole step."""
    x = torch.full((1, 20), 0.5)
    ball, rows = Ball(x, torch.tensor([0.4]), "L1", (0.0, 1.0)), torch.arange(1)
    run, gradient = _Run.start(x), torch.zeros(1, 20)
    gradient[0, [3, 7]] = torch.tensor([1.0, -2.0])
    run.see(torch.zeros(1), gradient)
    moved = _SparsePace(ball, rows, 100, x).next(0, ball, rows, run) - x
    assert moved[0, [3, 7]].tolist() == pytest.approx([0.2, -0.2], abs=1e-5)
    assert moved.count_nonzero() == 2


class TestMultiEps:
    def test_plan(self):
        ball = Ball(torch.zeros(2, 5), torch.tensor([0.5, 1.0]), "L1", (0.0, 1.0))
        for steps, shares in [(100, [30, 30, 40]), (25, [7, 7, 11]), (4, [1, 1, 2]), (3, [3]), (1, [1])]:
            stages = plan(ball, steps, True)
            assert [share for _, share in stages] == shares
            assert stages[-1][0] is ball
            for (wider, _), factor in zip(stages[:-1], (3, 2), strict=False):
                assert wider.eps.tolist() == [0.5 * factor, factor]
        assert plan(ball, 100, False) == [(ball, 100)]

    @pytest.mark.parametrize("random_start", [False, True])
    def test_each_ball_begins_at_the_best_of_the_one_before(self, random_start, monkeypatch):
        w = normal(2, 30, 5)
        model = lambda z: torch.sin(12 * z) @ w
        x, y = uniform(7, 6, 30), torch.arange(6) % 5
        eps = torch.linspace(0.3, 1.5, 6, dtype=torch.float64)
        seen = []

        def spy(z):
            seen.append(z.detach().clone())
            return model(z)

        starts = []

        def pace(ball, i, steps, start):
            starts.append(start)
            return _SparsePace(ball, i, steps, start)

        monkeypatch.setattr(apgd, "_SparsePace", pace)
        attack = APGD(norm="L1", steps=20, multi_eps=True, random_start=random_start, early_stop=False)
        result = attack.run(spy, x, y, eps=eps)
        stages = torch.stack(seen[2:]).split([7, 7, 9])  # after the two that ask whether it is stochastic
        assert result.backwards.tolist() == [20] * 6
        assert result.forwards.tolist() == [23] * 6
        for factor, points in zip((3, 2, 1), stages, strict=True):
            reach = (points - x).abs().sum(2)
            assert (reach <= factor * eps).all()
            assert (reach.amax(0) > (factor - 0.1) * eps).sum() >= 3
        for factor, before, after in zip((2, 1), stages, stages[1:], strict=False):
            loss = torch.stack([LOSSES["ce"](model(z), y, False) for z in before])
            best = before[loss.argmax(0), torch.arange(6)]
            expected = Ball(x, factor * eps, "L1", (0.0, 1.0)).project(torch.arange(6), best)
            assert torch.allclose(after[0], expected, atol=1e-12)
            assert not torch.equal(best, before[-1])
        assert torch.equal(torch.stack(starts), torch.stack([x, stages[1][0], stages[2][0]]))
        margins = torch.stack([margin(model(z), y) for z in stages[2]])
        assert torch.equal(result.x_adv, stages[2][margins.argmin(0), torch.arange(6)])

    def test_what_is_found_too_far_away_does_not_count(self):
        model, w = linear(2)
        x = 0.4 + 0.2 * uniform(0, 40, 12)
        z = model(x).detach()
        radius = (z[:, 0] - z[:, 1]).abs() / (w[0] - w[1]).abs().max()
        attack = APGD(norm="L1", steps=20, multi_eps=True)
        y = z.argmax(1)
        assert not attack.run(model, x, y, eps=0.9 * radius).success.any()
        found = attack.run(model, x, y, eps=1.1 * radius)
        assert found.success.all()
        assert (found.distance <= 1.1 * radius).all()
        assert found.backwards.min() > 12  # nobody left before the last ball


def test_checkpoints():
    assert sorted(_checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert sorted(_checkpoints(50)) == [11, 21, 29, 35, 40, 44, 47, 50]
    assert max(_checkpoints(1)) == 1


def linear(n_classes, d=12, seed=1):
    """A linear classifier whose classes meet in the middle of the box."""
    torch.manual_seed(seed)
    model = nn.Linear(d, n_classes).double()
    model.bias.data.copy_(-model.weight.data.sum(1) / 2)
    return model, model.weight.detach()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("n_classes", [2, 3, 4, 12])
@pytest.mark.parametrize("kind", ["APGD", "APGDT"])
class TestClosedForm:
    def test_untargeted(self, norm, n_classes, kind):
        """The smallest adversarial radius is min over j of (z_y - z_j) over the dual norm of (w_y - w_j)."""
        model, w = linear(n_classes)
        x = 0.4 + 0.2 * uniform(0, 80, 12)
        z = model(x).detach()
        y = z.argmax(1)
        size = (w[y][:, None] - w[None]).norm(p=DUAL[norm], dim=2)
        radius = torch.where(size > 0, (z.gather(1, y[:, None]) - z) / size, float("inf")).amin(1)
        keep = radius < 0.3  # the bounds do not bind
        x, y, radius = x[keep], y[keep], radius[keep]
        assert len(x) >= 30
        extra = {"loss": "dlr", "restarts": 5} if kind == "APGD" else {}
        attack = {"APGD": APGD, "APGDT": APGDT}[kind](norm=norm, steps=25, **extra)
        # towards the nearest of many classes leads one of the targets, and not always the steepest ascent
        share = 0.95 if kind == "APGDT" or n_classes <= 3 else 0.85
        assert attack.run(model, x, y, eps=1.1 * radius).success.float().mean() >= share
        assert not attack.run(model, x, y, eps=0.999 * radius).success.any()

    def test_targeted(self, norm, n_classes, kind):
        """Between two classes one radius; among more the target must beat all, so the largest is a lower limit only."""
        model, w = linear(n_classes)
        x = 0.4 + 0.2 * uniform(0, 80, 12)
        z = model(x).detach()
        y = z.argsort(1, descending=True)[:, 1]
        size = (w[y][:, None] - w[None]).norm(p=DUAL[norm], dim=2)
        lower = torch.where(size > 0, (z - z.gather(1, y[:, None])) / size, 0.0).amax(1)
        keep = lower < 0.3
        x, y, lower = x[keep], y[keep], lower[keep]
        attack = APGD(norm=norm, steps=25, loss="dlr", targeted=True)
        if kind == "APGDT":
            attack = APGDT(norm=norm, steps=25, targeted=True)
        assert not attack.run(model, x, y, eps=0.999 * lower).success.any()
        # the second class: on the way to it no third one is in between, for all but a few samples
        assert attack.run(model, x, y, eps=1.1 * lower).success.float().mean() >= (0.95 if n_classes == 2 else 0.7)


@pytest.mark.parametrize(
    "attack",
    [
        PGD(norm="L1", steps=50),
        APGD(norm="L1", steps=50),
        APGDT(norm="L1", steps=50),
        APGD(norm="L1", steps=50, multi_eps=True),
        APGDT(norm="L1", steps=50, multi_eps=True),
    ],
)
@pytest.mark.parametrize("d", [30, 300])
def test_l1_where_the_box_binds(attack, d):
    """Along w the steepest coordinates reach their bounds one after the other: the smallest radius is a greedy sum."""
    w = normal(0, d)
    x = uniform(1, 60, d)
    score = x @ w
    bias = -score.min() + 0.3 * d**0.5
    model = lambda z: torch.stack([z @ w + bias, 0 * z[:, 0]], 1)
    order = w.abs().argsort(descending=True)
    room = torch.where(w > 0, x, 1 - x)[:, order]
    gain = room * w.abs()[order]
    short = ((score + bias)[:, None] - (gain.cumsum(1) - gain)).clamp(min=0)
    radius = torch.minimum(room, short / w.abs()[order]).sum(1)
    assert ((room <= short / w.abs()[order]).sum(1) >= 3).all()  # coordinates filled to the brim
    y = torch.zeros(60, dtype=torch.int64)
    assert attack.run(model, x, y, eps=1.1 * radius).success.float().mean() >= 0.95
    assert not attack.run(model, x, y, eps=0.999 * radius).success.any()


@pytest.fixture(scope="module")
def digits():
    """An adversarially trained network and test images."""
    torch.manual_seed(0)
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    training = PGD(eps=0.1, steps=4, early_stop=False)
    for _ in range(5):
        for rows in torch.randperm(1400).split(100):
            loss = nn.functional.cross_entropy(net(training(net, x[rows], y[rows])), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net, x[1400:], y[1400:]


@pytest.mark.parametrize(("norm", "radii"), [("Linf", (0.08, 0.12)), ("L2", (0.4, 0.6)), ("L1", (1.0, 2.0, 3.0))])
def test_at_least_as_strong_as_pgd(digits, norm, radii):
    net, x, y = digits
    fooled = {
        kind: sum(kind(eps=eps, norm=norm, steps=20).run(net, x, y).success.sum().item() for eps in radii)
        for kind in (PGD, APGD, APGDT)
    }
    assert fooled[APGD] >= fooled[PGD]
    assert fooled[APGDT] >= fooled[APGD]
    assert 0.2 < fooled[APGDT] / len(x) / len(radii) < 0.9


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", [APGD, APGDT])
@pytest.mark.parametrize("multi_eps", [False, True])
def test_samples_that_leave_take_their_state_with_them(digits, norm, kind, multi_eps):
    if multi_eps and norm != "L1":
        pytest.skip("multi_eps is for L1")
    net, x, y = digits
    net, x, y = nn.Sequential(*net).double(), x[:20].double(), y[:20]
    extra = {"n_targets": 3} if kind is APGDT else {}
    attack = kind(eps={"Linf": 0.12, "L2": 0.7, "L1": 2.0}[norm], norm=norm, steps=15, seed=3, **extra)
    attack = replace(attack, multi_eps=multi_eps)
    try:
        whole = attack.run(net, x, y)
        assert len(whole.backwards.unique()) >= 3  # solved at different steps
        for row in range(20):
            alone = attack.run(net, x[row : row + 1], y[row : row + 1], ids=torch.tensor([row]))
            assert torch.allclose(alone.x_adv[0], whole.x_adv[row], atol=1e-9, rtol=0)
            assert alone.backwards[0] == whole.backwards[row]
            assert alone.success[0] == whole.success[row]
    finally:
        net.float()


class TestTargets:
    def test_as_many_as_there_are_other_classes(self):
        x = torch.rand(5, 6)
        for n_classes, runs in [(2, 1), (3, 2), (4, 3), (10, 9), (14, 9)]:
            model = nn.Linear(6, n_classes)
            y = model(x).argmax(1)
            result = APGDT(eps=1e-6, steps=4).run(model, x, y)
            assert result.backwards.tolist() == [4 * runs] * 5
            assert result.forwards.tolist() == [1 + 5 * runs] * 5  # clean, once
        targeted = APGDT(eps=1e-6, steps=4, targeted=True).run(model, x, (y + 1) % 14)
        assert targeted.backwards.tolist() == [4] * 5

    def test_the_most_likely_first_and_then_the_others(self):
        """The runner-up cannot be reached, the last class can."""
        model = lambda z: torch.stack([z[:, 0], 0 * z[:, 0] + 0.3, 0.1 + z[:, 1], 0 * z[:, 0] - 9], 1)
        x, y = torch.tensor([[0.6, 0.1]] * 3), torch.zeros(3, dtype=torch.int64)
        stuck = lambda z: torch.stack([z[:, 0] * 0 + 1, z[:, 0] * 1e-3 + 0.5, 4 * z[:, 1] - 0.2, z[:, 0] * 0 - 9], 1)
        assert APGDT(eps=0.31, n_targets=1, steps=5).run(model, x, y).success.all()
        assert not APGDT(eps=0.3, n_targets=1, steps=5, random_start=False).run(stuck, x, y).success.any()
        assert APGDT(eps=0.3, n_targets=2, steps=5, random_start=False).run(stuck, x, y).success.all()

    def test_any_wrong_class_counts(self):
        """On the way to the only target the third class is met: that is a success too."""
        model = lambda z: torch.stack([0 * z[:, 0] + 0.5, z[:, 0] * 0.7 + 0.1, z[:, 0].square() * 0.9], 1)
        x, y = torch.tensor([[0.1]]), torch.tensor([0])
        result = APGDT(eps=0.8, n_targets=1, steps=10, random_start=False).run(model, x, y)
        assert result.success.all()


@pytest.mark.parametrize("attack", [APGD(steps=3), APGDT(steps=3), APGD(steps=3, norm="L1"), PGD(steps=3, norm="L1")])
def test_computes_no_gradient_of_the_weights(attack):
    class Guarded(nn.Linear):
        def forward(self, x):
            assert not self.weight.requires_grad
            return super().forward(x)

    model = Guarded(5, 4)
    attack(model, torch.rand(6, 5), torch.randint(4, (6,)))
    assert model.weight.requires_grad
    assert model.weight.grad is None


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [(APGD, {"rho": 1.5}), (APGD, {"rho": -0.1}), (APGDT, {"rho": float("nan")}), (APGDT, {"n_targets": 0}),
     (APGDT, {"n_targets": 2.5}), (APGD, {"multi_eps": True}), (APGDT, {"multi_eps": True, "norm": "L2"}),
     (APGD, {"loss": "cw"}), (APGD, {"steps": 0}), (APGDT, {"restarts": 0})],
)  # fmt: skip
def test_wrong_options(kind, wrong):
    with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
        kind(**wrong)


def test_the_ratio_of_two_classes_climbs_the_margin():
    model, x = nn.Linear(6, 2), torch.rand(9, 6)
    y = model(x).argmax(1)
    ratio, plain = (APGD(eps=0.1, steps=10, loss=loss, norm="L2")(model, x, y) for loss in ("dlr", "margin"))
    assert torch.equal(ratio, plain)
