"""A fortified layer: a forward hook that replaces a module's output by its decoded state and can record both."""

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from robustgen.fortified.autoencoder import DenoisingAutoencoder, PositionAutoencoder
from robustgen.inputs import MASK, mean_over_positions
from robustgen.layers import first_tensor

__all__ = ["FortifiedLayer", "Tape", "recording"]


@dataclass
class Tape:
    """What fortified layers put on record during one forward pass."""

    detach: bool = False  # autoencoders see detached states: their losses do not reach the backbone
    replace: bool = True  # False: later layers see the undecoded state, as in the original network
    entries: list[tuple["FortifiedLayer", Tensor, Tensor]] = field(default_factory=list)


# A context variable, not an attribute: concurrent forward passes keep their records apart, copies of a network do not
# share one, and torch.compile traces the plain forward without a graph break.
recording: ContextVar[Tape | None] = ContextVar("recording", default=None)


class FortifiedLayer(nn.Module):
    """Holds the autoencoder of one named module. Without one (``None``) it only puts the state on record.

    ``batch_dim`` is the dimension of the state that counts examples (1 for a sequence-first RNN).
    """

    def __init__(self, name: str, autoencoder: DenoisingAutoencoder | None, batch_dim: int) -> None:
        super().__init__()
        self.name, self.autoencoder, self.batch_dim = name, autoencoder, batch_dim

    def hook(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook. A bound method, so that copy.deepcopy of a network rebinds it to the copied layer."""
        state = first_tensor(output)
        assert state is not None, f"layer {self.name!r} gave no tensor"
        tape = recording.get()
        if self.autoencoder is None:
            if tape is not None:
                tape.entries.append((self, state.clone(), state.clone()))
            return None
        if tape is None:
            decoded = self.autoencoder(state)
        else:
            seen = state.clone()  # whatever comes next may work in place on the state itself
            seen = seen.detach() if tape.detach else seen
            recorded = self.autoencoder(seen)
            tape.entries.append((self, seen, recorded))
            if not tape.replace:
                return None
            decoded = self.autoencoder(state) if tape.detach else recorded
        # a copy: the next module may work in place; the record and autograd need this value
        decoded = decoded.to(state.dtype, copy=True)
        if isinstance(output, tuple | list):
            rest = (decoded, *output[1:])
            return type(output)(*rest) if hasattr(output, "_fields") else type(output)(rest)
        return decoded

    def extra_repr(self) -> str:
        return f"{self.name!r}, batch_dim={self.batch_dim}"

    def per_example(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """``values`` shaped like a state, as (N, everything else); see :meth:`FortifiedNetwork.per_example`."""
        if mask is None or values.ndim == 2:
            return values.movedim(self.batch_dim, 0).flatten(1)
        if values.ndim != 3:
            raise ValueError(f"layer {self.name!r} gives maps {tuple(values.shape)}, whose positions no {MASK} tells")
        positions = 2 if isinstance(self.autoencoder, PositionAutoencoder) else 1 - self.batch_dim
        return mean_over_positions(values, mask, self.batch_dim, positions)
