"""`memory: lean`: activations that the backward pass recomputes instead of storing them.

```
 x ─ norms ─┬─ q, k, v ─ attention ─ linear ─────┐
            │   └──── stored ────┘               ├─ + ─> x of the next layer
            └─ linear ─ GELU ─ linear ───────────┘           └─ stored
```
One large matmul is recomputed, the MLP's first; everything else that is recomputed is bound by
memory bandwidth. Of a layer's other matmuls, recomputing q, k and v would save the same memory per
FLOP, and recomputing attention less.
The loss stores no logits: it is the plain PyTorch loss, computed for one chunk of tokens at a time.

Shapes: B sequences, T positions, D hidden, N = B · T tokens, V vocabulary.
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

_CHUNK_LOGITS = 2**26  # 1,024 tokens of Pythia's vocabulary, whose gradients take 0.6 GB in fp32

_MATMULS = {  # the index of the argument that is the second matrix
    torch.ops.aten.mm.default: 1,
    torch.ops.aten.addmm.default: 2,
    torch.ops.aten._scaled_mm.default: 1,
}

# PyTorch warns that the in-place rotation of queries and keys is recomputed. It is not: its result
# is stored.
logging.getLogger("torch._higher_order_ops.wrap").addFilter(
    lambda record: "context_fn" not in str(record.msg)
)


def recompute_in_backward(
    layer_forward: Callable[..., Tensor], x_BTD: Tensor, *arguments: Any
) -> Tensor:
    """Returns `layer_forward(x, *arguments)`; the backward pass recomputes most activations.

    Stored are x and the outputs that `_recompute_policy` selects.
    """
    policy = partial(_recompute_policy, 3 * x_BTD.shape[-1])
    output = checkpoint.checkpoint(
        layer_forward,
        x_BTD,
        *arguments,
        use_reentrant=False,
        preserve_rng_state=False,  # layers draw no random numbers
        context_fn=partial(
            checkpoint.create_selective_checkpoint_contexts,
            policy,
            allow_cache_entry_mutation=True,  # queries and keys are stored as rotated in place
        ),
    )
    return cast(Tensor, output)


def _recompute_policy(
    qkv_width: int, _context: object, operator: Any, *arguments: Any, **_keywords: Any
) -> checkpoint.CheckpointPolicy:
    """Returns MUST_SAVE for attention and the matmul of q, k and v, otherwise PREFER_RECOMPUTE.

    The matmul of queries, keys and values is recognized by its `qkv_width` columns.
    """
    if operator in _MATMULS:
        is_stored = arguments[_MATMULS[operator]].shape[-1] == qkv_width
    else:
        is_stored = "attention" in str(operator) or "turn_" in str(operator)
    policies = checkpoint.CheckpointPolicy
    return policies.MUST_SAVE if is_stored else policies.PREFER_RECOMPUTE


def with_chunked_loss(kernels: Kernels) -> Kernels:
    """Returns the kernels with a loss that does not store all logits; Triton's loss never does."""
    stores_logits = kernels.cross_entropy is PYTORCH_KERNELS.cross_entropy
    return kernels._replace(cross_entropy=chunked_cross_entropy) if stores_logits else kernels


def chunked_cross_entropy(
    x_BTD: Tensor,
    embed_out: nn.Linear,
    targets_BT: Tensor,
    reduction: str,
    z_loss: float = 0.0,
) -> Tensor:
    """Returns the cross-entropy, computed in chunks of tokens.

    It has the bits of `pytorch_reference.cross_entropy` if all tokens fit into one chunk.

    Raises:
        ValueError: the reduction is neither `sum` nor `mean`.
    """
    targets_N = targets_BT.flatten()
    total = _chunked_head_loss(x_BTD.flatten(0, 1), embed_out.weight, targets_N, z_loss)
    return pytorch_reference.reduced(total, targets_N, reduction)


def _head_loss_sum(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, z_loss: float) -> Tensor:
    if z_loss:
        return pytorch_reference.head_loss_with_z_loss(x_ND, weight_VD, targets_N, z_loss)
    return pytorch_reference.head_loss(x_ND, weight_VD, targets_N, "sum")


class _ChunkedHeadLoss(torch.autograd.Function):
    """The loss summed over all tokens; the backward pass recomputes each chunk's logits."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, z_loss: float
    ) -> Tensor:
        ctx.save_for_backward(x_ND, weight_VD, targets_N)
        ctx.z_loss = z_loss
        device_type = x_ND.device.type
        ctx.autocast = torch.autocast(
            device_type,
            torch.get_autocast_dtype(device_type),
            enabled=torch.is_autocast_enabled(device_type),
        )
        total = torch.zeros((2,) if z_loss else (), device=x_ND.device)
        for chunk in _chunks(x_ND, weight_VD):
            total += _head_loss_sum(x_ND[chunk], weight_VD, targets_N[chunk], z_loss)
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, weight_VD, targets_N = (tensor.detach() for tensor in ctx.saved_tensors)
        dx_ND, dweight_VD = torch.empty_like(x_ND), None
        weight_VD.requires_grad_()
        for chunk in _chunks(x_ND, weight_VD):
            x = x_ND[chunk].requires_grad_()
            with torch.enable_grad(), ctx.autocast:
                total = _head_loss_sum(x, weight_VD, targets_N[chunk], ctx.z_loss)
            dx_ND[chunk], chunk_dweight = torch.autograd.grad(total, (x, weight_VD), scale)
            dweight_VD = chunk_dweight if dweight_VD is None else dweight_VD.add_(chunk_dweight)
            del chunk_dweight  # before the next one is allocated
        return dx_ND, dweight_VD, None, None


_chunked_head_loss: Callable[[Tensor, Tensor, Tensor, float], Tensor] = _ChunkedHeadLoss.apply


def _chunks(x_ND: Tensor, weight_VD: Tensor) -> Iterator[slice]:
    """Yields the rows of each chunk; their number is a power of two, which suits matmul tiles."""
    rows = 1 << max(0, (_CHUNK_LOGITS // len(weight_VD)).bit_length() - 1)
    for start in range(0, len(x_ND), rows):
        yield slice(start, start + rows)
