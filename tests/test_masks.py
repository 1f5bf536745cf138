"""Elements that may not change, elements with an eps of their own, and models whose rows are not their own."""

import pytest
import torch
from test_attacks import ADAPTERS, CASES, FIXED_EPS, MINIMAL_NORM, RUNNING, make
from torch import nn

from robustgen import detectors
from robustgen.attacks import APGD, FGSM, PGD, Square
from robustgen.attacks.ball import perturbation_norm
from robustgen.evaluation import evaluate_robustness, verify

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
