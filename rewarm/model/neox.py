"""GPT-NeoX in PyTorch: parameters are named as on disk, so a state dict needs no adapter.

Shapes: B sequences, T positions, D hidden, H heads, K head size, R rotary dimensions, V vocabulary.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from rewarm.model import activation_recompute
from rewarm.model.architecture import Architecture
from rewarm.model.attention import Attention, AttentionMask, document_mask
from rewarm.model.kernels.fp8.scaling import Fp8Scaling, ScaledLinear
from rewarm.model.kernels.launch import working_dtype
from rewarm.model.kernels.selection import PYTORCH_KERNELS, Kernels, fp8_kernels
from rewarm.model.rotary_embedding import rotary_angles


class MLP(nn.Module):
    """Two products with a non-linearity between them."""

    kernels = PYTORCH_KERNELS

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.activation = architecture.activation
        self.dense_h_to_4h = ScaledLinear(architecture.hidden, architecture.inner)
        self.dense_4h_to_h = ScaledLinear(architecture.inner, architecture.hidden)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Returns what the MLP adds to the residual stream, (B, T, D)."""
        return self.kernels.mlp(x_BTD, self.dense_h_to_4h, self.dense_4h_to_h, self.activation)


class LayerNorm(nn.LayerNorm):
    """In fp32, whatever the stream is in: as autocast has it on a GPU, but not on a CPU."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Returns the stream with each position's mean taken out and its variance at 1."""
        return super().forward(x_BTD.float())


class Layer(nn.Module):
    """One transformer layer; attention and MLP side by side, or one after the other."""

    kernels = PYTORCH_KERNELS
    lean = False

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width, eps = architecture.hidden, architecture.layer_norm_eps
        self.parallel = architecture.parallel_residual
        self.input_layernorm = LayerNorm(width, eps=eps)
        self.post_attention_layernorm = LayerNorm(width, eps=eps)
        self.attention = Attention(architecture)
        self.mlp = MLP(architecture)

    def forward(
        self, x_BTD: Tensor, cos_TR: Tensor, sin_TR: Tensor, seen: AttentionMask | None = None
    ) -> Tensor:
        """Returns the residual stream behind this layer, (B, T, D)."""
        if self.lean:
            return activation_recompute.recompute_in_backward(
                self._pass, x_BTD, cos_TR, sin_TR, seen
            )
        return self._pass(x_BTD, cos_TR, sin_TR, seen)

    def _pass(
        self, x_BTD: Tensor, cos_TR: Tensor, sin_TR: Tensor, seen: AttentionMask | None
    ) -> Tensor:
        before, behind = self.input_layernorm, self.post_attention_layernorm
        if self.parallel:
            # Only the stream that the kernel hands on: its gradients meet in one pass.
            a_BTD, b_BTD, x_BTD = self.kernels.norms(x_BTD, before, behind)
            attended = self.attention(a_BTD, cos_TR, sin_TR, seen)
            return cast(Tensor, x_BTD + attended + self.mlp(b_BTD))
        x_BTD = x_BTD + self.attention(before(x_BTD), cos_TR, sin_TR, seen)
        return cast(Tensor, x_BTD + self.mlp(behind(x_BTD)))


class Trunk(nn.Module):
    """Everything below the output head."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.embed_in = nn.Embedding(architecture.vocabulary, architecture.hidden)
        self.layers = nn.ModuleList(Layer(architecture) for _ in range(architecture.layers))
        self.final_layer_norm = LayerNorm(architecture.hidden, eps=architecture.layer_norm_eps)


class NeoX(nn.Module):
    """A GPT-NeoX language model: `model(tokens)` gives logits, `model.loss(...)` nats."""

    kernels = PYTORCH_KERNELS
    scaling: Fp8Scaling | None = None
    """Of `precision: fp8`."""

    def __init__(self, architecture: Architecture) -> None:
        """Builds the model with uninitialised numbers; see `initialise` and `load_weights`."""
        super().__init__()
        self.architecture = architecture
        self.gpt_neox = Trunk(architecture)
        self.embed_out = nn.Linear(architecture.hidden, architecture.vocabulary, bias=False)
        if architecture.tied:
            self.embed_out.weight = self.gpt_neox.embed_in.weight
        cos, sin = rotary_angles(architecture, architecture.positions)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, tokens_BT: Tensor, separator: int | None = None) -> Tensor:
        """Returns logits, (B, T, V), for T up to the architecture's positions.

        With a `separator`, no token sees across one: each document of a sequence stands alone.
        """
        return cast(Tensor, self.embed_out(self._states(tokens_BT, separator)))

    def _states(self, tokens_BT: Tensor, separator: int | None) -> Tensor:
        """Returns what the output head reads, (B, T, D)."""
        length = tokens_BT.shape[1]
        cos, sin = cast(Tensor, self.cos)[:length], cast(Tensor, self.sin)[:length]
        seen = None if separator is None else document_mask(tokens_BT, separator)
        x_BTD = self.gpt_neox.embed_in(tokens_BT)
        # The residual stream is in the precision of products, as where GPT-NeoX trained Pythia: a
        # pass over it moves half the bytes that it would in fp32.
        x_BTD = x_BTD.to(working_dtype(x_BTD))
        for layer in self.gpt_neox.layers:
            x_BTD = layer(x_BTD, cos, sin, seen)
        return cast(Tensor, self.gpt_neox.final_layer_norm(x_BTD))

    def loss(
        self,
        inputs_BT: Tensor,
        targets_BT: Tensor,
        *,
        separator: int | None = None,
        reduction: str = "mean",
    ) -> Tensor:
        """Returns the cross-entropy in nats, in fp32; targets of -100 do not count."""
        states_BTD = self._states(inputs_BT, separator)
        return self.kernels.cross_entropy(states_BTD, self.embed_out, targets_BT, reduction)

    def use(self, kernels: Kernels, *, memory: str = "fast", precision: str = "fp32") -> None:
        """Changes how the passes that move the most memory are done, not what they compute.

        With `memory` lean, a part of what the way back needs is computed again, not kept. With
        `precision` fp8, the layers' products are rounded to it, from guessed scales on; all other
        precisions are what autocast makes of it.
        """
        is_lean = memory == "lean"
        self.scaling = Fp8Scaling(self.gpt_neox.layers) if precision == "fp8" else None
        kernels = fp8_kernels(kernels) if self.scaling else kernels
        kernels = activation_recompute.with_chunked_loss(kernels) if is_lean else kernels
        for module in self.modules():
            if isinstance(module, Attention | MLP | Layer | NeoX):
                module.kernels = kernels
            if isinstance(module, Layer):
                module.lean = is_lean

    def compile_layers(self) -> None:
        """Compiles every layer in place: one graph serves all, and state-dict keys stay."""
        for layer in self.gpt_neox.layers:
            layer.compile(fullgraph=True, dynamic=False)


@torch.no_grad()
def initialize_weights(model: NeoX, seed: int) -> None:
    """Draws new weights as Pythia's configuration does, the same on every machine.

    Matrices: normal with σ = √(2 / 5D) ("small init", arXiv:1910.05895); the two products that
    write to the residual stream: σ = 2 / (layers · √D) ("wang init", GPT-NeoX). Biases 0, norms 1.
    """
    width, layers = model.architecture.hidden, model.architecture.layers
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
            continue
        writes_back = name.endswith(("attention.dense.weight", "dense_4h_to_h.weight"))
        sigma = 2 / (layers * math.sqrt(width)) if writes_back else math.sqrt(2 / (5 * width))
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * sigma)
