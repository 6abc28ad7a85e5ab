"""What every kernel computes, said in plain PyTorch: the reference that tests hold them to.

It is also what runs on a CPU, where Triton is missing, and with `kernels: plain`.
Shapes: B sequences, T positions, D hidden, H heads, K head size, R rotary dimensions, F inner size,
N tokens, V vocabulary.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, cat, nn
from torch.nn import functional

IGNORED = -100
"""A target that does not count."""
TANH = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")
"""Hugging Face's names of the GELU that is approximated by a tanh."""


def rotary(
    x_BTD: Tensor, query_key_value: nn.Linear, heads: int, cos_TR: Tensor, sin_TR: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns queries, keys and values, (B, H, T, K); the first two are turned by position."""
    return turned(query_key_value(x_BTD), heads, cos_TR, sin_TR)


def turned(
    packed_BTF: Tensor, heads: int, cos_TR: Tensor, sin_TR: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns queries, keys and values of their packed product, (B, T, H·3K), as `rotary` does."""
    B, T, _ = packed_BTF.shape
    qkv = packed_BTF.view(B, T, heads, -1)
    q_BHTK, k_BHTK, v_BHTK = qkv.transpose(1, 2).chunk(3, dim=-1)
    cos_TR, sin_TR = cos_TR.to(qkv.dtype), sin_TR.to(qkv.dtype)
    return rotate(q_BHTK, cos_TR, sin_TR), rotate(k_BHTK, cos_TR, sin_TR), v_BHTK


def rotate(x_BHTK: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Returns queries or keys with the first R dimensions of each head turned by position."""
    size = cos_TR.shape[-1]
    turned, kept = x_BHTK[..., :size], x_BHTK[..., size:]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos_TR + cat((-second, first), dim=-1) * sin_TR
    return cat((turned, kept), dim=-1)


def norms(
    x_BTD: Tensor, first: nn.LayerNorm, second: nn.LayerNorm
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns both layer norms of the residual stream, and the stream itself."""
    wide_BTD = x_BTD.float()  # once: each would else keep its own for the way back
    return first(wide_BTD), second(wide_BTD), x_BTD


def product(x_BTD: Tensor, dense: nn.Linear) -> Tensor:
    """Returns what attention adds to the residual stream, (B, T, D)."""
    return cast(Tensor, dense(x_BTD))


def mlp(
    x_BTD: Tensor, dense_h_to_4h: nn.Linear, dense_4h_to_h: nn.Linear, activation: str
) -> Tensor:
    """Returns what the MLP adds to the residual stream, (B, T, D)."""
    return cast(Tensor, dense_4h_to_h(gelu(x_BTD, dense_h_to_4h, activation)))


def gelu(x_BTD: Tensor, dense_h_to_4h: nn.Linear, activation: str) -> Tensor:
    """Returns the MLP's inner values, (B, T, F): a product, its bias and the non-linearity."""
    return activate(dense_h_to_4h(x_BTD), activation)


def activate(x: Tensor, name: str) -> Tensor:
    """Returns the MLP's non-linearity, by the name that Hugging Face's `hidden_act` uses."""
    if name in TANH:
        return functional.gelu(x, approximate="tanh")
    match name:
        case "gelu":
            return functional.gelu(x)
        case "relu":
            return functional.relu(x)
        case "silu":
            return functional.silu(x)
    raise ValueError(f"no activation named {name!r}")


def cross_entropy(
    x_BTD: Tensor, embed_out: nn.Linear, targets_BT: Tensor, reduction: str
) -> Tensor:
    """Returns the cross-entropy of the head's logits in nats, in fp32; -100 does not count."""
    return losses(x_BTD.flatten(0, 1), embed_out.weight, targets_BT.flatten(), reduction)


def losses(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, reduction: str) -> Tensor:
    """Returns the cross-entropy of logits that are given by a head's weight."""
    logits = functional.linear(x_ND, weight_VD).float()
    return functional.cross_entropy(logits, targets_N, reduction=reduction, ignore_index=IGNORED)
