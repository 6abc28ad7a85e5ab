"""GPT-NeoX in PyTorch. Parameters are named as on disk, so that state dicts load unchanged.

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
from rewarm.model.divided_tensors import copy_whole, own_part
from rewarm.model.kernels.fp8.scaling import Fp8Scaling, ScaledLinear
from rewarm.model.kernels.launch import autocast_dtype
from rewarm.model.kernels.selection import PYTORCH_KERNELS, Kernels, fp8_kernels
from rewarm.model.rotary_embedding import rotary_angles


class MLP(nn.Module):
    """Two linear layers with a non-linearity between them."""

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
    """Layer norm computed in fp32 for inputs of any dtype; autocast does so on a GPU only."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Returns the normalized input in fp32, (B, T, D)."""
        return super().forward(x_BTD.float())


class Layer(nn.Module):
    """One transformer layer, with attention and MLP in parallel or in sequence."""

    kernels = PYTORCH_KERNELS
    recompute_activations = False

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width, eps = architecture.hidden, architecture.layer_norm_eps
        self.parallel = architecture.parallel_residual
        self.input_layernorm = LayerNorm(width, eps=eps)
        self.post_attention_layernorm = LayerNorm(width, eps=eps)
        self.attention = Attention(architecture)
        self.mlp = MLP(architecture)

    def forward(
        self, x_BTD: Tensor, cos_TR: Tensor, sin_TR: Tensor, mask: AttentionMask | None = None
    ) -> Tensor:
        """Returns the residual stream after this layer, (B, T, D)."""
        if self.recompute_activations:
            return activation_recompute.recompute_in_backward(
                self._attention_and_mlp, x_BTD, cos_TR, sin_TR, mask
            )
        return self._attention_and_mlp(x_BTD, cos_TR, sin_TR, mask)

    def _attention_and_mlp(
        self, x_BTD: Tensor, cos_TR: Tensor, sin_TR: Tensor, mask: AttentionMask | None
    ) -> Tensor:
        attention_norm, mlp_norm = self.input_layernorm, self.post_attention_layernorm
        if self.parallel:
            # Use the x that the kernel returns: its backward pass adds the residual's gradient.
            a_BTD, b_BTD, x_BTD = self.kernels.norms(x_BTD, attention_norm, mlp_norm)
            attended_BTD = self.attention(a_BTD, cos_TR, sin_TR, mask)
            # Attention and MLP first, as GPT-NeoX and transformers add them: in half precision the
            # residual stream, which is larger, is rounded once and not twice.
            return cast(Tensor, x_BTD + (attended_BTD + self.mlp(b_BTD)))
        x_BTD = x_BTD + self.attention(attention_norm(x_BTD), cos_TR, sin_TR, mask)
        return cast(Tensor, x_BTD + self.mlp(mlp_norm(x_BTD)))


class Transformer(nn.Module):
    """Everything below the output head: embedding, layers and final norm."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.embed_in = nn.Embedding(architecture.vocabulary, architecture.hidden)
        self.layers = nn.ModuleList(Layer(architecture) for _ in range(architecture.layers))
        self.final_layer_norm = LayerNorm(architecture.hidden, eps=architecture.layer_norm_eps)


class NeoX(nn.Module):
    """A GPT-NeoX language model: `model(tokens)` returns logits, `model.loss(...)` nats."""

    kernels = PYTORCH_KERNELS
    fp8_scaling: Fp8Scaling | None = None
    """The scales of `precision: fp8`; None for other precisions."""

    def __init__(self, architecture: Architecture) -> None:
        """Builds the model; its weights come from `initialize_weights` or `load_weights`."""
        super().__init__()
        self.architecture = architecture
        self.gpt_neox = Transformer(architecture)
        self.embed_out = nn.Linear(architecture.hidden, architecture.vocabulary, bias=False)
        if architecture.tied:
            self.embed_out.weight = self.gpt_neox.embed_in.weight
        self._set_rotary_angles(None)

    def allocate(self, device: torch.device) -> None:
        """Moves a model from the meta device to another, with weights that have no values yet."""
        self.to_empty(device=device)
        if self.architecture.tied and self.embed_out.weight is not self.gpt_neox.embed_in.weight:
            self.embed_out.weight = self.gpt_neox.embed_in.weight
        self._set_rotary_angles(device)

    def _set_rotary_angles(self, device: torch.device | None) -> None:
        cos, sin = rotary_angles(self.architecture, self.architecture.positions)
        self.register_buffer("cos", cos.to(device), persistent=False)
        self.register_buffer("sin", sin.to(device), persistent=False)

    def forward(
        self,
        tokens_BT: Tensor,
        separator_id: int | None = None,
        *,
        positions_B: Tensor | None = None,
    ) -> Tensor:
        """Returns logits, (B, T, V), for T up to the architecture's positions.

        With a `separator_id`, the token that ends documents, each attends to its own document only.
        With `positions_B`, the logits of one position of each sequence, (B, V).
        """
        x_BTD = self._hidden_states(tokens_BT, separator_id)
        if positions_B is not None:
            x_BTD = x_BTD[torch.arange(len(x_BTD), device=x_BTD.device), positions_B]
        return cast(Tensor, self.embed_out(x_BTD))

    def _hidden_states(self, tokens_BT: Tensor, separator_id: int | None) -> Tensor:
        """Returns the input of the output head, (B, T, D)."""
        length = tokens_BT.shape[1]
        cos_TR, sin_TR = cast(Tensor, self.cos)[:length], cast(Tensor, self.sin)[:length]
        mask = None if separator_id is None else document_mask(tokens_BT, separator_id)
        x_BTD = self.gpt_neox.embed_in(tokens_BT)
        # The residual stream has the dtype of matmuls, as when GPT-NeoX trained Pythia: reading or
        # writing it moves half the bytes of fp32.
        x_BTD = x_BTD.to(autocast_dtype(x_BTD))
        for layer in self.gpt_neox.layers:
            x_BTD = layer(x_BTD, cos_TR, sin_TR, mask)
        return cast(Tensor, self.gpt_neox.final_layer_norm(x_BTD))

    def loss(
        self,
        inputs_BT: Tensor,
        targets_BT: Tensor,
        *,
        separator_id: int | None = None,
        reduction: str = "mean",
        z_loss: float = 0.0,
    ) -> Tensor:
        """Returns the cross-entropy in nats, in fp32; targets of -100 are ignored.

        With a `z_loss`, shape (2,): the sum of both, and the z-loss (see `cross_entropy`).
        """
        x_BTD = self._hidden_states(inputs_BT, separator_id)
        return self.kernels.cross_entropy(x_BTD, self.embed_out, targets_BT, reduction, z_loss)

    def configure(self, kernels: Kernels, *, memory: str = "fast", precision: str = "fp32") -> None:
        """Sets how layers and loss are computed.

        Args:
            kernels: the implementations to use.
            memory: with `lean`, the backward pass recomputes some of the activations.
            precision: with `fp8`, the linear layers of each layer run in fp8, with scales that need
                calibration. Other precisions are set by the caller's autocast.
        """
        recompute = memory == "lean"
        self.fp8_scaling = Fp8Scaling(self.gpt_neox.layers) if precision == "fp8" else None
        kernels = fp8_kernels(kernels) if self.fp8_scaling else kernels
        kernels = activation_recompute.with_chunked_loss(kernels) if recompute else kernels
        for module in self.modules():
            if isinstance(module, Attention | MLP | Layer | NeoX):
                module.kernels = kernels
            if isinstance(module, Layer):
                module.recompute_activations = recompute

    def compile_layers(self) -> None:
        """Compiles every layer in place: all share one graph, and state-dict keys do not change."""
        for layer in self.gpt_neox.layers:
            layer.compile(fullgraph=True, dynamic=False)


@torch.no_grad()
def initialize_weights(model: NeoX, seed: int) -> None:
    """Initializes all weights as Pythia's configuration does; the same seed gives the same weights.

    Matrices: normal with σ = √(2 / 5D) ("small init", arXiv:1910.05895); the two linear layers that
    write to the residual stream: σ = 2 / (layers · √D) ("wang init", GPT-NeoX). Biases 0, norms 1.
    """
    width, layers = model.architecture.hidden, model.architecture.layers
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            own_part(parameter).fill_(1.0 if name.endswith("norm.weight") else 0.0)
            continue
        writes_to_residual = name.endswith(("attention.dense.weight", "dense_4h_to_h.weight"))
        small, wang = math.sqrt(2 / (5 * width)), 2 / (layers * math.sqrt(width))
        sigma = wang if writes_to_residual else small
        copy_whole(parameter, torch.randn(parameter.shape, generator=generator) * sigma)
