"""How usual an image is among the training images, by what models say of it.

Morningstar, Ham, Gallagher et al., "Density of States Estimation for Out-of-Distribution Detection", AISTATS 2021,
equation 6: densities of model statistics, one kernel density estimate for each (DoSE-KDE) or a one-class support
vector machine of all (DoSE-SVM).
"""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from robustgen.detectors.base import Detector
from robustgen.detectors.likelihood import check_likelihood

if TYPE_CHECKING:
    from robustgen.generative import GenerativeModel

__all__ = ["DensityOfStates"]

_ESTIMATORS = ("kde", "svm")
_IMPORTANCE_SAMPLES = 16  # the paper's


def model_statistics(model: "GenerativeModel", x: Tensor) -> list[Tensor]:
    """What the paper asks a model about images x, each (N,): log p(x), or five numbers of a latent-variable model.

    Of a :class:`~robustgen.generative.Tilted` model, which the paper has not, they are log q(x) of its base and f(x):
    in log q - f, of hundreds of nats, f would be lost.

    The five are log p(x | z), KL(q || p), the entropy of q, its cross-entropy to the prior, and the importance-weighted
    bound. The three in the middle are of the diagonal Gaussian q that the encoder gives. Where a flow follows, that is
    q before it, against the standard Gaussian: behind it none has a closed form. Against a learned prior, the KL is
    that at the drawn z.
    """
    if getattr(model, "base_log_prob_kind", None):
        return [model.base.log_prob(x), model.energy(x)]
    if not hasattr(model, "elbo_terms"):
        return [model.log_prob(x)]
    reconstruction, kl = model.elbo_terms(x)
    mean, log_std, context = model.encode(x)  # (N, D) each
    entropy = log_std.sum(1) + 0.5 * log_std.shape[1] * math.log(2 * math.pi * math.e)
    if context is not None:
        kl = (0.5 * (mean.square() + (2 * log_std).exp() + math.log(2 * math.pi))).sum(1) - entropy
    bound = model.importance_weighted_log_prob(x, samples=_IMPORTANCE_SAMPLES)
    return [reconstruction, kl, entropy, kl + entropy, bound]


class DensityOfStates(Detector):
    """score(x) = -log density of T(x), T the statistics of the model, as estimated on the data of ``fit``.

    "kde": the sum over statistics of the log of a Gaussian kernel density estimate, with Scott's bandwidth n^(-1/5)
    standard deviations. "svm": minus the decision function of scikit-learn's one-class SVM of the D standardised
    statistics, with gamma = 1 / D and its defaults otherwise (nu = 0.5); it levels off far from the data.
    What a model says of its training data is not what it says of others: ``fit`` it on data that are new to it.

    Args:
        model: a :class:`~robustgen.generative.GenerativeModel` with a likelihood, or a sequence of several, of which
            all statistics are taken; of a ``Tilted`` one the likelihood of its base and its energy.
        estimator: "kde" or "svm".
        batch_size: inputs scored at once.

    Raises:
        TypeError: a model without likelihood.
        ValueError: another estimator.

    >>> import torch
    >>> from robustgen.generative import VAE
    >>> vae, x = VAE((1, 8, 8), architecture="mlp", width=8).eval(), torch.eye(8).expand(4, 1, 8, 8)
    >>> usual, other = DensityOfStates(vae).fit(x).score(torch.cat([x[:1], 1 - x[:1]]))
    >>> bool(usual < other)
    True
    """

    fit_on_fresh = True

    def __init__(
        self,
        model: "GenerativeModel | Sequence[GenerativeModel]",
        estimator: str = "kde",
        *,
        batch_size: int = 256,
    ) -> None:
        super().__init__(model, batch_size)
        if estimator not in _ESTIMATORS:
            raise ValueError(f"estimator must be 'kde' or 'svm', got {estimator!r}")
        self.models = list(self.model) if isinstance(self.model, nn.ModuleList) else [self.model]
        for one in self.models:
            check_likelihood(one, "DensityOfStates")
        self.estimator = estimator

    def _states(self, x: Tensor) -> Tensor:
        return torch.stack([s for model in self.models for s in model_statistics(model, x)], dim=1)  # (N, S)

    def _fit(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> dict[str, Tensor]:
        states = torch.cat([self._states(x) for x, _ in batches]).double()  # (M, S)
        mean, std = states.mean(0), states.std(0, correction=min(1, len(states) - 1))
        std = torch.maximum(std, 1e-6 * mean.abs())  # a constant statistic must not blow up its rounding noise
        std = torch.where(std > 0, std, 1.0)
        standardised = (states - mean) / std
        fitted = {"mean": mean, "std": std}
        return fitted | ({"points": standardised} if self.estimator == "kde" else _support_vectors(standardised))

    def _score(self, x: Tensor) -> Tensor:
        states = self._states(x)
        fitted = {name: s.to(states.device) for name, s in self.statistics.items()}
        standardised = (states.double() - fitted["mean"]) / fitted["std"]
        if self.estimator == "svm":
            distances = torch.cdist(
                standardised, fitted["support"], compute_mode="donot_use_mm_for_euclid_dist"
            )  # (N, M)
            decision = torch.exp(-fitted["gamma"] * distances.square()) @ fitted["weights"] + fitted["intercept"]
            return -decision.to(states)
        columns = zip(standardised.T, fitted["points"].T, fitted["std"], strict=True)
        return -sum(_log_kde(t, points) - std.log() for t, points, std in columns).to(states)


def _log_kde(t: Tensor, points: Tensor) -> Tensor:
    """log density (N,) at t (N,) of the kernel density estimate of ``points`` (M,) of unit standard deviation."""
    bandwidth = len(points) ** -0.2
    kernels = -0.5 * ((t[:, None] - points) / bandwidth).square()  # (N, M)
    return kernels.logsumexp(1) - math.log(len(points) * bandwidth * math.sqrt(2 * math.pi))


def _support_vectors(states: Tensor) -> dict[str, Tensor]:
    """What the decision function of a one-class SVM of states (M, S) is made of, so that no pickle is needed."""
    from sklearn.svm import OneClassSVM

    svm = OneClassSVM(gamma=(gamma := 1 / states.shape[1])).fit(states.cpu().numpy())
    return {
        "support": torch.from_numpy(svm.support_vectors_),
        "weights": torch.from_numpy(svm.dual_coef_[0].copy()),
        "intercept": torch.from_numpy(svm.intercept_),
        "gamma": torch.tensor(gamma, dtype=torch.float64),
    }
