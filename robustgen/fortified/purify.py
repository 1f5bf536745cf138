"""A classifier behind a purifier: what a generative model makes of an image is classified in its place.

Nie, Guo, Huang, Xiao, Vahdat and Anandkumar, "Diffusion Models for Adversarial Purification", ICML 2022 (diffuse, then
denoise); for the others see :mod:`robustgen.fortified.purifiers`. Gradients of the whole chain, each function computed
once more on the way back so that images alone are kept: Chen, Xu, Zhang and Guestrin, "Training Deep Nets with
Sublinear Memory Cost", 2016. What such gradients leave of the published numbers: Lee and Kim, "Robust Evaluation of
Diffusion-Based Adversarial Purification", ICCV 2023.

Purification alone proves nothing: :func:`robustgen.evaluation.random_defence` says what it is worth.
"""

import secrets
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from robustgen.attacks import bpda
from robustgen.checks import check_flags, check_integers, check_seed
from robustgen.counter_rng import content_ids, derive_seed
from robustgen.fortified.purifiers import Chain, DefenseGAN, LangevinChain, Projection
from robustgen.generative import GenerativeModel
from robustgen.generative.flows.base import Flow
from robustgen.model import logits_of, naming_inputs, untouched
from robustgen.turns import seeded

__all__ = ["Purified", "purify"]

NO_CLASS = -1  # where logits are not finite
_AT_ONCE = 50  # draws of a block that has random numbers of its own


class Purified(nn.Module):
    """The logits of ``model`` on purified images; see :func:`purify`.

    ``forward`` draws afresh, by torch's global random numbers, each row by itself: attacks see that it is stochastic,
    average gradients where they are told to (``eot_samples``) and let votes decide. Its gradient is that of the whole
    chain or, where a purifier has none, that of the identity. :meth:`predict` votes with draws that are functions of
    the seed and of the image's own content; :meth:`fixed` is a network whose draws are a function of a seed alone.

    Attributes:
        model: the classifier.
        purifier: what gives the chain.
        exact: whether gradients are those of the chain.
    """

    def __init__(
        self,
        model: nn.Module,
        purifier: Chain,
        depth: Any = None,
        steps: int | None = None,
        seed: int | None = 0,
        *,
        checkpointing: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"purify takes an nn.Module, got {type(model).__name__}")
        if not isinstance(purifier, Chain) or not isinstance(purifier, nn.Module):
            raise TypeError(f"a purifier is a module with a chain(depth, steps), {type(purifier).__name__} is none")
        check_flags(checkpointing=checkpointing)
        if seed is not None:
            check_seed(seed)
        self.length = len(purifier.chain(depth, steps))  # raises for a depth that it has not
        self.model, self.purifier = model, purifier
        self.depth, self.steps, self.checkpointing = depth, steps, checkpointing
        self.seed, self._key = seed, secrets.randbits(63) if seed is None else seed
        self.exact = bool(getattr(purifier, "exact", True))
        self.config = {"purifier": type(purifier).__name__, "depth": depth, "steps": steps}
        self.training = model.training  # each submodule keeps its own flag
        self._chains = (self._chained(steps),)  # in a tuple it is no part of this module, which holds its parts already

    @property
    def _chain(self) -> nn.Module:
        return self._chains[0]

    def _chained(self, steps: int | None, same: bool = False) -> nn.Module:
        chain = _Chained(self.purifier, self.depth, steps, self.checkpointing, same)
        return chain if self.exact else bpda(chain)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, C) of x (N, C, H, W) in [0, 1], of one fresh draw."""
        return logits_of(self.model(self._chain(x)))

    def purify(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) without what the chain takes away, of one fresh draw; not clamped to [0, 1]."""
        purified: Tensor = self._chain(x)
        return purified

    @torch.no_grad()
    def answers(self, x: Tensor, n: int, *, seed: int | None = None) -> Tensor:
        """The class in each of n draws, int64 (N, n); -1 where logits are not finite.

        Draws are functions of ``seed`` (None: the module's own) and of each image: neither the batch nor its order
        matters.

        Raises:
            TypeError, ValueError: images that the purifier does not take.
        """
        check_integers(n=n)
        if seed is not None:
            check_seed(seed)
        self.purifier.check(x)
        key, found = self._key if seed is None else seed, torch.zeros(len(x), n, dtype=torch.int64, device=x.device)
        with torch.inference_mode(False), untouched(self, None):
            for row, (one, content) in enumerate(zip(x.clone(), content_ids(x).tolist(), strict=True)):
                for start in range(0, n, _AT_ONCE):
                    several = one.expand(min(_AT_ONCE, n - start), *one.shape)
                    with seeded(derive_seed(key, content, start)), naming_inputs(x[:1]):
                        logits = self(several)
                    said = torch.where(logits.isfinite().all(1), logits.argmax(1), NO_CLASS)
                    found[row, start : start + _AT_ONCE] = said
        return found

    def predict(self, x: Tensor, k: int = 9, *, seed: int | None = None) -> Tensor:
        """The class that most of k draws say, int64 (N,), the lowest of several; see :meth:`answers`."""
        return votes_of(self.answers(x, k, seed=seed))

    def fixed(self, seed: int) -> nn.Module:
        """The classifier behind the same draws each time, for every row, functions of ``seed`` alone: deterministic.

        What is left of the defence where the attacker knows the seed. It holds the same modules.
        """
        check_seed(seed)
        return _View(self._chained(self.steps, same=True), self.model, seed)

    def with_identity_gradient(self) -> nn.Module:
        """The same, but with the gradient of the classifier at the purified image: BPDA."""
        return _View(bpda(self._chain), self.model)

    def with_gradient_of(self, steps: int) -> nn.Module:
        """The same, but with gradients through a chain of fewer ``steps``, which is drawn for itself.

        Raises:
            TypeError, ValueError: steps that the chain has not.
        """
        self.purifier.chain(self.depth, steps)  # at once: an attack would ask for them only after hours of others
        return _View(bpda(self._chain, self._chained(steps)), self.model)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.config.items())


def votes_of(answers: Tensor) -> Tensor:
    """The most frequent of each row's answers (N, n), int64 (N,), the lowest of several.

    >>> votes_of(torch.tensor([[2, 1, 2], [-1, 0, 1]]))
    tensor([ 2, -1])
    """
    counts = nn.functional.one_hot(answers + 1).sum(1)
    return counts.argmax(1) - 1


class _Chained(nn.Module):
    """Images in, purified images out.

    ``same``: what is drawn is drawn for one row, and is that of all.
    """

    def __init__(self, purifier: Any, depth: Any, steps: int | None, checkpointing: bool, same: bool) -> None:
        super().__init__()
        self.purifier, self.depth, self.steps = purifier, depth, steps
        self.checkpointing, self.same = checkpointing, same
        self.training = purifier.training
        self._room = _Room(self)

    def forward(self, x: Tensor) -> Tensor:
        graph = torch.is_grad_enabled() and x.requires_grad
        state: Any = self.purifier.check(x)
        if graph:
            self._room.check(state)
        for function in self.functions():
            if graph and self.checkpointing:
                state = checkpoint(function, state, use_reentrant=False, context_fn=lambda: (self._drawing(x),) * 2)
            else:
                with self._drawing(x):
                    state = function(state)
        images: Tensor = state
        return images

    def functions(self) -> Sequence[Callable[[Any], Any]]:
        found: Sequence[Callable[[Any], Any]] = self.purifier.chain(self.depth, self.steps)
        return found

    def _drawing(self, x: Tensor) -> AbstractContextManager[object]:
        return _SameForAll(len(x)) if self.same else nullcontext()


class _View(nn.Module):
    """The classifier behind a chain; with a seed, all that is drawn comes from it."""

    def __init__(self, chain: nn.Module, model: nn.Module, seed: int | None = None) -> None:
        super().__init__()
        self.chain, self.model, self.seed = chain, model, seed
        self.training = model.training  # each submodule keeps its own flag

    def forward(self, x: Tensor) -> Tensor:
        with nullcontext() if self.seed is None else seeded(self.seed):
            return logits_of(self.model(self.chain(x)))

    def extra_repr(self) -> str:
        return f"seed={self.seed}"


class _SameForAll(TorchDispatchMode):
    """Inside, what is drawn for n rows is drawn for one, and is that of all: whatever n is.

    An operation that it does not know draws as ever; then rows differ, and every evaluation says so.
    """

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, kwargs = func._schema.name.removeprefix("aten::"), kwargs or {}
        if name in ("randn", "rand", "randint"):
            args = tuple([1, *a[1:]] if isinstance(a, list | tuple) and a[:1] == [self.n] else a for a in args)
            return self._repeated(func(*args, **kwargs))
        if name in ("randn_like", "rand_like", "randint_like") and len(args[0]) == self.n:
            return self._repeated(func(args[0][:1], *args[1:], **kwargs))
        if name in ("normal_", "uniform_") and args[0].ndim and len(args[0]) == self.n:
            return args[0].copy_(func(args[0][:1].clone(), *args[1:], **kwargs).expand_as(args[0]))
        return func(*args, **kwargs)

    def _repeated(self, drawn: Tensor) -> Tensor:
        return drawn.repeat(self.n, *[1] * (drawn.ndim - 1))


class _Room:
    """Whether the gradients of a chain fit into the memory that is free: measured on one image, once."""

    def __init__(self, chain: _Chained) -> None:
        self._chain = (chain,)  # in a tuple it is no part of anything
        self._each: tuple[int, int] | None = None  # bytes of an image: checkpointed, and not
        self._known = 0  # so many images fit

    def check(self, x: Tensor) -> None:
        """ValueError where those of x (N, ...) do not."""
        n, chain = len(x), self._chain[0]
        if n <= self._known:
            return
        if self._each is None:
            self._each = _kept(chain, x[:1].detach())
        each, free = self._each[not chain.checkpointing], _free(x.device)
        if free is not None and n * each > free:
            flat = "" if chain.checkpointing else "set checkpointing=True, which keeps "
            flat += "" if chain.checkpointing else f"{_gigabytes(n * self._each[0])}, or "
            raise ValueError(
                f"gradients through a chain of {len(chain.functions())} functions keep about {_gigabytes(n * each)} "
                f"for {n} images, and {_gigabytes(free)} are free: {flat}ask for at most {max(1, free // each)} at "
                "once (batch_size)"
            )
        self._known = n


def _kept(chain: _Chained, one: Tensor) -> tuple[int, int]:
    """Bytes that the gradient for one image keeps: with its functions computed anew, and without."""
    weights = {t.data_ptr() for t in (*chain.parameters(), *chain.buffers())}
    states, inside = [], []
    with torch.enable_grad(), seeded(0):
        state: Any = one.requires_grad_()
        for function in chain.functions():
            states.append(sum(t.nbytes for t in (state if isinstance(state, tuple) else (state,))))
            found: dict[int, int] = {}

            def pack(t: Tensor, found: dict[int, int] = found) -> Tensor:
                if t.data_ptr() not in weights:
                    found[t.data_ptr()] = t.nbytes
                return t

            with saved_tensors_hooks(pack, lambda t: t):
                state = function(state)
            inside.append(sum(found.values()))
    return sum(states) + max(inside), sum(inside)


def _free(device: torch.device) -> int | None:
    """Bytes; None where nobody says."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    return None


def _gigabytes(size: int) -> str:
    return f"{size / 2**30:.3g} GB"


def _chain_of(generative: object) -> Chain:
    """What gives the chain: the model itself, or the purifier that is usual for its kind."""
    if isinstance(generative, Chain):
        return generative
    if not isinstance(generative, GenerativeModel):
        raise TypeError(
            f"purify takes a generative model or a purifier, {type(generative).__name__} has no chain(depth, steps)"
        )
    if hasattr(generative, "energy"):
        return LangevinChain(generative)
    if hasattr(generative, "reconstruct") and not isinstance(generative, Flow):  # it gives everything back
        return Projection(generative)
    if generative.noise_shape is not None:
        return DefenseGAN(generative)
    raise TypeError(
        f"{type(generative).__name__} has no chain that purifies: it has no noise levels, no energy, no codes and no "
        "noise of its images"
    )


def purify(
    model: nn.Module,
    generative: object,
    depth: Any = None,
    steps: int | None = None,
    seed: int | None = 0,
    **more: Any,
) -> Purified:
    """A classifier that sees images only behind a generative model, which is to take perturbations away.

    It is a claim, not a guarantee: attacks that know the chain, and attackers who may try again, take much of it back.
    :func:`robustgen.evaluation.random_defence` counts what is left.

    Args:
        model: x (N, C, H, W) in [0, 1] -> logits (N, C).
        generative: a diffusion model or a :class:`~robustgen.generative.Denoiser`, which diffuse and denoise; a model
            with an energy (:class:`~robustgen.fortified.purifiers.LangevinChain`); one that reconstructs
            (:class:`~robustgen.fortified.purifiers.Projection`); any other with noise of its images
            (:class:`~robustgen.fortified.purifiers.DefenseGAN`); or one of these purifiers with settings of its own.
        depth: how far the chain goes: the step to which a diffusion goes, the sigma of a denoiser, steps of a chain on
            an energy or of a descent. A projection has none.
        steps: in how many steps it goes back, where these are to be fewer.
        seed: of the draws of ``predict``. Who answers inputs that others choose keeps it from them: None draws one from
            the system, kept in memory alone.
        checkpointing: keyword; compute each function again on the way back of a gradient, so that it keeps one image
            for each of them. The gradient is bitwise the same.

    Raises:
        TypeError: no module, or a model without a chain.
        ValueError: a depth or steps that the chain has not; at a call, images of another shape or range, and gradients
            that would not fit into memory.

    >>> from robustgen.generative import Denoiser
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    >>> purified, x = purify(model, Denoiser((1, 8, 8), width=4).eval(), depth=0.3), torch.rand(2, 1, 8, 8)
    >>> torch.equal(purified(x), purified(x)), torch.equal(purified.predict(x), purified.predict(x.flip(0)).flip(0))
    (False, True)
    """
    return Purified(model, _chain_of(generative), depth, steps, seed, **more)
