"""Writes the files of a Hugging Face model directory that are not weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from rewarm.model.architecture import Architecture
from rewarm.safe_loading import read_json

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
)


class TokenizerSource(NamedTuple):
    """The tokenizer of a run's data; its files are copied into each checkpoint."""

    directory: Path
    """Directory from which the tokenizer files are copied."""
    eos_token_id: int
    eos_token: str


def write_model_files(
    folder: Path,
    architecture: Architecture,
    tokenizer: TokenizerSource,
    weight_files: dict[str, str],
    weight_bytes: int,
) -> None:
    """Writes the files of a Hugging Face model, except its weights.

    Args:
        folder: directory of the model.
        architecture: architecture of the model.
        tokenizer: tokenizer whose files are copied.
        weight_files: the name of the file of each weight.
        weight_bytes: size of all weights.
    """
    eos_token_id = tokenizer.eos_token_id
    ids = {"bos_token_id": eos_token_id, "eos_token_id": eos_token_id}
    write_json(folder / "config.json", architecture.to_hugging_face() | ids)
    # generate() pads with end-of-text by default, but older transformers warn if this is not set.
    write_json(folder / "generation_config.json", ids | {"pad_token_id": eos_token_id})
    write_tokenizer(folder, tokenizer, architecture.positions)
    # Without an index, vLLM loads each *.safetensors here as weights, also the optimizer state.
    write_weight_index(folder, weight_files, weight_bytes)


def write_weight_index(folder: Path, weight_files: dict[str, str], weight_bytes: int) -> None:
    """Writes the index that says in which file each weight is; arguments as above."""
    index = {"metadata": {"total_size": weight_bytes}, "weight_map": weight_files}
    write_json(folder / "model.safetensors.index.json", index)


def write_json(path: Path, data: Any) -> None:
    """Writes a JSON file as checkpoints have them: indented, with a line end."""
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def write_tokenizer(folder: Path, source: TokenizerSource, positions: int) -> None:
    """Writes the tokenizer files of a Hugging Face model into a folder.

    Args:
        folder: where to write them.
        source: what to copy.
        positions: that the model has.
    """
    for name in _TOKENIZER_FILES:
        if (source.directory / name).is_file():
            shutil.copyfile(source.directory / name, folder / name)
    config = folder / "tokenizer_config.json"
    if config.exists():
        _make_readable_by_transformers_4(config)
    else:
        write_json(
            config,
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": source.eos_token,
                "eos_token": source.eos_token,
                "unk_token": source.eos_token,
                "clean_up_tokenization_spaces": False,
                "model_max_length": positions,
            },
        )


def _make_readable_by_transformers_4(config: Path) -> None:
    """Replaces two names that transformers 5 writes by older ones, which all versions read."""
    try:
        settings = read_json(config)
    except ValueError:  # it stays as it was copied
        return
    if not isinstance(settings, dict) or settings.get("tokenizer_class") != "TokenizersBackend":
        return
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    write_json(config, settings)
