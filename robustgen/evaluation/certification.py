"""How robust a smoothed classifier provably is, and how far attacks come: a lower bound beside an upper one.

Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019 (certified accuracy
at a radius); Zhai et al., "MACER: Attack-free and Scalable Robust Training via Maximizing Certified Radius", ICLR 2020
(the average certified radius); the attack averages gradients over the noise: Salman et al., "Provably Robust Deep
Learning via Adversarially Trained Smoothed Classifiers", NeurIPS 2019, section 3.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustgen.attacks import PGD, Attack
from robustgen.binomial import most_provable
from robustgen.checks import check_ids, check_images, check_integers, check_labels, check_positive, check_seed, nearest
from robustgen.counter_rng import derive_seed
from robustgen.evaluation.kept import Keep, anew, kept_of
from robustgen.evaluation.metrics import percent, proportion
from robustgen.evaluation.report_pictures import encode_picture
from robustgen.evaluation.suites import suite_of
from robustgen.evaluation.wall_clock import WallClock
from robustgen.files import environment
from robustgen.fingerprint import fingerprint, model_fingerprint
from robustgen.fortified import SmoothedClassifier
from robustgen.locks import alone
from robustgen.model import untouched
from robustgen.printable import printable
from robustgen.progress import showing, track

__all__ = ["CertificationReport", "certify_robustness"]

_AT_ONCE = 5  # examples that a kill costs at most
_PICTURES = 4
_VERDICT, _PICTURE = 1, 2  # what draws are for that no certificate uses
ATTACKS = ("pgd", "standard")
KEPT = "certificates"  # the directory of finished ones
_CERTIFICATE = ("prediction", "radius", "p_lower", "counts", "draws")


@dataclass
class CertificationReport:
    """What :func:`certify_robustness` found.

    Attributes:
        name: of the classifier.
        sigma, noise, norm, precision: of the smoothing; certificates of bfloat16 are of the network in it.
        n0, n, alpha, seed: of each certificate; with splitting noise the seed is that of its thresholds. None: secret.
        ids, y: int64 (N,).
        prediction, radius, p_lower, draws (N,), counts (N, C): see :class:`~robustgen.fortified.Certificate`.
        attacked: by radius, int64 (M,): what is predicted at the points that the attack found for the first M inputs,
            -1 where it abstains.
        attack: what it was: "pgd" or "standard".
        exact: certificates hold for sure; then n is the number of versions, and n0 and alpha are 0.
        stopped_early: draws ended where every radius was decided; then ``radius``, its average and ``counts`` are of
            the draws that were counted, and lower than all would give.
        provable: by radius, whether n draws can prove it at all, and how many could; None where no number can.
        dimensions: numbers in an input.
        pictures: of the first inputs: as they are, noisy, and denoised where there is a denoiser.
        environment, wall_seconds: how it was made.
    """

    name: str
    sigma: float
    noise: str
    norm: str
    precision: str
    n0: int
    n: int
    alpha: float
    seed: int | None
    ids: Tensor
    y: Tensor
    prediction: Tensor
    radius: Tensor
    p_lower: Tensor
    counts: Tensor
    draws: Tensor
    radii: tuple[float, ...]
    attacked: dict[float, Tensor]
    most: float
    dimensions: int
    provable: dict[float, tuple[bool, int | None]]
    attack: str = "pgd"
    exact: bool = False
    stopped_early: bool = False
    pictures: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=environment)
    wall_seconds: float = 0.0

    @property
    def right(self) -> Tensor:
        """bool (N,): the class that was certified is the true one."""
        return self.prediction == self.y

    def certified(self, radius: float) -> Tensor:
        """bool (N,): right, and so for every change shorter than ``radius``; each errs with probability alpha."""
        return self.right & (self.radius >= radius)

    def standing(self, radius: float) -> Tensor:
        """bool (M,): at the points of the attack at ``radius`` no other class is predicted; abstaining is no fall."""
        found = self.attacked[radius]
        return (found == self.y[: len(found)]) | (found < 0)

    def beaten(self, radius: float) -> Tensor:
        """bool (M,): certified, and yet another class is predicted at the attack's point; one of 1 / alpha may be."""
        found = self.attacked[radius]
        n = len(found)
        return self.certified(radius)[:n] & (found != self.y[:n]) & (found >= 0)

    @property
    def average_radius(self) -> float:
        """Mean radius, where what is wrong counts as 0."""
        return float(torch.where(self.right, self.radius, 0.0).mean())

    @property
    def saved(self) -> int:
        """Draws that an early stop left out."""
        return (self.n0 + self.n) * len(self.y) - int(self.draws.sum())

    @property
    def every_element(self) -> float:
        """The largest change of all elements at once that lies inside the largest radius of ``radii`` that n draws can
        prove; 0 where there is none.
        """
        radius = max((r for r in self.radii if r <= self.most), default=0.0)
        return radius / (self.dimensions if self.norm == "L1" else math.sqrt(self.dimensions))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: settings, every number with its interval, one record for each input."""
        return {
            "name": self.name,
            "smoothing": {
                "sigma": self.sigma,
                "noise": self.noise,
                "norm": self.norm,
                "precision": self.precision,
            },
            "certificates": {
                "n0": self.n0,
                "n": self.n,
                "alpha": self.alpha,
                "exact": self.exact,
                "stopped_early": self.stopped_early,
                "largest_provable_radius": self.most,
            },
            "accuracy": proportion(self.right),
            "abstains": proportion(self.prediction < 0),
            "average_radius": self.average_radius,
            "draws": int(self.draws.sum()),
            "draws_saved": self.saved,
            "attack": self.attack if self.attacked else None,
            "radii": [
                {"radius": r, "provable": self.provable[r][0], "draws_that_could": self.provable[r][1]}
                | {"certified": proportion(self.certified(r))}
                | (
                    {
                        "attacked": proportion(self.standing(r)),
                        "certified_of_attacked": proportion(self.certified(r)[: len(self.attacked[r])]),
                        "beaten": int(self.beaten(r).sum()),
                    }
                    if r in self.attacked
                    else {}
                )
                for r in self.radii
            ],
            "every_element": self.every_element,
            "pictures": self.pictures,
            "per_example": {
                "ids": self.ids.tolist(),
                "labels": self.y.tolist(),
                "prediction": self.prediction.tolist(),
                "counts": self.counts.tolist(),
                "draws": self.draws.tolist(),
                "radius": [math.floor(r * 1e6) / 1e6 for r in self.radius.tolist()],
                "p_lower": [round(p, 6) for p in self.p_lower.tolist()],
                "attacked": {str(r): found.tolist() for r, found in self.attacked.items()},
            },
            "seed": self.seed,
            "environment": self.environment,
            "wall_seconds": round(self.wall_seconds, 2),
        }

    def __str__(self) -> str:
        rows = [
            f"{self.name}: {len(self.y)} examples behind {self.noise} noise of {self.sigma:g}, {self.precision}, "
            + (f"all {self.n:,} versions" if self.exact else f"{self.n:,} draws, alpha {self.alpha:g}")
            + " (95 % Wilson intervals)",
            f"  {'right, without attack':<26}{percent(proportion(self.right))}",
            f"  {'abstains':<26}{percent(proportion(self.prediction < 0))}",
            f"  average certified radius {self.average_radius:.3f}"
            + (" of the draws counted" if self.stopped_early else "")
            + f", largest that can be proved {rounded_down(self.most)}",
        ]
        if self.stopped_early:
            total = self.saved + int(self.draws.sum())
            rows.append(f"  {total - self.saved:,} of {total:,} draws counted, {self.saved:,} saved by an early stop")
        for r in self.radii:
            line = f"  {f'{self.norm} {r:g}: certified':<26}{percent(proportion(self.certified(r)))}"
            if not self.provable[r][0]:
                line = f"  {f'{self.norm} {r:g}:':<26}{unprovable(self.n, self.provable[r][1], self.exact)}"
            if r in self.attacked:
                line += f"   attacked ({self.attack}), first {len(self.attacked[r])}: "
                line += percent(proportion(self.standing(r)))
                line += f"   {int(self.beaten(r).sum())} certificates beaten"
            rows.append(line)
        rows.append(
            f"  the largest of these radii that can be proved covers changes of every element by "
            f"{self.every_element:.4f} at once (Linf), which is small"
        )
        return printable("\n".join(rows))


def rounded_down(radius: float) -> str:
    """So that no radius seems provable that is not.

    >>> rounded_down(0.9999)
    '0.999'
    """
    return f"{math.floor(radius * 1000 + 1e-9) / 1000:.3f}"


def unprovable(n: int, could: int | None, exact: bool) -> str:
    """Why a radius stands without a number."""
    if could is None:
        return f"not provable: no {'input' if exact else 'number of draws'} reaches it at this sigma"
    return f"not provable with {n:,} draws ({could:,} would)"


def certify_robustness(
    model: SmoothedClassifier,
    x: Tensor,
    y: Tensor,
    *,
    radii: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
    n0: int = 100,
    n: int = 10_000,
    alpha: float = 0.001,
    n_attacked: int = 0,
    attack_steps: int = 20,
    attack: str = "pgd",
    stop_early: bool = False,
    ids: Tensor | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    seed: int | None = None,
    name: str = "the smoothed classifier",
    progress: bool = False,
) -> CertificationReport:
    """Certify each input, and attack some of them at the same radii.

    Certified accuracy is a lower bound: no attack leaves less, whatever it knows, but with probability alpha for each
    input. (Any seed will do: the inputs were there before it.) What is left under an attack whose gradients average
    over the noise, with a verdict of fresh draws, is an upper one.

    Args:
        model: what :func:`robustgen.smooth` gave.
        x, y: (N, ...) in the bounds, int64 (N,).
        radii: at which accuracy is told, in the norm of the smoothing.
        n0, n, alpha: see :meth:`SmoothedClassifier.certify`.
        n_attacked: how many of the first inputs are attacked; attacks are in L2 alone.
        attack: "pgd", with ``attack_steps`` steps; or "standard", the suite of that name for stochastic models, about a
            thousand times as dear: for a few inputs. What one of its attacks has made fall, the next does not see.
        stop_early: leave out draws that decide nothing: accuracies and abstentions stay what they are, radii of single
            inputs and their average become smaller.
        ids: int64 (N,), by which they are told.
        run_dir: where finished certificates are kept; with ``resume`` they are read again.
        seed: of the certificates, instead of the model's; splitting noise keeps its own. A secret one is not written
            in the report. Attacks are judged by other draws.
        progress: show a bar.

    Raises:
        TypeError: no smoothed classifier.
        ValueError: what ``certify`` refuses, no input, a radius that is not positive, or a ``run_dir`` that holds
            another evaluation.
    """
    if not isinstance(model, SmoothedClassifier):
        raise TypeError(f"certify_robustness takes what robustgen.smooth gives, got {type(model).__name__}")
    x = check_images(x, model.bounds)
    y = check_labels(y, len(x))
    ids = check_ids(torch.arange(len(x)) if ids is None else ids, len(x), x.device)
    check_integers(0, n_attacked=n_attacked)
    check_integers(attack_steps=attack_steps)
    if attack not in ATTACKS:
        raise ValueError(f"unknown attack {attack!r}; {nearest(attack, ATTACKS)}")
    if not len(x):
        raise ValueError("there is no input to certify")
    if not radii:
        raise ValueError("name one radius at least")
    for radius in radii:
        check_positive(radius=radius)
    if n_attacked and model.norm != "L2":
        raise ValueError(f"the attack is in L2, certificates of {model.config['noise']} noise are in {model.norm}")
    if n_attacked and model.bounds is None:
        raise ValueError("the attack needs the bounds of the inputs: smooth(..., bounds=(low, high))")
    wall = WallClock(None if run_dir is None else Path(run_dir) / KEPT)
    if seed is not None:
        check_seed(seed)
    used = model.seed if seed is None or model.exact else seed
    key = used or 0  # of what is drawn in the open: attacks, their verdicts, pictures
    if model.exact:
        n0, n, alpha, stop_early = 0, model.versions, 0.0, False
    provable = {r: model.provable(r, n, alpha) for r in radii}
    decided = [0.0, *(r for r in radii if provable[r][0])] if stop_early else None
    plan: dict[str, Any] = {
        "model": model_fingerprint(model),
        "examples": fingerprint({"x": x, "y": y, "ids": ids}),
        "certificates": {"n0": n0, "n": n, "alpha": alpha, "seed": used},
        "attacks": {"n": n_attacked, "steps": attack_steps, "radii": list(radii)} if n_attacked else None,
    }
    options = dict(plan["certificates"])
    if decided is not None:
        plan["early stop"] = decided
        options["radius"] = decided
    if n_attacked and attack != "pgd":
        plan["attacks"]["suite"] = attack
    if model.exact:
        options = {}
    with nullcontext() if run_dir is None else alone(Path(run_dir), wait=False), showing(progress):
        keep = wall.each(anew if run_dir is None else kept_of(Path(run_dir), KEPT, plan, resume))
        parts = [
            keep(f"{k:06d}", _CERTIFICATE, partial(_certified, model, few, options))
            for k, few in enumerate(track(x.split(_AT_ONCE), f"{name}, certificates"))
        ]
        found = {entry: torch.cat([part[entry] for part in parts]) for entry in _CERTIFICATE}
        few, labels = x[:n_attacked], y[:n_attacked]
        attacked = {
            radius: _attacked(model, few, labels, _attacks(model, attack, radius, attack_steps, key), plan, keep, k)
            for k, radius in enumerate(track(radii if n_attacked else (), f"{name}, attacks"))
        }
    largest = 1.0 if model.exact else most_provable(n, alpha)
    most = model.noise.radius(torch.tensor([largest], dtype=torch.float64))
    return CertificationReport(
        name=name,
        sigma=model.sigma,
        noise=str(model.config["noise"]),
        norm=model.norm,
        precision=model.precision,
        n0=n0,
        n=n,
        alpha=alpha,
        seed=used,
        ids=ids.cpu(),
        y=y.cpu(),
        **found,
        radii=tuple(radii),
        attacked=attacked,
        most=float(most),
        dimensions=x[0].numel(),
        provable=provable,
        attack=attack,
        exact=model.exact,
        stopped_early=stop_early,
        pictures=_pictures(model, x[:_PICTURES], key),
        wall_seconds=wall.keep(finished=True),
    )


def _certified(model: SmoothedClassifier, x: Tensor, options: dict[str, Any]) -> dict[str, Tensor]:
    certificate = model.certify(x, **options)
    return {name: getattr(certificate, name) for name in _CERTIFICATE}


def _attacks(model: SmoothedClassifier, name: str, radius: float, steps: int, seed: int) -> list[Attack]:
    """They stay a hair inside the radius, and go on where the logits of a few draws are already wrong."""
    assert model.bounds is not None
    eps = radius * (1 - 1e-5)
    if name == "pgd":
        return [PGD(eps=eps, norm="L2", steps=steps, early_stop=False, seed=seed, bounds=model.bounds)]
    suite = suite_of("standard", eps, "L2", model.bounds, seed, stochastic=True)
    return [stage.attack.for_training() for stage in suite.values()]


def _attacked(
    model: SmoothedClassifier, x: Tensor, y: Tensor, attacks: list[Attack], plan: dict[str, Any], keep: Keep, k: int
) -> Tensor:
    """What is predicted, by draws that no certificate used, at the points of the first attack with which another class
    is, or else of the last."""
    options = plan["certificates"]
    n, seed = min(options["n"], 1000), derive_seed(options["seed"] or 0, _VERDICT)
    alpha = options["alpha"] or 0.5  # certificates without chance have none: nor do verdicts look at it
    found, open_ = y.cpu().clone(), torch.ones(len(y), dtype=torch.bool)
    for j, attack in enumerate(attacks):
        rows = open_.nonzero()[:, 0].to(x.device)

        def predicted(attack: Attack = attack, rows: Tensor = rows) -> dict[str, Tensor]:
            points = attack(model, x[rows], y[rows]) if len(rows) else x[rows]
            return {"found": model.predict(points, n, alpha, seed=seed).cpu()}

        name = f"attack-{k:03d}" + (f"-{j:02d}" if len(attacks) > 1 else "")
        found[open_] = keep(name, ("found",), predicted)["found"]
        open_ = (found == y.cpu()) | (found < 0)
    return found


def _pictures(model: SmoothedClassifier, x: Tensor, seed: int) -> list[dict[str, Any]]:
    """Images as they are, with noise, and without it again."""
    low, high = model.bounds or (0.0, 1.0)
    found = []
    with torch.no_grad(), untouched(model):
        for k, one in enumerate(x):
            generator = torch.Generator(x.device).manual_seed(derive_seed(seed, _PICTURE, k))
            noisy = model.noise.draw(one, 1, generator)
            shown = {"image": one, "noisy": noisy[0]}
            if model.denoiser is not None:
                shown["denoised"] = model.denoiser.denoise(noisy, model.sigma)[0]
            pictures = {name: encode_picture(((t - low) / (high - low)).clamp(0, 1)) for name, t in shown.items()}
            if pictures["image"] is None:
                return []
            found.append(pictures)
    return found
