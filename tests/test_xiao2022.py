"""The experiments of Xiao 2022: every model trains on digits, other data are other cells, the order is told."""

import math

import pytest
import torch

from robustgen.experiments.catalogue import find, table
from robustgen.experiments.experiment import Cell
from robustgen.experiments.pages import draw_experiment
from robustgen.experiments.runner import run_experiment
from robustgen.experiments.training_cache import TrainingCache
from robustgen.experiments.xiao2022 import (
    bits_per_dim,
    ddgan_toys,
    figure_6_3,
    noise_free_toys,
    quality,
    samples,
    tilted_toys,
)
from robustgen.experiments.xiao2022.quality import TRAINING_IMAGES, measured_samples
from robustgen.experiments.xiao2022.recipes import RECIPES
from robustgen.generative.diffusion.noise_schedule import NoiseSchedule

NAMES = [name for name in table() if name.startswith("xiao-2022/")]
UNDRAWN = ("real-nvp", "glow", "classifier", "ddpm-learned", "denoiser", "denoiser-uniform", "pixelcnn++")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return TrainingCache(tmp_path_factory.mktemp("xiao") / "work", say=lambda line: None)


@pytest.mark.parametrize("name", [TRAINING_IMAGES, *(n for n in RECIPES["smoke"] if n not in UNDRAWN)])
def test_every_model_trains_and_its_samples_are_measured(name, cache):
    before = torch.random.get_rng_state()
    numbers, history = measured_samples(name, "digits", "smoke", 0, cache)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(math.isfinite(entry["value"]) for entry in numbers.values())
    assert all(math.isfinite(loss) for losses in history.values() for loss in losses)
    assert (name == TRAINING_IMAGES) == (not history)
    assert measured_samples(name, "digits", "smoke", 0, cache) == (numbers, history)


def test_training_images_are_the_best_samples(cache):
    worst = measured_samples(TRAINING_IMAGES, "digits", "smoke", 0, cache)[0]["Frechet distance"]["value"]
    for name in ("vae", "glf"):
        assert worst < measured_samples(name, "digits", "smoke", 0, cache)[0]["Frechet distance"]["value"]


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("xiao-2022/table-3.1", "xiao-2022/figure-3.6")])
def test_a_row_of_every_other_experiment_runs_on_digits(name, cache, tmp_path):
    experiment = find(name)
    first = experiment.cells(1)[0].row
    for cell in experiment.cells(1):
        if cell.row == first:
            run_experiment(experiment, "smoke", cache, tmp_path, only=cell, say=lambda line: None)
    assert all(row.title in draw_experiment(experiment, tmp_path, ("smoke",)) for row in experiment.rows)


@pytest.mark.parametrize("name", NAMES)
def test_cells_of_other_data_and_models_have_other_settings(name):
    experiment = find(name)
    cells = experiment.cells(1)
    places = {cell: (cell.row, cell.column) for cell in cells}
    if isinstance(experiment, samples.SampleTable):  # three columns share their samples
        places = {cell: (cell.row, cell.column.rpartition("-")[0]) for cell in cells}
    if name in ("xiao-2022/figure-3.6", "xiao-2022/purification"):  # a row is one study
        places = {cell: (cell.row,) for cell in cells}
    settings = {cell: str(sorted(experiment.settings(cell, "cpu").items())) for cell in cells}
    assert len(set(settings.values())) == len(set(places.values()))


def test_25_gaussians_are_a_density_of_the_entropy_that_the_source_states():
    """1.10 nats; they integrate to one over the square that images fill."""
    cells = noise_free_toys.square(400, 3.0)
    assert tilted_toys.grid_of_25_log_prob(cells).exp().sum().item() * (6 / 400) ** 2 == pytest.approx(1, abs=1e-3)
    z = tilted_toys.grid_of_25(20_000, 0)
    assert tilted_toys.grid_of_25_log_prob(z.double()).mean().item() == pytest.approx(-1.10, abs=0.03)


def test_a_tilt_of_the_plane_is_normalised_by_what_it_takes_away(cache):
    cell = next(c for c in tilted_toys.EXPERIMENT.cells(1) if (c.row, c.column) == ("tilted", "grid"))
    found = tilted_toys.EXPERIMENT.measure(cell, "smoke", cache).numbers
    on_grid, sampled, error = (
        found[name]["value"] for name in ("log Z on the grid", "log Z from the base", "its standard error")
    )
    assert abs(on_grid - sampled - math.log(found["integral of the base"]["value"])) < 5 * error + 0.02
    assert found["gap to the truth, nats"]["value"] > 0


def test_a_denoising_step_by_integration_is_the_mixture_that_it_is_in_closed_form():
    """Of each Gaussian of x_0: its weight given x_t, and x_s given both, a Gaussian again."""
    t, s, spread = 500, 250, figure_6_3.SPREAD
    x_s, x_t = torch.linspace(-10, 10, 4001, dtype=torch.float64), torch.tensor([-1.0, 0.3, 2.5], dtype=torch.float64)
    found, density = figure_6_3.denoising_distribution(t, s, x_s, x_t)
    at_s, at_t = NoiseSchedule("vp", 1000).alpha_bars[[s, t]]
    kept, expected, weights = at_t / at_s, torch.zeros_like(found), []
    for centre, weight in zip(figure_6_3.CENTRES, figure_6_3.WEIGHTS, strict=True):
        variance = at_s * spread**2 + 1 - at_s
        precision = 1 / variance + kept / (1 - kept)
        mean = (at_s**0.5 * centre / variance + kept**0.5 * x_t / (1 - kept)) / precision
        of_x_t = torch.distributions.Normal(at_t**0.5 * centre, (at_t * spread**2 + 1 - at_t) ** 0.5)
        weights.append(weight * of_x_t.log_prob(x_t).exp())
        of_x_s = torch.distributions.Normal(mean[:, None], precision**-0.5)
        expected += weights[-1][:, None] * of_x_s.log_prob(x_s).exp()
    torch.testing.assert_close(density, sum(weights))
    torch.testing.assert_close(found, expected / density[:, None], rtol=1e-9, atol=1e-12)


def test_modes_are_maxima_of_some_height():
    x = torch.linspace(-5, 5, 1001).double()
    bumps = [(-(x - centre).square() / 0.1).exp() for centre in (-3, 0, 2)]
    rows = torch.stack([bumps[0], bumps[0] + bumps[1], bumps[0] + 0.02 * bumps[1], bumps[0] + 1e-3 * sum(bumps)])
    assert figure_6_3.modes(rows).tolist() == [1, 2, 2, 1]


def test_columns_of_25_gaussians_are_of_one_training(cache, monkeypatch):
    found = {}
    for column in ("modes", "near", "kl"):
        found[column] = ddgan_toys.EXPERIMENT.measure(Cell("4-z", column, 0), "smoke", cache)
        monkeypatch.setattr(ddgan_toys.DDGAN, "training_step", None)  # what is trained once is kept
    assert all(found["kl"].numbers[name]["value"] == m.value for name, m in found.items())
    assert 0 <= found["modes"].value <= 25


@pytest.mark.parametrize("row", [row.key for row in bits_per_dim.EXPERIMENT.rows])
def test_bits_of_every_kind_of_model_are_counted(row, cache):
    """Of its flow, its equation and its bound those of the same images and of the same training."""
    found = bits_per_dim.EXPERIMENT.measure(Cell(row, "mnist", 0), "smoke", cache)
    numbers = {name: entry["value"] for name, entry in found.numbers.items()}
    assert all(math.isfinite(value) for value in (found.value, *numbers.values()))
    assert found.value > 0
    if row == "ddpm-flow":
        bound = bits_per_dim.EXPERIMENT.measure(Cell("ddpm-fixed", "mnist", 0), "smoke", cache)
        assert bound.history == found.history
        assert numbers["bound of the same images, bits"] == pytest.approx(bound.value, rel=0.2)
        assert numbers["scored with uniform noise, bits"] > found.value
        assert {"bound of the equation, bits", "without clipping, bits"} <= set(numbers)
    if row == "score-sde-flow":
        by_equation = bits_per_dim.EXPERIMENT.measure(Cell("score-sde", "mnist", 0), "smoke", cache)
        assert numbers["bound of the equation, bits"] == by_equation.value


def test_the_order_of_two_rows_is_that_of_their_seeds():
    def cell(row, seed, value):
        return {"row": row, "column": "mnist-frechet", "seed": seed, "value": value}

    kept = {
        str(k): c for k, c in enumerate([cell("a", 0, 3.0), cell("b", 0, 1.0), cell("a", 1, 5.0), cell("b", 1, 2.0)])
    }
    mean, error = samples.difference(kept, "mnist-frechet", "a", "b")
    assert (mean, error) == (2.5, pytest.approx(0.5))
    assert samples.difference({"0": cell("a", 0, 3.0)}, "mnist-frechet", "a", "b") is None
    assert samples.difference(kept, "fashion-mnist-frechet", "a", "b") is None


def test_published_numbers_stand_in_the_columns_of_their_metric():
    published = {row.key: row.published for row in samples.EXPERIMENT.rows}
    assert published["glf"]["mnist-frechet"] == 8.2
    assert published["glf"]["fashion-mnist-recall"] == 93.2
    assert "mnist-recall" not in published["vae"]


def test_a_vae_gives_expected_images(cache):
    model = quality.TrainedModels(cache, RECIPES["smoke"], cache.images("digits", "train", 100), 0).model("vae")
    drawn = quality._samples(model.eval(), 30, 0)
    assert drawn.shape == (30, 1, 8, 8)
    noise = model.sample(30, torch.Generator().manual_seed(0)) - drawn
    assert noise.std() > 0.1  # that of pixels N(decoder(z), 1)


def test_a_cell_says_what_it_is():
    assert find("xiao-2022/far-ood").settings(Cell("mnist", "glow", 0), "cpu")["training images"] == "drawn"
