r"""Cuts long texts where a tokenizer's token ids do not depend on it, to bound memory.

Tokenizing takes over 100 bytes of memory per byte of text. A byte-level BPE first cuts a text by a
pattern, and no token crosses a cut; that of GPT-2 and GPT-NeoX is

    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+

With it and those of `_PATTERNS`, a match that ends with a letter or a digit never continues with
white space or a comma. So a text may be cut between the two. Unicode normalization does not join
them. Only characters are used whose kind is the same in all versions of Unicode.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_LETTERS = "A-Za-z0-9\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3"
_POINTS = ",.;:!?+/=\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f"  # no apostrophe: 's is one match
_CUT = re.compile(rf"[{_LETTERS}](?=[ \n{_POINTS}])")
_NORMALIZERS = {None, "NFC", "NFD", "NFKC", "NFKD"}

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n%s]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORD = r"[^\r\n\p{L}\p{N}]?"
_PATTERNS = {
    # GPT-4 (cl100k) and Llama 3; Qwen 2, with one digit to a token
    *(rf"{_CONTRACTION}|{_WORD}\p{{L}}+|{n}|{_REST % ''}" for n in (r"\p{N}{1,3}", r"\p{N}")),
    # GPT-4o (o200k) and Llama 4
    rf"{_WORD}{_UPPER}*{_LOWER}+{_CONTRACTION}?|{_WORD}{_UPPER}+{_LOWER}*{_CONTRACTION}?"
    rf"|\p{{N}}{{1,3}}|{_REST % '/'}",
}


def can_cut_texts(document: dict[str, Any]) -> bool:
    """Returns whether a tokenizer gives the pieces of a text the same token ids as the text.

    Args:
        document: the content of its tokenizer.json.
    """
    return (
        _cuts_between_words(document["pre_tokenizer"] or {})
        and (document["normalizer"] or {}).get("type") in _NORMALIZERS
        and document["model"].get("type") == "BPE"
        and not document["model"].get("dropout")
        and not any(map(_may_cross_a_cut, document["added_tokens"]))
    )


def _cuts_between_words(pre_tokenizer: dict[str, Any]) -> bool:
    """Returns whether a pre-tokenizer is one of those that the module's docstring is about."""
    *others, last = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space") is not False:
        return False
    if last.get("use_regex"):  # the pattern of GPT-2; digits are cut off before it by some
        return all(other.get("type") == "Digits" for other in others)
    return len(others) == 1 and _splits_by_known_pattern(others[0])


def _splits_by_known_pattern(pre_tokenizer: dict[str, Any]) -> bool:
    return (
        pre_tokenizer.get("type") == "Split"
        and pre_tokenizer["pattern"].get("Regex") in _PATTERNS
        and pre_tokenizer["behavior"] == "Isolated"
        and not pre_tokenizer["invert"]
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
