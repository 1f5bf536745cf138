"""A classifier and an energy-based model in one network: p(x, y) = exp(f(x)[y]) / Z.

Grathwohl, Wang, Jacobsen, Duvenaud, Norouzi and Swersky, "Your Classifier is Secretly an Energy Based Model and You
Should Treat it Like One", ICLR 2020, equations 4 (the joint density), 5 and 6 (the density of images and its energy), 8
(what is trained) and algorithm 1.
"""

from torch import Tensor
from torch.nn import functional as F

from robustgen.checks import check_integers, check_labels
from robustgen.generative.energy.energy_model import EnergyModel
from robustgen.generative.energy.network import EnergyNetwork
from robustgen.training import Batch

__all__ = ["JEM"]


class JEM(EnergyModel):
    """p(x, y) = exp(f(x)[y]) / Z: p(y | x) is the softmax of the logits f(x), and log p(x) = logsumexp f(x) - log Z.

    Both are trained: log p(x) by the persistent chains of :class:`EnergyModel`, log p(y | x) by the cross-entropy of
    labels. Images without labels teach the first alone. Chains run at a low ``temperature``, as the paper's do: a step
    is step_size / temperature = 0.5 times the gradient of logsumexp f (1 in the paper), and noise of 0.01. ``log_prob``
    is logsumexp f(x) / temperature, without log Z; what :class:`EnergyModel` says of levels and nats holds here.

    Energies of data and chains part easily, as labels make f steep: ``sigma`` is five times that of the paper, without
    which they did on MNIST.

    Args:
        shape: (C, H, W).
        classes: labels are 0 ... ``classes`` - 1.
        width: channels at image resolution, twice as many below.
        sigma, temperature, step_size, steps, sample_steps, buffer_size, reinitialised, regularisation: of the energy,
            see :class:`EnergyModel`.

    Attributes:
        overlap: as of :class:`EnergyModel`.

    Raises:
        TypeError, ValueError: an argument out of range; in training, labels that are no classes of it, or more images
            than there are persistent chains.

    >>> import torch
    >>> model, x = JEM((1, 8, 8), classes=3, width=4, buffer_size=32).eval(), torch.rand(2, 1, 8, 8)
    >>> model.logits(x).shape
    torch.Size([2, 3])
    >>> torch.allclose(model.log_prob(x), model.logits(x).logsumexp(1) / model.temperature)
    True
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        classes: int = 10,
        width: int = 32,
        sigma: float = 0.15,
        temperature: float = 1e-4,
        step_size: float = 5e-5,
        steps: int = 20,
        sample_steps: int = 1000,
        buffer_size: int = 10_000,
        reinitialised: float = 0.05,
        regularisation: float = 0.1,
    ) -> None:
        super().__init__(
            shape,
            width=width,
            sigma=sigma,
            temperature=temperature,
            step_size=step_size,
            steps=steps,
            sample_steps=sample_steps,
            buffer_size=buffer_size,
            reinitialised=reinitialised,
            regularisation=regularisation,
        )
        check_integers(2, classes=classes)
        self.classes = classes
        self.network = EnergyNetwork(self.shape, width=width, outputs=classes)

    def logits(self, x: Tensor) -> Tensor:
        """f(x) (N, classes) of images x (N, *shape) in [0, 1], differentiable; raises as :meth:`check` does."""
        found: Tensor = self.network(self.check(x))
        return found

    def _network_energy(self, x: Tensor) -> Tensor:
        return -self.network(x).logsumexp(1)

    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        return self._with_labels(super().training_step(batch, step), batch)

    def validation_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        return self._with_labels(super().validation_step(batch, step), batch)

    def _with_labels(self, found: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """What was ``found`` of log p(x), and log p(y | x) of data with noise of its own."""
        if batch.y is None:
            return found
        y = check_labels(batch.y, len(batch.x), self.classes, f"y, for classes={self.classes},")
        logits = self.network(self._noisy(batch.x))
        cross_entropy = F.cross_entropy(logits, y)
        accuracy = (logits.argmax(1) == y).float().mean()
        logged = {"cross_entropy": cross_entropy.detach(), "accuracy": accuracy}
        return found | {"loss": found["loss"] + cross_entropy} | logged
