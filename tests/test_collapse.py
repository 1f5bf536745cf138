"""Networks that have learned nothing are told, at the end of their training and in the tables of experiments."""

import json
import math

import pytest
import torch
from torch import nn

from robustgen import data
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
from robustgen.training import ClassifierObjective, Trainer
from robustgen.training.collapse import collapse_of, is_at_chance

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
