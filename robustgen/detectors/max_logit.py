"""The largest logit of a classifier.

Hendrycks, Basart, Mazeika et al., "Scaling Out-of-Distribution Detection for Real-World Settings", ICML 2022.
"""

from torch import Tensor, nn

from robustgen.detectors.base import Detector, check_network
from robustgen.inputs import Inputs, call_model
from robustgen.model import logits_of

__all__ = ["MaxLogit"]


class MaxLogit(Detector):
    """score(x) = minus the largest logit. Nothing is learned in ``fit``.

    No logit moves further than all of them together: alarms can be certified where the network has a bound
    (:func:`robustgen.lipschitz.lipschitz_bound`), as a classifier from :mod:`robustgen.lipschitz` has.

    Args:
        model: a classifier.
        batch_size: inputs scored at once.

    Raises:
        TypeError: a generative model.

    >>> import torch
    >>> MaxLogit(nn.Identity()).fit(torch.zeros(1, 2)).score(torch.tensor([[1.0, 3.0]]))
    tensor([-3.])
    """

    takes_tokens = True

    def __init__(self, model: nn.Module, *, batch_size: int = 256) -> None:
        super().__init__(model, batch_size)
        check_network(model, "MaxLogit")

    def _score(self, x: Inputs) -> Tensor:
        return -logits_of(call_model(self.model, x)).amax(1)

    def _lipschitz(self, norm: str, dimensions: int) -> float | None:
        return self._bound_of_model(norm, dimensions)
