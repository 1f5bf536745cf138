"""Training any generative model with the one trainer."""

from typing import Any

from torch import Tensor, nn

from robustgen.generative.base import GenerativeModel
from robustgen.training import Batch, Trainer, unwrap

__all__ = ["GenerativeObjective", "fit"]


class GenerativeObjective:
    """The model's own ``training_step`` and, in eval mode, its ``validation_step``, of images that it has checked.

    Raises:
        TypeError, ValueError: at the call, what is no batch of such images; see :meth:`GenerativeModel.check`.
    """

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        own = unwrap(model)
        assert isinstance(own, GenerativeModel)
        batch = batch._replace(x=own.check(batch.x))
        return model(batch, step) if model.training else own.validation_step(batch, step)

    def describe(self) -> dict[str, Any]:
        """JSON-able; the model's config says the rest."""
        return {"objective": "GenerativeObjective"}


def fit(model: GenerativeModel, data: Any, val: Any = None, **options: Any) -> list[dict[str, float]]:
    """Train ``model`` in place with its paper's optimizer, leave it in eval mode and return the history.

    Args:
        data: images (N, *shape), uint8 or floats in [0, 1], or whatever :func:`robustgen.training.as_source` takes.
        val: held-back data of the same kind, or None.
        options: of :class:`robustgen.training.Trainer`: epochs, batch_size, seed, run_dir, resume, ema, optimizer, ...

    Raises:
        TypeError: not a generative model, or images that are neither uint8 nor float32 or float64.
        ValueError: images of another shape or range, and what :meth:`Trainer.fit` raises.
        FloatingPointError: the training diverged; the last good checkpoint stays and is named.
    """
    if not isinstance(model, GenerativeModel):
        raise TypeError(f"fit trains a generative model, not {type(model).__name__}")
    options.setdefault("optimizer", model.optimizer)
    options.setdefault("guard", model.guard())
    history = Trainer(GenerativeObjective(), **options).fit(model, data, val)
    model.eval()
    return history
