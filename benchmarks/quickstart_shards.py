"""The text and token shards of `rewarm quickstart`, for the benchmarks that train on them."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from rewarm.cli import quickstart_steps


def write_quickstart_shards(folder: Path, *corpora: str) -> None:
    """Writes text, tokenizer and shards, by default of both corpora, below a folder."""
    texts = quickstart_steps._write_texts(folder / "text")
    tokenizer = quickstart_steps._train_tokenizer(folder / "tokenizer.json", texts)
    for name in corpora or texts:
        shards = folder / "shards" / name
        quickstart_steps._shard(name, texts[name], shards, tokenizer, Console(quiet=True))
