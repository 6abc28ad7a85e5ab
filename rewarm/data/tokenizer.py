"""Loads tokenizers, and checks that shards and models use the same one.

Two tokenizers are the same if they have the same vocabulary and merges, even if their files differ.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rewarm.data.shard_format import ShardIndex, TokenizerInfo
from rewarm.data.tokenizer_files import USUAL_EOS_TOKENS, read_tokenizer
from rewarm.errors import CheckpointError, DataError
from rewarm.model.architecture import Architecture

if TYPE_CHECKING:
    import tokenizers


class Tokenizer(NamedTuple):
    """A tokenizer, and the values that identify it in shards and checkpoints."""

    encoder: tokenizers.Tokenizer
    digest: str
    """sha256 over vocabulary and merges, independent of how the file is formatted."""
    vocabulary: int
    """Highest token id + 1."""
    eos_token_id: int
    eos_token: str


def load_tokenizer(name: str, eos_token: str | None = None) -> Tokenizer:
    """Returns the tokenizer at a path or of a hub name.

    Args:
        name: a tokenizer.json, a folder that contains one, or a hub name.
        eos_token: the end-of-text token; by default the one in tokenizer_config.json, or the first
            usual one that is in the vocabulary.

    Raises:
        DataError: the tokenizer cannot be found or read, or has no end-of-text token.
    """
    encoder, configured_eos = read_tokenizer(name)
    encoder.no_truncation()
    encoder.no_padding()
    vocabulary = encoder.get_vocab(with_added_tokens=True)
    candidates = (eos_token,) if eos_token else _eos_candidates(configured_eos)
    eos_token = next((token for token in candidates if token in vocabulary), None)
    if eos_token is None:
        raise DataError(
            f"{name}: no end-of-text token among its {len(vocabulary):,} entries "
            f"(looked for {', '.join(candidates)}); name it with --eos"
        )
    return Tokenizer(
        encoder,
        digest=tokenizer_digest(encoder),
        vocabulary=max(vocabulary.values()) + 1,
        eos_token_id=vocabulary[eos_token],
        eos_token=eos_token,
    )


def _eos_candidates(configured_eos: Any) -> tuple[str, ...]:
    """Returns the end-of-text token in tokenizer_config.json, if any, and then the usual ones."""
    if isinstance(configured_eos, dict):  # older files store the token as an object
        configured_eos = configured_eos.get("content")
    if isinstance(configured_eos, str):
        return (configured_eos, *USUAL_EOS_TOKENS)
    return USUAL_EOS_TOKENS


def tokenizer_digest(encoder: tokenizers.Tokenizer) -> str:
    """Returns the sha256 of a tokenizer's vocabulary, by id, and its merges, in order."""
    model = tokenizer_document(encoder).get("model", {})
    merges = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges") or []]
    entries = sorted(encoder.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    text = json.dumps([entries, merges], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def tokenizer_document(encoder: tokenizers.Tokenizer) -> dict[str, Any]:
    """Returns what a tokenizer's tokenizer.json contains."""
    document: dict[str, Any] = json.loads(encoder.to_str())
    return document


def document_digest(encoder: tokenizers.Tokenizer) -> str:
    """Returns the sha256 of all that decides how texts are encoded.

    Unlike `tokenizer_digest` it covers the normalizer, the pre-tokenizer and the flags of added
    tokens; another version of the tokenizers library may write the same tokenizer differently.
    """
    return hashlib.sha256(encoder.to_str().encode()).hexdigest()


def check_same_tokenizer(indices: dict[str, ShardIndex]) -> None:
    """Checks that all shard folders of a run were written with the same tokenizer.

    Args:
        indices: the index of each shard folder, keyed by the name that error messages use.

    Raises:
        DataError: two of them were written with different tokenizers.
    """
    (first, first_index), *others = indices.items()
    expected = first_index.tokenizer
    for folder, index in others:
        actual = index.tokenizer
        if (actual.digest, actual.eos) != (expected.digest, expected.eos):
            raise DataError(
                f"{folder}: written with a different tokenizer than {first}: "
                f"{actual.vocabulary:,} entries, end-of-text {actual.eos_token!r} = {actual.eos}, "
                f"digest {actual.digest[:12]}, against {expected.vocabulary:,}, "
                f"{expected.eos_token!r} = {expected.eos}, {expected.digest[:12]}; write one of "
                "them again with `rewarm shard --tokenizer`"
            )


def check_model_matches_shards(
    architecture: Architecture,
    model_directory: Path | None,
    tokenizer_info: TokenizerInfo,
    shards: str,
    context: int,
) -> None:
    """Checks that a model can be trained or evaluated on a shard folder at a context length.

    Args:
        architecture: architecture of the model.
        model_directory: directory of the model; if it contains a tokenizer, the shards must have
            been written with the same one.
        tokenizer_info: the tokenizer that the shards were written with.
        shards: the shard folder, as error messages name it.
        context: tokens in a sequence.

    Raises:
        CheckpointError: the vocabulary, the context or the tokenizer does not match.
    """
    check_vocabulary_fits(architecture, tokenizer_info, shards)
    check_context_fits(architecture, context)
    if model_directory:
        check_tokenizer_matches(model_directory, tokenizer_info, shards)


def check_vocabulary_fits(
    architecture: Architecture, tokenizer_info: TokenizerInfo, shards: str
) -> None:
    """Checks that the model has an embedding row for each entry of the shards' tokenizer.

    Raises:
        CheckpointError: the model has fewer rows.
    """
    if tokenizer_info.vocabulary > architecture.vocabulary:
        raise CheckpointError(
            f"{shards}: its tokenizer has {tokenizer_info.vocabulary:,} entries, and the model "
            f"only {architecture.vocabulary:,} embedding rows; shard with the model's own tokenizer"
        )


def check_context_fits(architecture: Architecture, context: int) -> None:
    """Checks that the context is not longer than the model's number of positions.

    Raises:
        CheckpointError: the context is longer.
    """
    if context > architecture.positions:
        raise CheckpointError(
            f"a context of {context:,} tokens is longer than the model's "
            f"{architecture.positions:,} positions; set data.context (eval: --context) lower"
        )


def check_tokenizer_matches(
    model_directory: Path, tokenizer_info: TokenizerInfo, shards: str
) -> None:
    """Checks that shards were written with the tokenizer in a model's directory, if any.

    Raises:
        CheckpointError: the shards were written with a different tokenizer.
        DataError: the model's tokenizer cannot be read.
    """
    if not (model_directory / "tokenizer.json").is_file():
        return
    model_tokenizer = load_tokenizer(str(model_directory), tokenizer_info.eos_token)
    expected = (model_tokenizer.digest, model_tokenizer.eos_token_id)
    if (tokenizer_info.digest, tokenizer_info.eos) != expected:
        raise CheckpointError(
            f"{shards}: not written with the tokenizer of {model_directory}: "
            f"{tokenizer_info.vocabulary:,} entries, digest {tokenizer_info.digest[:12]}, against "
            f"{model_tokenizer.vocabulary:,}, {model_tokenizer.digest[:12]}; write the shards "
            f"again with `rewarm shard --tokenizer {model_directory}`"
        )
