"""Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP", ICLR 2017: couplings at several scales."""

from robustgen.checks import check_integers
from robustgen.generative.flows.base import Flow, Logit
from robustgen.generative.flows.coupling import ConvNetwork, Coupling, MaskedCoupling, Permutation, checkerboard
from robustgen.generative.flows.transform import ActNorm, Chain, MultiScale, Squeeze, Transform, squeezed_shapes

__all__ = ["RealNVP"]


class RealNVP(Flow):
    """Three couplings with checkerboards, a squeeze and three with halves of the channels at each scale; four with
    checkerboards of what is left.

    In place of the paper's batch norms there are actnorms: an image's likelihood is its own in training, too. The bound
    of a log scale is not learned. For vectors there is :func:`~robustgen.generative.flows.coupling.coupling_density`.

    Args:
        shape: of an image, (channels, height, width); the sides must be even ``scales`` times over.
        levels, dequantization, quantization: see :class:`~robustgen.generative.flows.base.Flow`.
        scales: how often the sides are halved.
        width: features of the residual networks.
        blocks: of two convolutions each, in such a network.
        alpha: of the :class:`~robustgen.generative.flows.base.Logit` in front; the paper, of photographs, has 0.05.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range, sides that cannot be halved so often.

    >>> import torch
    >>> model = RealNVP((1, 8, 8), levels=2, width=8)
    >>> model.log_prob(torch.zeros(5, 1, 8, 8)).shape, model.to_noise(torch.zeros(5, 1, 8, 8))[0].shape
    (torch.Size([5]), torch.Size([5, 64]))
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        levels: int = 256,
        dequantization: str = "uniform",
        quantization: str | None = None,
        scales: int = 2,
        width: int = 24,
        blocks: int = 1,
        alpha: float = 1e-6,
    ) -> None:
        super().__init__(shape, levels, dequantization, quantization)
        check_integers(width=width)
        check_integers(0, blocks=blocks)
        self.scales, self.width, self.blocks, self.alpha = scales, width, blocks, alpha
        shapes = squeezed_shapes(self.shape, scales)
        parts, channels, size = [], self.shape[0], self.shape[1:]
        for c, *halved in shapes:
            checkerboards = self._checkerboards(3, channels, size)
            channels, size = c // 2, (halved[0], halved[1])
            parts.append(Chain(*checkerboards, Squeeze(), *self._halves(3, channels, size)))
        last = Chain(*self._checkerboards(4, channels, size))
        self.transform = Chain(Logit(alpha), MultiScale([*parts, last], [*shapes, (channels, *size)]))

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """(channels * height * width,): what left at the first scale comes first."""
        return (self.dimensions,)

    def _network(self, inputs: int, outputs: int, size: tuple[int, int]) -> ConvNetwork:
        return ConvNetwork(inputs, outputs, size, self.width, self.blocks)

    def _checkerboards(self, n: int, channels: int, size: tuple[int, int]) -> list[Transform]:
        layers: list[Transform] = []
        for i in range(n):
            mask = checkerboard(*size, first=(i + 1) % 2)
            layers += [ActNorm(channels), MaskedCoupling(self._network(channels, 2 * channels, size), mask)]
        return layers

    def _halves(self, n: int, half: int, size: tuple[int, int]) -> list[Transform]:
        layers: list[Transform] = []
        for _ in range(n):
            swap = Permutation([*range(half, 2 * half), *range(half)])
            layers += [ActNorm(2 * half), Coupling(self._network(half, 2 * half, size), half), swap]
        return layers
