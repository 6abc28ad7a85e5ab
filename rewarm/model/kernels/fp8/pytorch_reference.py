"""Linear layers in fp8 in plain PyTorch: the reference, and what runs on a CPU.

A GPU multiplies 8-bit matrices only along the rows of both operands, so a rounded matrix is stored
twice: as it is for one matmul, transposed for another.

Shapes: B sequences, T positions, D hidden, F inner size, R rotary dimensions; N tokens, I inputs, O
outputs of a linear layer. `round_to_fp8`: R rows, C columns. `fp8_matmul`: an (M, K) matrix times
the transpose of an (N, K) one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from rewarm.model.kernels import pytorch_reference
from rewarm.model.kernels.fp8.scaling import (
    FP8_DTYPES,
    FP8_MAX,
    GRADIENT,
    INPUT,
    WEIGHT,
    LinearScales,
    get_scales,
)
from rewarm.model.kernels.launch import autocast_dtype

RoundToFp8 = Callable[[Tensor, LinearScales, int], tuple[Tensor, Tensor]]


def round_to_fp8(x_RC: Tensor, scales: LinearScales, operand: int) -> tuple[Tensor, Tensor]:
    """Returns a matrix in 8 bits, (R, C) and (C, R), and updates its amax.

    Numbers too large for the scale are clamped to the format's maximum. Infinities and NaN become
    NaN: the divergence guard has to see them in the gradient's norm.
    """
    x_RC = x_RC.float()
    magnitude, fp8_max = x_RC.abs(), FP8_MAX[operand]
    finite = magnitude.isfinite()
    amax = torch.where(finite, magnitude, 0.0).amax()
    scale = scales[operand]
    scale.amax.copy_(torch.maximum(scale.amax, amax))
    scaled = (x_RC * scale.factor).clamp(-fp8_max, fp8_max)
    x8_RC = torch.where(finite, scaled, torch.nan).to(FP8_DTYPES[operand])
    return x8_RC, x8_RC.t().contiguous()


def fp8_matmul(
    a_MK: Tensor,
    b_NK: Tensor,
    scales: LinearScales,
    operands: tuple[int, int],
    dtype: torch.dtype,
    bias_N: Tensor | None = None,
) -> Tensor:
    """Returns a · bᵀ + bias, (M, N) in `dtype`, of two rounded operands of a linear layer."""
    inverse_a, inverse_b = (scales[operand].inverse for operand in operands)
    if bias_N is not None and dtype == torch.float32:  # a GPU adds no bias to an fp32 output
        return fp8_matmul(a_MK, b_NK, scales, operands, dtype) + bias_N
    # On a CPU, _scaled_mm is composed of operators that autocast would round in between.
    # With oneDNN, it takes 600 times as long on processors with AMX: 13 s in place of 20 ms for
    # 1024 × 256 × 512. The compiler does not know that flag.
    without_onednn: AbstractContextManager[None] = nullcontext()
    if not torch.compiler.is_compiling():
        without_onednn = torch.backends.mkldnn.flags(enabled=False, allow_tf32=None)
    with torch.autocast(a_MK.device.type, enabled=False), without_onednn:
        return torch._scaled_mm(
            a_MK,
            b_NK.t(),
            inverse_a,
            inverse_b,
            None if bias_N is None else bias_N.to(dtype),
            out_dtype=dtype,
            # A Hopper GPU's fast sums have some 14 bits: enough in the forward pass, as in
            # Transformer Engine.
            use_fast_accum=GRADIENT not in operands,
        )


class _Fp8Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_NI: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        scales: LinearScales,
        dtype: torch.dtype,
        round_: RoundToFp8,
    ) -> Tensor:
        x8_NI, x8_IN = round_(x_NI, scales, INPUT)
        weight8_OI, weight8_IO = round_(weight_OI, scales, WEIGHT)
        ctx.save_for_backward(x8_IN, weight8_IO)
        ctx.scales, ctx.round, ctx.x_dtype = scales, round_, x_NI.dtype
        ctx.has_bias = bias_O is not None
        return fp8_matmul(x8_NI, weight8_OI, scales, (INPUT, WEIGHT), dtype, bias_O)

    @staticmethod
    def backward(ctx: Any, dy_NO: Tensor) -> tuple[Tensor | None, ...]:
        (x8_IN, weight8_IO), scales = ctx.saved_tensors, ctx.scales
        dy8_NO, dy8_ON = ctx.round(dy_NO, scales, GRADIENT)
        dx_NI = fp8_matmul(dy8_NO, weight8_IO, scales, (GRADIENT, WEIGHT), ctx.x_dtype)
        dweight_OI = fp8_matmul(dy8_ON, x8_IN, scales, (GRADIENT, INPUT), torch.float32)
        dbias_O = dy_NO.sum(0, dtype=torch.float32) if ctx.has_bias else None
        return dx_NI, dweight_OI, dbias_O, None, None, None


_fp8_linear: Callable[..., Tensor] = _Fp8Linear.apply


def linear_rounded_by(round_: RoundToFp8, x: Tensor, dense: nn.Linear) -> Tensor:
    """Returns `dense(x)` in fp8, its operands rounded by `round_`.

    Without gradients it is computed as autocast does: evaluation measures the weights, not the
    rounding.
    """
    if not torch.is_grad_enabled():
        return cast(Tensor, dense(x))
    x_NI, scales, dtype = x.flatten(0, -2), get_scales(dense), autocast_dtype(x)
    y_NO = _fp8_linear(x_NI, dense.weight, dense.bias, scales, dtype, round_)
    return y_NO.view(*x.shape[:-1], -1)


def linear_layer(x_BTD: Tensor, dense: nn.Linear) -> Tensor:
    """The fp8 version of `kernels.pytorch_reference.linear_layer`."""
    return linear_rounded_by(round_to_fp8, x_BTD, dense)


def rotary(
    x_BTD: Tensor, query_key_value: nn.Linear, heads: int, cos_TR: Tensor, sin_TR: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Applies the linear layer in fp8; returns q, k, v as `kernels.pytorch_reference.rotary`."""
    packed = linear_layer(x_BTD, query_key_value)
    return pytorch_reference.split_and_rotate(packed, heads, cos_TR, sin_TR)


def mlp(
    x_BTD: Tensor, dense_h_to_4h: nn.Linear, dense_4h_to_h: nn.Linear, activation: str
) -> Tensor:
    """The fp8 version of `kernels.pytorch_reference.mlp`; only its matmuls are in fp8."""
    inner_BTF = pytorch_reference.activate(linear_layer(x_BTD, dense_h_to_4h), activation)
    return linear_layer(inner_BTF, dense_4h_to_h)
