"""Finds a tokenizer, and tells whether two are the same: by vocabulary and merges, not by file."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rewarm.data.shard_format import ShardIndex
from rewarm.errors import DataError
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
    """Makes sure that all shard folders speak of the same tokens.

    Raises:
        DataError: two were written with different tokenizers.
    """
    (first, one), *others = indices.items()
    for folder, other in others:
        a, b = one.tokenizer, other.tokenizer
        if (a.digest, a.eos) != (b.digest, b.eos):
            raise DataError(
                f"{folder}: written with another tokenizer than {first}: "
                f"{b.vocabulary:,} entries, end-of-text {b.eos_token!r} = {b.eos}, digest "
                f"{b.digest[:12]}, against {a.vocabulary:,}, {a.eos_token!r} = {a.eos}, "
                f"{a.digest[:12]}; write one of them again with `rewarm shard --tokenizer`"
            )
