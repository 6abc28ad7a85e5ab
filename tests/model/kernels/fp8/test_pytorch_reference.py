import pytest
import torch
from torch import nn

from rewarm.model.kernels.fp8 import pytorch_reference as fp8_reference
from rewarm.model.kernels.fp8.scaling import FP8_DTYPES, GRADIENT, INPUT, WEIGHT, TensorScale


def make_scales(x=1.0, weight=1.0, gradient=1.0):
    return tuple(
        TensorScale(torch.tensor(factor), torch.tensor(1 / factor), torch.tensor(0.0))
        for factor in (x, weight, gradient)
    )


# By hand, from the formats (arXiv:2209.05433, table 1): e4m3 has three mantissa bits, a maximum of
# 448 and a minimum of 2⁻⁹; e5m2 has two, 57,344 and 2⁻¹⁶.
@pytest.mark.parametrize(
    ("operand", "number", "rounded"),
    [
        *((INPUT, *pair) for pair in [(1.0, 1.0), (1.06, 1.0), (1.07, 1.125), (-17.1, -18.0)]),
        *((INPUT, *pair) for pair in [(447.0, 448.0), (1e4, 448.0), (-1e30, -448.0)]),
        *((WEIGHT, *pair) for pair in [(2**-9, 2**-9), (2**-11, 0.0), (1.97, 2.0)]),
        *((GRADIENT, *pair) for pair in [(1.1, 1.0), (1.2, 1.25), (5e4, 49152.0), (6e4, 57344.0)]),
        *((GRADIENT, *pair) for pair in [(1e9, 57344.0), (2**-16, 2**-16), (2**-18, 0.0)]),
    ],
)
def test_numbers_are_rounded_to_the_format_and_clamped_to_its_maximum(operand, number, rounded):
    scales = make_scales()
    matrix, transposed = fp8_reference.round_to_fp8(torch.tensor([[number, 0.0]]), scales, operand)
    assert matrix.float().tolist() == [[rounded, 0.0]]
    assert transposed.float().tolist() == [[rounded], [0.0]]
    assert scales[operand].amax == abs(torch.tensor(number))


def test_numbers_that_are_not_finite_become_nan_and_do_not_change_the_amax():
    scales = make_scales()
    scales[INPUT].amax.fill_(2.0)
    x = torch.tensor([[1.5, torch.inf], [torch.nan, -torch.inf]])
    matrix, _ = fp8_reference.round_to_fp8(x, scales, INPUT)
    assert matrix.float()[0, 0] == 1.5
    assert matrix.float().isnan().sum() == 3
    assert scales[INPUT].amax == 2.0  # the largest so far in this step


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_and_its_gradients_are_those_of_the_rounded_operands(bias):
    torch.manual_seed(0)
    linear = nn.Linear(32, 48, bias=bias)
    linear.scales = scales = make_scales(64.0, 512.0, 2.0**12)
    x = torch.randn(2, 16, 32, requires_grad=True)
    dy = torch.randn(2, 16, 48) / 100
    fp8_reference.linear_layer(x, linear).backward(dy)

    def rounded(tensor, operand):
        factor = scales[operand].factor
        return (tensor.detach() * factor).to(FP8_DTYPES[operand]).double() / factor

    x8, weight8, dy8 = rounded(x, INPUT), rounded(linear.weight, WEIGHT), rounded(dy, GRADIENT)
    expected = x8 @ weight8.T + (linear.bias.detach() if bias else 0)
    with torch.enable_grad():
        torch.testing.assert_close(fp8_reference.linear_layer(x, linear).double(), expected)
    torch.testing.assert_close(x.grad.double(), dy8 @ weight8)
    torch.testing.assert_close(linear.weight.grad.double(), dy8.flatten(0, 1).T @ x8.flatten(0, 1))
    if bias:
        torch.testing.assert_close(linear.bias.grad, dy.sum((0, 1)))
    assert [float(scale.amax) for scale in scales] == [
        float(operand.detach().abs().max()) for operand in (x, linear.weight, dy)
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_the_triton_kernel_gives_the_same_bits():
    from rewarm.model.kernels.fp8 import rounding

    torch.manual_seed(0)
    x = torch.randn(2048, 1024, device="cuda") * torch.randn(2048, 1024, device="cuda").exp()
    for operand in (INPUT, WEIGHT, GRADIENT):
        for dtype in (torch.float32, torch.bfloat16):
            scales, reference_scales = (
                [
                    TensorScale(*(tensor.cuda() for tensor in scale))
                    for scale in make_scales(64.0, 64.0, 512.0)
                ]
                for _ in range(2)
            )
            actual = rounding.round_to_fp8(x.to(dtype), scales, operand)
            expected = fp8_reference.round_to_fp8(x.to(dtype), reference_scales, operand)
            for pair in zip(actual, expected, strict=True):
                assert torch.equal(*(tensor.view(torch.uint8) for tensor in pair))
            assert scales[operand].amax == reference_scales[operand].amax
