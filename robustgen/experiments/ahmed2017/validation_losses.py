"""Every generative model trained on all digits: the loss of fresh images, epoch by epoch."""

from typing import Any

from robustgen.experiments.ahmed2017.heldout_table import AHMED_2017
from robustgen.experiments.ahmed2017.likelihoods import BUDGETS, trained_on
from robustgen.experiments.ahmed2017.recipes import MNIST
from robustgen.experiments.ahmed2017.trained_models import described
from robustgen.experiments.experiment import Cell, Column, Experiment, Measurement, Row
from robustgen.experiments.training_cache import TrainingCache

__all__ = ["EXPERIMENT"]

_BITS = "in nats, of 8-bit pixels: not to be compared with those of binary ones"
_ROWS = {
    "vae": ("convolutional VAE", ""),
    "iaf-vae": ("IAF-VAE", ""),
    "pixelvae": ("PixelVAE", ""),
    "pixelvae-bias": ("PixelVAE without upsampling", ""),
    "hierarchical-pixelvae": ("hierarchical PixelVAE", ""),
    "pixelcnn-plain": ("PixelCNN", ""),
    "pixelcnn": ("Gated PixelCNN", ""),
    "pixelrnn": ("PixelRNN, Row LSTM", ""),
    "pixelcnn++": ("PixelCNN++", _BITS),
    "dcgan": ("DCGAN", "the discriminator's; both players' losses move as they please"),
    "lsgan": ("LSGAN", "the discriminator's, squared"),
    "wgan-gp": ("WGAN-GP", "the critic's: an estimate of minus the Wasserstein distance"),
    "ebm": ("EBM, Langevin", "the difference of two energies, near 0 throughout"),
    "ebm-dsm": ("EBM, score matching", "of denoising score matching, without its constant"),
}


class _Table(Experiment):
    name = "ahmed-2017/trainings"
    title = "validation losses in training"
    question = "Did the generative models finish their training?"
    finding = (
        "Validation loss in nats, first and last epoch: VAE {vae|first}, {vae|last}; Gated PixelCNN "
        "{pixelcnn|first}, {pixelcnn|last}; PixelVAE {pixelvae|first}, {pixelvae|last}."
    )
    source = f"Not in {AHMED_2017}"
    metric = "loss of the validation images after the epoch; -ELBO or -log p in nats where nothing else is said"
    rows = tuple(Row(key=key, title=title, note=note) for key, (title, note) in _ROWS.items())
    columns = (Column("first", "first epoch"), Column("last", "last epoch"))
    seeds = 1
    notes = (
        "A tenth of the training images is for validation. The cells' files hold all epochs, of both losses and of "
        "their parts.",
    )

    def describe(self, scale: str) -> str:
        return BUDGETS[scale].describe()

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        b = BUDGETS[scale]
        return {"data": b.data, "n_train": b.n_train, "recipes": described(MNIST[scale], (cell.row,))}

    def measure(self, cell: Cell, scale: str, cache: TrainingCache) -> Measurement:
        trained, _ = trained_on(BUDGETS[scale], MNIST[scale], cache, cell.seed)
        trained.model(cell.row)
        losses = trained.history[f"{cell.row}: val_loss"]
        return Measurement(value=losses[0 if cell.column == "first" else -1], numbers={}, history=trained.history)


EXPERIMENT = _Table()
