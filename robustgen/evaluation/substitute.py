"""A substitute for a network that answers with labels only, to attack it by transfer.

Papernot, McDaniel, Goodfellow, Jha, Celik and Swami, "Practical Black-Box Attacks against Machine Learning", 2017,
algorithm 1: label a few inputs with the target, train on them, add the neighbours at which the substitute says that
the labels change fastest, and begin again.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustgen.checks import check_bounds, check_images, check_integers, check_positive, plain_arguments
from robustgen.counter_rng import derive_seed
from robustgen.model import Model, logits_of, naming_inputs, untouched
from robustgen.training import ClassifierObjective, Trainer
from robustgen.turns import seeded

__all__ = ["Substitute", "train_substitute"]


@dataclass(frozen=True)
class Substitute:
    """What :func:`train_substitute` returns.

    Attributes:
        network: the substitute, in eval mode, on the device of the attacker's inputs.
        n_queries: how many inputs the target was asked to label.
        agreement: share of these inputs, in [0, 1], to which the substitute gives the target's label. It was trained
            on them; how it does on other inputs takes further queries.
    """

    network: nn.Module
    n_queries: int
    agreement: float


@plain_arguments
def train_substitute(
    target: Model,
    x: Tensor,
    *,
    network: Callable[[], nn.Module],
    rounds: int = 6,
    epochs: int = 10,
    step: float = 0.1,
    bounds: tuple[float, float] = (0.0, 1.0),
    batch_size: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
    progress: bool = False,
) -> Substitute:
    """Train a substitute on what ``target`` answers to ``x`` and to inputs made from it; only its argmax is used.

    Each round trains the substitute, from where the last round left it, on all inputs labelled so far. After every
    round but the last, x + step * sign(d g_label(x) / dx), clipped to the bounds, joins for every x of the set, with
    g_label the substitute's logit of the label that the target gave x. The set doubles ``rounds - 1`` times, so that
    the target is asked ``n * 2**(rounds - 1)`` labels in all.

    Attack with ``TransferAttack(surrogate=substitute.network, attack=FGSM(eps=0.3))``, on inputs other than ``x``.

    Args:
        target: the model under attack, left exactly as it was.
        x: float (n, ...) in ``bounds``: the attacker's own inputs, a few hundred.
        network: makes an untrained substitute with as many classes as the target; called once.
        rounds: of training.
        epochs, batch_size, lr: of each round, with Adam.
        step: of the augmentation, in units of the input. Positive, as in the source, it leads into the class that the
            target gave; negative, towards the boundary that the substitute has yet to learn.
        bounds: lowest and highest value of the input space.
        seed: of everything random; the global random state is not advanced.
        progress: show progress bars.

    Raises:
        TypeError: x is not a float32 / float64 tensor, ``network()`` is no nn.Module, or the target or the substitute
            do not return logits.
        ValueError: an empty x, values outside the bounds, a number out of range, inputs that the target or the
            substitute do not take, NaN or Inf logits of the target, or a substitute with fewer classes than the target.

    >>> target = nn.Linear(4, 2)
    >>> found = train_substitute(target, torch.rand(10, 4), network=lambda: nn.Linear(4, 2), rounds=3)
    >>> found.n_queries, 0 <= found.agreement <= 1
    (40, True)
    """
    bounds = check_bounds(bounds)
    x = check_images(x, bounds).detach()
    if not len(x):
        raise ValueError("x is empty: the attacker needs inputs to begin with")
    check_integers(rounds=rounds, epochs=epochs, batch_size=batch_size)
    if not 0 < abs(step) < float("inf"):
        raise ValueError(f"step must be a finite number other than 0, got {step}")
    check_positive(lr=lr)

    def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=lr)

    y = _labels(target, x, batch_size, seed)
    substitute = _build(network, seed).to(x.device)
    for number in range(rounds):
        if number:
            new = _augment(substitute, x, y, step, bounds, batch_size)
            x, y = torch.cat([x, new]), torch.cat([y, _labels(target, new, batch_size, derive_seed(seed, number))])
        trainer = Trainer(
            ClassifierObjective(),
            optimizer=adam,
            epochs=epochs,
            batch_size=batch_size,
            seed=derive_seed(seed, number),
            progress=progress,
        )
        trainer.fit(substitute, (x, y))
    agreement = (_labels(substitute, x, batch_size, seed) == y).double().mean().item()
    return Substitute(substitute.eval(), len(x), agreement)


def _build(network: Callable[[], nn.Module], seed: int) -> nn.Module:
    with seeded(seed):
        built = network()
    if not isinstance(built, nn.Module):
        raise TypeError(f"network() must return an nn.Module, got {type(built).__name__}")
    return built


def _labels(model: Model, x: Tensor, batch_size: int, seed: int) -> Tensor:
    """The classes (n,) that ``model`` gives ``x`` (n, ...)."""
    labels = []
    with torch.no_grad(), untouched(model, seed):
        for part in x.split(batch_size):
            with naming_inputs(part):
                logits = logits_of(model(part))
            if len(logits) != len(part):
                raise ValueError(f"the model returned {len(logits)} rows of logits for {len(part)} inputs")
            if not bool(logits.isfinite().all()):
                raise ValueError("the model returns NaN or Inf logits, which are no label")
            labels.append(logits.argmax(1).to(x.device))
    return torch.cat(labels)


def _augment(
    substitute: nn.Module, x: Tensor, y: Tensor, step: float, bounds: tuple[float, float], batch_size: int
) -> Tensor:
    """The Jacobian-based augmentation: ``x`` (n, ...) moved along the sign of the gradient of its label's logit."""
    moved = []
    with torch.enable_grad(), untouched(substitute):
        for part, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
            leaf = part.clone().requires_grad_(True)
            own = logits_of(substitute(leaf)).gather(1, labels[:, None])
            (gradient,) = torch.autograd.grad(own.sum(), leaf)
            moved.append((part + step * gradient.sign()).clamp(*bounds))
    return torch.cat(moved)
