"""Experiments: every one runs on digits; cells are kept, resumed and checked; pages are drawn; certified tables."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest
import torch
from torch import nn

import robustgen.experiments
from robustgen.cli import main
from robustgen.data import ArrayDataset, digits
from robustgen.detectors import NearestNeighbour
from robustgen.experiments import runner
from robustgen.experiments.catalogue import find, table
from robustgen.experiments.cells import cells_path, keep, merge, read_cells, read_records
from robustgen.experiments.dot_plot import Series, dot_plot
from robustgen.experiments.experiment import Cell, Column, Experiment, Measurement, Row
from robustgen.experiments.guarantees import certified_accuracy
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
from robustgen.experiments.pages import draw_experiment, draw_list, draw_pages
from robustgen.experiments.runner import check_cell, run_experiment
from robustgen.experiments.summary import NOT_MEASURED, fill, summarise
from robustgen.experiments.training_cache import TrainingCache, shuffled
from robustgen.generative import Denoiser
from robustgen.lipschitz import MaxMin, Orthonormal, lipschitz_bound, lipschitz_encoder

ROOT = Path(__file__).parents[1]
SCHEMA = json.loads((Path(robustgen.experiments.__file__).parent / "cell.schema.json").read_text())
VALID = jsonschema.validators.validator_for(SCHEMA)(SCHEMA)
KEPT = sorted(path for name in table() for path in (ROOT / "results" / name).glob("*.jsonl"))


def cache(tmp_path):
    return TrainingCache(tmp_path / "work", say=lambda line: None)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Where the tables keep their networks: what several have in common is trained once."""
    return cache(tmp_path_factory.mktemp("shared"))


@pytest.mark.filterwarnings("ignore:the fortified network decides otherwise")  # autoencoders of a few steps
@pytest.mark.parametrize("name", [name for name in table() if name.startswith("lamb-2018/")])
def test_every_experiment_runs_on_digits(name, shared, tmp_path):
    experiment, out = find(name), tmp_path / "results"
    before = torch.random.get_rng_state()
    kept = run_experiment(experiment, "smoke", shared, out, seeds=1, say=lambda line: None)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert list(kept) == [cell.name for cell in experiment.cells(1)]
    for record in kept.values():
        VALID.validate(record)
        if experiment.n_classes:  # of classifiers: contrastive divergence minimises no loss
            losses = record["history"]["loss"]
            assert len(losses) > 1
            assert losses[-1] < losses[0], "the loss does not fall"
    groups = summarise(experiment, kept)
    assert sum(len(group.values + group.collapsed) for group in groups.values()) == len(kept)
    page = draw_experiment(experiment, out, ("smoke",))
    assert experiment.source in page
    assert all(row.title in page for row in experiment.rows)


@dataclass
class Fake(Experiment):
    """Two rows, two columns; counts its measurements and breaks where it is told to."""

    breaks_at: str = ""
    runs_away_at: tuple = ()
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
        if cell.name in self.runs_away_at:
            raise FloatingPointError("the loss is nan")
        self.measured.append(cell.name)
        value = cell.seed + len(cell.row + cell.column) + self.offset
        return Measurement(value=value, numbers={"other": {"value": 2 * value, "n": 3}}, history={"loss": [2.0, 1.0]})


def run(experiment, tmp_path, **options):
    return run_experiment(experiment, "cpu", cache(tmp_path), tmp_path, say=lambda line: None, **options)


def test_a_cell_whose_numbers_run_away_does_not_keep_the_others_from_being_measured(tmp_path):
    experiment = Fake(runs_away_at=("a--y--seed0", "b--x--seed1"))
    with pytest.raises(
        FloatingPointError, match="2 of 6 cells; a--y--seed0: the loss is nan; b--x--seed1: the loss is nan"
    ):
        run(experiment, tmp_path)
    assert len(experiment.measured) == 4
    assert len(run(Fake(), tmp_path)) == 6


def test_a_killed_run_goes_on_at_the_next_cell(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(Fake(breaks_at="b--x--seed0"), tmp_path)
    again = Fake()
    kept = run(again, tmp_path)
    assert again.measured == ["b--x--seed0", "a--x--seed1", "a--y--seed1", "b--x--seed1"]
    assert list(kept) == [cell.name for cell in again.cells()]
    first = summarise(again, kept)["a", "x"]
    assert first.values == [2.0, 3.0]
    assert (first.mean, first.sd, first.number("other")) == (2.5, pytest.approx(0.5**0.5), 5.0)


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


def test_a_line_that_is_no_cell_is_refused_by_its_number(tmp_path):
    run(Fake(), tmp_path)
    path = cells_path(tmp_path, Fake(), "cpu")
    lines = path.read_text().splitlines()
    good = json.loads(lines[1])
    for wrong, message in {
        '{"format": 99}': "not the record of a cell in format 1",
        '{"format": 1}': "lacks experiment",
        "[]": "must be an object",
        "": "not a complete JSON value",
        json.dumps(good | {"value": "3"}): "value must be a finite number",
        json.dumps(good | {"scale": "full"}): "holds a cell of fake/table at scale full",
        json.dumps(good)[:50]: "not a complete JSON value",
        json.dumps(good | {"settings": "@"}).replace('"@"', '{"a": 1e999}'): "number that is too large",
        lines[0]: "a--x--seed0 again",
    }.items():
        path.write_text("\n".join([lines[0], wrong, *lines[2:]]) + "\n")
        for read in (
            lambda: read_cells(tmp_path, Fake(), "cpu"),
            lambda: run(Fake(), tmp_path),
            lambda: check_cell(Fake(), Cell("a", "x", 0), "cpu", cache(tmp_path), tmp_path),
        ):
            with pytest.raises(ValueError, match=rf"cpu\.jsonl, line 2: .*{message}"):
                read()


def test_a_folder_in_place_of_the_file_is_named(tmp_path):
    cells_path(tmp_path, Fake(), "cpu").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"cpu\.jsonl: a folder"):
        read_cells(tmp_path, Fake(), "cpu")


def test_what_the_experiment_does_not_ask_for_is_left_where_it_is(tmp_path):
    """Rows of another version, a seed that would take for ever to count up to, one below zero."""
    run(Fake(), tmp_path, seeds=1)
    path = cells_path(tmp_path, Fake(), "cpu")
    line = json.loads(path.read_text().splitlines()[0])
    others = [line | {"row": "old"}, line | {"seed": 2**62}, line | {"seed": -1}]
    keep(tmp_path, Fake(), "cpu", others)
    assert len(read_cells(tmp_path, Fake(), "cpu")) == 3
    run(Fake(), tmp_path)
    assert len(read_records(tmp_path, Fake(), "cpu")) == 6 + len(others)


def test_a_copy_is_not_another_seed(tmp_path):
    run(Fake(), tmp_path, seeds=1)
    record = json.loads(cells_path(tmp_path, Fake(), "cpu").read_text().splitlines()[0])
    keep(tmp_path, Fake(), "cpu", [record | {"seed": 1}])
    assert "a--x--seed1" not in read_cells(tmp_path, Fake(), "cpu")


def test_lines_are_sorted_whatever_was_measured_first(tmp_path):
    for only in (Cell("b", "x", 0), Cell("a", "y", 1), Cell("a", "y", 0), Cell("a", "x", 1)):
        run(Fake(), tmp_path, only=only)
    order = [cell.name for cell in read_records(tmp_path, Fake(), "cpu")]
    assert order == ["a--x--seed1", "a--y--seed0", "a--y--seed1", "b--x--seed0"]


ADD = """
import sys
from pathlib import Path
from robustgen.experiments.cells import keep, read_records
from test_experiments import Fake
record = next(iter(read_records(Path(sys.argv[1]), Fake(), "cpu").values()))
for seed in range(int(sys.argv[2]), int(sys.argv[2]) + 20):
    keep(Path(sys.argv[1]), Fake(), "cpu", [record | {"seed": seed}])
    print(seed, flush=True)
"""


def adding(tmp_path, first):
    """A process that keeps the cells of twenty seeds and says so, one by one."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [sys.executable, "-c", ADD, str(tmp_path), str(first)]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True)


def test_processes_that_write_the_same_file_lose_nothing(tmp_path):
    run(Fake(), tmp_path, only=Cell("a", "x", 0))
    with adding(tmp_path, 100) as one, adding(tmp_path, 200) as two:
        assert [process.wait() for process in (one, two)] == [0, 0]
    seeds = {cell.seed for cell in read_records(tmp_path, Fake(), "cpu")}
    assert seeds == {0, *range(100, 120), *range(200, 220)}


def test_a_killed_writer_loses_no_cell_that_it_has_kept(tmp_path):
    run(Fake(), tmp_path, only=Cell("a", "x", 0))
    with adding(tmp_path, 100) as process:
        said = [int(process.stdout.readline()) for _ in range(3)]
        process.kill()
        said += [int(line) for line in process.stdout.read().split()]
    seeds = {cell.seed for cell in read_records(tmp_path, Fake(), "cpu")}
    assert seeds >= {0, *said}
    keep(tmp_path, Fake(), "cpu", [])  # and what it left unfinished is swept
    assert [path.name for path in (tmp_path / "fake/table").iterdir()] == ["cpu.jsonl"]


def test_cells_of_another_folder_are_taken_where_none_is_kept(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    run(Fake(), here, seeds=1)
    run(Fake(offset=10.0), there)
    stale = next(iter(read_records(there, Fake(), "cpu").values())) | {"settings": {"setting": 7}, "seed": 3}
    keep(there, Fake(), "cpu", [stale])
    assert merge(here, Fake(), "cpu", there) == (3, 3, 1)
    kept = read_cells(here, Fake(), "cpu")
    assert (kept["a--x--seed0"]["value"], kept["a--x--seed1"]["value"]) == (2.0, 13.0)
    assert len(read_records(here, Fake(), "cpu")) == 6
    assert merge(here, Fake(), "cpu", there) == (0, 6, 1)
    with pytest.raises(FileNotFoundError, match="no such file"):
        merge(here, Fake(), "cpu", tmp_path / "nowhere")


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
    assert "| A | 1.5 | 2.00 (1) | 2.00 (1) |" in page
    assert "| C |  | not yet | not yet |" in page
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


@pytest.fixture(scope="module")
def drawn():
    return draw_pages(ROOT / "results")


def test_pages_and_figures_are_drawn_from_results(drawn):
    for name, text in drawn.items():
        assert (ROOT / name).read_text() == text, f"{name} is stale: robustgen reproduce --page RESULTS.md"
    kept = {*(ROOT / "docs/results").iterdir(), *(ROOT / "docs/figures").iterdir()}
    assert kept == {ROOT / name for name in drawn} - {ROOT / "RESULTS.md"}


def test_the_overview_is_short_and_its_links_lead_somewhere(drawn):
    assert drawn["RESULTS.md"].count("\n") <= 300
    for page, folder in (("RESULTS.md", ROOT), ("docs/results/index.md", ROOT / "docs/results")):
        links = re.findall(r"\]\(([^)#]+)#?([^)]*)\)", drawn[page])
        assert len(links) >= len(table())
        for path, place in links:
            name = (folder / path).resolve().relative_to(ROOT.resolve()).as_posix()
            assert name in drawn
            assert not place or f'<a id="{place}"></a>' in drawn[name]
    for experiment in table().values():
        assert experiment.question in drawn["RESULTS.md"]


def test_every_finding_names_rows_and_columns_that_are_there():
    for experiment in table().values():
        assert experiment.question, experiment.name
        assert "{" not in fill(experiment.finding, experiment, {})
        kept = read_cells(ROOT / "results", experiment, "cpu")
        if kept:
            said = fill(experiment.finding, experiment, summarise(experiment, kept))
            assert NOT_MEASURED not in said, f"{experiment.name}: a number that no cell has"


def test_numbers_in_a_finding():
    kept = {f"{row}{seed}": line(row, seed) for row in "ab" for seed in range(2)}
    said = fill("{a|x}, {a|x|other}, {mean|x}, {worst|x}, {a|y}", Fake(), summarise(Fake(), kept))
    assert said == "10.5 (published 1.50), 21.0, 11.0, 10.5, not measured"
    assert fill("{c|x}", Fake(), {}) == "not measured"
    for wrong in ("{z|x}", "{a|z}"):
        with pytest.raises(ValueError, match="has no"):
            fill(wrong, Fake(), {})


def line(row, seed):
    value = 10.0 + seed + (row == "b")
    found = {"other": {"value": 2 * value, "n": 3}}
    return {"row": row, "column": "x", "seed": seed, "value": value, "numbers": found, "history": {}}


def test_a_dot_plot_has_axis_labels_legend_and_source():
    series = [Series("ours", [60.0, None], [2.0, None]), Series("<published>", [70.0, 80.0])]
    drawn = dot_plot("A title", "accuracy, %", ["first & last", "second"], series, source="a.jsonl", limits=(50, 80))
    root = ElementTree.fromstring(drawn)
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"A title", "accuracy, %", "ours", "<published>", "first & last", "a.jsonl"} <= set(texts)
    assert "second: not measured" in texts
    assert [text for text in texts if text.isdigit()] == ["50", "60", "70", "80"]
    circles = [c for c in root.iter("{http://www.w3.org/2000/svg}circle") if c.get("fill") != "white"]
    assert [float(c.get("cx")) for c in circles] == [23.0, 166.0]  # the legend's, and 60: a third of the way
    with pytest.raises(ValueError, match="1 values for 2 rows"):
        dot_plot("t", "a", ["x", "y"], [Series("s", [1.0])], source="f")
    with pytest.raises(ValueError, match="0 series"):
        dot_plot("t", "a", [], [], source="f")


def test_kept_cells_fit_the_schema_and_the_experiments():
    assert KEPT, "no cell is kept"
    assert sorted(p for p in (ROOT / "results").glob("*/*/*.jsonl") if p.parent.parent.name != "mnist") == KEPT
    for path in KEPT:
        experiment, scale = find(path.parent.relative_to(ROOT / "results").as_posix()), path.stem
        records = read_records(ROOT / "results", experiment, scale)
        assert list(records) == sorted(records)
        for record in records.values():
            VALID.validate(record)
        assert len(read_cells(ROOT / "results", experiment, scale)) == len(records), f"{path}: stale cells"


def test_list_names_every_experiment_and_reasons(tmp_path):
    listed = draw_list(tmp_path)
    for name in list(table()):
        assert name in listed
    assert listed.count("cpu: not measured (") == listed.count("full: not measured (") == len(list(table()))
    assert "searches the latent space of a GAN" in listed


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
    path = tmp_path / "r/lamb-2018/table-2.2/smoke.jsonl"
    record = json.loads(path.read_text())
    merged = ["--merge", str(tmp_path / "r"), "--scale", "smoke", "--out", str(tmp_path / "new")]
    assert main(["reproduce", "lamb-2018/table-2.2", *merged]) == 0
    assert "1 cells taken from" in capsys.readouterr().out
    assert (tmp_path / "new/lamb-2018/table-2.2/smoke.jsonl").read_text() == path.read_text()
    path.write_text(json.dumps(record | {"value": record["value"] + 1}))
    assert main(["reproduce", "lamb-2018/table-2.2", *options, *cell, "--check"]) == 1
    assert "value: kept" in capsys.readouterr().err
    assert main(["reproduce", "--list", "--out", str(tmp_path / "r")]) == 0
    assert "smoke: 1 of" in capsys.readouterr().out
    assert main(["reproduce", "--page", str(tmp_path / "page.md"), "--out", str(tmp_path / "r")]) == 0
    written = capsys.readouterr().out.split()
    assert written[0] == str(tmp_path / "page.md")
    assert str(tmp_path / "docs/results/index.md") in written
    assert all(Path(path).stat().st_size > 100 for path in written)


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
        (["--merge", "elsewhere"], "--merge needs an experiment"),
        (["lamb-2018/table-2.2", "--merge", "elsewhere"], "elsewhere/lamb-2018/table-2.2/cpu.jsonl: no such file"),
        (["ahmed-2017/table-2.2", "--cell", "draw--val--seed0"], "has no cell"),
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


@pytest.mark.filterwarnings("ignore:the fortified network decides otherwise")  # autoencoders of a few steps
@pytest.mark.parametrize(
    ("name", "cells"),
    [
        (
            "certified-accuracy",
            [Cell(row, "r0.25", 0) for row in ("plain", "noise-trained", "autoencoder", "denoised")],
        ),
        (
            "certified-detectors",
            [Cell("mnist", c.key, 0) for c in find("guarantees/certified-detectors").columns]
            + [Cell("1", "labelled", 0)],
        ),
    ],
)
def test_tables_of_certificates_run_on_digits(name, cells, tmp_path):
    experiment, out = find(f"guarantees/{name}"), tmp_path / "results"
    cache, before = TrainingCache(tmp_path / "work", say=lambda line: None), torch.random.get_rng_state()
    for cell in cells:
        kept = run_experiment(experiment, "smoke", cache, out, only=cell, say=lambda line: None)
        record = kept[cell.name]
        jsonschema.validate(record, SCHEMA)
        for entry, losses in record["history"].items():
            assert not entry.endswith("loss") or losses[-1] < losses[0], f"{cell.name}: {entry} does not fall"
        numbers = {key: number["value"] for key, number in record["numbers"].items()}
        by_radius = [v for key, v in numbers.items() if key.startswith(("AUROC at", "certified at"))]
        assert by_radius == sorted(by_radius, reverse=True), "a larger radius is proved more often"
    assert torch.equal(torch.random.get_rng_state(), before)
    page = draw_experiment(experiment, out, ("smoke",))
    assert all(row.title in page for row in experiment.rows)


def paired(seed, won, lost, n=100):
    counts = {"certified here alone": won, "trained on noise alone": lost}
    numbers = {name: {"value": float(value), "n": n} for name, value in counts.items()}
    return {"row": "denoised", "column": "r1", "seed": seed, "numbers": numbers}


def test_the_comparison_is_paired_over_images_and_over_seeds():
    differences = torch.tensor([1.0] * 10 + [-1.0] * 4 + [0.0] * 86, dtype=torch.float64)
    mean, error = certified_accuracy.compared({"a": paired(0, 10, 4)}, "denoised", "r1")
    assert mean == pytest.approx(100 * differences.mean().item())
    assert error == pytest.approx(100 * differences.std().item() / 10)
    mean, two = certified_accuracy.compared({"a": paired(0, 10, 4), "b": paired(1, 14, 4)}, "denoised", "r1")
    assert mean == pytest.approx(8.0)
    assert two > math.sqrt(8.0 / 2)  # the variance of 6 and 10 is 8, and images add theirs
    assert certified_accuracy.compared({}, "denoised", "r1") is None


class TestEncoder:
    def test_no_pair_of_inputs_moves_further_apart(self):
        torch.manual_seed(0)
        encoder = lipschitz_encoder(64, (32, 16), 8).double()
        bound = lipschitz_bound(encoder)
        assert 1 <= bound < 1 + 1e-4
        a = torch.rand(500, 1, 8, 8, dtype=torch.float64)
        for b in (torch.rand_like(a), a + 1e-3 * torch.randn_like(a)):
            moved = (encoder(a) - encoder(b)).norm(dim=1) / (a - b).flatten(1).norm(dim=1)
            assert moved.max() <= bound

    def test_the_steepest_direction_is_as_steep_as_the_bound(self):
        """Rows are orthonormal and MaxMin permutes: by power iteration the gradient's largest singular value is 1."""
        torch.manual_seed(1)
        encoder = lipschitz_encoder(64, (32,), 8).double()
        jacobian = torch.autograd.functional.jacobian(encoder, torch.rand(1, 64, dtype=torch.float64))[0, :, 0]
        v = torch.randn(64, dtype=torch.float64)
        for _ in range(300):
            v = jacobian.T @ (jacobian @ v)
            v = v / v.norm()
        assert (jacobian @ v).norm().item() == pytest.approx(1.0, abs=1e-6)

    def test_it_stays_so_in_training_and_certifies_neighbours(self):
        torch.manual_seed(0)
        encoder = lipschitz_encoder(64, (32,), 8)
        adam = torch.optim.Adam(encoder.parameters(), lr=0.05)
        x = digits("train").images()[:200]
        for _ in range(10):
            adam.zero_grad()
            encoder(x).square().mean().neg().backward()
            adam.step()
        assert lipschitz_bound(encoder) == pytest.approx(1.0, abs=1e-4)
        detector = NearestNeighbour(encoder).fit(x)
        assert detector.lipschitz() == pytest.approx(1.0, abs=1e-4)
        shift = torch.randn(50, 1, 8, 8)
        shift = 0.5 * shift / shift.flatten(1).norm(dim=1)[:, None, None, None]
        y = 0.2 + 0.6 * torch.rand(50, 1, 8, 8)
        low, high = detector.score_bounds(y, 0.5, "L2")
        with torch.no_grad():
            features, bank = encoder(y + shift), encoder(x)
        scores = torch.cdist(features, bank).amin(1)
        assert (low <= scores).all()
        assert (scores <= high).all()

    @pytest.mark.parametrize("shape", [(8, 16), (16, 8)])
    @pytest.mark.parametrize("apart", [0.0, 1e-8, 1e-5])
    def test_rows_that_are_nearly_equal(self, shape, apart):
        torch.manual_seed(0)
        v = torch.randn(shape)
        first, second = (v[0], v[1]) if shape[0] < shape[1] else (v[:, 0], v[:, 1])
        second.copy_(first + apart * torch.randn_like(first))
        found = Orthonormal()(v).double()
        found = found if shape[0] < shape[1] else found.T
        assert torch.allclose(found @ found.T, torch.eye(8, dtype=torch.float64), atol=1e-5)

    def test_other_parametrizations_have_no_bound(self):
        layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        assert lipschitz_bound(layer) is None

    def test_odd_features_are_refused(self):
        with pytest.raises(ValueError, match="must be even"):
            lipschitz_encoder(64, (15,))
        with pytest.raises(ValueError, match="odd number"):
            MaxMin()(torch.zeros(1, 3))


def test_patches_that_do_not_overlap_have_the_bound_of_one_patch():
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 2, stride=2, padding=1).double()
    x = torch.zeros(1, 2, 4, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(conv, x).reshape(-1, x.numel())
    assert lipschitz_bound(conv) == pytest.approx(torch.linalg.matrix_norm(jacobian, 2).item())


def test_a_denoiser_of_patches():
    torch.manual_seed(0)
    model = Denoiser((1, 8, 8), width=4, levels=2, patch=2)
    v = torch.randn(3, 1, 8, 8)
    assert torch.allclose(model.denoise(v, 0.5), 0.5 + (v - 0.5) * 0.16 / 0.41, atol=1e-6)  # as without patches
    nn.init.normal_(model.network.out.weight)
    assert model.denoise(v, 0.5).shape == v.shape
    with pytest.raises(ValueError, match="not made of patches"):
        Denoiser((1, 8, 8), patch=3)
