"""The text and token shards of `rewarm quickstart`, for the benchmarks that train on them."""

from __future__ import annotations

from pathlib import Path

from rewarm.data.quickstart_text import (
    train_byte_level_bpe,
    write_standard_library_text,
    write_text_shards,
)


def write_quickstart_shards(folder: Path, *corpora: str) -> None:
    """Writes text, tokenizer and shards, by default of both corpora, below a folder."""
    texts = write_standard_library_text(folder / "text")
    train_byte_level_bpe(folder / "tokenizer.json", texts.values())
    for name in corpora or texts:
        write_text_shards(texts[name], folder / "shards" / name, folder / "tokenizer.json")
