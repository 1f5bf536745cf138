"""Experiments: every one runs on digits; cells are kept, resumed and checked; RESULTS.md is drawn from results/."""

import json
import threading
from dataclasses import dataclass, field
from pathlib import Path

import jsonschema
import pytest
import torch

import robustgen.experiments
from robustgen.cli import main
from robustgen.data import ArrayDataset
from robustgen.experiments import runner
from robustgen.experiments.catalogue import find, table
from robustgen.experiments.experiment import Cell, Column, Experiment, Measurement, Row
from robustgen.experiments.lamb2018.attack_suite import masking_tests, white_box_against_transfer
from robustgen.experiments.lamb2018.confirmation import CHOSEN, compared
from robustgen.experiments.lamb2018.recipes import (
    FORTIFIED,
    LAYERS,
    Budget,
    Recipe,
    step_cost,
    train_recipe,
    training_step,
)
from robustgen.experiments.lamb2018.sweep import best
from robustgen.experiments.results_page import draw_experiment, draw_list, draw_page
from robustgen.experiments.runner import cell_path, check_cell, read_cells, run_experiment, summarise
from robustgen.experiments.training_cache import TrainingCache, shuffled
from robustgen.locks import alone

ROOT = Path(__file__).parents[1]
SCHEMA = json.loads((Path(robustgen.experiments.__file__).parent / "cell.schema.json").read_text())
KEPT = sorted((ROOT / "results").glob("*/*/*/*--seed*.json"))


def cache(tmp_path):
    return TrainingCache(tmp_path / "work", say=lambda line: None)


@pytest.mark.filterwarnings("ignore:the fortified network decides otherwise")  # autoencoders of a few steps
@pytest.mark.parametrize("name", [name for name in table() if name.startswith("lamb-2018/")])
def test_every_experiment_runs_on_digits(name, tmp_path):
    experiment, out = find(name), tmp_path / "results"
    before = torch.random.get_rng_state()
    kept = run_experiment(experiment, "smoke", cache(tmp_path), out, seeds=1, say=lambda line: None)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert list(kept) == [cell.name for cell in experiment.cells(1)]
    for record in kept.values():
        jsonschema.validate(record, SCHEMA)
        losses = record["history"]["loss"]
        assert len(losses) > 1
        assert losses[-1] < losses[0], "the loss does not fall"
    summary = json.loads((out / name / "smoke.json").read_text())
    assert sum(len(group["values"] + group.get("collapsed", [])) for group in summary["cells"]) == len(kept)
    page = draw_experiment(experiment, out, ("smoke",))
    assert experiment.source in page
    assert all(row.title in page for row in experiment.rows)


@dataclass
class Fake(Experiment):
    """Two rows, two columns; counts its measurements and breaks where it is told to."""

    breaks_at: str = ""
    setting: int = 0
    offset: float = 0.0
    measured: list = field(default_factory=list)

    name, title, source, metric = "fake/table", "fake", "nobody", "things"
    rows = (
        Row(key="a", title="A", published={"x": 1.5}),
        Row(key="b", title="B", columns=("x",)),
        Row(key="c", title="C", missing="needs a model that is not there"),
    )
    columns = (Column("x", "X"), Column("y", "Y"))
    seeds = 2

    def settings(self, cell, scale):
        return {"setting": self.setting}

    def measure(self, cell, scale, cache):
        if cell.name == self.breaks_at:
            raise KeyboardInterrupt
        self.measured.append(cell.name)
        value = cell.seed + len(cell.row + cell.column) + self.offset
        return Measurement(value=value, numbers={"other": {"value": 2 * value, "n": 3}}, history={"loss": [2.0, 1.0]})


def run(experiment, tmp_path, **options):
    return run_experiment(experiment, "cpu", cache(tmp_path), tmp_path, say=lambda line: None, **options)


def test_a_killed_run_goes_on_at_the_next_cell(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(Fake(breaks_at="b--x--seed0"), tmp_path)
    again = Fake()
    kept = run(again, tmp_path)
    assert again.measured == ["b--x--seed0", "a--x--seed1", "a--y--seed1", "b--x--seed1"]
    assert list(kept) == [cell.name for cell in again.cells()]
    summary = json.loads((tmp_path / "fake/table/cpu.json").read_text())
    first = summary["cells"][0]
    assert (first["row"], first["column"], first["published"], first["values"]) == ("a", "x", 1.5, [2.0, 3.0])
    assert first["mean"] == 2.5
    assert first["sd"] == pytest.approx(0.5**0.5)
    assert first["numbers"]["other"]["mean"] == 5.0


def test_other_settings_are_measured_anew(tmp_path):
    run(Fake(), tmp_path)
    changed = Fake(setting=1)
    assert read_cells(tmp_path, changed, "cpu") == {}
    assert "not measured" in draw_experiment(changed, tmp_path)
    run(changed, tmp_path)
    assert len(changed.measured) == 6


def test_parts_share_the_work(tmp_path):
    one, two = Fake(), Fake()
    run(one, tmp_path, part=(1, 2))
    run(two, tmp_path, part=(2, 2))
    assert sorted(one.measured + two.measured) == sorted(cell.name for cell in one.cells())
    lines = [{(Cell.parse(name).row, Cell.parse(name).seed) for name in f.measured} for f in (one, two)]
    assert not set.intersection(*lines)  # what shares a training stays together


def test_check_names_what_comes_out_otherwise(tmp_path):
    run(Fake(), tmp_path)
    cell = Cell("a", "y", 1)
    assert check_cell(Fake(), cell, "cpu", cache(tmp_path), tmp_path) == []
    assert check_cell(Fake(offset=1.0), cell, "cpu", cache(tmp_path), tmp_path) == [
        "value: kept 3, now 4",
        "other: kept 6, now 8",
    ]
    with pytest.raises(FileNotFoundError, match="no such cell"):
        check_cell(Fake(), Cell("a", "y", 7), "cpu", cache(tmp_path), tmp_path)


def test_a_record_of_another_format_is_refused(tmp_path):
    run(Fake(), tmp_path)
    path = cell_path(tmp_path, Fake(), "cpu", Cell("a", "x", 0))
    good = json.loads(path.read_text())
    (path.parent / "notes--by--seedX.json").write_text("{}")  # not a cell's name: nobody reads it
    assert len(read_cells(tmp_path, Fake(), "cpu")) == 6
    for wrong, message in {
        '{"format": 99}': "not the record of a cell in format 1",
        '{"format": 1}': "lacks experiment",
        json.dumps(good | {"row": "b"}): "holds another cell",
        json.dumps(good | {"value": "3"}): "value must be a finite number",
        json.dumps(good)[:50]: "not a complete JSON file",
    }.items():
        path.write_text(wrong)
        for read in (
            lambda: read_cells(tmp_path, Fake(), "cpu"),
            lambda: check_cell(Fake(), Cell("a", "x", 0), "cpu", cache(tmp_path), tmp_path),
        ):
            with pytest.raises(ValueError, match=message):
                read()


def test_a_copy_is_not_another_seed(tmp_path):
    run(Fake(), tmp_path, seeds=1)
    record = json.loads(cell_path(tmp_path, Fake(), "cpu", Cell("a", "x", 0)).read_text())
    copy = cell_path(tmp_path, Fake(), "cpu", Cell("a", "x", 1))
    copy.write_text(json.dumps(record | {"seed": 1}))
    assert "a--x--seed1" not in read_cells(tmp_path, Fake(), "cpu")


def test_a_place_that_cannot_be_written_is_found_at_once(tmp_path):
    (tmp_path / "fake").write_text("a file")
    experiment = Fake()
    with pytest.raises(OSError, match="fake"):
        run(experiment, tmp_path)
    assert experiment.measured == []


def test_the_page_shows_published_numbers_ours_and_what_is_missing(tmp_path):
    page = draw_experiment(Fake(), tmp_path)
    assert "not measured" in page
    run(Fake(), tmp_path, seeds=1)
    page = draw_experiment(Fake(), tmp_path)
    assert "| A | 1.5 | 2.00 (1) |  | 2.00 (1) |  |" in page
    assert "| C |  | not yet |  | not yet |  |" in page
    assert "needs a model that is not there" in page
    run(Fake(), tmp_path)
    assert "2.50 ± 0.71 (2)" in draw_experiment(Fake(), tmp_path)


def test_names_of_cells():
    experiment = Fake()
    assert experiment.cell("a--y--seed5") == Cell("a", "y", 5)
    for wrong, message in {
        "a-y-1": "a cell is named",
        "b--y--seed0": "has no cell",
        "c--x--seed0": "has no cell",
        "d--x--seed0": "has no cell",
    }.items():
        with pytest.raises(ValueError, match=message):
            experiment.cell(wrong)


def test_results_page_is_drawn_from_results():
    assert (ROOT / "RESULTS.md").read_text() == draw_page(ROOT / "results"), (
        "RESULTS.md is stale: robustgen reproduce --page RESULTS.md"
    )


def test_kept_cells_fit_the_schema_and_the_experiments():
    assert KEPT, "no cell is kept"
    known = list(table())
    for path in KEPT:
        record = json.loads(path.read_text())
        jsonschema.validate(record, SCHEMA)
        assert record["experiment"] in known
        assert path == cell_path(
            ROOT / "results",
            find(record["experiment"]),
            record["scale"],
            Cell(record["row"], record["column"], record["seed"]),
        )


def test_kept_cells_are_of_the_present_settings():
    for name in list(table()):
        for scale in ("cpu", "full"):
            files = list((ROOT / "results" / name / scale).glob("*--seed*.json"))
            assert len(read_cells(ROOT / "results", find(name), scale)) == len(files), f"{name} {scale}: stale cells"


def test_list_names_every_experiment_and_reasons(tmp_path):
    listed = draw_list(tmp_path)
    for name in list(table()):
        assert name in listed
    assert listed.count("cpu: not measured (") == listed.count("full: not measured (") == len(list(table()))
    assert "needs a GAN" in listed


def test_recipes_train_the_same_networks_from_the_same_seed(tmp_path):
    """Shared trainings: the second call loads the first one's network; another process makes the same one."""
    budget = Budget(data="digits", n_train=100, width=4, epochs=1)
    recipe = Recipe(layers="last", lambda_rec=0.1, activation="tanh").against("fgsm", 0.1)
    shop = cache(tmp_path)
    train = shop.images("digits", "train").first(100)
    nets = [train_recipe(recipe, budget, 0, shop, train)[0] for _ in range(2)]
    nets.append(train_recipe(recipe, budget, 0, cache(tmp_path / "elsewhere"), train)[0])
    for other in nets[1:]:
        for a, b in zip(nets[0].parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)
    other_seed, _ = train_recipe(recipe, budget, 1, shop, train)
    assert not torch.equal(next(nets[0].parameters()), next(other_seed.parameters()))


def test_layer_names_of_recipes_are_activations():
    from robustgen.networks import convnet

    net = convnet(1, 10, 28, width=2)
    for layers in LAYERS.values():
        assert all(isinstance(net.get_submodule(layer), torch.nn.ReLU) for layer in layers)


def test_command_line(tmp_path, capsys, monkeypatch):
    options = ["--scale", "smoke", "--out", str(tmp_path / "r"), "--work", str(tmp_path / "w"), "--quiet"]
    cell = ["--cell", "fortified--pgd-0.1--seed0"]
    assert main(["reproduce", "lamb-2018/table-2.2", *options, *cell]) == 0
    assert "98.09" in capsys.readouterr().out
    assert main(["reproduce", "lamb-2018/table-2.2", *options, *cell, "--check"]) == 0
    assert "comes out the same" in capsys.readouterr().out
    path = tmp_path / "r/lamb-2018/table-2.2/smoke/fortified--pgd-0.1--seed0.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"value": record["value"] + 1}))
    assert main(["reproduce", "lamb-2018/table-2.2", *options, *cell, "--check"]) == 1
    assert "value: kept" in capsys.readouterr().err
    assert main(["reproduce", "--list", "--out", str(tmp_path / "r")]) == 0
    assert "smoke: 1 of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name an experiment"),
        (["lamb-2018/table-2.99"], "unknown experiment"),
        (["lamb-2018/table-2.2", "--scale", "huge"], "unknown scale"),
        (["lamb-2018/table-2.2", "--part", "3/2"], "--part is i/k"),
        (["lamb-2018/table-2.2", "--seeds", "0"], "--seeds must be at least 1"),
        (["lamb-2018/table-2.2", "--cell", "nonsense"], "a cell is named"),
        (["lamb-2018/table-2.2", "--check"], "--check needs"),
        (["lamb-2018/table-2.2", "--scale", "cpu"], "pass --data-root"),
        (["lamb-2018/table-2.2", "--cell", "fortified--pgd-0.1--seed0", "--check"], "no such cell is kept"),
    ],
)
def test_wrong_use_is_one_line(arguments, message, tmp_path, capsys):
    options = ["--out", str(tmp_path / "r"), "--work", str(tmp_path / "w"), "--quiet"]
    assert main(["reproduce", *arguments, *options]) == 2
    assert message in capsys.readouterr().err


def test_the_commit_of_a_cell_is_recorded():
    commit = runner.current_commit()
    assert commit == "unknown" or len(commit.removesuffix("-changed")) == 40


def rounded(text):
    """JSON with numbers in twelve digits: Python's standard deviation of 3.10 has another last one than later ones."""
    return json.loads(text, parse_float=lambda number: f"{float(number):.12g}")


def test_kept_summaries_are_those_of_the_kept_cells():
    for name, experiment in table().items():
        for scale in ("cpu", "full"):
            path, kept = ROOT / "results" / name / f"{scale}.json", read_cells(ROOT / "results", experiment, scale)
            assert path.exists() == bool(kept)
            assert not kept or rounded(path.read_text()) == rounded(json.dumps(summarise(experiment, scale, kept)))


def test_two_processes_that_share_an_experiment_sum_it_up_in_turns(tmp_path):
    run(Fake(), tmp_path)
    with alone(tmp_path / Fake.name, wait=True):  # another process has read the cells and not yet written their summary
        other = threading.Thread(target=run, args=(Fake(), tmp_path))
        other.start()
        other.join(0.5)
        assert other.is_alive()
    other.join()


def test_a_number_that_is_nan_is_named_at_once(tmp_path):
    with pytest.raises(ValueError, match="a--x--seed0: value is nan"):
        run(Fake(offset=float("nan")), tmp_path)


def standing_of(**shares):
    """100 examples each, of which the first so many stand."""
    return {name.replace("_", " "): torch.arange(100) < share for name, share in shares.items()}


def test_verdicts_expose_a_single_step_that_its_training_made_useless():
    weak = standing_of(clean=99, PGD_unbounded=0) | {
        f"{attack} {e}": torch.arange(100) < share
        for e, shares in {"0.1": (70, 70, 7, 6, 68), "0.3": (41, 82, 0, 0, 75)}.items()
        for attack, share in zip(("noise", "FGSM", "PGD clean start", "PGD", "transfer FGSM"), shares, strict=True)
    }
    found = {test.name: test.verdict for test in masking_tests(weak, (0.1, 0.3))}
    assert found["FGSM at least as strong as noise, eps 0.3"] == "violated"
    assert found["FGSM at least as strong as black-box transfer, eps 0.3"] == "violated"
    assert found["accuracy under FGSM falls as eps grows"] == "violated"
    assert {verdict for name, verdict in found.items() if "PGD" in name} == {"holds"}


def test_black_box_successes_are_counted_per_example():
    white, black = torch.tensor([True, True, False, False]), torch.tensor([False, True, True, False])
    test = white_box_against_transfer("w", ("white", white), ("black", black))
    assert "1 of 4 fall to black alone (25.00%" in test.detail
    assert test.verdict == "holds"


def test_the_cost_of_a_step_is_counted_by_hand():
    """A linear network: forward 2 D C, gradient of the weights as much again, no gradient of the input."""
    budget = Budget(data="digits", n_train=8, network="mlp", width=16)
    train = TrainingCache(Path("unused")).images("digits", "train", 8)
    forward = 2 * (64 * 16 + 16 * 16 + 16 * 10)
    per_example = 2 * forward + 2 * (16 * 16 + 16 * 10)
    assert step_cost(Recipe(), budget, train) == 8 * per_example


def test_rows_of_a_table_begin_at_the_same_weights():
    budget = Budget(data="digits", n_train=8, width=4)
    example = torch.zeros(2, 1, 8, 8)
    plain, _ = training_step(Recipe(), budget, 3, example, 10)
    fortified, _ = training_step(FORTIFIED, budget, 3, example, 10)
    matched, _ = training_step(Recipe(layers="last", matching=0.1).against("fgsm", 0.1), budget, 3, example, 10)
    for net in (fortified, matched):
        for name, value in plain.state_dict().items():
            assert torch.equal(net.backbone.state_dict()[name], value)


def test_paired_comparison_has_the_sign_of_the_difference():
    def row(*values):
        return {k: {"PGD": {"value": v}} for k, v in enumerate(values)}

    better = compared(row(3.0, 4.0, 5.0), row(1.0, 2.1, 2.9))
    assert better == "- PGD: +2.00 ± 0.06, yes, better"
    assert "yes, worse" in compared(row(1.0, 2.1, 2.9), row(3.0, 4.0, 5.0))
    assert compared(row(1.0, 5.0), row(2.0, 3.0)).endswith(", no")
    assert compared(row(1.0), row(2.0)) == ""


def test_the_confirmed_setting_is_the_one_that_the_sweep_chose():
    sweep = find("lamb-2018/sweep")
    kept = read_cells(ROOT / "results", sweep, "cpu")
    cheap = [cell.name for cell in sweep.cells() if sweep.row(cell.row).data.layers in ("", "last")]
    assert set(cheap) <= kept.keys(), "the sweep's cheap part is not complete"
    assert sweep.recipe(best(kept)) == CHOSEN


def test_files_sorted_by_class_are_mixed():
    dataset = ArrayDataset(
        torch.arange(100).reshape(100, 1).float() / 100, torch.arange(100) // 10, tuple("abcdefghij")
    )
    mixed = shuffled(dataset)
    assert len(mixed.y[:40].unique()) == 10
    assert sorted(mixed.ids.tolist()) == list(range(100))


def test_constants_of_a_cell_are_in_its_settings(monkeypatch):
    """A kept cell must go stale when something that its numbers depend on changes."""
    changes = {
        "lamb-2018/table-2.2": [("recipes.LAYERS", {"last": ("3",)})],
        "lamb-2018/table-2.6": [("table_2_6.SUBSTITUTE", {"rounds": 3}), ("table_2_6.SEEN", 1), ("table_2_6.EPS", 0.1)],
        "lamb-2018/table-2.7": [("table_2_7.TRAINING", {"lr": 1.0}), ("table_2_7.FPR", 0.5), ("table_2_7.NEAR", 3)],
        "lamb-2018/figure-2.4": [("figure_2_4.JOINT", {"lambda_rec": 9.0}), ("figure_2_4.AUTOENCODER", {"lr": 1.0})],
        "lamb-2018/adversarial-spheres": [("adversarial_spheres.INNER", 0.5), ("adversarial_spheres.TRAINING", {})],
        "lamb-2018/recurrent-classifier": [("recurrent_classifier.LENGTH", 4), ("recurrent_classifier.SIZES", {})],
        "lamb-2018/sweep": [("sweep.EPS", 0.2)],
    }
    for name, patches in changes.items():
        experiment = find(name)
        cells = experiment.cells(1)
        for where, value in patches:
            before = [experiment.settings(cell, "cpu") for cell in cells]
            with monkeypatch.context() as patch:
                patch.setattr(f"robustgen.experiments.lamb2018.{where}", value)
                changed = [experiment.settings(cell, "cpu") for cell in cells] != before
            assert changed, where
