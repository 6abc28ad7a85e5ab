"""Encodes texts with a tokenizer, so that nothing in a text is left out, and no error is a panic.

Special tokens in a text, such as `<|endoftext|>`, are encoded as text, and counted. Refused are
tokenizers that give other tokens each time (BPE dropout) or expand text without end, and texts that
a tokenizer cannot encode, or only without some of their characters.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from tempfile import TemporaryFile
from threading import Lock
from typing import TYPE_CHECKING, Any

from rewarm.data.normalizer_growth import check_normalizer
from rewarm.data.text_pieces import can_cut_texts
from rewarm.data.tokenizer import Tokenizer, tokenizer_document
from rewarm.errors import DataError

if TYPE_CHECKING:
    import tokenizers

_SHOWN = 40
"""Characters of a text in an error message."""
_STANDARD_ERROR = Lock()
_UNKNOWN_TOKEN = ("unk", "UNK")
_ADVICE = "use a byte-level tokenizer, or add an unknown token to its vocabulary (model.unk_token)"


class TextEncoder:
    """Encodes texts, and counts the special tokens in them; several threads may share it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Checks the tokenizer.

        Raises:
            DataError: it gives other tokens each time, or expands text without end.
        """
        self._joined_encoder = tokenizer.encoder
        self._eos_token, self._eos_token_id = tokenizer.eos_token, tokenizer.eos_token_id
        document = tokenizer_document(self._joined_encoder)
        self.can_cut_texts = can_cut_texts(document)
        """Whether the pieces that `cut_text` yields have the token ids of the text."""
        _check_dropout(document["model"])
        check_normalizer(document["normalizer"])
        special_tokens = [t["content"] for t in document["added_tokens"] if t["special"]]
        self._special_tokens = _by_prefix(special_tokens)
        self._counting = Lock()
        self.special_tokens = Counter[str]()
        """How often the texts contain each special token, which is encoded as text."""
        self.end_of_text_tokens = 0
        """How often that was not possible: `</s>` is also an ordinary entry of the vocabulary."""
        self._dropped = _DroppedCharacters(tokenizer, document) if _may_drop(document) else None
        self._may_panic = '"Regex"' in json.dumps(
            [document["pre_tokenizer"], document["normalizer"]]
        )
        self.can_join = (
            self.can_cut_texts and self._dropped is None and self._eos_token in special_tokens
        )
        """Whether `encode_joined` may be used."""

    @cached_property
    def _encoder(self) -> tokenizers.Tokenizer:
        """The tokenizer that encodes special tokens as text."""
        from tokenizers import Tokenizer as Encoder

        encoder = Encoder.from_str(self._joined_encoder.to_str())
        encoder.encode_special_tokens = True
        return encoder

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Returns the token ids of each text, without end-of-text; uses all cores.

        Raises:
            DataError: the tokenizer cannot encode one of the texts, or leaves out characters.
        """
        if self._dropped:
            self._dropped.check(texts)
        encodings = self._encode_batch(self._encoder, texts)
        ids: list[list[int]] = [encoding.ids for encoding in encodings]
        with self._counting:
            for text, tokens in zip(texts, ids, strict=True):
                self._count_special_tokens(text)
                if self._eos_token in text:
                    self.end_of_text_tokens += tokens.count(self._eos_token_id)
        return ids

    def encode_joined(self, texts: list[str]) -> list[list[int]]:
        """Returns the token ids of texts in which end-of-text stands for the token of this name.

        They contain no other special token.

        Raises:
            DataError: the tokenizer cannot encode one of the texts.
        """
        return [encoding.ids for encoding in self._encode_batch(self._joined_encoder, texts)]

    def has_special_token(self, text: str) -> bool:
        """Returns whether a text contains a special token, such as `<|endoftext|>`."""
        for prefix, tokens in self._special_tokens.items():
            if prefix in text and any(token in text for token in tokens):
                return True
        return False

    def _encode_batch(
        self, encoder: tokenizers.Tokenizer, texts: list[str]
    ) -> list[tokenizers.Encoding]:
        with _without_panics() if self._may_panic else nullcontext():
            try:
                return encoder.encode_batch_fast(texts, add_special_tokens=False)
            except BaseException as error:
                raise self._error(texts, error) from None

    def _count_special_tokens(self, text: str) -> None:
        for prefix, tokens in self._special_tokens.items():
            if prefix in text:
                for token in tokens:
                    if count := text.count(token):
                        self.special_tokens[token] += count

    def _error(self, texts: list[str], error: BaseException) -> BaseException:
        """Returns the error to raise: about the first of the texts that cannot be encoded."""
        if not _is_from_tokenizers(error):
            return error
        text = next(filter(self._fails, texts), texts[0])
        advice = "use another tokenizer, or leave this document out"
        if any(word in str(error) for word in _UNKNOWN_TOKEN):
            advice = _ADVICE
        elif "Regex" in str(error):
            advice = (
                "a pattern in its pre-tokenizer or normalizer takes too long on it; use another "
                "tokenizer, or leave this document out"
            )
        return DataError(
            f"a document cannot be encoded with this tokenizer: {error}; {_beginning(text)}; "
            f"{advice}"
        )

    def _fails(self, text: str) -> bool:
        try:
            self._encoder.encode_batch_fast([text], add_special_tokens=False)
        except BaseException as error:
            if _is_from_tokenizers(error):
                return True
            raise
        return False


@contextmanager
def _without_panics() -> Iterator[None]:
    """Withholds the stack trace that the library writes to the standard error itself, if it panics.

    Of anything else that is written meanwhile, such as a progress bar, only the time changes.
    """
    with _STANDARD_ERROR, TemporaryFile() as file:
        standard_error = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(standard_error, 2)
            os.close(standard_error)
            file.seek(0)
            written = file.read()
            if b"panicked at" not in written:
                os.write(2, written)


def _is_from_tokenizers(error: BaseException) -> bool:
    """Returns whether an error is one of the library, which raises also PanicException."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _beginning(text: str) -> str:
    return f"the document begins with {text[:_SHOWN]!r}"


def _check_dropout(model: dict[str, Any]) -> None:
    if model.get("dropout"):
        raise DataError(
            f"the tokenizer has a BPE dropout of {model['dropout']:g}: it gives other tokens for "
            "the same text each time; set model.dropout to null in its tokenizer.json"
        )


def _by_prefix(tokens: list[str]) -> dict[str, list[str]]:
    """Returns tokens by their first two characters.

    So a text is searched for a few prefixes, and not for each of hundreds of special tokens.
    """
    groups: dict[str, list[str]] = {}
    for token in filter(None, tokens):
        groups.setdefault(token[:2], []).append(token)
    return groups


def _may_drop(document: dict[str, Any]) -> bool:
    """Returns whether a tokenizer may leave out characters that are not in its vocabulary.

    Other models than BPE fail without an unknown token.
    """
    model = document["model"]
    vocabulary = model["vocab"]
    if model["type"] != "BPE" or model.get("unk_token") is not None:
        return False
    if model.get("byte_fallback") and all(map(vocabulary.__contains__, map(_byte, range(256)))):
        return False
    is_byte_level = "'type': 'ByteLevel'" in str(
        [document["pre_tokenizer"], document["normalizer"]]
    )
    return not (is_byte_level and all(map(vocabulary.__contains__, _utf8_alphabet())))


def _utf8_alphabet() -> set[str]:
    """Returns the characters that stand for the 243 bytes of UTF-8 in a byte-level vocabulary.

    13 bytes occur in no text, and that of GPT-NeoX does not have them.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    # Every byte of UTF-8 is in that of one of these.
    characters = map(chr, [*range(0xD800), *range(0xE000, 0x110000, 0x1000)])
    byte_level = ByteLevel(add_prefix_space=False, use_regex=False)
    return set().union(*(piece for piece, _ in byte_level.pre_tokenize_str("".join(characters))))


def _byte(value: int) -> str:
    """Returns the token that stands for a byte (byte fallback)."""
    return f"<0x{value:02X}>"


class _DroppedCharacters:
    """Finds characters that a BPE model without an unknown token would leave out."""

    def __init__(self, tokenizer: Tokenizer, document: dict[str, Any]) -> None:
        model = document["model"]
        self._encoder = tokenizer.encoder
        self._vocabulary = model["vocab"]
        self._has_byte_fallback = bool(model.get("byte_fallback"))
        self._prefixes = {"", model.get("continuing_subword_prefix") or ""}
        self._suffixes = {"", model.get("end_of_word_suffix") or ""}
        self._known: set[str] = set()

    def check(self, texts: list[str]) -> None:
        """Checks that each character of the texts can be encoded.

        Raises:
            DataError: one would be left out.
        """
        for character in sorted(set[str]().union(*texts) - self._known):
            if self._is_dropped(character):
                text = next(text for text in texts if character in text)
                raise DataError(
                    f"the tokenizer would leave out {character!r} (U+{ord(character):04X}): it is "
                    f"not in its vocabulary, and there is no unknown token; {_beginning(text)}; "
                    f"{_ADVICE}"
                )
            self._known.add(character)

    def _is_dropped(self, character: str) -> bool:
        normalizer, pre_tokenizer = self._encoder.normalizer, self._encoder.pre_tokenizer
        text = normalizer.normalize_str(character) if normalizer else character
        pieces = pre_tokenizer.pre_tokenize_str(text) if pre_tokenizer else [(text, None)]
        return not all(map(self._is_in_vocabulary, set("".join(piece for piece, _ in pieces))))

    def _is_in_vocabulary(self, character: str) -> bool:
        if self._has_byte_fallback and all(
            _byte(value) in self._vocabulary for value in character.encode()
        ):
            return True
        return any(
            prefix + character + suffix in self._vocabulary
            for prefix in self._prefixes
            for suffix in self._suffixes
        )
