"""Concentric spheres and the attack that stays on them, against what is known in closed form."""

import pytest
import torch
from torch import nn

from robustgen.attacks import PGD, SpherePGD
from robustgen.data import spheres
from robustgen.training import ClassifierObjective, Trainer

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
