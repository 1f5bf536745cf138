"""What the library needs to know of a user's model: its logits, and how to query it without leaving a trace."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustgen.checks import warn_user
from robustgen.inputs import Inputs, count, described, each
from robustgen.turns import CUDNN, RANDOM_STATE, RandomStream, seeded, taking_turns

__all__ = [
    "ROUNDING_OF_ANSWERS",
    "Model",
    "Normalize",
    "check_rows_alone",
    "check_rows_draw_alone",
    "evaluating",
    "is_stochastic",
    "kept_buffers",
    "kl_divergence",
    "logits_of",
    "naming_inputs",
    "output_itself",
    "output_tensor",
    "untouched",
    "warn_if_probabilities",
]

# By which answers to one input may differ, of the largest, with the size of the batch and the machine: kernels round
# otherwise, and a digit of bfloat16 is nearly so much.
ROUNDING_OF_ANSWERS = 1e-2
_SAME_BATCH_SIZE = 1e-4
_PASSES = _ROWS = 64  # of an analysis of variance
_FALSE_ALARM = 1e-6

Model = Callable[[Tensor], Any]  # x (N, ...) in bounds -> logits (N, C), or an object with a .logits field


class Normalize(nn.Module):
    """(x - mean) / std for each channel, so that a model takes pixels in [0, 1] and attacks see the pixel space.

    Args:
        mean, std: one number for each channel of x (N, C, ...), or one for all.

    Raises:
        ValueError: different lengths, or a std that is not positive.

    >>> Normalize([0.5], [0.25])(torch.ones(1, 1, 2, 2)).unique()
    tensor([2.])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(s > 0 for s in std):
            raise ValueError(
                f"mean and std must have one entry for each channel (or one), std > 0; got {mean} and {std}"
            )
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim < 2 or len(self.mean) not in (1, x.shape[1]):
            wanted = f"expected {len(self.mean)} channels in dimension 1, as mean and std have"
            raise ValueError(f"{wanted}, got shape {tuple(x.shape)}")
        shape = (1, -1) + (1,) * (x.ndim - 2)
        return (x - self.mean.reshape(shape)) / self.std.reshape(shape)


def output_tensor(output: object) -> Tensor:
    """The tensor in a model's output: the output itself, its ``.logits`` field, or the first item of a tuple or list.

    A recurrent network that returns (logits, state) is meant by the last. TypeError for anything else.
    """
    tensor = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if tensor is None and isinstance(output, tuple | list) and output:
        tensor = output[0]
    if not isinstance(tensor, Tensor):
        raise TypeError(f"the model must return a tensor or an object with .logits, not {type(output).__name__}")
    return tensor


def output_itself(output: Any) -> Any:
    """A model's output object where it has ``.logits``, else its :func:`output_tensor`."""
    return output if hasattr(output, "logits") else output_tensor(output)


def logits_of(output: object) -> Tensor:
    """The logits (N, C) in a classifier's output, which is a tensor or an object with a ``.logits`` field.

    Raises:
        TypeError: neither.
        ValueError: not two-dimensional, or fewer than two classes.
    """
    if isinstance(output, tuple | list) and not hasattr(output, "logits"):
        raise TypeError(f"a classifier must return a tensor or an object with .logits, not {type(output).__name__}")
    logits = output_tensor(output)
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"the model must return logits (N, C) with C >= 2, got shape {tuple(logits.shape)}")
    return logits


def warn_if_probabilities(logits: Tensor) -> None:
    """Warn where every row is non-negative and sums to one: a softmax at the end hides gradients from attacks."""
    if len(logits) and bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < 1e-4).all()):
        warn_user("the model's output looks like probabilities; return logits (before softmax)")


@contextmanager
def evaluating(model: object) -> Iterator[None]:
    """Put every submodule of ``model`` in eval mode; restore each one's own flag afterwards, also on an exception.

    Other threads that want the model in here wait. A network that ``torch.export`` made keeps the mode that it was
    exported in, and one that ``torch.jit`` froze has none.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    with taking_turns(model):
        flags = [(m, m.training) for m in model.modules() if hasattr(m, "training")]
        try:
            if any(flag for _, flag in flags):
                with suppress(NotImplementedError):  # of torch.export
                    model.eval()
            for m, flag in flags:
                if flag:
                    m.training = False
            yield
        finally:
            for m, flag in flags:
                if flag and type(m).train is not nn.Module.train:  # it may keep more than the flag
                    m.train(True)
            for m, flag in flags:
                if m.training != flag:
                    m.training = flag


@contextmanager
def naming_inputs(x: Inputs) -> Iterator[None]:
    """Turn what torch raises for another number of channels or inputs, another size or dtype, or for tokens that an
    embedding does not have, into a ValueError.

    The line says which inputs x (N, ...) these are, and how many: exported and traced networks may take just one N.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError, IndexError) as error:
        line, n = " ".join(str(error).split()), f", {count(x)} of them" if count(x) else ""
        raise ValueError(f"the model fails on inputs of {described(x)}{n}: {line}") from error


def is_stochastic(ask: Callable[[], Tensor], passes: int = 8, first: Tensor | None = None) -> bool:
    """Whether passes of a model, each of which ``ask`` makes and returns the logits of, differ by more than rounding.

    ``first``: the logits of the first of them, where it was made already.

    Two passes of a deterministic model may differ in the last bits too (atomics on a GPU). A model that draws rarely
    may go unnoticed: one that tosses a coin for each pass, with ``passes`` of them, once in 2^(passes - 1) times.

    >>> is_stochastic(lambda: torch.rand(2, 3)), is_stochastic(lambda: torch.ones(2, 3))
    (True, False)
    """
    first = ask() if first is None else first
    again = (ask() for _ in range(passes - 1))
    return not all(torch.allclose(first, logits, rtol=1e-5, atol=1e-6, equal_nan=True) for logits in again)


def check_rows_alone(ask: Callable[[Any], Tensor], x: Inputs, of: str = "model's output", within: float = 0.0) -> None:
    """Refuse what answers a row otherwise in other company or at another place: no answer is then that of one input.

    So do batch statistics at test time, a closure over other inputs, a scale that is taken over the whole batch.

    Args:
        ask: x (n, ...) -> answers (n, ...), the same each time.
        x: (n, ...) a few inputs, at least one.
        of: what the message calls the answers.
        within: a difference that counts as rounding, besides a share of the largest answer.

    Raises:
        ValueError: an answer differs by more than rounding, or rows are answered in batches of one size only.

    >>> check_rows_alone(lambda x: x / x.amax(), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    Traceback (most recent call last):
    ValueError: the model's output for an input depends on the others in its batch (batch statistics at test time, ...
    """
    rows = x if count(x) > 1 else each(x, _in_company)
    together = ask(rows)
    try:
        alone = ask(each(rows, lambda t: t[:1]))
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, RuntimeError, ValueError) as error:
        line = " ".join(str(error).split())
        raise ValueError(
            f"the model takes {count(rows)} inputs at once but not one alone (a fixed batch size?): {line}"
        ) from error
    one = ask(each(rows, lambda t: torch.cat([_other(t)[:1], t[1:]])))
    pairs = [
        (one[:1], ask(each(rows, _other))[:1], _SAME_BATCH_SIZE),  # at the same place: no kernel has a reason to differ
        (together, ask(each(rows, lambda t: t.flip(0))).flip(0), ROUNDING_OF_ANSWERS),
        (together[:1], alone, ROUNDING_OF_ANSWERS),
    ]
    size = together.nan_to_num(0.0, 0.0, 0.0).abs()
    largest = size.amax()
    for a, b, share in pairs:
        # of one batch size rounding is far below each answer's own size, which one large constant must not hide
        scale = largest if share == ROUNDING_OF_ANSWERS else torch.maximum(size.amax(0), 1e-2 * largest)
        if _differ(a, b, within + share * scale):
            raise ValueError(_NOT_ALONE.format(of))


_NOT_ALONE = (
    "the {} for an input depends on the others in its batch (batch statistics at test time, a closure over other "
    "inputs, a scale over the whole batch): each row must be answered by itself"
)


def _differ(a: Tensor, b: Tensor, by: Tensor | float) -> bool:
    return bool((torch.where(a.isfinite() & b.isfinite(), a - b, 0.0).abs() > by).any())


def check_rows_draw_alone(ask: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Refuse a network that draws random numbers, unless each row's answer is drawn without a look at the others.

    With the random state reset, an answer at one place must stay while the other rows change. Where that cannot be seen
    (what is drawn depends on the content, or comes from a generator of the network's own), its mean must. Then 64
    passes of 64 equal rows: whether passes, or places, vary by more or by less than rows that draw alone, by two-way
    analysis of variance of the logits' distances to the largest one. An alarm has to repeat itself in fresh passes.
    Of networks with Gaussian noise of their own less than one in a million is refused.

    What it cannot see: shared noise with less than a twentieth of the variance of each row's own (found with
    probability 0.999 from there on), numbers that only some rows share, or a network that shares rarely.

    Args:
        ask: x (n, ...) -> logits (n, C), by torch's global random numbers; their state is as it was afterwards only in
            :func:`untouched`.
        x: (n, ...) a few inputs; the first one is asked.

    Raises:
        ValueError: rows share random numbers, or an answer depends on the others.

    >>> check_rows_draw_alone(lambda x: x + torch.randn(len(x), 2), torch.ones(4, 2))
    >>> check_rows_draw_alone(lambda x: x + torch.randn(1, 2), torch.ones(4, 2))
    Traceback (most recent call last):
    ValueError: the network draws random numbers that all rows of a batch share: votes would not be independent; draw...
    """
    one = x[:1]
    companies = [torch.cat([one, others]) for others in (x[1:], _other(x[1:]), one.expand_as(x[1:]))]
    (first, place), *others, (again, _) = [_seeded_pass(ask, rows) for rows in (*companies, companies[0])]
    scale = _SAME_BATCH_SIZE * torch.maximum(first[0].abs(), 1e-2 * first.nan_to_num(0.0, 0.0, 0.0).abs().amax())
    if not _differ(again[0], first[0], scale) and all(torch.equal(drawn, place) for _, drawn in others):
        if any(_differ(answers[0], first[0], scale) for answers, _ in others):
            raise ValueError(_NOT_ALONE.format("model's output"))
    elif _alarm(lambda: _of_company(ask, one, x[1:])) and _alarm(lambda: _of_company(ask, one, x[1:])):
        raise ValueError(_NOT_ALONE.format("model's output"))
    rows = one.expand(_ROWS, *one.shape[1:])
    if _alarm(lambda: _of_passes(ask, rows)) and _alarm(lambda: _of_passes(ask, rows)):
        raise ValueError(
            "the network draws random numbers that all rows of a batch share: votes would not be independent; draw for "
            "each row"
        )


def _seeded_pass(ask: Callable[[Tensor], Tensor], rows: Tensor) -> tuple[Tensor, Tensor]:
    """Answers with the random state reset, and where they left it: the numbers that come next."""
    with seeded(0):
        return ask(rows), torch.cat([torch.rand(2), torch.rand(2, device=rows.device).cpu()])


def _of_passes(ask: Callable[[Tensor], Tensor], rows: Tensor) -> list[tuple[Tensor, Tensor, int, int]]:
    """Mean squares of passes beside those of the rest, with degrees of freedom; and of places in the batch."""
    answers = torch.stack([_finite(ask(rows)) for _ in range(_PASSES)])
    best = answers.mean((0, 1)).argmax()
    found = answers - answers[..., best, None]  # (P, R, C): what all classes share decides no vote
    passes, places = found.mean(1, keepdim=True), found.mean(0, keepdim=True)
    rest = (found - passes - places + found.mean((0, 1))).square().sum((0, 1)) / ((_PASSES - 1) * (_ROWS - 1))
    free = (_PASSES - 1) * (_ROWS - 1)
    of_places = _PASSES * places[0].var(0)
    rounding = places.std(1).amax() < ROUNDING_OF_ANSWERS * answers.abs().amax()  # kernels round by the place
    return [
        (_ROWS * passes[:, 0].var(0), rest, _PASSES - 1, free),
        (torch.where(rounding, rest, of_places), rest, _ROWS - 1, free),
    ]


def _of_company(ask: Callable[[Tensor], Tensor], one: Tensor, others: Tensor) -> list[tuple[Tensor, Tensor, int, int]]:
    """Mean squares of the company that an input is in, beside those of passes."""
    several = one.expand(_ROWS // 2, *one.shape[1:])
    means = []
    for part in (others, _other(others)):
        rows = torch.cat([several, part[torch.arange(_ROWS // 2) % len(part)]])
        means.append(torch.stack([_finite(ask(rows))[: _ROWS // 2].mean(0) for _ in range(_PASSES)]))
    first, second = means  # (P, C)
    between = _PASSES / 2 * (first.mean(0) - second.mean(0)).square()
    return [(between, (first.var(0) + second.var(0)) / 2, 1, 2 * (_PASSES - 1))]


def _finite(logits: Tensor) -> Tensor:
    return logits.double().nan_to_num(0.0, 0.0, 0.0)


def _alarm(mean_squares: Callable[[], list[tuple[Tensor, Tensor, int, int]]]) -> bool:
    """Whether one of several ratios (C,) lies where an F distribution puts it once in a million, in all."""
    from scipy.stats import f  # slow to import

    found = mean_squares()
    for above, below, *free in found:
        level = _FALSE_ALARM / (2 * len(above) * len(found))
        few = f.ppf(level, *free) if free[0] > 1 else 0.0  # with one degree of freedom nearly nothing is no wonder
        if bool(((above > f.isf(level, *free) * below) | (above < few * below)).any()):
            return True
    return False


def _in_company(x: Tensor) -> Tensor:
    """The one input x (1, ...) and another with the same values, since a model may take no others."""
    return torch.cat([x, x.flatten(1).roll(1, 1).view_as(x) if x.ndim > 1 else x])


def _other(x: Tensor) -> Tensor:
    """Rows of another scale with values of x (n, ...), the large ones made small; of whole numbers the first row."""
    if not x.is_floating_point():
        return x[:1].expand_as(x)
    flat = x.flatten(1)
    return torch.where(flat > flat.mean(1, keepdim=True), flat.amin(1, keepdim=True), flat).view_as(x)


@contextmanager
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """Restore the buffers that a forward pass inside changes or replaces, also on an exception."""
    buffers = [(m, k, b) for m in model.modules() for k, b in m._buffers.items() if b is not None]
    saved = [b.detach().clone() for _, _, b in buffers]
    try:
        yield
    finally:
        for (owner, key, buffer), value in zip(buffers, saved, strict=True):
            owner._buffers[key] = buffer  # a forward pass may have put another tensor in its place
            if not torch.equal(buffer, value):
                with torch.no_grad():
                    buffer.copy_(value)


@contextmanager
def untouched(model: object, seed: int | None = 0) -> Iterator[RandomStream | None]:
    """Query ``model`` and leave no trace: eval mode, parameters frozen, random state forked and seeded.

    Restored afterwards, also on an exception: train / eval of every submodule, ``requires_grad`` of every parameter,
    the values of buffers that the forward pass changed, and the global random state of the CPU and of every GPU.
    Inside, a recurrent network on a GPU runs without cuDNN, which cannot backpropagate through one in eval mode.

    Threads take turns, at the model and at the random state (:mod:`robustgen.turns`).

    Args:
        seed: None leaves the random state alone, for what draws nothing or from a stream of its own.
    """
    module = model if isinstance(model, nn.Module) else None
    stream = None if seed is None else RandomStream(seed)
    with taking_turns(model, *(() if seed is None else (RANDOM_STATE,))), ExitStack() as stack:
        parameters = list(module.parameters()) if module is not None else []
        required = [p.requires_grad for p in parameters]
        if module is not None:
            stack.enter_context(kept_buffers(module))
        stack.enter_context(evaluating(model))
        if stream is not None:
            stack.enter_context(stream.drawing())
        recurrent = module is not None and any(isinstance(m, nn.RNNBase) for m in module.modules())
        if recurrent and torch.cuda.is_available():
            stack.enter_context(taking_turns(CUDNN))
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        try:
            for p in parameters:
                p.requires_grad_(False)
            yield stream
        finally:
            for p, flag in zip(parameters, required, strict=True):
                p.requires_grad_(flag)


def kl_divergence(logits: Tensor, other: Tensor) -> Tensor:
    """KL(p || q) in nats of the softmaxes p of ``logits`` (N, C) and q of ``other`` (N, C), (N,); >= 0 up to rounding.

    >>> import torch
    >>> kl_divergence(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0]]).log())  # q = (1, 0)
    tensor([inf])
    >>> kl_divergence(torch.tensor([[1.0, 3.0]]).log(), torch.tensor([[1.0, 1.0]]).log())  # log 2 less the entropy
    tensor([0.1308])
    """
    p, q = logits.log_softmax(1), other.log_softmax(1)
    return F.kl_div(q, p, reduction="none", log_target=True).sum(1)
