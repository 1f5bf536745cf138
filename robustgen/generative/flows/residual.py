"""Residual flow: x + g(x), where g shortens all distances.

Behrmann, Grathwohl, Chen, Duvenaud and Jacobsen, "Invertible Residual Networks", ICML 2019 (the inverse); Chen,
Behrmann, Duvenaud and Jacobsen, "Residual Flows for Invertible Generative Modeling", NeurIPS 2019: equations 6 (the
unbiased log determinant) and 8 (its gradient), section 3.3 (LipSwish). The layers are bounded as in Sedghi, Gupta and
Long, "The Singular Values of Convolutional Layers", ICLR 2019, where these authors estimate by the power method, which
is below the truth while weights change.
"""

import copy
import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustgen.checks import check_integers, check_numbers
from robustgen.generative.flows.base import Flow, Logit
from robustgen.generative.flows.transform import ActNorm, Estimated, KeyedChain, Transform, jacobian

__all__ = ["LOG_DETS", "Contraction", "LipSwish", "Residual", "ResidualFlow", "spectral_bound"]

LOG_DETS = ("series", "exact")
_ALWAYS = 2  # terms of the series that every training step computes; each further one with probability 1/2


class LipSwish(nn.Module):
    """x sigmoid(b x) / 1.1, whose slope is nowhere above 1, with a learned b > 0.

    Smooth, so that a loss of log determinants, which are functions of slopes, can be differentiated.

    >>> LipSwish()(torch.zeros(2)).tolist()
    [0.0, 0.0]
    """

    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(F.softplus(self.raw) * x) / 1.1


def spectral_bound(weight: Tensor, size: tuple[int, ...]) -> Tensor:
    """An upper bound of the largest singular value of a layer, as a map of its whole input; differentiable.

    Of a linear layer it is that value. Of a convolution of stride 1 that keeps the size of its maps it is that of the
    same convolution on a torus so large that zeros separate the borders (Sedghi, Gupta and Long, theorem 6): as if the
    image lay there; a little larger, therefore.

    Args:
        weight: (out, in), or (out, in, k, k) with an odd k.
        size: (H, W) of the map, of a convolution.

    >>> float(spectral_bound(torch.tensor([[3.0, 0.0], [0.0, -4.0]]), ()))
    4.0
    """
    if weight.ndim == 4:
        torus = [n + weight.shape[-1] // 2 for n in size]
        weight = torch.fft.rfft2(weight, s=torus).permute(2, 3, 0, 1)  # a matrix for each frequency
    if weight.shape[-2] > weight.shape[-1]:
        weight = weight.mH
    return torch.linalg.eigvalsh(weight @ weight.mH).max().clamp(min=0).sqrt()


def _check_between(**values: float) -> None:
    check_numbers(**values)
    for name, value in values.items():
        if not 0 < value < 1:
            raise ValueError(f"{name} must lie in (0, 1), got {value}")


class Contraction(nn.Module):
    """A network g with |g(x) - g(y)| <= contraction |x - y|, of vectors (D,) or of images (C, H, W), in L2.

    Three layers, fully connected or convolutions of 3 x 3, 1 x 1 and 3 x 3, on maps in which each square of ``factor``
    x ``factor`` pixels is one point. Each is divided by whatever its :func:`spectral_bound` exceeds its share by.

    Args:
        shape: of one x.
        width: hidden units or features.
        contraction: in (0, 1).
        factor: of which both sides must be multiples.

    Raises:
        TypeError, ValueError: an argument out of range.

    >>> Contraction((1, 6, 6), width=4, contraction=0.9, factor=2)(torch.zeros(2, 1, 6, 6)).shape
    torch.Size([2, 1, 6, 6])
    """

    def __init__(self, shape: tuple[int, ...], width: int, contraction: float, factor: int = 1) -> None:
        super().__init__()
        _check_between(contraction=contraction)
        self.factor, self.size = factor, tuple(n // factor for n in shape[1:])
        inner = shape[0] * factor ** len(self.size)
        numbers = [(inner, width, 3), (width, width, 1), (width, inner, 3)]
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, kernel, padding=kernel // 2) if self.size else nn.Linear(a, b) for a, b, kernel in numbers
        )
        self.activations = nn.ModuleList(LipSwish() for _ in numbers[1:])
        self.share = contraction ** (1 / len(numbers))

    def bounded(self) -> list[Tensor]:
        """The weights of the layers as they are used."""
        found = []
        for layer in self.layers:
            assert isinstance(layer.weight, Tensor)
            found.append(layer.weight / (spectral_bound(layer.weight, self.size) / self.share).clamp(min=1))
        return found

    def forward(self, x: Tensor, weights: list[Tensor] | None = None) -> Tensor:
        """g(x); ``weights`` are those that :meth:`bounded` gave, for who calls it often."""
        if self.factor > 1:
            x = F.pixel_unshuffle(x, self.factor)
        weights = self.bounded() if weights is None else weights
        for i, (layer, weight) in enumerate(zip(self.layers, weights, strict=True)):
            x = self.activations[i - 1](x) if i else x
            if isinstance(layer, nn.Linear):
                x = F.linear(x, weight, layer.bias)
            else:
                x = F.conv2d(x, weight, layer.bias, padding=weight.shape[-1] // 2)
        return F.pixel_shuffle(x, self.factor) if self.factor > 1 else x


class Residual(Estimated):
    """y = x + g(x), inverted by x <- y - g(x), with log det (I + J) = sum over k of (-1)^(k+1) tr(J^k) / k, J = dg/dx.

    Traces are estimated, tr(J^k) = E[v' J^k v] of random signs v. In training the series ends at random after at least
    two terms, each weighted by the inverse of the probability that it is reached (Russian roulette), so that the
    expected value is that of the whole series; the gradient is estimated alike, without a graph of the series. In
    eval mode it ends after ``terms``, which leaves a bias, and has ``draws`` vectors v.

    Args:
        network: g, with |g(x) - g(y)| <= contraction |x - y|.
        contraction: in (0, 1).
        log_det: "series", or "exact": with the whole Jacobian, D backward passes.
        terms, draws: of the series in eval mode.
        tolerance: of the inverse, relative to its largest number.

    Raises:
        ValueError: an argument out of range.
        ArithmeticError: at an inverse that is not found, since g does not shorten distances as it should.

    >>> step, x = Residual(Contraction((3,), 8, 0.9), 0.9, "exact").eval(), torch.randn(5, 3)
    >>> y, log_det = step(x)
    >>> torch.allclose(step.inverse(y), x, atol=1e-4), log_det.shape
    (True, torch.Size([5]))
    """

    def __init__(
        self,
        network: nn.Module,
        contraction: float,
        log_det: str = "series",
        terms: int = 10,
        draws: int = 1,
        tolerance: float = 1e-6,
    ) -> None:
        super().__init__()
        check_integers(terms=terms, draws=draws)
        _check_between(contraction=contraction, tolerance=tolerance)
        if log_det not in LOG_DETS:
            raise ValueError(f"log_det must be one of {', '.join(LOG_DETS)}, got {log_det!r}")
        self.network, self.contraction, self.log_det = network, contraction, log_det
        self.terms, self.draws, self.tolerance = terms, draws, tolerance

    def forward(self, x: Tensor, ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        graph = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            if not (graph and x.requires_grad):
                x = x.detach().clone().requires_grad_()
            g = self.network(x)
            log_det = self._log_det(g, x, ids, graph)
        return (x + g, log_det) if graph else ((x + g).detach(), log_det.detach())

    def _log_det(self, g: Tensor, x: Tensor, ids: Tensor | None, graph: bool) -> Tensor:
        if self.log_det == "exact":
            j = jacobian(g, x, graph)
            return torch.linalg.slogdet(torch.eye(j.shape[1], dtype=j.dtype, device=j.device) + j)[1]
        if self.training:
            return self._roulette(g, x, self.signs(x, ids, 1)[0], graph)
        return torch.stack([self._series(g, x, v, graph) for v in self.signs(x, ids, self.draws)]).mean(0)

    def _series(self, g: Tensor, x: Tensor, v: Tensor, graph: bool) -> Tensor:
        total, w = x.new_zeros(len(x)), v
        for k in range(1, self.terms + 1):
            (w,) = torch.autograd.grad(g, x, w, retain_graph=True, create_graph=graph)
            total = total - (-1) ** k / k * _dot(w, v)
        return total

    def _roulette(self, g: Tensor, x: Tensor, v: Tensor, graph: bool) -> Tensor:
        more = int(torch.rand((), dtype=torch.float64, device="cpu").clamp(min=1e-12).log2().neg())
        value, w, weighted = x.new_zeros(len(x)), v, v
        for k in range(1, _ALWAYS + more + 1):
            (w,) = torch.autograd.grad(g, x, w, retain_graph=True)
            rarity = 2.0 ** max(0, k - _ALWAYS)  # 1 / the probability of getting here
            value = value - (-1) ** k * rarity / k * _dot(w, v)
            weighted = weighted + (-1) ** k * rarity * w  # towards (I + J')^-1 v
        if not graph:
            return value
        # d log det (I + J) = tr((I + J)^-1 dJ) = E[v' (I + J)^-1 dJ v]: that is the gradient of `slope`.
        (w,) = torch.autograd.grad(g, x, weighted, create_graph=True)
        slope = _dot(w, v)
        return value + slope - slope.detach()

    def inverse(self, y: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(y.device.type, enabled=False):
            fixed = (self.network.bounded(),) if isinstance(self.network, Contraction) else ()
            x = self._fixed_point(lambda x: y - self.network(x, *fixed), y)
        if not torch.is_grad_enabled():
            return x
        # dx = (I + J)^-1 (dy - dg): from the last step, with the gradient that arrives there solved for (I + J')^-1.
        found = y - self.network(x)
        at = x.clone().requires_grad_()
        g = self.network(at)

        def solved(gradient: Tensor) -> Tensor:
            def step(u: Tensor) -> Tensor:
                return gradient - torch.autograd.grad(g, at, u, retain_graph=True)[0]

            return self._fixed_point(step, gradient)

        if found.requires_grad:
            found.register_hook(solved)
        return found.clone()  # so that who asks for gradients with respect to x itself does not call the hook

    def _fixed_point(self, step: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if not x.numel():
            return x
        near = max(self.tolerance * (1 - self.contraction), 4 * torch.finfo(x.dtype).eps)
        most = 20 + math.ceil(2 * math.log(near) / math.log(self.contraction))
        for _ in range(most):
            last, x = x, step(x)
            change, size = float((x - last).abs().max()), float(x.abs().max())
            if change <= near * size < math.inf:
                return x
            if not change < math.inf:  # nor will it be
                break
        raise ArithmeticError(
            f"a residual block has no inverse that {most} steps can find: its network does not shorten distances by "
            f"{self.contraction:g}, or its input is not finite"
        )


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


class ResidualFlow(Flow):
    """Residual blocks over an image, each :class:`Residual` with a :class:`Contraction` behind an actnorm.

    Networks work by turns on squares of 2 x 2 and 4 x 4 pixels, where the sides are multiples of these.

    Log determinants are estimated, with random vectors that depend on the image alone: ``log_prob`` is right in
    expectation, but for the end of its series, of which :meth:`truncation_bias` says how much it leaves out.

    Args:
        shape: (C, H, W).
        blocks: residual ones.
        width: features of their networks.
        contraction, log_det, tolerance: see :class:`Residual`.
        terms, draws: of the series of scores.
        alpha: of the :class:`Logit` before them.
        levels, dequantization, quantization: see :class:`Flow`.

    Attributes:
        log_prob_kind: "estimated" where log_det is "series" and nothing is dequantized.

    Raises:
        TypeError, ValueError: an argument that is out of range.

    >>> flow = ResidualFlow((1, 4, 4), blocks=2, width=4).eval()
    >>> x = torch.ones(3, 1, 4, 4)
    >>> flow.log_prob(x).shape, bool((flow.truncation_bias(x).abs() < 0.1).all()), flow.sample(2).shape
    (torch.Size([3]), True, torch.Size([2, 1, 4, 4]))
    """

    log_prob_kind: ClassVar[str | None] = "estimated"

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        blocks: int = 8,
        width: int = 64,
        contraction: float = 0.9,
        log_det: str = "series",
        terms: int = 10,
        draws: int = 1,
        tolerance: float = 1e-6,
        alpha: float = 1e-6,
        levels: int = 256,
        dequantization: str = "uniform",
        quantization: str | None = None,
    ) -> None:
        super().__init__(shape, levels, dequantization, quantization)
        check_integers(blocks=blocks, width=width)
        self.blocks, self.width, self.contraction, self.log_det = blocks, width, contraction, log_det
        self.terms, self.draws, self.tolerance, self.alpha = terms, draws, tolerance, alpha
        factors = [factor for factor in (2, 4) if not (self.shape[1] % factor or self.shape[2] % factor)] or [1]
        parts: list[Transform] = []
        for i in range(blocks):
            network = Contraction(self.shape, width, contraction, factors[i % len(factors)])
            block = Residual(network, contraction, log_det, terms, draws, tolerance)
            parts += [ActNorm(self.shape[0]), block]
        self.transform = KeyedChain(Logit(alpha), *parts, ActNorm(self.shape[0]), levels=levels)
        if self.pixels is None and log_det == "exact":
            self.log_prob_kind = "exact"  # type: ignore[misc]

    @torch.no_grad()
    def truncation_bias(self, x: Tensor) -> Tensor:
        """By how much ``log_prob`` of x would change with four times as many terms, (N,) in nats; 0 where it is exact.

        Of the same random vectors; averaged over images it estimates the bias of the mean score.
        """
        longer = copy.deepcopy(self)
        for part in longer.transform.modules():
            if isinstance(part, Residual):
                part.terms = 4 * self.terms
        return longer.log_prob(x) - self.log_prob(x)
