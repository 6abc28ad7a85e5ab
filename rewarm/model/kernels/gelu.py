"""A product's bias and GELU in one pass; backward, the derivative and the bias's gradient in one.

The normal distribution's Φ comes from the same exponential as its density φ, which the derivative
Φ(x) + x·φ(x) needs as well: Abramowitz & Stegun 7.1.26, whose error in Φ is below 7.5e-8, about the
distance of two fp32 numbers near 1. Compiled for sm_90 that is half the instructions of `tl.erf`
(18 for 35 per number, backward 22 for 46), which decides: at 35 the arithmetic takes longer than
the memory. The reciprocals are squares of `rsqrt` for the same reason: division looks after numbers
that do not occur here.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.nn import functional

from rewarm.model.kernels import pytorch_reference
from rewarm.model.kernels.fp8.rounding import TILE, note, store8, twice
from rewarm.model.kernels.fp8.scaling import GRADIENT, LARGEST, X
from rewarm.model.kernels.launch import MULTIPROCESSORS, options

GELUS = ("gelu", *pytorch_reference.TANH)
"""What is computed here."""

_ROWS, _COLUMNS = 8, 256


@triton.jit
def _normal(x):
    """Returns Φ(x), and √(2π)·φ(x)."""
    bell = tl.exp2(-0.7213475204444817 * x * x)  # log₂(e) / 2
    t = tl.rsqrt(1.0 + 0.2316418882663604 * tl.abs(x))  # 0.3275911 / √2
    t *= t
    series = 0.7107068705 + t * (-0.7265760135 + t * 0.5307027145)
    series = t * (0.127414796 + t * (-0.142248368 + t * series))
    tail = series * bell
    return tl.where(x < 0, tail, 1.0 - tail), bell


@triton.jit
def _gate(x):
    """Returns (1 + tanh u) / 2 = 1 / (1 + exp(-2u)), and 1 less it; u = √(2/π)·(x + 0.044715x³)."""
    # Not above 2¹²⁶: infinity times zero would be no number.
    rest = tl.exp2(tl.minimum(-2.302208198 * x * (1.0 + 0.044715 * x * x), 126.0))
    root = tl.rsqrt(1.0 + rest)
    return root * root, root * root * rest


@triton.jit
def _gelu_forward(
    x,
    bias,
    y,
    across,
    factor,
    seen,
    rows,
    width,
    TANH: tl.constexpr,
    MOST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)[None, :]
    inside = (row < rows) & (column < width)
    at = row * width + column
    here = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    here += tl.load(bias + column, mask=column < width, other=0.0).to(tl.float32)
    if TANH:
        share, _ = _gate(here)
    else:
        share, _ = _normal(here)
    found = here * share
    if MOST > 0:
        note(store8(found, row, column, inside, rows, width, factor, y, across, MOST), seen)
    else:
        tl.store(y + at, found.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _gelu_backward(
    dy,
    x,
    bias,
    dx,
    across,
    factor,
    seen,
    partial,
    rows,
    width,
    TANH: tl.constexpr,
    MOST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)[None, :]
    added = tl.load(bias + column, mask=column < width, other=0.0).to(tl.float32)
    summed = tl.zeros((ROWS, COLUMNS), tl.float32)
    sizes = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = (start + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        inside = (row < rows) & (column < width)
        at = row * width + column
        here = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + added
        above = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        if TANH:
            share, rest = _gate(here)
            steepness = 1.5957691216057308 * (1.0 + 3 * 0.044715 * here * here)
            slope = share * (1.0 + here * steepness * rest)
        else:
            share, bell = _normal(here)
            slope = share + here * bell * 0.3989422804014327
        back = above * slope
        if MOST > 0:
            here = store8(back, row, column, inside, rows, width, factor, dx, across, MOST)
            sizes = tl.maximum(sizes, here)
        else:
            tl.store(dx + at, back.to(dx.dtype.element_ty), mask=inside)
        summed += back
    if MOST > 0:
        note(sizes, seen)
    to = partial + tl.program_id(0) * width + column
    tl.store(to, tl.sum(summed, 0)[None, :], mask=column < width)


@torch.library.custom_op("rewarm::gelu_forward", mutates_args=())
def gelu_forward(x: Tensor, bias: Tensor, tanh: bool) -> Tensor:
    """Returns GELU(x + bias), like x."""
    width, rows = x.shape[-1], x.numel() // x.shape[-1]
    y = torch.empty_like(x)
    _gelu_forward[(triton.cdiv(rows, _ROWS), triton.cdiv(width, _COLUMNS))](
        x, bias, y, None, None, None, rows, width,
        TANH=tanh, MOST=0.0, ROWS=_ROWS, COLUMNS=_COLUMNS, **options(4),
    )  # fmt: skip
    return y


@gelu_forward.register_fake
def _(x: Tensor, bias: Tensor, tanh: bool) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("rewarm::gelu_backward", mutates_args=())
def gelu_backward(dy: Tensor, x: Tensor, bias: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    """Returns the gradients of x, and of the bias in fp32."""
    width, rows = x.shape[-1], x.numel() // x.shape[-1]
    grid = _grid(rows, width, _ROWS, _COLUMNS)
    dx = torch.empty_like(x)
    partial = x.new_empty(grid[0], width, dtype=torch.float32)
    _gelu_backward[grid](
        dy.contiguous(), x, bias, dx, None, None, None, partial, rows, width,
        TANH=tanh, MOST=0.0, ROWS=_ROWS, COLUMNS=_COLUMNS, **options(4),
    )  # fmt: skip
    return dx, partial.sum(0)


def _grid(rows: int, width: int, tile_rows: int, tile_columns: int) -> tuple[int, int]:
    across = triton.cdiv(width, tile_columns)
    return min(max(1, 6 * MULTIPROCESSORS // across), triton.cdiv(rows, tile_rows)), across


@gelu_backward.register_fake
def _(dy: Tensor, x: Tensor, bias: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[-1], dtype=torch.float32)


@torch.library.custom_op("rewarm::gelu_forward8", mutates_args=("seen",))
def gelu_forward8(
    x_NF: Tensor, bias_F: Tensor, tanh: bool, factor: Tensor, seen: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns GELU(x + bias) in 8 bits, (N, F) and (F, N), by the scale of what reads it."""
    rows, width = x_NF.shape
    y_NF, y_FN = twice(x_NF, x_NF.shape, X)
    _gelu_forward[(triton.cdiv(rows, TILE), triton.cdiv(width, TILE))](
        x_NF, bias_F, y_NF, y_FN, factor, seen, rows, width,
        TANH=tanh, MOST=LARGEST[X], ROWS=TILE, COLUMNS=TILE, **options(4),
    )  # fmt: skip
    return y_NF, y_FN


@gelu_forward8.register_fake
def _(
    x_NF: Tensor, bias_F: Tensor, tanh: bool, factor: Tensor, seen: Tensor
) -> tuple[Tensor, Tensor]:
    return twice(x_NF, x_NF.shape, X)


@torch.library.custom_op("rewarm::gelu_backward8", mutates_args=("seen",))
def gelu_backward8(
    dy_NF: Tensor, x_NF: Tensor, bias_F: Tensor, tanh: bool, factor: Tensor, seen: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns x's gradient in 8 bits, (N, F) and (F, N), and the bias's in fp32."""
    rows, width = x_NF.shape
    grid = _grid(rows, width, TILE // 2, TILE)  # fewer registers: more programs at once
    dx_NF, dx_FN = twice(x_NF, x_NF.shape, GRADIENT)
    partial = x_NF.new_empty(grid[0], width, dtype=torch.float32)
    _gelu_backward[grid](
        dy_NF.contiguous(), x_NF, bias_F, dx_NF, dx_FN, factor, seen,
        partial, rows, width,
        TANH=tanh, MOST=LARGEST[GRADIENT], ROWS=TILE // 2, COLUMNS=TILE, **options(8),
    )  # fmt: skip
    return dx_NF, dx_FN, partial.sum(0)


@gelu_backward8.register_fake
def _(
    dy_NF: Tensor, x_NF: Tensor, bias_F: Tensor, tanh: bool, factor: Tensor, seen: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    sums = x_NF.new_empty(x_NF.shape[1], dtype=torch.float32)
    return *twice(x_NF, x_NF.shape, GRADIENT), sums


class _BiasGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, tanh: bool) -> Tensor:
        ctx.save_for_backward(x, bias)
        ctx.tanh = tanh
        return cast(Tensor, gelu_forward(x, bias, tanh))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, bias = ctx.saved_tensors
        dx, summed = gelu_backward(dy, x, bias, ctx.tanh)
        return dx, summed.to(bias.dtype), None


def mlp(
    x_BTD: Tensor, dense_h_to_4h: nn.Linear, dense_4h_to_h: nn.Linear, activation: str
) -> Tensor:
    """Returns what `plain.mlp` does."""
    return cast(Tensor, dense_4h_to_h(gelu(x_BTD, dense_h_to_4h, activation)))


def gelu(x_BTD: Tensor, dense_h_to_4h: nn.Linear, activation: str) -> Tensor:
    """Returns what `plain.gelu` does, by which ReLU and SiLU go too."""
    if activation not in GELUS:
        return pytorch_reference.gelu(x_BTD, dense_h_to_4h, activation)
    product = functional.linear(x_BTD, dense_h_to_4h.weight)
    return cast(
        Tensor, _BiasGelu.apply(product, dense_h_to_4h.bias, activation in pytorch_reference.TANH)
    )
