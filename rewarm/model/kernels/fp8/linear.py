"""Linear layers in fp8, in Triton: outputs of GELU and rotary are rounded where they are computed.

```
forward     x ─ round ─ matmul ─ bias, GELU and round ─ matmul ─> y
backward    x's gradient <─ matmul ─ GELU's derivative and round ─ matmul ─ round ─ y's gradient
```
A separate rounding pass is needed only for the outputs of norms and attention, the gradient of the
residual stream, and the weights.

Shapes: B sequences, T positions, D hidden, R rotary dimensions; others in each class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rewarm.model.kernels import gelu, pytorch_reference
from rewarm.model.kernels import rotary as rotary_kernels
from rewarm.model.kernels.fp8.pytorch_reference import fp8_matmul, linear_rounded_by
from rewarm.model.kernels.fp8.rounding import round_to_fp8
from rewarm.model.kernels.fp8.scaling import GRADIENT, INPUT, WEIGHT, LinearScales, get_scales
from rewarm.model.kernels.launch import autocast_dtype


def linear_layer(x_BTD: Tensor, dense: nn.Linear) -> Tensor:
    """The Triton version of `fp8.pytorch_reference.linear_layer`."""
    return linear_rounded_by(round_to_fp8, x_BTD, dense)


class _Fp8Mlp(torch.autograd.Function):
    """Shapes: N tokens, D hidden, F inner size."""

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        up_FD: Tensor,
        up_bias_F: Tensor,
        down_DF: Tensor,
        down_bias_D: Tensor,
        scales: tuple[LinearScales, LinearScales],
        dtype: torch.dtype,
        tanh: bool,
    ) -> Tensor:
        up, down = scales
        x8_ND, x8_DN = round_to_fp8(x_ND, up, INPUT)
        up8_FD, up8_DF = round_to_fp8(up_FD, up, WEIGHT)
        inner_NF = fp8_matmul(x8_ND, up8_FD, up, (INPUT, WEIGHT), dtype)
        y8_NF, y8_FN = gelu.gelu_forward8(
            inner_NF, up_bias_F, tanh, down[INPUT].factor, down[INPUT].amax
        )
        down8_DF, down8_FD = round_to_fp8(down_DF, down, WEIGHT)
        ctx.save_for_backward(inner_NF, up_bias_F, x8_DN, up8_DF, y8_FN, down8_FD)
        ctx.scales, ctx.x_dtype, ctx.dtype, ctx.tanh = scales, x_ND.dtype, dtype, tanh
        return fp8_matmul(y8_NF, down8_DF, down, (INPUT, WEIGHT), dtype, down_bias_D)

    @staticmethod
    def backward(ctx: Any, dy_ND: Tensor) -> tuple[Tensor | None, ...]:
        inner_NF, up_bias_F, x8_DN, up8_DF, y8_FN, down8_FD = ctx.saved_tensors
        up, down = ctx.scales
        dy8_ND, dy8_DN = round_to_fp8(dy_ND, down, GRADIENT)
        dgelu_NF = fp8_matmul(dy8_ND, down8_FD, down, (GRADIENT, WEIGHT), ctx.dtype)
        ddown_DF = fp8_matmul(dy8_DN, y8_FN, down, (GRADIENT, INPUT), torch.float32)
        dinner8_NF, dinner8_FN, dup_bias_F = gelu.gelu_backward8(
            dgelu_NF, inner_NF, up_bias_F, ctx.tanh, up[GRADIENT].factor, up[GRADIENT].amax
        )
        dx_ND = fp8_matmul(dinner8_NF, up8_DF, up, (GRADIENT, WEIGHT), ctx.x_dtype)
        dup_FD = fp8_matmul(dinner8_FN, x8_DN, up, (GRADIENT, INPUT), torch.float32)
        ddown_bias_D = dy_ND.sum(0, dtype=torch.float32)
        return dx_ND, dup_FD, dup_bias_F, ddown_DF, ddown_bias_D, None, None, None


_fp8_mlp: Callable[..., Tensor] = _Fp8Mlp.apply


def mlp(
    x_BTD: Tensor, dense_h_to_4h: nn.Linear, dense_4h_to_h: nn.Linear, activation: str
) -> Tensor:
    """The Triton version of `fp8.pytorch_reference.mlp`; ReLU and SiLU are in plain PyTorch."""
    if not torch.is_grad_enabled():
        return gelu.mlp(x_BTD, dense_h_to_4h, dense_4h_to_h, activation)
    if activation not in gelu.GELUS:
        inner_BTF = pytorch_reference.activate(linear_layer(x_BTD, dense_h_to_4h), activation)
        return linear_layer(inner_BTF, dense_4h_to_h)
    up, down = dense_h_to_4h, dense_4h_to_h
    y_ND = _fp8_mlp(
        x_BTD.flatten(0, -2),
        up.weight,
        up.bias,
        down.weight,
        down.bias,
        (get_scales(up), get_scales(down)),
        autocast_dtype(x_BTD),
        activation in pytorch_reference.TANH_GELUS,
    )
    return y_ND.view(x_BTD.shape)


class _Fp8Rotary(torch.autograd.Function):
    """Shapes: B sequences, T positions, H heads, K head size; I hidden, O = H · 3K, N = B · T."""

    @staticmethod
    def forward(
        ctx: Any,
        x_BTI: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        scales: LinearScales,
        dtype: torch.dtype,
        heads: int,
    ) -> tuple[Tensor, ...]:
        B, T, _ = x_BTI.shape
        x8_NI, x8_IN = round_to_fp8(x_BTI.flatten(0, 1), scales, INPUT)
        weight8_OI, weight8_IO = round_to_fp8(weight_OI, scales, WEIGHT)
        qkv = fp8_matmul(x8_NI, weight8_OI, scales, (INPUT, WEIGHT), dtype, bias_O)
        qkv = qkv.view(B, T, heads, -1)
        rotary_kernels.turn_(qkv, cos, sin)
        ctx.save_for_backward(x8_IN, weight8_IO, cos, sin)
        ctx.scales, ctx.x_dtype, ctx.has_bias = scales, x_BTI.dtype, bias_O is not None
        return qkv.transpose(1, 2).chunk(3, dim=-1)

    @staticmethod
    def backward(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
        (x8_IN, weight8_IO, cos, sin), scales = ctx.saved_tensors, ctx.scales
        packed8_NO, packed8_ON, dbias_O = rotary_kernels.pack8(
            dq, dk, dv, cos, sin, scales[GRADIENT].factor, scales[GRADIENT].amax
        )
        dx_NI = fp8_matmul(packed8_NO, weight8_IO, scales, (GRADIENT, WEIGHT), ctx.x_dtype)
        dweight_OI = fp8_matmul(packed8_ON, x8_IN, scales, (GRADIENT, INPUT), torch.float32)
        dx_BTI = dx_NI.view(dq.shape[0], dq.shape[2], -1)
        return dx_BTI, dweight_OI, dbias_O if ctx.has_bias else None, *[None] * 5


_fp8_rotary: Callable[..., tuple[Tensor, Tensor, Tensor]] = _Fp8Rotary.apply


def rotary(
    x_BTD: Tensor, query_key_value: nn.Linear, heads: int, cos_TR: Tensor, sin_TR: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Applies the linear layer in fp8; returns q, k, v as `fp8.pytorch_reference.rotary` does."""
    if not torch.is_grad_enabled():
        return rotary_kernels.rotary(x_BTD, query_key_value, heads, cos_TR, sin_TR)
    dense, scales = query_key_value, get_scales(query_key_value)
    dtype = autocast_dtype(x_BTD)
    return _fp8_rotary(x_BTD, dense.weight, dense.bias, cos_TR, sin_TR, scales, dtype, heads)
