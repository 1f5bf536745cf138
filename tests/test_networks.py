"""The built-in networks' own layers."""

import pytest
import torch
from torch import nn

from robustgen.networks import convnet
from robustgen.strided_conv import StridedConv2d

SHAPES = [(1, 4, 8, 2, 3, (28, 28)), (3, 5, 6, 2, 0, (14, 13)), (2, 3, 6, 3, 1, (17, 20)), (2, 3, 4, 2, 1, (9, 9))]


@pytest.mark.parametrize(("inputs", "outputs", "kernel", "stride", "padding", "size"), SHAPES)
def test_strided_convolution_has_the_gradients_of_a_convolution(inputs, outputs, kernel, stride, padding, size):
    ours = StridedConv2d(inputs, outputs, kernel, stride, padding).double()
    reference = nn.Conv2d(inputs, outputs, kernel, stride, padding).double()
    reference.load_state_dict(ours.state_dict())
    x = torch.randn(2, inputs, *size, dtype=torch.float64, requires_grad=True)
    out, expected = ours(x), reference(x)
    assert torch.equal(out, expected)
    grad = torch.randn_like(out)
    got = torch.autograd.grad(out, [x, *ours.parameters()], grad)
    due = torch.autograd.grad(expected, [x, *reference.parameters()], grad)
    for a, b in zip(got, due, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_strided_convolution_differentiates_twice_and_refuses_a_stride_that_does_not_divide():
    layer = StridedConv2d(2, 3, 4, 2, 1).double()
    assert torch.autograd.gradgradcheck(layer, (torch.randn(1, 2, 5, 5, dtype=torch.float64, requires_grad=True),))
    with pytest.raises(ValueError, match="the stride must divide"):
        StridedConv2d(1, 1, 5, 2)
    with pytest.raises(ValueError, match="must be whole numbers"):
        StridedConv2d(1, 1, 4, 2, (1, 0))


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # torch's own, in forward-mode derivatives
def test_strided_convolution_works_with_function_transforms():
    layer = StridedConv2d(2, 3, 4, 2, 1).double()
    reference = nn.Conv2d(2, 3, 4, 2, 1).double()
    reference.load_state_dict(layer.state_dict())
    x, v = torch.randn(2, 3, 2, 6, 6, dtype=torch.float64)
    for transform in (
        lambda f: torch.func.vmap(f)(x[:, None]),
        lambda f: torch.func.jacrev(f)(x),
        lambda f: torch.func.jvp(f, (x,), (v,))[1],
        lambda f: torch.func.jvp(lambda w: torch.func.functional_call(f, {"weight": w}, x), (f.weight,), (f.weight,))[
            1
        ],
    ):
        torch.testing.assert_close(transform(layer), transform(reference), rtol=1e-12, atol=1e-12)
    assert layer(x[0]).shape == reference(x[0]).shape  # one image without a batch


def test_the_mnist_network_uses_it_and_keeps_its_names():
    net = convnet(1, 10, 28, width=4)
    assert isinstance(net[0], StridedConv2d)
    assert sorted(net.state_dict())[:2] == ["0.bias", "0.weight"]
