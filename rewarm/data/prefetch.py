"""Runs an iterator ahead of its consumer, in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import Future
from typing import TypeVar

Item = TypeVar("Item")


def prefetch(items: Iterator[Item], depth: int = 4) -> Generator[Item]:
    """Yields the same items in the same order, up to `depth` of them computed ahead of time.

    An error that the iterator raises is raised here after all items that came before it.
    """
    ready: queue.Queue[Future[Item] | None] = queue.Queue(depth)
    stopped = threading.Event()

    def put(entry: Future[Item] | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def run() -> None:
        try:
            for item in items:
                result = Future[Item]()
                result.set_result(item)
                if not put(result):
                    return
        except BaseException as error:
            failure = Future[Item]()
            failure.set_exception(error)
            put(failure)
        else:
            put(None)

    thread = threading.Thread(target=run, name="rewarm-prefetch", daemon=True)
    thread.start()
    try:
        while (entry := ready.get()) is not None:
            yield entry.result()
    finally:
        stopped.set()
        thread.join()
