"""Shards the text that recipes name in the place of shards, before anything is trained."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rewarm.cli.input_report import InputReport, number_of
from rewarm.cli.sharding_bar import ShardingBar
from rewarm.cli.terminal_tables import print_notes
from rewarm.errors import DataError, Preempted
from rewarm.paths import short_path
from rewarm.quantities import format_bytes
from rewarm.stop_signals import raise_if_stopped, stop_signals_noted

if TYPE_CHECKING:
    from rewarm.recipe.recipe import Recipe
    from rewarm.runs.corpus_sources import UnshardedText


def shard_texts(
    recipes: Iterable[Recipe],
    *,
    check: Callable[[], None] = lambda: None,
    deadline: float = math.inf,
) -> bool:
    """Shards each text of recipes of which there are no shards yet; reports on stderr.

    Args:
        recipes: the recipes.
        check: called first, unless there is nothing to shard; raises what prevents training.
        deadline: a `time.monotonic()` value by which to stop.

    Returns:
        whether there was such a text.

    Raises:
        RewarmError: a text or its tokenizer cannot be read, or the shards cannot be written.
        Preempted: a signal or the deadline came; finished shards are kept.
    """
    from rewarm.runs.corpus_sources import unsharded_texts

    texts = unsharded_texts(recipes, download=True)
    if texts:
        check()
    with stop_signals_noted(interrupts=False) as noted:

        def check_stop() -> None:
            raise_if_stopped(noted)
            if time.monotonic() >= deadline:
                raise Preempted(
                    "the time limit was reached while text is sharded; run the same command again"
                )

        for number, text in enumerate(texts, start=1):
            check_stop()
            _shard(text, f"{number} of {len(texts)}", check_stop)
    return bool(texts)


def print_unsharded(recipes: Iterable[Recipe]) -> None:
    """Prints which texts of recipes will be sharded before training."""
    from rewarm.runs.corpus_sources import unsharded_texts

    texts = unsharded_texts(recipes, download=False)
    print_notes((f"text      sharded before training: {text}" for text in texts), indent=10)


def _shard(unsharded: UnshardedText, number: str, check_stop: Callable[[], None]) -> None:
    from rewarm.data.sharding.shards_of_text import has_shards, shard_text

    text, tokenizer = unsharded.text, unsharded.tokenizer
    assert tokenizer
    folder = text.shard_folder(tokenizer)
    download = "downloading and " if text.is_on_hub else ""
    _say(
        f"text     {number}: {download}sharding {text.location} ({format_bytes(text.bytes)}) with "
        f"the tokenizer of {short_path(unsharded.tokenizer_name)}, into {folder}"
    )
    report = InputReport()
    try:
        with ShardingBar(text.bytes) as bar:
            index = shard_text(
                text,
                tokenizer,
                on_skipped=report.add_skipped,
                on_notice=report.add_notice,
                on_wait=lambda: _say("waiting  another process shards this text"),
                progress=bar.update,
                check_stop=check_stop,
            )
    except DataError:
        report.print_after_error()
        raise
    if index is None:
        return
    per_token = index.text_bytes and f", {index.text_bytes / index.tokens:.2f} text bytes/token"
    _say(
        f"sharded  {number_of(len(index.shards), 'shard')}, {index.documents:,} documents, "
        f"{index.tokens:,} tokens{per_token or ''}"
    )
    report.print([Path(file.name) for file in text.files], folder, stderr=True)
    _say(f"speed    {bar.summary()}")
    if older := [path for path in folder.parent.iterdir() if has_shards(path) and path != folder]:
        _say(
            f"older    {number_of(len(older), 'folder')} beside it with shards of the text as it "
            "was before; delete those that no run uses"
        )


def _say(line: str) -> None:
    print_notes([line], indent=9, stderr=True)
