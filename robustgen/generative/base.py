"""The contract of every generative model: likelihood, samples, one training step."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from robustgen.checks import ROUNDING, check_images, check_shape, plain_arguments
from robustgen.structure import SIZE, check_arguments, check_size
from robustgen.training import Batch, Source, load_checkpoint, save_checkpoint
from robustgen.training.checkpoint import holds_run
from robustgen.training.overfitting import Guard
from robustgen.weights import rebuild

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["GenerativeModel"]


class GenerativeModel(nn.Module, ABC):
    """A model of images x (N, *shape) in [0, 1].

    A subclass is one paper. Its constructor takes ``shape`` first, then JSON-able keywords, each kept in an attribute
    of the same name; it gives ``_sample`` and ``training_step`` and, where it has a likelihood, ``_log_prob``.
    An argument of the wrong type is a TypeError, one out of range a ValueError, and the line names it.

    Attributes:
        log_prob_kind: "exact", "lower_bound" (of which the expected value is below log p), "importance_weighted",
            "estimated" (with random vectors, neither above nor below on average), "unnormalised" (up to a constant that
            does not depend on x), or None: no likelihood.
        shape: of one image, (channels, height, width).
    """

    log_prob_kind: ClassVar[str | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__init__ = plain_arguments(cls.__init__)  # type: ignore[method-assign]

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = check_shape(shape)

    @abstractmethod
    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        """n images in [0, 1] on the model's device, n > 0, without graph."""

    @abstractmethod
    def training_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """``{"loss": scalar to minimise, other scalars to log}``, means over ``batch``; noise from the global RNG.

        ``batch.x`` has been through :meth:`check`, in validation too: :class:`GenerativeObjective` sees to it.
        A model with ``players`` returns the loss of the one whose turn ``player_at(step)`` says it is.
        """

    def validation_step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """What is logged of held-back data, in eval mode and without gradients; as in training where not overridden."""
        return self.training_step(batch, step)

    def fit_without_gradients(self, data: Source) -> None:
        """What is fitted to training ``data`` without gradients, a mixture of codes for one, at the end of each epoch.

        In eval mode; what it learns is kept in buffers, and does not depend on what the epochs before left there. Most
        models have nothing to do here.
        """

    def guard(self) -> Guard | None:
        """What a training of it watches for; None: nothing but numbers that are not finite."""
        return None

    def check_training(self, n: int, batch_size: int) -> None:
        """ValueError where it cannot be trained on ``n`` images in batches of so many: before anything is written."""
        single = n == 1 or batch_size == 1 or n % batch_size == 1
        if single and any(isinstance(layer, nn.BatchNorm1d) for layer in self.modules()):
            raise ValueError(
                f"{n} images in batches of batch_size={batch_size} leave a batch of one, and batch norm learns from no "
                "fewer than two: take another batch size"
            )

    def _log_prob(self, x: Tensor) -> Tensor:
        """log p(x) (N,) in nats of checked x, N > 0; a function of each image alone, differentiable where it can be."""
        raise TypeError(f"{type(self).__name__} has no likelihood")

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, (N,), of images x (N, *shape) in [0, 1]; ``log_prob_kind`` says in which sense.

        float32 and float64 images alike are taken in the dtype of the model, which that of the value says; gradients
        come back in that of x.

        Noise that it needs (posterior samples, dynamic binarization) is a function of the image itself, so that the
        value of an image depends neither on its batch nor on the call. Use it in eval mode.

        Raises:
            TypeError: x is not a float32 or float64 tensor, the model has no likelihood or is in half precision.
            ValueError: images of another shape, outside [0, 1], NaN, or not on the levels of a discrete model.
        """
        if self.log_prob_kind is None:
            raise TypeError(f"{type(self).__name__} has no likelihood")
        x = self.check(x)
        return self._log_prob(x) if len(x) else x.flatten(1).sum(1)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n images (n, *shape) in [0, 1], on the model's device and in its dtype. Use it in eval mode.

        Args:
            generator: of the model's device; None: torch's global one.

        Raises:
            ValueError: a negative n.
        """
        if n < 0:
            raise ValueError(f"n must not be negative, got {n}")
        return self._sample(n, generator) if n else torch.zeros(0, *self.shape, device=self.device, dtype=self.dtype)

    @property
    def noise_shape(self) -> tuple[int, ...] | None:
        """Of the standard normal noise of one image; None where :meth:`from_noise` has nothing to make of it."""
        return None

    def from_noise(self, eps: Tensor) -> Tensor:
        """The images (N, *shape) of eps (N, *noise_shape), as few of them as eps says: nothing else is drawn.

        Raises:
            TypeError: eps is not a float32 or float64 tensor, or the model does not make images of such noise.
            ValueError: noise of another shape, or NaN or Inf in it.
        """
        if self.noise_shape is None:
            raise TypeError(f"{type(self).__name__} makes no images of normal noise alone")
        return self._from_noise(self.check_noise(eps))

    def _from_noise(self, eps: Tensor) -> Tensor:
        """Of checked noise."""
        raise NotImplementedError

    def check_noise(self, eps: Tensor) -> Tensor:
        """Return eps, in the dtype of the model, if it is noise of its images; see :meth:`from_noise` for errors."""
        eps, shape = check_images(eps, name="eps"), self.noise_shape or ()
        if tuple(eps.shape[1:]) != shape:
            wanted = f"noise of this {type(self).__name__} is (N, {', '.join(map(str, shape))})"
            raise ValueError(f"{wanted}, got {tuple(eps.shape)}")
        return eps.to(self.dtype)

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """``training_step``: what DistributedDataParallel calls."""
        return self.training_step(batch, step)

    @property
    def players(self) -> Mapping[str, nn.Module]:
        """The parts that take turns in training, by name, each with an optimizer of its own; none: all at once."""
        return {}

    @property
    def lr_factors(self) -> Mapping[str, float]:
        """By what the learning rate of a player is multiplied; those that are not named: by 1."""
        return {}

    def player_at(self, step: int) -> str:
        """Whose turn ``step`` is; only for a model with ``players``."""
        raise NotImplementedError

    @staticmethod
    def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """What the paper trains with, for each player where there are several; here Adam, lr 1e-3."""
        return torch.optim.Adam(parameters, lr=1e-3)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-able."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters, and so of scores and samples."""
        return next(self.parameters()).dtype

    @property
    def dimensions(self) -> int:
        """Numbers in an image: channels * height * width."""
        channels, height, width = self.shape
        return channels * height * width

    def check(self, x: Tensor) -> Tensor:
        """Return x, in the dtype of the model, if it is a batch of such images; see :meth:`log_prob` for errors."""
        if self.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"this {type(self).__name__} is in {self.dtype}, too coarse to score images: .float() it")
        return self._of_its_shape(check_images(x, (0.0, 1.0), rounding=ROUNDING))

    def _of_its_shape(self, x: Tensor) -> Tensor:
        """x in the dtype of the model; ValueError where its images have another shape."""
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"this {type(self).__name__} is of images {self.shape}, got {tuple(x.shape[1:])}")
        return x.to(self.dtype)

    def save(self, directory: str | Path) -> None:
        """Write weights and constructor arguments, whole or not at all; :func:`robustgen.generative.load` reads them.

        Raises:
            ValueError: the directory holds a training run, whose checkpoints this would replace.
            OSError: the disk is full or not writable; what was there before stays.
        """
        if holds_run(directory):
            raise ValueError(f"{directory} holds a training run, which saving would end: save to another directory")
        save_checkpoint(directory, 0, self.state_dict(), {}, {"model_class": type(self).__name__, "model": self.config})

    @classmethod
    def load(cls, directory: str | Path) -> "Self":
        """The model that :meth:`save`, or a training, left in ``directory``, on the CPU and in eval mode.

        Raises:
            FileNotFoundError: nothing saved there.
            ValueError: damaged files, or another model than this class.
        """
        checkpoint = load_checkpoint(directory)
        found, config = checkpoint.config.get("model_class"), checkpoint.config.get("model")
        if found != cls.__name__ or not isinstance(config, dict):
            raise ValueError(
                f"{directory}: holds a {found or 'network that is no generative model'}, not {cls.__name__}"
            )
        path = checkpoint.path / "config.json"
        check_arguments(cls, config, path, "config.model", whole=SIZE)
        check_size(config.get("shape", ()), path, "config.model.shape")
        return rebuild(lambda: cls(**config), checkpoint.model_state, settings=path, weights=checkpoint.path).eval()
