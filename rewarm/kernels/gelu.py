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

from rewarm.kernels import plain
from rewarm.kernels.launch import MULTIPROCESSORS, options

GELUS = ("gelu", *plain.TANH)
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
    rows,
    width,
    TANH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    at = row.to(tl.int64)[:, None] * width + column[None, :]
    here = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    here += tl.load(bias + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
    if TANH:
        share, _ = _gate(here)
    else:
        share, _ = _normal(here)
    tl.store(y + at, (here * share).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _gelu_backward(
    dy,
    x,
    bias,
    dx,
    partial,
    rows,
    width,
    TANH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    added = tl.load(bias + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
    summed = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < width)[None, :]
        at = row.to(tl.int64)[:, None] * width + column[None, :]
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
        tl.store(dx + at, back.to(dx.dtype.element_ty), mask=inside)
        summed += back
    to = partial + tl.program_id(0) * width + column
    tl.store(to, tl.sum(summed, 0), mask=column < width)


@torch.library.custom_op("rewarm::gelu_forward", mutates_args=())
def gelu_forward(x: Tensor, bias: Tensor, tanh: bool) -> Tensor:
    """Returns GELU(x + bias), like x."""
    width, rows = x.shape[-1], x.numel() // x.shape[-1]
    y = torch.empty_like(x)
    _gelu_forward[(triton.cdiv(rows, _ROWS), triton.cdiv(width, _COLUMNS))](
        x, bias, y, rows, width, TANH=tanh, ROWS=_ROWS, COLUMNS=_COLUMNS, **options(4)
    )
    return y


@gelu_forward.register_fake
def _(x: Tensor, bias: Tensor, tanh: bool) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("rewarm::gelu_backward", mutates_args=())
def gelu_backward(dy: Tensor, x: Tensor, bias: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    """Returns the gradients of x, and of the bias in fp32."""
    dy = dy.contiguous()
    width, rows = x.shape[-1], x.numel() // x.shape[-1]
    across = triton.cdiv(width, _COLUMNS)
    down = min(max(1, 6 * MULTIPROCESSORS // across), triton.cdiv(rows, _ROWS))
    dx = torch.empty_like(x)
    partial = x.new_empty(down, width, dtype=torch.float32)
    _gelu_backward[(down, across)](
        dy, x, bias, dx, partial, rows, width,
        TANH=tanh, ROWS=_ROWS, COLUMNS=_COLUMNS, **options(4),
    )  # fmt: skip
    return dx, partial.sum(0)


@gelu_backward.register_fake
def _(dy: Tensor, x: Tensor, bias: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[-1], dtype=torch.float32)


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
        return plain.gelu(x_BTD, dense_h_to_4h, activation)
    product = functional.linear(x_BTD, dense_h_to_4h.weight)
    return cast(Tensor, _BiasGelu.apply(product, dense_h_to_4h.bias, activation in plain.TANH))
