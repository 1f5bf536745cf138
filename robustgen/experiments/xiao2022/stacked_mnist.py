"""Tables 4.7 and 6.3 in shape: how many of the thousand modes of StackedMNIST samples hit, and how evenly."""

from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from robustgen.counter_rng import derive_seed, integers
from robustgen.data import ArrayDataset
from robustgen.evaluation import FeatureNetwork
from robustgen.evaluation.sample_metrics import Weights, class_measures
from robustgen.experiments.ahmed2017.recipes import MNIST
from robustgen.experiments.ahmed2017.trained_models import TrainedModels, described
from robustgen.experiments.experiment import Cell, Column, Experiment, Measurement, Row, counted
from robustgen.experiments.training_cache import TrainingCache
from robustgen.experiments.xiao2022.quality import FEATURES, Budget, feature_network, samples_of
from robustgen.experiments.xiao2022.recipes import RECIPES, XIAO_2022
from robustgen.files import read_json, write_json
from robustgen.generative import GenerativeModel
from robustgen.locks import alone

__all__ = ["EXPERIMENT", "mode_measures", "stacked"]

TEST_IMAGES = "test"  # the row of images that no model made
MODES = 1000
_BUDGETS = {
    "smoke": Budget(300, 100, "digits"),
    "cpu": Budget(20_000, 10_000, "mnist"),
    "full": Budget(60_000, 26_000, "mnist"),
}
_GANS = ("dcgan", "wgan-gp")
_LONGER = 3  # a VAE of three digits codes two of them as one after the epochs that one digit takes
_RECIPES = {
    scale: made
    | {"tilt-base": replace(made["tilt-base"], epochs=_LONGER * made["tilt-base"].epochs)}
    | {gan: MNIST[scale][gan] for gan in _GANS}
    for scale, made in RECIPES.items()
}
_TITLES = {
    "tilt-base": "VAE",
    "tilted": "VAE, tilted",
    "tilted-adjusted": "VAE, tilted, chains adjusted and kept",
    "dcgan": "DCGAN",
    "wgan-gp": "WGAN-GP",
    "ddgan-4": "DDGAN of 4 steps",
    "ddpm": "DDPM, 100 of its steps",
}
_PUBLISHED = {"tilted": {"modes": 1000.0, "kl": 0.087}, "ddgan-4": {"modes": 1000.0, "kl": 0.071}}
_QUOTED = {  # modes and KL
    "VEEGAN": (761.8, 2.173),
    "PacGAN": (992.0, 0.277),
    "PresGAN": (999.6, 0.115),
    "InclusiveGAN": (997.0, 0.200),
    "StyleGAN2": (940.0, 0.424),
    "Adversarial DSM": (1000.0, 1.49),
}


class _Table(Experiment):
    name = "xiao-2022/stacked-mnist"
    title = "modes of StackedMNIST that samples hit (Tables 4.7 and 6.3)"
    question = "Which models make all of a thousand kinds of images, and as often as they should?"
    finding = (
        "Modes of 1000, and KL of their frequencies in nats: VAE {tilt-base|modes}, {tilt-base|kl}; tilted "
        "{tilted|modes}, {tilted|kl}; DCGAN {dcgan|modes}, {dcgan|kl}; WGAN-GP {wgan-gp|modes}, {wgan-gp|kl}; DDGAN of "
        "4 steps {ddgan-4|modes}, {ddgan-4|kl}; as many test images {test|modes}, {test|kl}."
    )
    source = f"{XIAO_2022}, Tables 4.7 and 6.3"
    metric = "each column has its own unit"
    n_classes = 0  # log C of a classifier says nothing of these losses
    seeds = 1
    digits = 3
    rows = (
        *(Row(key=key, title=title, published=_PUBLISHED.get(key, {})) for key, title in _TITLES.items()),
        Row(key=TEST_IMAGES, title="test images", note="what perfect samples would get"),
        *(
            Row(
                key=name.lower().replace(" ", "-"),
                title=name,
                published={"modes": modes, "kl": kl},
                missing="quoted by the source from its paper; not a model of this library",
            )
            for name, (modes, kl) in _QUOTED.items()
        ),
    )
    columns = (
        Column("modes", "modes of 1000"),
        Column("kl", "KL of the modes, nats"),
        Column("sure", "samples of three clear digits, %"),
    )
    notes = (
        "Three digits of MNIST, drawn independently, are the channels of an image: 1000 modes. A sample's mode is what "
        "a small classifier of digits, the same for all rows, takes its channels for. Clear is a digit that it gives "
        "at least one half; an image that shows no digit has a mode too.",
        "KL is from the frequencies of the modes to even ones. Of n perfect samples it is about 999 / 2n, and a little "
        "more as some digits are rarer than others and some are misread: compare with the row of test images, and only "
        "numbers of equal n.",
        "Models are trained as on single digits elsewhere, the VAE three times as long: after less it codes two of the "
        "channels as one, which costs half of the modes. How energies and losses went is in the cells: where "
        "energies of a tilt have parted (overlap 0), its samples are hardly more than its base's.",
    )

    def describe(self, scale: str) -> str:
        return _BUDGETS[scale].describe()

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        return {"number": cell.column} | self._samples(cell, scale)

    def _samples(self, cell: Cell, scale: str) -> dict[str, Any]:
        recipes = {} if cell.row == TEST_IMAGES else described(_RECIPES[scale], (cell.row,))
        return asdict(_BUDGETS[scale]) | {"model": cell.row, "classifier": FEATURES, "recipes": recipes}

    def measure(self, cell: Cell, scale: str, cache: TrainingCache) -> Measurement:
        b = _BUDGETS[scale]
        path = cache.folder({"modes of": cell.row, "seed": cell.seed} | self._samples(cell, scale)) / "modes.json"
        with alone(path.parent, wait=True):
            if not path.exists():
                images, history = self._images(cell, scale, cache)
                numbers = mode_measures(images, feature_network(b.data, scale, cache))
                write_json(path, {"numbers": numbers, "history": history})
        kept = read_json(path, {"numbers": dict, "history": dict})
        return Measurement(
            value=kept["numbers"][cell.column],
            numbers=counted(kept["numbers"], b.n),
            history=kept["history"] if cell.column == "modes" else {},
        )

    def _images(self, cell: Cell, scale: str, cache: TrainingCache) -> tuple[Tensor, dict[str, list[float]]]:
        b = _BUDGETS[scale]
        if cell.row == TEST_IMAGES:
            return stacked(cache.images(b.data, "test"), b.n, derive_seed(cell.seed, 5)).images(), {}
        train = stacked(cache.images(b.data, "train"), b.n_train, derive_seed(cell.seed, 4))
        trained = TrainedModels(cache, _RECIPES[scale], train, cell.seed)
        model = trained.model(cell.row)
        assert isinstance(model, GenerativeModel)
        return samples_of(model.eval(), b.n, cell.seed), trained.history


def stacked(digits: ArrayDataset, n: int, seed: int) -> ArrayDataset:
    """n images (3, H, W) whose channels are digits (1, H, W), each drawn from all of them.

    The label is the mode: the three digits, read as a number. Every image is a function of its place and the seed.

    Metz, Poole, Pfau and Sohl-Dickstein, "Unrolled Generative Adversarial Networks", 2017.

    >>> from robustgen import data
    >>> stacked(data.digits("test"), 5, seed=0)
    ArrayDataset('stacked digits/test', 5 x (3, 8, 8) uint8, 1000 classes)
    """
    rows = integers(seed, torch.arange(n), (3,), len(digits))  # (n, 3)
    modes = digits.labels()[rows] @ torch.tensor([100, 10, 1])
    classes = tuple(f"{mode:03d}" for mode in range(MODES))
    return ArrayDataset(digits.x[rows].flatten(1, 2), modes, classes=classes, name=f"stacked {digits.name}")


def mode_measures(images: Tensor, classifier: FeatureNetwork) -> dict[str, float]:
    """Of images (N, 3, H, W): modes that are hit, the KL of their frequencies to even ones, and the share, in percent,
    of those in which the classifier gives every channel's digit at least one half."""
    answers = classifier.of(ArrayDataset(images.flatten(0, 1)[:, None], name="channels"))[1]
    assert answers is not None
    of_digits = answers.cpu().double().log_softmax(1).unflatten(0, (-1, 3))  # (N, 3, 10)
    first, second, third = of_digits.unbind(1)
    of_modes = (first[:, :, None, None] + second[:, None, :, None] + third[:, None, None, :]).flatten(1)  # (N, 1000)
    even = torch.eye(MODES)  # an image of each mode
    found = class_measures(of_modes, even, Weights.once(of_modes, even))
    sure = (of_digits.exp().amax(2) >= 0.5).all(1)
    return {
        "modes": found["modes"].item(),
        "kl": found["mode_kl"].item(),
        "sure": 100 * sure.double().mean().item(),
    }


EXPERIMENT = _Table()
