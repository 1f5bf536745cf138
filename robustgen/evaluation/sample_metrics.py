"""How samples compare with data, from features of both: every metric at once for the images and for resampled ones.

``weights`` are how often each image counts, a row for each version: the first row counts each once, the others are
bootstrap draws (:func:`bootstrap`). A metric returns a number for each row. Squared distances are taken in float64, in
blocks of ``at_once`` numbers, so that memory does not grow with the square of the number of images; a distance counts
as within a radius up to a billionth of it, so that no block size decides a tie.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustgen.counter_rng import derive_seed
from robustgen.data import ArrayDataset
from robustgen.detectors.neighbours import nearest_rows
from robustgen.evaluation.metrics import auroc
from robustgen.progress import track
from robustgen.turns import warnings_set_to

__all__ = [
    "Weights",
    "bootstrap",
    "class_measures",
    "closer_than_data",
    "copied",
    "frechet_distance",
    "frechet_distances",
    "manifold_measures",
    "nearest_training",
    "parzen_log_likelihood",
    "prd_measures",
    "precision_recall_curve",
]

AT_ONCE = 2**22  # distances in memory
COPY = 1 / 3  # of the distance to the second nearest training image
CLUSTERS, RUNS, ANGLES = 20, 10, 1001  # of the precision-recall curve, as in its source
SIGMAS = torch.logspace(-2, 0, 21, dtype=torch.float64)
CHOOSING = 1000  # images at most that the width of Parzen windows is chosen on
_BANK = 4096  # training images at once
_SLACK = 1 + 1e-9


class Weights(NamedTuple):
    """How often each sample (R, N) and each image of the data (R, M) counts, float64."""

    samples: Tensor
    data: Tensor

    @classmethod
    def once(cls, samples: Tensor, data: Tensor) -> "Weights":
        """Each counts once: R is 1."""
        return cls(*(torch.ones(1, len(t), dtype=torch.float64, device=t.device) for t in (samples, data)))


def bootstrap(samples: int, data: int, resamples: int, seed: int, device: torch.device | None = None) -> Weights:
    """Each image once, then ``resamples`` draws with replacement of both sides; a function of the arguments alone.

    >>> bootstrap(3, 2, 1, seed=0).data.sum(1)
    tensor([2., 2.], dtype=torch.float64)
    """

    def drawn(n: int, stream: int) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed(seed, stream))
        rows = torch.randint(n, (resamples, n), generator=generator)
        counts = torch.zeros(resamples, n, dtype=torch.float64).scatter_add_(1, rows, torch.ones_like(rows).double())
        return torch.cat([torch.ones(1, n, dtype=torch.float64), counts]).to(device)

    return Weights(drawn(samples, 0), drawn(data, 1))


def frechet_distance(samples: Tensor, data: Tensor) -> float:
    """The Frechet distance of two Gaussians, with the means and covariances of samples (N, D) and data (M, D).

    |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)), which is a squared distance: Dowson and Landau, "The Frechet Distance
    between Multivariate Normal Distributions", 1982; between features of Inception-v3, and only there, it is called FID
    (Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", 2017, eq. 6).
    Of few images it is too large, by about a number that falls as 1 / n: compare only distances of equal n, in one
    feature space.

    Raises:
        ValueError: fewer than two on a side, features of different lengths, NaN or Inf.

    >>> x = torch.tensor([[-1.0], [0.0], [1.0]])
    >>> frechet_distance(x, 3 * x + 2)  # standard deviations 1 and 3, means 0 and 2
    8.0
    """
    if samples.ndim != 2 or samples.shape[1:] != data.shape[1:] or min(len(samples), len(data)) < 2:
        raise ValueError(
            f"features (N, D) and (M, D) with N, M >= 2 are needed, got {tuple(samples.shape)}, {tuple(data.shape)}"
        )
    for side, name in ((samples, "samples"), (data, "data")):
        if not bool(side.isfinite().all()):
            raise ValueError(f"the features of the {name} hold NaN or Inf")
    return float(frechet_distances(samples.double(), data.double(), Weights.once(samples, data))[0])


def frechet_distances(samples: Tensor, data: Tensor, weights: Weights) -> Tensor:
    """:func:`frechet_distance` of float64 features for each row of the weights, (R,)."""
    centre = data.mean(0)
    samples, data = samples - centre, data - centre  # no digits cancel in the covariances
    found = []
    for w, v in track(list(zip(*weights, strict=True)), "Frechet distance"):
        (mean, covariance), (other, its_covariance) = _moments(samples, w), _moments(data, v)
        values, vectors = torch.linalg.eigh(covariance)
        root = vectors * values.clamp(min=0).sqrt() @ vectors.T
        # the eigenvalues of S S' are those of the symmetric S^(1/2) S' S^(1/2)
        product = torch.linalg.eigvalsh(root @ its_covariance @ root).clamp(min=0)
        apart = (mean - other).square().sum() + covariance.trace() + its_covariance.trace()
        found.append((apart - 2 * product.sqrt().sum()).clamp(min=0))
    return torch.stack(found)


def _moments(features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    n = weights.sum()
    mean = weights @ features / n
    return mean, ((features * weights[:, None]).T @ features - n * mean.outer(mean)) / (n - 1)


def manifold_measures(
    samples: Tensor, data: Tensor, weights: Weights, k: int = 3, k_density: int = 5, at_once: int = AT_ONCE
) -> dict[str, Tensor]:
    """Precision, recall, density and coverage of float64 features (N, D) and (M, D), (R,) each.

    A ball reaches from an image to its k-th nearest neighbour on its own side. ``precision``: share of the samples in a
    ball of the data; ``recall``: share of the data in a ball of the samples (Kynkaanniemi et al., "Improved Precision
    and Recall Metric for Assessing Generative Models", 2019, equations 1 and 2). With balls of ``k_density``:
    ``density``, in how many balls of the data a sample lies, divided by ``k_density``; ``coverage``, share of the balls
    of the data that hold a sample (Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models", 2020,
    equations 3 and 4). Balls keep their radii where images are drawn again: a neighbour that is drawn twice would make
    them empty.
    """
    step = max(1, at_once // len(data))
    of_data = _radii(data, (k, k_density), at_once)
    of_samples = _radii(samples, (k,), at_once)[:, 0]
    times, its_times = weights.samples.T.float(), weights.data.T.float()  # (N, R), (M, R)
    precision, density = (torch.zeros_like(weights.samples[:, 0]) for _ in range(2))
    reached, covered = torch.zeros_like(its_times), torch.zeros_like(its_times)
    for begin in track(range(0, len(samples), step), "precision, recall, density, coverage"):
        rows = slice(begin, begin + step)
        squares = _squares(samples[rows], data)  # (B, M)
        here = times[rows]
        precision += (((squares <= of_data[:, 0]).float() @ its_times > 0) * here).sum(0)
        within = (squares <= of_data[:, 1]).float()
        density += ((within @ its_times) * here).sum(0, dtype=torch.float64)
        covered += within.T @ here
        reached += (squares <= of_samples[rows, None]).float().T @ here
    n, m = weights.samples.sum(1), weights.data.sum(1)
    return {
        "precision": precision / n,
        "recall": ((reached > 0) * weights.data.T).sum(0) / m,
        "density": density / (k_density * n),
        "coverage": ((covered > 0) * weights.data.T).sum(0) / m,
    }


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances (N, M) of the rows of a (N, D) and b (M, D)."""
    mean = b.mean(0)
    a, b = a - mean, b - mean
    return torch.addmm(a.square().sum(1, keepdim=True) + b.square().sum(1), a, b.T, alpha=-2).clamp(min=0)


def _radii(points: Tensor, ks: tuple[int, ...], at_once: int) -> Tensor:
    """Squared distances (N, len(ks)) of each point to its k-th nearest among the others."""
    found = []
    step = max(1, at_once // len(points))
    for begin in range(0, len(points), step):
        squares = _squares(points[begin : begin + step], points)
        squares[torch.arange(len(squares)), torch.arange(begin, begin + len(squares))] = torch.inf
        nearest = squares.topk(max(ks), largest=False).values
        found.append(nearest[:, [k - 1 for k in ks]])
    return torch.cat(found) * _SLACK


def prd_measures(samples: Tensor, data: Tensor, weights: Weights, seed: int) -> dict[str, Tensor]:
    """F_8 (``prd_recall``) and F_1/8 (``prd_precision``) of the precision-recall curve of distributions, (R,) each.

    Sajjadi, Bachem, Lucic, Bousquet and Gelly, "Assessing Generative Models via Precision and Recall", 2018: features
    of both sides, equally many, are clustered together, and the curve is that of the two histograms over the clusters,
    averaged over several clusterings (section 4; 20 clusters, 10 runs).
    """
    from sklearn.cluster import MiniBatchKMeans

    even = min(len(samples), len(data))
    pooled = torch.cat([_spread(samples, even), _spread(data, even)]).cpu().numpy()
    both = torch.cat([samples, data]).cpu().numpy()
    precision: Tensor | float = 0.0
    recall: Tensor | float = 0.0
    for run in track(range(RUNS), "precision-recall curve"):
        means = MiniBatchKMeans(min(CLUSTERS, len(pooled)), n_init=3, random_state=derive_seed(seed, run) % 2**32)
        with warnings_set_to("ignore"):  # samples that are all alike make fewer clusters
            cluster = torch.from_numpy(means.fit(pooled).predict(both)).long().to(samples.device)
        of_samples, of_data = cluster[: len(samples)], cluster[len(samples) :]
        q, p = _shares(of_samples, weights.samples, CLUSTERS), _shares(of_data, weights.data, CLUSTERS)
        curve = precision_recall_curve(q, p)
        precision, recall = precision + curve[0] / RUNS, recall + curve[1] / RUNS
    assert isinstance(precision, Tensor)
    assert isinstance(recall, Tensor)
    return {"prd_recall": _best_f(precision, recall, 8.0), "prd_precision": _best_f(precision, recall, 1 / 8)}


def precision_recall_curve(q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Precision and recall (R, ANGLES) of histograms q of samples and p of data, (R, bins) each, from angle to angle.

    sum min(slope p, q) and sum min(p, q / slope), with slopes that are tangents of angles from 0 to 90 degrees
    (algorithm 1 of the source).

    >>> alpha, beta = precision_recall_curve(torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.0, 0.5, 0.5]]))
    >>> alpha.max().item(), beta.max().item()  # half of each lies where the other is
    (0.5, 0.5)
    """
    slopes = torch.linspace(1e-6, math.pi / 2 - 1e-6, ANGLES, dtype=torch.float64, device=q.device).tan()
    alpha = torch.minimum(slopes[:, None] * p[:, None].double(), q[:, None].double()).sum(2)
    return alpha.clamp(max=1), (alpha / slopes).clamp(max=1)


def _best_f(precision: Tensor, recall: Tensor, beta: float) -> Tensor:
    weighed = beta**2 * precision + recall
    return ((1 + beta**2) * precision * recall / weighed.clamp(min=1e-30)).amax(1)


def _spread(points: Tensor, n: int) -> Tensor:
    return points[torch.arange(n, device=points.device) * len(points) // n]


def _shares(which: Tensor, weights: Tensor, bins: int) -> Tensor:
    """Histograms (R, bins) of ``which`` (N,), of sum 1."""
    counts = weights.new_zeros(len(weights), bins).index_add_(1, which, weights)
    return counts / counts.sum(1, keepdim=True)


def class_measures(logits: Tensor, data_logits: Tensor, weights: Weights) -> dict[str, Tensor]:
    """What a classifier says of samples (N, C) and data (M, C), (R,) each.

    ``class_score``: exp of the mean of KL(p(c | x) | p(c)) over the samples, from 1 to C (Salimans et al., "Improved
    Techniques for Training GANs", 2016, section 4, whose inception score it is for one network alone). ``modes``:
    classes that some sample is taken for; ``mode_kl``: KL in nats between the classes of the samples and those of the
    data, both as the classifier sees them; a class without data counts as half an image. Of perfect samples it is about
    (C - 1) / 2 (1/n + 1/m).
    """
    log_p = logits.double().log_softmax(1)
    p = log_p.exp()
    n = weights.samples.sum(1)
    mean = weights.samples @ p / n[:, None]  # (R, C)
    inside = weights.samples @ (p * log_p).sum(1) / n
    score = (inside - torch.special.xlogy(mean, mean).sum(1)).exp()
    classes = logits.shape[1]
    q, r = _shares(logits.argmax(1), weights.samples, classes), _shares(data_logits.argmax(1), weights.data, classes)
    r = r.clamp(min=0.5 / data_logits.shape[0])  # whose sum may be above one
    kl = torch.special.xlogy(q, q / r).sum(1).clamp(min=0)
    return {"class_score": score, "modes": (q > 0).sum(1).double(), "mode_kl": kl}


def parzen_log_likelihood(
    samples: Tensor, data: Tensor, weights: Tensor, at_once: int = AT_ONCE
) -> tuple[Tensor, float, int]:
    """Mean log-density of the data under Gaussian windows around the samples, in nats (R,); their width; of how many.

    Breuleux, Bengio and Vincent, "Quickly Generating Representative Samples from an RBM-Derived Process", 2011. The
    width is chosen on every second image of the data, by likelihood, and the others are scored. In as many dimensions
    as an image has, it is far below the true value and may rank models wrongly: k-means centres beat samples of the
    true distribution (Theis, van den Oord and Bethge, "A note on the evaluation of generative models", 2016, section
    3.2). It is here because the literature reports it.

    Args:
        samples, data: images as vectors (N, D) and (M, D).
        weights: (R, M), of the data; intervals leave out that other samples would give other windows.
    """
    choosing, scored = _spread(data[::2], min(CHOOSING, len(data[::2]))), data[1::2]
    sigmas = SIGMAS.to(data.device)
    best = int(_log_density(choosing, samples, sigmas, at_once).mean(0).argmax())
    found = _log_density(scored, samples, sigmas[best : best + 1], at_once)[:, 0]
    counted = weights[:, 1::2]
    return counted @ found / counted.sum(1), float(sigmas[best]), len(scored)


def _log_density(x: Tensor, centres: Tensor, sigmas: Tensor, at_once: int) -> Tensor:
    """Of x (N, D) under the mean of Gaussians around ``centres`` (M, D), for each sigma: (N, len(sigmas))."""
    steps = max(1, math.isqrt(at_once))
    scale = -0.5 / sigmas.square()
    found = []
    for some in track(x.split(steps), "Parzen windows"):
        total = x.new_full((len(some), len(sigmas)), -torch.inf, dtype=torch.float64)
        for around in centres.split(steps):
            squares = _squares(some.double(), around.double())
            parts = torch.stack([(s * squares).logsumexp(1) for s in scale], 1)
            total = torch.logaddexp(total, parts)
        found.append(total)
    constant = math.log(len(centres)) + x.shape[1] / 2 * (2 * math.pi * sigmas.square()).log()
    return torch.cat(found) - constant


def nearest_training(x: Tensor, train: ArrayDataset, k: int, at_once: int = AT_ONCE) -> tuple[Tensor, Tensor]:
    """Euclidean distances (N, k), ascending, of images x (N, ...) to the nearest training images, and their rows."""
    found = []
    step = max(1, at_once // _BANK)
    for some in track(x.flatten(1).split(step), "nearest training images"):
        distances = some.new_full((len(some), 0), 0.0)
        rows = torch.zeros(len(some), 0, dtype=torch.int64, device=x.device)
        for begin in range(0, len(train), _BANK):
            bank = train.batch(torch.arange(begin, min(begin + _BANK, len(train))))[0].to(some).flatten(1)
            near, which = nearest_rows(some, bank, min(k, len(bank)))
            distances, rows = torch.cat([distances, near], 1), torch.cat([rows, which + begin], 1)
            kept = distances.topk(min(k, distances.shape[1]), largest=False)
            distances, rows = kept.values, rows.gather(1, kept.indices)
        found.append((distances, rows))
    return torch.cat([d for d, _ in found]), torch.cat([r for _, r in found])


def copied(distances: Tensor) -> Tensor:
    """bool (N,): which images are copies, from their distances (N, 2 or more) to the nearest training images.

    The nearest is at a third of the distance of the second nearest, or less (Yoon, Choi, Kwon and Ryu, "Diffusion
    Probabilistic Models Generalize when They Fail to Memorize", 2023): blurred images, which lie near to many training
    images, are no copies.
    """
    return distances[:, 0] <= COPY * distances[:, 1]


def closer_than_data(distances: Tensor, of_data: Tensor, weights: Weights) -> Tensor:
    """P(a sample lies closer to its nearest training image than a held-back image does to its own), (R,).

    0.5 without memorising, 1 for copies: the statistic of Meehan, Chaudhuri and Dasgupta, "A Non-Parametric Test to
    Detect Data-Copying in Generative Models", 2020, section 3, over the whole space. Blurred samples are closer too.

    Args:
        distances, of_data: (N, k) and (M, k), of samples and held-back data, to the nearest training images.
    """
    near, far = (d[:, 0].double().cpu().numpy() for d in (distances, of_data))
    times = ([w.long().cpu().numpy() for w in side] for side in weights)
    closer = [auroc(np.repeat(near, w), np.repeat(far, v)) for w, v in zip(*times, strict=True)]
    return torch.tensor(closer, dtype=torch.float64)
