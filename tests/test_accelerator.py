"""What the CPU does, a GPU does: attacks, detectors, models and resumed trainings, compared.

The tests marked ``cuda`` are skipped without a GPU; ``--accelerator cpu`` rehearses them, and three of them always are.
"""

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_attacks import ADAPTERS, CASES, make
from test_detectors import DETECTORS, FACTORIES
from test_generative import MODELS, SMALL, built, cases, images, scores
from torch import nn

from robustgen.attacks import PGD, EmbeddedInput
from robustgen.counter_rng import content_ids, integers, normal, uniform
from robustgen.generative import fit
from robustgen.recurrent_networks import TextClassifier
from robustgen.training import ClassifierObjective, Trainer, load_checkpoint

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CPU = torch.device("cpu")
SEARCHES = [case for case in CASES if case[0] not in ADAPTERS]  # other libraries draw from torch's generators
SCORES = [pytest.param(f, id=f"{n}-{i}") for n in DETECTORS for i, f in enumerate(FACTORIES.get(n, []))]


@pytest.fixture
def device(request):
    name = request.config.getoption("--accelerator")
    if name.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a GPU; --accelerator cpu rehearses it")
    return torch.device(name)


def close(found, expected, rtol=1e-6, atol=1e-8):
    torch.testing.assert_close(found.cpu(), expected.cpu(), rtol=rtol, atol=atol)


# --- attacks -----------------------------------------------------------------------------------------------------


def smooth_classifier():
    """Of images (1, 5, 5), in float64. Without kinks no gradient is zero up to rounding, whose sign says nothing."""
    torch.manual_seed(3)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(100, 4)]
    net = nn.Sequential(*layers).double().eval()
    with torch.no_grad():
        net[-1].bias -= net(torch.rand(100, 1, 5, 5, dtype=torch.float64)).mean(0)  # no class far above the others
    return net


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:.*is larger")
@pytest.mark.parametrize(("name", "norm"), SEARCHES)
def test_an_attack_finds_the_same(name, norm, device):
    eps = {"Linf": 0.1, "L2": 0.5, "L1": 1.5}[norm]
    x = torch.rand(12, 1, 5, 5, dtype=torch.float64)
    y = smooth_classifier()(x).argmax(1)
    found = []
    for where in (CPU, device):
        net = smooth_classifier().to(where)
        found.append(make(name, net, norm=norm, eps=eps, seed=5).run(net, x.to(where), y.to(where)))
    on_cpu, there = found
    assert there.x_adv.device.type == device.type
    assert torch.equal(there.success.cpu(), on_cpu.success)
    close(there.x_adv, on_cpu.x_adv)
    close(there.distance, on_cpu.distance)
    assert bool(on_cpu.success.any())
    for counts in ("forwards", "backwards"):
        assert torch.equal(getattr(there, counts).cpu(), getattr(on_cpu, counts))


@pytest.mark.cuda
def test_random_numbers_are_the_same_bits(device):
    ids = torch.tensor([0, 1, -7, 2**40, 2**62 + 3])
    there = ids.to(device)
    assert torch.equal(integers(9, there, (50,), 2**53, (1, 2)).cpu(), integers(9, ids, (50,), 2**53, (1, 2)))
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(uniform(9, there, (7, 3), (4,), dtype).cpu(), uniform(9, ids, (7, 3), (4,), dtype))
    close(normal(9, there, (64,), dtype=torch.float64), normal(9, ids, (64,), dtype=torch.float64), atol=1e-12)
    x = torch.rand(6, 3, 4, 4)
    assert torch.equal(content_ids(x.to(device)).cpu(), content_ids(x))


@pytest.mark.cuda
@pytest.mark.parametrize("rnn", ["lstm", "gru", "rnn"])
def test_a_recurrent_network_is_attacked_in_eval_mode(rnn, device):
    """cuDNN does not backpropagate through a recurrent network in eval mode."""
    torch.manual_seed(3)
    net = TextClassifier(rnn, 12, embedding=6, n_classes=3).double().eval()
    tokens = torch.randint(27, (8, 10))
    y, found = net(tokens).argmax(1), []
    for where in (CPU, device):
        view = EmbeddedInput(copy.deepcopy(net).to(where))
        attack = PGD(eps=0.3, steps=5, bounds=(-6.0, 6.0))
        found.append(attack.run(view, view.embed(tokens.to(where)), y.to(where)))
        assert not view.training
    on_cpu, there = found
    assert torch.equal(there.success.cpu(), on_cpu.success)
    close(there.x_adv, on_cpu.x_adv)


# --- detectors ---------------------------------------------------------------------------------------------------


@pytest.mark.cuda
@pytest.mark.parametrize("factory", SCORES)
def test_a_detector_gives_the_same_scores(factory, device):
    found = []
    for where in (CPU, device):
        case = factory()
        case.detector.model.to(where)
        x = torch.cat([case.sample(20, 5), case.farthest()])
        found.append(case.calibrated(100).score(x.to(where)))
        assert found[-1].device.type == where.type
        assert bool(((p := case.detector.p_value(x.to(where))) >= 1 / 101).all())
        assert p[-1] == p.min()
    close(*reversed(found))


# --- generative models -------------------------------------------------------------------------------------------


@pytest.mark.cuda
@pytest.mark.parametrize("make_model", cases(MODELS))
def test_a_generative_model_says_the_same(make_model, device):
    model = built(make_model)
    x, there = images(model), copy.deepcopy(model).to(device)
    with torch.no_grad():
        found = scores(there, x.to(device))
        assert found.device.type == device.type
        close(found, scores(model, x))
        assert there.sample(3).shape == (3, 1, 8, 8)


@pytest.mark.cuda
@pytest.mark.parametrize("make_model", cases(MODELS))
def test_a_training_step_of_a_generative_model(make_model, device):
    """Its noise comes from the generator of the device: only a step without noise is compared."""

    def step(where, seed=0):
        model = built(make_model).to(where)
        history = fit(model, images(model.to(CPU)).float(), device=where, seed=seed, batch_size=12, progress=False)
        return history[0], {k: v.double().cpu() for k, v in model.state_dict().items() if v.is_floating_point()}

    history, there = step(device)
    assert all(v == v and abs(v) < float("inf") for v in history.values())
    (_, on_cpu), (_, otherwise) = step(CPU), step(CPU, seed=1)
    before = built(make_model).state_dict()
    assert any(not torch.equal(v, before[k]) for k, v in there.items())
    if all(torch.allclose(v, otherwise[k], rtol=1e-6, atol=1e-9) for k, v in on_cpu.items()):
        for k, v in on_cpu.items():
            close(there[k], v, atol=1e-7)


# --- resumed trainings -------------------------------------------------------------------------------------------


class Interrupting(ClassifierObjective):
    """Is sent SIGTERM at one call, or, at call -1, never."""

    def __init__(self, attack, call):
        super().__init__(attack)
        self.left = call

    def __call__(self, model, batch, step):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGTERM)
        return super().__call__(model, batch, step)


def trained(run_dir, device, convolutional, call=-1, resume=False):
    """Weights and history of a run with dropout, batch norm, momentum, EMA, a schedule and attacks in training."""
    torch.manual_seed(3)
    first = [nn.Conv2d(1, 6, 3, padding=1), nn.Flatten()] if convolutional else [nn.Flatten(), nn.Linear(25, 150)]
    layers = [*first, nn.BatchNorm1d(150), nn.ReLU(), nn.Dropout(0.3), nn.Linear(150, 3)]
    net = nn.Sequential(*layers).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(60, 1, 5, 5, generator=generator, dtype=torch.float64)
    trainer = Trainer(
        Interrupting(PGD(eps=0.1, steps=2, early_stop=False), call),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
        schedule=lambda t: 1 - t,
        epochs=3,
        batch_size=20,
        ema=0.5,
        device=device,
        run_dir=run_dir,
        resume=resume,
        progress=False,
    )
    history = trainer.fit(net, (x, (x.mean((1, 2, 3)) * 100).long() % 3))
    return history, net.state_dict()


@pytest.mark.cuda
@pytest.mark.parametrize("convolutional", [False, True])
def test_a_training_that_was_stopped_resumes(convolutional, device, tmp_path):
    history, whole = trained(tmp_path / "whole", device, convolutional)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", device, convolutional, call=5)
    assert 5 <= load_checkpoint(tmp_path / "cut").step < 9
    again, resumed = trained(tmp_path / "cut", device, convolutional, resume=True)
    for a, b in zip(history, again, strict=True):
        assert a == pytest.approx(b, rel=1e-9)
    for name, weight in whole.items():
        if convolutional and device.type != "cpu":  # cuDNN sums in the order that is quickest
            close(resumed[name], weight, atol=1e-9)
        else:
            assert torch.equal(resumed[name], weight)


# --- without a GPU -----------------------------------------------------------------------------------------------


def test_some_are_rehearsed_on_the_cpu(tmp_path):
    test_an_attack_finds_the_same("APGD", "Linf", CPU)
    test_a_detector_gives_the_same_scores(FACTORIES["Mahalanobis"][0], CPU)
    test_a_generative_model_says_the_same(SMALL["PixelCNN"][0], CPU)
    test_a_training_that_was_stopped_resumes(False, CPU, tmp_path)


def run(script, out, *options):
    paths = [str(BENCHMARKS), str(BENCHMARKS.parent)]
    command = [sys.executable, str(script), "--smoke", "--out", str(out), "--work", str(out / "work"), *options]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_the_recipe_is_planned_trained_and_attacked(tmp_path):
    done = run(BENCHMARKS / "accelerator.py", tmp_path, "--parts", "cifar10-resnet18")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "cifar10-resnet18.json").read_text())
    assert (found["state"], found["scale"], found["suite finished"]) == ("done", "smoke", True)
    assert len(found["history"]) == found["recipe"]["epochs"] == found["plan"]["epochs"]
    assert 0 <= found["accuracy under the suite"] <= found["clean accuracy"] <= 1
    assert "torch" in found["environment"]


def test_a_part_that_fails_or_hangs_costs_no_other(tmp_path):
    script = tmp_path / "parts.py"
    script.write_text("""
import time
import accelerator
from accelerator import Part, Skipped

def hangs(task):
    task.note("so far", number=3)
    time.sleep(600)

def fails(task):
    task.note("so far", number=4)
    raise ValueError("no good")

def skips(task):
    raise Skipped("nothing here")

accelerator.PARTS = {
    "hangs": Part(hangs, 0.05), "lacks": Part(skips, 0.1, ("no_such_package",)), "fails": Part(fails, 0.4),
    "skips": Part(skips, 0.4),
}
accelerator.main()
""")
    done = run(script, tmp_path, "--minutes", "1.5")
    assert done.returncode == 1
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    states = {name: (record["state"], record["what"]) for name, record in found.items()}
    assert states.pop("hangs")[0] == "failed"
    assert states == {
        "fails": ("failed", "ValueError: no good"),
        "lacks": ("failed", "needs no_such_package"),
        "skips": ("skipped", "nothing here"),
    }
    assert found["fails"]["number"] == 4
    first, *lines = done.stdout.splitlines()
    assert first == "missing packages: no_such_package; the parts that need them will fail"
    assert [line.split()[0] for line in lines] == ["hangs", "lacks", "fails", "skips"]
