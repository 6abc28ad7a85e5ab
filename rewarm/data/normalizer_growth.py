"""Finds out whether a tokenizer's normalizer makes texts longer without end.

Each step of a normalizer may replace a character by several, and the next step each of those: 30
steps that double a character make it a billion long. The steps are tried one by one on short texts,
each only if its result cannot be too long.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from rewarm.errors import DataError

_MAX_GROWTH = 32
"""How many times longer a text may become; its offsets take up 16 bytes for each byte."""
_MAX_ADDED = 2000
"""Characters that may be added to any text: a prefix."""
_MAX_LENGTH = 10_000_000
"""Characters that a step may make of a text that it is tried on."""
_GROWTH_OF_KINDS = {"NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18, "Lowercase": 3, "ByteLevel": 4}
"""How many characters such a step may make of one; the last as bytes, the others by Unicode."""
_PRINTABLE = [chr(code) for code in range(32, 127)]
_MAX_TRIED = 300
_REPEATED = 64


def check_normalizer(normalizer: dict[str, Any] | None) -> None:
    """Checks that a normalizer does not make texts much longer.

    Args:
        normalizer: that of a tokenizer.json.

    Raises:
        DataError: it makes one of some short texts more than 32 times longer.
    """
    steps = list(_steps(normalizer))
    bound = 1
    for step in steps:
        bound *= _most_growth(step)
    if bound <= _MAX_GROWTH:
        return
    replaced = [text for step in steps for text in _texts_of(step)][:_MAX_TRIED]
    for tried in [*replaced, *_PRINTABLE]:
        text = tried * _REPEATED
        if (length := _length_after(steps, text)) > _longest(text):
            raise DataError(
                f"the tokenizer's normalizer makes {length:,} characters or more of the "
                f"{len(text):,} in {tried[:20]!r} × {_REPEATED}; "
                "its steps expand each other's results: use another tokenizer, or remove them "
                "from its tokenizer.json"
            )


def _steps(normalizer: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Yields the steps of a normalizer, also of sequences in sequences."""
    if normalizer is None:
        return
    if normalizer["type"] == "Sequence":
        for step in normalizer["normalizers"]:
            yield from _steps(step)
    else:
        yield normalizer


def _most_growth(step: dict[str, Any]) -> int:
    """Returns an upper bound on how many characters a step makes of one."""
    match step["type"]:
        case "Replace":
            inserted = len(step["content"])
            if replaced := len(step["pattern"].get("String", "")):
                return max(1, -(-inserted // replaced))
            return 1 + inserted  # a regular expression may match the empty text at each character
        case "Prepend":
            return 1 + len(step["prepend"])
        case kind:
            return _GROWTH_OF_KINDS.get(kind, 1)


def _texts_of(step: dict[str, Any]) -> list[str]:
    """Returns the texts that a step replaces and inserts."""
    pattern = step.get("pattern", {})
    texts = [pattern.get("String"), pattern.get("Regex"), step.get("content"), step.get("prepend")]
    return [text[:100] for text in texts if text]


def _longest(text: str) -> int:
    """Returns how long a text may become."""
    return _MAX_GROWTH * len(text) + _MAX_ADDED


def _length_after(steps: list[dict[str, Any]], text: str) -> int:
    """Returns how long a text is after all steps; of one that grows too much, a lower bound."""
    from tokenizers import Tokenizer

    empty_model = {"type": "BPE", "vocab": {}, "merges": []}
    longest = _longest(text)
    for step in steps:
        if len(text) * _most_growth(step) > _MAX_LENGTH:
            return max(len(text), longest + 1)
        document = {"version": "1.0", "added_tokens": [], "normalizer": step, "model": empty_model}
        text = Tokenizer.from_str(json.dumps(document)).normalizer.normalize_str(text)
        if len(text) > longest:
            break
    return len(text)
