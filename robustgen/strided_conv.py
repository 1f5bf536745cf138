"""A strided convolution with another way to its input gradient (benchmarks/strided_conv.py compares the two)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["StridedConv2d"]


class StridedConv2d(nn.Conv2d):
    """``nn.Conv2d`` with stride > 1 and another way to the gradient with respect to its input.

    The forward pass and the gradients of weight and bias are those of ``nn.Conv2d``. On the CPU the input gradient is
    one convolution of stride 1: pixels of the same phase (position modulo the stride) see the same taps of the kernel,
    so each phase is a channel, and a pixel shuffle puts the phases in place. It equals that of ``nn.Conv2d`` up to
    rounding.

    Raises:
        ValueError: kernel size, stride or padding that is not one whole number, or a stride that does not divide the
            kernel size.

    >>> StridedConv2d(1, 4, 8, stride=2, padding=3)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 4, 14, 14])
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int = 0) -> None:
        if not all(isinstance(value, int) for value in (kernel_size, stride, padding)):
            raise ValueError(
                f"kernel size, stride and padding must be whole numbers: {kernel_size}, {stride}, {padding}"
            )
        if kernel_size % stride:
            raise ValueError(f"the stride must divide the kernel size, got {stride} and {kernel_size}")
        super().__init__(in_channels, out_channels, kernel_size, stride, padding)

    def forward(self, input: Tensor) -> Tensor:
        usual = input.device.type != "cpu" or not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
        if usual or input.ndim != 4 or torch.jit.is_tracing():
            return super().forward(input)
        assert self.bias is not None
        result: Tensor = _Convolution.apply(input, self.weight, self.bias, self.stride[0], self.padding[0])
        return result


class _Convolution(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor | None, weight_t: Tensor | None, bias_t: Tensor | None, *_: None) -> Tensor:
        x, weight = ctx.saved_tensors
        parts = []
        if x_t is not None:
            parts.append(F.conv2d(x_t, weight, None, ctx.stride, ctx.padding))
        if weight_t is not None:
            parts.append(F.conv2d(x, weight_t, None, ctx.stride, ctx.padding))
        total = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0) if parts else torch.zeros(())
        return total if bias_t is None else total + bias_t[:, None, None]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding = ctx.stride, ctx.padding
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_x = _input_gradient(grad, weight, x.shape[2:], stride, padding) if need_x else None
        grad_weight = torch.nn.grad.conv2d_weight(x, weight.shape, grad, stride, padding) if need_weight else None
        return grad_x, grad_weight, grad.sum((0, 2, 3)) if need_bias else None, None, None


def _input_gradient(grad: Tensor, weight: Tensor, size: torch.Size, stride: int, padding: int) -> Tensor:
    outputs, inputs, kernel, _ = weight.shape
    taps = kernel // stride
    phases = weight.reshape(outputs, inputs, taps, stride, taps, stride).permute(1, 3, 5, 0, 2, 4).flip(-2, -1)
    phases = phases.reshape(inputs * stride * stride, outputs, taps, taps)
    padded = F.pixel_shuffle(F.conv2d(F.pad(grad, (taps - 1,) * 4), phases), stride)  # of the padded input
    # Rows and columns at the end that no window reached are missing from it.
    short = [max(0, padding + n - m) for n, m in zip(size, padded.shape[2:], strict=True)]
    padded = F.pad(padded, (0, short[1], 0, short[0])) if any(short) else padded
    return padded[:, :, padding : padding + size[0], padding : padding + size[1]]
