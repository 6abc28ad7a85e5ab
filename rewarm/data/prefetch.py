"""Runs an iterator ahead of its consumer, in a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from rewarm.reader_threads import ReaderThreads

Item = TypeVar("Item")


def prefetch(
    items: Iterator[Item],
    depth: int = 4,
    wait: Callable[[Future[Any]], Any] = Future.result,
    is_large: Callable[[Item], bool] = lambda _: False,
) -> Generator[Item]:
    """Yields the same items in the same order, up to `depth` of them computed ahead of time.

    While a large item is in use, none is added to those. An error that the iterator raises is
    raised here after all items that came before it. `wait` returns the result of a future; where it
    raises an error instead, the thread is not waited for.
    """
    end = object()
    threads = ReaderThreads(1, "rewarm-prefetch")
    try:
        pending = deque(threads.submit(next, items, end) for _ in range(depth))
        while (item := wait(pending.popleft())) is not end:
            is_alone = is_large(item)
            if not is_alone:
                pending.append(threads.submit(next, items, end))
            yield item
            del item
            if is_alone:
                pending.append(threads.submit(next, items, end))
    finally:
        threads.close()
