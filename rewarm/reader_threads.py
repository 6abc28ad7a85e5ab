"""Daemon threads that read files and URLs, which neither a stop nor the end of a process waits for.

A read may block for as long as the storage does, in C, where no signal handler and no exception
reaches it. Python would join the threads of a `ThreadPoolExecutor` when the process ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Event, Thread
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")

_JOIN_SECONDS = 0.2
"""How long `close` waits for reads that are still running."""

_this_thread = threading.local()
_blocked_threads: list[Thread] = []


class ReadAbandonedError(BaseException):
    """Ends a read that nobody waits for any more. Not an Exception, so that it is not retried."""


class ReaderThreads:
    """Threads that call functions, in the order in which they are submitted."""

    def __init__(self, count: int, name: str) -> None:
        """Starts `count` threads, which are called `name` and a number."""
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._closed = Event()
        self._threads = [
            Thread(target=self._run, name=f"{name}-{number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self, function: Callable[Arguments, Answer], *args: Arguments.args, **kw: Arguments.kwargs
    ) -> Future[Answer]:
        """Returns the future result of a call, which a thread makes."""
        future = Future[Answer]()

        def call() -> None:
            try:
                future.set_result(function(*args, **kw))
            except BaseException as error:  # raised again where the result is requested
                future.set_exception(error)

        self._calls.put(call)
        return future

    def close(self) -> None:
        """Ends the threads, after the calls that they are making; a blocked one is abandoned."""
        self._closed.set()
        for _ in self._threads:
            self._calls.put(None)
        end = time.monotonic() + _JOIN_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        _blocked_threads[:] = filter(Thread.is_alive, [*_blocked_threads, *self._threads])

    def _run(self) -> None:
        _this_thread.closed = self._closed
        while (call := self._calls.get()) and not self._closed.is_set():
            call()


def has_blocked_threads() -> bool:
    """Returns whether a thread was abandoned that still reads."""
    return any(thread.is_alive() for thread in _blocked_threads)


def pause_reading(seconds: float) -> None:
    """Sleeps; in a reader thread, until it is closed.

    Raises:
        ReadAbandonedError: the thread was closed: nobody waits for this read any more.
    """
    closed: Event | None = getattr(_this_thread, "closed", None)
    if closed is None:
        time.sleep(seconds)
    elif closed.wait(seconds):
        raise ReadAbandonedError
