"""`memory: lean`: what a step computes again on the way back instead of keeping it.

```
 x ─ norms ─┬─ queries, keys, values ─ attention ─ product ─┐
            │      └───── kept ─────────────┘               ├─ + ─> x of the next layer
            └─ product ─ GELU ─ product ────────────────────┘           └─ kept
```
A product as wide as the MLP is made again: all else that is, is passes over memory. Of the products
of a layer, that of queries, keys and values would save as much for each FLOP, and attention less.
The loss keeps no logits: it is the plain one, of a chunk of tokens at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from rewarm.model.kernels import pytorch_reference
from rewarm.model.kernels.selection import PYTORCH_KERNELS, Kernels

LOGITS_AT_ONCE = 2**26
"""Of a chunk: 1,024 tokens of Pythia's vocabulary, whose gradients take 0.6 GB in fp32."""

_PRODUCTS = {  # which argument is the second matrix
    torch.ops.aten.mm.default: 1,
    torch.ops.aten.addmm.default: 2,
    torch.ops.aten._scaled_mm.default: 1,
}

# Of an operation in place in what is done again: the rotation of queries and keys, which is kept.
logging.getLogger("torch._higher_order_ops.wrap").addFilter(
    lambda record: "context_fn" not in str(record.msg)
)


def recompute_in_backward(run: Callable[..., Tensor], x_BTD: Tensor, *arguments: Any) -> Tensor:
    """Returns what a layer's `run` does, keeping its input and what `_keeps` says."""
    policy = partial(_keeps, 3 * x_BTD.shape[-1])
    returned = checkpoint.checkpoint(
        run,
        x_BTD,
        *arguments,
        use_reentrant=False,
        preserve_rng_state=False,  # nothing is drawn
        context_fn=partial(
            checkpoint.create_selective_checkpoint_contexts,
            policy,
            allow_cache_entry_mutation=True,  # queries and keys are kept as turned in place
        ),
    )
    return cast(Tensor, returned)


def _keeps(
    packed: int, _: object, operator: Any, *arguments: Any, **_more: Any
) -> checkpoint.CheckpointPolicy:
    """Returns whether an operator's output is kept: attention's is, and what it reads.

    The product that makes queries, keys and values is told by its `packed` columns.
    """
    if operator in _PRODUCTS:
        kept = arguments[_PRODUCTS[operator]].shape[-1] == packed
    else:
        kept = "attention" in str(operator) or "turn_" in str(operator)
    policies = checkpoint.CheckpointPolicy
    return policies.MUST_SAVE if kept else policies.PREFER_RECOMPUTE


def with_chunked_loss(kernels: Kernels) -> Kernels:
    """Returns the kernels, none of which stores all logits."""
    whole = kernels.cross_entropy is PYTORCH_KERNELS.cross_entropy
    return kernels._replace(cross_entropy=chunked_cross_entropy) if whole else kernels


def chunked_cross_entropy(
    x_BTD: Tensor, embed_out: nn.Linear, targets_BT: Tensor, reduction: str
) -> Tensor:
    """Returns what `plain.cross_entropy` does: the same bits, of one chunk."""
    targets_N = targets_BT.flatten()
    total = _loss(x_BTD.flatten(0, 1), embed_out.weight, targets_N)
    match reduction:
        case "sum":
            return total
        case "mean":
            return total / (targets_N != pytorch_reference.IGNORED).sum()
    raise ValueError(f"no reduction named {reduction!r}")


class _Loss(torch.autograd.Function):
    """The sum over all tokens."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        ctx.save_for_backward(x_ND, weight_VD, targets_N)
        kind = x_ND.device.type
        ctx.cast = torch.autocast(
            kind, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind)
        )
        total = torch.zeros((), device=x_ND.device)
        for these in _chunks(x_ND, weight_VD):
            total += pytorch_reference.losses(x_ND[these], weight_VD, targets_N[these], "sum")
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, weight_VD, targets_N = (one.detach() for one in ctx.saved_tensors)
        dx, dweight = torch.empty_like(x_ND), None
        weight_VD.requires_grad_()
        for these in _chunks(x_ND, weight_VD):
            x = x_ND[these].requires_grad_()
            with torch.enable_grad(), ctx.cast:
                total = pytorch_reference.losses(x, weight_VD, targets_N[these], "sum")
            dx[these], part = torch.autograd.grad(total, (x, weight_VD), scale)
            dweight = part if dweight is None else dweight.add_(part)
            del part  # before the next one is made
        return dx, dweight, None


_loss: Callable[[Tensor, Tensor, Tensor], Tensor] = _Loss.apply


def _chunks(x_ND: Tensor, weight_VD: Tensor) -> Iterator[slice]:
    # A power of two, for the products' tiles.
    rows = 1 << max(0, (LOGITS_AT_ONCE // len(weight_VD)).bit_length() - 1)
    for start in range(0, len(x_ND), rows):
        yield slice(start, start + rows)
