"""The architecture of a GPT-NeoX model: presets, Hugging Face's `config.json`, sizes and FLOPs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Interval
from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator

Activation = Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "relu", "silu"]
Size = Annotated[int, Strict(), Interval(gt=0, le=2**31)]

_MAX_ANGLES = 2**28
_FIXED = {"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"]}


class Architecture(BaseModel):
    """A decoder-only GPT-NeoX transformer. The defaults are Pythia's."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    layers: Size
    """Transformer layers."""
    hidden: Size
    """Width of the residual stream."""
    heads: Size
    """Attention heads; `hidden` is divided among them."""
    ffn: Size | None = None
    """Width inside the MLP; 4 × hidden by default."""
    vocabulary: Size = 50_304
    """Rows of the embedding; at least the tokenizer's size, often padded."""
    positions: Size = 2048
    """The longest sequence that the model supports."""
    rotary: Annotated[float, Field(strict=True, gt=0, le=1)] = 0.25
    """The fraction of each head that rotary embeddings rotate."""
    rotary_base: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] = 10_000.0
    """The base of the rotary frequencies (theta)."""
    activation: Activation = "gelu"
    """The non-linearity of the MLP."""
    parallel_residual: bool = True
    """Attention and MLP read the same input, and their outputs are added together."""
    attention_bias: bool = True
    """Biases on attention's two linear layers."""
    tied: bool = False
    """Input and output embeddings share one matrix."""
    layer_norm_eps: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] = 1e-5
    """Added to the variance in layer norms."""

    @model_validator(mode="after")
    def _check_rotary_table(self) -> Architecture:
        angles = self.positions * self.rotary_size
        if angles > _MAX_ANGLES:  # no tensor of a weight file confirms this size
            raise ValueError(
                f"positions {self.positions:,} × {self.rotary_size:,} rotary dimensions make a "
                f"table of {angles:,} angles; the maximum is {_MAX_ANGLES:,}"
            )
        return self

    @model_validator(mode="after")
    def _check_head_sizes(self) -> Architecture:
        if self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} should divide evenly among {self.heads} heads")
        if self.rotary_size < 2 or self.rotary_size % 2:
            raise ValueError(
                f"rotary {self.rotary} of a head of {self.head_size} rotates {self.rotary_size} "
                "dimensions; that should be an even number above 0"
            )
        return self

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.hidden // self.heads

    @property
    def rotary_size(self) -> int:
        """Dimensions of a head that rotary embeddings rotate."""
        return int(self.head_size * self.rotary)

    @property
    def inner(self) -> int:
        """Width inside the MLP."""
        return self.ffn or 4 * self.hidden

    @property
    def parameters(self) -> int:
        """The number of trainable parameters; 405,334,016 for Pythia-410M."""
        return self.outer_parameters + self.layers * self.layer_parameters

    @property
    def outer_parameters(self) -> int:
        """Parameters outside the layers: the embeddings and the last norm."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + 2 * self.hidden

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer: attention, MLP and two norms."""
        attention = 4 * self.hidden**2 + (4 * self.hidden if self.attention_bias else 0)
        mlp = 2 * self.hidden * self.inner + self.hidden + self.inner
        return attention + mlp + 4 * self.hidden

    @property
    def matmul_parameters(self) -> int:
        """Parameters used in matmuls: all but the input embedding, which is a lookup."""
        embedding = 0 if self.tied else self.vocabulary * self.hidden
        return self.parameters - embedding

    def flops_per_token(self, context: int) -> int:
        """Returns the FLOPs of forward and backward pass per token in a sequence of `context`.

        6 per parameter in a matmul plus 12 · layers · hidden · context for attention, causal
        masking not subtracted (PaLM, arXiv:2204.02311, appendix B).
        """
        return 6 * self.matmul_parameters + 12 * self.layers * self.hidden * context

    @classmethod
    def from_hugging_face(cls, config: dict[str, Any]) -> Architecture:
        """Returns the architecture in a `config.json`, whose rotary settings have old or new names.

        Raises:
            ValueError: the model is not GPT-NeoX, or uses a feature that rewarm does not support.
        """
        model_type = config.get("model_type")
        if model_type != "gpt_neox":
            raise ValueError(
                f"model_type is {model_type!r}; rewarm trains 'gpt_neox' (Pythia, GPT-NeoX)"
            )
        if quantization := config.get("quantization_config"):
            method = quantization.get("quant_method") if isinstance(quantization, dict) else None
            raise ValueError(
                f"quantization_config: the weights are quantized ({method or quantization}), and "
                "rewarm reads plain ones"
            )
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if not isinstance(rope, dict):
            raise ValueError(f"the rotary settings should be a JSON object, got {rope!r}")
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        if rope_type != "default":
            raise ValueError(f"rotary scaling {rope_type!r} is not supported, only 'default'")
        settings = {
            "layers": config.get("num_hidden_layers"),
            "hidden": config.get("hidden_size"),
            "heads": config.get("num_attention_heads"),
            "ffn": config.get("intermediate_size"),
            "vocabulary": config.get("vocab_size"),
            "positions": config.get("max_position_embeddings"),
            "rotary": rope.get("partial_rotary_factor", config.get("rotary_pct")),
            "rotary_base": rope.get("rope_theta", config.get("rotary_emb_base")),
            "activation": config.get("hidden_act"),
            "parallel_residual": config.get("use_parallel_residual"),
            "attention_bias": config.get("attention_bias"),
            "tied": config.get("tie_word_embeddings"),
            "layer_norm_eps": config.get("layer_norm_eps"),
        }
        return cls.model_validate(
            {name: value for name, value in settings.items() if value is not None}
        )

    @staticmethod
    def ignored_settings(config: dict[str, Any]) -> list[str]:
        """Returns what a `config.json` asks for that rewarm leaves out, one sentence each."""
        sentences = [
            f"{name} {rate:g} of its config.json is not applied: rewarm trains without dropout"
            for name in ("attention_dropout", "hidden_dropout")
            if isinstance(rate := config.get(name), int | float) and rate > 0
        ]
        if classes := config.get("auto_map"):
            names = ", ".join(map(str, classes)) if isinstance(classes, dict) else str(classes)
            sentences.append(
                f"auto_map of its config.json is not used ({names}): rewarm runs no code of a "
                "model, and builds GPT-NeoX as transformers defines it"
            )
        return sentences

    def to_hugging_face(self) -> dict[str, Any]:
        """Returns a `config.json` that old and new transformers, vLLM and lm_eval read the same."""
        return {
            **_FIXED,
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "num_attention_heads": self.heads,
            "intermediate_size": self.inner,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.positions,
            "rotary_pct": self.rotary,
            "rotary_emb_base": self.rotary_base,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": self.rotary_base,
                "partial_rotary_factor": self.rotary,
            },
            "hidden_act": self.activation,
            "use_parallel_residual": self.parallel_residual,
            "attention_bias": self.attention_bias,
            "tie_word_embeddings": self.tied,
            "layer_norm_eps": self.layer_norm_eps,
            "attention_dropout": 0.0,
            "hidden_dropout": 0.0,
            "use_cache": True,
            "torch_dtype": "float32",
        }


def _pythia(layers: int, hidden: int, heads: int, vocabulary: int = 50_304) -> Architecture:
    return Architecture(layers=layers, hidden=hidden, heads=heads, vocabulary=vocabulary)


PRESETS = {
    "pythia-14m": _pythia(6, 128, 4),
    "pythia-31m": _pythia(6, 256, 8),
    "pythia-70m": _pythia(6, 512, 8),
    "pythia-160m": _pythia(12, 768, 12),
    "pythia-410m": _pythia(24, 1024, 16),
    "pythia-1b": _pythia(16, 2048, 8),
    "pythia-1.4b": _pythia(24, 2048, 16),
    "pythia-2.8b": _pythia(32, 2560, 32),
    "pythia-6.9b": _pythia(32, 4096, 32, vocabulary=50_432),
    "pythia-12b": _pythia(36, 5120, 40, vocabulary=50_688),
}
"""The Pythia suite (arXiv:2304.01373, table 1; vocabulary rows as in the released weights)."""
