import pytest
import torch
from interpreted import FLOATS, add_scales, make_linear, normal

from rewarm.model.kernels.fp8 import pytorch_reference as fp8_reference
from rewarm.model.kernels.fp8 import rounding
from rewarm.model.kernels.fp8.scaling import GRADIENT, INPUT, WEIGHT


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("operand", [INPUT, WEIGHT, GRADIENT])
@pytest.mark.parametrize(("rows", "width"), [(64, 64), (37, 80), (130, 16)])
def test_rounding_gives_the_bits_of_the_reference(rows, width, operand, dtype):
    x = (normal(rows, width) * (3 * normal(rows, width, seed=1)).exp()).to(dtype)
    x[1, 2], x[3, 4], x[-1, -1], x[5, 6] = torch.nan, torch.inf, -torch.inf, 0
    scales, reference_scales = (add_scales(make_linear(8, 8)).scales for _ in range(2))
    for actual, expected in zip(
        rounding.round_to_fp8(x, scales, operand),
        fp8_reference.round_to_fp8(x, reference_scales, operand),
        strict=True,
    ):
        assert actual.dtype == expected.dtype
        assert actual.is_contiguous()
        assert torch.equal(actual.view(torch.uint8), expected.view(torch.uint8))
        assert actual.float().isnan().sum() == 3
    assert scales[operand].amax == x[x.isfinite()].float().abs().max()
    assert scales == reference_scales
