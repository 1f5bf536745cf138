"""Figure 6.9: 25 Gaussians by a denoising diffusion GAN of one step and of four, with and without its latent vector."""

import math
from typing import Any

import torch

from robustgen.counter_rng import derive_seed
from robustgen.experiments.experiment import Cell, Column, Experiment, Measurement, Row, counted, epochs_of
from robustgen.experiments.training_cache import TrainingCache
from robustgen.experiments.xiao2022.recipes import XIAO_2022
from robustgen.experiments.xiao2022.tilted_toys import SHAPE, as_images, grid_of_25, nearest_modes
from robustgen.generative import DDGAN

__all__ = ["EXPERIMENT"]

HALF = 3.0  # of the side of the square that images in [0, 1] fill
SCALES: dict[str, dict[str, Any]] = {
    "smoke": {"n_train": 200, "n_samples": 100, "width": 8, "epochs": 2, "batch_size": 100},
    "cpu": {"n_train": 51_200, "n_samples": 10_000, "width": 128, "epochs": 120, "batch_size": 512},
    "full": {"n_train": 512_000, "n_samples": 100_000, "width": 512, "epochs": 100, "batch_size": 512},
}
_EMA = 0.999
# States are the plane itself, on which a mode is 0.084 wide: the source's gamma would flatten all of them.
_MODEL: dict[str, Any] = {"architecture": "mlp", "levels": 3, "scale": HALF, "r1": 1e-3}


class _Figure(Experiment):
    name = "xiao-2022/ddgan-toys"
    title = "25 Gaussians by a denoising diffusion GAN (Figure 6.9)"
    question = "Do several steps and a latent vector keep a GAN from losing modes?"
    finding = (
        "Of 25 modes, and of samples near one in percent: four steps with z {4-z|modes} and {4-z|near}, without "
        "{4|modes} and {4|near}; one step with z {1-z|modes} and {1-z|near}, without {1|modes} and {1|near}."
    )
    source = f"{XIAO_2022}, section 6.4.3 and Figure 6.9"
    metric = "each column has its own unit"
    n_classes = 0  # log C of a classifier says nothing of these losses
    rows = (
        Row(key="4-z", title="four steps, z", data={"steps": 4, "latent_dim": 2}),
        Row(key="4", title="four steps, no z", data={"steps": 4, "latent_dim": 0}),
        Row(key="1-z", title="one step, z", data={"steps": 1, "latent_dim": 2}),
        Row(key="1", title="one step, no z", data={"steps": 1, "latent_dim": 0}),
    )
    columns = (
        Column("modes", "modes of 25"),
        Column("near", "samples within 3 sd, %"),
        Column("kl", "KL of the modes, nats"),
    )
    notes = (
        "The source shows pictures: its model covers all modes, a vanilla GAN does not. It trains 512 units a layer "
        "for 50,000 steps of 512 points.",
        "A mode counts where one sample lies within three standard deviations; the last column is from frequencies of "
        "the 25 to even ones.",
    )

    def describe(self, scale: str) -> str:
        s = SCALES[scale]
        steps = s["epochs"] * -(-s["n_train"] // s["batch_size"])
        return (
            f"{_MODEL['levels']} hidden layers of {s['width']} units, {steps} updates, every second of them of the "
            f"generator, batches of {s['batch_size']}; {s['n_samples']} samples"
        )

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        return {"number": cell.column, "n_samples": SCALES[scale]["n_samples"], "training": self._training(cell, scale)}

    def _training(self, cell: Cell, scale: str) -> dict[str, Any]:
        s = SCALES[scale]
        model = _MODEL | self.row(cell.row).data | {"width": s["width"]}
        return {"toy": "grid", "half": HALF, "model": model, "ema": _EMA} | {
            key: s[key] for key in ("n_train", "epochs", "batch_size")
        }

    def measure(self, cell: Cell, scale: str, cache: TrainingCache) -> Measurement:
        s, training = SCALES[scale], self._training(cell, scale)
        train = as_images(grid_of_25(s["n_train"], derive_seed(cell.seed, 0)), HALF)
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(cell.seed, 1))
            model = DDGAN(SHAPE, **training["model"])
        history, _ = cache.fit_generative(
            training | {"seed": cell.seed},
            model,
            train,
            epochs=s["epochs"],
            batch_size=s["batch_size"],
            seed=cell.seed,
            ema=_EMA,
        )
        x = model.sample(s["n_samples"], torch.Generator(model.device).manual_seed(derive_seed(cell.seed, 2)))
        centre, near = nearest_modes(x.cpu(), HALF)
        shares = centre[near].unique(dim=0, return_counts=True)[1] / near.sum()
        numbers = {
            "modes": float(len(shares)),
            "near": 100 * near.float().mean().item(),
            "kl": (shares * (25 * shares).log()).sum().item() if len(shares) else math.inf,
        }
        return Measurement(
            value=numbers[cell.column], numbers=counted(numbers, s["n_samples"]), history=epochs_of(history)
        )


EXPERIMENT = _Figure()
