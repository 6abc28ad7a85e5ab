"""Loads tokenizers, and checks that shards and models use the same one.

Two tokenizers are the same if they have the same vocabulary and merges, even if their files differ.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rewarm.data.shard_format import ShardIndex, TokenizerInfo
from rewarm.errors import CheckpointError, DataError
from rewarm.model.architecture import Architecture
from rewarm.safe_loading import parse_json, read_json, read_limited

if TYPE_CHECKING:
    import tokenizers

_USUAL_EOS_TOKENS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>")
_MAX_BYTES = 100_000_000
_MAX_ID = 2**24 - 1
_OTHER_FORMATS = ("vocab.json", "vocab.txt", "*.model")
"""Files of a folder from which transformers may build a tokenizer, if it has no tokenizer.json."""

_logger = logging.getLogger(__name__)


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
    path = Path(name)
    if path.is_dir():
        encoder, configured_eos = _load_from_folder(path)
    elif path.is_file() and path.name == "tokenizer.json":  # the same as its folder
        encoder, configured_eos = _load_from_folder(path.parent)
    elif path.is_file():
        encoder, configured_eos = _load_file(path), None
    else:
        encoder, configured_eos = _load_from_hub(name)
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
        return (configured_eos, *_USUAL_EOS_TOKENS)
    return _USUAL_EOS_TOKENS


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


def _check_ids(document: Any) -> None:
    """Checks that all token ids are small, since tokenizers allocates memory up to the highest.

    Raises:
        ValueError: an id is too large, or the document is not an object.
    """
    if not isinstance(document, dict):
        raise ValueError("should be a JSON object")
    model, added = document.get("model"), document.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    ids += [token.get("id") for token in added or [] if isinstance(token, dict)]
    if any(isinstance(token_id, int) and token_id > _MAX_ID for token_id in ids):
        raise ValueError(f"an id is above {_MAX_ID:,}")


def _load_file(file: Path) -> tokenizers.Tokenizer:
    """Returns the tokenizer in a tokenizer.json."""
    import tokenizers

    try:
        data = read_limited(file, _MAX_BYTES)
        _check_ids(parse_json(data))
        return tokenizers.Tokenizer.from_buffer(data)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tokenizers raises bare Exception, and PanicException
        raise DataError(
            f"{file}: not a tokenizer that can be read: {error}; download it again"
        ) from None


def _load_from_folder(folder: Path) -> tuple[tokenizers.Tokenizer, Any]:
    """Returns the tokenizer in a folder, and the end-of-text token configured there."""
    file, config = folder / "tokenizer.json", folder / "tokenizer_config.json"
    try:
        settings = read_json(config) if config.exists() else {}
        configured_eos = settings.get("eos_token")
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{config}: cannot be read: {error}; download it again") from None
    if file.is_file():
        return _load_file(file), configured_eos
    found = [path.name for pattern in _OTHER_FORMATS for path in folder.glob(pattern)]
    if not found:
        raise DataError(f"{folder}: no tokenizer.json in this folder")
    return _convert(folder, sorted(found)), configured_eos


def _convert(folder: Path, found: list[str]) -> tokenizers.Tokenizer:
    """Returns the tokenizer that transformers builds from other files than a tokenizer.json."""
    from transformers import AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    try:
        converted = AutoTokenizer.from_pretrained(folder.absolute(), local_files_only=True)
        encoder: tokenizers.Tokenizer = converted.backend_tokenizer
        _check_ids(tokenizer_document(encoder))
    except Exception as error:  # transformers can raise anything
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(
            f"{folder}: no tokenizer.json, only {', '.join(found)}, which transformers cannot "
            f"convert: {reason}; where sentencepiece and protobuf are installed, try: python -c "
            "'import sys; from transformers import AutoTokenizer as T; "
            f"T.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[1])' {folder}"
        ) from None
    _logger.warning(
        "warning: %s: no tokenizer.json; %s converted by transformers' %s",
        *(folder, ", ".join(found), type(converted).__name__),
    )
    return encoder


def _load_from_hub(name: str) -> tuple[tokenizers.Tokenizer, Any]:
    """Downloads a tokenizer, and returns the same as `_load_from_folder`."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", name) or name.endswith(".json"):
        raise DataError(f"{name}: no such file; expected a tokenizer.json, a folder, or a hub name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(name, allow_patterns=["tokenizer*.json"])
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(
            f"{name}: no such file or folder, and not available on the hub: {reason}"
        ) from None
    return _load_from_folder(Path(folder))


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
            f"{architecture.positions:,} positions; set data.context lower"
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
