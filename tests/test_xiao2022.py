"""The experiments of Xiao 2022: every model trains on digits, other data are other cells, the order is told."""

import math

import pytest
import torch

from robustgen.data import ArrayDataset
from robustgen.evaluation import FeatureNetwork
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
    stacked_mnist,
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


def test_stacked_images_are_three_digits_of_the_set_and_their_label_names_them():
    digits = ArrayDataset(torch.rand(50, 1, 4, 4), torch.arange(50) % 10, tuple("0123456789"), name="digits")
    images = stacked_mnist.stacked(digits, 2000, seed=1)
    assert images.shape == (3, 4, 4)
    channels = images.x.flatten(0, 1)[:, None]
    which = (channels[:, None] == digits.x).flatten(2).all(2)  # (6000, 50)
    assert which.sum(1).tolist() == [1] * 6000
    of_digits = digits.labels()[which.int().argmax(1)].reshape(2000, 3)
    assert [images.classes[k] for k in images.labels()] == ["".join(map(str, t)) for t in of_digits.tolist()]
    counts = torch.zeros(3, 10, 10)
    for pair, (a, b) in enumerate(((0, 1), (0, 2), (1, 2))):
        counts[pair].index_put_((of_digits[:, a], of_digits[:, b]), torch.ones(2000), accumulate=True)
    chi_squared = ((counts - 20).square() / 20).sum((1, 2))  # of independent and even digits: 99 ± 14
    assert bool((chi_squared - 99).abs().max() < 60)
    again, other = stacked_mnist.stacked(digits, 100, seed=1), stacked_mnist.stacked(digits, 100, seed=2)
    assert torch.equal(again.x, images.x[:100])
    assert not torch.equal(other.x, again.x)


def test_modes_and_their_divergence_from_even_ones_are_those_of_the_counts():
    """A classifier that reads the digit off the first ten pixels, and how sure it is off their height."""
    read = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 10))
    with torch.no_grad():
        read[1].weight.copy_(50 * torch.eye(10, 12))
        read[1].bias.zero_()

    def images(modes, height=1.0):
        of_digits = torch.tensor([[int(d) for d in f"{mode:03d}"] for mode in modes])
        return height * torch.nn.functional.one_hot(of_digits, 12).float().reshape(-1, 3, 3, 4)

    def found(x):
        return stacked_mnist.mode_measures(x, FeatureNetwork(read))

    even = found(images(range(1000)))
    assert even == {"modes": 1000, "kl": pytest.approx(0, abs=1e-9), "sure": 100}
    few = found(torch.cat([images([7, 7, 7, 70]), images([70, 700, 700, 700], 0.01)]))
    shares = (3 / 8, 2 / 8, 3 / 8)  # 007, 070 and 700 are different modes
    assert few == {"modes": 3, "kl": pytest.approx(sum(p * math.log(1000 * p) for p in shares)), "sure": 50}


@pytest.mark.parametrize("name", ["test", "dcgan", "wgan-gp", "ddgan-4", "tilted"])
def test_columns_of_stacked_digits_are_of_the_same_samples(name, cache, monkeypatch):
    experiment, found = stacked_mnist.EXPERIMENT, {}
    for column in ("modes", "kl", "sure"):
        found[column] = experiment.measure(Cell(name, column, 0), "smoke", cache)
        monkeypatch.setattr(stacked_mnist, "samples_of", None)  # what is drawn once is kept
    assert all(found["kl"].numbers[key]["value"] == m.value for key, m in found.items())
    assert 1 <= found["modes"].value <= 100
    assert 0 <= found["kl"].value <= math.log(1000)
    assert (name == "test") == (not found["modes"].history)


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
    drawn = quality.samples_of(model.eval(), 30, 0)
    assert drawn.shape == (30, 1, 8, 8)
    noise = model.sample(30, torch.Generator().manual_seed(0)) - drawn
    assert noise.std() > 0.1  # that of pixels N(decoder(z), 1)


def test_unseen_images_are_made_of_test_images(cache):
    experiment, test = find("xiao-2022/tilted-unseen"), cache.images("digits", "test", 40)
    made = {
        row.data[1]: experiment.unseen(test, Cell(row.key, "nearest", 0), cache)
        for row in experiment.rows
        if row.data[0] == "mnist"
    }
    assert torch.equal(made["other"].x.sort(0).values, (255 - test.x).sort(0).values)
    between = (test.images() + test.images().roll(1, 0)) / 2
    torch.testing.assert_close(made["midpoints"].images(), between, atol=1 / 255, rtol=0)
    assert torch.equal(made["mirrored"].x, test.x.flip(3))
    assert torch.equal(made["upside-down"].x, test.x.flip(2))
    assert made["constant"].x.flatten(1).unique(dim=1).flatten().tolist() == list(range(256))
    assert made["noise"].x.shape == test.x.shape
    assert all(images.preprocessing == test.preprocessing for images in made.values())


def test_a_tilt_is_compared_with_its_own_base_image_by_image(cache):
    experiment = find("xiao-2022/tilted-unseen")
    base, tilted, alone = (
        experiment.measure(Cell("mnist-midpoints", column, 0), "smoke", cache)
        for column in ("tilt-base", "tilted", "tilted-energy")
    )
    numbers = {name: number["value"] for name, number in tilted.numbers.items()}
    assert numbers["gain over the base"] == pytest.approx(tilted.value - base.value, abs=1e-9)
    assert numbers["lower end of the gain"] <= numbers["gain over the base"] <= numbers["upper end of the gain"]
    assert numbers["lower end of the interval"] < tilted.value < numbers["upper end of the interval"]
    assert "gain over the base" not in {*base.numbers, *alone.numbers}


def test_the_conclusion_counts_gains_that_are_certain():
    def cell(low, high, column="tilted"):
        ends = {"lower end of the gain": low, "upper end of the gain": high, "gain over the base": (low + high) / 2}
        return {"column": column, "numbers": {name: {"value": value} for name, value in ends.items()}}

    experiment = find("xiao-2022/tilted-unseen")
    kept = {"a": cell(0.1, 2.0), "b": cell(-1.0, 1.0), "c": cell(-3.0, -1.0), "d": {"column": "glow", "numbers": {}}}
    said = experiment.conclusion(kept, lambda other: {})
    assert "the tilted likelihood is above the base's likelihood alone in 1 of 3 kinds of images, below it in 1" in said
    assert "beside" not in said
    said = experiment.conclusion(kept | {"e": cell(4.0, 6.0, "tilted-dose")}, lambda other: {})
    assert "beside the tilt's energy is above the base's likelihood alone in 1 of 1 kinds" in said
    assert said.endswith("gains are from +5.0 to +5.0 points.")
    assert experiment.conclusion({"d": kept["d"]}, lambda other: {}) == ""


def test_a_cell_says_what_it_is():
    assert find("xiao-2022/far-ood").settings(Cell("mnist", "glow", 0), "cpu")["training images"] == "drawn"
