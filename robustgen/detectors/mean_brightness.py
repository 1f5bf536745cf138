"""The mean pixel: a score that knows nothing of the content, for every table to show beside those that claim to."""

from torch import Tensor, nn

from robustgen.detectors.base import Detector, check_network
from robustgen.lipschitz import lipschitz_bound

__all__ = ["MeanBrightness"]


class MeanBrightness(Detector):
    """score(x) = mean of f(x) over its pixels: brighter is more anomalous.

    Nothing is learned. That a likelihood may rank images as this does: Nalisnick et al., "Do Deep Generative Models
    Know What They Don't Know?", ICLR 2019, section 5.

    Args:
        model: f, what the inputs go through first; the identity leaves them as they are.
        batch_size: inputs scored at once.

    Raises:
        TypeError: a generative model.

    >>> import torch
    >>> MeanBrightness().fit(torch.zeros(2, 1, 2, 2)).score(torch.ones(1, 1, 2, 2))
    tensor([1.])
    """

    def __init__(self, model: nn.Module = nn.Identity(), *, batch_size: int = 256) -> None:
        super().__init__(model, batch_size)
        check_network(model, "MeanBrightness")

    def _score(self, x: Tensor) -> Tensor:
        return self.model(x).flatten(1).mean(1)

    def _lipschitz(self, norm: str, dimensions: int) -> float | None:
        if type(self.model) is not nn.Identity or lipschitz_bound(self.model) is None:
            return None
        return {"L1": 1 / dimensions, "L2": dimensions**-0.5, "Linf": 1.0}[norm]
