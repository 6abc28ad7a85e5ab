"""GPT-NeoX in PyTorch: parameters are named as on disk, so a state dict needs no adapter.

Shapes: B sequences, T positions, D hidden, H heads, K head size, R rotary dimensions, V vocabulary.
"""

from __future__ import annotations

import math
import re
import zipfile
from pathlib import Path
from typing import NamedTuple, cast

import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from rewarm import neoxlib
from rewarm.architecture import Architecture
from rewarm.bases import PICKLED, SAFETENSORS
from rewarm.errors import CheckpointError
from rewarm.kernels import PLAIN, Kernels
from rewarm.untrusted import is_plain_name, read_as

Seen = Tensor | BlockMask
"""Which positions each position attends to; without one, all that are not behind it."""

# Buffers that older transformers versions saved; all of them follow from the configuration.
_DERIVED = (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")


def rotary_angles(architecture: Architecture, length: int) -> tuple[Tensor, Tensor]:
    """Returns cos and sin of every position's angles, each (T, R), in fp32 (arXiv:2104.09864)."""
    size = architecture.rotary_size
    inverse = 1.0 / architecture.rotary_base ** (torch.arange(0, size, 2).float() / size)
    angles = torch.outer(torch.arange(length).float(), inverse).repeat(1, 2)
    return angles.cos(), angles.sin()


def separate(tokens_BT: Tensor, separator: int) -> Seen:
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

    kernels = PLAIN

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width, bias = architecture.hidden, architecture.attention_bias
        self.heads = architecture.heads
        self.query_key_value = nn.Linear(width, 3 * width, bias=bias)
        self.dense = nn.Linear(width, width, bias=bias)

    def forward(
        self, x_BTD: Tensor, cos_TR: Tensor, sin_TR: Tensor, seen: Seen | None = None
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
        return cast(Tensor, self.dense(out.transpose(1, 2).reshape(B, T, D)))


class MLP(nn.Module):
    """Two products with a non-linearity between them."""

    kernels = PLAIN

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.activation = architecture.activation
        self.dense_h_to_4h = nn.Linear(architecture.hidden, architecture.inner)
        self.dense_4h_to_h = nn.Linear(architecture.inner, architecture.hidden)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Returns what the MLP adds to the residual stream, (B, T, D)."""
        inner_BTF = self.kernels.gelu(x_BTD, self.dense_h_to_4h, self.activation)
        return cast(Tensor, self.dense_4h_to_h(inner_BTF))


class Layer(nn.Module):
    """One transformer layer; attention and MLP side by side, or one after the other."""

    kernels = PLAIN

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width, eps = architecture.hidden, architecture.layer_norm_eps
        self.parallel = architecture.parallel_residual
        self.input_layernorm = nn.LayerNorm(width, eps=eps)
        self.post_attention_layernorm = nn.LayerNorm(width, eps=eps)
        self.attention = Attention(architecture)
        self.mlp = MLP(architecture)

    def forward(
        self, x_BTD: Tensor, cos_TR: Tensor, sin_TR: Tensor, seen: Seen | None = None
    ) -> Tensor:
        """Returns the residual stream behind this layer, (B, T, D)."""
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
        self.final_layer_norm = nn.LayerNorm(architecture.hidden, eps=architecture.layer_norm_eps)


class NeoX(nn.Module):
    """A GPT-NeoX language model: `model(tokens)` gives logits, `model.loss(...)` nats."""

    kernels = PLAIN

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
        seen = None if separator is None else separate(tokens_BT, separator)
        x_BTD = self.gpt_neox.embed_in(tokens_BT)
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

    def use(self, kernels: Kernels) -> None:
        """Changes how the passes that move the most memory are done, not what they compute."""
        for module in self.modules():
            if isinstance(module, Attention | MLP | Layer | NeoX):
                module.kernels = kernels

    def compile_layers(self) -> None:
        """Compiles every layer in place: one graph serves all, and state-dict keys stay."""
        for layer in self.gpt_neox.layers:
            layer.compile(fullgraph=True, dynamic=False)


@torch.no_grad()
def initialise(model: NeoX, seed: int) -> None:
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


class Matched(NamedTuple):
    """What became of the tensors in a model directory."""

    tensors: int
    """Those that are the model's."""
    ignored: int
    """Those that follow from the configuration, which older versions saved as well."""


def load(architecture: Architecture, directory: Path) -> tuple[NeoX, Matched]:
    """Returns the model of a directory of Hugging Face's or GPT-NeoX's format, in fp32.

    Raises:
        CheckpointError: as in `load_weights`; or the files are too small for such a model, so that
            memory is not set aside for what a configuration merely claims.
    """
    held = sum(path.stat().st_size for path in _weight_files(directory, architecture))
    if held < 2 * architecture.parameters:  # half precision is the least that is read
        raise CheckpointError(
            f"{directory}: its configuration is of {architecture.parameters:,} parameters, and its "
            f"weights are {held:,} bytes, too few for that; fetch the model again"
        )
    model = NeoX(architecture)
    return model, load_weights(model, directory)


def load_weights(model: NeoX, directory: Path) -> Matched:
    """Fills the model, converted to fp32, from a directory of Hugging Face's or GPT-NeoX's format.

    Raises:
        CheckpointError: weights are missing, damaged, left over, of another shape, or not numbers.
    """
    read = _read_tensors(directory, model.architecture)
    found = {name: tensor for name, tensor in read.items() if not name.endswith(_DERIVED)}
    matched = Matched(len(found), len(read) - len(found))
    head, embedding = "embed_out.weight", "gpt_neox.embed_in.weight"
    if model.architecture.tied and embedding in found:
        found.setdefault(head, found[embedding])
    if different := _differences(found, dict(model.state_dict())):
        raise CheckpointError(
            f"{directory}: the weights are not those of its configuration{different}"
        )
    if model.architecture.tied and not torch.equal(found[head], found[embedding]):
        raise CheckpointError(
            f"{directory}: the weights are not those of its configuration: {head} is not "
            f"{embedding}, and the configuration says that they are one; take both from the same "
            "model"
        )
    model.load_state_dict({name: tensor.float() for name, tensor in found.items()})
    broken = [name for name, tensor in model.state_dict().items() if not is_finite(tensor)]
    if broken:
        more = f" and {len(broken) - 8} more" if len(broken) > 8 else ""
        raise CheckpointError(
            f"{directory}: weights that are not finite numbers: {', '.join(sorted(broken)[:8])}"
            f"{more}; fetch the model again, or use another checkpoint"
        )
    return matched


def is_finite(tensor: Tensor) -> bool:
    """Returns whether a tensor is free of NaN and infinity."""
    return bool(torch.isfinite(tensor).all())


# What weights are published in; anything smaller needs scales that rewarm would not apply.
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def _differences(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> str:
    """Returns a table of the tensors that are not the model's; nothing where all are."""
    there, here = _shapes(found), _shapes(wanted)
    different = [name for name in sorted(there | here) if there.get(name) != here.get(name)]
    if not different:
        return ""
    table = [
        ("tensor", "in the file", "in the model"),
        *((name, there.get(name, "missing"), here.get(name, "—")) for name in different[:8]),
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
    if len(different) > 8:
        lines.append(f"... and {len(different) - 8} more")
    name = "gpt_neox.embed_in.weight"
    if name in different and name in found and found[name].ndim:
        rows, vocabulary = len(found[name]), len(wanted[name])
        if rows != vocabulary:
            lines.append(f"the file's vocabulary has {rows:,} rows, the model's {vocabulary:,}")
    lines.append("take weights and configuration from the same model")
    return ":\n  " + "\n  ".join(lines)


def _shapes(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Returns what to say of tensors: their shapes, and what makes some no plain numbers."""
    said = {}
    for name, tensor in tensors.items():
        said[name] = " × ".join(map(str, tensor.shape)) or "one number"
        if tensor.dtype not in _FLOATS or tensor.layout != torch.strided or tensor.is_meta:
            kind = f"{tensor.dtype}, {tensor.layout}, {tensor.device}".replace("torch.", "")
            said[name] += f" ({kind})"
    return said


def _weight_files(directory: Path, architecture: Architecture) -> list[Path]:
    """Returns the files that hold the weights."""
    if neoxlib.find(directory):
        layers = neoxlib.layer_files(directory, architecture.layers, tied=architecture.tied)
        return [file.path for file in layers]
    for whole, index in (SAFETENSORS, PICKLED):
        if (directory / whole).is_file():
            return [directory / whole]
        if (directory / index).is_file():
            return _indexed(directory / index, Path(whole).suffix)
    raise CheckpointError(
        f"{directory}: no weights; wanted one of {', '.join(SAFETENSORS + PICKLED)}; fetch the "
        "model again"
    )


class _Index(BaseModel):
    weight_map: dict[str, str]


def _indexed(index: Path, suffix: str) -> list[Path]:
    """Returns the files that an index names, all of them beside it."""
    try:
        names = sorted(set(read_as(_Index, index).weight_map.values()))
        for name in names:
            if not (is_plain_name(name) and name.endswith(suffix)):
                raise ValueError(f"{name!r} is not the name of a {suffix} file")
            if not (index.parent / name).is_file():
                raise ValueError(f"{name} is missing")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{index}: cannot be read: {error}; fetch the model again") from None
    return [index.parent / name for name in names]


def _read_tensors(directory: Path, architecture: Architecture) -> dict[str, Tensor]:
    if neoxlib.find(directory):
        return {
            file.rename(name): tensor
            for file in neoxlib.layer_files(directory, architecture.layers, tied=architecture.tied)
            for name, tensor in _read_file(file.path).items()
        }
    tensors: dict[str, Tensor] = {}
    for path in _weight_files(directory, architecture):
        held = _read_file(path)
        if again := tensors.keys() & held.keys():
            raise CheckpointError(
                f"{path}: holds {min(again)}, as another file does; fetch the model again"
            )
        tensors |= held
    return tensors


def _read_file(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return _unpickled(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; fetch the model again") from None
    except Exception as error:  # torch.load raises what it likes on a stranger's file
        # Its own message advises to try again without the safety.
        called = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it would call {called[1]}" if called else str(error).split("\n")[0]
        raise CheckpointError(
            f"{path}: not plain tensors: {reason}; nothing in it was run; fetch the model again, "
            "if possible as safetensors"
        ) from None


def _unpickled(path: Path) -> dict[str, Tensor]:
    """Returns the tensors that torch.save wrote, made by its unpickler that calls nothing else."""
    with zipfile.ZipFile(path) as held:
        # torch.save compresses nothing. A compressed pickle could be of any size, and compressed
        # numbers would be mapped as if they were not.
        if any(one.compress_type or one.file_size > one.compress_size for one in held.infolist()):
            raise ValueError("compressed")
    loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    tensors = {name: t for name, t in loaded.items() if isinstance(t, Tensor)}
    if not all(isinstance(name, str) for name in tensors):
        raise ValueError("their names are not text")
    return tensors
