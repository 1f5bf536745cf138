"""Attacks without an eps: the nearest adversarial input where it has a closed form, what counts, and FAB's steps."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import nn

from robustgen.attacks import DDN, FAB, FMN, PGD, AtEps, CarliniWagner, DeepFool, SpherePGD, fab
from robustgen.attacks.ball import perturbation_norm
from robustgen.attacks.fab import step_to_hyperplane
from robustgen.attacks.fmn import _project
from robustgen.attacks.losses import margin
from robustgen.attacks.minimal_norm import annealed
from robustgen.data import spheres
from robustgen.training import ClassifierObjective, Trainer

ATTACKS = {
    "CarliniWagner L2": CarliniWagner(steps=100, search_steps=7),
    "CarliniWagner Linf": CarliniWagner(steps=120, norm="Linf"),
    "DDN": DDN(steps=100),
    "DeepFool L2": DeepFool(),
    "DeepFool Linf": DeepFool(norm="Linf"),
    "FAB L1": FAB(steps=20, norm="L1"),
    "FAB L2": FAB(steps=20),
    "FAB Linf": FAB(steps=20, norm="Linf"),
    "FAB-T L1": FAB(steps=20, norm="L1", n_targets=9),
    "FAB-T L2": FAB(steps=20, n_targets=9),
    "FAB-T Linf": FAB(steps=20, norm="Linf", n_targets=9, restarts=2),
    "FMN L0": FMN(steps=60, norm="L0"),
    "FMN L1": FMN(steps=100, norm="L1"),
    "FMN L2": FMN(steps=60),
    "FMN Linf": FMN(steps=60, norm="Linf"),
}
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
ROUGH = {"steps": 60, "search_steps": 5, "learning_rate": 0.05}  # for rules that hold at any precision
QUICK = {k: replace(a, **ROUGH) if isinstance(a, CarliniWagner) else a for k, a in ATTACKS.items()}
DUAL = {"L1": float("inf"), "L2": 2, "Linf": 1}


def linear(n_classes, dtype=torch.float64, far=False):
    """A linear classifier whose classes meet amid the samples, 40 samples (the surest if far) and their classes."""
    torch.manual_seed(1)
    model = nn.Linear(12, n_classes).double()
    model.bias.data.copy_(-model.weight.data.sum(1) / 2)
    x = 0.4 + 0.2 * torch.rand(300, 12, dtype=torch.float64)
    model, x = model.to(dtype), x.to(dtype)
    z = model(x).detach().double()
    two = z.topk(2).values
    gap = two[:, 0] - two[:, 1]
    clear = gap.topk(40).indices if far else (gap > 0.02).nonzero()[:40, 0]  # nearer, rounding would be measured
    return model, x[clear], z.argmax(1)[clear]


def optimum(model, x, y, norm, bounds):
    """Distance (N,) of the nearest point of another class, and where that is (N, D) (not for L0)."""
    weight, x = model.weight.detach().double(), x.double()
    logits = x @ weight.T + model.bias.detach().double()
    gap = logits.gather(1, y[:, None]) - logits
    w = weight[None] - weight[y][:, None]  # (N, C, D): what brings each class up
    other = torch.arange(len(weight)) != y[:, None]
    if norm == "L0":  # the elements that can do most, one after the other
        most = torch.where(w > 0, w * (bounds[1] - x[:, None]), w * (bounds[0] - x[:, None]))
        reach = most.sort(2, descending=True).values.cumsum(2)
        count = (reach <= gap[:, :, None]).sum(2) + 1
        return torch.where(other & (reach[:, :, -1] > gap), count, 99).amin(1).double(), x
    size = w.norm(p=DUAL[norm], dim=2)
    distance, nearest = torch.where(other, gap / size, float("inf")).min(1)
    w = w[torch.arange(len(y)), nearest]
    step = {"L2": lambda: w / w.norm(dim=1, keepdim=True), "Linf": w.sign}.get(
        norm, lambda: w.sign() * nn.functional.one_hot(w.abs().argmax(1), w.shape[1])
    )()
    return distance, x + distance[:, None] * step


@every_attack
@pytest.mark.parametrize(("n_classes", "dtype"), [(2, torch.float64), (5, torch.float32)])
class TestClosedForm:
    def test_finds_the_nearest_point(self, attack, n_classes, dtype):
        model, x, y = linear(n_classes, dtype, far=attack.norm == "L0")
        if attack.norm == "L0":  # in wide bounds a single element would do
            attack = replace(attack, bounds=(0.39, 0.61))
        best, _ = optimum(model, x, y, attack.norm, attack.bounds)
        if attack.norm == "L0":
            assert best[best < 99].unique().numel() >= 2
        x, y, best = x[best < 99], y[best < 99], best[best < 99]
        result = attack.run(model, x, y)
        assert result.success.all()
        assert torch.equal(model(result.x_adv).argmax(1) != y, result.success)
        ratio = perturbation_norm(result.x_adv.double() - x.double(), attack.norm) / best
        assert ratio.max() <= 1.05
        assert ratio.min() >= 1 - (1e-4 if dtype == torch.float32 else 1e-9)  # nothing is nearer than the nearest

    def test_in_bounds_that_hold_no_more_than_the_optima(self, attack, n_classes, dtype):
        if attack.norm == "L0":
            pytest.skip("its optima are on the bounds in any case")
        model, x, y = linear(n_classes, dtype)
        best, where = optimum(model, x, y, attack.norm, attack.bounds)
        few = best < best.quantile(0.75)
        x, y, best, where = x[few], y[few], best[few], where[few]
        beyond = x.double() + 1.02 * (where - x.double())  # on the boundary itself, nothing is fooled
        if isinstance(attack, DeepFool):  # whose first iterate the bounds would stop, which may be anywhere
            attack = replace(attack, overshoot=0.015)
        low, high = (min(beyond.min().item(), x.min().item()), max(beyond.max().item(), x.max().item()))
        result = replace(attack, bounds=(low, high)).run(model, x, y)
        assert result.x_adv.min() >= low
        assert result.x_adv.max() <= high
        assert result.success.all()
        assert (result.distance / best).max() <= 1.05


@pytest.mark.parametrize("attack", QUICK.values(), ids=QUICK)
class TestRules:
    def test_what_fails_is_returned_as_it_was(self, attack):
        uphill = lambda z: torch.stack([2 + z.sum(1), z.sum(1) * 0], 1)  # class 0 all over the box
        x, y = torch.rand(5, 4), torch.zeros(5, dtype=torch.int64)
        result = attack.run(uphill, x, y)
        assert not result.success.any()
        assert torch.equal(result.x_adv, x)
        assert not result.distance.any()

    def test_no_gradient_no_harm(self, attack):
        def flat(z):
            assert z.isfinite().all()
            return torch.stack([2 + 0 * z.sum(1), 0 * z.sum(1)], 1)

        x, y = torch.rand(5, 4), torch.zeros(5, dtype=torch.int64)
        assert torch.equal(attack(flat, x, y), x)

    def test_farther_than_eps_does_not_count(self, attack):
        model, x, y = linear(2)
        free = attack.run(model, x, y)
        eps = free.distance * torch.where(torch.arange(len(x)) % 2 == 0, 1.0, 0.5)
        result = attack.run(model, x, y, eps=eps)
        assert torch.equal(result.success, torch.arange(len(x)) % 2 == 0)
        assert torch.equal(result.x_adv[1::2], x[1::2])
        assert torch.equal(result.x_adv[::2], free.x_adv[::2])

    @pytest.mark.parametrize("early_stop", [True, False])
    def test_misclassified_from_the_start(self, attack, early_stop):
        model, x, y = linear(3)
        y = torch.where(torch.arange(len(y)) < 10, (y + 1) % 3, y)
        result = replace(attack, early_stop=early_stop).run(model, x, y)
        assert torch.equal(result.x_adv[:10], x[:10])
        assert result.success.all()
        assert not result.distance[:10].any()
        assert (result.distance[10:] > 0).all()
        if early_stop:
            assert result.forwards[:10].max() == 1
            assert result.backwards[:10].max() == 0

    def test_the_nearest_success_is_kept(self, attack):
        """Islands of the other class, at several distances: whatever the model saw of them, the nearest counts."""
        seen: list[torch.Tensor] = []

        def islands(z):
            seen.append(z.detach().clone())
            return torch.stack([torch.cos(9 * z).sum(1) + 0.2, 0 * z.sum(1)], 1)

        torch.manual_seed(2)
        x, y = torch.rand(200, 3, dtype=torch.float64), torch.zeros(200, dtype=torch.int64)
        x = x[islands(x)[:, 0] > 0][:8]
        seen.clear()
        result = replace(attack, early_stop=False).run(islands, x, y[:8])
        best = torch.full((8,), float("inf"), dtype=torch.float64)
        for z in list(seen):
            if z.shape == x.shape:
                size = perturbation_norm(z - x, attack.norm)
                best = torch.where(islands(z)[:, 0] < -1e-12, torch.minimum(best, size), best)
        assert result.success.any()
        if isinstance(attack, DeepFool):  # rows that crossed have left: what it saw is not in step with x
            return
        assert torch.equal(result.success, best.isfinite())
        assert torch.allclose(result.distance[result.success], best[best.isfinite()])

    def test_targeted_goes_to_the_target(self, attack):
        model, x, y = linear(4)
        target = (y + 1) % 4
        result = replace(attack, targeted=True).run(model, x, target)
        assert result.success.float().mean() > 0.9
        assert torch.equal(model(result.x_adv).argmax(1) == target, result.success)
        best, _ = optimum(model, x, y, attack.norm, attack.bounds)
        assert (result.distance >= 0.999 * best)[result.success].all()  # no class is nearer than the nearest
        model, x, y = linear(2)
        one, other = (a.run(model, x, t) for a, t in ((attack, y), (replace(attack, targeted=True), 1 - y)))
        assert torch.allclose(one.distance, other.distance, rtol=1e-6)

    def test_the_verdict_holds_in_any_batch(self, attack):
        torch.manual_seed(3)
        net = nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 5))
        x = torch.rand(40, 40)
        y = net(x).argmax(1)
        result = attack.run(net, x, y)
        assert result.success.float().mean() > 0.9
        with torch.no_grad():
            assert torch.equal(net(result.x_adv).argmax(1) != y, result.success)
            alone = torch.cat([net(z).argmax(1) for z in result.x_adv.split(1)])
            assert torch.equal(alone != y, result.success)

    def test_bounds_only_change_the_unit(self, attack):
        model, x, y = linear(3)
        scaled = lambda z: model((z + 100) / 400)
        if attack.norm == "L0":
            attack = replace(attack, bounds=(0.0, 1.0))
        one = attack.run(model, x, y)
        other = replace(attack, bounds=(-100.0, 300.0)).run(scaled, 400 * x - 100, y)
        unit = 1 if attack.norm == "L0" else 400
        assert other.success.all()
        assert (other.distance / (unit * one.distance) - 1).abs().max() < 0.03

    def test_noise_is_judged_by_the_majority(self, attack):
        torch.manual_seed(0)
        w = torch.randn(20)
        noisy = lambda z: torch.stack([(z - 0.5) @ w + 0.5 + 0.1 * torch.randn(len(z)), 0 * z[:, 0]], 1)
        x = torch.full((20, 20), 0.5)
        result = replace(attack, eot_samples=2).run(noisy, x, torch.zeros(20, dtype=torch.int64))
        assert result.success.float().mean() > 0.4
        assert torch.equal(result.x_adv[~result.success], x[~result.success])

    def test_is_described_without_eps_and_made_without(self, attack):
        assert "eps" not in attack.describe()
        assert json.loads(json.dumps(attack.describe())) == json.loads(json.dumps(attack.describe()))
        assert attack.eps == float("inf")
        assert attack.for_training() == replace(attack, early_stop=False)
        with pytest.raises(TypeError, match="eps"):
            type(attack)(eps=0.3)


@pytest.mark.parametrize("attack", [DDN(steps=7), FMN(steps=7), FMN(steps=7, norm="L0")])
def test_one_query_a_step(attack):
    """One more for the clean verdict and for the last point; to choose among candidates, one and a gradient each."""
    for n_classes, candidates, forwards, backwards in ((2, 9, 9, 7), (5, 1, 9, 7), (5, 9, 10, 11), (5, 3, 10, 10)):
        model, x, y = linear(n_classes)
        result = replace(attack, candidates=candidates).run(model, x, y)
        assert result.forwards.unique().tolist() == [forwards]
        assert result.backwards.unique().tolist() == [backwards]


def test_ddn_is_its_algorithm():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 2)).double()
    x = 0.3 + 0.4 * torch.rand(9, 6, dtype=torch.float64)
    y = net(x).argmax(1)
    z, norm, nearest = x, torch.ones(9, dtype=torch.float64), torch.full((9,), float("inf"), dtype=torch.float64)
    for step in range(31):
        leaf = z.clone().requires_grad_(True)
        m = margin(net(leaf), y)
        (gradient,) = torch.autograd.grad(-m.sum(), leaf)
        nearest = torch.where(m < 0, torch.minimum(nearest, (z - x).norm(dim=1)), nearest)
        delta = z - x + annealed(1.0, 0.01, step, 30) * gradient / gradient.norm(dim=1, keepdim=True)
        norm = norm * torch.where(m < 0, 0.95, 1.05)
        z = (x + norm[:, None] * delta / delta.norm(dim=1, keepdim=True)).clamp(0, 1)
        assert step or (gradient != 0).all()
    result = DDN(steps=30).run(net, x, y)
    inside = ((z > 0) & (z < 1)).all(1)  # the bounds stop no element: the algorithm as printed
    assert inside.sum() >= 3
    assert torch.allclose(result.distance[inside & result.success], nearest[inside & result.success], atol=1e-9)


def test_deepfool_is_one_projection_on_a_linear_model():
    model, x, y = linear(5)
    for norm in ("L2", "Linf"):
        _, where = optimum(model, x, y, norm, (0.0, 1.0))
        result = DeepFool(norm=norm).run(model, x, y)
        assert torch.allclose(result.x_adv, x + 1.02 * (where - x), atol=1e-7)
        assert result.forwards.unique().tolist() == [3]  # clean, at x, and there
        assert result.backwards.unique().tolist() == [8]


class TestProjection:
    @pytest.mark.parametrize("norm", ["L0", "L1", "L2", "Linf"])
    def test_far_points_come_to_the_surface(self, norm):
        x = torch.full((6, 2, 5), 0.5, dtype=torch.float64)
        z = x + 5 * torch.randn_like(x)
        radius = (
            torch.tensor([0.1, 0.2, 0.25, 0.3, 0.3, 0.4], dtype=torch.float64) if norm != "L0" else torch.arange(1, 7)
        )
        moved = _project(x, z, radius.double(), norm, (0.0, 1.0))
        assert torch.allclose(perturbation_norm(moved - x, norm), radius.double(), atol=1e-9)
        assert (perturbation_norm(moved - x, norm) <= radius).all()
        if norm == "L2":
            cosine = nn.functional.cosine_similarity((moved - x).flatten(1), (z - x).flatten(1))
            assert torch.allclose(cosine, torch.ones_like(cosine))
        again = _project(x, moved, radius.double(), norm, (0.0, 1.0))
        assert torch.allclose(again, moved, atol=1e-9)

    def test_l0_is_the_nearest_of_all_sets_of_elements(self):
        torch.manual_seed(0)
        x = torch.rand(30, 5, dtype=torch.float64)
        z = x + torch.randn_like(x)
        for k in (1, 2, 3):
            moved = _project(x, z, torch.full((30,), float(k), dtype=torch.float64), "L0", (0.0, 1.0))
            least = torch.full((30,), float("inf"), dtype=torch.float64)
            for kept in itertools.combinations(range(5), k):
                mask = torch.zeros(5, dtype=torch.bool)
                mask[list(kept)] = True
                least = torch.minimum(least, (torch.where(mask, z.clamp(0, 1), x) - z).norm(dim=1))
            assert torch.allclose((moved - z).norm(dim=1), least)


class TestCarliniWagner:
    def test_c_is_searched(self):
        model, x, y = linear(3)
        best, _ = optimum(model, x, y, "L2", (0.0, 1.0))
        attack = CarliniWagner(steps=100, initial_c=1e-4, learning_rate=0.002)
        assert attack.run(model, x, y).success.all()
        assert not replace(attack, search_steps=1).run(model, x, y).success.any()  # this c is too small
        too_large = replace(attack, initial_c=1e3, learning_rate=0.05)
        assert (replace(too_large, search_steps=1).run(model, x, y).distance / best).max() > 1.1
        assert (replace(too_large, search_steps=10).run(model, x, y).distance / best).max() <= 1.05

    def test_the_first_long_steps_are_no_success_of_c(self):
        """Adam's first steps cross a near boundary whatever c is; taken for success they would drive c to zero."""
        model, x, y = linear(2)
        best, where = optimum(model, x, y, "L2", (0.0, 1.0))
        x = where + 0.01 * (x - where) / best[:, None]
        result = CarliniWagner(steps=100).run(model, x, y)
        assert (result.distance / 0.01).max() <= 1.05

    def test_confidence(self):
        model, x, y = linear(3)
        for norm in ("L2", "Linf"):
            result = CarliniWagner(**ROUGH, norm=norm, confidence=0.05).run(model, x, y)
            assert result.success.all()
            assert margin(model(result.x_adv), y).max() <= -0.05

    def test_elements_on_the_bounds_move(self):
        model = nn.Linear(20, 2).double()
        x = torch.randint(2, (10, 20)).double()
        y = model(x).argmax(1)
        gap = margin(model(x), y).detach()
        exact = FMN(steps=200).run(model, x, y)
        result = CarliniWagner(steps=200, search_steps=7).run(model, x, y)
        assert (gap > 0).all()
        assert torch.equal(result.success, exact.success)
        assert (result.distance <= 1.05 * exact.distance).all()

    def test_loud_logits(self):
        model, x, y = linear(2)
        quiet = CarliniWagner(steps=60).run(model, x, y)
        loud = CarliniWagner(steps=60).run(lambda z: 1000 * model(z), x, y)
        assert (loud.distance / quiet.distance - 1).abs().max() < 0.05


def test_the_nearest_face_is_not_that_of_the_highest_logit():
    model = nn.Linear(2, 3, bias=False).double()
    model.weight.data = torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.0, 10.0]], dtype=torch.float64)
    shifted = lambda z: model(z) + torch.tensor([0.03, 0.0, -6.0], dtype=torch.float64)
    x, y = torch.tensor([[0.1, 0.5]], dtype=torch.float64), torch.tensor([0])  # gaps 0.02 and 1.03, faces 0.2 and 0.103
    for kind in (DDN, FMN, CarliniWagner):
        heading = kind(steps=60).run(shifted, x, y).distance.item()
        assert heading == pytest.approx(0.103, rel=0.03)
        assert kind(steps=60, candidates=1).run(shifted, x, y).distance.item() == pytest.approx(0.2, rel=0.03)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DDN(norm="Linf"), "supports norm L2"),
        (lambda: DeepFool(norm="L1"), "supports norm"),
        (lambda: CarliniWagner(norm="L0"), "supports norm"),
        (lambda: DDN(gamma=1.0), "gamma"),
        (lambda: DDN(init_norm=0.0), "init_norm"),
        (lambda: FMN(gamma=0.0), "gamma"),
        (lambda: FMN(step_size=-1.0), "step_size"),
        (lambda: FMN(steps=0), "steps"),
        (lambda: FMN(candidates=0), "candidates"),
        (lambda: DeepFool(overshoot=-0.1), "overshoot"),
        (lambda: CarliniWagner(initial_c=0.0), "initial_c"),
        (lambda: CarliniWagner(search_steps=0), "search_steps"),
        (lambda: CarliniWagner(confidence=-1.0), "confidence"),
        (lambda: CarliniWagner(learning_rate=0.0), "learning_rate"),
    ],
)
def test_options_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_l0_counts_elements():
    delta = torch.zeros(2, 3, 2, 2)
    delta[0, :, 0, 0] = 0.1  # one pixel of three channels
    delta[1, 0, 1, :] = -1e-6
    assert perturbation_norm(delta, "L0").tolist() == [3, 2]


# Concentric spheres and the attack that stays on them, against what is known in closed form.

R = 1.3
WIDE = {"bounds": (-2.0, 2.0)}


def inner_and_outer(n=200, dim=8):
    x, y = spheres(n, dim=dim)
    return x.double()[y == 0], x.double()[y == 1]


def ellipsoid(alpha):
    """Logits (0, f) with f(x) = sum alpha_i x_i^2 - 1: class 1 is outside."""
    return lambda x: torch.stack([0 * x[:, 0], (x.square() * alpha).sum(1) - 1], 1)


def labels(x, label):
    return torch.full((len(x),), label)


class TestSpheres:
    def test_norms_labels_and_types(self):
        x, y = spheres(3000, dim=20, inner=0.5, outer=2.0)
        assert x.dtype == torch.float32
        assert y.dtype == torch.int64
        radius = torch.where(y == 0, 0.5, 2.0).double()
        assert torch.allclose(x.double().norm(dim=1), radius, rtol=1e-6)
        assert abs(y.double().mean() - 0.5) < 0.03

    def test_directions_are_uniform(self):
        """Mean 0 and covariance I / D, for each class alone: the direction says nothing of the label."""
        x, y = spheres(8000, dim=6)
        for label in (0, 1):
            u = nn.functional.normalize(x[y == label])
            assert u.mean(0).abs().max() < 0.025
            assert ((u.T @ u / len(u)) - torch.eye(6) / 6).abs().max() < 0.015

    def test_a_point_depends_on_seed_and_index_alone(self):
        random_state = torch.get_rng_state()
        x, y = spheres(2100, dim=5, seed=7)
        for n in (1, 1025):
            few = spheres(n, dim=5, seed=7)
            assert torch.equal(few[0], x[:n])
            assert torch.equal(few[1], y[:n])
        assert not (spheres(2100, dim=5, seed=8)[0] == x).all(1).any()
        assert torch.equal(random_state, torch.get_rng_state())
        assert spheres(0)[0].shape == (0, 500)

    @pytest.mark.parametrize(
        "wrong", [{"n": -1}, {"dim": 1}, {"inner": 0.0}, {"inner": 1.3}, {"outer": float("inf")}, {"outer": 0.5}]
    )
    def test_errors(self, wrong):
        with pytest.raises(ValueError, match=next(iter(wrong)) if "n" in wrong or "dim" in wrong else "radii"):
            spheres(**{"n": 3, **wrong})

    def test_a_network_learns_them(self):
        class Squares(nn.Module):
            def __init__(self):
                super().__init__()
                self.out = nn.Linear(10, 2)

            def forward(self, x):
                return self.out(x.square())

        trainer = Trainer(
            ClassifierObjective(),
            optimizer=lambda p: torch.optim.Adam(p, lr=0.1),
            epochs=20,
            batch_size=100,
            progress=False,
        )
        assert trainer.fit(Squares(), spheres(500, dim=10))[-1]["accuracy"] > 0.99


class TestOnTheSphere:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("eps", [1e-3, 0.3, 1.0, 10.0])
    def test_norms_stay_and_the_ball_is_exact(self, dtype, eps):
        x, y = spheres(60, dim=7)
        x = x.to(dtype)
        model = nn.Sequential(nn.Linear(7, 30), nn.Tanh(), nn.Linear(30, 2)).to(dtype)
        attack = SpherePGD(eps=eps, steps=10, restarts=2, early_stop=False, **WIDE)
        result = attack.run(model, x, y)
        before, after = x.double().norm(dim=1), result.x_adv.double().norm(dim=1)
        assert torch.allclose(before, after, rtol=4 * torch.finfo(dtype).eps, atol=0)
        assert (result.x_adv.double() - x.double()).norm(dim=1).max() <= eps
        assert result.distance.min() > 0.3 * min(eps, 1)  # it uses what it is allowed

    @pytest.mark.parametrize("top", [0.97, 1.03])
    def test_an_error_on_the_inner_sphere_exists_iff_the_largest_alpha_exceeds_one(self, top):
        alpha = torch.linspace(0.3, 0.8, 8, dtype=torch.float64)
        alpha[3] = top
        inner, _ = inner_and_outer()
        attack = SpherePGD(eps=2.0, steps=60, early_stop=False, **WIDE)
        result = attack.run(ellipsoid(alpha), inner, labels(inner, 0))
        assert result.success.all() if top > 1 else not result.success.any()
        assert result.x_adv[:, 3].abs().min() > 0.99  # the top eigenvector

    @pytest.mark.parametrize("low", [0.97, 1.03])
    def test_an_error_on_the_outer_sphere_exists_iff_the_smallest_alpha_is_below_its_inverse_square(self, low):
        alpha = torch.linspace(0.8, 1.5, 8, dtype=torch.float64)
        alpha[5] = low / R**2
        _, outer = inner_and_outer()
        attack = SpherePGD(eps=2 * R, steps=60, early_stop=False, **WIDE)
        result = attack.run(ellipsoid(alpha), outer, labels(outer, 1))
        assert not result.success.any() if low > 1 else result.success.all()
        assert result.x_adv[:, 5].abs().min() > 0.99 * R

    @pytest.mark.parametrize("random_start", [True, False])
    def test_the_nearest_error_of_a_linear_classifier(self, random_start):
        """w.x > b is the cap of half-angle arccos(b / (r |w|)) around w: the way out is the rest of the angle to it."""
        w, b = torch.tensor([3.0, -1.0, 2.0, 0.5, 1.0, -2.0, 0.0, 1.0], dtype=torch.float64), 1.5
        x = spheres(300, dim=8)[0].double()
        model = lambda z: torch.stack([0 * z[:, 0], z @ w - b], 1)
        y = model(x).argmax(1)
        assert 20 < y.sum() < 280
        r = x.norm(dim=1)
        angle = torch.acos(x @ w / (r * w.norm())) - torch.acos(b / (r * w.norm()))
        chord = 2 * r * torch.sin(angle.abs() / 2)
        attack = SpherePGD(steps=40, random_start=random_start, restarts=3 if random_start else 1, **WIDE)
        enough = attack.run(model, x, y, eps=1.05 * chord)
        assert enough.success.all()
        assert (enough.distance >= 0.999 * chord).all()
        assert not attack.run(model, x, y, eps=0.95 * chord).success.any()

    def test_one_step_is_its_formula(self):
        """From x by step_size along the great circle in the direction of the gradient's tangential part."""
        model = nn.Sequential(nn.Linear(5, 20), nn.Tanh(), nn.Linear(20, 2)).double()
        x, y = spheres(9, dim=5)[0].double(), torch.arange(9) % 2
        leaf = x.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(leaf), y), leaf)
        r = x.norm(dim=1, keepdim=True)
        tangent = nn.functional.normalize(gradient - (gradient * x).sum(1, keepdim=True) / r**2 * x)
        expected = torch.cos(0.01 / r) * x + torch.sin(0.01 / r) * r * tangent
        attack = SpherePGD(eps=3.0, steps=1, step_size=0.01, random_start=False, early_stop=False, **WIDE)
        assert torch.allclose(attack(model, x, y), expected, atol=1e-12)

    def test_bounds_that_cut_the_sphere_are_kept_and_so_is_the_norm(self):
        x = 0.1 + 0.8 * torch.rand(50, 4)
        gain = lambda z: z[:, 0] - z[:, 1]
        attack = SpherePGD(eps=2.0, steps=60, random_start=False, early_stop=False)
        x_adv = attack(lambda z: torch.stack([3 + 0 * z[:, 0], gain(z)], 1), x, labels(x, 0))
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1
        assert torch.allclose(x_adv.norm(dim=1), x.norm(dim=1), rtol=1e-6)
        assert torch.minimum(1 - x_adv, x_adv).amin(1).max() < 1e-3  # it went as far as the bounds let it
        assert (gain(x_adv) > gain(x) + 1e-3).all()

    def test_where_there_is_nowhere_to_go(self):
        """The origin is a sphere of its own, and a gradient along x has no part on the sphere."""
        attack = SpherePGD(eps=0.5, steps=3, random_start=False, early_stop=False, **WIDE)
        norm = lambda z: torch.stack([0 * z[:, 0], z.square().sum(1) - 4], 1)
        x = torch.cat([torch.zeros(1, 8), spheres(50, dim=8)[0]]).double()
        assert torch.equal(attack(norm, x, labels(x, 0)), x)

    def test_a_zero_gradient_moves_nothing(self):
        seen = []

        def flat(z):
            seen.append(z.detach().clone())
            return torch.stack([2 + 0 * z.sum(1), 0 * z[:, 0]], 1)

        x = spheres(6, dim=4)[0]
        SpherePGD(eps=0.5, steps=4, step_size=3.0, early_stop=False, **WIDE)(flat, x, labels(x, 0))
        start, *others = [z for z in seen if len(z) == 6]
        assert not torch.equal(start, x)
        assert all(torch.allclose(z, start, atol=1e-6) for z in others)

    def test_a_step_to_the_far_side(self):
        """From the opposite point every way back to the cap is as long: the norm stays whichever it takes."""
        linear = lambda z: torch.stack([2 + 0 * z[:, 0], z[:, 1]], 1)
        x = torch.tensor([[1.0, 0.0], [0.5, 0.0]], dtype=torch.float64)
        seen = []
        model = lambda z: (seen.append(z.detach().clone()), linear(z))[1]
        SpherePGD(eps=0.4, steps=2, step_size=torch.pi, random_start=False, early_stop=False, **WIDE)(
            model, x, labels(x, 0)
        )
        for z in seen:
            assert torch.allclose(z.norm(dim=1), x.norm(dim=1))

    def test_errors(self):
        with pytest.raises(ValueError, match="SpherePGD supports norm L2, not 'Linf'"):
            SpherePGD(norm="Linf")
        for wrong in (0.0, -1.0, float("inf")):
            with pytest.raises(ValueError, match="step_size"):
                SpherePGD(step_size=wrong)
        with pytest.raises(ValueError, match="steps"):
            SpherePGD(steps=0)


def test_off_the_sphere_the_nearest_error_is_across_the_shell():
    """f(x) = |x| - c never errs on the spheres, and off them at distance |c - |x||."""
    c = 1.1
    model = lambda z: torch.stack([0 * z[:, 0], z.norm(dim=1) - c], 1)
    x, y = spheres(100, dim=8)
    x = x.double()
    distance = (c - x.norm(dim=1)).abs()
    attack = PGD(norm="L2", steps=40, **WIDE)
    assert attack.run(model, x, y, eps=1.05 * distance).success.all()
    assert not attack.run(model, x, y, eps=0.95 * distance).success.any()
    assert not SpherePGD(eps=3.0, steps=40, **WIDE).run(model, x, y).success.any()


NORMS = ("Linf", "L2", "L1")


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


def around_the_middle(n_classes, shape):
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
class TestOneStepIsTheOptimum:
    @pytest.mark.parametrize(("shape", "bounds"), [((7,), (-9.0, 9.0)), ((2, 3, 5), (-9.0, 9.0)), ((3, 2), (0.0, 1.0))])
    def test_is_the_optimum(self, norm, n_targets, n_classes, shape, bounds):
        """Where bounds stop elements on the straight way, the other ones go on: the least of all steps to a face."""
        model, x, y, gap, faces = around_the_middle(n_classes, shape)
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
        model, x, y, _, _ = around_the_middle(n_classes, (7,))
        attack = FAB(norm=norm, n_targets=n_targets, steps=8, bounds=(-9.0, 9.0))
        free = attack.run(model, x, y).distance
        eps = free * torch.where(torch.arange(len(x)) % 3 == 0, 0.99, 1.0)
        limited = attack.run(model, x, y, eps=eps)
        assert torch.equal(limited.success, torch.arange(len(x)) % 3 != 0)
        assert torch.equal(limited.x_adv[::3], x[::3])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("n_classes", [2, 3, 10])
def test_alone_as_in_a_batch(norm, n_classes):
    model, x, y, _, _ = around_the_middle(n_classes, (2, 3, 5))
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
        model, x, y, _, _ = around_the_middle(n_classes, (7,))
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
def test_options_of_fab_are_checked(wrong):
    with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
        FAB(**wrong)


def test_is_described_without_what_it_does_not_take():
    described = FAB(n_targets=9).describe()
    assert described["n_targets"] == 9
    assert {"candidates", "eps"}.isdisjoint(described)
    with pytest.raises(TypeError, match="candidates"):
        FAB(candidates=3)
