import pytest
import torch
from interpreted import FLOATS, TRITON, compare, normal
from torch import nn

from rewarm.model.kernels.selection import PYTORCH_KERNELS


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("rows", "width"), [(5, 1024), (3, 2048), (37, 80), (61, 8)])
def test_norms_equal_the_reference(rows, width, dtype):
    torch.manual_seed(0)
    modules = [nn.LayerNorm(width, eps=1e-5), nn.LayerNorm(width, eps=1e-5)]
    with torch.no_grad():
        for module in modules:
            module.weight.normal_()
            module.bias.normal_()
    x = 3 * normal(1, rows, width) + 1
    compare(TRITON.norms, PYTORCH_KERNELS.norms, tuple(modules), x, modules, dtype)


def test_rows_too_wide_for_the_registers_use_plain_pytorch():
    modules = [nn.LayerNorm(4104), nn.LayerNorm(4104)]
    x = normal(1, 2, 4104)
    actual, expected = TRITON.norms(x, *modules), PYTORCH_KERNELS.norms(x, *modules)
    assert all(torch.equal(*pair) for pair in zip(actual, expected, strict=True))
