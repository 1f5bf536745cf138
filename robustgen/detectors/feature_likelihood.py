"""How unlikely the hidden state of a classifier is.

A flow of the states at one layer, which hands no gradient back: Xiao, "Designing Deep Generative Models with Symbiotic
Composition", 2022, section 3.3.2, of codes of an autoencoder; of a classifier's features, Zisselman and Tamar, "Deep
Residual Flow for Out of Distribution Detection", CVPR 2020.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from robustgen.detectors.base import Detector, check_network, check_width
from robustgen.features import FeatureExtractor
from robustgen.generative.latent.latent_flow import StateDensity, check_state_fit, fit_states
from robustgen.inputs import Inputs
from robustgen.weights import rebuild

__all__ = ["FeatureLikelihood"]


class FeatureLikelihood(Detector):
    """score(x) = -log p(f(x)) in nats, f the features at a layer, p a flow that ``fit`` trains on them.

    Features are whitened first, so that the flow begins as one Gaussian for all classes. Where one for each class
    describes them, :class:`Mahalanobis` needs no training and less data.

    Args:
        model: a classifier, or another network of features.
        layer: whose output f is, see :class:`~robustgen.features.FeatureExtractor`; None: the input of the
            ``nn.Linear`` that makes the logits.
        blocks, width: affine couplings of the flow and hidden units of their networks.
        noise: standard deviation of what is added to whitened features in training: units that never fire have no
            density without.
        epochs: of training, over the features of ``fit``.
        batch_size: inputs scored at once.

    Raises:
        TypeError: a generative model.
        ValueError: no such layer, a setting out of range, or in ``fit`` features of less than two numbers.

    >>> x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))  # the features are the inputs
    >>> detector = FeatureLikelihood(nn.Linear(2, 2), width=8, epochs=3).fit(x)
    >>> usual, other = detector.score(torch.tensor([[0.0, 0.0], [6.0, 6.0]]))
    >>> bool(usual < other - 10)
    True
    """

    takes_tokens = True

    def __init__(
        self,
        model: nn.Module,
        layer: str | None = None,
        blocks: int = 4,
        width: int = 64,
        noise: float = 0.1,
        epochs: int = 50,
        *,
        batch_size: int = 256,
    ) -> None:
        super().__init__(model, batch_size)
        check_network(model, "FeatureLikelihood")
        check_state_fit(blocks, width, noise, epochs)
        self.layer, self.blocks, self.width, self.noise, self.epochs = layer, blocks, width, noise, epochs
        self._extractor = FeatureExtractor(model, layer)
        self._built: tuple[dict[str, Tensor], StateDensity] | None = None

    def _fit(self, batches: Iterable[tuple[Inputs, Tensor | None]]) -> dict[str, Tensor]:
        features = torch.cat([self._extractor(x)[0] for x, _ in batches])
        density = fit_states(features, blocks=self.blocks, width=self.width, noise=self.noise, epochs=self.epochs)
        return {f"density.{name}": t for name, t in density.state_dict().items()}

    @property
    def _density(self) -> StateDensity:
        """Of what ``fit`` learned, or a file held."""
        if self._built is None or self._built[0] is not self.statistics:
            tensors = {k.removeprefix("density."): t for k, t in self.statistics.items() if k.startswith("density.")}
            mean = tensors["mean"]
            density = rebuild(
                lambda: StateDensity(len(mean), self.blocks, self.width).to(mean.dtype),
                tensors,
                settings="the detector's settings",
                weights="the detector's statistics",
            )
            self._built = self.statistics, density.eval().requires_grad_(False)
        return self._built[1]

    def _score(self, x: Inputs) -> Tensor:
        features = self._extractor(x)[0]
        density = self._density.to(features.device)
        check_width(features, len(density.mean))
        return -density.log_prob(features.to(density.mean)).to(features)
