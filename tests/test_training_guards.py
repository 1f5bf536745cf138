"""Networks that have learned nothing are told, at the end of their training and in the tables of experiments."""

import json
import math
import warnings

import pytest
import torch
from torch import nn

from robustgen import data
from robustgen.attacks import FGSM, PGD
from robustgen.cli import main
from robustgen.commands.run_info import read_info
from robustgen.experiments.cells import read_cells
from robustgen.experiments.experiment import Cell, Column, Experiment, Measurement, Row, counted, epochs_of
from robustgen.experiments.pages import draw_experiment
from robustgen.experiments.runner import run_experiment
from robustgen.experiments.summary import summarise
from robustgen.experiments.training_cache import TrainingCache
from robustgen.files import save_tensors
from robustgen.fortified import FortifiedObjective, fortify
from robustgen.networks import build, mlp
from robustgen.training import ClassifierObjective, OverfittingGuard, Trainer, load_checkpoint
from robustgen.training.collapse import collapse_of, is_at_chance
from robustgen.training.overfitting import Watch

X = torch.rand(60, 8, generator=torch.Generator().manual_seed(0))
Y = (5 * X[:, 0]).long().clamp(max=4)
WARNING = r"the network has collapsed: its loss is that of guessing among 5 classes, 1\.61; train longer, lower"


def dead(units=5):
    """Its hidden units are off for every input, and stay so."""
    net = mlp(8, [16], units)
    net[1].weight.data.zero_()
    net[1].bias.data.fill_(-1.0)
    net[3].bias.requires_grad_(False).zero_()
    return net


class TestRule:
    @pytest.mark.parametrize(
        ("row", "n_classes", "expected"),
        [
            ({"clean_loss": 2.3026, "accuracy": 0.1}, 10, True),
            ({"clean_loss": 2.29, "accuracy": 0.1}, 10, True),
            ({"clean_loss": 2.27, "accuracy": 0.1}, 10, False),
            ({"clean_loss": 2.34, "accuracy": 0.1}, 10, False),
            ({"clean_loss": 2.3, "accuracy": 0.3}, 10, False),  # it learns
            ({"adv_loss": 2.3, "adv_accuracy": 0.1}, 10, True),
            ({"adv_loss": 2.3, "adv_accuracy": 0.2}, 10, False),  # a weak network under a strong attack
            ({"clean_loss": 0.9, "adv_loss": 2.3, "accuracy": 0.7}, 10, False),
            ({"boosted_loss": math.log(10) - math.log(0.9), "accuracy": 0.1}, 10, True),
            ({"clean_loss": 0.693, "accuracy": 0.5}, 2, True),
            ({"clean_loss": 0.693, "accuracy": 0.5}, 10, False),
            ({"loss": 2.3, "val_clean_loss": 2.3}, 10, False),
            ({"clean_loss": 0.0, "accuracy": 1.0}, 1, False),
            ({"clean_loss": 0.0, "accuracy": 0.0}, 0, False),
        ],
    )
    def test_all_losses_are_those_of_guessing(self, row, n_classes, expected):
        assert is_at_chance(row, n_classes) == expected

    def test_states_that_vanish(self):
        rows = [{"clean_loss": 1.0, "accuracy": 0.5, "state_norm/a": n, "state_norm/b": 1.0} for n in (2.0, 0.5, 0.01)]
        assert not collapse_of(rows[:2], 10)
        assert "states of layer 'a' have shrunk to 0.01 from 2; lower lambda_rec" in collapse_of(rows, 10)


class TestTraining:
    def test_a_dead_network_is_marked_and_warned_of_and_so_is_its_resumed_run(self, tmp_path):
        options = {"epochs": 3, "batch_size": 20, "progress": False}
        net = dead()
        with pytest.warns(UserWarning, match=WARNING):
            history = Trainer(ClassifierObjective(), run_dir=tmp_path / "whole", **options).fit(net, (X, Y))
        assert history[-1]["collapsed"] is True
        rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
        assert rows == history
        assert "collapsed" not in epochs_of(history)

        cut = Trainer(ClassifierObjective(), run_dir=tmp_path / "cut", **options | {"epochs": 1})
        cut.fit(dead(), (X, Y))
        again = Trainer(ClassifierObjective(), run_dir=tmp_path / "cut", resume=True, **options)
        with pytest.warns(UserWarning, match=WARNING):
            resumed = again.fit(dead(), (X, Y))
        assert resumed == history

    def test_fortified_networks_too(self):
        net = fortify(dead(), ["2"], example_input=X[:2], noise_std=0.0)
        with pytest.warns(UserWarning, match=WARNING):
            history = Trainer(FortifiedObjective(), epochs=2, progress=False).fit(net, (X, Y))
        assert history[-1]["collapsed"]

    def test_one_that_learns_is_not(self, recwarn):
        objective, net = ClassifierObjective(), mlp(64, [32], 10)
        history = Trainer(objective, epochs=3, progress=False).fit(net, data.digits("train"))
        assert not any("collapsed" in row for row in history[1:])
        assert not [w for w in recwarn if "collapsed" in str(w.message)]

    def test_data_without_labels(self):
        class Squares:
            def __call__(self, model, batch, step):
                loss = model(batch.x).square().mean()
                return {"loss": loss, "clean_loss": loss.detach()}

        history = Trainer(Squares(), epochs=1, progress=False).fit(nn.Linear(8, 2), X)
        assert "collapsed" not in history[-1]


def test_the_command_marks_run_json(tmp_path, capsys):
    net = build("mlp", data.digits("train").images()[:2], 10, 16, "relu")
    for p in net.parameters():
        p.data.zero_()
    save_tensors(tmp_path / "zeros.safetensors", net.state_dict())
    arguments = ["train", "--data", "digits", "--model", "mlp", "--width", "16", "--epochs", "3", "--json", "--quiet"]
    for start, expected in (["--weights", str(tmp_path / "zeros.safetensors")], True), ([], None):
        run = tmp_path / f"run-{len(start)}"
        assert main([*arguments, "--run", str(run), *start]) == 0
        assert json.loads(capsys.readouterr().out).get("collapsed") is expected
        assert read_info(run).get("collapsed") is expected


class Table(Experiment):
    """Seeds 0 and 1 of row b have collapsed, and seed 0 of row a."""

    name, title, source, metric = "tests/collapse", "a table", "nobody", "%"
    rows = (Row(key="a", title="A"), Row(key="b", title="B"))
    columns = (Column("x", "X"),)
    seeds = 2

    def settings(self, cell, scale):
        return {"cell": cell.name}

    def measure(self, cell, scale, cache):
        lost = cell.row == "b" or cell.seed == 0
        value = 10.0 if lost else 60.0
        return Measurement(
            value=value,
            numbers=counted({"clean": value}, 100),
            verdicts=[{"name": "PGD beats noise", "verdict": "holds", "detail": ""}],
            history={"clean_loss": [2.3, 2.302 if lost else 0.5], "accuracy": [0.1, 0.1 if lost else 0.8]},
        )

    def remarks(self, kept, kept_of):
        return f"remarks on {', '.join(kept)} and {', '.join(kept_of(self))}"


def test_a_cell_of_a_collapsed_network_is_drawn_so_and_counts_nowhere(tmp_path):
    table = Table()
    run_experiment(table, "cpu", TrainingCache(tmp_path / "work"), tmp_path, say=lambda line: None)
    page = draw_experiment(table, tmp_path)
    assert "| A | 60.00 (1), collapsed (1) |" in page
    assert "| B | collapsed (2) |" in page
    assert "over all cells above but for 3 of collapsed networks" in page
    assert "PGD beats noise: holds in 1 of 1" in page
    assert "remarks on a--x--seed1 and a--x--seed1" in page
    assert "10.00" not in page
    kept = read_cells(tmp_path, table, "cpu")
    a, b = summarise(table, kept).values()
    assert (a.values, a.mean, a.collapsed) == ([60.0], 60.0, [0])
    assert (b.values, b.mean, b.sd, b.numbers, b.collapsed) == ([], None, None, {}, [0, 1])
    assert table.has_collapsed(kept[Cell("b", "x", 0).name])


# The guard against catastrophic overfitting: it fires where it should, keeps what was good, and else is unseen.

EPS = 0.1
GUARD = OverfittingGuard(weak=FGSM(eps=EPS), strong=PGD(eps=EPS, steps=10), every=5)


class Rippled(nn.Module):
    """Two classes around 0.3 and 0.7. With ``ripple`` the logits are wrong half-way to the rim of the ball and right
    at x and on the rim, where the one step of FGSM ends.
    """

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(10.0))
        self.ripple = nn.Parameter(torch.tensor(0.0))
        self.norm = nn.BatchNorm1d(1, affine=False, momentum=None)  # a buffer that moves; its output is not used

    def forward(self, x):
        self.norm(x)
        wave = torch.cos(2 * torch.pi * (x - 0.7) / EPS) * torch.tanh(1000 * (x - 0.5))
        z = self.slope * (x - 0.5) + self.ripple * wave
        return torch.cat([-z, z], 1)


def examples(n=60):
    g = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 2
    return 0.3 + 0.4 * y[:, None] + 0.002 * torch.rand(n, 1, generator=g), y


def collapsing(at):
    """An optimizer that turns the ripple on after ``at`` steps; kept in its state, so that a resumed run goes on."""

    class Collapsing(torch.optim.SGD):
        def step(self, closure=None):
            slope, ripple = self.param_groups[0]["params"]
            ripple.grad = None
            super().step(closure)
            count = self.state[slope].setdefault("count", torch.zeros(()))
            count += 1
            if count == at:
                with torch.no_grad():
                    ripple.fill_(20.0)

    return lambda p: Collapsing(p, lr=0.01)


def fit(at, epochs=6, model=None, **options):
    model = model or Rippled()
    trainer = Trainer(
        ClassifierObjective(FGSM(eps=EPS), clean_weight=0.0),
        optimizer=collapsing(at),
        epochs=epochs,
        batch_size=15,
        progress=False,
        **{"guard": GUARD} | options,
    )
    return model, trainer.fit(model, examples())


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_it_fires_and_puts_back_the_weights_from_before():
    with pytest.warns(UserWarning, match=r"overfitting at step 15: accuracy 100.0% .* 0.0% .* weights of step 10"):
        model, history = fit(at=12)
    assert [row["step"] for row in history] == [4, 8, 12, 15]  # 24 without the guard
    assert history[-1]["kept_step"] == 10
    assert history[-1]["guard_strong_accuracy"] == 0.0
    assert history[-1]["guard_weak_accuracy"] == 1.0
    assert history[-2]["guard_strong_accuracy"] == 1.0
    assert "kept_step" not in history[-2]
    expected = Rippled()
    steps = []

    def objective(model, batch, step):
        if step == 10:
            steps.append(state(model))
        return ClassifierObjective(FGSM(eps=EPS), clean_weight=0.0)(model, batch, step)

    Trainer(objective, optimizer=collapsing(12), epochs=6, batch_size=15, progress=False).fit(expected, examples())
    assert same(state(model), steps[0])
    assert expected.ripple == 20


def test_a_healthy_run_is_the_same_with_a_guard_and_without():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (guarded, history), (free, other) = fit(at=-1), fit(at=-1, guard=None)
    assert same(state(guarded), state(free))
    assert history[-1]["guard_strong_accuracy"] == 1.0
    assert [{k: v for k, v in row.items() if "guard" not in k} for row in history] == other


def test_a_stopped_run_resumes_to_its_end(tmp_path):
    with pytest.warns(UserWarning, match="overfitting at step 15"):
        model, history = fit(at=12, run_dir=tmp_path)
    assert same(load_checkpoint(tmp_path).model_state, state(model))
    lines = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.warns(UserWarning, match="overfitting at step 15"):
        again, found = fit(at=12, run_dir=tmp_path, resume=True)
    assert found == history
    assert same(state(again), state(model))
    assert (tmp_path / "metrics.jsonl").read_bytes() == lines
    with pytest.raises(ValueError, match="guard was"):
        fit(at=12, run_dir=tmp_path, resume=True, guard=None)


def test_what_the_guard_has_seen_survives_a_resume(tmp_path):
    fit(at=18, epochs=3, run_dir=tmp_path)  # 12 steps, a check at 5 and one at 10
    with pytest.warns(UserWarning, match=r"step 20: .*weights of step 15"):
        resumed, history = fit(at=18, run_dir=tmp_path, resume=True)
    with pytest.warns(UserWarning, match=r"step 20: .*weights of step 15"):
        whole, other = fit(at=18)
    assert same(state(resumed), state(whole))
    assert history == other
    fit(at=13, epochs=3, run_dir=tmp_path / "early")  # nothing good is seen after the resume
    with pytest.warns(UserWarning, match=r"step 15: .*weights of step 10"):
        fit(at=13, run_dir=tmp_path / "early", resume=True)


def test_averages_are_put_back_too():
    with pytest.warns(UserWarning, match="weights of step 10"):
        model, _ = fit(at=12, ema=0.5)
    assert model.ripple == 0


def test_which_accuracies_fire():
    class Scripted(OverfittingGuard):
        def accuracies(self, model, batch, step, world):
            return self.weak[step - 1]

    def fires(*checks, drop=0.2):
        weight = torch.zeros(())
        watch = Watch(Scripted(weak=checks, strong=None, every=1, drop=drop), lambda: {"weight": weight})
        for step in range(1, len(checks) + 1):
            weight.fill_(step)
            if watch.look(None, None, step, None):
                assert watch.kept_step == weight
                return step, watch.kept_step
        return None

    assert fires((0.9, 0.8), (0.95, 0.0)) == (2, 1)
    assert fires((0.9, 0.8), (0.9, 0.75), (0.9, 0.65), (0.95, 0.1)) == (4, 2)  # the third had begun to fall
    assert fires((0.9, 0.8), (0.1, 0.0)) is None  # all is lost, to both attacks: another failure
    assert fires((0.9, 0.0), (0.95, 0.0)) is None  # never robust
    assert fires((0.7, 0.5), (0.6, 0.28)) is None  # what a small batch may show
    assert fires((0.2, 0.18), (0.2, 0.03)) is None
    assert fires((0.9, 0.8), (0.9, 0.38), drop=0.5) is None
    assert fires((0.9, 0.8), (0.9, 0.28), drop=0.5) == (2, 1)


def test_wrong_settings():
    for wrong in ({"every": 0}, {"drop": 0.0}, {"drop": 1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            OverfittingGuard(weak=None, strong=None, **wrong)
    guard = OverfittingGuard(weak=FGSM(), strong=PGD(), every=1)
    trainer = Trainer(lambda model, batch, step: {"loss": model(batch.x).mean()}, guard=guard, progress=False)
    with pytest.raises(ValueError, match="needs labels"):
        trainer.fit(nn.Linear(1, 2), examples()[0])


def test_with_another_objective_the_run_goes_on(tmp_path):
    """From the weights of before, to its planned end, with the objective that the guard has in hand; also resumed."""
    steps = []

    class Instead(ClassifierObjective):
        def __call__(self, model, batch, step):
            steps.append(step)
            return super().__call__(model, batch, step)

    guard = OverfittingGuard(weak=GUARD.weak, strong=GUARD.strong, every=5, instead=Instead(PGD(eps=EPS, steps=3), 0.0))
    with pytest.warns(UserWarning, match=r"overfitting at step 15: .* goes on with a multi-step attack .* step 10"):
        whole, history = fit(13, guard=guard, run_dir=tmp_path / "whole")
    assert steps == list(range(15, 24))
    assert history[-1]["step"] == 24
    assert history[-1]["kept_step"] == 10
    assert whole.ripple.item() == 0  # of step 10, and nothing has moved it since
    with pytest.warns(UserWarning, match="goes on"):
        fit(13, epochs=5, guard=guard, run_dir=tmp_path / "cut")
    with pytest.warns(UserWarning, match="goes on"):
        resumed, again = fit(13, guard=guard, run_dir=tmp_path / "cut", resume=True)
    assert same(state(resumed), state(whole))
    assert again == history
