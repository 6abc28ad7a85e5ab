"""Rotary position embeddings, in place on the packed queries, keys and values.

```
(B, T, H, 3K) of the linear layer: | q rotated, rest | k rotated, rest | v |  views, nothing copied
                                        └── only the rotated parts are read and written
gradients of q, k, v ── rotated back and packed, one pass ──> (B, T, H, 3K) and the bias's gradient
```
Shapes: B sequences, T positions, D hidden, H heads, K head size, R rotary dimensions.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.nn import functional

from rewarm.model.kernels.fp8.rounding import empty_fp8_pair, store_fp8, update_amax
from rewarm.model.kernels.fp8.scaling import FP8_MAX, GRADIENT
from rewarm.model.kernels.launch import MULTIPROCESSORS, launch_options, next_power_of_two

_TURN_ROWS = 128
_PACK_TILE = 1024  # numbers of each of q, k and v that a program holds
_PACK8_TILE = 2048  # more rows, so that more of the transposed output is written side by side


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
    address = qkv + row.to(tl.int64)[:, None] * (3 * SIZE) + column[None, :]
    for part in tl.static_range(2):
        first = tl.load(address + part * SIZE, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(address + part * SIZE + HALF, mask=inside, other=0.0).to(tl.float32)
        dtype = qkv.dtype.element_ty
        tl.store(address + part * SIZE, (first * c - second * s).to(dtype), mask=inside)
        tl.store(address + part * SIZE + HALF, (second * c + first * s).to(dtype), mask=inside)


@triton.jit
def _rotate_back(x, offset, partner_offset, cos, sin, inside, rotated):
    # The transpose of a rotation is the rotation by minus the angle.
    value = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
    partner = tl.load(x + partner_offset, mask=rotated, other=0.0).to(tl.float32)
    return value * cos + partner * sin


@triton.jit
def _rotary_pack(
    dq,
    dk,
    dv,
    cos,
    sin,
    packed,
    transposed,
    factor,
    amax,
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
    FP8_MAX: tl.constexpr,
    ROWS: tl.constexpr,
):
    head, heads = tl.program_id(0), tl.num_programs(0)
    program, programs = tl.program_id(1), tl.num_programs(1)
    column = tl.arange(0, PADDED).to(tl.int64)[None, :]
    partner = tl.where(column < HALF, column + HALF, column - HALF)
    sum_q = tl.zeros((ROWS, PADDED), tl.float32)
    sum_k = tl.zeros((ROWS, PADDED), tl.float32)
    sum_v = tl.zeros((ROWS, PADDED), tl.float32)
    magnitudes = tl.zeros((ROWS, PADDED), tl.float32)
    for start in range(program * ROWS, tokens, programs * ROWS):
        token = (start + tl.arange(0, ROWS))[:, None]
        sequence, position = (token // length).to(tl.int64), (token % length).to(tl.int64)
        inside = (token < tokens) & (column < SIZE)
        rotated = (token < tokens) & (column < 2 * HALF)
        angle = position * (2 * HALF) + column
        c = tl.load(cos + angle, mask=rotated, other=1.0).to(tl.float32)
        s = tl.load(sin + angle, mask=rotated, other=0.0).to(tl.float32)
        s = tl.where(column < HALF, s, -s)
        offset = sequence * q_b + position * q_t + head * q_h
        q = _rotate_back(dq, offset + column, offset + partner, c, s, inside, rotated)
        offset = sequence * k_b + position * k_t + head * k_h
        k = _rotate_back(dk, offset + column, offset + partner, c, s, inside, rotated)
        offset = sequence * v_b + position * v_t + head * v_h + column
        v = tl.load(dv + offset, mask=inside, other=0.0).to(tl.float32)
        row, first, width = token.to(tl.int64), head * (3 * SIZE) + column, heads * (3 * SIZE)
        if FP8_MAX > 0:
            stored = store_fp8(
                q, row, first, inside, tokens, width, factor, packed, transposed, FP8_MAX
            )
            magnitudes = tl.maximum(magnitudes, stored)
            first += SIZE
            stored = store_fp8(
                k, row, first, inside, tokens, width, factor, packed, transposed, FP8_MAX
            )
            magnitudes = tl.maximum(magnitudes, stored)
            first += SIZE
            stored = store_fp8(
                v, row, first, inside, tokens, width, factor, packed, transposed, FP8_MAX
            )
            magnitudes = tl.maximum(magnitudes, stored)
        else:
            to = packed + row * width + first
            dtype = packed.dtype.element_ty
            tl.store(to, q.to(dtype), mask=inside)
            tl.store(to + SIZE, k.to(dtype), mask=inside)
            tl.store(to + 2 * SIZE, v.to(dtype), mask=inside)
        sum_q += q
        sum_k += k
        sum_v += v
    if FP8_MAX > 0:
        update_amax(magnitudes, amax)
    to = partial + (program * heads + head) * (3 * SIZE) + tl.arange(0, PADDED)
    inside = tl.arange(0, PADDED) < SIZE
    tl.store(to, tl.sum(sum_q, 0), mask=inside)
    tl.store(to + SIZE, tl.sum(sum_k, 0), mask=inside)
    tl.store(to + 2 * SIZE, tl.sum(sum_v, 0), mask=inside)


@torch.library.custom_op("rewarm::turn_", mutates_args=("qkv",))
def turn_(qkv: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotates queries and keys of a packed (B, T, H, 3K) tensor in place."""
    B, T, H, packed = qkv.shape
    half, rows = cos.shape[-1] // 2, B * T * H
    _rotary_turn[(triton.cdiv(rows, _TURN_ROWS),)](
        qkv, cos, sin, rows, T, H,
        SIZE=packed // 3, HALF=half, PADDED=next_power_of_two(half), ROWS=_TURN_ROWS,
        **launch_options(4),
    )  # fmt: skip


@turn_.register_fake
def _(qkv: Tensor, cos: Tensor, sin: Tensor) -> None:
    return None


@torch.library.custom_op("rewarm::pack", mutates_args=())
def pack(dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradient of the packed q, k and v, (B, T, H, 3K), and its sum over all tokens."""
    packed, _ = _pack_fake(dq, dk, dv, cos, sin)
    rows = max(1, _PACK_TILE // next_power_of_two(dq.shape[-1]))
    return packed, _pack((dq, dk, dv), cos, sin, (packed, None, None, None), 0.0, rows, warps=4)


def _pack(
    gradients: tuple[Tensor, ...],
    cos: Tensor,
    sin: Tensor,
    outputs: tuple[Tensor | None, ...],
    fp8_max: float,
    rows: int,
    *,
    warps: int,
) -> Tensor:
    """Launches `_rotary_pack`, `rows` tokens at a time; returns the sums over all tokens.

    Args:
        gradients: the gradients of q, k and v, each (B, H, T, K).
        cos: the cosines of each position's angles, (T, R).
        sin: the sines of each position's angles, (T, R).
        outputs: the packed gradient; for fp8 also its transpose, the scale and the amax, each of
            which is None otherwise.
        fp8_max: the largest number of the fp8 format; 0 for outputs that are not fp8.
        rows: the number of tokens per tile.
        warps: the number of warps per program.
    """
    dq, dk, dv = (x if x.stride(-1) == 1 else x.contiguous() for x in gradients)
    B, H, T, K = dq.shape
    programs = min(max(1, 6 * MULTIPROCESSORS // H), triton.cdiv(B * T, rows))
    partial = dq.new_empty(programs, H * 3 * K, dtype=torch.float32)
    _rotary_pack[(H, programs)](
        dq, dk, dv, cos, sin, *outputs, partial, B * T, T,
        *dq.stride()[:3], *dk.stride()[:3], *dv.stride()[:3],
        SIZE=K, HALF=cos.shape[-1] // 2, PADDED=next_power_of_two(K), FP8_MAX=fp8_max, ROWS=rows,
        **launch_options(warps),
    )  # fmt: skip
    return partial.sum(0)


@pack.register_fake
def _pack_fake(
    dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    B, H, T, K = dq.shape
    return dq.new_empty(B, T, H, 3 * K), dq.new_empty(H * 3 * K, dtype=torch.float32)


@torch.library.custom_op("rewarm::pack8", mutates_args=("amax",))
def pack8(
    dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor, factor: Tensor, amax: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the result of `pack` in fp8, (B · T, H · 3K), its transpose, and the sum in fp32."""
    packed, transposed, _ = _pack8_fake(dq, dk, dv, cos, sin, factor, amax)
    outputs = (packed, transposed, factor, amax)
    rows = max(1, _PACK8_TILE // next_power_of_two(dq.shape[-1]))
    sums = _pack((dq, dk, dv), cos, sin, outputs, FP8_MAX[GRADIENT], rows, warps=8)
    return packed, transposed, sums


@pack8.register_fake
def _pack8_fake(
    dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor, factor: Tensor, amax: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    B, H, T, K = dq.shape
    sums = dq.new_empty(H * 3 * K, dtype=torch.float32)
    return *empty_fp8_pair(dq, (B * T, H * 3 * K), GRADIENT), sums


class _Rotary(torch.autograd.Function):
    """Rotates packed q and k in place; returns q, k and v as views.

    The bias is an argument only for its gradient, which `pack` computes in the same pass.
    """

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
        packed, dbias = pack(dq, dk, dv, *ctx.saved_tensors)
        return packed, None if ctx.bias_dtype is None else dbias.to(ctx.bias_dtype), None, None


def rotary(
    x_BTD: Tensor, query_key_value: nn.Linear, heads: int, cos_TR: Tensor, sin_TR: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Applies the linear layer; returns q, k, v: `pytorch_reference.rotary` in Triton."""
    B, T, _ = x_BTD.shape
    bias = query_key_value.bias
    qkv = functional.linear(x_BTD, query_key_value.weight, None if bias is None else bias.detach())
    rotated = _Rotary.apply(qkv.view(B, T, heads, -1), bias, cos_TR, sin_TR)
    return cast(tuple[Tensor, Tensor, Tensor], rotated)
