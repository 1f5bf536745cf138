"""Table 2.1: test likelihoods of binarised MNIST."""

from typing import Any

from robustgen.experiments.ahmed2017.heldout_table import AHMED_2017
from robustgen.experiments.ahmed2017.likelihoods import BUDGETS, measured, trained_on
from robustgen.experiments.ahmed2017.recipes import MNIST
from robustgen.experiments.ahmed2017.trained_models import described
from robustgen.experiments.experiment import Cell, Column, Experiment, Measurement, Row
from robustgen.experiments.training_cache import TrainingCache

__all__ = ["EXPERIMENT"]

#: K of the importance-weighted estimate and test images it is measured on; the source takes 5,000 samples.
IMPORTANCE = {"smoke": (5, 50), "cpu": (100, 1_000), "full": (5_000, 10_000)}
_EXACT, _LATENT = ("nll",), ("nll", "bound")
_ELSEWHERE = "named by the source for comparison; not a model of this library"


class _Table(Experiment):
    name = "ahmed-2017/table-2.1"
    title = "likelihood of binarised MNIST"
    question = "How likely are test images of MNIST under each generative model?"
    finding = (
        "Nats, lower is better: VAE, a bound, {vae|bound}; IAF-VAE {iaf-vae|nll}; PixelCNN {pixelcnn-plain|nll}; "
        "Gated PixelCNN {pixelcnn|nll}; Gated PixelVAE {pixelvae|nll}."
    )
    source = f"{AHMED_2017}, Table 2.1"
    metric = "-log p(x) of test images in nats: exact or importance-weighted, and the bound (-ELBO)"
    rows = (
        Row(key="vae", title="convolutional VAE", published={"bound": 87.41}, columns=_LATENT),
        Row(key="iaf-vae", title="IAF-VAE", published={"nll": 79.88}, columns=_LATENT),
        Row(key="pixelcnn-plain", title="PixelCNN", published={"nll": 81.30}, columns=_EXACT),
        Row(key="pixelrnn", title="PixelRNN (here: Row LSTM)", published={"nll": 79.20}, columns=_EXACT),
        Row(key="pixelcnn", title="Gated PixelCNN", published={"nll": 80.10}, columns=_EXACT),
        Row(
            key="pixelvae",
            title="Gated PixelVAE",
            published={"nll": 79.48, "bound": 80.02},
            columns=_LATENT,
            note="without gates the source has a bound of 80.64",
        ),
        Row(
            key="pixelvae-bias",
            title="Gated PixelVAE without upsampling",
            published={"nll": 78.96, "bound": 79.58},
            columns=_LATENT,
        ),
        Row(key="draw", title="DRAW", published={"bound": 80.97}, missing=_ELSEWHERE),
        Row(key="discrete-vae", title="Discrete VAE", published={"nll": 81.01}, missing=_ELSEWHERE),
        Row(key="vlae", title="VLAE", published={"nll": 79.03}, missing=_ELSEWHERE),
    )
    columns = (Column("nll", "exact or importance-weighted"), Column("bound", "bound"))
    seeds = 1
    notes = (
        "Binarization: ours is stochastic, a pixel of brightness x is 1 with probability x, drawn anew in each "
        "training step and once for each test image. The source has the fixed draw of Salakhutdinov and Murray, of the "
        "same distribution; its models saw a single draw in training.",
        "Importance-weighted estimates at scale `cpu` are of 100 samples a test image, on 1,000 test images; the "
        "source has 5,000 samples.",
    )

    def describe(self, scale: str) -> str:
        k, n = IMPORTANCE[scale]
        return f"{BUDGETS[scale].describe()}; {k} importance samples on {n} test images"

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        b = BUDGETS[scale]
        recipe = described(MNIST[scale], (cell.row,))
        importance = IMPORTANCE[scale] if self._weighted(cell) else None
        return {"data": b.data, "n_train": b.n_train, "n_test": b.n_test, "importance": importance, "recipes": recipe}

    def _weighted(self, cell: Cell) -> bool:
        return cell.column == "nll" and self.row(cell.row).columns == _LATENT

    def measure(self, cell: Cell, scale: str, cache: TrainingCache) -> Measurement:
        trained, test = trained_on(BUDGETS[scale], MNIST[scale], cache, cell.seed)
        model = trained.model(cell.row)
        k, n = IMPORTANCE[scale] if self._weighted(cell) else (0, len(test))
        value, numbers = measured(model, cache.put(test)[0][:n], k)
        return Measurement(value=value, numbers=numbers, history=trained.history)


EXPERIMENT = _Table()
