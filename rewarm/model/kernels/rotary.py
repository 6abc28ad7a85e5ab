"""Rotary positions on the packed projection of queries, keys and values, in place.

```
(B, T, H, 3K) of the product:  | q turned, kept | k turned, kept | v |   only what turns is touched
                                        └──── q, k, v are views: nothing is copied ────┘
gradients of q, k, v ── turned back and packed, one pass ──> (B, T, H, 3K) and the bias's gradient
```
"""

from __future__ import annotations

from typing import Any, cast

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.nn import functional

from rewarm.model.kernels.fp8.rounding import note, store8, twice
from rewarm.model.kernels.fp8.scaling import GRADIENT, LARGEST
from rewarm.model.kernels.launch import MULTIPROCESSORS, options, padded

_TURN_ROWS = 128
_PACKED_AT_ONCE = 1024  # numbers of each of q, k and v that a program holds
_PACKED8_AT_ONCE = 2048  # the more rows, the more is written side by side where it is transposed


@triton.jit
def _rotary_turn(
    qkv,
    cos,
    sin,
    rows,
    length,
    heads,
    SIZE: tl.constexpr,
    HALF: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
):
    # A row is one head of one token. Both halves of a pair are read and written by one thread:
    # in place, another thread's write would otherwise race with the read.
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, PADDED)
    inside = (row < rows)[:, None] & (column < HALF)[None, :]
    angle = (row // heads % length)[:, None] * (2 * HALF) + column[None, :]
    c = tl.load(cos + angle, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(sin + angle, mask=inside, other=0.0).to(tl.float32)
    at = qkv + row.to(tl.int64)[:, None] * (3 * SIZE) + column[None, :]
    for part in tl.static_range(2):
        first = tl.load(at + part * SIZE, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(at + part * SIZE + HALF, mask=inside, other=0.0).to(tl.float32)
        kind = qkv.dtype.element_ty
        tl.store(at + part * SIZE, (first * c - second * s).to(kind), mask=inside)
        tl.store(at + part * SIZE + HALF, (second * c + first * s).to(kind), mask=inside)


@triton.jit
def _turned_back(x, at, partner_at, cos, sin, inside, turned):
    # The transposed rotation is the one by minus the angle.
    there = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    partner = tl.load(x + partner_at, mask=turned, other=0.0).to(tl.float32)
    return there * cos + partner * sin


@triton.jit
def _rotary_pack(
    dq,
    dk,
    dv,
    cos,
    sin,
    packed,
    across,
    factor,
    seen,
    partial,
    tokens,
    length,
    q_b,
    q_h,
    q_t,
    k_b,
    k_h,
    k_t,
    v_b,
    v_h,
    v_t,
    SIZE: tl.constexpr,
    HALF: tl.constexpr,
    PADDED: tl.constexpr,
    MOST: tl.constexpr,
    ROWS: tl.constexpr,
):
    head, heads = tl.program_id(0), tl.num_programs(0)
    program, programs = tl.program_id(1), tl.num_programs(1)
    column = tl.arange(0, PADDED).to(tl.int64)[None, :]
    partner = tl.where(column < HALF, column + HALF, column - HALF)
    sum_q = tl.zeros((ROWS, PADDED), tl.float32)
    sum_k = tl.zeros((ROWS, PADDED), tl.float32)
    sum_v = tl.zeros((ROWS, PADDED), tl.float32)
    sizes = tl.zeros((ROWS, PADDED), tl.float32)
    for start in range(program * ROWS, tokens, programs * ROWS):
        token = (start + tl.arange(0, ROWS))[:, None]
        sequence, position = (token // length).to(tl.int64), (token % length).to(tl.int64)
        inside = (token < tokens) & (column < SIZE)
        turned = (token < tokens) & (column < 2 * HALF)
        angle = position * (2 * HALF) + column
        c = tl.load(cos + angle, mask=turned, other=1.0).to(tl.float32)
        s = tl.load(sin + angle, mask=turned, other=0.0).to(tl.float32)
        s = tl.where(column < HALF, s, -s)
        at = sequence * q_b + position * q_t + head * q_h
        q = _turned_back(dq, at + column, at + partner, c, s, inside, turned)
        at = sequence * k_b + position * k_t + head * k_h
        k = _turned_back(dk, at + column, at + partner, c, s, inside, turned)
        at = sequence * v_b + position * v_t + head * v_h + column
        v = tl.load(dv + at, mask=inside, other=0.0).to(tl.float32)
        row, first, width = token.to(tl.int64), head * (3 * SIZE) + column, heads * (3 * SIZE)
        if MOST > 0:
            here = store8(q, row, first, inside, tokens, width, factor, packed, across, MOST)
            sizes = tl.maximum(sizes, here)
            first += SIZE
            here = store8(k, row, first, inside, tokens, width, factor, packed, across, MOST)
            sizes = tl.maximum(sizes, here)
            first += SIZE
            here = store8(v, row, first, inside, tokens, width, factor, packed, across, MOST)
            sizes = tl.maximum(sizes, here)
        else:
            to = packed + row * width + first
            kind = packed.dtype.element_ty
            tl.store(to, q.to(kind), mask=inside)
            tl.store(to + SIZE, k.to(kind), mask=inside)
            tl.store(to + 2 * SIZE, v.to(kind), mask=inside)
        sum_q += q
        sum_k += k
        sum_v += v
    if MOST > 0:
        note(sizes, seen)
    to = partial + (program * heads + head) * (3 * SIZE) + tl.arange(0, PADDED)
    inside = tl.arange(0, PADDED) < SIZE
    tl.store(to, tl.sum(sum_q, 0), mask=inside)
    tl.store(to + SIZE, tl.sum(sum_k, 0), mask=inside)
    tl.store(to + 2 * SIZE, tl.sum(sum_v, 0), mask=inside)


@torch.library.custom_op("rewarm::turn_", mutates_args=("qkv",))
def turn_(qkv: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Turns queries and keys of a packed (B, T, H, 3K) where they lie."""
    B, T, H, packed = qkv.shape
    half, rows = cos.shape[-1] // 2, B * T * H
    _rotary_turn[(triton.cdiv(rows, _TURN_ROWS),)](
        qkv, cos, sin, rows, T, H,
        SIZE=packed // 3, HALF=half, PADDED=padded(half), ROWS=_TURN_ROWS, **options(4),
    )  # fmt: skip


@turn_.register_fake
def _(qkv: Tensor, cos: Tensor, sin: Tensor) -> None:
    return None


@torch.library.custom_op("rewarm::pack", mutates_args=())
def pack(dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradient of the packed product, (B, T, H, 3K), and its sum over all tokens."""
    packed, _ = _packed_like(dq, dk, dv, cos, sin)
    rows = max(1, _PACKED_AT_ONCE // padded(dq.shape[-1]))
    return packed, _pack((dq, dk, dv), cos, sin, (packed, None, None, None), 0.0, rows, warps=4)


def _pack(
    gradients: tuple[Tensor, ...],
    cos: Tensor,
    sin: Tensor,
    to: tuple[Tensor | None, ...],
    most: float,
    rows: int,
    *,
    warps: int,
) -> Tensor:
    """Packs the gradients of q, k and v, `rows` tokens at a time; returns their sums."""
    dq, dk, dv = (x if x.stride(-1) == 1 else x.contiguous() for x in gradients)
    B, H, T, K = dq.shape
    programs = min(max(1, 6 * MULTIPROCESSORS // H), triton.cdiv(B * T, rows))
    partial = dq.new_empty(programs, H * 3 * K, dtype=torch.float32)
    _rotary_pack[(H, programs)](
        dq, dk, dv, cos, sin, *to, partial, B * T, T,
        *dq.stride()[:3], *dk.stride()[:3], *dv.stride()[:3],
        SIZE=K, HALF=cos.shape[-1] // 2, PADDED=padded(K), MOST=most, ROWS=rows, **options(warps),
    )  # fmt: skip
    return partial.sum(0)


@pack.register_fake
def _packed_like(
    dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    B, H, T, K = dq.shape
    return dq.new_empty(B, T, H, 3 * K), dq.new_empty(H * 3 * K, dtype=torch.float32)


@torch.library.custom_op("rewarm::pack8", mutates_args=("seen",))
def pack8(
    dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor, factor: Tensor, seen: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns what `pack` does, in 8 bits: (B · T, H · 3K), transposed, and the sum in fp32."""
    packed, across, _ = _packed8_like(dq, dk, dv, cos, sin, factor, seen)
    to = (packed, across, factor, seen)
    rows = max(1, _PACKED8_AT_ONCE // padded(dq.shape[-1]))
    return packed, across, _pack((dq, dk, dv), cos, sin, to, LARGEST[GRADIENT], rows, warps=8)


@pack8.register_fake
def _packed8_like(
    dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor, factor: Tensor, seen: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    B, H, T, K = dq.shape
    sums = dq.new_empty(H * 3 * K, dtype=torch.float32)
    return *twice(dq, (B * T, H * 3 * K), GRADIENT), sums


class _Rotary(torch.autograd.Function):
    """Takes the bias of the product only to give it its gradient, which `pack` sums on the way."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, bias: Tensor | None, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cos, sin)
        ctx.bias_dtype = None if bias is None else bias.dtype
        turn_(qkv, cos, sin)
        return qkv.transpose(1, 2).chunk(3, dim=-1)

    @staticmethod
    def backward(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
        packed, summed = pack(dq, dk, dv, *ctx.saved_tensors)
        return packed, None if ctx.bias_dtype is None else summed.to(ctx.bias_dtype), None, None


def rotary(
    x_BTD: Tensor, query_key_value: nn.Linear, heads: int, cos_TR: Tensor, sin_TR: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns what `plain.rotary` does: queries, keys and values, (B, H, T, K)."""
    B, T, _ = x_BTD.shape
    bias = query_key_value.bias
    qkv = functional.linear(x_BTD, query_key_value.weight, None if bias is None else bias.detach())
    turned = _Rotary.apply(qkv.view(B, T, heads, -1), bias, cos_TR, sin_TR)
    return cast(tuple[Tensor, Tensor, Tensor], turned)
