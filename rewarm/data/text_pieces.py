r"""Cuts long texts where a tokenizer's token ids do not depend on it, to bound memory.

Tokenizing takes over 100 bytes of memory per byte of text. A byte-level BPE of GPT-2's kind, as
that of GPT-NeoX, first cuts a text by this pattern, and no token crosses a cut:

    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+

No match continues from a character that is not white space to one that is, nor from a letter or
digit to a comma. So a text may be cut before white space that follows such a character, and before
a comma that follows a letter. Unicode normalization does not join the two. Only characters are used
whose kind is the same in all versions of Unicode.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers

_LETTERS = "A-Za-z0-9\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3"
_POINTS = ",.;:!?+/=\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f"  # no apostrophe: 's is one match
_CUT = re.compile(rf"[!-~\w{_POINTS}](?=[ \n])|[{_LETTERS}](?=[{_POINTS}])")
_NORMALIZERS = {None, "NFC", "NFD", "NFKC", "NFKD"}


def can_cut_texts(encoder: tokenizers.Tokenizer) -> bool:
    """Returns whether a tokenizer gives the pieces of a text the same token ids as the text."""
    document = json.loads(encoder.to_str())
    pre_tokenizer, normalizer = document["pre_tokenizer"] or {}, document["normalizer"] or {}
    return (
        pre_tokenizer.get("type") == "ByteLevel"
        and pre_tokenizer.get("use_regex") is True
        and pre_tokenizer.get("add_prefix_space") is False
        and normalizer.get("type") in _NORMALIZERS
        and document["model"].get("type") == "BPE"
        and not document["model"].get("dropout")
        and not any(map(_may_cross_a_cut, document["added_tokens"]))
    )


def _may_cross_a_cut(added_token: dict[str, Any]) -> bool:
    if any(added_token.get(flag) for flag in ("lstrip", "rstrip", "single_word")):
        return True
    return bool(_CUT.search(added_token["content"]))


def cut_text(text: str, characters: int) -> Iterator[str]:
    """Yields the pieces of a text, each of at least `characters` except for the last one."""
    start = 0
    while len(text) - start > characters and (cut := _CUT.search(text, start + characters - 1)):
        yield text[start : cut.end()]
        start = cut.end()
    yield text[start:]
