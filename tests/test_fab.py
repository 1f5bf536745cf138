"""The fast adaptive boundary attack: its projection against linear programs, its steps against the algorithm."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import nn

from robustgen.attacks import FAB, AtEps, fab
from robustgen.attacks.ball import perturbation_norm
from robustgen.attacks.fab import step_to_hyperplane
from robustgen.attacks.losses import margin

NORMS = ("Linf", "L2", "L1")
DUAL = {"Linf": 1, "L2": 2, "L1": float("inf")}


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def least_norm(w, gap, low, high, norm):
    """The least norm of a d with w . d = gap between ``low`` and ``high``, by linear programming (not L2)."""
    d = len(w)
    if norm == "L1":  # d = up - down
        ends = [(0, float(h)) for h in high] + [(0, -float(v)) for v in low]
        return linprog([1] * 2 * d, A_eq=[[*w.tolist(), *(-w).tolist()]], b_eq=[gap], bounds=ends).fun
    above = torch.cat([torch.cat([torch.eye(d), -torch.eye(d)]), -torch.ones(2 * d, 1)], 1).double()  # |d_j| <= t
    ends = [*zip(low.tolist(), high.tolist(), strict=True), (0, None)]
    return linprog([0] * d + [1], above.numpy(), [0] * 2 * d, A_eq=[[*w.tolist(), 0]], b_eq=[gap], bounds=ends).fun


class TestStepToHyperplane:
    @settings(max_examples=60, deadline=None)
    @given(
        d=st.integers(1, 7),
        low=st.floats(-3, 0),
        span=st.floats(0.5, 4),
        kind=st.sampled_from(["inside", "corners", "ties"]),
        share=st.integers(-99, 99),  # per cent: a solver of linear programs does not see the eighth digit
        scale=st.sampled_from([1e-30, 1.0, 1e20]),
        norm=st.sampled_from(NORMS),
        seed=st.integers(0, 10**6),
    )
    def test_is_the_shortest(self, d, low, span, kind, share, scale, norm, seed):
        z, w = uniform(seed, 3, d), normal(seed + 1, 3, d)
        z = low + span * (z.round() if kind == "corners" else z)
        w = w.round() if kind == "ties" else w
        bounds = (low, low + span)
        z = z.clamp(*bounds)
        room = torch.where(w * share > 0, bounds[1] - z, z - bounds[0])
        gap = share / 100 * (w.abs() * room).sum(1)  # a part of what the box has
        step = step_to_hyperplane(z, w * scale, gap * scale, norm, bounds)
        assert torch.allclose((w * step).sum(1), gap, atol=1e-12, rtol=1e-12)
        assert (z + step).min() >= low - 1e-12
        assert (z + step).max() <= low + span + 1e-12
        assert not step[w == 0].any()
        for row in range(3):
            ends = bounds[0] - z[row], bounds[1] - z[row]
            if norm == "L2":  # nearest to 0 among all q there: step . q >= step . step
                c, equation = step[row].tolist(), [w[row].tolist()]
                pairs = list(zip(*(e.tolist() for e in ends), strict=True))
                least = linprog(c, A_eq=equation, b_eq=[float(gap[row])], bounds=pairs).fun
                assert least >= float(step[row] @ step[row]) - 1e-7
            else:
                least = least_norm(w[row], float(gap[row]), *ends, norm)
                assert float(perturbation_norm(step[row : row + 1], norm)) == pytest.approx(least, rel=1e-7, abs=1e-7)

    @pytest.mark.parametrize("norm", NORMS)
    def test_out_of_reach_it_goes_to_the_corner(self, norm):
        z, w = uniform(0, 4, 2, 3), normal(1, 4, 2, 3)
        w[0, 1, 2] = 0
        gap = torch.tensor([99.0, -99.0, 99.0, float("inf")], dtype=torch.float64)
        step = step_to_hyperplane(z, w, gap, norm, (0.0, 1.0))
        corner = (w * gap.sign()[:, None, None] > 0).double()
        assert torch.allclose((z + step)[w != 0], corner[w != 0])
        assert step[0, 1, 2] == 0

    @pytest.mark.parametrize("norm", NORMS)
    def test_no_slope_or_no_gap_no_step(self, norm):
        z = uniform(0, 2, 5)
        assert not step_to_hyperplane(z, torch.zeros(2, 5), torch.tensor([0.3, -1.0]), norm, (0.0, 1.0)).any()
        assert not step_to_hyperplane(z, normal(1, 2, 5), torch.zeros(2), norm, (0.0, 1.0)).any()

    @pytest.mark.parametrize("norm", NORMS)
    def test_float32_bounds_are_kept(self, norm):
        """0.1 in float32 is more than in float64: an element there has no room, not a negative one."""
        z = torch.full((1, 3), 0.1)
        step = step_to_hyperplane(z, torch.tensor([[1.0, 2.0, -0.5]]), torch.tensor([0.01]), norm, (0.0, 0.1))
        assert step[0].tolist() == pytest.approx([0, 0, -0.02])


def linear(n_classes, shape):
    """A linear classifier whose classes meet amid the samples, 30 samples and labels, gaps and normals of its faces."""
    d = torch.Size(shape).numel()
    w = normal(n_classes, n_classes, d)
    model = lambda z: (z.flatten(1) - 0.5) @ w.T
    x = 0.3 + 0.4 * uniform(n_classes + 1, 200, *shape)
    logits = model(x)
    top = logits.topk(2).values
    clear = (top[:, 0] - top[:, 1] > 0.05).nonzero()[:30, 0]
    x, y = x[clear], logits[clear].argmax(1)
    gap = logits[clear].gather(1, y[:, None]) - logits[clear]
    return model, x, y, gap, w[None] - w[y][:, None]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("n_targets", [None, 9])
@pytest.mark.parametrize("n_classes", [2, 3, 10])
class TestClosedForm:
    @pytest.mark.parametrize(("shape", "bounds"), [((7,), (-9.0, 9.0)), ((2, 3, 5), (-9.0, 9.0)), ((3, 2), (0.0, 1.0))])
    def test_is_the_optimum(self, norm, n_targets, n_classes, shape, bounds):
        """Where bounds stop elements on the straight way, the other ones go on: the least of all steps to a face."""
        model, x, y, gap, faces = linear(n_classes, shape)
        found = FAB(norm=norm, n_targets=n_targets, steps=15, bounds=bounds).run(model, x, y)
        steps = [step_to_hyperplane(x, faces[:, k].reshape(x.shape), gap[:, k], norm, bounds) for k in range(n_classes)]
        there = torch.stack([(faces[:, k] * s.flatten(1)).sum(1) for k, s in enumerate(steps)], 1)
        reached = (there >= gap - 1e-9) & (torch.arange(n_classes) != y[:, None])
        best = torch.where(reached, torch.stack([perturbation_norm(s, norm) for s in steps], 1), float("inf")).amin(1)
        possible = best.isfinite()
        assert possible.sum() > 15
        if bounds == (-9.0, 9.0):
            free = torch.where(torch.arange(n_classes) != y[:, None], gap / faces.norm(p=DUAL[norm], dim=2), 99.0)
            assert torch.allclose(best, free.amin(1))
        assert torch.equal(found.success, possible)
        ratio = (found.distance / best)[possible]
        assert ratio.min() >= 1 - 1e-12
        assert ratio.max() <= 1.001 if n_classes < 10 or n_targets else 1.01

    def test_every_sample_has_its_limit(self, norm, n_targets, n_classes):
        model, x, y, _, _ = linear(n_classes, (7,))
        attack = FAB(norm=norm, n_targets=n_targets, steps=8, bounds=(-9.0, 9.0))
        free = attack.run(model, x, y).distance
        eps = free * torch.where(torch.arange(len(x)) % 3 == 0, 0.99, 1.0)
        limited = attack.run(model, x, y, eps=eps)
        assert torch.equal(limited.success, torch.arange(len(x)) % 3 != 0)
        assert torch.equal(limited.x_adv[::3], x[::3])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("n_classes", [2, 3, 10])
def test_alone_as_in_a_batch(norm, n_classes):
    model, x, y, _, _ = linear(n_classes, (2, 3, 5))
    x, y = torch.cat([x, x.flip(0)])[:64], torch.cat([y, y.flip(0)])[:64]
    bent = lambda z: torch.tanh(model(z)) + 0.3 * torch.sin(3 * model(z))
    y = bent(x).argmax(1)
    attack = FAB(norm=norm, n_targets=4, steps=6, restarts=2)
    whole = attack.run(bent, x, y)
    assert whole.success.any()
    for row in range(0, len(x), 7):
        alone = attack.run(bent, x[row : row + 1], y[row : row + 1], ids=torch.tensor([row]))
        assert torch.allclose(alone.x_adv[0], whole.x_adv[row], atol=1e-9, rtol=0)


def curved(n_classes=3, d=6):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(d, 20), nn.Tanh(), nn.Linear(20, n_classes)).double()
    net[0].weight.data.mul_(4)
    x = 0.3 + 0.4 * torch.rand(12, d, dtype=torch.float64)
    with torch.no_grad():
        return net, x, net(x).argmax(1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("n_targets", "eta", "beta"), [(None, 1.02, 0.8), (1, 1.02, 0.8), (None, 1.5, 1.0)])
def test_is_its_algorithm(norm, n_targets, eta, beta):
    """Algorithm 1, one sample at a time, from one query to the next."""
    net, x, y = curved()
    seen = []

    def model(z):
        if len(z) == len(x):
            seen.append(z.detach().clone())
        return net(z)

    FAB(norm=norm, n_targets=n_targets, steps=8, eta=eta, beta=beta, alpha_max=0.2).run(model, x, y)
    seen = seen[1:17]  # after the clean points: x_i, x_{i+1}, x_i, ...
    crossed = 0
    for row in range(len(x)):
        z, own = x[row], y[row]
        others = [k for k in range(3) if k != own]
        if n_targets:
            others = [max(others, key=lambda k: float(net(x[row])[k].detach()))]
        for step in range(8):
            assert torch.allclose(seen[2 * step][row], z, atol=1e-11)
            leaf = z.clone().requires_grad_(True)
            faces = []
            for k in others:
                f = net(leaf)[k] - net(leaf)[own]
                (w,) = torch.autograd.grad(f, leaf)
                faces.append((float((f.abs() / w.norm(p=DUAL[norm])).detach()), -f.detach(), w))
            _, gap, w = min(faces, key=lambda face: face[0])
            one = step_to_hyperplane(z[None], w[None], gap[None], norm, (0.0, 1.0))[0]
            home = step_to_hyperplane(x[row][None], w[None], (gap + w @ (z - x[row]))[None], norm, (0.0, 1.0))[0]
            a, b = (float(perturbation_norm(v[None], norm)) for v in (one, home))
            alpha = min(a / (a + b), 0.2)
            z = ((1 - alpha) * (z + eta * one) + alpha * (x[row] + eta * home)).clamp(0, 1)
            assert torch.allclose(seen[2 * step + 1][row], z, atol=1e-11)
            if net(z).argmax() != own:
                z, crossed = x[row] + beta * (z - x[row]), crossed + 1
    assert 10 < crossed < 96


def test_queries_are_counted():
    """A step is two forward passes and one backward pass a face; the clean logits and the final search: four."""
    for n_classes, n_targets, faces, runs in [
        (2, None, 1, 1),
        (10, None, 9, 1),
        (10, 9, 1, 9),
        (10, 4, 1, 4),
        (3, 9, 1, 2),
    ]:
        model, x, y, _, _ = linear(n_classes, (7,))
        result = FAB(steps=6, n_targets=n_targets, bounds=(-9.0, 9.0)).run(model, x, y)
        assert result.success.all()
        assert result.forwards.unique().tolist() == [1 + runs * 6 * 2 + 3]
        assert result.backwards.unique().tolist() == [runs * 6 * faces]
        targeted = FAB(steps=6, n_targets=n_targets, bounds=(-9.0, 9.0), targeted=True)
        assert targeted.run(model, x, (y + 1) % n_classes).backwards.unique().tolist() == [6]


@pytest.mark.parametrize("norm", NORMS)
def test_the_targets_are_the_likely_classes_in_their_order(norm):
    """The runner-up cannot be reached, the last class can."""
    stuck = lambda z: torch.stack([z[:, 0] * 0 + 1, z[:, 0] * 1e-3 + 0.5, 4 * z[:, 1] - 0.2, z[:, 0] * 0 - 9], 1)
    x, y = torch.full((3, 2), 0.1), torch.zeros(3, dtype=torch.int64)
    assert not FAB(norm=norm, n_targets=1, steps=5).run(stuck, x, y).success.any()
    assert FAB(norm=norm, n_targets=2, steps=5).run(stuck, x, y).success.all()
    assert FAB(norm=norm, steps=5).run(stuck, x, y).success.all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("n_targets", [None, 2])
def test_rows_leave_when_a_point_within_eps_is_found(norm, n_targets):
    """Who has one takes no further queries, and nobody else notices."""
    net, x, y = curved()
    attack = FAB(norm=norm, n_targets=n_targets, steps=10, restarts=2)
    free = attack.run(net, x, y)
    eps = torch.where(torch.arange(len(x)) % 2 == 0, 1.2, 0.9) * free.distance
    whole = attack.run(net, x, y, eps=eps)
    part = AtEps(attack=attack).run(net, x, y, eps=eps)
    assert torch.equal(part.success, whole.success)
    assert part.success.sum() == len(x) // 2
    assert (part.backwards[::2] < whole.backwards[::2]).all()
    assert torch.equal(part.forwards[1::2], whole.forwards[1::2])
    assert (part.distance[::2] <= eps[::2]).all()


@pytest.mark.parametrize("norm", NORMS)
def test_restarts_begin_half_way_to_what_was_found(norm):
    net, x, y = curved()
    seen = []

    def model(z):
        if len(z) == len(x):
            seen.append(z.detach().clone())
        return net(z)

    one = FAB(norm=norm, steps=5, bounds=(-9.0, 9.0))
    two = replace(one, restarts=2).run(model, x, y)
    start = seen[1 + 10]
    best = torch.full((len(x),), float("inf"), dtype=torch.float64)
    for z in seen[1:11]:
        best = torch.where(margin(net(z), y) < 0, torch.minimum(best, perturbation_norm(z - x, norm)), best)
    assert torch.allclose(perturbation_norm(start - x, norm)[best.isfinite()], (best / 2)[best.isfinite()])
    assert best.isfinite().sum() >= 6
    assert len({tuple((z / z.abs().max()).tolist()) for z in start - x}) == len(x)
    assert (two.distance <= one.run(net, x, y).distance * 1.01).all()


@pytest.mark.parametrize("norm", NORMS)
def test_the_final_search_comes_nearer_to_the_boundary(norm, monkeypatch):
    net, x, y = curved()
    attack = FAB(norm=norm, steps=2, eta=1.4)
    searched = attack.run(net, x, y)
    monkeypatch.setattr(fab, "_FINAL_STEPS", 0)
    plain = attack.run(net, x, y)
    assert torch.equal(searched.success, plain.success)
    ratio = (searched.distance / plain.distance)[plain.success]
    assert ratio.max() <= 1
    assert ratio.median() < 0.95
    assert (searched.forwards - plain.forwards)[plain.success].unique().tolist() == [3]
    depth = [-margin(net(r.x_adv), y)[r.success].mean().item() for r in (searched, plain)]
    assert depth[0] < 0.2 * depth[1]


@pytest.mark.parametrize(
    "wrong",
    [{"n_targets": 0}, {"n_targets": 1.5}, {"alpha_max": -0.1}, {"alpha_max": 1.1}, {"eta": 0.9}, {"beta": 0.0},
     {"beta": 1.1}, {"steps": 0}, {"restarts": 0}, {"norm": "L0"}],
)  # fmt: skip
def test_options_are_checked(wrong):
    with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
        FAB(**wrong)


def test_is_described_without_what_it_does_not_take():
    described = FAB(n_targets=9).describe()
    assert described["n_targets"] == 9
    assert {"candidates", "eps"}.isdisjoint(described)
    with pytest.raises(TypeError, match="candidates"):
        FAB(candidates=3)
