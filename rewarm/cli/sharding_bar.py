"""The progress of text that becomes shards, and the counts at its end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from rewarm.data.sharding.shard_writer import ShardingProgress


class ShardingBar:
    """Shows the progress if stderr is a terminal."""

    def __init__(self, total_bytes: int) -> None:
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

        from rewarm.training.progress_line import NarrowProgress

        console = Console(stderr=True)
        self._bar = NarrowProgress(
            TextColumn("sharding"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total_bytes, speed="")

    def __enter__(self) -> ShardingBar:
        self._started = time.perf_counter()
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._seconds = time.perf_counter() - self._started
        self._bar.stop()

    def update(self, progress: ShardingProgress) -> None:
        """Shows how far the sharding is."""
        self._last = progress
        speed = progress.tokens / max(1e-9, time.perf_counter() - self._started)
        self._bar.update(
            self._task,
            completed=progress.bytes_read,
            speed=f"{progress.documents:,} documents  {speed:,.0f} tokens/s",
        )

    def summary(self) -> str:
        """Returns the speed, and the numbers of documents that were left out or already written."""
        last = self._last
        text = f"{last.tokens / self._seconds:,.0f} tokens/s over {self._seconds:.1f} s"
        if last.empty_documents:
            text += f"; {last.empty_documents:,} empty documents left out"
        if last.special_tokens:
            text += f"; {last.special_tokens:,} special tokens in the texts encoded as text"
        if last.end_of_text_tokens and last.special_tokens:
            text += f", except {last.end_of_text_tokens:,} that became end-of-text"
        elif last.end_of_text_tokens:
            text += (
                f"; {last.end_of_text_tokens:,} end-of-text tokens inside texts, since the "
                "tokenizer does not mark end-of-text as special"
            )
        if last.finished_documents:
            text += f"; {last.finished_documents:,} documents had already been written"
        if last.removed_files:
            text += f"; {last.removed_files:,} unfinished files of a killed command removed"
        return text
