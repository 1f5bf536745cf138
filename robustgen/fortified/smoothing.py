"""Randomized smoothing: what a network says of most noisy versions of an input, and how far that holds.

Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019 (the certificate);
Salman, Sun, Yang, Kapoor and Kolter, "Denoised Smoothing: A Provable Defense for Pretrained Classifiers", NeurIPS 2020
(a denoiser before a network that has never seen noise).
"""

import math
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from robustgen.binomial import check_level, lower_bound, majority_p_value, most_provable, needed_draws
from robustgen.checks import check_bounds, check_images, check_integers, check_positive, check_seed, nearest, plain
from robustgen.counter_rng import content_ids, derive_seed
from robustgen.fortified.smoothing_noise import Gaussian, SmoothingNoise, Splitting, Uniform, noisy_versions
from robustgen.model import check_rows_alone, check_rows_draw_alone, is_stochastic, logits_of, naming_inputs, untouched
from robustgen.progress import track

__all__ = ["ABSTAINS", "Certificate", "SmoothedClassifier", "smooth"]

ABSTAINS = -1  # instead of a class
_SELECTION, _ESTIMATION, _PREDICTION = range(3)  # what the draws are for: none are used twice


@runtime_checkable
class _Denoiser(Protocol):
    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """Images (N, ...) without the Gaussian noise of standard deviation sigma that x (N, ...) have."""


@dataclass(frozen=True)
class Certificate:
    """What :meth:`SmoothedClassifier.certify` proves of each of N inputs.

    Attributes:
        prediction: int64 (N,), the class; -1 where it abstains.
        radius: float64 (N,): no change shorter than this, in ``norm``, makes the smoothed classifier prefer another
            class; 0 where it abstains. Each holds with probability 1 - alpha, those of splitting noise for sure.
        p_lower: float64 (N,), what the class's share of the votes is at least.
        counts: int64 (N, C), the votes of the estimation.
        draws: int64 (N,), how many votes were counted in all; fewer than n + n0 after an early stop.
        norm: "L2" or "L1".
    """

    prediction: Tensor
    radius: Tensor
    p_lower: Tensor
    counts: Tensor
    draws: Tensor
    norm: str


class SmoothedClassifier(nn.Module):
    """The class that a network finds most often in noisy versions of an input; see :func:`smooth`.

    ``forward`` draws afresh, ``draws`` times, and returns the log of the mean probabilities: what attacks and users of
    logits see. It is stochastic, and differentiable. :meth:`predict` and :meth:`certify` count votes; their draws are
    functions of the seed and of the input's own content, so that neither the batch nor its order matters.
    """

    def __init__(
        self,
        model: nn.Module,
        sigma: float,
        denoiser: nn.Module | None = None,
        noise: str = "gaussian",
        seed: int | None = 0,
        *,
        draws: int = 8,
        bounds: tuple[float, float] | None = (0.0, 1.0),
        precision: str = "float32",
        batch_size: int = 500,
        levels: int = 255,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"smooth takes an nn.Module, got {type(model).__name__}")
        if denoiser is not None and not isinstance(denoiser, _Denoiser):
            raise TypeError(f"a denoiser has a method denoise(x, sigma), {type(denoiser).__name__} has none")
        if denoiser is not None and noise != "gaussian":
            raise ValueError(f"a denoiser takes Gaussian noise away, not {noise} noise")
        check_integers(draws=draws, batch_size=batch_size)
        if seed is not None:
            check_seed(seed)
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be float32 or bfloat16, got {precision!r}")
        self.model, self.denoiser = model, denoiser
        self._key = secrets.randbits(63) if seed is None else seed
        self.noise = _noise_called(noise, sigma, levels, self._key)
        self.config = {"sigma": self.sigma, "noise": noise, "draws": draws, "precision": precision}
        if noise == "splitting":
            self.config["levels"] = levels
        self.seed, self.draws, self.precision, self.batch_size = seed, draws, precision, batch_size
        self.bounds = None if bounds is None else check_bounds(bounds)
        if self.exact and self.bounds != (0.0, 1.0):
            raise ValueError(f"splitting noise is of inputs in [0, 1], not in bounds={bounds}")

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise, in units of the input; of splitting noise that of whole levels."""
        return self.noise.sigma

    @property
    def norm(self) -> str:
        """Of the radii."""
        return self.noise.norm

    @property
    def exact(self) -> bool:
        """Whether certificates hold for sure: all versions of an input are asked, nothing is drawn."""
        return isinstance(self.noise, Splitting)

    @property
    def versions(self) -> int:
        """How many versions of an input there are; 0 where they are drawn."""
        return self.noise.versions if isinstance(self.noise, Splitting) else 0

    def forward(self, x: Tensor) -> Tensor:
        """log((1/m) sum_i softmax(f(x + noise_i))), (N, C), of m fresh draws, by torch's global random numbers."""
        votes = [self._logits(self.noise.draw(x, 1, None)[0]).log_softmax(1) for _ in range(self.draws)]
        return torch.stack(votes).logsumexp(0) - math.log(self.draws)

    def predict(self, x: Tensor, n: int = 1000, alpha: float = 0.001, *, seed: int | None = None) -> Tensor:
        """The class that most noisy versions of each input get, int64 (N,); -1 where n draws cannot tell.

        With probability 1 - alpha a class that is returned is the smoothed classifier's (the source's algorithm
        PREDICT, with the test of Hung and Fithian, 2019). With splitting noise ``n``, ``alpha`` and ``seed`` are not
        looked at, and only a tie abstains.

        Args:
            x: (N, ...) in the bounds.
            n: draws for each input.
            alpha: probability of an error.
            seed: instead of the classifier's own.

        Raises:
            TypeError, ValueError: as :meth:`certify` does.
        """
        check_level(alpha)
        check_integers(n=n)
        if self.exact:
            return self._certify_exactly(x, progress=False).prediction.to(x.device)
        found = []
        for ask, one, key in self._each(x, seed):
            counts, _ = self._count(ask, one, key, _PREDICTION, n)
            (first, second), (best, _) = counts.topk(2)
            sure = bool(majority_p_value(first[None], second[None]) <= alpha)
            found.append(int(best) if sure else ABSTAINS)
        return torch.tensor(found, dtype=torch.int64, device=x.device)

    def certify(
        self,
        x: Tensor,
        n0: int = 100,
        n: int = 10_000,
        alpha: float = 0.001,
        *,
        radius: float | Sequence[float] | None = None,
        seed: int | None = None,
        progress: bool = False,
    ) -> Certificate:
        """A class for each input and a radius inside which the smoothed classifier keeps it.

        ``n0`` draws choose the class, ``n`` others bound its share of the votes from below (exactly, by Clopper and
        Pearson); abstains where that may be a half or less. With splitting noise all versions are asked, no other
        argument is looked at, and certificates are of changes between inputs in whole levels.

        In exact arithmetic: a network made to read the last bits of float32 can be led astray by rounding.

        Args:
            x: (N, ...) in the bounds.
            n0, n: draws for each input, of the choice and of the bound.
            alpha: probability with which a certificate may be wrong.
            radius: one or several; stop early where it is known of each whether it is proved (0: whether it abstains).
                The votes that were not asked for count against the class, so that what is returned, though smaller,
                holds with the same probability.
            seed: instead of the classifier's own. Who chooses inputs after having seen it can look for some whose
                certificate is wrong.

        Raises:
            TypeError: x is no batch of float32 or float64 inputs, or a radius or seed is no number.
            ValueError: inputs outside the bounds or, with splitting noise, between levels; alpha outside (0, 1), n
                below n0, a radius that n draws can never prove, or a network whose answer to an input depends on others
                in its batch, be it by noise that they share (a twentieth of the variance of each row's own, or more;
                see :func:`robustgen.model.check_rows_draw_alone`).
        """
        check_level(alpha)
        check_integers(n0=n0, n=n)
        if n < n0:
            raise ValueError(f"n={n} draws bound what n0={n0} choose: n must be at least n0")
        if self.exact:
            return self._certify_exactly(x, progress)
        needed = sorted(self._needed(one, n, alpha) for one in _numbers(radius))
        rows: list[tuple[int, Tensor, int]] = []
        for ask, one, key in self._each(x, seed, progress):
            best = int(self._count(ask, one, key, _SELECTION, n0)[0].argmax())
            counts, asked = self._count(ask, one, key, _ESTIMATION, n, best, needed)
            rows.append((best, counts, n0 + asked))
        if not rows:
            return self._no_certificates()
        best, counts = torch.tensor([row[0] for row in rows]), torch.stack([row[1] for row in rows])
        share = lower_bound(counts.gather(1, best[:, None])[:, 0], n, alpha)
        return Certificate(
            prediction=torch.where(share > 0.5, best, ABSTAINS),
            radius=self.noise.radius(share),
            p_lower=share,
            counts=counts,
            draws=torch.tensor([row[2] for row in rows]),
            norm=self.norm,
        )

    def _no_certificates(self) -> Certificate:
        empty, none = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64)
        return Certificate(empty, none, none, torch.zeros(0, 0, dtype=torch.int64), empty, self.norm)

    def _certify_exactly(self, x: Tensor, progress: bool) -> Certificate:
        assert isinstance(self.noise, Splitting)
        x = check_images(x, self.bounds)
        self.noise.check(x)
        rows = []
        for ask, one, _ in self._each(x, None, progress):
            parts = [self._votes(ask(few)) for few in self.noise.all_versions(one, self.batch_size)]
            rows.append(torch.stack([_tally(*part) for part in parts]).sum(0))
        if not rows:
            return self._no_certificates()
        counts = torch.stack(rows)
        most = counts.topk(2)
        first, second = most.values.unbind(1)
        return Certificate(
            prediction=torch.where(first > second, most.indices[:, 0], ABSTAINS),
            radius=self.noise.radius_between(first, second),
            p_lower=first.double() / self.noise.versions,
            counts=counts,
            draws=torch.full_like(first, self.noise.versions),
            norm=self.norm,
        )

    def provable(self, radius: float, n: int, alpha: float) -> tuple[bool, int | None]:
        """Whether n draws can prove a radius at all, and how many could; None where no number of draws can."""
        share = self.noise.share(radius)
        if self.exact:  # all versions are asked: the radius of a vote without dissent counts
            return share < 1 or radius <= self.noise.radius(torch.ones(1)).item(), None
        return most_provable(n, alpha) > share, needed_draws(share, alpha) if share < 1 else None

    def _needed(self, radius: float, n: int, alpha: float) -> int:
        """How many of n votes prove the radius; ValueError where all of them would not."""
        if radius != 0:
            check_positive(radius=radius)
        share = self.noise.share(radius)
        if most_provable(n, alpha) <= share:
            possible = float(self.noise.radius(torch.tensor([most_provable(n, alpha)], dtype=torch.float64)))
            could = self.provable(radius, n, alpha)[1]
            enough = "and no number of draws does" if could is None else f"but {could} draws could"
            raise ValueError(
                f"{n} draws prove radii up to {possible:.3g} at sigma={self.sigma:g}, not {radius:g}, {enough}"
            )
        least = torch.arange(1, n + 1)
        return int(least[lower_bound(least, n, alpha) > share][0])

    def _each(
        self, x: Tensor, seed: int | None, progress: bool = False
    ) -> Iterator[tuple[Callable[[Tensor], Tensor], Tensor, int]]:
        """The base classifier, each input alone and the seed of its draws."""
        x = check_images(x, self.bounds)
        if seed is not None:
            check_seed(seed)
        if not len(x):
            return
        with torch.no_grad(), naming_inputs(x[:1]):
            with untouched(self, derive_seed(self._key)):
                self._check_base(x[:1])
            inputs = zip(x, self._contents(x).tolist(), strict=True)
            for one, content in track(inputs, "certificates", len(x)) if progress else inputs:
                key = derive_seed(self._key if seed is None else seed, content)
                with untouched(self, key):
                    yield self._logits, one, key

    def _contents(self, x: Tensor) -> Tensor:
        if self.bounds is None:
            return content_ids(x, exact=True)
        low, high = self.bounds
        return content_ids(x if self.bounds == (0.0, 1.0) else (x - low) / (high - low))

    def _check_base(self, one: Tensor) -> None:
        """ValueError where votes of one batch are not votes of its rows alone."""
        same = one.expand(8, *one.shape[1:])
        drawn = self.noise.draw(one[0], 8, None)
        if is_stochastic(lambda: self._logits(same)):
            check_rows_draw_alone(self._logits, torch.cat([one, drawn]))
        else:
            check_rows_alone(self._logits, drawn[:4])

    def _count(
        self,
        ask: Callable[[Tensor], Tensor],
        one: Tensor,
        key: int,
        purpose: int,
        n: int,
        best: int = 0,
        needed: Sequence[int] = (),
    ) -> tuple[Tensor, int]:
        """Votes (C,) of n draws for one input, and of how many draws they are: fewer, where it is known after a block
        of each number ``needed`` whether ``best`` will have as many.
        """
        counts, asked = torch.zeros(0, dtype=torch.int64), 0
        for blocks in noisy_versions(self.noise, one, n, self.batch_size, key, purpose):
            answers, classes = self._votes(ask(torch.cat(blocks)))
            for block in answers.split([len(block) for block in blocks]):  # in their order: what is asked at once
                votes = _tally(block, classes)  # decides nothing
                counts, asked = (counts + votes if asked else votes), asked + len(block)
                for_it = int(counts[best])
                if needed and all(for_it >= k or for_it + n - asked < k for k in needed):
                    return counts, asked
        return counts, asked

    @staticmethod
    def _votes(logits: Tensor) -> tuple[Tensor, int]:
        """The class of each answer, int64 (n,), on the CPU, and how many there are; one more where it is not finite,
        which is no vote."""
        classes = logits.shape[1]
        return torch.where(logits.isfinite().all(1), logits.argmax(1), classes).cpu(), classes

    def _logits(self, x: Tensor) -> Tensor:
        half = self.precision == "bfloat16"
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=half or torch.is_autocast_enabled()):
            if self.denoiser is not None:
                x = self.denoiser.denoise(x, self.sigma)
            return logits_of(self.model(x)).float()

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.config.items())


def _numbers(radius: Any) -> list[Any]:
    """One or several radii, of torch or NumPy too, as Python's numbers; what is none is for the caller to refuse."""
    if radius is None:
        return []
    several = isinstance(radius, Iterable) and not isinstance(radius, str) and getattr(radius, "ndim", None) != 0
    found = radius if several else [radius]
    return [one.item() if isinstance(one, Tensor) and not one.ndim else plain(one) for one in found]


def _tally(answers: Tensor, classes: int) -> Tensor:
    return answers.bincount(minlength=classes + 1)[:-1]


def _noise_called(name: str, sigma: float, levels: int, seed: int) -> SmoothingNoise:
    kinds: dict[str, Callable[[], SmoothingNoise]] = {
        "gaussian": lambda: Gaussian(sigma),
        "uniform": lambda: Uniform(sigma),
        "splitting": lambda: Splitting(sigma, levels, seed),
    }
    if name not in kinds:
        raise ValueError(f"unknown noise {name!r}; {nearest(name, kinds)}")
    return kinds[name]()


def smooth(
    model: nn.Module,
    sigma: float,
    denoiser: nn.Module | None = None,
    noise: str = "gaussian",
    seed: int | None = 0,
    **more: Any,
) -> SmoothedClassifier:
    """A classifier with certificates around any network: it answers what the network says of most noisy inputs.

    Args:
        model: x (N, ...) in bounds -> logits (N, C). As it is, it will hardly stand the noise: train it on noisy
            inputs, or put a denoiser before it.
        sigma: standard deviation of the noise in every element, in units of the input: larger radii, lower accuracy.
        denoiser: what has a method ``denoise(x, sigma)``, such as :class:`robustgen.generative.Denoiser`.
        noise: "gaussian" (radii in L2), "uniform" (in L1) or "splitting" (in L1, of images in whole levels, certain:
            see :class:`~robustgen.fortified.smoothing_noise.Splitting`).
        seed: of the draws that certify. Any will do for inputs that were fixed beforehand, as a test set is; who
            answers inputs that others choose keeps it from them. None: drawn from the system, kept in memory alone.
        draws: keyword; of ``forward``, default 8.
        bounds: keyword; of the inputs, default (0, 1); None: any, as those of embeddings.
        precision: keyword; "bfloat16": certificates are those of the network in bfloat16.
        batch_size: keyword; noisy inputs asked at once. No count depends on it.
        levels: keyword; of splitting noise, default 255: elements are multiples of 1 / levels.

    Raises:
        TypeError: no module, or a denoiser without that method.
        ValueError: a value out of range, or a denoiser with other noise than Gaussian.

    >>> _ = torch.manual_seed(0)
    >>> model = nn.Linear(4, 2)
    >>> certificate = smooth(model, sigma=0.5).certify(torch.rand(3, 4), n=1000)
    >>> certificate.radius.shape, certificate.counts.sum(1).tolist()
    (torch.Size([3]), [1000, 1000, 1000])
    """
    return SmoothedClassifier(model, sigma, denoiser, noise, seed, **more)
