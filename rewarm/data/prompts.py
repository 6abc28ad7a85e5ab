"""Prompts that a model continues: their tokens, and the texts of the continuations."""

from __future__ import annotations

from typing import NamedTuple

from rewarm.data.text_encoder import TextEncoder
from rewarm.data.tokenizer import Tokenizer
from rewarm.errors import CheckpointError, DataError
from rewarm.table_cells import plural


class TextSample(NamedTuple):
    """A prompt, and how a model continues it."""

    prompt: str
    text: str
    """The continuation, up to an end-of-text token."""


class EncodedPrompts(NamedTuple):
    """Prompts with their tokens, and how many tokens to add."""

    tokenizer: Tokenizer
    texts: list[str]
    ids: list[list[int]]
    """Tokens of each prompt, at least one."""
    tokens: int
    """Maximum number of tokens of a continuation."""

    def decode(self, continuations: list[list[int]]) -> list[TextSample]:
        """Returns the texts of continuations, given as the tokens of each prompt's."""
        decode = self.tokenizer.encoder.decode
        samples = []
        for text, prompt, ids in zip(self.texts, self.ids, continuations, strict=True):
            # Some tokenizers leave out a space at the beginning of what they decode.
            before, whole = decode(prompt), decode([*prompt, *ids])
            continued = whole[len(before) :] if whole.startswith(before) else decode(ids)
            samples.append(TextSample(text, continued))
        return samples


def _shortened(text: str) -> str:
    return repr(text) if len(text) <= 40 else f"{text[:40]!r}..."


def encode_prompts(
    tokenizer: Tokenizer, texts: list[str], *, tokens: int, limit: int, limit_name: str
) -> EncodedPrompts:
    """Returns prompts with their tokens, encoded as `rewarm shard` encodes documents.

    Args:
        tokenizer: that of the model.
        texts: the prompts.
        tokens: maximum number of tokens of a continuation.
        limit: maximum number of tokens of a prompt with its continuation.
        limit_name: what the limit is, for the message.

    Raises:
        DataError: a prompt has no tokens, or cannot be encoded.
        CheckpointError: a prompt with its continuation is longer than the limit.
    """
    ids = TextEncoder(tokenizer).encode(texts)
    for text, prompt in zip(texts, ids, strict=True):
        if not prompt:
            raise DataError(f"the prompt {_shortened(text)} has no tokens; give it some text")
        if len(prompt) + tokens > limit:
            total, count = len(prompt) + tokens, plural(len(prompt), "token")
            raise CheckpointError(
                f"the prompt {_shortened(text)} has {count}, and {tokens:,} more make {total:,}; "
                f"expected at most {limit:,} ({limit_name}); shorten it, or ask for fewer tokens"
            )
    return EncodedPrompts(tokenizer, texts, ids, tokens)
