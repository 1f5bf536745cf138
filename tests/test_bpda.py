"""Gradients through what has none: forwards the module itself, backwards its stand-in."""

import copy
import re

import pytest
import torch
from torch import nn

from robustgen.attacks import PGD, bpda


class Quantize(nn.Module):
    def __init__(self, levels=8):
        super().__init__()
        self.register_buffer("levels", torch.tensor(float(levels)))
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.gain * (x * self.levels).round() / self.levels


class Double(nn.Module):
    def forward(self, x):
        return torch.cat([x.sign(), x.sign()], 1)


def test_forward_is_the_modules_own_bit_for_bit():
    x = torch.rand(4, 3, 5, 5) * 1e3
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            for stand_in in (None, lambda z: 1e7 * z.sin()):
                out = bpda(Quantize(7), stand_in)(x.clone().requires_grad_(grad))
                assert torch.equal(out, Quantize(7)(x))
                assert out.requires_grad == grad


def test_backward_is_that_of_the_stand_in_at_the_same_input():
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(6, 4, dtype=torch.float64)
    (identity,) = torch.autograd.grad(bpda(Quantize())(x), x, upstream)
    assert torch.equal(identity, upstream)
    (through_tanh,) = torch.autograd.grad(bpda(Quantize(), backward=torch.tanh)(x), x, upstream)
    assert torch.allclose(through_tanh, upstream * (1 - torch.tanh(x) ** 2))
    stand_in = nn.Linear(4, 4).double()
    (through_linear,) = torch.autograd.grad(bpda(Quantize(), stand_in)(x), x, upstream)
    assert torch.allclose(through_linear, upstream @ stand_in.weight)


def test_another_output_shape_needs_a_stand_in_of_that_shape():
    x = torch.randn(3, 4, requires_grad=True)
    with pytest.raises(ValueError, match=re.escape("module returns shape (3, 8) and backward (the identity) (3, 4)")):
        bpda(Double())(x)
    with pytest.raises(ValueError, match=re.escape("module returns shape (3, 8) and backward (3, 5)")):
        bpda(Double(), nn.Linear(4, 5))(x)
    out = bpda(Double(), lambda z: torch.cat([z, 2 * z], 1))(x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(gradient, torch.full_like(x, 3.0))


def test_wrong_types():
    with pytest.raises(TypeError, match=r"nn\.Module, got function"):
        bpda(lambda x: x)
    with pytest.raises(TypeError, match="callable"):
        bpda(nn.Identity(), backward=3)

    class Symbols(nn.Module):
        def forward(self, x):
            return x.long()

    with pytest.raises(TypeError, match=r"module must return a tensor of floats, got torch\.int64"):
        bpda(Symbols())(torch.rand(2, 3, requires_grad=True))
    with pytest.raises(TypeError, match="backward must return a tensor of floats, got tuple"):
        bpda(nn.Identity(), lambda x: (x,))(torch.rand(2, 3, requires_grad=True))


def test_it_is_a_module():
    wrapped = nn.Sequential(bpda(Quantize(), nn.Linear(4, 4)), nn.Dropout(0.5))
    assert {name for name, _ in wrapped.named_parameters()} == {
        "0.module.gain",
        "0.backward.weight",
        "0.backward.bias",
    }
    twin = nn.Sequential(bpda(Quantize(3), nn.Linear(4, 4)), nn.Dropout(0.5))
    twin.load_state_dict(wrapped.state_dict())
    wrapped.eval()
    assert not any(m.training for m in wrapped.modules())
    twin.eval()
    x = torch.rand(2, 4)
    assert torch.equal(twin(x), wrapped(x))
    copied = copy.deepcopy(wrapped)
    with torch.no_grad():
        copied[0].module.gain.zero_()
    assert not copied(x).any()
    assert wrapped(x).any()
    assert bpda(nn.Dropout().eval()).training is False


def test_parameters_of_the_module_get_no_gradient_and_in_place_layers_may_follow():
    wrapped = bpda(Quantize(), nn.Linear(4, 4))
    x = (torch.rand(2, 4) - 0.5).requires_grad_(True)
    nn.Sequential(wrapped, nn.ReLU(inplace=True))(x).sum().backward()
    assert wrapped.module.gain.grad is None
    assert wrapped.backward.weight.grad is not None
    before = x.detach().clone()
    nn.Sequential(bpda(nn.Identity()), nn.ReLU(inplace=True))(x).sum().backward()
    assert torch.equal(x.detach(), before)


def test_second_derivatives_and_function_transforms():
    x = torch.rand(3, dtype=torch.float64, requires_grad=True)
    wrapped = bpda(Quantize(), torch.sin)
    (first,) = torch.autograd.grad(wrapped(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.allclose(second, -torch.sin(x))
    each = torch.func.vmap(torch.func.grad(lambda v: wrapped(v).sum()))(x.detach()[:, None])
    assert torch.allclose(each.squeeze(1), x.cos())


def test_a_masked_network_falls_once_the_mask_is_approximated():
    """Inputs rounded to a few levels have gradient zero: PGD stands still, and through bpda it does not."""
    linear = nn.Linear(16, 2)
    linear.bias.data.copy_(-linear.weight.data.sum(1) / 2)  # the classes meet amid the inputs
    x = (0.4 + 0.2 * torch.rand(30, 16)).mul(32).round() / 32
    quantize = Quantize(32)
    masked, seen_through = nn.Sequential(quantize, linear), nn.Sequential(bpda(quantize), linear)
    y = masked(x).argmax(1)
    assert not PGD(eps=0.2, random_start=False).run(masked, x, y).success.any()
    x_adv = PGD(eps=0.2, random_start=False)(seen_through, x, y)
    assert (masked(x_adv).argmax(1) != y).float().mean() > 0.9
