"""How badly the autoencoders of a fortified network reconstruct its hidden states.

Lamb, "Generative Models: A Critical Review", 2018, section 2.5: off the training manifold the denoising autoencoders
reconstruct badly, which is a signal of an attack or of a shift of domain. How layers are weighted is not given there:
standardising each one by its in-distribution mean and deviation is this library's choice.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustgen.checks import check_flags, nearest
from robustgen.detectors.base import Detector
from robustgen.fortified.autoencoder import warn_of_identities
from robustgen.inputs import Inputs, call_model

if TYPE_CHECKING:
    from robustgen.fortified import FortifiedNetwork

__all__ = ["ReconstructionError"]


class ReconstructionError(Detector):
    """score(x) = sum over layers k of (e_k(x) - m_k) / s_k, with e_k(x) = mean (D_k(E_k(h_k(x))) - h_k(x))^2.

    The mean is over the units of the state, of a sequence whose padding is told by an ``attention_mask`` over those at
    the positions that count. m_k and s_k are the mean and standard deviation of e_k on the data of ``fit``. The score
    is in standard deviations, unbounded above; with one layer it only shifts and scales the error. The autoencoders
    must have been trained: of those that still are the identity that they start as, errors are rounding noise, and
    ``fit`` warns. Only the clean state's own reconstruction is seen: a defence that pulls attacked states
    back to clean ones weakens this signal.

    Args:
        net: a fortified network without noise at test.
        layers: which of ``net.layers`` to use; None means all.
        relative: errors relative to the mean square of the state, which does not change with its scale.
        batch_size: inputs scored at once.

    Raises:
        TypeError: net has no ``reconstruction_errors``.
        ValueError: no layer, an unknown one or one named twice.

    >>> from torch import nn
    >>> from robustgen.fortified import fortify
    >>> x = torch.rand(100, 8, generator=torch.Generator().manual_seed(0))
    >>> net = fortify(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)), "auto", example_input=x,
    ...     init="random")
    >>> detector = ReconstructionError(net).fit(x[:50]).calibrate(x[50:])
    >>> detector.flag(100 * x[:3], fpr=0.05)
    tensor([True, True, True])
    """

    takes_tokens = True

    def __init__(
        self,
        net: "FortifiedNetwork",
        layers: Sequence[str] | str | None = None,
        *,
        relative: bool = False,
        batch_size: int = 256,
    ) -> None:
        super().__init__(net, batch_size)
        check_flags(relative=relative)
        if not callable(getattr(net, "reconstruction_errors", None)):
            raise TypeError(f"ReconstructionError needs a fortified network (see fortify), got {type(net).__name__}")
        names = net.layers if layers is None else (layers,) if isinstance(layers, str) else tuple(layers)
        for name in names:
            if name not in net.layers:
                raise ValueError(f"unknown layer {name!r}; {nearest(name, net.layers)}")
        if not names or len(set(names)) < len(names):
            raise ValueError(f"layers must name at least one layer, each once; got {names}")
        self.net, self.layers, self.relative = net, names, relative

    def _errors(self, x: Inputs) -> Tensor:
        errors = call_model(self.net.reconstruction_errors, x, relative=self.relative)
        return torch.stack([errors[name] for name in self.layers], dim=1)  # (N, L)

    def _fit(self, batches: Iterable[tuple[Inputs, Tensor | None]]) -> dict[str, Tensor]:
        warn_of_identities(getattr(self.net, "autoencoders", list)())
        errors = torch.cat([self._errors(x).double() for x, _ in batches])  # (N, L)
        mean, std = errors.mean(0), errors.std(0, correction=0)
        # a layer with a constant error must not blow up rounding noise, nor divide by zero
        std = torch.maximum(std, 1e-3 * mean)
        return {"mean": mean, "std": torch.where(std > 0, std, torch.ones_like(std))}

    def _score(self, x: Inputs) -> Tensor:
        errors = self._errors(x)  # (N, L)
        mean, std = self.statistics["mean"].to(errors), self.statistics["std"].to(errors)
        return ((errors - mean) / std).sum(1)
