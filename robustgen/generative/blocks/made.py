"""A dense network whose outputs for number i of a vector have seen the numbers before it alone.

Germain, Gregor, Murray and Larochelle, "MADE: Masked Autoencoder for Distribution Estimation", ICML 2015, equations 12
and 13 (the masks).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustgen.checks import check_integers

__all__ = ["MADE", "MADEColumns"]


class MaskedLinear(nn.Linear):
    """A linear layer without the connections at which ``mask`` (outputs, inputs) is 0."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask.to(self.weight.dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class MADE(nn.Module):
    """Two numbers for each z_i, of z_1 ... z_{i-1} and the context: z (N, D), context (N, H) -> (N, 2, D).

    Hidden unit k has seen the first k mod D inputs; so some have seen the context alone. Where there are fewer units
    than inputs and no context, what they have seen is spread evenly from nothing to almost all.

    Args:
        dim: D.
        width: units of a hidden layer.
        context: H; 0: none.
        layers: hidden ones.

    Raises:
        ValueError: an argument out of range.

    >>> made = MADE(dim=3, width=8, layers=2)
    >>> z = torch.zeros(1, 3)
    >>> (made(z) != made(z + torch.tensor([0.0, 0.0, 1.0]))).any().item()  # nothing has seen the last input
    False
    """

    def __init__(self, dim: int, width: int, context: int = 0, layers: int = 1) -> None:
        super().__init__()
        check_integers(dim=dim, width=width, layers=layers)
        check_integers(0, context=context)
        units, index = torch.arange(width), torch.arange(dim)
        self.dim, self.width = dim, width
        self._spread = width < dim and not context  # with a context not, so that saved models compute what they did
        seen = self._seen(units.device)
        self.first = MaskedLinear(seen[:, None] > index)
        self.context = nn.Linear(context, width, bias=False) if context else None
        self.middle = nn.ModuleList(MaskedLinear(seen[:, None] >= seen) for _ in range(layers - 1))
        self.last = MaskedLinear((index[:, None] >= seen).repeat(2, 1))

    def _seen(self, device: torch.device) -> Tensor:
        """How many inputs each hidden unit has seen (width,)."""
        units = torch.arange(self.width, device=device)
        return units * self.dim // self.width if self._spread else units % self.dim

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        h = self.first(z)
        if self.context is not None:
            h = h + self.context(context)
        for layer in self.middle:
            h = layer(F.elu(h))
        return self.last(F.elu(h)).unflatten(1, (2, -1))

    def _units(self, seen: int) -> slice:
        """The hidden units that have seen so many inputs."""
        if not self._spread:
            return slice(seen, None, self.dim)
        return slice(-(-seen * self.width // self.dim), -(-(seen + 1) * self.width // self.dim))


class MADEColumns:
    """What a :class:`MADE` says of z_1, z_2, ... in turn, of which z_i may depend on what was said of it.

    A hidden unit is computed once, as soon as all that it sees is known, and its share added to the layer above: so
    every weight is used once, and D steps take the arithmetic of one pass through the network. Differentiable.

    Args:
        made: whose weights are as they are now.
        n: N.
        context: (N, H), of a network with context.

    >>> made, z = MADE(dim=3, width=8, layers=2), torch.randn(5, 3)
    >>> with torch.no_grad():
    ...     columns = MADEColumns(made, n=5)
    ...     of_the_first = columns()
    ...     m, s = columns(z[:, 0])  # of z_2
    >>> torch.allclose(torch.stack([m, s]).T, made(z)[:, :, 1], atol=1e-6)
    True
    """

    def __init__(self, made: MADE, n: int, context: Tensor | None = None) -> None:
        layers = [made.first, *made.middle, made.last]
        self._sums = [layer.bias[:, None].repeat(1, n) for layer in layers]  # (units, N), of inputs known so far
        if made.context is not None:
            self._sums[0] = self._sums[0] + made.context(context).T
        first, *others = (layer.weight.T.contiguous() for layer in layers)
        self._units = [made._units(seen) for seen in range(made.dim)]
        self._first = first[:, :, None].unbind(0)
        self._others = [[weight[units].T for units in self._units] for weight in others]
        self._add = torch.addmm if torch.is_grad_enabled() else Tensor.addmm_  # a graph needs the older sums
        self._next = 0

    def __call__(self, z: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The two numbers of the next input, (N,) each, good until the next call; ``z`` (N,) is the input before it."""
        sums, i = self._sums, self._next
        self._next += 1
        # Masks are not needed: what they cut goes to sums that are in use already, or will not be.
        if z is not None:
            sums[0] = self._add(sums[0], self._first[i - 1], z[None])
        if (units := self._units[i]).start != units.stop:
            for above, weights in enumerate(self._others, 1):
                sums[above] = self._add(sums[above], weights[i], F.elu(sums[above - 1][units]))
        return sums[-1][i], sums[-1][i + len(self._units)]
