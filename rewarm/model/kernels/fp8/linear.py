"""A layer's products in 8 bits, in Triton: what GELU and rotary compute is rounded where it is.

```
forward     x ─ round ─ product ─ bias, GELU and round ─ product ─> y
backward    x's gradient <─ product ─ GELU's derivative and round ─ product ─ round ─ y's gradient
```
Only what comes from elsewhere is rounded in a pass of its own: what the norms and attention give,
the gradient of the residual stream, and the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rewarm.model.kernels import gelu, pytorch_reference
from rewarm.model.kernels import rotary as rotary_kernels
from rewarm.model.kernels.fp8 import pytorch_reference as fp8_reference
from rewarm.model.kernels.fp8.pytorch_reference import multiply
from rewarm.model.kernels.fp8.rounding import cast8
from rewarm.model.kernels.fp8.scaling import GRADIENT, WEIGHT, Scales, X, scales_of
from rewarm.model.kernels.launch import working_dtype


def product(x_BTD: Tensor, dense: nn.Linear) -> Tensor:
    """Returns what `plain_fp8.product` does."""
    return fp8_reference.made_with(cast8, x_BTD, dense)


class _MLP(torch.autograd.Function):
    """N tokens, D hidden, F inner size."""

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        up_FD: Tensor,
        up_bias_F: Tensor,
        down_DF: Tensor,
        down_bias_D: Tensor,
        scales: tuple[Scales, Scales],
        dtype: torch.dtype,
        tanh: bool,
    ) -> Tensor:
        up, down = scales
        x8_ND, x8_DN = cast8(x_ND, up, X)
        up8_FD, up8_DF = cast8(up_FD, up, WEIGHT)
        inner_NF = multiply(x8_ND, up8_FD, up, (X, WEIGHT), dtype)
        y8_NF, y8_FN = gelu.gelu_forward8(inner_NF, up_bias_F, tanh, down[X].factor, down[X].seen)
        down8_DF, down8_FD = cast8(down_DF, down, WEIGHT)
        ctx.save_for_backward(inner_NF, up_bias_F, x8_DN, up8_DF, y8_FN, down8_FD)
        ctx.scales, ctx.x_dtype, ctx.dtype, ctx.tanh = scales, x_ND.dtype, dtype, tanh
        return multiply(y8_NF, down8_DF, down, (X, WEIGHT), dtype, down_bias_D)

    @staticmethod
    def backward(ctx: Any, dy_ND: Tensor) -> tuple[Tensor | None, ...]:
        inner_NF, up_bias_F, x8_DN, up8_DF, y8_FN, down8_FD = ctx.saved_tensors
        up, down = ctx.scales
        dy8_ND, dy8_DN = cast8(dy_ND, down, GRADIENT)
        dgelu_NF = multiply(dy8_ND, down8_FD, down, (GRADIENT, WEIGHT), ctx.dtype)
        ddown_DF = multiply(dy8_DN, y8_FN, down, (GRADIENT, X), torch.float32)
        dinner8_NF, dinner8_FN, dup_bias_F = gelu.gelu_backward8(
            dgelu_NF, inner_NF, up_bias_F, ctx.tanh, up[GRADIENT].factor, up[GRADIENT].seen
        )
        dx_ND = multiply(dinner8_NF, up8_DF, up, (GRADIENT, WEIGHT), ctx.x_dtype)
        dup_FD = multiply(dinner8_FN, x8_DN, up, (GRADIENT, X), torch.float32)
        biases = (dup_bias_F, dy_ND.sum(0, dtype=torch.float32))
        return dx_ND, dup_FD, biases[0], ddown_DF, biases[1], None, None, None


_mlp: Callable[..., Tensor] = _MLP.apply


def mlp(
    x_BTD: Tensor, dense_h_to_4h: nn.Linear, dense_4h_to_h: nn.Linear, activation: str
) -> Tensor:
    """Returns what `plain_fp8.mlp` does; of ReLU and SiLU, only the products in 8 bits."""
    if not torch.is_grad_enabled():
        return gelu.mlp(x_BTD, dense_h_to_4h, dense_4h_to_h, activation)
    if activation not in gelu.GELUS:
        inner_BTF = pytorch_reference.activate(product(x_BTD, dense_h_to_4h), activation)
        return product(inner_BTF, dense_4h_to_h)
    up, down = dense_h_to_4h, dense_4h_to_h
    y_ND = _mlp(
        x_BTD.flatten(0, -2),
        up.weight,
        up.bias,
        down.weight,
        down.bias,
        (scales_of(up), scales_of(down)),
        working_dtype(x_BTD),
        activation in pytorch_reference.TANH,
    )
    return y_ND.view(x_BTD.shape)


class _Rotary(torch.autograd.Function):
    """B sequences, T positions, H heads, K head size; I hidden, O = H · 3K, N = B · T."""

    @staticmethod
    def forward(
        ctx: Any,
        x_BTI: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        scales: Scales,
        dtype: torch.dtype,
        heads: int,
    ) -> tuple[Tensor, ...]:
        B, T, _ = x_BTI.shape
        x8_NI, x8_IN = cast8(x_BTI.flatten(0, 1), scales, X)
        weight8_OI, weight8_IO = cast8(weight_OI, scales, WEIGHT)
        qkv = multiply(x8_NI, weight8_OI, scales, (X, WEIGHT), dtype, bias_O)
        qkv = qkv.view(B, T, heads, -1)
        rotary_kernels.turn_(qkv, cos, sin)
        ctx.save_for_backward(x8_IN, weight8_IO, cos, sin)
        ctx.scales, ctx.x_dtype, ctx.has_bias = scales, x_BTI.dtype, bias_O is not None
        return qkv.transpose(1, 2).chunk(3, dim=-1)

    @staticmethod
    def backward(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
        (x8_IN, weight8_IO, cos, sin), scales = ctx.saved_tensors, ctx.scales
        packed8_NO, packed8_ON, dbias_O = rotary_kernels.pack8(
            dq, dk, dv, cos, sin, scales[GRADIENT].factor, scales[GRADIENT].seen
        )
        dx_NI = multiply(packed8_NO, weight8_IO, scales, (GRADIENT, WEIGHT), ctx.x_dtype)
        dweight_OI = multiply(packed8_ON, x8_IN, scales, (GRADIENT, X), torch.float32)
        dx_BTI = dx_NI.view(dq.shape[0], dq.shape[2], -1)
        return dx_BTI, dweight_OI, dbias_O if ctx.has_bias else None, *[None] * 5


_rotary: Callable[..., tuple[Tensor, Tensor, Tensor]] = _Rotary.apply


def rotary(
    x_BTD: Tensor, query_key_value: nn.Linear, heads: int, cos_TR: Tensor, sin_TR: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns what `plain_fp8.rotary` does."""
    if not torch.is_grad_enabled():
        return rotary_kernels.rotary(x_BTD, query_key_value, heads, cos_TR, sin_TR)
    linear, scales = query_key_value, scales_of(query_key_value)
    dtype = working_dtype(x_BTD)
    return _rotary(x_BTD, linear.weight, linear.bias, cos_TR, sin_TR, scales, dtype, heads)
