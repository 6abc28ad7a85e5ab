"""Causal self-attention, and the mask that keeps documents apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from rewarm.model.architecture import Architecture
from rewarm.model.kernels.fp8.scaling import ScaledLinear
from rewarm.model.kernels.selection import PYTORCH_KERNELS

AttentionMask = Tensor | BlockMask
"""Which positions each position attends to; without one, all that are not behind it."""


def document_mask(tokens_BT: Tensor, separator: int) -> AttentionMask:
    """Returns which positions each position attends to: those before it in its own document.

    A separator is the last token of its document. Rotary positions need not begin anew in each:
    attention depends on differences of positions alone (arXiv:2104.09864, equation 16). On a GPU
    it is a sparse mask of blocks, for flex attention; on a CPU a plain one, (B, 1, T, T).
    """
    B, T = tokens_BT.shape
    ends_BT = (tokens_BT == separator).long()
    document_BT = ends_BT.cumsum(1) - ends_BT
    if tokens_BT.is_cuda:

        def same(b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (q >= k) & (document_BT[b, q] == document_BT[b, k])

        return create_block_mask(same, B, None, T, T, device=str(tokens_BT.device))
    causal_TT = torch.ones(T, T, dtype=torch.bool, device=tokens_BT.device).tril()
    return (causal_TT & (document_BT[:, :, None] == document_BT[:, None, :]))[:, None]


class Attention(nn.Module):
    """Causal self-attention with partly rotary positions."""

    kernels = PYTORCH_KERNELS

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width, bias = architecture.hidden, architecture.attention_bias
        self.heads = architecture.heads
        self.query_key_value = ScaledLinear(width, 3 * width, bias=bias)
        self.dense = ScaledLinear(width, width, bias=bias)

    def forward(
        self, x_BTD: Tensor, cos_TR: Tensor, sin_TR: Tensor, seen: AttentionMask | None = None
    ) -> Tensor:
        """Returns what attention adds to the residual stream, (B, T, D)."""
        B, T, D = x_BTD.shape
        q_BHTK, k_BHTK, v_BHTK = self.kernels.rotary(
            x_BTD, self.query_key_value, self.heads, cos_TR, sin_TR
        )
        if isinstance(seen, BlockMask):
            out = flex_attention(q_BHTK, k_BHTK, v_BHTK, block_mask=seen)
        else:
            out = functional.scaled_dot_product_attention(
                q_BHTK, k_BHTK, v_BHTK, attn_mask=seen, is_causal=seen is None
            )
        return self.kernels.product(out.transpose(1, 2).reshape(B, T, D), self.dense)
