"""The output head and its cross-entropy in chunks of tokens: logits are never stored whole.

```
x (N, D) ──> a chunk's logits ── in place ──> their gradient ──┬──> x's gradient, for these rows
                   └──> losses of its tokens                   └──> added to the head's gradient
```
The forward pass computes the gradients too, as if the loss were the plain sum; the backward pass
scales them. So the numbers in half precision are differences of probabilities, and neither the
number of tokens nor fp16's loss scale moves them out of its range.

With a z-loss, z · log(Z)² for Z = Σ exp(logit), a token's loss and its gradient by logit j are

```
 log Z - target's logit + z · log(Z)²            (1 + 2 z · log Z) · softmax_j - [j is the target]
```

Shapes: B sequences, T positions, D hidden, N = B · T tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from rewarm.model.kernels.launch import autocast_dtype, launch_options, next_power_of_two
from rewarm.model.kernels.pytorch_reference import IGNORED_TARGET, reduced

_CHUNK_LOGITS = 2**28  # 4,096 tokens of Pythia's vocabulary, 412 MB in half precision
_IGNORED = tl.constexpr(IGNORED_TARGET)


@triton.jit
def _cross_entropy_grad(
    logits, targets, losses, vocabulary, z_loss, BACKWARD: tl.constexpr, COLUMNS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    row_logits = logits + row * vocabulary
    columns = tl.arange(0, COLUMNS)
    target = tl.load(targets + row)
    counts = target != _IGNORED
    is_valid = (target >= 0) & (target < vocabulary)
    # For an invalid target NaN, not memory out of bounds: the divergence guard will see it.
    target_logit = tl.load(row_logits + target, mask=is_valid, other=float("nan")).to(tl.float32)
    largest = -float("inf")
    total = 0.0
    for start in range(0, vocabulary, COLUMNS):
        column = start + columns
        x = tl.load(row_logits + column, mask=column < vocabulary, other=-float("inf")).to(
            tl.float32
        )
        previous, largest = largest, tl.maximum(largest, tl.max(x, 0))
        total = total * tl.exp(previous - largest) + tl.sum(tl.exp(x - largest), 0)
    log_z = tl.log(total) + largest
    row_z_loss = z_loss * log_z * log_z
    tl.store(losses + row, tl.where(counts, log_z - target_logit + row_z_loss, 0.0))
    tl.store(losses + tl.num_programs(0) + row, tl.where(counts, row_z_loss, 0.0))
    if BACKWARD:
        scale = (1.0 + 2.0 * z_loss * log_z) / total
        for start in range(0, vocabulary, COLUMNS):
            column = start + columns
            inside = column < vocabulary
            x = tl.load(row_logits + column, mask=inside, other=-float("inf")).to(tl.float32)
            gradient = tl.exp(x - largest) * scale - tl.where(column == target, 1.0, 0.0)
            gradient = tl.where(counts, gradient, 0.0)
            tl.store(row_logits + column, gradient.to(logits.dtype.element_ty), mask=inside)


@torch.library.custom_op("rewarm::softmax_grad_", mutates_args=("logits",))
def softmax_grad_(logits: Tensor, targets: Tensor, backward: bool, z_loss: float) -> Tensor:
    """Returns each row's loss, and the z-loss in it, (2, N) in fp32.

    If `backward`, writes the gradient over the logits.
    """
    rows, vocabulary = logits.shape
    losses = logits.new_empty(2, rows, dtype=torch.float32)
    _cross_entropy_grad[(rows,)](
        logits, targets, losses, vocabulary, z_loss,
        BACKWARD=backward, COLUMNS=min(8192, next_power_of_two(vocabulary)), **launch_options(8),
    )  # fmt: skip
    return losses


@softmax_grad_.register_fake
def _(logits: Tensor, targets: Tensor, backward: bool, z_loss: float) -> Tensor:
    return logits.new_empty(2, logits.shape[0], dtype=torch.float32)


@torch.library.custom_op("rewarm::add_matmul_", mutates_args=("total",))
def add_matmul_(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Adds a @ b to an fp32 total in place: half precision would lose small terms in large sums."""
    if total.is_cuda and a.dtype != total.dtype:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)  # adds the unrounded fp32 sums
    else:
        total.add_(a @ b)


@add_matmul_.register_fake
def _(total: Tensor, a: Tensor, b: Tensor) -> None:
    return None


class _LinearCrossEntropy(torch.autograd.Function):
    """The loss summed over all tokens; stores only the gradients of x and of the weight."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, dtype: torch.dtype,
        backward: bool, z_loss: float,
    ) -> Tensor:  # fmt: skip
        needs_dx, needs_dweight, *_ = ctx.needs_input_grad
        weight = weight_VD.to(dtype)
        dx = torch.empty_like(x_ND, dtype=dtype) if backward and needs_dx else None
        dweight = torch.zeros_like(weight_VD) if backward and needs_dweight else None
        losses = torch.empty(2, len(x_ND), dtype=torch.float32, device=x_ND.device)
        rows = _chunk_rows(len(x_ND), len(weight))
        for start in range(0, len(x_ND), rows):
            chunk = slice(start, start + rows)
            x = x_ND[chunk].to(dtype)
            logits = x @ weight.t()
            losses[:, chunk] = softmax_grad_(logits, targets_N[chunk], backward, z_loss)
            if dx is not None:
                torch.mm(logits, weight, out=dx[chunk])
            if dweight is not None:
                add_matmul_(dweight, logits.t(), x)
        ctx.save_for_backward(dx, dweight)
        ctx.dtypes = x_ND.dtype, weight_VD.dtype
        return losses.sum(1) if z_loss else losses[0].sum()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        scale = scale.reshape(-1)[0]  # the z-loss alone has no gradient
        scaled = (
            None if gradient is None else (gradient.float() * scale).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return *scaled, None, None, None, None


def _chunk_rows(tokens: int, vocabulary: int) -> int:
    """Returns the number of tokens per chunk: a power of two, which suits matmul tiles."""
    max_rows = 1 << max(0, (_CHUNK_LOGITS // vocabulary).bit_length() - 1)
    return max(1, min(tokens, max_rows))


def cross_entropy(
    x_BTD: Tensor,
    embed_out: nn.Linear,
    targets_BT: Tensor,
    reduction: str,
    z_loss: float = 0.0,
) -> Tensor:
    """The Triton version of `pytorch_reference.cross_entropy`."""
    x, targets = x_BTD.flatten(0, 1), targets_BT.flatten()
    dtype, backward = autocast_dtype(x), torch.is_grad_enabled()
    weight = embed_out.weight
    total: Tensor = _LinearCrossEntropy.apply(x, weight, targets, dtype, backward, z_loss)
    return reduced(total, targets, reduction)
