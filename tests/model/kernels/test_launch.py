import pytest
import torch

from rewarm.model.kernels.launch import autocast_dtype, launch_options, next_power_of_two


@pytest.mark.parametrize(
    ("size", "power"), [(1, 1), (2, 2), (3, 4), (80, 128), (128, 128), (50_304, 65_536)]
)
def test_next_power_of_two(size, power):
    assert next_power_of_two(size) == power


def test_matmuls_have_the_dtype_of_autocast_where_it_is_enabled():
    x = torch.zeros(1)
    assert autocast_dtype(x) == torch.float32
    assert autocast_dtype(x.half()) == torch.float16
    with torch.autocast("cpu", torch.bfloat16):
        assert autocast_dtype(x) == torch.bfloat16
        assert autocast_dtype(x) == (torch.ones(1, 1) @ torch.ones(1, 1)).dtype


def test_fused_multiply_add_is_set_explicitly():
    assert launch_options(8) == {"num_warps": 8, "enable_fp_fusion": True}
