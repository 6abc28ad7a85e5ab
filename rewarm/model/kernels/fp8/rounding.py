"""Rounding to fp8: in a pass of its own, or inside the kernel that computes a number.

```
number ── · scale ── clamp ── round ──┬──> (rows, columns)     for matmuls along its columns
   └── absolute value ──> amax        └──> (columns, rows)     for matmuls along its rows
```
The amax is the only value that programs update together with an atomic operation: the order does
not change a maximum.

Shapes: R rows, C columns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rewarm.model.kernels.fp8.scaling import FP8_DTYPES, FP8_MAX, LinearScales
from rewarm.model.kernels.launch import launch_options

TILE = 64
"""Rows and columns of a tile: in either layout, what a program writes side by side."""


@triton.jit
def store_fp8(
    value, row, column, inside, rows, width, factor, to, transposed, FP8_MAX: tl.constexpr
):
    """Stores fp32 numbers in 8 bits, twice; returns their absolute values, for `update_amax`.

    `row` is (R, 1) and `column` (1, C), both int64.
    """
    magnitude = tl.abs(value)
    finite = magnitude < float("inf")
    scaled = tl.minimum(tl.maximum(value * tl.load(factor), -FP8_MAX), FP8_MAX)
    rounded = tl.where(finite, scaled, float("nan")).to(to.dtype.element_ty)
    tl.store(to + row * width + column, rounded, mask=inside)
    tl.store(transposed + column * rows + row, rounded, mask=inside)
    return tl.where(finite & inside, magnitude, 0.0)


@triton.jit
def update_amax(magnitudes, amax):
    """Raises `amax` to the largest of some absolute values."""
    largest = tl.max(tl.max(magnitudes, 1), 0)
    # The bits of floats that are not negative have the same order, and integers have an atomic
    # maximum of one instruction.
    amax_bits = amax.to(tl.pointer_type(tl.int32), bitcast=True)
    tl.atomic_max(amax_bits, largest.to(tl.int32, bitcast=True), sem="relaxed")


@triton.jit
def _round(x, factor, amax, to, transposed, rows, width, FP8_MAX: tl.constexpr, TILE: tl.constexpr):
    row = (tl.program_id(0) * TILE + tl.arange(0, TILE)).to(tl.int64)[:, None]
    column = (tl.program_id(1) * TILE + tl.arange(0, TILE)).to(tl.int64)[None, :]
    inside = (row < rows) & (column < width)
    value = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
    magnitudes = store_fp8(value, row, column, inside, rows, width, factor, to, transposed, FP8_MAX)
    update_amax(magnitudes, amax)


def empty_fp8_pair(x: Tensor, shape: tuple[int, ...], operand: int) -> tuple[Tensor, Tensor]:
    """Returns uninitialized fp8 tensors for a (rows, width) matrix and for its transpose."""
    (rows, width), dtype = shape, FP8_DTYPES[operand]
    return x.new_empty(rows, width, dtype=dtype), x.new_empty(width, rows, dtype=dtype)


@torch.library.custom_op("rewarm::round8", mutates_args=("amax",))
def round8(x: Tensor, factor: Tensor, amax: Tensor, operand: int) -> tuple[Tensor, Tensor]:
    """The operator of `round_to_fp8`."""
    x = x.contiguous()
    rows, width = x.shape
    to, transposed = empty_fp8_pair(x, x.shape, operand)
    _round[(triton.cdiv(rows, TILE), triton.cdiv(width, TILE))](
        x, factor, amax, to, transposed, rows, width,
        FP8_MAX=FP8_MAX[operand], TILE=TILE, **launch_options(4),
    )  # fmt: skip
    return to, transposed


@round8.register_fake
def _(x: Tensor, factor: Tensor, amax: Tensor, operand: int) -> tuple[Tensor, Tensor]:
    return empty_fp8_pair(x, x.shape, operand)


def round_to_fp8(x_RC: Tensor, scales: LinearScales, operand: int) -> tuple[Tensor, Tensor]:
    """The Triton version of `fp8.pytorch_reference.round_to_fp8`, in one pass."""
    scale = scales[operand]
    rounded: tuple[Tensor, Tensor] = round8(x_RC, scale.factor, scale.amax, operand)
    return rounded
