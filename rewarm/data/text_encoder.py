"""Encodes texts with a tokenizer, so that nothing in a text is left out, and no error is a panic.

Special tokens in a text, such as `<|endoftext|>`, are encoded as text, and counted. Refused are
tokenizers that give other tokens each time (BPE dropout) or expand text without end, and texts that
a tokenizer cannot encode, or only without some of their characters.
"""

from __future__ import annotations

from collections import Counter
from threading import Lock
from typing import Any

from rewarm.data.normalizer_growth import check_normalizer
from rewarm.data.tokenizer import Tokenizer, tokenizer_document
from rewarm.errors import DataError

_SHOWN = 40
"""Characters of a text in an error message."""
_UNKNOWN_TOKEN = ("unk", "UNK")
_ADVICE = "use a byte-level tokenizer, or add an unknown token to its vocabulary (model.unk_token)"


class TextEncoder:
    """Encodes texts, and counts the special tokens in them; several threads may share it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Checks the tokenizer.

        Raises:
            DataError: it gives other tokens each time, or expands text without end.
        """
        from tokenizers import Tokenizer as Encoder

        self._encoder = Encoder.from_str(tokenizer.encoder.to_str())
        self._encoder.encode_special_tokens = True
        self._eos_token, self._eos_token_id = tokenizer.eos_token, tokenizer.eos_token_id
        document = tokenizer_document(self._encoder)
        _check_dropout(document["model"])
        check_normalizer(document["normalizer"])
        self._special_tokens = _by_prefix(
            [token["content"] for token in document["added_tokens"] if token["special"]]
        )
        self._counting = Lock()
        self.special_tokens = Counter[str]()
        """How often the texts contain each special token, which is encoded as text."""
        self.end_of_text_tokens = 0
        """How often that was not possible: `</s>` is also an ordinary entry of the vocabulary."""
        self._dropped = _DroppedCharacters(tokenizer, document) if _may_drop(document) else None

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Returns the token ids of each text, without end-of-text; uses all cores.

        Raises:
            DataError: the tokenizer cannot encode one of the texts, or leaves out characters.
        """
        if self._dropped:
            self._dropped.check(texts)
        try:
            encodings = self._encoder.encode_batch_fast(texts, add_special_tokens=False)
        except BaseException as error:
            raise self._error(texts, error) from None
        ids: list[list[int]] = [encoding.ids for encoding in encodings]
        with self._counting:
            for text, tokens in zip(texts, ids, strict=True):
                self._count_special_tokens(text)
                if self._eos_token in text:
                    self.end_of_text_tokens += tokens.count(self._eos_token_id)
        return ids

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
        # A panic is also printed by the library: not twice if there is only one text.
        text = texts[0] if len(texts) == 1 else next(filter(self._fails, texts), texts[0])
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
    from tokenizers.pre_tokenizers import ByteLevel

    model = document["model"]
    vocabulary = model["vocab"]
    if model["type"] != "BPE" or model.get("unk_token") is not None:
        return False
    if model.get("byte_fallback") and all(map(vocabulary.__contains__, map(_byte, range(256)))):
        return False
    is_byte_level = "'type': 'ByteLevel'" in str(
        [document["pre_tokenizer"], document["normalizer"]]
    )
    return not (is_byte_level and all(map(vocabulary.__contains__, ByteLevel.alphabet())))


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
