"""The verifier accepts what is in the closed ball to the last bit and fools the model, and nothing else."""

import math
from fractions import Fraction

import pytest
import torch
from test_attacks import ADAPTERS, CASES, FIXED_EPS, MINIMAL_NORM, RUNNING, make
from torch import nn

from robustgen import detectors
from robustgen.attacks import APGD, FGSM, FMN, PGD, Square
from robustgen.attacks.ball import perturbation_norm
from robustgen.evaluation import evaluate_robustness, verify

ZERO = torch.zeros(1, dtype=torch.int64)


def always_wrong(x):
    return torch.stack([torch.zeros(len(x)), torch.ones(len(x))], 1) + 0 * x.flatten(1).sum(1, keepdim=True)


def up(z):
    return torch.nextafter(z, torch.full_like(z, 2.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_one_ulp_decides(norm, dtype):
    """Points whose distance is exactly eps in dyadic numbers, and their neighbours."""
    x = torch.full((1, 4), 0.5, dtype=dtype)
    step = {"Linf": [0.25, 0, 0.25, 0], "L2": [0.1875, 0.25, 0, 0], "L1": [0.125, 0.0625, 0.0625, 0.0625]}[norm]
    eps = {"Linf": 0.25, "L2": 0.3125, "L1": 0.3125}[norm]
    on = x + torch.tensor([step], dtype=dtype)
    rules = {"norm": norm, "y": ZERO}
    assert verify(always_wrong, x, on, eps=eps, **rules).accepted.item()
    assert not verify(always_wrong, x, on, eps=math.nextafter(eps, 0), **rules).accepted.item()
    for k in (0, 1) if norm != "Linf" else (0, 2):
        past = on.clone()
        past[0, k] = up(on[0, k])
        found = verify(always_wrong, x, past, eps=eps, **rules)
        assert not found.accepted.item()
        assert found.reasons[0].startswith("outside the ball")


def test_the_ball_is_exact_where_float64_rounds():
    """1 + 2^-60 away rounds to 1 in float64: only exact arithmetic sees that it is outside."""
    tiny = 2.0**-60
    x = torch.tensor([[-tiny, 0.0], [tiny, 0.0]])
    z = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    for norm in ("Linf", "L2", "L1"):
        found = verify(always_wrong, x, z, ZERO.expand(2), eps=1.0, norm=norm, bounds=(-1.0, 1.0))
        assert found.accepted.tolist() == [False, True]


@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_random_points_against_fractions(norm):
    torch.manual_seed(1)
    x, z = torch.rand(40, 30), torch.rand(40, 30)
    power = 2 if norm == "L2" else 1
    exact = [
        sum(abs(Fraction(b) - Fraction(a)) ** power for a, b in zip(*rows, strict=True))
        for rows in zip(x.tolist(), z.tolist(), strict=True)
    ]
    eps = torch.tensor([float(e) ** (1 / power) for e in exact], dtype=torch.float64)  # as close as it gets
    eps[::2] = torch.nextafter(eps[::2], torch.zeros(20, dtype=torch.float64))
    found = verify(always_wrong, x, z, ZERO.expand(40), eps=eps, norm=norm)
    inside = [e <= Fraction(r) ** power for e, r in zip(exact, eps.tolist(), strict=True)]
    assert found.accepted.tolist() == inside
    assert 5 < sum(inside) < 35


def test_every_reason():
    model = lambda x: torch.stack([x.sum(1), 1 - x.sum(1)], 1)  # class 0 where the sum is over a half
    x = torch.tensor([[0.5, 0.25]]).repeat(6, 1)
    z = torch.tensor([[0.25, 0.125], [float("nan"), 0.1], [0.25, -1e-30], [0.5, 0.25], [0.0, 0.0], [0.2, float("inf")]])
    eps = torch.tensor([0.25, 0.25, 0.5, 0.25, 0.25, 0.25])
    found = verify(model, x, z, torch.zeros(6, dtype=torch.int64), eps=eps, norm="Linf")
    assert found.accepted.tolist() == [True, False, False, False, False, False]
    expected = ["", "NaN or Inf", "outside the bounds", "does not fool", "outside the ball", "NaN or Inf"]
    assert all(r.startswith(e) for r, e in zip(found.reasons, expected, strict=True))
    assert found.distance.isnan().tolist() == [False, True, False, False, False, True]
    double = verify(model, x, z.double(), torch.zeros(6, dtype=torch.int64), eps=0.25, norm="Linf")
    assert double.reasons[0] == "torch.float64 instead of torch.float32"
    targets = torch.ones(6, dtype=torch.int64)
    assert verify(model, x, z, targets, eps=0.25, norm="Linf", targeted=True).accepted.tolist() == [True] + 5 * [False]
    assert verify(model, x[:0], z[:0], ZERO[:0], eps=0.25, norm="L0").reasons == ()


def test_logits_that_are_not_finite_predict_nothing():
    broken = lambda x: torch.stack([x[:, 0] / 0, x[:, 0]], 1)
    x = torch.full((1, 2), 0.5)
    assert verify(broken, x, x, ZERO, eps=0.1, norm="L2").accepted.item()
    assert not verify(broken, x, x, ZERO, eps=0.1, norm="L2", targeted=True).accepted.item()


def test_the_model_is_asked_in_eval_mode_and_left_alone():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.9), nn.Linear(8, 2)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.rand(50, 4)
    state = torch.get_rng_state()
    with torch.no_grad():
        y = model.eval()(x).argmax(1)
    model.train()
    found = verify(model, x, x, y, eps=0.0, norm="Linf", rounding=True)
    assert not found.accepted.any()  # in train mode dropout alone would fool it
    assert set(found.votes.tolist()) == {0.0}
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_stochastic_model_takes_a_majority():
    def often(share):
        def model(x):
            wrong = (torch.rand(len(x)) < share).float()
            return torch.stack([1 - wrong, wrong], 1)

        return model

    x, y = torch.rand(400, 3), torch.zeros(400, dtype=torch.int64)
    rare = verify(often(0.2), x, x, y, eps=0.0, norm="Linf")
    assert rare.accepted.double().mean() < 0.06  # one draw would accept a fifth
    assert any("fools only" in r for r in rare.reasons)
    assert verify(often(0.8), x, x, y, eps=0.0, norm="Linf").accepted.double().mean() > 0.94


def test_what_the_attacks_claim_is_verified():
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4))
    x = torch.rand(60, 20)
    y = model(x).argmax(1)
    for norm, eps in (("Linf", 0.1), ("L2", 0.4), ("L1", 1.5)):
        result = PGD(eps=eps, norm=norm).run(model, x, y)
        assert result.success.sum() > 0
        found = verify(model, x, result.x_adv, y, eps=eps, norm=norm)
        assert torch.equal(found.accepted, result.success), found.reasons
    nearest = FMN(norm="L0").run(model, x, y)
    found = verify(model, x, nearest.x_adv, y, eps=nearest.distance, norm="L0")
    assert torch.equal(found.accepted, nearest.success)


def test_rounding_to_8_bits():
    """Class 1 from a mean of 0.55 on; the inputs are 128 / 255, a step 1 / 255."""
    model = lambda x: torch.stack([0.55 - x.mean(1), x.mean(1) - 0.55], 1)
    x = torch.full((3, 4), 128 / 255)
    z = torch.stack([torch.full((4,), v / 255) for v in (140.9, 140.1, 128 + 16.0)])
    found = verify(model, x, z, ZERO.expand(3), eps=16 / 255 + 1e-6, norm="Linf", rounding=True)
    assert found.accepted.tolist() == [True, False, True]  # 140.25 is the boundary
    rounded = found.rounded
    assert (rounded.x_adv * 255).round()[:, 0].tolist() == [140, 140, 144]  # towards x, and a level stays
    assert rounded.fooled.tolist() == [False, False, True]
    assert rounded.inside.all()
    to_nearest = verify(model, x, z, ZERO.expand(3), eps=12.5 / 255 * 2, norm="L2", rounding=True).rounded
    assert (to_nearest.x_adv * 255).round()[:, 0].tolist() == [141, 140, 144]
    assert torch.allclose(to_nearest.distance, torch.tensor([26.0, 24.0, 32.0]).double() / 255)
    assert to_nearest.inside.tolist() == [False, True, False]
    down = verify(model, x, x - 2.5 / 255, ZERO.expand(3), eps=0.1, norm="Linf", rounding=True).rounded
    assert (down.x_adv * 255).round().unique().tolist() == [126]


def test_wrong_use():
    x = torch.rand(2, 3)
    y = ZERO.expand(2)
    with pytest.raises(ValueError, match="shape"):
        verify(always_wrong, x, x[:1], y, eps=0.1, norm="Linf")
    with pytest.raises(ValueError, match="'L3'"):
        verify(always_wrong, x, x, y, eps=0.1, norm="L3")
    for eps in (-1.0, float("nan"), torch.ones(3)):
        with pytest.raises(ValueError, match="eps"):
            verify(always_wrong, x, x, y, eps=eps, norm="L2")


def test_it_says_what_the_model_takes_an_example_for():
    logits = torch.tensor([[9.0, 1.0, 0.0], [0.0, 1.0, 9.0], [float("nan"), 0.0, 0.0]])
    model = lambda x: logits[x[:, 0].long()]
    x = torch.tensor([[0.0], [1.0], [2.0], [0.0]])
    y = torch.tensor([1, 0, 0, 0])
    found = verify(model, x, torch.tensor([[0.0], [1.0], [2.0], [9.0]]), y, eps=0.5, norm="Linf", bounds=(0.0, 2.0))
    assert found.predicted.tolist() == [0, 2, -1, -1]  # the last is outside the bounds and was not asked
    assert found.accepted.tolist() == [True, True, True, False]


# Elements that may not change, elements with an eps of their own, and models whose rows are not their own.

SUPPORTED = [n for n in RUNNING if n not in (*ADAPTERS, "SpherePGD")]


@pytest.fixture
def problem():
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 3))
    x = torch.rand(9, 1, 6, 6)
    return net, x, net(x).argmax(1)


@pytest.mark.parametrize(("name", "norm"), [(n, norm) for n, norm in CASES if n in SUPPORTED])
def test_what_is_masked_stays_and_the_rest_is_searched(name, norm, problem):
    net, x, y = problem
    mask = torch.rand(9, 1, 6, 6) < 0.6
    eps = {"Linf": 0.6, "L2": 3.0, "L1": 9.0}[norm]
    attack = make(name, net, eps=eps, norm=norm)
    result = attack.run(net, x, y, mask=mask, eps=eps)
    assert torch.equal(result.x_adv[~mask], x[~mask])
    assert torch.equal(result.distance, perturbation_norm(result.x_adv - x, norm))
    assert torch.equal(result.success, net(result.x_adv).argmax(1) != y)  # a success of what is returned
    assert result.success.any()


@pytest.mark.parametrize("name", [n for n in SUPPORTED if n in FIXED_EPS])
def test_eps_of_each_element(name, problem):
    net, x, y = problem
    eps = torch.rand(9, 1, 6, 6, dtype=torch.float64) * (torch.rand(9, 1, 6, 6) < 0.7)
    eps[:, :, 0] *= 0.1
    result = make(name, net, eps=0.3, norm="Linf").run(net, x, y, eps=eps)
    inside = ((result.x_adv.double() - x.double()).abs() <= eps).flatten(1).all(1)
    assert bool(inside[result.success].all())
    assert torch.equal(result.success, net(result.x_adv).argmax(1) != y)
    if name != "AtEps":  # it returns a near miss where it fails
        assert bool(inside.all())
    assert result.success.any() or name == "AtEps"


def test_one_eps_is_the_same_for_all_elements(problem):
    net, x, y = problem
    for attack in (PGD(eps=0.1), APGD(eps=0.1, steps=10), FGSM(eps=0.1), Square(eps=0.1, n_queries=20)):
        everywhere = attack(net, x, y, eps=torch.full_like(x, 0.1, dtype=torch.float64))
        assert torch.equal(attack(net, x, y), everywhere)
        assert torch.equal(attack(net, x, y, mask=torch.ones(1, 1, 6, 6, dtype=torch.bool)), everywhere)


def test_fgsm_steps_as_far_as_each_element_may(problem):
    net, x, y = problem
    x = 0.25 + x / 2
    eps = 0.2 * torch.rand(9, 1, 6, 6, dtype=torch.float64)
    result = FGSM(early_stop=False).run(net, x, y, eps=eps)
    assert torch.allclose((result.x_adv - x).abs().double(), eps, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"mask": torch.ones(3, 3, dtype=torch.bool)}, "does not fit x"),
        ({"mask": torch.ones(9, 1, 6, 6)}, "bool"),
        ({"eps": torch.ones(9, 1, 6)}, "or have shape"),
        ({"eps": -torch.ones(9, 1, 6, 6)}, ">= 0"),
    ],
)
def test_masks_and_radii_that_do_not_fit(given, error, problem):
    with pytest.raises((TypeError, ValueError), match=error):
        FGSM()(*problem, **given)


def test_who_takes_no_mask_says_so(problem):
    net, x, y = problem
    with pytest.raises(ValueError, match="for norm Linf"):
        PGD(norm="L2")(net, x, y, eps=torch.ones_like(x))
    with pytest.raises(ValueError, match="takes no mask"):
        make("SpherePGD", net)(net, x, y, mask=x > 0)
    for name in MINIMAL_NORM:
        if name not in ADAPTERS and "Linf" in type(make(name, net)).norms:
            with pytest.raises(ValueError, match="eps of each element"):
                make(name, net, norm="Linf")(net, x, y, eps=torch.rand_like(x))


class BatchStatistics(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
        )

    def forward(self, x):
        return self.net(x)


class ScaleOfTheBatch(BatchStatistics):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))

    def forward(self, x):
        return self.net(x / x.amax())


class CentredOnTheBatch(ScaleOfTheBatch):
    """One logit is large and constant, that of a class which is masked out."""

    def forward(self, x):
        logits = self.net(x)
        return torch.cat([logits - logits.mean(0), torch.full((len(x), 1), -1e3)], 1)


@pytest.mark.parametrize("kind", [BatchStatistics, ScaleOfTheBatch, CentredOnTheBatch])
def test_a_model_whose_rows_depend_on_their_company_is_refused_by_name(kind):
    model, x = kind().eval(), torch.rand(12, 1, 6, 6)
    x[:, 0, 0, 0] = 1  # every image has the same maximum
    y = model(x).argmax(1)
    for use in (
        lambda: PGD(eps=0.1)(model, x, y),
        lambda: PGD(eps=0.1)(model, x[:1], y[:1]),
        lambda: evaluate_robustness(model, x, y, eps=0.1, masking_tests=False),
        lambda: verify(model, x, x, y, eps=0.1, norm="Linf", bounds=(0.0, 1.0)),
        lambda: detectors.Energy(model).fit(x),
    ):
        with pytest.raises(ValueError, match="depends on the others in its batch"):
            use()


def test_a_mask_as_a_closure_over_the_clean_images_is_refused(problem):
    net, x, y = problem
    mask = torch.rand(1, 1, 6, 6) < 0.5
    with pytest.raises(ValueError, match="closure over other inputs"):
        PGD(eps=0.3)(lambda z: net(torch.where(mask, z, x[: len(z)])), x, y)


def test_an_ordinary_network_is_not_taken_for_one():
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)).eval()
    for scale in (1e-6, 1.0, 1e6):
        model = lambda z, scale=scale: scale * net(z)
        x = torch.rand(5, 1, 6, 6)
        FGSM()(model, x, model(x).argmax(1))
