import pytest
import torch
from interpreted import (
    FLOATS,
    PYTORCH_FP8,
    TRITON,
    TRITON_FP8,
    check_close_in_norm,
    compare,
    fp8_results,
    make_linear,
    normal,
)

from rewarm.model.architecture import Architecture
from rewarm.model.kernels import rotary
from rewarm.model.kernels.selection import PYTORCH_KERNELS
from rewarm.model.rotary_embedding import rotary_angles


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("size", "rotated", "bias"), [(64, 16, True), (80, 20, False), (128, 32, True)]
)
def test_rotary_equals_the_reference(size, rotated, bias, dtype):
    heads, length = 3, 37
    settings = {"layers": 1, "hidden": heads * size, "heads": heads, "positions": length}
    angles = rotary_angles(Architecture(**settings, rotary=rotated / size), length)
    x = normal(2, length, 24)
    projection = make_linear(24, 3 * heads * size, bias=bias)
    arguments = (projection, heads, *angles)
    compare(TRITON.rotary, PYTORCH_KERNELS.rotary, arguments, x, [projection], dtype)


@pytest.mark.parametrize("dtype", FLOATS)
def test_pack_accepts_gradients_of_any_memory_layout(dtype):
    """Attention kernels return them as a transposed (B, T, H, K), or as (B, H, T, K)."""
    cos, sin = normal(5, 16).cos(), normal(5, 16).sin()
    contiguous = [normal(2, 3, 5, 64, seed=i).to(dtype) for i in range(3)]
    heads_second = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in contiguous]
    width_not_last = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in contiguous]
    layouts = (contiguous, heads_second, width_not_last)
    for a, b, c in zip(*(rotary.pack(*layout, cos, sin) for layout in layouts), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@pytest.mark.parametrize("bias", [True, False])
def test_fp8_rotary_equals_the_reference(bias):
    architecture = Architecture(layers=1, hidden=96, heads=3, rotary=0.5, positions=32)
    projection, x = make_linear(96, 288, bias=bias), normal(2, 32, 96)
    case = ((projection, 3, *rotary_angles(architecture, 32)), x, [projection])
    check_close_in_norm(
        fp8_results(TRITON_FP8.rotary, *case), fp8_results(PYTORCH_FP8.rotary, *case)
    )
