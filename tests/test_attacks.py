"""The promises of every attack. Members are found in ``attacks.__all__``: a new one is covered the day it is born."""

import copy
import importlib
import inspect
import warnings
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch
from helpers import numpy_numbers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robustgen import attacks
from robustgen.attacks import FGSM, PGD, Attack, NoiseSearch, TransferAttack
from robustgen.attacks.adapters.foreign import ForeignAttack
from robustgen.attacks.ball import Ball, perturbation_norm
from robustgen.attacks.engine import Engine
from robustgen.attacks.losses import cross_entropy_direction, margin
from robustgen.attacks.minimal_norm import MinimalNormAttack

MEMBERS = [
    n for n in attacks.__all__ if inspect.isclass(getattr(attacks, n)) and issubclass(getattr(attacks, n), Attack)
]
MEMBERS.remove("Attack")
ADAPTERS = [n for n in MEMBERS if issubclass(getattr(attacks, n), ForeignAttack)]  # test_adapters.py
GRADIENT = [n for n in MEMBERS if n not in ("HopSkipJump", "NoiseSearch", "Square", *ADAPTERS)]
MINIMAL_NORM = [n for n in MEMBERS if issubclass(getattr(attacks, n), MinimalNormAttack)]  # test_minimal_norm.py
FIXED_EPS = [n for n in MEMBERS if n not in MINIMAL_NORM]
NORMS = {"Linf": float("inf"), "L2": 2, "L1": 1}


def has(name: str, norm: str) -> bool:
    """Whether a member takes a norm; an adapter, what its library has, where that is installed."""
    if name not in ADAPTERS:
        return norm in (PGD if name == "TransferAttack" else getattr(attacks, name)).norms
    return importlib.util.find_spec(library_of(name)) is not None and norm in _FOREIGN[name]


def library_of(name: str) -> str:
    return name.removesuffix("Attack").removesuffix("MinimalNorm").lower()


_FOREIGN = {
    "TorchattacksAttack": {"Linf": ("PGD", {"alpha": 0.05}), "L2": ("PGDL2", {})},
    "TorchattacksMinimalNormAttack": {"L2": ("CW", {"steps": 30, "lr": 0.05})},
    "FoolboxAttack": {n: (f"{n}PGD", {"steps": 10}) for n in NORMS},
    "FoolboxMinimalNormAttack": {n: (f"{n.replace('i', 'I')}FMNAttack", {"steps": 20}) for n in NORMS},
}
CASES = [(name, norm) for name in MEMBERS for norm in NORMS if has(name, norm)]
RUNNING = list(dict.fromkeys(name for name, _ in CASES))  # without adapters to libraries that are not installed


def make(name: str, model: object, **common) -> Attack:
    """An instance of a member; one that needs more than common settings has a line here.

    Attacks that look for the nearest point are made without the eps: give it at the call where it matters.
    """
    norm = common.get("norm")
    if name == "TransferAttack":
        return TransferAttack(surrogate=model, attack=PGD(steps=10, **common))
    if name == "JointAttack":  # with a detector that lets everything pass
        return attacks.JointAttack(steps=10, score=lambda z: 0 * z.flatten(1).sum(1), threshold=0.5, **common)
    if name == "AtEps":
        radius = {"eps": common.pop("eps")} if "eps" in common else {}
        return attacks.AtEps(attack=attacks.FAB(steps=10, n_targets=9, **common), **radius)
    extra = {
        "APGD": {"steps": 10, "restarts": 2},
        "APGDT": {"steps": 10},
        "AutoAttack": {"steps": 5, "n_queries": 10},
        "CarliniWagner": {"steps": 30, "search_steps": 4, "learning_rate": 0.05},
        "DDN": {"steps": 20},
        "FAB": {"steps": 20},
        "FMN": {"steps": 20},
        "HopSkipJump": {"n_queries": 60, "directions": 5},
        "MIFGSM": {"steps": 5},
        "NoiseSearch": {"n_queries": 8},
        "PGD": {"steps": 10, "restarts": 2},
        "Square": {"n_queries": 20, "restarts": 2},
    }.get(name, {})
    if name in ADAPTERS:
        extra = foreign(name, norm)
    if name in MINIMAL_NORM:
        common.pop("eps", None)
    return getattr(attacks, name)(**extra, **common)


def foreign(name: str, norm: str | None) -> dict:
    """What an adapter runs for a norm (None: its default)."""
    default = "L2" if name in MINIMAL_NORM else "Linf"
    attack, options = _FOREIGN[name][norm if norm in NORMS else default]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # foolbox 3.3.4 imports from a deprecated place in scipy
        library = importlib.import_module(library_of(name))
    if library_of(name) == "torchattacks":
        return {"attack": attack, "options": options}
    return {"attack": getattr(library.attacks, attack)(**options)}


class Awkward(nn.Module):
    """Batch norm, dropout, a shared and a frozen weight, a buffer that counts calls, mixed train / eval flags."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.read_out = nn.Linear(4 * 25, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.norm.running_mean.normal_()
        self.conv.weight.requires_grad_(False)
        self.to(dtype)
        self.train()
        self.norm.eval()

    def forward(self, x):
        self.calls += 1
        return self.read_out(self.drop(torch.relu(self.norm(self.conv(x)))).flatten(1))


@pytest.fixture
def batch():
    x = torch.rand(7, 1, 5, 5)
    return x, torch.randint(3, (7,))


def snapshot(model):
    return (
        {k: v.clone() for k, v in model.state_dict().items()},
        [p.requires_grad for p in model.parameters()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [m.training for m in model.modules()],
        [dict(m._forward_hooks) for m in model.modules()],
        {k: id(v) for k, v in [*model.named_parameters(), *model.named_buffers()]},
    )


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize(("name", "norm"), CASES)
@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.filterwarnings("ignore:.*eps 3 is larger")
class TestContract:
    def test_stays_in_ball_and_bounds_exactly(self, name, norm, early_stop, batch):
        x, y = batch
        model = Awkward()
        eps = torch.tensor([0.0, 0.01, 0.1, 0.3, 0.5, 1.0, 3.0])
        result = make(name, model, norm=norm, early_stop=early_stop).run(model, x, y, eps=eps)
        assert bool((perturbation_norm(result.x_adv - x, norm) <= eps.double() * (1 + 1e-6)).all())
        exact = (result.x_adv.double() - x.double()).flatten(1)
        size = exact.norm(p=NORMS[norm], dim=1)
        assert bool((size <= eps.double()).all())
        assert result.x_adv.min() >= 0
        assert result.x_adv.max() <= 1
        assert torch.equal(result.x_adv[0], x[0])
        assert result.distance.shape == result.success.shape == result.forwards.shape == result.backwards.shape == (7,)

    def test_success_is_the_prediction_of_the_original_model(self, name, norm, early_stop, batch):
        x, y = batch
        model = Awkward()
        result = make(name, model, norm=norm, early_stop=early_stop, eps=0.2).run(model, x, y)
        model.eval()
        assert torch.equal(result.success, model(result.x_adv).argmax(1) != y)

    def test_leaves_the_model_as_it_was(self, name, norm, early_stop, batch):
        x, y = batch
        model = Awkward()
        model.read_out.register_forward_hook(lambda *a: None)
        model.read_out.weight.grad = torch.ones_like(model.read_out.weight)
        before, random_state = snapshot(model), torch.get_rng_state()
        make(name, model, norm=norm, early_stop=early_stop)(model, x, y)
        assert same(before, snapshot(model))
        assert torch.equal(random_state, torch.get_rng_state())

    def test_a_sample_does_not_depend_on_its_batch(self, name, norm, early_stop, batch):
        if name in ADAPTERS:
            return  # the libraries draw from one stream for the whole batch
        x, y = batch[0].double(), batch[1]
        model = Awkward(torch.float64)
        ids = torch.tensor([3, 99, -4, 2**40, 5, 0, 7])
        attack = make(name, model, norm=norm, early_stop=early_stop, eps=0.1, seed=5)
        whole = attack.run(model, x, y, ids=ids)
        for rows in (torch.randperm(7), *torch.arange(7).split(1)):
            part = attack.run(model, x[rows], y[rows], ids=ids[rows])
            assert torch.allclose(whole.x_adv[rows], part.x_adv, atol=1e-12, rtol=0)
            for field in ("success", "forwards", "backwards"):
                assert torch.equal(getattr(whole, field)[rows], getattr(part, field)), field

    def test_any_bounds_and_any_input_shape(self, name, norm, early_stop):
        for bounds, shape in [((-3.0, 7.0), (6,)), ((0.0, 255.0), (2, 3, 4)), ((-1.0, -0.5), (4, 3))]:
            model = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), 2))
            x = bounds[0] + (bounds[1] - bounds[0]) * torch.rand(5, *shape)
            attack = make(name, model, norm=norm, early_stop=early_stop, eps=0.5, bounds=bounds)
            x_adv = attack(model, x, torch.zeros(5, dtype=torch.int64), eps=0.5)
            exact = (x_adv.double() - x.double()).flatten(1)
            assert exact.norm(p=NORMS[norm], dim=1).max() <= 0.5
            assert bounds[0] <= x_adv.min()
            assert x_adv.max() <= bounds[1]

    def test_targeted_reaches_the_target(self, name, norm, early_stop):
        if name == "KLPGD":
            return  # it aims at no class
        model = nn.Linear(10, 3).double()
        x = 0.4 + 0.2 * torch.rand(20, 10, dtype=torch.float64)
        target = (model(x).argmax(1) + 1) % 3
        attack = make(name, model, norm=norm, early_stop=early_stop, eps=0.4, targeted=True)
        result = attack.run(model, x, target)
        assert torch.equal(result.success, model(result.x_adv).argmax(1) == target)
        if name in GRADIENT and norm == "Linf":
            moved_closer = margin(model(result.x_adv), target, True) < margin(model(x), target, True)
            assert moved_closer.all()
            assert result.success.float().mean() > 0.5

    def test_images_stay_float32_where_the_model_computes_in_bfloat16(self, name, norm, early_stop, batch):
        """bfloat16 cannot represent the ball: at 0.5 its neighbours are 0.004 apart."""
        x, y = batch
        net = Awkward(torch.bfloat16).eval()
        model = lambda z: net(z.bfloat16())
        result = make(name, model, norm=norm, early_stop=early_stop, eps=0.01).run(model, x, y, eps=0.01)
        assert result.x_adv.dtype == torch.float32
        assert torch.equal(result.success, model(result.x_adv).argmax(1) != y)
        inside = (result.x_adv.double() - x.double()).flatten(1).norm(p=NORMS[norm], dim=1) <= 0.01
        assert inside.all()
        moved = result.x_adv != x
        assert (result.x_adv.bfloat16().float() != result.x_adv)[moved].any() or not moved.any()

    def test_a_stochastic_model_needs_a_majority(self, name, norm, early_stop):
        class Flicker(nn.Module):
            """Right on average; a single draw is wrong three times in ten, whatever x is.

            Most of 9 draws are wrong one time in ten; an attack that asks often enough must not claim more.
            """

            def forward(self, x):
                wrong = torch.rand(len(x), 1, dtype=x.dtype) < 0.3
                return torch.cat([torch.where(wrong, -1.0, 1.0), torch.zeros(len(x), 1)], 1) + 0 * x.sum()

        model, x, y = Flicker(), torch.rand(200, 3), torch.zeros(200, dtype=torch.int64)
        random_state = torch.get_rng_state()
        for attack in (make(name, model, norm=norm, early_stop=early_stop), *persistent(name, model, norm, early_stop)):
            assert 0.03 <= attack.run(model, x, y).success.float().mean() <= 0.2
        assert torch.equal(random_state, torch.get_rng_state())


def persistent(name, model, norm, early_stop):
    """The same attack with many more tries."""
    if name == "PGD":
        yield PGD(norm=norm, early_stop=early_stop, steps=40, restarts=3)
    if name == "NoiseSearch":
        yield NoiseSearch(norm=norm, early_stop=early_stop, n_queries=60)


@pytest.mark.parametrize("name", RUNNING)
class TestUse:
    def test_leaves_the_model_as_it_was_after_an_exception(self, name, batch):
        x, y = batch
        model = Awkward()

        def fail(module, args, output):
            if int(model.calls) >= 3:
                raise RuntimeError("the power went out")

        model.read_out.register_forward_hook(fail)
        before, random_state = snapshot(model), torch.get_rng_state()
        with pytest.raises((RuntimeError, ValueError), match="power"):
            make(name, model, eps=0.001)(model, x, y)
        assert same(before, snapshot(model))
        assert torch.equal(random_state, torch.get_rng_state())

    def test_empty_batch(self, name):
        model = Awkward()
        attack = make(name, model)
        result = attack.run(model, torch.zeros(0, 1, 5, 5), torch.zeros(0, dtype=torch.int64))
        assert result.x_adv.shape == (0, 1, 5, 5)
        assert result.success.shape == result.distance.shape == (0,)

    def test_runs_inside_no_grad_and_inference_mode(self, name, batch):
        x, y = batch
        model = Awkward()
        attack = make(name, model)
        expected = attack(model, x, y)
        with torch.no_grad():
            assert torch.equal(attack(model, x, y), expected)
        with torch.inference_mode():
            assert torch.equal(attack(model, x.clone(), y.clone()), expected)

    def test_understands_an_output_object(self, name, batch):
        x, y = batch
        model = Awkward().eval()
        wrapped = lambda z: SimpleNamespace(logits=model(z))
        attack = make(name, wrapped)
        plain = Engine(prepare=False)  # a function cannot be prepared
        assert torch.equal(attack(wrapped, x, y), attack(model, x, y, engine=plain))


@pytest.mark.parametrize("name", RUNNING)
class TestWork:
    def test_solved_samples_take_no_work_and_return_unchanged(self, name, batch):
        x, _ = batch
        model = Awkward()
        predicted = copy.deepcopy(model).eval()(x).argmax(1)
        y = torch.where(torch.arange(7) < 4, (predicted + 1) % 3, predicted)  # the first four are already wrong
        result = make(name, model, eps=1e-4).run(model, x, y)
        assert torch.equal(result.x_adv[:4], x[:4])
        assert bool(result.success[:4].all())
        assert result.forwards[:4].max() == 1
        assert result.backwards[:4].max() == 0
        assert result.forwards[4:].min() >= 2

    def test_returns_the_iterate_of_lowest_margin(self, name):
        """On a wavy loss the last iterate is not the best one; everything the model saw is on record."""
        if name in MINIMAL_NORM:
            return  # it returns the nearest success: test_minimal_norm.py
        if name in ("AtEps", "AutoAttack"):
            return  # FAB asks about points outside the ball too, which do not count
        seen: list[torch.Tensor] = []

        def wavy(x):
            seen.append(x.detach().clone())
            m = torch.cos(9 * x.double()).sum(1, keepdim=True) + 3
            return torch.cat([m, torch.zeros_like(m)], 1)

        x, y = torch.rand(6, 2), torch.zeros(6, dtype=torch.int64)
        x_adv = make(name, wavy, eps=0.4, early_stop=False)(wavy, x, y)
        queries = [z for z in seen if z.shape == x.shape and not torch.equal(z, x)]
        if name in ("FGSM", "RandomStartFGSM", "TransferAttack", *ADAPTERS):  # one candidate
            assert torch.equal(x_adv, queries[-1])
        else:
            best = torch.stack([torch.cos(9 * z.double()).sum(1) for z in queries]).amin(0)
            assert torch.allclose(torch.cos(9 * x_adv.double()).sum(1), best)
            if name == "PGD":
                assert (torch.cos(9 * queries[-1].double()).sum(1) > best + 1e-6).any()

    def test_every_option_is_checked(self, name):
        model = nn.Linear(2, 2)
        for wrong in ({"norm": "L7"}, {"eps": -0.1}, {"eps": float("nan")}, {"bounds": (1.0, 0.0)}, {"votes": 0}):
            if "eps" in wrong and name in MINIMAL_NORM:
                continue
            with pytest.raises(ValueError, match=next(iter(wrong)) if "norm" not in wrong else "supports norm .*L2"):
                make(name, model, **wrong)
        with pytest.raises(TypeError):
            make(name, model, epsilon=0.1)
        if name not in MINIMAL_NORM:
            with pytest.raises(TypeError, match="got '8/255', a text: write eps=8/255, without the quotes"):
                make(name, model, eps="8/255")

    @pytest.mark.parametrize(
        ("x", "y", "error", "message"),
        [
            (torch.full((2, 2), float("nan")), torch.tensor([0, 1]), ValueError, "NaN"),
            (torch.full((2, 2), float("inf")), torch.tensor([0, 1]), ValueError, "NaN or Inf"),
            (torch.full((2, 2), 1.5), torch.tensor([0, 1]), ValueError, "outside the bounds"),
            (torch.zeros(2, 2, dtype=torch.uint8), torch.tensor([0, 1]), TypeError, "float32"),
            (torch.zeros(2, 2, dtype=torch.bfloat16), torch.tensor([0, 1]), TypeError, "float32"),
            ([[0.0, 0.0]], torch.tensor([0]), TypeError, r"torch\.Tensor"),
            (torch.zeros(2), torch.tensor([0, 1]), ValueError, "batch"),
            (torch.zeros(2, 2), torch.tensor([0, 2]), ValueError, "label"),
            (torch.zeros(2, 2), torch.tensor([0, -1]), ValueError, "label"),
            (torch.zeros(2, 2), torch.tensor([0]), ValueError, "shape"),
            (torch.zeros(2, 2), torch.tensor([0.0, 1.0]), TypeError, "int64"),
        ],
    )
    def test_wrong_input(self, name, x, y, error, message):
        model = nn.Linear(2, 2)
        with pytest.raises(error, match=message):
            make(name, model)(model, x, y)

    def test_wrong_model(self, name):
        x, y = torch.rand(2, 4), torch.tensor([0, 1])
        with pytest.raises(TypeError, match="logits"):
            make(name, nn.Linear(4, 2))(lambda z: None, x, y)
        with pytest.raises(ValueError, match="logits"):
            make(name, nn.Linear(4, 2))(nn.Linear(4, 1), x, y)
        with pytest.raises(ValueError, match="NaN or Inf logits for 2 of 2"):
            make(name, nn.Linear(4, 2))(lambda z: z[:, :2] / 0 * 0, x, y)
        with pytest.raises(ValueError, match=r"the model fails on inputs of shape \(4,\), torch.float32"):
            make(name, nn.Linear(4, 2))(nn.Linear(5, 2), x, y)
        with pytest.raises(ValueError, match=r"the model fails on inputs of shape \(4,\), torch.float64"):
            make(name, nn.Linear(4, 2))(nn.Linear(4, 2), x.double(), y)
        for wrong in (torch.tensor([0.1]), -torch.ones(2)):
            with pytest.raises(ValueError, match="eps"):
                make(name, nn.Linear(4, 2))(nn.Linear(4, 2), x, y, eps=wrong)
        with pytest.warns(UserWarning, match="probabilities"):
            make(name, nn.Linear(4, 2))(nn.Sequential(nn.Linear(4, 2), nn.Softmax(1)), x, y)


# SpherePGD: test_minimal_norm.py; made for training, with no promise of success: test_adversarial_training.py
@pytest.mark.parametrize(
    ("name", "norm", "n_classes"),
    [
        (name, norm, n_classes)
        for name, norm in CASES
        if name in {*GRADIENT} & {*FIXED_EPS} - {"KLPGD", "RandomStartFGSM", "SpherePGD"}
        for n_classes in (2, 5)
        # steps of length eps in all along a mixture of classes are not optimal for more than two
        if n_classes == 2 or name not in ("FGSM", "MIFGSM")
    ],
)
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_strength_against_a_closed_form(name, norm, loss, n_classes):
    """For logits W x + b the smallest adversarial radius is min_j (z_y - z_j) / dual norm of (w_y - w_j)."""
    torch.manual_seed(1)
    model = nn.Linear(12, n_classes).double()
    if loss == "ce":  # at small logits the cross-entropy climbs towards all classes at once, not the nearest
        model.weight.data.mul_(200)
    if norm == "L1":  # its radii are the largest: let the classes meet amid the samples
        model.bias.data.copy_(-model.weight.data.sum(1) / 2)
    x = 0.4 + 0.2 * torch.rand(200, 12, dtype=torch.float64)
    z = model(x).detach()
    y = z.argmax(1)
    w = model.weight.detach()
    gap = z.gather(1, y[:, None]) - z
    size = (w[y][:, None] - w[None]).norm(p={"Linf": 1, "L2": 2, "L1": float("inf")}[norm], dim=2)
    radius = torch.where(size > 0, gap / size, float("inf")).amin(1)
    near = radius < 0.3  # the bounds do not bind
    x, y, radius = x[near], y[near], radius[near]
    assert len(x) > 40
    common = {"norm": norm}
    if any(f.name == "loss" for f in fields(getattr(attacks, name))):
        common["loss"] = loss
    attack = make(name, model, **common)
    if name in ("PGD", "APGD"):
        attack = getattr(attacks, name)(norm=norm, loss=loss, steps=50, restarts=5)
    if name == "JointAttack":
        attack = replace(attack, steps=50, restarts=5)
    if name == "TransferAttack":
        attack = TransferAttack(surrogate=model, attack=PGD(norm=norm, loss=loss, steps=50, restarts=5))
    assert attack.run(model, x, y, eps=1.1 * radius).success.float().mean() >= 0.95
    assert attack.run(model, x, y, eps=0.999 * radius).success.sum() == 0


# CarliniWagner's c weighs logits against distance; the divergence of KLPGD saturates, as in the paper
@pytest.mark.parametrize("name", [n for n in GRADIENT if n not in ("CarliniWagner", "KLPGD")])
def test_a_confident_network_does_not_mask_its_gradient(name):
    """Logits a hundred thousand times larger: the cross-entropy's own gradient is exactly zero in float32."""
    model = nn.Linear(12, 2)
    x = 0.4 + 0.2 * torch.rand(50, 12)
    y = model(x).argmax(1)
    loud = lambda z: 2.0**17 * model(z)  # a power of two: what is not lost is exact
    leaf = x.clone().requires_grad_(True)
    nn.functional.cross_entropy(loud(leaf), y).backward()
    assert (leaf.grad == 0).all(1).any()
    assert torch.equal(make(name, loud)(loud, x, y), make(name, model)(model, x, y))


@pytest.mark.parametrize("name", [n for n in GRADIENT if n != "TransferAttack"])
def test_models_without_a_gradient(name):
    x, y = torch.rand(3, 4), torch.zeros(3, dtype=torch.int64)
    step = lambda z: torch.stack([2 + 0 * z.detach()[:, 0], z.detach()[:, 0] * 0], 1)
    with pytest.raises(ValueError, match="differentiable"):
        make(name, step)(step, x, y)
    root = lambda z: torch.stack([2 + (0 * z).sum(1).sqrt(), z[:, 0] * 0], 1)
    with pytest.warns(UserWarning, match="NaN or Inf"):
        make(name, root)(root, x, y)


def test_ce_direction_is_that_of_the_cross_entropy():
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    y = torch.randint(4, (6,))
    (ours,) = torch.autograd.grad(cross_entropy_direction(logits, y).sum(), logits)
    (plain,) = torch.autograd.grad(nn.functional.cross_entropy(logits, y, reduction="sum"), logits)
    cosine = nn.functional.cosine_similarity(ours, plain, dim=1)
    assert torch.allclose(cosine, torch.ones_like(cosine))


def test_fgsm_is_its_formula():
    model = Awkward(torch.float64).eval()
    x, y = torch.rand(5, 1, 5, 5, dtype=torch.float64), torch.randint(3, (5,))
    leaf = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(leaf), y), leaf)
    expected = (x + 0.1 * gradient.sign()).clamp(0, 1)
    assert torch.allclose(FGSM(eps=0.1, early_stop=False)(model, x, y), expected, atol=1e-12)
    unit = gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
    expected = (x + 0.1 * unit).clamp(0, 1)
    assert torch.allclose(FGSM(eps=0.1, norm="L2", early_stop=False)(model, x, y), expected, atol=1e-12)


def test_pgd_is_its_formula_from_a_clean_start():
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 20), nn.Tanh(), nn.Linear(20, 3)).double()
    x, y = torch.rand(5, 1, 5, 5, dtype=torch.float64), torch.randint(3, (5,))
    expected, best, lowest = x.clone(), x.clone(), torch.full((5,), float("inf"), dtype=torch.float64)
    for _ in range(8):
        leaf = expected.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(leaf), y), leaf)
        expected = (x + (expected + 0.05 * gradient.sign() - x).clamp(-0.2, 0.2)).clamp(0, 1)
        m = margin(model(expected).detach(), y)
        best[m < lowest], lowest = expected[m < lowest], torch.minimum(m, lowest)
    ours = PGD(eps=0.2, steps=8, step_size=0.05, random_start=False, early_stop=False)(model, x, y)
    assert torch.allclose(ours, best, atol=1e-9)


def test_random_starts_differ_by_seed_restart_and_id():
    x = torch.full((3, 4), 0.5, dtype=torch.float64)
    ball = Ball(x, torch.full((3,), 0.2), "Linf", (0.0, 1.0))
    rows = torch.arange(3)
    draws = [ball.uniform(rows, seed, rows, (restart,)) for seed in (0, 1) for restart in (0, 1)]
    assert len({tuple(row.tolist()) for d in draws for row in d}) == 12


def test_averaged_gradients_help_on_a_noisy_model():
    weights = torch.linspace(-1, 1, 40)

    def noisy(x):
        m = (x - 0.5) @ weights + 0.5 + 30 * (x @ torch.randn(40) - x.detach() @ torch.zeros(40)) * 0.05
        return torch.stack([m, torch.zeros_like(m)], 1)

    x, y = torch.full((30, 40), 0.5), torch.zeros(30, dtype=torch.int64)
    clean_margin = lambda z: ((z - 0.5) @ weights).mean()
    one = FGSM(eps=0.1, eot_samples=1, early_stop=False)(noisy, x, y)
    many = FGSM(eps=0.1, eot_samples=64, early_stop=False)(noisy, x, y)
    assert clean_margin(many) < clean_margin(one) - 0.1


def test_transfer_runs_on_the_surrogate_and_counts_target_queries_only():
    target, surrogate = nn.Linear(6, 3), nn.Linear(6, 3)
    x, y = torch.rand(8, 6), torch.randint(3, (8,))
    attack = TransferAttack(surrogate=surrogate, attack=FGSM(eps=0.3))
    result = attack.run(target, x, y)
    moved = ~(result.x_adv == x).flatten(1).all(1)
    expected = FGSM(eps=0.3, early_stop=False)(surrogate, x, y)
    assert torch.equal(result.x_adv[moved], expected[moved])
    assert result.backwards.max() == 0


def test_noise_search_distributions():
    x, y = torch.full((200, 10), 0.5), torch.zeros(200, dtype=torch.int64)
    always = lambda z: torch.stack([2 + z.sum(1) * 0, z.sum(1) * 0], 1)
    for distribution in ("uniform", "gaussian"):
        for norm in NORMS:
            attack = NoiseSearch(eps=0.3, norm=norm, n_queries=1, distribution=distribution)
            delta = attack(always, x, y) - x
            assert delta.mean().abs() < 0.02
            assert delta.std() > 0.03
    with pytest.raises(ValueError, match="distribution"):
        NoiseSearch(distribution="cauchy")


def test_an_rnn_and_a_frozen_batch_norm_survive():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(3, 8, batch_first=True, dropout=0.0)
            self.out = nn.Linear(8, 2)

        def forward(self, x):
            return self.out(self.rnn(x)[0][:, -1])

    model = Reader().train()
    x, y = torch.rand(4, 6, 3), torch.randint(2, (4,))
    PGD(eps=0.1, steps=3)(model, x, y)
    assert model.training
    assert model.rnn.training


@settings(max_examples=60, deadline=None)
@given(
    eps=st.floats(0, 4, allow_nan=False, width=32),
    low=st.floats(-300, 0, width=32),
    span=st.floats(0.5, 300, width=32),
    norm=st.sampled_from(list(NORMS)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 10**6),
)
def test_projection_is_exact_and_idempotent(eps, low, span, norm, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    bounds = (low, low + span)
    x = (low + span * torch.rand(4, 9, generator=generator, dtype=torch.float64)).to(dtype).clamp(*bounds)
    ball = Ball(x, torch.full((4,), eps, dtype=torch.float64), norm, bounds)
    z = ball.project(torch.arange(4), x + 3 * span * torch.randn(4, 9, generator=generator, dtype=dtype))
    exact = z.double() - x.double()
    assert exact.norm(p=NORMS[norm], dim=1).max() <= eps
    assert z.min() >= torch.tensor(bounds[0], dtype=dtype)
    assert z.max() <= torch.tensor(bounds[1], dtype=dtype)
    again = ball.project(torch.arange(4), z)
    assert torch.allclose(again, z, atol=1e-5 * max(1.0, abs(low) + span) if dtype == torch.float32 else 1e-10)


def test_every_member_is_an_attack_with_explicit_keywords():
    for name in MEMBERS:
        cls = getattr(attacks, name)
        assert issubclass(cls, Attack)
        with pytest.raises(TypeError, match="positional"):
            cls(0.3)
        assert not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(cls).parameters.values())


# KLPGD may climb away from the failing side; the other libraries step to NaN themselves
@pytest.mark.parametrize("name", [n for n in MEMBERS if n not in ("KLPGD", *ADAPTERS)])
def test_logits_that_are_not_finite_are_no_correct_prediction(name):
    fragile = lambda z: torch.stack([torch.log(z - 0.4).sum(1) + 20, 0 * z[:, 0]], 1)  # NaN below 0.4
    x, y = torch.full((20, 3), 0.5), torch.zeros(20, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        attack = make(name, fragile, eps=0.3)
        assert attack.run(fragile, x, y).success.all()
        assert not make(name, fragile, eps=0.3, targeted=True).run(fragile, x, 1 - y).success.any()


def test_a_transfer_attack_trains_and_nests():
    model, x, y = nn.Linear(6, 3), torch.rand(8, 6), torch.randint(3, (8,))
    inner = TransferAttack(surrogate=nn.Linear(6, 3), attack=PGD(steps=2))
    assert not inner.for_training().early_stop
    TransferAttack(surrogate=model, attack=inner)(model, x, y)


@pytest.mark.parametrize("name", [n for n in MEMBERS if n not in ADAPTERS])
def test_numbers_of_numpy_are_numbers(name):
    attack = make(name, nn.Identity())
    values = {f.name: getattr(attack, f.name) for f in fields(attack) if f.init}
    again = replace(attack, **numpy_numbers(values))
    for name, value in values.items():
        assert (type(getattr(again, name)), getattr(again, name)) == (type(value), value), name
