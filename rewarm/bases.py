"""Finds the model a run starts from: a folder here, a run, a checkpoint, or a name on the hub."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from rewarm import tokenizer
from rewarm.architecture import PRESETS, Architecture
from rewarm.errors import CheckpointError
from rewarm.shards import TokenizerFacts
from rewarm.untrusted import insist_on_own_files, read_json

SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class Base(NamedTuple):
    """A model directory on this machine."""

    directory: Path
    architecture: Architecture
    kind: str
    """`rewarm checkpoint`, `local model` or `hub model`."""


def locate(name: str, revision: str | None = None, *, weights: bool = True) -> Base:
    """Returns the model behind a name, fetched from the hub where it is a hub name.

    Args:
        name: a model directory, a run directory (its last checkpoint), or a hub name.
        revision: branch, tag or commit of a hub name.
        weights: without them only the configuration is fetched.

    Raises:
        CheckpointError: there is no such model, or it is not a GPT-NeoX model.
    """
    path = Path(name)
    if not path.exists():
        directory = _from_hub(name, revision, weights=weights)
        return Base(directory, read_architecture(directory), "hub model")
    if revision is not None:
        raise CheckpointError(
            f"{name}: a revision ({revision}) goes with a hub name; this is a folder here"
        )
    directory = last_checkpoint(path) or path
    kind = "rewarm checkpoint" if (directory / "MANIFEST.json").exists() else "local model"
    return Base(directory, read_architecture(directory), kind)


def published(name: str) -> Architecture | None:
    """Returns the shape of a Pythia model by its hub name, which needs no hub; None for others."""
    owner, _, model = name.partition("/")
    return PRESETS.get(model.removesuffix("-deduped")) if owner == "EleutherAI" else None


def last_checkpoint(run: Path) -> Path | None:
    """Returns the newest whole checkpoint of a run directory, or None where there is none."""
    found = [
        path
        for path in (run / "checkpoints").glob("step-*")
        if re.fullmatch(r"step-\d{8,}", path.name) and (path / "MANIFEST.json").is_file()
    ]
    return max(found, key=lambda path: int(path.name.removeprefix("step-")), default=None)


def read_architecture(directory: Path) -> Architecture:
    """Returns the architecture in a model directory's config.json.

    Raises:
        CheckpointError: there is none, or it is not a GPT-NeoX model.
    """
    path = directory / "config.json"
    try:
        insist_on_own_files(directory)
        config = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{directory}: not a model directory (no config.json); wanted a Hugging Face NeoX "
            "model, a rewarm checkpoint, or a run that has one"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; fetch the model again") from None
    try:
        if not isinstance(config, dict):
            raise ValueError("should be a JSON object")
        return Architecture.from_hugging_face(config)
    except ValidationError as error:
        reasons = "; ".join(
            ": ".join([*map(str, one["loc"]), one["msg"].removeprefix("Value error, ")])
            for one in error.errors()
        )
        raise CheckpointError(
            f"{path}: not a model rewarm can build: {reasons}; name another, or fetch it again"
        ) from None
    except (ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}; name another model") from None


def fits(
    architecture: Architecture,
    directory: Path | None,
    facts: TokenizerFacts,
    shards: str,
    context: int,
) -> None:
    """Makes sure that a model, a shard folder and a context go together.

    Args:
        architecture: the model's.
        directory: the model's, whose own tokenizer, if it has one, must be the shards'.
        facts: the tokenizer of the shards.
        shards: where the shards are.
        context: tokens in a sequence.

    Raises:
        CheckpointError: they do not.
    """
    if facts.vocabulary > architecture.vocabulary:
        raise CheckpointError(
            f"{shards}: its tokenizer has {facts.vocabulary:,} entries, and the model only "
            f"{architecture.vocabulary:,} embedding rows; shard with the model's own tokenizer"
        )
    if context > architecture.positions:
        raise CheckpointError(
            f"a context of {context:,} tokens is longer than the model's "
            f"{architecture.positions:,} positions; set data.context lower"
        )
    if directory and (directory / "tokenizer.json").is_file():
        own = tokenizer.load(str(directory), eos=facts.eos_token)
        if (own.digest, own.eos) != (facts.digest, facts.eos):
            raise CheckpointError(
                f"{shards}: not written with the tokenizer of {directory}: {facts.vocabulary:,} "
                f"entries, digest {facts.digest[:12]}, against {own.vocabulary:,}, "
                f"{own.digest[:12]}; write the shards again with `rewarm shard --tokenizer "
                f"{directory}`"
            )


def _from_hub(name: str, revision: str | None, *, weights: bool) -> Path:
    if not _HUB_NAME.fullmatch(name):
        raise CheckpointError(f"{name}: no such folder, and not a hub name (owner/model)")
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    # Its warnings about every retry end in the one error below.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)

    try:
        if not weights:
            return Path(hf_hub_download(name, "config.json", revision=revision)).parent
        wanted = ["*.json", "*.safetensors", "tokenizer*"]
        directory = Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
        if not any((directory / file).exists() for file in SAFETENSORS):
            # Early Pythia revisions were published as pytorch_model.bin only.
            wanted = ["*.json", "pytorch_model*.bin", "tokenizer*"]
            directory = Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        at = f" at revision {revision}" if revision else ""
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{name}{at}: no such folder here, and the hub did not give it: {reason}; check the "
            "name and the network, or fetch the model first and name its folder"
        ) from None
    return directory
