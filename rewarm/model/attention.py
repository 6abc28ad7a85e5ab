"""Causal self-attention, and the mask that separates documents.

Shapes: B sequences, T positions, D hidden, H heads, K head size, R rotary dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from rewarm.model.architecture import Architecture
from rewarm.model.kernels.fp8.scaling import ScaledLinear
from rewarm.model.kernels.selection import PYTORCH_KERNELS

AttentionMask = Tensor | BlockMask
"""Which positions each position attends to. None means causal: each position attends to itself and
all earlier ones."""


def document_mask(tokens_BT: Tensor, separator_id: int) -> AttentionMask:
    """Returns a causal mask that separates documents; a separator is its document's last token.

    Rotary positions need not restart in each document: attention depends on differences of
    positions alone (arXiv:2104.09864, equation 16).

    Args:
        tokens_BT: the input tokens.
        separator_id: the id of the token that ends a document.

    Returns:
        On a GPU a sparse block mask for flex attention; on a CPU a boolean tensor, (B, 1, T, T).
    """
    B, T = tokens_BT.shape
    is_end_BT = (tokens_BT == separator_id).long()
    document_ids_BT = is_end_BT.cumsum(1) - is_end_BT
    if tokens_BT.is_cuda:

        def mask_mod(b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (q >= k) & (document_ids_BT[b, q] == document_ids_BT[b, k])

        return create_block_mask(mask_mod, B, None, T, T, device=str(tokens_BT.device))
    causal_TT = torch.ones(T, T, dtype=torch.bool, device=tokens_BT.device).tril()
    return (causal_TT & (document_ids_BT[:, :, None] == document_ids_BT[:, None, :]))[:, None]


class Attention(nn.Module):
    """Causal self-attention with rotary position embeddings."""

    kernels = PYTORCH_KERNELS

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width, bias = architecture.hidden, architecture.attention_bias
        self.heads = architecture.heads
        self.query_key_value = ScaledLinear(width, 3 * width, bias=bias)
        self.dense = ScaledLinear(width, width, bias=bias)

    def forward(
        self, x_BTD: Tensor, cos_TR: Tensor, sin_TR: Tensor, mask: AttentionMask | None = None
    ) -> Tensor:
        """Returns what attention adds to the residual stream, (B, T, D)."""
        B, T, D = x_BTD.shape
        q_BHTK, k_BHTK, v_BHTK = self.kernels.rotary(
            x_BTD, self.query_key_value, self.heads, cos_TR, sin_TR
        )
        if isinstance(mask, BlockMask):
            out_BHTK = flex_attention(q_BHTK, k_BHTK, v_BHTK, block_mask=mask)
        else:
            out_BHTK = functional.scaled_dot_product_attention(
                q_BHTK, k_BHTK, v_BHTK, attn_mask=mask, is_causal=mask is None
            )
        return self.kernels.linear_layer(out_BHTK.transpose(1, 2).reshape(B, T, D), self.dense)
