"""Reads checkpoints of the GPT-NeoX library without running any code in them.

```
run/  latest                                     the name of the newest folder, such as
      global_step143000/
        layer_00-model_00-model_states.pt        word embeddings
        layer_02-..., layer_03-..., ...          transformer layers (01 is a function, not stored)
        layer_{L+3}-..., layer_{L+4}-...         final norm; output embeddings, unless tied
        configs/*.yml                            the run's configuration -> Architecture
        mp_rank_*, zero_*, bf16_zero_*           pickled arguments, optimizer state: never opened
```
The architecture is read from configs/. The number of embedding rows, which GPT-NeoX derives from a
tokenizer stored elsewhere, is read from the shape of the embeddings. `load_weights.py` reads the
tensors.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, cast

from annotated_types import Interval
from pydantic import AliasChoices, BaseModel, Field, ValidationError, field_validator
from pydantic_core.core_schema import ValidationInfo

from rewarm.checkpoints.torch_files import check_not_legacy
from rewarm.errors import CheckpointError, RecipeError
from rewarm.model.architecture import Activation, Architecture
from rewarm.recipe.saved_recipe import load_saved_document
from rewarm.recipe.yaml_document import YamlDocument
from rewarm.safe_loading import check_files_inside

GPT_NEOX_KIND = "GPT-NeoX checkpoint"

_LAYER_FILE_NAME = "layer_{:02d}-model_00-model_states.pt"
_LAYER_FILE_PATTERN = re.compile(r"layer_(\d{2,})-model_(\d{2,})-model_states\.pt")
_FOLDER_NAME = re.compile(r"\w[\w.-]*")
_CONVERTER = "tools/ckpts/convert_neox_to_hf.py of the GPT-NeoX repository"
_CONVERT = f"convert it with {_CONVERTER}, and name the folder that it writes"
_PICKLED_INTEGERS = ("BININT", "BININT1", "BININT2", "LONG1")
_MAX_BYTES = 1_000_000
_MAX_SHOWN = 8

# Far above any model, and small enough that products of sizes cause no harm.
_Size = Annotated[int, Interval(gt=0, lt=10**9)]

# Names of the MLP's two linear layers in newer versions of the library.
_NEW_MLP_NAMES = {"mlp.linear1.": "mlp.dense_h_to_4h.", "mlp.linear2.": "mlp.dense_4h_to_h."}


class LayerFile(NamedTuple):
    """One file of tensors, and the prefixes of their names in GPT-NeoX and Hugging Face."""

    path: Path
    gpt_neox_prefix: str
    hugging_face_prefix: str

    def hugging_face_name(self, name: str) -> str:
        """Returns the name in Hugging Face's format of a tensor in this file."""
        name = name.removeprefix(self.gpt_neox_prefix)
        for new, old in _NEW_MLP_NAMES.items():
            name = name.replace(new, old)
        return self.hugging_face_prefix + name


class GptNeoxConfig(BaseModel):
    """The settings of GPT-NeoX that determine the architecture, with the library's defaults.

    A `Literal` lists the values that rewarm can build; the library accepts more.
    """

    num_layers: int = Field(gt=0, lt=10_000)
    hidden_size: _Size
    num_attention_heads: _Size
    positions: _Size = Field(validation_alias=AliasChoices("max_position_embeddings", "seq_length"))
    padded_vocab_size: _Size | None = None
    model_parallel_size: Literal[1] = 1
    pos_emb: Literal["rotary"]
    rotary_pct: float = 1.0
    rotary_emb_base: float = 10_000.0
    norm: Literal["layernorm"] = "layernorm"
    layernorm_epsilon: float = 1e-5
    activation: Literal["gelu", "relu", "silu", "swish"] = "gelu"
    bias_gelu_fusion: bool = False
    intermediate_size: _Size | None = None
    expansion_factor: float | None = Field(None, gt=0, lt=1000)
    mlp_multiple_of: _Size = 1
    gpt_j_residual: bool = False
    gpt_j_tied: Literal[False] = False
    no_weight_tying: bool = False
    num_kv_heads: int | None = None
    attention_config: (
        list[Literal["global", "flash"]]
        | list[tuple[list[Literal["global", "flash"]], int | Literal["all"]]]
    ) = []
    sliding_window_width: None = None
    use_qk_layernorm: Literal[False] = False
    use_bias_in_norms: Literal[True] = True
    use_bias_in_mlp: Literal[True] = True
    use_bias_in_attn_linear: bool = True
    use_mup: Literal[False] = False
    moe_num_experts: Literal[1] = 1

    @field_validator("num_kv_heads")
    @classmethod
    def _no_grouped_queries(cls, heads: int | None, info: ValidationInfo) -> int | None:
        if heads not in (None, queries := info.data.get("num_attention_heads")):
            raise ValueError(f"should be num_attention_heads, {queries} (no grouped queries)")
        return heads

    @property
    def hidden_act(self) -> Activation:
        """Hugging Face's name of the activation."""
        match self.activation:
            case "gelu":
                # The fused kernel is the tanh approximation. The library's converter ignores that,
                # but the weights were trained with it, as in GPT-NeoX-20B's published config.
                return "gelu_fast" if self.bias_gelu_fusion else "gelu"
            case "silu" | "swish":
                return "silu"
        return self.activation

    @property
    def mlp_width(self) -> int:
        """Width of the MLP's hidden layer, rounded up in the same way as in the library."""
        factor = self.expansion_factor or 4
        width = self.intermediate_size or int(factor * self.hidden_size)
        multiple = 2 * self.mlp_multiple_of
        return -(-width // multiple) * multiple


def find_gpt_neox_checkpoint(path: Path) -> Path | None:
    """Returns the GPT-NeoX checkpoint that a path refers to; None if it refers to none.

    A path refers to a checkpoint if it is one, or if its file `latest` names one.

    Raises:
        CheckpointError: `latest` does not name a folder beside it.
    """
    if (path / "config.json").exists():
        return None  # a Hugging Face model; DeepSpeed may leave such files beside it
    latest = path / "latest"
    if not latest.is_file():
        return path if any(path.glob("*_states.pt")) else None
    try:
        with latest.open(encoding="utf-8", errors="replace") as file:
            name = file.read(256).strip()
    except OSError as error:
        raise CheckpointError(f"{latest}: cannot be read: {error.strerror}") from None
    if not _FOLDER_NAME.fullmatch(name):
        raise CheckpointError(
            f"{latest}: contains {name!r:.60}; expected the plain name of a folder beside it, such "
            "as global_step143000; name that folder itself as the base"
        )
    if not (path / name).is_dir():
        raise CheckpointError(
            f"{latest}: names {name}, and there is no such folder beside it; name one that "
            "exists as the base"
        )
    return path / name


def read_gpt_neox_architecture(directory: Path) -> Architecture:
    """Returns the architecture of a checkpoint, and checks that all its layer files exist.

    Raises:
        CheckpointError: the checkpoint is incomplete, split among GPUs, or of a model that rewarm
            cannot build.
    """
    for folder in (directory, directory / "configs"):
        if folder.is_dir():
            check_files_inside(folder)
    _check_one_file_per_layer(directory)
    config = _read_config(directory)
    gpt_neox_layer_files(directory, config.num_layers, tied=not config.no_weight_tying)
    vocabulary = config.padded_vocab_size or _embedding_rows(directory)
    try:
        return Architecture(
            layers=config.num_layers,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            ffn=config.mlp_width,
            vocabulary=vocabulary,
            positions=config.positions,
            rotary=config.rotary_pct,
            rotary_base=config.rotary_emb_base,
            activation=config.hidden_act,
            parallel_residual=config.gpt_j_residual,
            attention_bias=config.use_bias_in_attn_linear,
            tied=not config.no_weight_tying,
            layer_norm_eps=config.layernorm_epsilon,
        )
    except ValidationError as error:
        raise CheckpointError(_unsupported_model_message(directory, error)) from None


def gpt_neox_layer_files(directory: Path, layers: int, *, tied: bool) -> list[LayerFile]:
    """Returns the files that hold the tensors of a checkpoint.

    Raises:
        CheckpointError: a file is missing, or there is one that such a model does not have.
    """
    prefixes = {0: ("word_embeddings.", "gpt_neox.embed_in.")}
    prefixes |= {2 + layer: ("", f"gpt_neox.layers.{layer}.") for layer in range(layers)}
    prefixes[layers + 3] = ("norm.", "gpt_neox.final_layer_norm.")
    if not tied:
        prefixes[layers + 4] = ("final_linear.", "embed_out.")
    files = [
        LayerFile(directory / _LAYER_FILE_NAME.format(index), *names)
        for index, names in prefixes.items()
    ]
    expected = {file.path.name for file in files}
    present = {
        path.name for path in directory.glob("layer_*") if _LAYER_FILE_PATTERN.fullmatch(path.name)
    }
    problems = [f"{name} is missing" for name in sorted(expected - present)]
    problems += [f"{name} is unexpected" for name in sorted(present - expected)]
    if problems:
        omitted = f" and {len(problems) - _MAX_SHOWN} more" if len(problems) > _MAX_SHOWN else ""
        raise CheckpointError(
            f"{directory}: {', '.join(problems[:_MAX_SHOWN])}{omitted}; expected the "
            f"{len(expected)} files of {layers} layers with {'tied' if tied else 'untied'} "
            "embeddings, as configs/ says; copy the complete folder again"
        )
    return files


def _check_one_file_per_layer(directory: Path) -> None:
    matches = [_LAYER_FILE_PATTERN.fullmatch(path.name) for path in directory.glob("layer_*")]
    parts = {int(match[2]) for match in matches if match}
    if not parts:
        raise CheckpointError(
            f"{directory}: no layer files such as layer_00-model_00-model_states.pt; weights in "
            "mp_rank_* or zero_* files are pickled together with objects, and rewarm never opens "
            f"those; {_CONVERT}"
        )
    if parts != {0}:
        raise CheckpointError(
            f"{directory}: split among model-parallel GPUs (files of model_{max(parts):02d}); "
            f"expected one file for each layer; {_CONVERT}"
        )


def _read_config(directory: Path) -> GptNeoxConfig:
    """Returns the merged settings of all YAML files of a checkpoint."""
    paths = sorted(p for p in (directory / "configs").glob("*") if p.suffix in {".yml", ".json"})
    if not paths:
        raise CheckpointError(
            f"{directory}: no configs/*.yml, which describe the model; copy the files there that "
            f"GPT-NeoX was started with, or {_CONVERT}"
        )
    settings: dict[str, object] = {}
    locations: dict[str, str] = {}
    for path in paths:
        document = _load_config_file(path)
        for key, value in document.data.items():
            name = key.replace("-", "_")  # GPT-NeoX accepts both
            location = document.source_location((key,))
            if name in settings and settings[name] != value:
                raise CheckpointError(
                    f"{location}: {key} is {value!r:.60}, and {settings[name]!r:.60} at "
                    f"{locations[name]}; keep one"
                )
            settings[name], locations[name] = value, location
    try:
        return GptNeoxConfig.model_validate(
            # The library's default, which rewarm cannot build: GptNeoxConfig has no default for it.
            {"pos_emb": "learned"} | {k: v for k, v in settings.items() if v is not None}
        )
    except ValidationError as error:
        raise CheckpointError(
            _unsupported_model_message(directory / "configs", error, locations)
        ) from None


def _load_config_file(path: Path) -> YamlDocument:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CheckpointError(f"{path}: larger than {_MAX_BYTES:,} bytes; is it a config?")
        return load_saved_document(path)
    except (OSError, RecipeError) as error:
        raise CheckpointError(str(error)) from None


def _unsupported_model_message(
    source: Path, error: ValidationError, locations: dict[str, str] | None = None
) -> str:
    """Returns the error message for settings that rewarm cannot build, one setting per line."""
    # A union reports one error per type; the last is about the innermost value.
    problems = {str(part["loc"][0]) if part["loc"] else "": part for part in error.errors()}
    lines = []
    for name, problem in problems.items():
        location = f" ({locations[name]})" if locations and name in locations else ""
        has_value = problem["type"] != "missing" and name
        value = f", got {problem['input']!r:.60}" if has_value else ""
        lines.append(f"\n  {name + ': ' if name else ''}{problem['msg']}{value}{location}")
    return (
        f"{source}: not a model that rewarm can build:{''.join(lines)}\nexpected GPT-NeoX as "
        f"Hugging Face defines it, not split among GPUs; {_CONVERTER} joins the parts of a split "
        "model, and converts some other models for other trainers"
    )


def _embedding_rows(directory: Path) -> int:
    """Returns the number of rows of the word embeddings, read from the shape stored in their file.

    The pickle in the file is only parsed into opcodes; none of them is executed.
    """
    path = directory / _LAYER_FILE_NAME.format(0)
    try:
        check_not_legacy(path)
        with zipfile.ZipFile(path) as archive:
            (member,) = (m for m in archive.infolist() if m.filename.endswith("/data.pkl"))
            if member.file_size > _MAX_BYTES:
                raise ValueError(f"a pickle of {member.file_size:,} bytes")
            opcodes = pickletools.genops(archive.read(member))
        next(op for op in opcodes if op[1] == "word_embeddings.weight")
        next(op for op in opcodes if op[0].name == "BINPERSID")  # refers to the tensor's storage
        integers = (arg for op, arg, _ in opcodes if op.name in _PICKLED_INTEGERS)
        _offset, rows, _columns = islice(integers, 3)
        return cast(int, rows)
    except CheckpointError:
        raise
    except Exception as error:  # zipfile and pickletools can raise anything on an untrusted file
        reason = f": {error}" if str(error) else ""
        raise CheckpointError(
            f"{path}: not a torch file that contains word_embeddings.weight{reason}; nothing in it "
            "was run; copy it again"
        ) from None
