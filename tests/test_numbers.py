"""Numbers of NumPy, and values that are no numbers, in what is made of numbers."""

import json
import warnings

import numpy as np
import pytest
import torch
from numpy_numbers import numpy_numbers
from torch import nn

from robustgen import FortifiedObjective, ReconstructionError, data, fortify, networks
from robustgen.attacks import FGSM, PGD, Engine
from robustgen.checks import (
    check_bounds,
    check_flags,
    check_integers,
    check_numbers,
    check_positive,
    check_shape,
    plain,
)
from robustgen.evaluation import evaluate_robustness
from robustgen.training import (
    AWP,
    ClassifierObjective,
    ContrastiveObjective,
    Deformations,
    Mart,
    OverfittingGuard,
    Trades,
    Trainer,
)

X, Y = torch.rand(6, 4), torch.arange(6) % 2


@pytest.mark.parametrize("one", [np.int64(3), np.uint8(3), np.array(3)])
def test_integers_of_numpy(one):
    check_integers(k=one)
    check_numbers(k=one)
    check_positive(k=one)
    assert check_shape((one, one, one)) == (3, 3, 3)
    assert type(plain(one)) is int


@pytest.mark.parametrize("wrong", [np.True_, np.float32(2.5), np.array([3]), "3", None, torch.tensor(3)])
def test_what_is_no_integer(wrong):
    with pytest.raises(TypeError, match="k must be an integer, got"):
        check_integers(k=wrong)


def test_flags_of_numpy():
    check_flags(on=np.True_)
    with pytest.raises(TypeError, match="on must be True or False"):
        check_flags(on=np.int64(1))


@pytest.mark.parametrize("wrong", [{"seed": "0"}, {"votes": np.float64(2.5)}, {"steps": np.True_}, {"eps": np.True_}])
def test_what_is_no_number_of_an_attack(wrong):
    with pytest.raises(TypeError, match=f"{next(iter(wrong))} must be a"):
        PGD(**wrong)


CHANNELS = (torch.zeros(3, 1, 1), torch.ones(3, 1, 1))


@pytest.mark.parametrize("bounds", [None, 1.0, (0,), (0, 1, 2), (None, None), CHANNELS, (np.zeros(3), np.ones(3))])
def test_bounds_are_two_numbers(bounds):
    with pytest.raises(TypeError, match=r"bounds are two numbers, .* put Normalize inside the model") as said:
        PGD(bounds=bounds)
    assert "\n" not in str(said.value)
    for good in ((np.float32(0), np.float32(1)), np.array([0, 1]), torch.tensor([0, 1])):
        assert check_bounds(good) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (Trades, {"beta": 6.0}),
        (Mart, {"beta": 6.0}),
        (Deformations, {"gamma": 0.5, "bend_grid": 3}),
        (lambda **kw: FortifiedObjective(PGD(), **kw), {"lambda_rec": 0.5, "detach_states": True}),
        (lambda **kw: ClassifierObjective(PGD(), **kw), {"clean_weight": 0.5, "label_smoothing": 0.1}),
        (lambda **kw: ContrastiveObjective(Deformations(), **kw), {"temperature": 0.5}),
        (lambda **kw: AWP(ClassifierObjective(PGD()), **kw), {"gamma": 0.5}),
    ],
)
def test_losses_and_objectives_remember_plain_numbers(make, settings):
    assert json.dumps(make(**numpy_numbers(settings)).describe()) == json.dumps(make(**settings).describe())


def test_the_trainer_takes_numbers_of_numpy(tmp_path):
    guard = OverfittingGuard(weak=PGD(), strong=PGD(), **numpy_numbers({"every": 50, "drop": 0.2}))
    assert type(guard.every) is int
    settings = {"epochs": 1, "batch_size": 3, "seed": 5, "ema": 0.5, "clip_norm": 1.0, "checkpoint_every": 1}
    adam = lambda parameters: torch.optim.Adam(parameters, lr=np.float32(0.125))

    def trained(folder, **settings):
        net = nn.Linear(4, 2)
        nn.init.ones_(net.weight)
        nn.init.zeros_(net.bias)
        trainer = Trainer(ClassifierObjective(), optimizer=adam, run_dir=tmp_path / folder, progress=False, **settings)
        trainer.fit(net, (X, Y))
        return net.weight

    assert torch.equal(trained("a", **settings), trained("b", **numpy_numbers(settings)))
    for name in ("epochs", "batch_size", "checkpoint_every"):
        for wrong in (2.5, np.float64(2), "2", True):
            with pytest.raises(TypeError, match=f"{name} must be an integer"):
                Trainer(ClassifierObjective(), **{name: wrong})


def test_engines_fortified_networks_and_reports(tmp_path):
    assert type(Engine(slots=np.int64(8)).slots) is int
    settings = numpy_numbers({"noise_std": 0.5, "hidden": 3})
    net = fortify(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), ["0"], example_input=X, **settings)
    net.save(tmp_path / "net")
    attack = PGD(eps=np.float32(0.125), steps=np.int64(2))
    given = numpy_numbers({"eps": 0.125, "seed": 1, "batch_size": 4, "sweep_examples": 3, "masking_tests": False})
    report = evaluate_robustness(net, X, Y, attacks={"pgd": attack}, run_dir=tmp_path / "evaluation", **given)
    report.save(tmp_path / "report")


@pytest.mark.parametrize(
    "use",
    [
        lambda seed: data.digits(seed=seed).x,
        lambda seed: data.noise(3, (1, 8, 8), seed=seed).x,
        lambda seed: data.windows(torch.arange(40), 3, n=4, seed=seed),
    ],
)
def test_seeds_of_numpy(use):
    for seed in (5, -5):
        assert torch.equal(use(np.int64(seed)), use(seed))
    assert not torch.equal(use(5), use(6))


def test_warnings_are_located_at_the_users_line():
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)), torch.rand(4, 4)
    net = fortify(model, ["0"], example_input=x)
    for use in (
        lambda: FGSM(eps=8)(model, x, torch.zeros(4, dtype=torch.int64)),
        lambda: ReconstructionError(net).fit(x),
        lambda: net.fit_autoencoders(x, epochs=3, lr=100.0, progress=False),
    ):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            use()
        assert found
        assert {warning.filename for warning in found} == {__file__}


def test_an_example_without_its_batch_axis_is_refused_in_a_line():
    net = networks.convnet(1, 10, image_size=8, width=4)
    for layers in ("auto", ["0"]):
        with pytest.raises(ValueError, match=r"example_input of shape \(1, 8, 8\), which must be a batch") as caught:
            fortify(net, layers, example_input=torch.zeros(1, 8, 8))
        assert "\n" not in str(caught.value)
