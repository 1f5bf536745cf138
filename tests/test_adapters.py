"""What is particular to adapters: foreign points are checked, the model is out of reach, known defects show.

The contract of all attacks is in test_attacks.py. What needs no library runs with a made-up one.
"""

import json
import random
import runpy
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from robustgen.attacks import (
    FMN,
    Attack,
    FoolboxAttack,
    FoolboxMinimalNormAttack,
    TorchattacksAttack,
    TorchattacksMinimalNormAttack,
)
from robustgen.attacks.adapters.foreign import ForeignAttack
from robustgen.attacks.adapters.guest import Guest, naming_library
from robustgen.attacks.losses import margin
from robustgen.attacks.minimal_norm import MinimalNormAttack

PARITY = Path(__file__).parent.parent / "benchmarks" / "parity.py"


def library(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # foolbox 3.3.4 imports from a deprecated place in scipy
        return pytest.importorskip(name, reason=f"needs {name}: pip install robustgen[{name}]")


@pytest.fixture
def torchattacks():
    return library("torchattacks")


@pytest.fixture
def foolbox():
    return library("foolbox")


@dataclass(frozen=True, kw_only=True)
class Fake(ForeignAttack):
    """``run(model, x, y, eps)`` is the library."""

    norms = ("Linf", "L2", "L1")

    run_it: Callable

    def _points(self, guest, x, y, eps):
        return self.run_it(guest(), x, y, eps)

    def _of(self):
        return {"attack": "fake"}


@dataclass(frozen=True, kw_only=True)
class FakeNearest(MinimalNormAttack, Fake):
    pass


class Normed(nn.Module):
    """Train mode, a frozen batch norm in eval mode, a gradient left by the user."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(36, 3)
        self.norm.running_mean.normal_()
        self.train()
        self.norm.eval()
        self.norm.requires_grad_(False)
        self.out.weight.grad = torch.ones_like(self.out.weight)

    def forward(self, x):
        return self.out(torch.relu(self.norm(self.conv(x))).flatten(1))


def state(model):
    return {
        "weights": {k: v.tolist() for k, v in model.state_dict().items()},
        "flags": [m.training for m in model.modules()],
        "grad": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "frozen": [p.requires_grad for p in model.parameters()],
        "hooks": [(len(m._forward_hooks), len(m._backward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
    }


@pytest.fixture
def images():
    return torch.rand(6, 1, 5, 5), torch.randint(3, (6,))


def line(n=40, n_classes=3, d=12):
    """A linear model whose nearest adversarial points the bounds do not touch, with their L2 distances."""
    model = nn.Linear(d, n_classes).double()
    model.bias.data.copy_(-model.weight.data.sum(1) / 2)  # the classes meet amid the samples
    x = 0.4 + 0.2 * torch.rand(n, d, dtype=torch.float64)
    z, w = model(x).detach(), model.weight.detach()
    y = z.argmax(1)
    size = (w[y][:, None] - w[None]).norm(dim=2)
    nearest = torch.where(size > 0, (z.gather(1, y[:, None]) - z) / size, float("inf")).amin(1)
    near = nearest < 0.2
    assert near.sum() > n / 2
    return model, x[near], y[near], nearest[near]


X, Y = torch.full((4, 3), 0.5), torch.zeros(4, dtype=torch.int64)
WEAK = lambda z: torch.stack([0 * z[:, 0], z.sum(1) - 1.5 - 1e-3], 1)  # any push upwards fools it


class TestVerdict:
    """Of four points the last is legal; what is wrong with the others is not believed."""

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (lambda z: z + 0.1000, r"fake: .*3 of 4 points: 3 outside the Linf ball by up to 0\.1\b"),
            (lambda z: z * float("nan"), "3 of 4 points: 3 with NaN or Inf"),
            (lambda z: z + float("inf"), "3 of 4 points: 3 with NaN or Inf"),
        ],
    )
    def test_illegal_points_are_not_used(self, wrong, message):
        def points(model, x, y, eps):
            z = x + eps
            return torch.cat([wrong(z[:3]), z[3:]])

        with pytest.warns(UserWarning, match=message):
            result = Fake(eps=0.1, run_it=points).run(WEAK, X, Y)
        assert result.success.tolist() == [False, False, False, True]
        assert torch.equal(result.x_adv[:3], X[:3])
        assert torch.allclose(result.distance, torch.tensor([0, 0, 0, 0.1]).double())

    def test_outside_the_bounds(self):
        with pytest.warns(UserWarning, match=r"4 of 4 points: 4 outside the bounds by up to 0\.2"):
            result = Fake(eps=0.9, run_it=lambda model, x, y, eps: x + 0.7).run(WEAK, X, Y)
        assert torch.equal(result.x_adv, X)
        assert not result.success.any()

    @pytest.mark.parametrize("returned", [lambda x: x.double(), lambda x: x[:3], lambda x: x.numpy(), lambda x: None])
    def test_another_dtype_shape_or_type(self, returned):
        with pytest.warns(UserWarning, match=r"fake: not used, .* returned for \(4, 3\) torch.float32"):
            result = Fake(eps=0.1, run_it=lambda model, x, y, eps: returned(x + eps)).run(WEAK, X, Y)
        assert torch.equal(result.x_adv, X)

    @pytest.mark.parametrize(("norm", "order"), [("Linf", float("inf")), ("L2", 2), ("L1", 1)])
    def test_rounding_error_is_projected_off(self, norm, order):
        x, y = torch.rand(50, 784), torch.zeros(50, dtype=torch.int64)

        def points(model, x, y, eps):
            delta = torch.randn_like(x)
            return x + delta * (eps / delta.norm(p=order, dim=1, keepdim=True)) * (1 + 2e-7)

        low = -20.0, 20.0
        result = Fake(eps=0.7, norm=norm, bounds=low, early_stop=False, run_it=points).run(WEAK, x, y)
        size = (result.x_adv.double() - x.double()).norm(p=order, dim=1)
        assert size.max() <= 0.7
        assert size.min() >= 0.699

    def test_success_is_our_own_forward(self):
        """The library sees a model that it fools; ours is not fooled by what it returns."""
        result = Fake(eps=0.1, run_it=lambda model, x, y, eps: x - eps).run(WEAK, X, Y)
        assert not result.success.any()

    def test_inputs_overwritten_in_place_are_not_the_users(self):
        x, y = X.clone(), Y.clone()

        def points(model, x, y, eps):
            y.add_(1)
            return x.add_(eps)

        result = Fake(eps=0.1, run_it=points).run(WEAK, x, y)
        assert torch.equal(x, X)
        assert torch.equal(y, Y)
        assert result.success.all()
        assert torch.allclose(result.distance, torch.tensor(0.1).double())


class TestOutOfReach:
    def test_nothing_that_a_library_does_to_a_model_reaches_it(self, images):
        x, y = images
        model = Normed()
        before = state(model)

        def vandal(net, x, y, eps):
            net.train()
            net.zero_grad(set_to_none=True)
            net.requires_grad_(True)
            net.register_forward_hook(lambda *a: None)
            leaf = x.clone().requires_grad_(True)
            nn.functional.cross_entropy(net(leaf), y).backward()
            assert [p.shape for p in net.parameters()] == [()]
            with torch.no_grad():
                for p in net.parameters():
                    p.add_(1)
            return x + eps * leaf.grad.sign()

        attack = Fake(eps=0.2, run_it=lambda net, x, y, eps: vandal(net, x, y, eps).clamp(0, 1), early_stop=False)
        attack.run(model, x, y)
        assert state(model) == before
        attack.run(lambda z: model(z), x, y)  # nothing tells us of its parameters
        assert state(model) == before

    @pytest.mark.parametrize("error", [KeyError, ValueError, TypeError, RuntimeError])
    def test_an_exception_of_the_library_is_named_as_its_own(self, error):
        def library():
            with naming_library("fake.Attack", model):
                model(torch.ones(1, 3))
                raise error("odd")

        model = Guest(nn.Linear(3, 2), torch.zeros(1, 3))
        kind = error if error in (ValueError, TypeError) else RuntimeError
        with pytest.raises(kind, match=rf"^fake\.Attack failed: {error.__name__}: .*odd") as raised:
            library()
        assert isinstance(raised.value.__cause__, error)

    def test_an_exception_of_the_model_is_not(self):
        def library(wrapping):
            with naming_library("fake.Attack", model):
                try:
                    model(torch.ones(1, 3))
                except KeyError as error:
                    raise (ValueError("wrapped") if wrapping else error) from error

        def broken(x):
            raise KeyError("mine")

        model = Guest(broken, torch.zeros(1, 3))
        with pytest.raises(KeyError, match="mine"):
            library(wrapping=False)
        with pytest.raises(ValueError, match=r"^wrapped"):
            library(wrapping=True)
        flat = Guest(lambda x: x.detach(), torch.zeros(1, 3))
        logits = flat(torch.ones(1, 3, requires_grad=True))
        with pytest.raises(ValueError, match=r"^the model's logits do not depend"), naming_library("fake.Attack", flat):
            logits.sum().backward()

    def test_after_an_exception(self, images):
        def fail(net, x, y, eps):
            np.random.rand()  # noqa: NPY002
            random.random()
            net(x)
            raise RuntimeError("the power went out")

        model, (x, y) = Normed(), images
        before, streams = state(model), (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002
        with pytest.raises(RuntimeError, match="power"):
            Fake(run_it=fail, early_stop=False).run(model, x, y)
        assert state(model) == before
        assert torch.equal(streams[0], torch.get_rng_state())
        assert streams[1:] == (np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002

    def test_random_numbers_of_all_three_kinds_are_seeded(self):
        def draw(model, x, y, eps):
            drawn.append((torch.rand(()).item(), np.random.rand(), random.random()))  # noqa: NPY002
            return x

        drawn = []
        for seed in (3, 3, 4):
            Fake(run_it=draw, seed=seed).run(WEAK, X, Y, eps=torch.tensor([0.1, 0.2, 0.1, 0.1]))
        assert len({*drawn[:4]}) == 1  # of each call alike
        assert not {*drawn[0]} & {*drawn[4]}

    def test_the_gradient_is_that_of_the_model(self, images):
        x, y = images
        model = Normed().double().eval()
        seen = []

        def look(net, x, y, eps):
            leaf = x.clone().requires_grad_(True)
            logits = net(2 * leaf)
            seen.extend(torch.autograd.grad(logits[:, k].sum(), leaf, retain_graph=True)[0] for k in range(3))
            return x

        Fake(run_it=look, early_stop=False).run(model, x.double(), y)
        leaf = x.double().requires_grad_(True)
        for k, gradient in enumerate(seen):
            (expected,) = torch.autograd.grad(model(2 * leaf)[:, k].sum(), leaf)
            torch.testing.assert_close(gradient, expected, atol=1e-14, rtol=0)

    def test_queries_are_counted_by_rows_and_shared_out(self):
        def ask(net, x, y, eps):
            net(x)
            net(x[:1])
            leaf = x[:2].clone().requires_grad_(True)
            torch.autograd.grad(net(leaf).sum(), leaf)
            return x

        result = Fake(run_it=ask, early_stop=False).run(WEAK, X, Y)
        assert result.forwards.tolist() == [1 + 2, 1 + 2, 1 + 2, 1 + 1]  # 7 rows over 4 samples, and our own forward
        assert result.backwards.tolist() == [1, 1, 0, 0]


class TestRules:
    def test_one_call_for_each_eps_and_none_for_zero(self):
        calls = []

        def points(model, x, y, eps):
            calls.append((eps, len(x)))
            return x + eps

        eps = torch.tensor([0.2, 0.0, 0.1, 0.2], dtype=torch.float64)
        result = Fake(run_it=points).run(WEAK, X, Y, eps=eps)
        assert calls == [(0.1, 1), (0.2, 2)]
        assert torch.allclose(result.distance, eps)
        assert result.success.tolist() == [True, False, True, True]

    def test_a_nearest_point_is_looked_for_without_the_limit(self):
        calls = []
        nearest = FakeNearest(run_it=lambda model, x, y, eps: calls.append((eps, len(x))) or x + 0.1)
        eps = torch.tensor([0.05, 0.2, 0.3, 0.0])
        assert nearest.run(WEAK, X, Y, eps=eps).success.tolist() == [False, True, True, False]
        assert calls == [(float("inf"), 4)]

    def test_misclassified_samples_are_not_shown_to_it(self):
        shown = []
        Fake(run_it=lambda model, x, y, eps: shown.append(len(x)) or x).run(WEAK, X, torch.tensor([1, 0, 1, 0]))
        assert shown == [2]
        nearest = FakeNearest(run_it=lambda model, x, y, eps: shown.append(len(x)) or x + 0.1, early_stop=False)
        result = nearest.run(WEAK, X, torch.tensor([1, 0, 1, 0]))
        assert shown == [2, 2]
        assert result.success.all()
        assert result.distance.gt(0).tolist() == [False, True, False, True]

    @pytest.mark.parametrize("name", ["torchattacks", "foolbox"])
    def test_without_the_library(self, name, monkeypatch):
        monkeypatch.setitem(sys.modules, name, None)
        kind = {"torchattacks": TorchattacksAttack, "foolbox": FoolboxAttack}[name]
        with pytest.raises(ImportError, match=rf"^{name} is not installed: pip install robustgen\[{name}\]$"):
            kind(attack="PGD")


class TestTorchattacks:
    def test_left_alone_it_changes_the_model(self, torchattacks, images):
        """The control of the contract test: what it looks at does change."""
        x, y = images
        model = Normed()
        before = state(model)
        torchattacks.PGD(model, steps=1)(x, y)
        assert before["flags"][2] is False
        assert state(model)["flags"] == [True] * 4  # the frozen batch norm too
        model = Normed()
        TorchattacksAttack(attack="PGD", early_stop=False).run(model, x, y)
        assert state(model) == before | {"weights": state(model)["weights"]}

    def test_options_are_checked(self, torchattacks):
        with pytest.raises(ValueError, match="no attack 'PDG'; did you mean 'PGD'"):
            TorchattacksAttack(attack="PDG")
        with pytest.raises(ValueError, match="MultiAttack needs the option 'attacks'"):
            TorchattacksAttack(attack="MultiAttack")
        with pytest.raises(ValueError, match="PGD has no option 'step'; did you mean 'steps'"):
            TorchattacksAttack(attack="PGD", options={"step": 3})
        with pytest.raises(ValueError, match="no option 'eps'"):
            TorchattacksAttack(attack="PGD", options={"eps": 0.3})
        with pytest.raises(TypeError, match="JSON"):
            TorchattacksAttack(attack="PGD", options={"alpha": torch.ones(1)})
        with pytest.raises(ValueError, match="CW takes no eps: use TorchattacksMinimalNormAttack"):
            TorchattacksAttack(attack="CW")
        with pytest.raises(ValueError, match="PGD takes an eps: use TorchattacksAttack"):
            TorchattacksMinimalNormAttack(attack="PGD")

    def test_it_is_its_own_result(self, torchattacks, images):
        x, y = images
        model = Normed().eval()
        expected = torchattacks.PGD(model, eps=0.2, alpha=0.05, steps=5, random_start=False)(x, y)
        options = {"alpha": 0.05, "steps": 5, "random_start": False}
        result = TorchattacksAttack(attack="PGD", eps=0.2, options=options, early_stop=False).run(model, x, y)
        torch.testing.assert_close(result.x_adv, expected, atol=1e-6, rtol=0)
        assert result.forwards.tolist() == [5 + 1] * 6
        assert result.backwards.tolist() == [5] * 6

    @pytest.mark.parametrize("attack", ["PGD", "APGD"])
    def test_other_bounds_are_a_change_of_units(self, torchattacks, attack):
        model, x, y, _ = line()
        options = {"steps": 5} | ({"random_start": False, "alpha": 0.03} if attack == "PGD" else {})
        unit = TorchattacksAttack(attack=attack, eps=0.1, options=options, early_stop=False)
        wide = replace(unit, eps=0.4, bounds=(-1.0, 3.0))
        z = wide(lambda z: model((z + 1) / 4), 4 * x - 1, y)
        torch.testing.assert_close((z + 1) / 4, unit(model, x, y), atol=1e-6, rtol=0)

    def test_elements_left_alone_stay_what_they_were(self, torchattacks):
        """Mapped to [0, 1] and back, some numbers are others in their last bits."""
        low, span = 0.2, 0.7
        x, y = low + span * torch.rand(20, 1, 6, 6), torch.zeros(20, dtype=torch.int64)
        assert (low + span * ((x - low) / span) != x).any()
        only_first = lambda z: torch.stack([0 * z[:, 0, 0, 0] + 9, z[:, 0, 0, 0]], 1)
        z = TorchattacksAttack(attack="FGSM", eps=0.5, bounds=(0.2, 0.9))(only_first, x, y)
        assert torch.equal(z.flatten(1)[:, 1:], x.flatten(1)[:, 1:])
        assert (z != x).any(1).any()

    def test_targeted(self, torchattacks):
        model, x, y, _ = line()
        target = (y + 1) % 3
        result = TorchattacksAttack(attack="PGD", eps=0.4, options={"alpha": 0.1}, targeted=True).run(model, x, target)
        assert torch.equal(result.success, model(result.x_adv).argmax(1) == target)
        assert result.success.double().mean() > 0.9
        with pytest.raises(ValueError, match="APGD has no targeted mode"):
            TorchattacksAttack(attack="APGD", targeted=True).run(model, x, target)

    def test_the_number_of_classes_is_the_models(self, torchattacks):
        """Unless it is told, APGDT heads for nine classes of a model that has four others."""
        model, x, y, nearest = line(n_classes=5)
        attack = TorchattacksAttack(attack="APGDT", norm="L2", options={"steps": 20})
        assert attack.run(model, x, y, eps=1.2 * nearest.max()).success.double().mean() > 0.9
        few = replace(attack, eps=1e-4, options={"steps": 2})
        assert not few.run(model, x, y).success.all()  # so that all classes have their turn
        ten = replace(few, options={"steps": 2, "n_classes": 10})
        with pytest.raises(RuntimeError, match=r"^torchattacks\.APGDT failed: IndexError: "):
            ten.run(model, x, y)

    def test_jsma_knows_ten_classes_only(self, torchattacks):
        """It heads for class 3 of a model that has three; the model is as it was afterwards."""
        model, x = nn.Linear(12, 3), torch.rand(2, 12)
        model.bias.data[2] = 100
        before = state(model)
        with pytest.raises(RuntimeError, match=r"^torchattacks\.JSMA failed: IndexError: "):
            TorchattacksMinimalNormAttack(attack="JSMA").run(model, x, torch.tensor([2, 2]))
        assert state(model) == before

    def test_autoattack_spends_a_tenth_of_the_budget(self, torchattacks):
        """The queries counted show it: 10 steps a part, where the reference takes 100."""
        model = nn.Linear(9, 10).eval()
        with torch.no_grad():
            model.bias.copy_(torch.tensor([100.0] + [0.0] * 9))  # robust
        x, y = torch.rand(2, 9), torch.zeros(2, dtype=torch.int64)
        result = TorchattacksAttack(attack="AutoAttack", eps=0.01).run(model, x, y)
        assert 150 <= result.backwards.min() <= result.backwards.max() <= 250  # the reference: 101 + 9 * 101 + 9 * 100
        assert not result.success.any()

    def test_its_deepfool_ends_on_the_boundary(self, torchattacks):
        """It reports points whose margin is rounding error: what counts is fooled in any batch."""
        model, x, y, _ = line()
        model, x = model.float(), x.float()
        result = TorchattacksMinimalNormAttack(attack="DeepFool", options={"overshoot": 1e-7}).run(model, x, y)
        assert not result.success.all()
        for rows in torch.arange(len(x)).split(1):
            assert bool((margin(model(result.x_adv[rows]), y[rows]) < 0).item()) == result.success[rows].item()
        assert not result.distance[~result.success].any()

    def test_ead_leaves_the_bounds(self, torchattacks):
        x = (torch.rand(10, 1, 5, 5) < 0.5).float()
        model = nn.Sequential(nn.Flatten(), nn.Linear(25, 3))
        with pytest.warns(UserWarning, match="outside the bounds"):
            TorchattacksMinimalNormAttack(attack="EADL1", norm="L1", options={"max_iterations": 10}).run(
                model, x, model(x).argmax(1)
            )


class TestFoolbox:
    def test_left_alone_it_leaves_gradients(self, foolbox, images):
        """The control of the contract test: what it looks at does change."""
        x, y = images
        model = Normed().eval()
        before = state(model)
        attack = foolbox.attacks.LinfPGD(steps=2)
        adapted = FoolboxAttack(attack=attack, early_stop=False)
        adapted.run(model, x, y)
        adapted.run(lambda z: model(z), x, y)
        assert state(model) == before
        attack(foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), x, y, epsilons=0.3)
        assert state(model)["grad"] != before["grad"]

    def test_it_is_its_own_result(self, foolbox, images):
        x, y = images
        model = Normed().eval()
        attack = foolbox.attacks.L2PGD(steps=5, random_start=False)
        _, expected, _ = attack(foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), x, y, epsilons=0.5)
        result = FoolboxAttack(attack=attack, norm="L2", eps=0.5, early_stop=False).run(model, x, y)
        torch.testing.assert_close(result.x_adv, expected, atol=1e-5, rtol=0)
        assert result.forwards.tolist() == [5 + 2] * 6  # its own verdict, and ours
        assert result.backwards.tolist() == [5] * 6

    def test_options_are_checked(self, foolbox):
        a = foolbox.attacks
        with pytest.raises(ValueError, match="is an attack in L2, norm is 'Linf'"):
            FoolboxAttack(attack=a.L2PGD())
        with pytest.raises(ValueError, match="takes no eps: use FoolboxMinimalNormAttack"):
            FoolboxAttack(attack=a.L2FMNAttack(), norm="L2")
        with pytest.raises(ValueError, match="takes an eps: use FoolboxAttack"):
            FoolboxMinimalNormAttack(attack=a.L2PGD().repeat(2))
        for wrong in ("PGD", a.LinfPGD, a.SpatialAttack()):
            with pytest.raises(TypeError, match="an attack of foolbox with a distance"):
                FoolboxAttack(attack=wrong)

    def test_bounds_that_float32_rounds(self, foolbox):
        """foolbox asserts that no input exceeds the bounds, which it holds in float64."""
        x, y = torch.full((3, 4), 0.1), torch.zeros(3, dtype=torch.int64)
        attack = FoolboxAttack(attack=foolbox.attacks.LinfPGD(steps=3), bounds=(-0.3, 0.1), eps=0.2)
        attack.run(lambda z: torch.stack([z.sum(1), 0 * z.sum(1) - 9], 1), x, y)

    def test_targeted(self, foolbox):
        model, x, y, _ = line()
        target = (y + 1) % 3
        result = FoolboxAttack(attack=foolbox.attacks.LinfPGD(steps=20), eps=0.4, targeted=True).run(model, x, target)
        assert torch.equal(result.success, model(result.x_adv).argmax(1) == target)
        assert result.success.double().mean() > 0.9

    def test_fmn_without_its_projection(self, foolbox):
        """foolbox's L2 projection divides norms by themselves: its points are far off, and so the verdict says."""
        model, x, y, nearest = line()
        theirs = FoolboxMinimalNormAttack(attack=foolbox.attacks.L2FMNAttack(steps=100)).run(model, x, y)
        ours = FMN(steps=100).run(model, x, y)
        torch.testing.assert_close(theirs.distance, (theirs.x_adv - x).norm(dim=1), atol=1e-12, rtol=0)
        assert theirs.success.all()
        assert ours.success.all()
        assert (ours.distance / nearest).max() <= 1.05
        assert (theirs.distance / nearest).median() >= 1.2

    @pytest.mark.parametrize("early_stop", [True, False])
    def test_hopskipjump_comes_back_from_misclassified_samples(self, foolbox, early_stop):
        model, x, y, _ = line(20)
        y = torch.where(torch.arange(len(y)) < 3, (y + 1) % 3, y)
        hop = foolbox.attacks.HopSkipJumpAttack(steps=2, max_gradient_eval_steps=20, initial_gradient_eval_steps=10)
        result = FoolboxMinimalNormAttack(attack=hop, early_stop=early_stop).run(model, x, y)
        assert result.success[:3].all()
        assert not result.distance[:3].any()
        assert result.distance[3:].min() > 0

    def test_describe_is_json(self, foolbox):
        attack = FoolboxAttack(attack=foolbox.attacks.LinfPGD(steps=7).repeat(3), eps=0.1)
        described = json.loads(json.dumps(attack.describe(), allow_nan=False))
        assert (described["of"]["of"]["steps"], described["of"]["times"], described["eps"]) == (7, 3, 0.1)
        nearest = FoolboxMinimalNormAttack(attack=foolbox.attacks.LInfFMNAttack(), norm="Linf").describe()
        json.dumps(nearest, allow_nan=False)
        assert "eps" not in nearest
        assert not attack.for_training().early_stop


def test_describe_is_json_and_holds_the_defaults(torchattacks):
    described = TorchattacksAttack(attack="APGDT", options={"steps": 3}, eps=0.1).describe()
    assert json.loads(json.dumps(described))["of"]["rho"] == 0.75
    assert (described["of"]["steps"], described["eps"]) == (3, 0.1)
    assert not {"norm", "seed", "eps", "model", "n_classes"} & described["of"].keys()


BEHIND = {
    # It leaves elements that stand at a bound out of its steps, which lengthens them; foolbox's fails on one in a
    # hundred, torchattacks' on most.
    "DeepFool L2": 1.1,
    "DeepFool Linf": 1.15,
}
# A start drawn uniformly in a ball of 64 dimensions is on its surface; torchattacks draws the radius uniformly. From x
# the two are equal.
OTHER_START = {("torchattacks", "PGD L2")}


@pytest.fixture(scope="module")
def parity():
    return runpy.run_path(str(PARITY))


@pytest.fixture(scope="module")
def digits_network(parity):
    data = parity["digits"]("test").first(80)
    return parity["network"](), data.images(), data.y


@pytest.mark.parametrize("name", ["torchattacks", "foolbox"])
def test_ours_are_at_least_as_strong(name, parity, digits_network):
    library(name)
    net, x, y = digits_network
    pairs = parity["LIBRARIES"][name]()
    assert len(pairs) >= 10
    for attack, (ours, theirs) in pairs.items():
        if (name, attack) in OTHER_START:
            continue
        assert isinstance(ours, Attack)
        assert isinstance(theirs, MinimalNormAttack) == isinstance(ours, MinimalNormAttack)
        row = parity["compare"](net, x, y, ours, theirs, seeds=2)
        if attack in BEHIND and row["theirs"]["median distance"]:
            assert row["ours"]["median distance"] <= BEHIND[attack] * row["theirs"]["median distance"]
            assert row["ours"]["success"] >= row["theirs"]["success"]
        else:
            assert parity["at_least_as_strong"](row), (attack, row)
