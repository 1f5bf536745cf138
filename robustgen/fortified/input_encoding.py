"""Discretised inputs: quantized pixels, one-hot levels and thermometers, which stay open to gradient attacks.

Buckman, Roy, Raffel and Goodfellow, "Thermometer Encoding: One Hot Way To Resist Adversarial Examples", 2018. All three
are linear in the thresholds t_j = 1[x >= j / levels]: the thermometer is t_0, t_1, ..., the one-hot code t_j - t_(j+1),
and the quantized pixel the mean of t_1, t_2, ... (t_0 is always one). So one step with one backward serves them all.
"""

import torch
from torch import Tensor, nn

__all__ = ["InputEncoding"]

_KINDS = ("quantized", "one-hot", "thermometer")

# Ramps hardly wider than they must be, from trials on digits with PGD (not kept measurements). Networks trained on
# clean inputs fall alike to every width from here to 1, and less to the ramps of the source, which rise from their
# threshold on with slope 1; one-hot ones fall most to narrow ramps. Trained adversarially with wide ramps, or with
# those of the source, networks looked robust to their own stand-in and to transferred attacks and fell almost wholly
# to narrow ramps; trained with these at 16 levels or fewer, no other width did much better. With 32 or 64 levels no one
# width was the strongest throughout.
_WIDTH = 0.13
_NARROWEST = 2.1  # in units of 1 / levels


class InputEncoding(nn.Module):
    """Pixels (N, C, H, W) in [0, 1] -> one of ``levels`` values each, in one of three codes; no parameters.

    x is at level min(floor(levels * x), levels - 1), so that exactly 1 is at the top one. The code of level l:

    - "quantized", (N, C, H, W): l / (levels - 1), from 0 for black to 1 for white;
    - "one-hot", (N, C * levels, H, W): a one in place l;
    - "thermometer", (N, C * levels, H, W): ones in the places 0, ..., l.

    The places of a channel lie together. A value outside [0, 1] is at the level next to it.

    A step has no gradient, and an attack that finds none says nothing about robustness. The backward pass therefore
    differentiates a stand-in, as in Athalye, Carlini and Wagner, "Obfuscated Gradients Give a False Sense of Security",
    2018, section 5.1: each threshold is a ramp of width ``backward_width`` around it. The forward pass does not see it.

    Args:
        kind: "quantized", "one-hot" or "thermometer".
        levels: at least 2.
        backward_width: of the ramps, in units of x; more than 2 / levels, since black and white pixels are 1 / levels
            away from the nearest threshold that can change. What an attack sees is the slope of the network over this
            range. None means 0.13, or 2.1 / levels if that is more.

    Adversarial training through one stand-in can teach a network to hide from that one: evaluate with several widths,
    by setting ``backward_width`` of the trained network's encoding, and report the lowest accuracy.

    Raises:
        ValueError: an unknown kind, too few levels, ramps too narrow; at the call, inputs that are not (N, C, H, W).
        TypeError: at the call, inputs that are not floating-point.

    >>> x = torch.tensor([0.0, 0.3, 1.0]).reshape(1, 1, 1, 3)
    >>> InputEncoding("thermometer", levels=4)(x)[0, :, 0].T.tolist()
    [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]
    >>> encoding = InputEncoding("one-hot", levels=4)
    >>> net = nn.Sequential(encoding, nn.Conv2d(encoding.channels(1), 8, 3))
    """

    def __init__(self, kind: str, levels: int = 16, backward_width: float | None = None) -> None:
        super().__init__()
        if kind not in _KINDS:
            raise ValueError(f"unknown encoding {kind!r}; known: {', '.join(_KINDS)}")
        if levels < 2:
            raise ValueError(f"levels must be at least 2, got {levels}")
        self.kind, self.levels = kind, levels
        self.backward_width = max(_WIDTH, _NARROWEST / levels) if backward_width is None else backward_width
        if not 2 / levels < self.backward_width < float("inf"):
            raise ValueError(
                f"backward_width must be finite and more than 2 / levels = {2 / levels:g} (narrower ramps leave pixels "
                f"without gradient), got {self.backward_width}"
            )

    def channels(self, in_channels: int) -> int:
        """How many channels come out where ``in_channels`` go in.

        >>> InputEncoding("thermometer", 16).channels(3), InputEncoding("quantized", 16).channels(3)
        (48, 3)
        """
        return in_channels if self.kind == "quantized" else in_channels * self.levels

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4:
            raise ValueError(f"InputEncoding takes images (N, C, H, W), got shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"InputEncoding takes floating-point pixels in [0, 1], got {x.dtype}")
        # In the input's own precision, and so no buffer: x = j / levels is at level j in each of them.
        places = torch.arange(1, self.levels, device=x.device, dtype=x.dtype) / self.levels
        steps = self._thresholds(x.unsqueeze(2), places[:, None, None])  # (N, C, levels - 1, H, W)
        if self.kind == "quantized":
            return steps.mean(2)
        always = torch.ones_like(x).unsqueeze(2)
        code = torch.cat([always, steps], 2)
        if self.kind == "one-hot":
            code = code - torch.cat([steps, torch.zeros_like(always)], 2)
        return code.flatten(1, 2)

    def _thresholds(self, x: Tensor, places: Tensor) -> Tensor:
        """1[x >= place], with the derivative of a ramp."""
        step = (x >= places).to(x.dtype)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return step
        ramp = ((x - places) / self.backward_width).clamp(-0.5, 0.5)
        return step + (ramp - ramp.detach())  # the value in brackets is exactly zero

    def extra_repr(self) -> str:
        return f"{self.kind!r}, levels={self.levels}, backward_width={self.backward_width:g}"
