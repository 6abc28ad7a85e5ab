"""How many bytes of text token ids stand for, to state a loss in bits per byte.

In a byte-level BPE, each token stands for certain bytes: those of any run of tokens can be counted.
Elsewhere the bytes of a token depend on its neighbors, and are known for whole shards only: the
index has the bytes of text that each shard was written from.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rewarm.data.shard_source import ShardSource
from rewarm.data.tokenizer import Tokenizer, load_tokenizer, tokenizer_document
from rewarm.errors import DataError

_NORMALIZERS = {None, "NFC"}
"""Those after which a text has practically as many bytes as before."""


def byte_lengths_of_shards(source: ShardSource) -> npt.NDArray[np.int64] | None:
    """Returns the bytes of each token id of a shard folder; None where they cannot be told."""
    expected = source.index.tokenizer
    try:
        tokenizer = load_tokenizer(str(source.tokenizer_folder()), expected.eos_token)
    except DataError:  # such as shards that were copied without their tokenizer
        return None
    return byte_lengths(tokenizer) if tokenizer.digest == expected.digest else None


def byte_lengths(tokenizer: Tokenizer) -> npt.NDArray[np.int64] | None:
    """Returns the bytes of text that each token id of a byte-level BPE stands for.

    0 for special tokens, such as end-of-text: no text is encoded as them. None for another
    tokenizer.
    """
    document = tokenizer_document(tokenizer.encoder)
    normalizer, decoder = document["normalizer"] or {}, document["decoder"] or {}
    if (
        decoder.get("type") != "ByteLevel"
        or normalizer.get("type") not in _NORMALIZERS
        or _adds_a_space(document["pre_tokenizer"])
    ):
        return None
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = set(ByteLevel.alphabet())  # one character for each byte
    lengths = np.zeros(tokenizer.vocabulary, dtype=np.int64)
    for token, token_id in tokenizer.encoder.get_vocab(with_added_tokens=False).items():
        if not alphabet.issuperset(token):
            return None
        lengths[token_id] = len(token)
    for added in document["added_tokens"]:
        lengths[added["id"]] = 0 if added["special"] else len(added["content"].encode())
    lengths[tokenizer.eos_token_id] = 0
    return lengths


def _adds_a_space(pre_tokenizer: Any) -> bool:
    """Returns whether a tokenizer puts a space, which is no byte of the text, before each text."""
    if isinstance(pre_tokenizer, dict):
        if pre_tokenizer.get("add_prefix_space") or "prepend_scheme" in pre_tokenizer:
            return True
        return any(map(_adds_a_space, pre_tokenizer.values()))
    return isinstance(pre_tokenizer, list) and any(map(_adds_a_space, pre_tokenizer))
