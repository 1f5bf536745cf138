"""The confidence of a classifier.

Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural Networks", ICLR
2017, section 3.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustgen.detectors.base import Detector, check_network
from robustgen.inputs import Inputs, call_model
from robustgen.model import logits_of

__all__ = ["MaxSoftmax"]


class MaxSoftmax(Detector):
    """score(x) = -log of the largest class probability, in nats, >= 0. Nothing is learned in ``fit``.

    The logarithm leaves the order as it is and keeps apart what would round to a probability of 1.

    Args:
        model: a classifier, with logits.
        batch_size: inputs scored at once.

    Raises:
        TypeError: a generative model.

    >>> MaxSoftmax(nn.Identity()).fit(torch.zeros(1, 2)).score(torch.zeros(1, 2))  # log 2
    tensor([0.6931])
    """

    takes_tokens = True

    def __init__(self, model: nn.Module, *, batch_size: int = 256) -> None:
        super().__init__(model, batch_size)
        check_network(model, "MaxSoftmax")

    def _score(self, x: Inputs) -> Tensor:
        logits = logits_of(call_model(self.model, x))
        top, chosen = logits.max(1, keepdim=True)
        # -log softmax = log(1 + sum over the others of exp(logit - top)), which a plain logsumexp rounds to 0
        return F.softplus((logits - top).scatter(1, chosen, -torch.inf).logsumexp(1))
