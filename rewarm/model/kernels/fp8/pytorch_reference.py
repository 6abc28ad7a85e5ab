"""A layer's products in 8 bits, in plain PyTorch: the reference, and what a CPU rounds as.

Shapes: N tokens, I inputs, O outputs of a product; R rows, C columns. A GPU multiplies 8-bit
matrices along rows of both only, so whatever is rounded is laid out twice: as it is for one
product, transposed for another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from rewarm.model.kernels import pytorch_reference
from rewarm.model.kernels.fp8.scaling import (
    FORMATS,
    GRADIENT,
    LARGEST,
    WEIGHT,
    Scales,
    X,
    scales_of,
)
from rewarm.model.kernels.launch import working_dtype

Cast = Callable[[Tensor, Scales, int], tuple[Tensor, Tensor]]


def cast8(x_RC: Tensor, scales: Scales, which: int) -> tuple[Tensor, Tensor]:
    """Returns a matrix in 8 bits, (R, C) and (C, R), and notes its largest magnitude.

    What a scale is too large for is cut off at the format's largest number. What is not finite
    becomes no number: the guard over the gradient's norm has to see it.
    """
    x_RC = x_RC.float()
    size, most = x_RC.abs(), LARGEST[which]
    finite = size.isfinite()
    seen = torch.where(finite, size, 0.0).amax()
    known = scales[which]
    known.seen.copy_(torch.maximum(known.seen, seen))
    scaled = (x_RC * known.factor).clamp(-most, most)
    x8_RC = torch.where(finite, scaled, torch.nan).to(FORMATS[which])
    return x8_RC, x8_RC.t().contiguous()


def multiply(
    a_MK: Tensor,
    b_NK: Tensor,
    scales: Scales,
    which: tuple[int, int],
    dtype: torch.dtype,
    bias_N: Tensor | None = None,
) -> Tensor:
    """Returns a · bᵀ + bias, (M, N), of two tensors of a product, in `dtype`."""
    inverse_a, inverse_b = (scales[one].inverse for one in which)
    if bias_N is not None and dtype == torch.float32:  # to which a GPU adds none
        return multiply(a_MK, b_NK, scales, which, dtype) + bias_N
    # On a CPU the product is made of others, which autocast would round in between.
    with torch.autocast(a_MK.device.type, enabled=False):
        return torch._scaled_mm(
            a_MK,
            b_NK.t(),
            inverse_a,
            inverse_b,
            None if bias_N is None else bias_N.to(dtype),
            out_dtype=dtype,
            # A Hopper GPU's fast sums are of some 14 bits: enough on the way forward, as in
            # Transformer Engine.
            use_fast_accum=GRADIENT not in which,
        )


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_NI: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        scales: Scales,
        dtype: torch.dtype,
        cast: Cast,
    ) -> Tensor:
        x8_NI, x8_IN = cast(x_NI, scales, X)
        weight8_OI, weight8_IO = cast(weight_OI, scales, WEIGHT)
        ctx.save_for_backward(x8_IN, weight8_IO)
        ctx.scales, ctx.cast, ctx.x_dtype = scales, cast, x_NI.dtype
        ctx.has_bias = bias_O is not None
        return multiply(x8_NI, weight8_OI, scales, (X, WEIGHT), dtype, bias_O)

    @staticmethod
    def backward(ctx: Any, dy_NO: Tensor) -> tuple[Tensor | None, ...]:
        (x8_IN, weight8_IO), scales = ctx.saved_tensors, ctx.scales
        dy8_NO, dy8_ON = ctx.cast(dy_NO, scales, GRADIENT)
        dx_NI = multiply(dy8_NO, weight8_IO, scales, (GRADIENT, WEIGHT), ctx.x_dtype)
        dweight_OI = multiply(dy8_ON, x8_IN, scales, (GRADIENT, X), torch.float32)
        dbias_O = dy_NO.sum(0, dtype=torch.float32) if ctx.has_bias else None
        return dx_NI, dweight_OI, dbias_O, None, None, None


_product: Callable[..., Tensor] = _Product.apply


def made_with(cast_: Cast, x: Tensor, linear: nn.Linear) -> Tensor:
    """Returns what `linear(x)` does, rounding with `cast_`; without gradients, as autocast has it.

    Without them nothing is trained: what is measured are the weights, not the rounding.
    """
    if not torch.is_grad_enabled():
        return cast(Tensor, linear(x))
    x_NI, scales, dtype = x.flatten(0, -2), scales_of(linear), working_dtype(x)
    y_NO = _product(x_NI, linear.weight, linear.bias, scales, dtype, cast_)
    return y_NO.view(*x.shape[:-1], -1)


def product(x_BTD: Tensor, dense: nn.Linear) -> Tensor:
    """Returns what `plain.product` does, in fp8."""
    return made_with(cast8, x_BTD, dense)


def rotary(
    x_BTD: Tensor, query_key_value: nn.Linear, heads: int, cos_TR: Tensor, sin_TR: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns what `plain.rotary` does, with its product in fp8."""
    return pytorch_reference.turned(product(x_BTD, query_key_value), heads, cos_TR, sin_TR)


def mlp(
    x_BTD: Tensor, dense_h_to_4h: nn.Linear, dense_4h_to_h: nn.Linear, activation: str
) -> Tensor:
    """Returns what `plain.mlp` does, with its products in fp8."""
    inner_BTF = pytorch_reference.activate(product(x_BTD, dense_h_to_4h), activation)
    return product(inner_BTF, dense_4h_to_h)
