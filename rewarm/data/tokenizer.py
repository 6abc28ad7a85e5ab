"""Finds a tokenizer, and tells whether two are the same: by vocabulary and merges, not by file."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rewarm.data.shard_format import ShardIndex, TokenizerInfo
from rewarm.errors import CheckpointError, DataError
from rewarm.model.architecture import Architecture
from rewarm.safe_loading import parse_json, read_bytes, read_json

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>")
_MAX_BYTES = 100_000_000
_MOST_IDS = 2**24


class Tokenizer(NamedTuple):
    """A tokenizer and the facts that shards and checkpoints must agree on."""

    encoder: tokenizers.Tokenizer
    digest: str
    """sha256 over vocabulary and merges; the same for every spelling of one tokenizer."""
    vocabulary: int
    """Highest token id + 1."""
    eos: int
    eos_token: str


def load_tokenizer(name: str, eos: str | None = None) -> Tokenizer:
    """Returns the tokenizer behind a `tokenizer.json`, a local folder, or a hub name.

    Args:
        name: where it is.
        eos: the end-of-text token; found by itself where the tokenizer says or the name is usual.

    Raises:
        DataError: it cannot be found or read, or has no end-of-text token.
    """
    import tokenizers

    path = Path(name)
    configured: Any = None
    if path.is_file():
        file = path
    else:
        file, configured = _in_folder(name) if path.is_dir() else _on_hub(name)
    try:
        data = read_bytes(file, _MAX_BYTES)
        _insist_on_ids(parse_json(data))
        encoder = tokenizers.Tokenizer.from_buffer(data)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tokenizers raises bare Exception, and panics beside it
        raise DataError(
            f"{file}: not a tokenizer that can be read: {error}; fetch it again"
        ) from None
    encoder.no_truncation()
    encoder.no_padding()
    words = encoder.get_vocab(with_added_tokens=True)
    if isinstance(configured, dict):  # older files spell the token as an object
        configured = configured.get("content")
    usual = (configured, *END_OF_TEXT) if isinstance(configured, str) else END_OF_TEXT
    choices = (eos,) if eos else usual
    chosen = next((token for token in choices if token in words), None)
    if chosen is None:
        raise DataError(
            f"{name}: no end-of-text token among its {len(words):,} entries "
            f"(looked for {', '.join(choices)}); name it with --eos"
        )
    return Tokenizer(
        encoder, tokenizer_digest(encoder), max(words.values()) + 1, words[chosen], chosen
    )


def tokenizer_digest(encoder: tokenizers.Tokenizer) -> str:
    """Returns the sha256 of a tokenizer's vocabulary, by id, and its merges, in order."""
    model = json.loads(encoder.to_str()).get("model", {})
    merges = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges") or []]
    words = sorted(encoder.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    said = json.dumps([words, merges], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(said.encode()).hexdigest()


def _insist_on_ids(said: Any) -> None:
    """Makes sure that ids are small: tokenizers sets memory aside for every id below the highest.

    Raises:
        ValueError: they are not, or it is not an object.
    """
    if not isinstance(said, dict):
        raise ValueError("should be a JSON object")
    model, added = said.get("model"), said.get("added_tokens")
    words = model.get("vocab") if isinstance(model, dict) else None
    ids = list(words.values()) if isinstance(words, dict) else []
    ids += [one.get("id") for one in added or [] if isinstance(one, dict)]
    if any(isinstance(one, int) and one >= _MOST_IDS for one in ids):
        raise ValueError(f"an id is not below {_MOST_IDS:,}")


def _in_folder(name: str) -> tuple[Path, Any]:
    folder = Path(name)
    file, config = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not file.is_file():
        raise DataError(f"{name}: no tokenizer.json in this folder")
    try:
        said = read_json(config) if config.exists() else {}
        return file, said.get("eos_token")
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{config}: cannot be read: {error}; fetch it again") from None


def _on_hub(name: str) -> tuple[Path, Any]:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", name) or name.endswith(".json"):
        raise DataError(f"{name}: no such file; wanted a tokenizer.json, a folder, or a hub name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return _in_folder(snapshot_download(name, allow_patterns=["tokenizer*.json"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(
            f"{name}: no such file or folder here, and the hub did not give it: {reason}"
        ) from None


def check_same_tokenizer(indices: dict[str, ShardIndex]) -> None:
    """Checks that all shard folders of a run were written with one tokenizer.

    Args:
        indices: the index of each shard folder, by the name that the error message shows.

    Raises:
        DataError: two of them were written with different tokenizers.
    """
    (first, first_index), *others = indices.items()
    expected = first_index.tokenizer
    for folder, index in others:
        actual = index.tokenizer
        if (actual.digest, actual.eos) != (expected.digest, expected.eos):
            raise DataError(
                f"{folder}: written with another tokenizer than {first}: "
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
        architecture: the model's.
        model_directory: the model's; its own tokenizer, if it has one, must be the shards'.
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
    """Checks that the model has an embedding row for every entry of the shards' tokenizer.

    Raises:
        CheckpointError: it has fewer rows.
    """
    if tokenizer_info.vocabulary > architecture.vocabulary:
        raise CheckpointError(
            f"{shards}: its tokenizer has {tokenizer_info.vocabulary:,} entries, and the model "
            f"only {architecture.vocabulary:,} embedding rows; shard with the model's own tokenizer"
        )


def check_context_fits(architecture: Architecture, context: int) -> None:
    """Checks that a context of so many tokens is within the model's positions.

    Raises:
        CheckpointError: it is longer.
    """
    if context > architecture.positions:
        raise CheckpointError(
            f"a context of {context:,} tokens is longer than the model's "
            f"{architecture.positions:,} positions; set data.context lower"
        )


def check_tokenizer_matches(
    model_directory: Path, tokenizer_info: TokenizerInfo, shards: str
) -> None:
    """Checks that a model's own tokenizer, if it has a tokenizer.json, is the shards'.

    Raises:
        CheckpointError: the shards were written with a different tokenizer.
        DataError: the model's tokenizer cannot be read.
    """
    if not (model_directory / "tokenizer.json").is_file():
        return
    own = load_tokenizer(str(model_directory), eos=tokenizer_info.eos_token)
    if (own.digest, own.eos) != (tokenizer_info.digest, tokenizer_info.eos):
        raise CheckpointError(
            f"{shards}: not written with the tokenizer of {model_directory}: "
            f"{tokenizer_info.vocabulary:,} entries, digest {tokenizer_info.digest[:12]}, against "
            f"{own.vocabulary:,}, {own.digest[:12]}; write the shards again with `rewarm shard "
            f"--tokenizer {model_directory}`"
        )
