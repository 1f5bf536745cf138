"""How far a likelihood is from those that the model's own data get.

Nalisnick, Matsukawa, Teh and Lakshminarayanan, "Detecting Out-of-Distribution Inputs to Deep Generative Models Using
Typicality", 2019, equation 4, for batches of one.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustgen.detectors.base import Detector
from robustgen.detectors.likelihood import check_likelihood

if TYPE_CHECKING:
    from robustgen.generative import GenerativeModel

__all__ = ["Typicality"]


class Typicality(Detector):
    """score(x) = |-log p(x) - H|, in nats, with H the mean of -log p over the data of ``fit``: too likely counts too.

    A model's training data are likelier than others: ``fit`` it on data that are new to the model.

    Args:
        model: a :class:`~robustgen.generative.GenerativeModel` with a likelihood.
        batch_size: inputs scored at once.

    Raises:
        TypeError: a model without likelihood.

    >>> import torch
    >>> from robustgen.generative import VAE
    >>> vae, x = VAE((1, 8, 8), architecture="mlp", width=8).eval(), torch.eye(8).expand(4, 1, 8, 8)
    >>> Typicality(vae).fit(x).score(x).allclose(torch.zeros(4), atol=1e-3)  # as likely as what it was fitted on
    True
    """

    fit_on_fresh = True

    def __init__(self, model: "GenerativeModel", *, batch_size: int = 256) -> None:
        super().__init__(model, batch_size)
        check_likelihood(model, "Typicality")

    def _fit(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> dict[str, Tensor]:
        return {"entropy": -torch.cat([self.model.log_prob(x).double() for x, _ in batches]).mean()}

    def _score(self, x: Tensor) -> Tensor:
        log_prob = self.model.log_prob(x)
        return (log_prob + self.statistics["entropy"].to(log_prob)).abs()
