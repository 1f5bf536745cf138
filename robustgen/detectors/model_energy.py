"""The energy of a generative model as a measure of novelty.

Du and Mordatch, "Implicit Generation and Modeling with Energy-Based Models", NeurIPS 2019, section 4.4: low energy is
likely; with ``Likelihood`` of a tilted or noise-free model beside it, Xiao, "Designing Deep Generative Models with
Symbiotic Composition", 2022, section 4.4.3.
"""

from typing import TYPE_CHECKING

from torch import Tensor

from robustgen.detectors.base import Detector

if TYPE_CHECKING:
    from robustgen.generative import GenerativeModel

__all__ = ["ModelEnergy"]


class ModelEnergy(Detector):
    """score(x) = E(x), the model's ``energy`` alone. Nothing is learned in ``fit``.

    Where the energy is all of the model, as of ``EnergyModel``, :class:`Likelihood` gives the same; of a model with a
    density besides, this is the other score.

    Args:
        model: a :class:`~robustgen.generative.GenerativeModel` with an ``energy``.
        batch_size: inputs scored at once.

    Raises:
        TypeError: a model without energy.
        ValueError: in ``fit`` and ``score``, images that the model does not take.

    >>> import torch
    >>> from robustgen.generative import EnergyModel
    >>> model, x = EnergyModel((1, 8, 8), width=4, buffer_size=8).eval(), torch.eye(8).expand(4, 1, 8, 8)
    >>> bool((ModelEnergy(model).fit(x).score(x) == model.energy(x)).all())
    True
    """

    def __init__(self, model: "GenerativeModel", *, batch_size: int = 256) -> None:
        super().__init__(model, batch_size)
        if not callable(getattr(model, "energy", None)):
            hint = " (of the logits of a classifier: use Energy)" if not hasattr(model, "log_prob_kind") else ""
            raise TypeError(f"ModelEnergy needs a model with an energy, {type(model).__name__} has none{hint}")

    def _score(self, x: Tensor) -> Tensor:
        energy: Tensor = self.model.energy(self.model.check(x))
        return energy
