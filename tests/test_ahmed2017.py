"""The experiments of Ahmed 2017: a row of each runs on digits, trainings are shared, remarks say what the cells say."""

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import torch

import robustgen.experiments
from robustgen import detectors, generative
from robustgen.data import ArrayDataset, digits, heldout_classes, split
from robustgen.detectors.loading import detector_classes
from robustgen.experiments.ahmed2017 import (
    detector_selection,
    heldout_table,
    latent_knn,
    likelihoods,
    recipes,
    table_4_1,
    table_4_2,
)
from robustgen.experiments.ahmed2017.compared_detectors import DETECTORS, compared_detector
from robustgen.experiments.ahmed2017.trained_models import NETWORKS, TrainedModels, described
from robustgen.experiments.catalogue import find, table
from robustgen.experiments.experiment import Cell, Column, Experiment, Measurement, Row
from robustgen.experiments.pages import draw_experiment
from robustgen.experiments.runner import run_experiment
from robustgen.experiments.training_cache import TrainingCache
from robustgen.experiments.xiao2022.recipes import RECIPES

SCHEMA = json.loads((Path(robustgen.experiments.__file__).parent / "cell.schema.json").read_text())
NAMES = [name for name in table() if name.startswith("ahmed-2017/")]


def cache(tmp_path):
    return TrainingCache(tmp_path / "work", say=lambda line: None)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Where the tables keep their models: what several have in common is trained once."""
    return cache(tmp_path_factory.mktemp("shared"))


def one_row(experiment):
    """The first row that is measured, or in tables without many columns everything."""
    cells = experiment.cells(1)
    return cells if len(experiment.columns) < 3 else [cell for cell in cells if cell.row == cells[0].row]


@pytest.mark.parametrize("name", [name for name in NAMES if find(name).cells(1)])
def test_a_row_of_every_experiment_runs_on_digits(name, shared, tmp_path):
    experiment, out = find(name), tmp_path / "results"
    before = torch.random.get_rng_state()
    for cell in one_row(experiment):
        kept = run_experiment(experiment, "smoke", shared, out, only=cell, say=lambda line: None)
        jsonschema.validate(kept[cell.name], SCHEMA)
        for entry, losses in kept[cell.name]["history"].items():
            if entry in ("vae: loss", "pixelcnn: loss", "pixelvae: loss", "iaf-vae: loss", "pixelcnn++: loss"):
                assert losses[-1] < losses[0], f"{cell.name}: {entry} does not fall"
    assert torch.equal(torch.random.get_rng_state(), before)
    page = draw_experiment(experiment, out, ("smoke",))
    assert all(row.title in page for row in experiment.rows)


def test_what_is_not_measured_is_listed_with_its_reason(tmp_path):
    page = draw_experiment(likelihoods.TABLE_2_2, tmp_path)
    assert likelihoods.TABLE_2_2.cells(1) == []
    assert run_experiment(likelihoods.TABLE_2_2, "cpu", cache(tmp_path), tmp_path) == {}
    assert not list(tmp_path.rglob("*.jsonl"))
    assert page.count("needs ImageNet") == 3
    assert page.count("not a model of this library") == 2


def test_every_compared_detector_is_one_of_the_library():
    for key, made in DETECTORS.items():
        assert made.detector in detector_classes(), key
        for scale in ("smoke", "cpu", "full"):
            known = RECIPES[scale] | recipes.MNIST[scale] | recipes.COLOUR[scale]
            described(known, made.models)
            for recipe in known.values():
                assert recipe.model in NETWORKS or recipe.model in generative.model_classes()


def test_detectors_share_trainings_and_other_data_do_not(tmp_path):
    shop = cache(tmp_path)
    images = digits().first(100)
    for _ in range(2):
        trained = TrainedModels(shop, recipes.MNIST["smoke"], images, 0)
        for key in ("vae", "vae-typicality", "pixelcnn", "pixelcnn-waic"):
            compared_detector(key, "smoke").make(trained)
    runs = sorted(path for path in shop.work.iterdir() if path.is_dir())
    assert len(runs) == 2
    moved = replace(images, x=images.x.flip(0))
    TrainedModels(shop, recipes.MNIST["smoke"], moved, 0).model("vae")
    TrainedModels(shop, recipes.MNIST["smoke"], images, 1).model("vae")
    assert len([path for path in shop.work.iterdir() if path.is_dir()]) == 4


def test_a_share_of_all_updates_is_that_of_the_training(tmp_path):
    recipe = recipes.MNIST["smoke"]["vae"]  # 3 epochs, batches of 50
    recipe = replace(recipe, options={**recipe.options, "kl_warmup": 0.5})
    model = TrainedModels(cache(tmp_path), {"vae": recipe}, digits().first(100), 0).model("vae")
    assert model.kl_warmup == 3  # of 3 x 2 updates on 90 images


def test_kept_epochs_are_the_models_of_these_epochs(tmp_path):
    trained = TrainedModels(cache(tmp_path), recipes.MNIST["smoke"], digits().first(100), 0)
    last, *kept = (trained.model(name) for name in ("pixelcnn", "pixelcnn@1", "pixelcnn@2", "pixelcnn@3"))
    x = trained.validation.images()
    nll = [-model.log_prob(x).mean().item() for model in kept]
    assert nll == pytest.approx(trained.history["pixelcnn: val_loss"], rel=1e-4)
    assert torch.equal(kept[-1].log_prob(x), last.log_prob(x))


def test_constants_of_a_cell_are_in_its_settings(monkeypatch):
    for name in NAMES:
        experiment = find(name)
        for cell in experiment.cells(1)[:1]:
            before = experiment.settings(cell, "cpu")
            for scales in (recipes.MNIST, recipes.COLOUR):
                for key, recipe in scales["cpu"].items():
                    monkeypatch.setitem(scales["cpu"], key, replace(recipe, epochs=recipe.epochs + 1))
            assert experiment.settings(cell, "cpu") != before, name
            monkeypatch.undo()
    cell = Cell("0", "vae-regret", 0)
    found = table_4_1.EXPERIMENT.settings(cell, "cpu")
    assert found["contender"]["options"] == {"steps": 50, "lr": 0.05, "samples": 1}
    assert found["recipes"]["vae"]["options"]["likelihood"] == "bernoulli"  # defaults too
    assert found["recipes"]["vae"]["optimizer"]["lr"] == 1e-3


def test_the_digit_held_out_in_place_of_another_holds_it_out_in_turn(tmp_path):
    pairs = {frozenset((c, detector_selection.second(c))) for c in range(10)}
    assert len(pairs) == 5
    experiment, shop = detector_selection.EXPERIMENT, cache(tmp_path)
    given = []

    def make(images):
        given.append(images)
        return detectors.MeanBrightness().fit(images)

    for row in ("2", "7"):
        cell = Cell(row, "vae", 0)
        train, test = experiment.data(cell, "smoke", shop)
        experiment.evaluate(
            lambda images: given.append(images) or detectors.MeanBrightness().fit(images), train, test, cell, shop
        )
    assert torch.equal(given[0].x, given[1].x)  # so that both share a training
    assert torch.equal(given[0].y, given[1].y)
    left = heldout_classes(shop.images("digits", "train", 500), [2, 7])[0]
    assert set(given[0].ids.tolist()) < set(left.ids.tolist())


def record(row, column, value, **numbers):
    found = {name: {"value": v, "n": 1} for name, v in numbers.items()}
    return {"row": row, "column": column, "seed": 0, "value": value, "numbers": found}


def test_the_best_candidate_is_chosen_where_all_are_measured():
    kept = dict(enumerate([record("0", "a", 1.0), record("0", "b", 2.0), record("1", "a", 5.0)]))
    assert detector_selection.chosen(kept, ["a", "b"], lambda digit: [digit]) == {"0": "b"}
    assert detector_selection.chosen(kept, ["a"], lambda digit: [digit]) == {"0": "a", "1": "a"}
    kept = {(d, key): record(str(d), key, v) for d in range(10) for key, v in (("a", 5.0), ("b", 4.0 + 16 * (d == 3)))}
    own, others = detector_selection.RULES.values()
    assert detector_selection.chosen(kept, ["a", "b"], own) == {str(d): "b" if d == 3 else "a" for d in range(10)}
    assert detector_selection.chosen(kept, ["a", "b"], others) == {str(d): "a" if d == 8 else "b" for d in range(10)}


def test_remarks_judge_the_choice_by_the_table_of_the_test_and_columns_by_the_neighbour():
    digits = [str(digit) for digit in range(10)]
    label_free = [key for key in detector_selection.CANDIDATES if not DETECTORS[key].labels]
    kept = [
        record(d, key, float(key == ("pca" if d < "5" else "vae")))
        for d in digits
        for key in detector_selection.CANDIDATES
    ]
    kept += [record(d, "energy", 2.0) for d in digits]
    tested = [
        record(d, key, value, **{"AUPR": value, "AUPR, other sign": 1.5 * float(d)})
        for d in digits
        for key, value in (("vae", 20.0 + int(d) % 5 % 4 % 2 - 0.4), ("pca", 10.0), ("nearest", 15.0), ("energy", 5.0))
    ] + [record("0", "dcgan", 90.0, **{"AUPR": 90.0, "AUPR, other sign": 1.0})]
    said = detector_selection.EXPERIMENT.remarks(dict(enumerate(kept)), lambda other: dict(enumerate(tested)))
    assert "pca" in label_free
    assert "- by its stand-in, without labels, for 0, 1, 2, 3, 4: PCA residual\n" in said
    assert "- by its stand-in, without labels, for 5, 6, 7, 8, 9: VAE\n" in said
    assert "- by its stand-in, without labels, what was chosen in Table 4.1: mean 15.0, median 14.8\n" in said
    assert said.endswith("with the labels of the trained digits, what was chosen in Table 4.1: mean 5.0, median 5.0")
    assert "in Table 4.1:" not in detector_selection.EXPERIMENT.remarks(dict(enumerate(kept)), lambda other: {})
    said = table_4_1.EXPERIMENT.remarks(dict(enumerate(tested)), lambda other: {})
    assert "- above the nearest training image, mean 15.0: VAE 20.0\n" in said
    assert "- not above the nearest training image, mean 15.0: PCA residual 10.0, classifier, energy 5.0\n" in said
    assert "- better with the other sign: classifier, energy 6.8\n" in said
    assert "- our VAE and the published VAE, 10 classes: " in said
    assert "our DCGAN" not in said  # of one digit
    assert table_4_1.EXPERIMENT.remarks({}, lambda other: {}) == ""


def test_the_sign_of_a_column_is_read_from_rank_correlations():
    names = ("iaf-vae", "pixelcnn++", "pixelvae", "dcgan")
    published = {row: dict(zip(names, values, strict=True)) for row, values in table_4_2.PUBLISHED.items()}
    kept = {
        row: record(row, "pixelcnn++", 0.0, **{"AUPR": v["iaf-vae"], "AUPR, other sign": -v["iaf-vae"]})
        for row, v in published.items()
    }
    remarks = table_4_2.EXPERIMENT.remarks(kept, lambda other: {})
    assert "published, IAF-VAE and PixelCNN++: -0.92" in remarks
    assert "published, IAF-VAE and PixelVAE: +0.94" in remarks
    assert "PixelCNN++ and the published IAF-VAE, 10 classes: +1.00 as it is, -1.00 with the other sign" in remarks
    assert "PixelCNN++ and the published PixelCNN++, 10 classes: -0.92 as it is, +0.92 with the other sign" in remarks


def test_halved_images_are_means_and_say_so():
    x = torch.tensor([[0, 2, 10, 10], [4, 6, 10, 11]], dtype=torch.uint8).reshape(1, 1, 2, 4)
    found = table_4_2.halved(ArrayDataset(x))
    assert found.x.flatten().tolist() == [3, 10]
    assert found.preprocessing == ("means of 2x2 pixels",)


def test_neighbours_vote():
    generator = torch.Generator().manual_seed(0)
    z, y = torch.randn(60, 2, generator=generator), torch.randint(3, (60,), generator=generator)
    asked, labels = torch.randn(700, 2, generator=generator), torch.randint(3, (700,), generator=generator)
    found = latent_knn.neighbour_errors((z, y), (asked, labels), (1, 5))
    for k in (1, 5):
        order = (asked[:, None] - z).square().sum(2).argsort(1)[:, :k]
        said = torch.tensor([min(range(3), key=lambda c: (-(votes == c).sum(), c)) for votes in y[order]])
        assert found[k] == pytest.approx(100 * (said != labels).double().mean().item())


class Lines(Experiment):
    name, title, source, metric = "fake/lines", "fake", "nobody", "things"
    rows = tuple(
        Row(key=key, title=key.upper(), published={"x": value})
        for key, value in zip("abc", (1.0, 4.0, 4.0), strict=True)
    )
    columns = (Column("x", "X"), Column("y", "Y"))
    seeds, as_lines, levels = 1, True, ("level",)

    def settings(self, cell, scale):
        return {}

    def measure(self, cell, scale, cache):
        value = float(ord(cell.row)) if cell.row < "c" or cell.column == "x" else 0.0
        return Measurement(value=value, numbers={"level": {"value": 7.0, "n": 3}})


def test_a_table_of_lines_ends_in_mean_and_median(tmp_path):
    experiment, shop = Lines(), cache(tmp_path)
    run_experiment(experiment, "cpu", shop, tmp_path, only=Cell("a", "y", 0), say=lambda line: None)
    page = draw_experiment(experiment, tmp_path)
    assert "| level | 7.00 |  |  |  |  |" in page
    assert "| X: published | 1.00 | 4.00 | 4.00 | 3.00 | 4.00 |" in page
    assert "| Y: ours | 97.00 |  |  |  |  |" in page
    assert "Y: published" not in page
    run_experiment(experiment, "cpu", shop, tmp_path, say=lambda line: None)
    page = draw_experiment(experiment, tmp_path)
    assert "| X: ours | 97.00 | 98.00 | 99.00 | 98.00 | 98.00 |" in page
    assert "| Y: ours | 97.00 | 98.00 | 0.00 | 65.00 | 97.00 |" in page


def test_a_cell_keeps_both_signs_and_what_sanity_images_get():
    found = heldout_table.heldout_class(
        detectors.NearestNeighbour(), digits("train"), digits("test"), heldout=1, seed=0, fpr=0.05
    )
    made = heldout_table.as_measurement(found, {})
    assert made.value == found["aupr"]
    assert made.numbers["AUPR, other sign"]["value"] == found["aupr_negated"]
    assert made.numbers["constant images: AUROC"] == {"value": found["sanity"]["constant"]["auroc"], "n": 17}
    assert set(table_4_1.EXPERIMENT.levels) <= made.numbers.keys()


def test_parts_of_a_training_set_are_disjoint(tmp_path):
    images = digits()
    trained = TrainedModels(cache(tmp_path), recipes.MNIST["smoke"], images, 3)
    parts = [set(part.ids.tolist()) for part in (trained.train, trained.validation)]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == set(split(images, (1.0,), 0)[0].ids.tolist())
