"""Diagonal Gaussians, by mean and log standard deviation; mixtures of Gaussians, by expectation and maximisation."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustgen.turns import warnings_set_to

__all__ = [
    "COVARIANCES",
    "Mixture",
    "bounded_log_std",
    "discretized_gaussian_log_prob",
    "gaussian_kl",
    "gaussian_log_prob",
]

COVARIANCES = ("full", "diag")


def gaussian_log_prob(x: Tensor, mean: Tensor | float = 0.0, log_std: Tensor | float = 0.0) -> Tensor:
    """log N(x; mean, exp(log_std)^2), element by element, in nats.

    >>> gaussian_log_prob(torch.tensor([0.0, 1.0]))
    tensor([-0.9189, -1.4189])
    """
    scaled = (x - mean) * torch.exp(-torch.as_tensor(log_std))
    return -0.5 * scaled.square() - log_std - 0.5 * math.log(2 * math.pi)


def discretized_gaussian_log_prob(x: Tensor, mean: Tensor, log_std: Tensor, levels: int) -> Tensor:
    """log of what N(mean, exp(log_std)^2) has within half a step of x, element by element.

    The two ends have all that lies beyond them. Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models",
    NeurIPS 2020, equation 13.

    Args:
        x: in [0, 1], on the levels; mean and log_std are in its units.
        levels: at least 2.

    >>> x = torch.linspace(0, 1, 5)
    >>> discretized_gaussian_log_prob(x, torch.full((5,), 0.3), torch.zeros(5), levels=5).exp().sum()
    tensor(1.)
    """
    half, inverse = 0.5 / (levels - 1), torch.exp(-log_std)
    low, high = (x - half - mean) * inverse, (x + half - mean) * inverse
    right = x > mean  # the mass to the right of the mean is that of its mirror image, where digits are kept
    far, near = torch.where(right, -high, low), torch.where(right, -low, high)
    log_far, log_near = torch.special.log_ndtr(far), torch.special.log_ndtr(near)
    inner = log_near + torch.log(-torch.expm1(log_far - log_near))
    ends = torch.where(x < half, torch.special.log_ndtr(high), torch.special.log_ndtr(-low))
    return torch.where((x < half) | (x > 1 - half), ends, inner)


def gaussian_kl(
    mean: Tensor, log_std: Tensor, prior_mean: Tensor | float = 0.0, prior_log_std: Tensor | float = 0.0
) -> Tensor:
    """KL(N(mean, exp(log_std)^2) || N(prior_mean, exp(prior_log_std)^2)), element by element, in nats, >= 0.

    >>> gaussian_kl(torch.tensor([0.0, 2.0]), torch.zeros(2))
    tensor([0., 2.])
    """
    ratio = log_std - prior_log_std
    scaled = (mean - prior_mean) * torch.exp(-torch.as_tensor(prior_log_std))
    return 0.5 * (scaled.square() + torch.expm1(2 * ratio)) - ratio


def bounded_log_std(a: Tensor) -> Tensor:
    """log(1 + elu(a)) of a network's output a: the standard deviation is exp(a) below 1 and 1 + a above.

    An exponential throughout would overflow on images unlike any that the network was trained on.

    >>> bounded_log_std(torch.tensor([-3.0, 0.0, torch.e - 1]))
    tensor([-3.,  0.,  1.])
    """
    return a.clamp(max=0) + torch.log1p(F.relu(a))


class Mixture(nn.Module):
    """A mixture of Gaussians in R^D, fitted by scikit-learn; before, all of them are N(0, I).

    Args:
        components, dim: how many of what dimension D.
        covariance: "full", or "diag" for axes alone.

    >>> mixture = Mixture(2, dim=1).fit(torch.tensor([[-1.0], [-1.1], [5.0], [5.1]]))
    >>> mixture.means.flatten().sort().values.round(decimals=2), mixture.weights
    (tensor([-1.0500,  5.0500]), tensor([0.5000, 0.5000]))
    """

    weights: Tensor
    means: Tensor
    factors: Tensor

    def __init__(self, components: int, dim: int, covariance: str = "full") -> None:
        super().__init__()
        self.covariance = covariance
        self.register_buffer("weights", torch.full((components,), 1 / components))
        self.register_buffer("means", torch.zeros(components, dim))
        one = torch.eye(dim) if covariance == "full" else torch.ones(dim)
        self.register_buffer("factors", one.repeat(components, *[1] * one.ndim))  # L of covariances L L'; of axes, std

    def check_points(self, n: int) -> None:
        """ValueError where ``n`` points are fewer than components."""
        if n < len(self.weights):
            raise ValueError(f"components={len(self.weights)} Gaussians need as many points, got {n}: take fewer")

    def fit(self, z: Tensor, floor: float | None = None) -> "Mixture":
        """Take the maximum of the likelihood of z (N, D) that EM finds from k-means; the same for the same z.

        Args:
            floor: a standard deviation, whose square every variance is raised by; None: a thousandth of that of z.

        Raises:
            ValueError: fewer points than components.
        """
        from sklearn import mixture
        from sklearn.exceptions import ConvergenceWarning

        self.check_points(len(z))
        centre, scale = z.mean(0), torch.ones_like(z[0])
        if floor is None:  # scikit-learn's knows no scale
            std = z.std(0, correction=0)
            scale = torch.where(std > 0, std, scale)
        points = ((z - centre) / scale).double().cpu().numpy()
        options = {"covariance_type": self.covariance, "reg_covar": 1e-6 if floor is None else floor**2}
        with warnings_set_to("ignore", ConvergenceWarning):
            found = mixture.GaussianMixture(len(self.weights), random_state=0, **options).fit(points)
        covariances = torch.from_numpy(found.covariances_)
        self.weights.copy_(torch.from_numpy(found.weights_))
        self.means.copy_(centre + scale * torch.from_numpy(found.means_).to(z))
        if self.covariance == "full":
            self.factors.copy_(scale[:, None] * torch.linalg.cholesky(covariances).to(z))
        else:
            self.factors.copy_(scale * covariances.sqrt().to(z))
        return self

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) (N,) in nats of z (N, D)."""
        centred = z[None] - self.means[:, None]  # (K, N, D)
        if self.covariance == "full":
            white = torch.linalg.solve_triangular(self.factors, centred.mT, upper=False).mT
            scales = self.factors.diagonal(dim1=1, dim2=2)  # (K, D)
        else:
            white, scales = centred / self.factors[:, None], self.factors
        volume = scales.log().sum(1) + 0.5 * z.shape[1] * math.log(2 * math.pi)
        parts = self.weights.log()[:, None] - volume[:, None] - 0.5 * white.square().sum(2)  # (K, N)
        return parts.logsumexp(0)

    def of_noise(self, noise: Tensor) -> Tensor:
        """Points (N, D) of standard normal ``noise`` (N, D + 1), whose first number picks the component."""
        u = torch.special.ndtr(noise[:, 0])
        k = torch.searchsorted(self.weights.cumsum(0), u).clamp(max=len(self.weights) - 1)
        if self.covariance == "full":
            return self.means[k] + (self.factors[k] @ noise[:, 1:, None]).squeeze(2)
        return self.means[k] + self.factors[k] * noise[:, 1:]
