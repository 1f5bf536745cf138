"""Figures 3.6 and 3.7: the weight of the reconstruction, and what a flow does to codes that it may move."""

from typing import Any

from robustgen.experiments.experiment import Cell, Column, Experiment, Measurement, Row
from robustgen.experiments.training_cache import TrainingCache
from robustgen.experiments.xiao2022.quality import BUDGETS, measured_samples, settings_of
from robustgen.experiments.xiao2022.recipes import BETAS, XIAO_2022, weighed

__all__ = ["EXPERIMENT"]

_VALUES = {
    "frechet": "Frechet distance",
    "error": "squared error of an image",
    "variance": "variance of q(z|x)",
    "nll": "-log p(E(x)), nats",
    "spread": "standard deviation of codes",
}
_OF_VAES, _OF_AUTOENCODERS = ("frechet", "error", "variance", "spread"), ("frechet", "error", "nll", "spread")
_KINDS = {
    "vae": ("VAE, prior N(0, I)", _OF_VAES),
    "flow-prior": ("VAE, flow prior", _OF_VAES),
    "regularised": ("GLF without stopped gradient", _OF_AUTOENCODERS),
}


class _Figure(Experiment):
    name = "xiao-2022/figure-3.6"
    n_classes = 0  # log C of a classifier says nothing of these losses
    title = "the weight beta of the reconstruction (Figures 3.6 and 3.7)"
    question = "Does a VAE with a flow prior come near GLF as beta grows, and does GLF need its stopped gradient?"
    finding = (
        "VAE with a flow prior at beta 1, 10, 100, 400: Frechet distance {flow-prior-beta1|frechet}, "
        "{flow-prior-beta10|frechet}, {flow-prior-beta100|frechet}, {flow-prior-beta400|frechet}; GLF "
        "{glf-studied|frechet}. Standard deviation of GLF's codes {glf-studied|spread}, without the stopped gradient "
        "at beta 1 and 400 {regularised-beta1|spread}, {regularised-beta400|spread}."
    )
    source = f"{XIAO_2022}, Figures 3.6 and 3.7 (on CIFAR-10; no numbers printed)"
    metric = "Frechet distance in the features of a small classifier of ours, and how test images are coded"
    rows = (
        *(
            Row(key=weighed(kind, beta), title=f"{title}, beta {beta}", columns=columns)
            for kind, (title, columns) in _KINDS.items()
            for beta in BETAS
        ),
        Row(key="glf-studied", title="GLF", columns=_OF_AUTOENCODERS),
    )
    columns = tuple(Column(key, title) for key, title in _VALUES.items())
    notes = (
        "At scale `cpu` on MNIST with fully connected layers, where the source has convolutions on CIFAR-10.",
        "The source: the Frechet distance falls with beta and comes near GLF's, on a plain VAE it rises; without the "
        "stopped gradient beta 1 and 10 diverge and larger ones oscillate.",
        "A flow may raise log p(z) without end by shrinking codes, which costs a decoder nothing: the standard "
        "deviation of codes shows it.",
        "At beta 1 the fully connected VAEs hardly use their codes yet (KL 1.5 nats, squared error 47 to 48, and still "
        "falling after the last epoch): their samples are near the mean image.",
    )

    def describe(self, scale: str) -> str:
        return BUDGETS[scale].describe()

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        return settings_of(cell.row, BUDGETS[scale].data or "mnist", scale)

    def measure(self, cell: Cell, scale: str, cache: TrainingCache) -> Measurement:
        numbers, history = measured_samples(cell.row, BUDGETS[scale].data or "mnist", scale, cell.seed, cache)
        value = numbers[_VALUES[cell.column]]["value"]
        return Measurement(value=value, numbers=numbers, history=history if cell.column == "frechet" else {})


EXPERIMENT = _Figure()
