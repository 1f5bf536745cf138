"""Table 2.2: likelihoods of ImageNet at 64x64, which nothing here measures."""

from typing import Any

from robustgen.experiments.ahmed2017.heldout_table import AHMED_2017
from robustgen.experiments.experiment import Cell, Column, Experiment, Measurement, Row
from robustgen.experiments.training_cache import TrainingCache

__all__ = ["EXPERIMENT"]

_IMAGENET = "needs ImageNet at 64x64 and weeks of accelerators; another data set would be another table"
_ELSEWHERE = "named by the source for comparison; not a model of this library"


class _Table(Experiment):
    name = "ahmed-2017/table-2.2"
    title = "likelihood of ImageNet at 64x64"
    question = "How likely are images of ImageNet at 64x64 under each generative model?"
    finding = "Bits a dimension: Gated PixelCNN {pixelcnn|val}, hierarchical PixelVAE {pixelvae|val}."
    source = f"{AHMED_2017}, Table 2.2"
    metric = "bits a dimension (the source prints no unit), validation and training"
    rows = (
        Row(key="draw", title="Convolutional DRAW", published={"val": 4.10, "train": 4.04}, missing=_ELSEWHERE),
        Row(key="real-nvp", title="Real NVP", published={"val": 4.01, "train": 3.93}, missing=_ELSEWHERE),
        Row(key="pixelrnn", title="PixelRNN", published={"val": 3.63, "train": 3.57}, missing=_IMAGENET),
        Row(key="pixelcnn", title="Gated PixelCNN", published={"val": 3.57, "train": 3.48}, missing=_IMAGENET),
        Row(key="pixelvae", title="Hierarchical PixelVAE", published={"val": 3.62, "train": 3.55}, missing=_IMAGENET),
    )
    columns = (Column("val", "validation"), Column("train", "training"))
    seeds = 1

    def settings(self, cell: Cell, scale: str) -> dict[str, Any]:
        raise NotImplementedError(_IMAGENET)

    def measure(self, cell: Cell, scale: str, cache: TrainingCache) -> Measurement:
        raise NotImplementedError(_IMAGENET)


EXPERIMENT = _Table()
