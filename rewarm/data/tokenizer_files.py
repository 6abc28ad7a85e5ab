"""Reads tokenizers from a tokenizer.json, from the hub, or from files of other formats."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewarm.errors import DataError
from rewarm.safe_loading import parse_json, read_json, read_limited

if TYPE_CHECKING:
    import tokenizers

USUAL_EOS_TOKENS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>")

_MAX_BYTES = 100_000_000
_MAX_ID = 2**24 - 1
_OTHER_FORMATS = ("vocab.json", "vocab.txt", "*.model")
"""Files of a folder from which a tokenizer may be built, if it has no tokenizer.json."""

_logger = logging.getLogger(__name__)


def read_tokenizer(name: str) -> tuple[tokenizers.Tokenizer, Any]:
    """Returns a tokenizer, and the end-of-text token that its tokenizer_config.json states.

    Args:
        name: a tokenizer.json, a folder that contains one, or a hub name.

    Raises:
        DataError: the tokenizer cannot be found, read or converted.
    """
    path = Path(name)
    if path.is_dir():
        return _load_from_folder(path)
    if path.is_file() and path.name == "tokenizer.json":  # the same as its folder
        return _load_from_folder(path.parent)
    if path.is_file():
        return _load_file(path), None
    return _load_from_hub(name)


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
        configured_eos, class_name = settings.get("eos_token"), settings.get("tokenizer_class")
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{config}: cannot be read: {error}; download it again") from None
    if file.is_file():
        return _load_file(file), configured_eos
    files = sorted(path.name for pattern in _OTHER_FORMATS for path in folder.glob(pattern))
    if not files:
        raise DataError(f"{folder}: no tokenizer.json in this folder")
    has_class = bool(class_name) or (folder / "config.json").exists()
    if not has_class and (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        return _convert_byte_level_bpe(folder), configured_eos
    return _convert(folder, files), configured_eos


def _convert_byte_level_bpe(folder: Path) -> tokenizers.Tokenizer:
    """Returns the tokenizer that vocab.json and merges.txt are of, if it is of GPT-2's kind."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary_file, merges_file = folder / "vocab.json", folder / "merges.txt"
    try:
        vocabulary = read_json(vocabulary_file, _MAX_BYTES)
        _check_ids({"model": {"vocab": vocabulary}})
        if not read_limited(merges_file, _MAX_BYTES).startswith(b"#version"):
            raise ValueError("merges.txt does not begin with #version, as GPT-2's does")
        if not all(map(vocabulary.__contains__, pre_tokenizers.ByteLevel.alphabet())):
            raise ValueError("vocab.json does not contain all characters for bytes, as GPT-2's")
        encoder = Tokenizer(models.BPE.from_file(str(vocabulary_file), str(merges_file)))
    except Exception as error:  # of tokenizers
        raise _unconvertible(folder, ["merges.txt", "vocab.json"], str(error)) from None
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.decoder = decoders.ByteLevel()
    encoder.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token in USUAL_EOS_TOKENS
            if token in vocabulary
        ]
    )
    _logger.warning(
        "warning: %s: no tokenizer.json; vocab.json and merges.txt read as GPT-2's byte-level BPE; "
        "if they are of another kind, name its class in tokenizer_config.json",
        folder,
    )
    return encoder


def _convert(folder: Path, files: list[str]) -> tokenizers.Tokenizer:
    """Returns the tokenizer that transformers builds from other files than a tokenizer.json."""
    from transformers import AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    try:
        converted = AutoTokenizer.from_pretrained(folder.absolute(), local_files_only=True)
        encoder: tokenizers.Tokenizer = converted.backend_tokenizer
        _check_ids({"model": {"vocab": encoder.get_vocab(with_added_tokens=True)}})
    except Exception as error:  # transformers can raise anything
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise _unconvertible(folder, files, f"transformers cannot convert it: {reason}") from None
    _logger.warning(
        "warning: %s: no tokenizer.json; %s converted by transformers' %s",
        *(folder, ", ".join(files), type(converted).__name__),
    )
    return encoder


def _unconvertible(folder: Path, files: list[str], reason: str) -> DataError:
    """Returns the error about files that no tokenizer was built from, with what to try."""
    from transformers.utils import is_sentencepiece_available

    models = [folder / name for name in files if name.endswith(".model")]
    for model in models:
        if not _is_sentencepiece_model(model):
            return DataError(
                f"{model}: damaged, or no sentencepiece model; download it again, or use its "
                "tokenizer.json"
            )
    if models and not is_sentencepiece_available():
        return DataError(
            f"{folder}: no tokenizer.json, and converting {', '.join(files)} needs sentencepiece: "
            "pip install sentencepiece protobuf, then repeat this command"
        )
    return DataError(
        f"{folder}: no tokenizer.json, only {', '.join(files)}: {reason}; name the tokenizer's "
        'class in tokenizer_config.json, such as {"tokenizer_class": "GPT2Tokenizer"}, or use its '
        "tokenizer.json"
    )


def _is_sentencepiece_model(path: Path) -> bool:
    """Returns whether a file consists of complete messages (protobuf): pieces, and how trained."""
    try:
        data = read_limited(path, _MAX_BYTES)
        position = 0
        fields = set[int]()
        while position < len(data):
            key, position = _read_varint(data, position)
            if key & 7 != 2:  # neither a message nor a string
                return False
            fields.add(key >> 3)
            length, position = _read_varint(data, position)
            position += length
    except (OSError, ValueError, IndexError):
        return False
    return position == len(data) and {1, 2} <= fields  # pieces, trainer_spec


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Returns an integer of protobuf and the position after it."""
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


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
