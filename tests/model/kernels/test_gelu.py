import pytest
import torch
from interpreted import FLOATS, compare, make_linear, normal
from torch import nn

from rewarm.model.kernels import gelu, pytorch_reference


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
@pytest.mark.parametrize(("rows", "inner"), [(7, 1024), (37, 80), (130, 16)])
def test_gelu_equals_the_reference(rows, inner, activation, dtype):
    up = make_linear(8, inner)
    x = 3 * normal(1, rows, 8)
    compare(gelu.gelu, pytorch_reference.gelu, (up, activation), x, [up], dtype)


@pytest.mark.parametrize("tanh", [False, True])
def test_gelu_and_its_derivative_over_the_whole_range(tanh):
    x = torch.cat((torch.linspace(-12, 12, 1501), torch.tensor([0.0, -0.0, 1e-30, 3e4, -3e4])))
    exact = x.double().requires_grad_()
    expected = nn.functional.gelu(exact, approximate="tanh" if tanh else "none")
    (derivative,) = torch.autograd.grad(expected.sum(), exact)
    bias = torch.zeros(1)
    actual = gelu.gelu_forward(x[:, None], bias, tanh)[:, 0]
    assert ((actual - expected).abs() <= 4e-7 * (1 + x.abs())).all()
    dx, _ = gelu.gelu_backward(torch.ones_like(x)[:, None], x[:, None], bias, tanh)
    assert (dx[:, 0] - derivative).abs().max() < 2e-6
