"""A second opinion on claimed adversarial examples, which shares no code with the attacks that made them.

A bug in the projection of an attack, in its bookkeeping or in a prepared copy of the network shows up as robustness
broken for free. So everything is computed again here: the distance from the raw numbers, the verdict from the user's
own model.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from robustgen.checks import check_bounds, check_images, check_labels
from robustgen.model import Model, check_rows_alone, is_stochastic, logits_of, naming_inputs, untouched

__all__ = ["RoundedCheck", "Verification", "verify"]

NORMS = ("Linf", "L2", "L1", "L0")
BATCH = 256
LEVELS = 255  # steps between the values of an 8-bit input
_SLACK = 1e-3  # of a level: float32 inputs are not exactly on the grid


@dataclass(frozen=True)
class RoundedCheck:
    """The same examples as 8-bit inputs.

    Attributes:
        x_adv: (N, ...) on the grid of 256 values between the bounds.
        fooled: bool (N,), whether they still fool the model.
        inside: bool (N,), whether they are still in the ball, counted in levels and up to a thousandth of one.
        distance: float64 (N,), their norm.
    """

    x_adv: Tensor
    fooled: Tensor
    inside: Tensor
    distance: Tensor


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` found.

    Attributes:
        accepted: bool (N,).
        reasons: N strings, why an example was rejected; empty where it was accepted.
        distance: float64 (N,), norm of x_adv - x; NaN where that is not finite.
        votes: float64 (N,), share of the draws that were fooled, 0 or 1 for a deterministic model; NaN where an
            example was rejected before the model was asked.
        predicted: int64 (N,), the class that most draws said, the most frequent wrong one where the model was fooled;
            -1: none, as the model was not asked or its logits are not finite.
        rounded: the 8-bit check, if asked for.
    """

    accepted: Tensor
    reasons: tuple[str, ...]
    distance: Tensor
    votes: Tensor
    predicted: Tensor
    rounded: RoundedCheck | None = None


def verify(
    model: Model,
    x: Tensor,
    x_adv: Tensor,
    y: Tensor,
    *,
    eps: Tensor | float,
    norm: str,
    bounds: tuple[float, float] = (0.0, 1.0),
    targeted: bool = False,
    rounding: bool = False,
    votes: int = 9,
    seed: int = 0,
) -> Verification:
    """Check claimed adversarial examples from nothing: finite, of the right dtype, in the bounds, in the ball, fooling.

    The ball is closed and has no tolerance: whether a point is inside is decided in exact arithmetic on the numbers as
    they are stored. A bound is read in the dtype of ``x``. The model is asked in its own precision, in eval mode, and
    left untouched; where passes differ it is stochastic, and must be fooled in most of ``votes`` fresh draws.
    Logits with NaN or Inf predict nothing: not the true class, and not the target.

    Args:
        x: float (N, ...) in ``bounds``, the inputs that were attacked.
        x_adv: (N, ...), what is claimed to fool the model.
        y: int64 (N,), true labels; with ``targeted``, the targets.
        eps: number or (N,), radius of the ball; Inf leaves only the bounds.
        norm: "Linf", "L2", "L1" or "L0".
        rounding: check the examples as 8-bit inputs too. Linf: every element is rounded towards x, so that the ball
            holds; other norms: to the nearest value, and the norm is reported.
        votes: draws of a stochastic model.
        seed: of these draws.

    Raises:
        TypeError, ValueError: x, y, eps, bounds or votes are no valid input, an unknown norm, or x_adv has another
            shape than x.

    >>> model = lambda x: torch.stack([x.sum(1), 1 - x.sum(1)], 1)
    >>> x, y = torch.full((2, 1), 0.75), torch.tensor([0, 0])
    >>> found = verify(model, x, torch.tensor([[0.4375], [0.25]]), y, eps=0.4, norm="Linf")
    >>> found.accepted.tolist(), found.reasons
    ([True, False], ('', 'outside the ball: Linf distance 0.5, eps 0.4'))
    """
    bounds = check_bounds(bounds)
    x = check_images(x, bounds).detach()
    y = check_labels(y, len(x)).to(x.device)
    if not isinstance(x_adv, Tensor) or x_adv.shape != x.shape:
        raise ValueError(f"x_adv must be a tensor of shape {tuple(x.shape)}, like x")
    if norm not in NORMS:
        raise ValueError(f"norm must be {', '.join(NORMS[:-1])} or {NORMS[-1]}, not {norm!r}")
    if votes < 1:
        raise ValueError(f"votes must be at least 1, got {votes}")
    radius = torch.as_tensor(eps, dtype=torch.float64, device=x.device).detach()
    if radius.ndim > 1 or (radius.ndim == 1 and len(radius) != len(x)) or not bool((radius >= 0).all()):
        raise ValueError(f"eps must be a number >= 0 or hold one for each of the {len(x)} inputs")
    radius = radius.expand(len(x))
    x_adv = x_adv.detach().to(x.device)

    finite = x_adv.flatten(1).isfinite().all(1)
    shown = torch.where(_column(finite, x), x_adv, x)
    low, high = (x.new_tensor(b).to(shown.dtype) for b in bounds)
    bounded = ((shown >= low) & (shown <= high)).flatten(1).all(1)
    distance = torch.where(finite, _norm(_difference(x, shown)[0].flatten(1), norm), float("nan"))
    inside = _inside(x, shown, radius, norm)
    same_dtype = x_adv.dtype == x.dtype
    sound = finite & bounded & inside & same_dtype
    asked = shown.to(x.dtype)
    share, predicted = _answers(model, asked, y, sound, targeted, votes, seed)
    accepted = 2 * share > 1  # False where the share is NaN

    def reason(k: int) -> str:
        if not finite[k]:
            return "NaN or Inf"
        if not same_dtype:
            return f"{x_adv.dtype} instead of {x.dtype}"
        if not bounded[k]:
            return f"outside the bounds {bounds}"
        if not inside[k]:
            return f"outside the ball: {norm} distance {distance[k]:.9g}, eps {radius[k]:.9g}"
        if votes > 1 and 0 < share[k] < 1:
            return f"fools only {share[k]:.0%} of {votes} draws"
        return "does not reach the target" if targeted else "does not fool the model"

    reasons = tuple("" if good else reason(k) for k, good in enumerate(accepted.tolist()))
    rounded = None
    if rounding:
        grid, near = _to_8_bit(x, asked, radius, norm, bounds)
        fooled = 2 * _answers(model, grid, y, finite, targeted, votes, seed)[0] > 1
        rounded = RoundedCheck(grid, fooled, near, _norm(_difference(x, grid)[0].flatten(1), norm))
    return Verification(accepted, reasons, distance, share, predicted, rounded)


def _column(v: Tensor, like: Tensor) -> Tensor:
    return v.reshape(-1, *[1] * (like.ndim - 1))


def _difference(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """z - x as an unevaluated sum of two float64, exactly (Knuth's TwoSum): the rounded difference and its error."""
    a, b = z.double(), -x.double()
    s = a + b
    part = s - a
    return s, (a - (s - part)) + (b - part)


def _norm(delta: Tensor, norm: str) -> Tensor:
    """Of each row (N, D), float64 (N,); zero for D = 0."""
    if norm == "L0":
        return (delta != 0).sum(1).double()
    size = delta.double().abs()
    if norm == "L1":
        return size.sum(1)
    peak = size.amax(1) if size.shape[1] else size.new_zeros(len(size))
    if norm == "Linf":
        return peak
    scale = torch.where(peak > 0, peak, 1.0)  # squares of tiny numbers would underflow
    return scale * (size / scale[:, None]).square().sum(1).sqrt()


def _inside(x: Tensor, z: Tensor, radius: Tensor, norm: str) -> Tensor:
    """Whether each z (N, ...) is in the closed ball around x, in exact arithmetic, bool (N,)."""
    delta, error = (t.flatten(1) for t in _difference(x, z))
    if norm == "Linf":
        eps = radius[:, None]
        farther = (delta.abs() > eps) | ((delta.abs() == eps) & (delta.sign() * error > 0))
        return ~farther.any(1)
    length = _norm(delta, norm)
    if norm == "L0":
        return length <= radius
    inside = length <= radius
    band = 2.0**-51 * (delta.shape[1] + 4)  # relative: more than rounding can do to a sum of so many terms
    close = ((length - radius).abs() <= band * radius) & radius.isfinite()
    for k in close.nonzero().squeeze(1).tolist():
        pairs = zip(z[k].flatten().tolist(), x[k].flatten().tolist(), strict=True)
        sizes = (abs(Fraction(a) - Fraction(b)) for a, b in pairs if a != b)
        inside[k] = _exactly_within(sizes, Fraction(radius[k].item()), norm)
    return inside


def _exactly_within(sizes: Iterable[Fraction], eps: Fraction, norm: str) -> bool:
    if norm == "L1":
        return sum(sizes, Fraction(0)) <= eps
    return sum((s * s for s in sizes), Fraction(0)) <= eps * eps


def _answers(
    model: Model, z: Tensor, y: Tensor, rows: Tensor, targeted: bool, votes: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Share of draws in which the model errs at z (or, targeted, says y), float64 (N,), and what it says, int64 (N,).

    Outside ``rows`` NaN and -1.
    """
    share = torch.full((len(z),), float("nan"), dtype=torch.float64, device=z.device)
    predicted = torch.full((len(z),), -1, dtype=torch.int64, device=z.device)
    chosen = rows.nonzero().squeeze(1)
    if not len(chosen):
        return share, predicted

    def ask(i: Tensor) -> Tensor:
        with naming_inputs(z):
            logits = logits_of(model(z[i]))
        if len(logits) != len(i):
            raise ValueError(f"the model returned {len(logits)} rows of logits for {len(i)} inputs")
        return logits

    def said(i: Tensor) -> Tensor:
        logits = ask(i)
        return torch.where(logits.isfinite().all(1), logits.argmax(1), -1)

    with torch.inference_mode(False), torch.no_grad(), untouched(model, seed):
        first = chosen[:4]
        stochastic = is_stochastic(lambda: ask(first))
        if not stochastic:
            check_rows_alone(lambda rows: logits_of(model(rows)), z[first])
        draws = votes if stochastic else 1
        for i in chosen.split(BATCH):
            answers = torch.stack([said(i) for _ in range(draws)])  # (draws, n)
            fooled = (answers == y[i]) if targeted else (answers != y[i])
            share[i] = fooled.double().mean(0)
            counted = fooled | (2 * share[i] <= 1)  # where most were fooled: what these said
            classes = one_hot(1 + answers, 2 + int(answers.max())) * counted[..., None]
            predicted[i] = classes.sum(0).argmax(1) - 1
    return share, predicted


def _to_8_bit(x: Tensor, z: Tensor, radius: Tensor, norm: str, bounds: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """``z`` on the grid of 256 values, in the dtype of x, and which rows are still in the ball, bool (N,)."""
    unit = (bounds[1] - bounds[0]) / LEVELS
    at, home = ((t.double() - bounds[0]) / unit for t in (z, x))
    if norm == "Linf":
        level = torch.where(at >= home, (at + _SLACK).floor(), (at - _SLACK).ceil())
    else:
        level = at.round()
    level = level.clamp(0, LEVELS)
    moved = (level - home).flatten(1)
    moved = torch.where(moved.abs() <= _SLACK, 0.0, moved)
    limit = radius if norm == "L0" else radius / unit + _SLACK
    return (bounds[0] + level * unit).clamp(*bounds).to(x.dtype), _norm(moved, norm) <= limit
