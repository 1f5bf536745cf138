"""The free energy of a classifier's logits.

Liu, Wang, Owens and Li, "Energy-based Out-of-distribution Detection", NeurIPS 2020, equation 4.
"""

from torch import Tensor, nn

from robustgen.checks import check_numbers, check_positive
from robustgen.detectors.base import Detector, check_network
from robustgen.inputs import Inputs, call_model
from robustgen.lipschitz import in_norm, lipschitz_bound
from robustgen.model import logits_of

__all__ = ["Energy"]


class Energy(Detector):
    """score(x) = -T log sum over classes of exp(logit / T). Nothing is learned in ``fit``.

    Args:
        model: a classifier.
        temperature: T > 0.
        batch_size: inputs scored at once.

    Raises:
        TypeError: a generative model.
        ValueError: a temperature that is not a finite number > 0.

    >>> import torch
    >>> Energy(nn.Identity()).fit(torch.zeros(1, 2)).score(torch.zeros(1, 2))  # -log 2
    tensor([-0.6931])
    """

    takes_tokens = True

    def __init__(self, model: nn.Module, temperature: float = 1.0, *, batch_size: int = 256) -> None:
        super().__init__(model, batch_size)
        check_network(model, "Energy")
        check_numbers(temperature=temperature)
        check_positive(temperature=temperature)
        self.temperature = temperature

    def _score(self, x: Inputs) -> Tensor:
        return -self.temperature * (logits_of(call_model(self.model, x)) / self.temperature).logsumexp(1)

    def _lipschitz(self, norm: str, dimensions: int) -> float | None:
        return in_norm(lipschitz_bound(self.model), norm, dimensions)  # the gradient in the logits sums to one
