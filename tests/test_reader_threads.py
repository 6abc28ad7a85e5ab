"""Threads whose reads may hang: they are left behind, and nothing waits for them."""

import threading
import time

import pytest

from rewarm.reader_threads import (
    ReadAbandonedError,
    ReaderThreads,
    has_blocked_threads,
    pause_reading,
)


def test_calls_are_made_in_order_and_their_errors_are_raised():
    threads, calls = ReaderThreads(1, "rewarm-test"), []
    numbers = [threads.submit(lambda n: calls.append(n) or 10 // n, n) for n in (5, 2, 0, 1)]
    assert [number.result() for number in numbers[:2]] == [2, 5]
    with pytest.raises(ZeroDivisionError):
        numbers[2].result()
    assert numbers[3].result() == 10
    assert calls == [5, 2, 0, 1]
    threads.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("rewarm-test")]


def test_a_blocked_thread_is_left_behind():
    threads, released = ReaderThreads(2, "rewarm-test"), threading.Event()
    both_read = threading.Barrier(3)
    read = threads.submit(lambda: both_read.wait() >= 0 and released.wait())
    next_read = threads.submit(lambda: both_read.wait() >= 0 and pause_reading(60))
    both_read.wait()
    started = time.monotonic()
    threads.close()
    assert time.monotonic() - started < 10
    assert has_blocked_threads()
    with pytest.raises(ReadAbandonedError):  # one that waits to try again ends by itself
        next_read.result(timeout=5)
    released.set()
    assert read.result(timeout=5)
    for thread in threading.enumerate():
        if thread.name.startswith("rewarm-test"):
            thread.join()
    assert not has_blocked_threads()
