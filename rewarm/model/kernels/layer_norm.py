"""The two layer norms of a parallel residual: one mean and variance, one pass in each direction.

```
x ── mean, 1/σ ──> x̂ ──┬─ · weight₁ + bias₁ ──> for the attention
                       └─ · weight₂ + bias₂ ──> for the MLP
gradients of both norms and of the residual ── one pass ──> gradients of x, weights and biases
```
Shapes: B sequences, T positions, D hidden.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from rewarm.model.kernels import pytorch_reference
from rewarm.model.kernels.launch import (
    MULTIPROCESSORS,
    autocast_dtype,
    launch_options,
    next_power_of_two,
)

_MAX_WIDTH = 4096  # the sums of wider rows do not fit into a program's registers


@triton.jit
def _norms_forward(
    x,
    weight_1,
    bias_1,
    weight_2,
    bias_2,
    y_1,
    y_2,
    mean,
    rstd,
    rows,
    eps,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
):
    column = tl.arange(0, PADDED)
    inside = column < WIDTH
    w_1 = tl.load(weight_1 + column, mask=inside, other=0.0).to(tl.float32)
    b_1 = tl.load(bias_1 + column, mask=inside, other=0.0).to(tl.float32)
    w_2 = tl.load(weight_2 + column, mask=inside, other=0.0).to(tl.float32)
    b_2 = tl.load(bias_2 + column, mask=inside, other=0.0).to(tl.float32)
    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        offset = row * WIDTH + column
        value = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
        row_mean = tl.sum(value, 0) / WIDTH
        centered = tl.where(inside, value - row_mean, 0.0)
        row_rstd = 1.0 / tl.sqrt(tl.sum(centered * centered, 0) / WIDTH + eps)
        normed = centered * row_rstd
        tl.store(y_1 + offset, (normed * w_1 + b_1).to(y_1.dtype.element_ty), mask=inside)
        tl.store(y_2 + offset, (normed * w_2 + b_2).to(y_2.dtype.element_ty), mask=inside)
        tl.store(mean + row, row_mean)
        tl.store(rstd + row, row_rstd)


@triton.jit
def _norms_backward(
    dy_1,
    dy_2,
    dresidual,
    x,
    mean,
    rstd,
    weight_1,
    weight_2,
    dx,
    partial,
    rows,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
):
    column = tl.arange(0, PADDED)
    inside = column < WIDTH
    w_1 = tl.load(weight_1 + column, mask=inside, other=0.0).to(tl.float32)
    w_2 = tl.load(weight_2 + column, mask=inside, other=0.0).to(tl.float32)
    dw_1 = tl.zeros((PADDED,), tl.float32)
    db_1 = tl.zeros((PADDED,), tl.float32)
    dw_2 = tl.zeros((PADDED,), tl.float32)
    db_2 = tl.zeros((PADDED,), tl.float32)
    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        offset = row * WIDTH + column
        value = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
        g_1 = tl.load(dy_1 + offset, mask=inside, other=0.0).to(tl.float32)
        g_2 = tl.load(dy_2 + offset, mask=inside, other=0.0).to(tl.float32)
        residual = tl.load(dresidual + offset, mask=inside, other=0.0).to(tl.float32)
        row_rstd = tl.load(rstd + row)
        normed = tl.where(inside, (value - tl.load(mean + row)) * row_rstd, 0.0)
        g = g_1 * w_1 + g_2 * w_2
        projection = tl.sum(g * normed, 0) / WIDTH
        g_mean = tl.sum(g, 0) / WIDTH
        gradient = (g - g_mean - normed * projection) * row_rstd + residual
        tl.store(dx + offset, gradient.to(dx.dtype.element_ty), mask=inside)
        dw_1 += g_1 * normed
        db_1 += g_1
        dw_2 += g_2 * normed
        db_2 += g_2
    to = partial + tl.program_id(0) * (4 * WIDTH) + column
    tl.store(to, dw_1, mask=inside)
    tl.store(to + WIDTH, db_1, mask=inside)
    tl.store(to + 2 * WIDTH, dw_2, mask=inside)
    tl.store(to + 3 * WIDTH, db_2, mask=inside)


def _warps(width: int) -> int:
    """Returns the number of warps per program: each thread holds about eight numbers of a row."""
    return min(16, max(1, next_power_of_two(width) // 256))


@torch.library.custom_op("rewarm::norms_forward", mutates_args=())
def norms_forward(
    x: Tensor,
    weight_1: Tensor,
    bias_1: Tensor,
    weight_2: Tensor,
    bias_2: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns both norms in `dtype`, and the mean and 1/σ of every row in fp32."""
    y_1, y_2, mean, rstd = _norms_forward_fake(x, weight_1, bias_1, weight_2, bias_2, eps, dtype)
    width, rows = x.shape[-1], mean.numel()
    _norms_forward[(min(8 * MULTIPROCESSORS, rows),)](
        x, weight_1, bias_1, weight_2, bias_2, y_1, y_2, mean, rstd, rows, eps,
        WIDTH=width, PADDED=next_power_of_two(width), **launch_options(_warps(width)),
    )  # fmt: skip
    return y_1, y_2, mean, rstd


@norms_forward.register_fake
def _norms_forward_fake(
    x: Tensor,
    weight_1: Tensor,
    bias_1: Tensor,
    weight_2: Tensor,
    bias_2: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    row = x.new_empty(x.shape[:-1], dtype=torch.float32)
    y = x.new_empty(x.shape, dtype=dtype)
    return y, torch.empty_like(y), row, torch.empty_like(row)


@torch.library.custom_op("rewarm::norms_backward", mutates_args=())
def norms_backward(
    dy_1: Tensor,
    dy_2: Tensor,
    dresidual: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight_1: Tensor,
    weight_2: Tensor,
) -> tuple[Tensor, Tensor]:
    """Returns the gradients of x, and of both weights and biases as one (4, D) tensor in fp32.

    Its rows are weight 1, bias 1, weight 2, bias 2.
    """
    dy_1, dy_2, dresidual = dy_1.contiguous(), dy_2.contiguous(), dresidual.contiguous()
    width, rows = x.shape[-1], mean.numel()
    programs = min(4 * MULTIPROCESSORS, rows)
    dx, _ = _norms_backward_fake(dy_1, dy_2, dresidual, x, mean, rstd, weight_1, weight_2)
    partial = x.new_empty(programs, 4, width, dtype=torch.float32)
    _norms_backward[(programs,)](
        dy_1, dy_2, dresidual, x, mean, rstd, weight_1, weight_2, dx, partial, rows,
        WIDTH=width, PADDED=next_power_of_two(width), **launch_options(_warps(width)),
    )  # fmt: skip
    return dx, partial.sum(0)


@norms_backward.register_fake
def _norms_backward_fake(
    dy_1: Tensor,
    dy_2: Tensor,
    dresidual: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight_1: Tensor,
    weight_2: Tensor,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(4, x.shape[-1], dtype=torch.float32)


class _Norms(torch.autograd.Function):
    """Returns x as well, so that the residual's gradient is added in the same backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_1: Tensor,
        bias_1: Tensor,
        weight_2: Tensor,
        bias_2: Tensor,
        eps: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor]:
        y_1, y_2, mean, rstd = norms_forward(x, weight_1, bias_1, weight_2, bias_2, eps, dtype)
        ctx.save_for_backward(x, mean, rstd, weight_1, weight_2)
        return y_1, y_2, x.view_as(x)

    @staticmethod
    def backward(
        ctx: Any, dy_1: Tensor, dy_2: Tensor, dresidual: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, mean, rstd, weight_1, weight_2 = ctx.saved_tensors
        dx, sums = norms_backward(dy_1, dy_2, dresidual, x, mean, rstd, weight_1, weight_2)
        return dx, *sums.to(weight_1.dtype).unbind(0), None, None


def norms(
    x_BTD: Tensor, first: nn.LayerNorm, second: nn.LayerNorm
) -> tuple[Tensor, Tensor, Tensor]:
    """The Triton version of `pytorch_reference.norms`; under autocast, in the dtype of matmuls."""
    if x_BTD.shape[-1] > _MAX_WIDTH:
        return pytorch_reference.norms(x_BTD, first, second)
    normed = _Norms.apply(
        x_BTD.contiguous(), first.weight, first.bias, second.weight, second.bias,
        first.eps, autocast_dtype(x_BTD),
    )  # fmt: skip
    return cast(tuple[Tensor, Tensor, Tensor], normed)
