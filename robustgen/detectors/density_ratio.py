"""The ratio of a model's density to that of the noise that it was trained against.

Gutmann and Hyvarinen, "Noise-contrastive estimation: A new estimation principle for unnormalized statistical models",
AISTATS 2010, equation 4: the logit by which data and noise are told apart. As a score of what is no data: Xiao,
"Designing Deep Generative Models with Symbiotic Composition", 2022, section 1.2.
"""

from typing import TYPE_CHECKING

from torch import Tensor

from robustgen.detectors.base import Detector

if TYPE_CHECKING:
    from robustgen.generative import GenerativeModel

__all__ = ["DensityRatio"]


class DensityRatio(Detector):
    """score(x) = -log p(x) / q(x), in nats. Nothing is learned in ``fit``.

    What is common to data and noise, simple images above all where the noise is a flow, cancels.

    Args:
        model: one with a ``log_ratio``, such as :class:`~robustgen.generative.NCE`.
        batch_size: inputs scored at once.

    Raises:
        TypeError: a model without ratio.

    >>> import torch
    >>> from robustgen.generative import NCE
    >>> nce, x = NCE((1, 8, 8), width=4).eval(), torch.rand(4, 1, 8, 8)
    >>> bool((DensityRatio(nce).fit(x).score(x) == -nce.log_ratio(x)).all())
    True
    """

    def __init__(self, model: "GenerativeModel", *, batch_size: int = 256) -> None:
        super().__init__(model, batch_size)
        if not callable(getattr(model, "log_ratio", None)):
            raise TypeError(f"DensityRatio needs a ratio of densities, {type(model).__name__} has no log_ratio")

    def _score(self, x: Tensor) -> Tensor:
        return -self.model.log_ratio(x)
