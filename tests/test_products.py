import pytest
import torch
from torch import nn
from torch.nn import functional

from rewarm import products


def distance(found, wanted):
    return ((found.double() - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "shape", [(16, 128, 96, 384), (1, 2048, 5, 11), (1024, 1, 32, 32), (3, 512, 1, 4)]
)
def test_a_convolution_is_the_product_and_its_gradients(monkeypatch, shape, bias):
    monkeypatch.setattr(products, "BY_CONVOLUTION", True)
    B, T, D, N = shape
    torch.manual_seed(B)
    layer = products.Linear(D, N, bias=bias)
    x, told = torch.randn(B, T, D, requires_grad=True), torch.randn(B, T, N)
    y = layer(x)
    y.backward(told)
    exact = [p.detach().double().requires_grad_() for p in (x, *layer.parameters())]
    wanted = functional.linear(*exact)
    wanted.backward(told.double())
    assert y.shape == wanted.shape
    assert y.is_contiguous()
    assert distance(y.detach(), wanted.detach()) < 1e-6
    for found, one in zip((x, *layer.parameters()), exact, strict=True):
        assert distance(found.grad, one.grad) < 1e-6


def test_the_same_product_twice_is_the_same_bits(monkeypatch):
    monkeypatch.setattr(products, "BY_CONVOLUTION", True)
    layer, x = products.Linear(96, 384), torch.randn(4, 512, 96)
    assert torch.equal(layer(x), layer(x))


def test_other_dtypes_sizes_and_machines_take_the_plain_product(monkeypatch):
    layer, x = products.Linear(8, 4), torch.randn(2, 1024, 8)
    monkeypatch.setattr(products, "convolved", None)  # would raise if it were called
    assert layer.bfloat16()(x.bfloat16()).dtype is torch.bfloat16
    layer.float()
    monkeypatch.setattr(products, "BY_CONVOLUTION", True)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype is torch.bfloat16
    for few in (x[:, :64], x[:, :1001]):  # too few rows, and no multiple of 16
        assert torch.equal(layer(few), nn.Linear.forward(layer, few))
    monkeypatch.setattr(products, "BY_CONVOLUTION", False)
    assert torch.equal(layer(x), nn.Linear.forward(layer, x))
