"""Rounding to 8 bits: in a pass of its own, or where a number is computed.

```
number ── · scale ── cut off ── round ──┬──> (rows, columns)     for products along its columns
   └── largest magnitude ──> seen       └──> (columns, rows)     for products along its rows
```
The largest magnitude is the only thing that programs add to one place: of a maximum, the order does
not matter.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rewarm.model.kernels.fp8.scaling import FORMATS, LARGEST, Scales
from rewarm.model.kernels.launch import options

TILE = 64
"""Rows and columns of a tile: in either layout, what a program writes side by side."""


@triton.jit
def store8(value, row, column, inside, rows, width, factor, to, across, MOST: tl.constexpr):
    """Stores fp32 numbers in 8 bits, twice, and returns their magnitudes, for `note`.

    `row` is (R, 1) and `column` (1, C), both int64.
    """
    size = tl.abs(value)
    finite = size < float("inf")
    scaled = tl.minimum(tl.maximum(value * tl.load(factor), -MOST), MOST)
    rounded = tl.where(finite, scaled, float("nan")).to(to.dtype.element_ty)
    tl.store(to + row * width + column, rounded, mask=inside)
    tl.store(across + column * rows + row, rounded, mask=inside)
    return tl.where(finite & inside, size, 0.0)


@triton.jit
def note(sizes, seen):
    """Raises `seen` to the largest of some magnitudes."""
    largest = tl.max(tl.max(sizes, 1), 0)
    # Of floats that are not below 0, the bits have the same order, and integers one atomic less.
    place = seen.to(tl.pointer_type(tl.int32), bitcast=True)
    tl.atomic_max(place, largest.to(tl.int32, bitcast=True), sem="relaxed")


@triton.jit
def _round(x, factor, seen, to, across, rows, width, MOST: tl.constexpr, TILE: tl.constexpr):
    row = (tl.program_id(0) * TILE + tl.arange(0, TILE)).to(tl.int64)[:, None]
    column = (tl.program_id(1) * TILE + tl.arange(0, TILE)).to(tl.int64)[None, :]
    inside = (row < rows) & (column < width)
    here = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
    sizes = store8(here, row, column, inside, rows, width, factor, to, across, MOST)
    note(sizes, seen)


def twice(x: Tensor, shape: tuple[int, ...], which: int) -> tuple[Tensor, Tensor]:
    """Returns room for a (rows, width) matrix in 8 bits, and for it transposed."""
    (rows, width), kind = shape, FORMATS[which]
    return x.new_empty(rows, width, dtype=kind), x.new_empty(width, rows, dtype=kind)


@torch.library.custom_op("rewarm::round8", mutates_args=("seen",))
def round8(x: Tensor, factor: Tensor, seen: Tensor, which: int) -> tuple[Tensor, Tensor]:
    """Returns a matrix in 8 bits, as it is and transposed; see `plain_fp8.cast8`."""
    x = x.contiguous()
    rows, width = x.shape
    to, across = twice(x, x.shape, which)
    _round[(triton.cdiv(rows, TILE), triton.cdiv(width, TILE))](
        x, factor, seen, to, across, rows, width,
        MOST=LARGEST[which], TILE=TILE, **options(4),
    )  # fmt: skip
    return to, across


@round8.register_fake
def _(x: Tensor, factor: Tensor, seen: Tensor, which: int) -> tuple[Tensor, Tensor]:
    return twice(x, x.shape, which)


def cast8(x_RC: Tensor, scales: Scales, which: int) -> tuple[Tensor, Tensor]:
    """Returns what `plain_fp8.cast8` does, in one pass."""
    found: tuple[Tensor, Tensor] = round8(x_RC, scales[which].factor, scales[which].seen, which)
    return found
