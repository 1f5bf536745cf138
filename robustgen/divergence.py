"""The divergence between two predictions."""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["kl_divergence"]


def kl_divergence(logits: Tensor, other: Tensor) -> Tensor:
    """KL(p || q) in nats of the softmaxes p of ``logits`` (N, C) and q of ``other`` (N, C), (N,); >= 0 up to rounding.

    >>> import torch
    >>> kl_divergence(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0]]).log())  # q = (1, 0)
    tensor([inf])
    >>> kl_divergence(torch.tensor([[1.0, 3.0]]).log(), torch.tensor([[1.0, 1.0]]).log())  # log 2 less the entropy
    tensor([0.1308])
    """
    p, q = logits.log_softmax(1), other.log_softmax(1)
    return F.kl_div(q, p, reduction="none", log_target=True).sum(1)
