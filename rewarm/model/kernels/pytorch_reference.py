"""What every kernel computes, in plain PyTorch: the reference that tests compare kernels with.

It also runs on a CPU, where Triton does not work, and with `kernels: plain`.
Shapes: B sequences, T positions, D hidden, H heads, K head size, R rotary dimensions, F inner size,
N tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, cat, nn
from torch.nn import functional

IGNORED_TARGET = -100
"""A target that adds nothing to the loss."""
TANH_GELUS = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")
"""Hugging Face's names of the GELU that is approximated by a tanh."""


def rotary(
    x_BTD: Tensor, query_key_value: nn.Linear, heads: int, cos_TR: Tensor, sin_TR: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Applies the linear layer; returns q, k, v, each (B, H, T, K), q and k rotated by position."""
    return split_and_rotate(query_key_value(x_BTD), heads, cos_TR, sin_TR)


def split_and_rotate(
    packed_BTF: Tensor, heads: int, cos_TR: Tensor, sin_TR: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns q, k, v as `rotary` does, from the output of its linear layer, (B, T, H · 3K)."""
    B, T, _ = packed_BTF.shape
    qkv = packed_BTF.view(B, T, heads, -1)
    q_BHTK, k_BHTK, v_BHTK = qkv.transpose(1, 2).chunk(3, dim=-1)
    cos_TR, sin_TR = cos_TR.to(qkv.dtype), sin_TR.to(qkv.dtype)
    return rotate(q_BHTK, cos_TR, sin_TR), rotate(k_BHTK, cos_TR, sin_TR), v_BHTK


def rotate(x_BHTK: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Returns queries or keys with the first R dimensions of each head rotated by position."""
    size = cos_TR.shape[-1]
    rotated, unchanged = x_BHTK[..., :size], x_BHTK[..., size:]
    first, second = rotated.chunk(2, dim=-1)
    rotated = rotated * cos_TR + cat((-second, first), dim=-1) * sin_TR
    return cat((rotated, unchanged), dim=-1)


def norms(
    x_BTD: Tensor, first: nn.LayerNorm, second: nn.LayerNorm
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns both layer norms of the residual stream, and the stream itself."""
    x_fp32_BTD = x_BTD.float()  # once, or each norm would keep its own for the backward pass
    return first(x_fp32_BTD), second(x_fp32_BTD), x_BTD


def linear_layer(x_BTD: Tensor, dense: nn.Linear) -> Tensor:
    """Returns `dense(x)`: attention's output projection."""
    return cast(Tensor, dense(x_BTD))


def mlp(
    x_BTD: Tensor, dense_h_to_4h: nn.Linear, dense_4h_to_h: nn.Linear, activation: str
) -> Tensor:
    """Returns what the MLP adds to the residual stream, (B, T, D)."""
    return cast(Tensor, dense_4h_to_h(gelu(x_BTD, dense_h_to_4h, activation)))


def gelu(x_BTD: Tensor, dense_h_to_4h: nn.Linear, activation: str) -> Tensor:
    """Returns the MLP's inner activations, (B, T, F): a linear layer and the non-linearity."""
    return activate(dense_h_to_4h(x_BTD), activation)


def activate(x: Tensor, name: str) -> Tensor:
    """Returns the MLP's non-linearity of x, by its name in Hugging Face's `hidden_act`.

    Raises:
        ValueError: there is no such non-linearity.
    """
    if name in TANH_GELUS:
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
    x_BTD: Tensor,
    embed_out: nn.Linear,
    targets_BT: Tensor,
    reduction: str,
    z_loss: float = 0.0,
) -> Tensor:
    """Returns the cross-entropy of the head's logits in nats, in fp32; ignores targets of -100.

    Its shape is (). With a `z_loss` it is (2,): the cross-entropy plus the z-loss
    z_loss · log(Z)², Z = Σ exp(logit) (PaLM, arXiv:2204.02311, section 5), to minimize; and the
    z-loss alone, which has no gradient. Both are reduced alike.
    """
    x_ND, targets_N = x_BTD.flatten(0, 1), targets_BT.flatten()
    if z_loss:
        total = head_loss_with_z_loss(x_ND, embed_out.weight, targets_N, z_loss)
        return reduced(total, targets_N, reduction)
    return head_loss(x_ND, embed_out.weight, targets_N, reduction)


def head_loss(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, reduction: str) -> Tensor:
    """Returns the cross-entropy of the logits x · weightᵀ, which are stored whole."""
    logits = functional.linear(x_ND, weight_VD).float()
    return functional.cross_entropy(
        logits, targets_N, reduction=reduction, ignore_index=IGNORED_TARGET
    )


def head_loss_with_z_loss(
    x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, z_loss: float
) -> Tensor:
    """Returns what `cross_entropy` does with a `z_loss`, (2,), summed over the tokens."""
    logits_NV = functional.linear(x_ND, weight_VD).float()
    return _loss_with_z_loss(logits_NV, targets_N, z_loss)


class _LossWithZLoss(torch.autograd.Function):
    """By hand: PyTorch's own backward pass takes three more copies of the logits.

    The gradient by logit j is (1 + 2 z_loss · log Z) · softmax_j - [j is the target].
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor, z_loss: float) -> Tensor:
        counts_N = targets_N != IGNORED_TARGET
        targets_N = targets_N.where(counts_N, 0)
        log_z_N = logits_NV.logsumexp(-1)
        ctx.save_for_backward(logits_NV, targets_N, counts_N, log_z_N)
        ctx.z_loss = z_loss
        z_losses_N = z_loss * log_z_N.square()
        losses_N = log_z_N - logits_NV.gather(1, targets_N.unsqueeze(1)).squeeze(1) + z_losses_N
        return torch.stack((losses_N, z_losses_N)).where(counts_N, 0).sum(1)

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        logits_NV, targets_N, counts_N, log_z_N = ctx.saved_tensors
        scale_N = scale[0] * counts_N  # the z-loss alone has no gradient
        gradient_NV = (logits_NV - log_z_N.unsqueeze(1)).exp_()
        gradient_NV *= (scale_N * (1 + 2 * ctx.z_loss * log_z_N)).unsqueeze(1)
        gradient_NV[torch.arange(len(targets_N), device=targets_N.device), targets_N] -= scale_N
        return gradient_NV, None, None


_loss_with_z_loss: Callable[[Tensor, Tensor, float], Tensor] = _LossWithZLoss.apply


def reduced(total: Tensor, targets_N: Tensor, reduction: str) -> Tensor:
    """Returns a sum over tokens, or for `mean` its mean over those that are not ignored.

    Raises:
        ValueError: the reduction is neither `sum` nor `mean`.
    """
    match reduction:
        case "sum":
            return total
        case "mean":
            return total / (targets_N != IGNORED_TARGET).sum()
    raise ValueError(f"no reduction named {reduction!r}")
