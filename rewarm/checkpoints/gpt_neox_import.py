"""Checkpoints as the GPT-NeoX library writes them, read without running anything in them.

```
run/  latest                                     the name of the newest folder, such as
      global_step143000/
        layer_00-model_00-model_states.pt        word embeddings
        layer_02-..., layer_03-..., ...          transformer layers (01 is a function, not stored)
        layer_{L+3}-..., layer_{L+4}-...         final norm; output embeddings, unless tied
        configs/*.yml                            what the run was started with   -> Architecture
        mp_rank_*, zero_*, bf16_zero_*           pickled arguments and moments: never opened
```
The architecture comes from configs/, and the number of embedding rows, which GPT-NeoX takes from a
tokenizer elsewhere, from the shape of the embeddings. `load_weights.py` reads the tensors.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, cast

from pydantic import AliasChoices, BaseModel, Field, ValidationError, field_validator
from pydantic_core.core_schema import ValidationInfo

from rewarm.errors import CheckpointError, RecipeError
from rewarm.model.architecture import Activation, Architecture
from rewarm.recipe.yaml_document import YamlDocument
from rewarm.safe_loading import check_files_inside

KIND = "GPT-NeoX checkpoint"

_FILE = "layer_{:02d}-model_00-model_states.pt"
_LAYER_FILE = re.compile(r"layer_(\d{2,})-model_(\d{2,})-model_states\.pt")
_FOLDER_NAME = re.compile(r"\w[\w.-]*")
_CONVERTER = "tools/ckpts/convert_neox_to_hf.py of the GPT-NeoX repository"
_CONVERT = f"convert it with {_CONVERTER}, and name the folder that this writes"
_WHOLE_NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1")
_MAX_BYTES = 1_000_000
_MAX_SHOWN = 8

# Far above any model, and far below what arithmetic or memory would choke on.
Size = Annotated[int, Field(gt=0, lt=10**9)]

# What newer versions of the library call the MLP's two products.
_MLP_NAMES = {"mlp.linear1.": "mlp.dense_h_to_4h.", "mlp.linear2.": "mlp.dense_4h_to_h."}


class LayerFile(NamedTuple):
    """One file of tensors, and what their names begin with, in it and in Hugging Face's format."""

    path: Path
    prefix: str
    ours: str

    def rename(self, name: str) -> str:
        """Returns a tensor's name in Hugging Face's format."""
        name = name.removeprefix(self.prefix)
        for theirs, ours in _MLP_NAMES.items():
            name = name.replace(theirs, ours)
        return self.ours + name


class GptNeoxConfig(BaseModel):
    """What decides the model in GPT-NeoX's configuration, with the library's own defaults.

    A `Literal` is what rewarm builds where the library has more; null there means "not given".
    """

    num_layers: int = Field(gt=0, lt=10_000)
    hidden_size: Size
    num_attention_heads: Size
    positions: Size = Field(validation_alias=AliasChoices("max_position_embeddings", "seq_length"))
    padded_vocab_size: Size | None = None
    model_parallel_size: Literal[1] = 1
    pos_emb: Literal["rotary"]
    rotary_pct: float = 1.0
    rotary_emb_base: float = 10_000.0
    norm: Literal["layernorm"] = "layernorm"
    layernorm_epsilon: float = 1e-5
    activation: Literal["gelu", "relu", "silu", "swish"] = "gelu"
    bias_gelu_fusion: bool = False
    intermediate_size: Size | None = None
    expansion_factor: float | None = Field(None, gt=0, lt=1000)
    mlp_multiple_of: Size = 1
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
    def _as_many_as_queries(cls, heads: int | None, info: ValidationInfo) -> int | None:
        if heads not in (None, queries := info.data.get("num_attention_heads")):
            raise ValueError(f"should be num_attention_heads, {queries} (no grouped queries)")
        return heads

    @property
    def hidden_act(self) -> Activation:
        """The activation by Hugging Face's name."""
        match self.activation:
            case "gelu":
                # The fused kernel is the approximation by tanh. The library's converter drops
                # that; the weights were trained with it, as GPT-NeoX-20B's published config says.
                return "gelu_fast" if self.bias_gelu_fusion else "gelu"
            case "silu" | "swish":
                return "silu"
        return self.activation

    @property
    def inner(self) -> int:
        """Width inside the MLP, rounded up as the library does."""
        factor = self.expansion_factor or 4
        width, step = self.intermediate_size or int(factor * self.hidden_size), self.mlp_multiple_of
        return -(-width // (2 * step)) * 2 * step


def find_gpt_neox_checkpoint(path: Path) -> Path | None:
    """Returns the checkpoint that a folder is, or that its `latest` file names; None for others.

    Raises:
        CheckpointError: `latest` names no folder beside it.
    """
    if (path / "config.json").exists():
        return None  # a Hugging Face model, beside which its trainer may leave such files too
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
            f"{latest}: says {name!r:.60}; wanted the plain name of a folder beside it, such as "
            "global_step143000; name that folder itself as the base"
        )
    if not (path / name).is_dir():
        raise CheckpointError(
            f"{latest}: names {name}, and there is no such folder beside it; name one that is "
            "there as the base"
        )
    return path / name


def read_gpt_neox_architecture(directory: Path) -> Architecture:
    """Returns the architecture of a checkpoint, having seen that all its layer files are there.

    Raises:
        CheckpointError: it is incomplete or split among GPUs, or of a model rewarm cannot build.
    """
    for folder in (directory, directory / "configs"):
        if folder.is_dir():
            check_files_inside(folder)
    _refuse_other_formats(directory)
    config = _read_config(directory)
    gpt_neox_layer_files(directory, config.num_layers, tied=not config.no_weight_tying)
    vocabulary = config.padded_vocab_size or _embedding_rows(directory)
    try:
        return Architecture(
            layers=config.num_layers,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            ffn=config.inner,
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
        raise CheckpointError(_not_buildable(directory, error)) from None


def gpt_neox_layer_files(directory: Path, layers: int, *, tied: bool) -> list[LayerFile]:
    """Returns the files that hold a checkpoint's tensors.

    Raises:
        CheckpointError: one is missing, or one is there that such a model has not.
    """
    prefixes = {0: ("word_embeddings.", "gpt_neox.embed_in.")}
    prefixes |= {2 + layer: ("", f"gpt_neox.layers.{layer}.") for layer in range(layers)}
    prefixes[layers + 3] = ("norm.", "gpt_neox.final_layer_norm.")
    if not tied:
        prefixes[layers + 4] = ("final_linear.", "embed_out.")
    files = [LayerFile(directory / _FILE.format(index), *both) for index, both in prefixes.items()]
    wanted = {file.path.name for file in files}
    found = {path.name for path in directory.glob("layer_*") if _LAYER_FILE.fullmatch(path.name)}
    wrong = [f"{name} is missing" for name in sorted(wanted - found)]
    wrong += [f"{name} is one too many" for name in sorted(found - wanted)]
    if wrong:
        more = f" and {len(wrong) - _MAX_SHOWN} more" if len(wrong) > _MAX_SHOWN else ""
        raise CheckpointError(
            f"{directory}: {', '.join(wrong[:_MAX_SHOWN])}{more}; wanted the {len(wanted)} files "
            f"of {layers} layers with {'tied' if tied else 'untied'} embeddings, as configs/ says; "
            "copy it again, whole"
        )
    return files


def _refuse_other_formats(directory: Path) -> None:
    """Makes sure that tensors lie in layer files, one for each layer."""
    found = [_LAYER_FILE.fullmatch(path.name) for path in directory.glob("layer_*")]
    parts = {int(match[2]) for match in found if match}
    if not parts:
        raise CheckpointError(
            f"{directory}: no layer_00-model_00-model_states.pt and the like; weights in mp_rank_* "
            "or zero_* files are pickled together with objects, and rewarm never opens those; "
            f"{_CONVERT}"
        )
    if parts != {0}:
        raise CheckpointError(
            f"{directory}: split among model-parallel GPUs (files of model_{max(parts):02d}); "
            f"wanted one file for each layer; {_CONVERT}"
        )


def _read_config(directory: Path) -> GptNeoxConfig:
    """Returns the union of a checkpoint's YAML files, in which - and _ are the same."""
    paths = sorted(p for p in (directory / "configs").glob("*") if p.suffix in {".yml", ".json"})
    if not paths:
        raise CheckpointError(
            f"{directory}: no configs/*.yml, which say what model this is; copy there the files "
            f"that GPT-NeoX was started with, or {_CONVERT}"
        )
    given: dict[str, object] = {}
    places: dict[str, str] = {}
    for path in paths:
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise CheckpointError(f"{path}: larger than {_MAX_BYTES:,} bytes; is it a config?")
            document = YamlDocument.load(path)
        except (OSError, RecipeError) as error:
            raise CheckpointError(str(error)) from None
        for key, value in document.data.items():
            name, place = key.replace("-", "_"), document.where((key,))
            if name in given and given[name] != value:
                raise CheckpointError(
                    f"{place}: {key} is {value!r:.60}, and {given[name]!r:.60} at {places[name]}; "
                    "keep one"
                )
            given[name], places[name] = value, place
    try:
        return GptNeoxConfig.model_validate(
            # The library's default, which rewarm does not build: so it is not the one above.
            {"pos_emb": "learned"} | {k: v for k, v in given.items() if v is not None}
        )
    except ValidationError as error:
        raise CheckpointError(_not_buildable(directory / "configs", error, places)) from None


def _not_buildable(
    source: Path, error: ValidationError, places: dict[str, str] | None = None
) -> str:
    """Returns what in a configuration is not what rewarm builds, a setting a line."""
    # A union complains once for each of its kinds; the last one is about the innermost value.
    by_setting = {str(one["loc"][0]) if one["loc"] else "": one for one in error.errors()}
    lines = []
    for name, one in by_setting.items():
        place = f" ({places[name]})" if places and name in places else ""
        got = "" if one["type"] == "missing" or not name else f", got {one['input']!r:.60}"
        lines.append(f"\n  {name + ': ' if name else ''}{one['msg']}{got}{place}")
    return (
        f"{source}: not a model that rewarm can build:{''.join(lines)}\nwanted GPT-NeoX as Hugging "
        f"Face defines it, in one part; {_CONVERTER} joins parts, and brings some other models to "
        "other trainers"
    )


def _embedding_rows(directory: Path) -> int:
    """Returns the rows of the word embeddings, by the shape that their file gives.

    The pickle inside is taken apart into its instructions, and none of them is carried out.
    """
    path = directory / _FILE.format(0)
    try:
        with zipfile.ZipFile(path) as archive:
            (member,) = (one for one in archive.infolist() if one.filename.endswith("/data.pkl"))
            if member.file_size > _MAX_BYTES:
                raise ValueError(f"a pickle of {member.file_size:,} bytes")
            steps = pickletools.genops(archive.read(member))
        next(step for step in steps if step[1] == "word_embeddings.weight")
        next(step for step in steps if step[0].name == "BINPERSID")  # names the tensor's bytes
        numbers = (arg for op, arg, _ in steps if op.name in _WHOLE_NUMBERS)
        _offset, rows, _columns = islice(numbers, 3)
        return cast(int, rows)
    except Exception as error:  # zipfile and pickletools raise what they like on a stranger's file
        reason = f": {error}" if str(error) else ""
        raise CheckpointError(
            f"{path}: not a torch file that holds word_embeddings.weight{reason}; nothing in it "
            "was run; copy it again"
        ) from None
