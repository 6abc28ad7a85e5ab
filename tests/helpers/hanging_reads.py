"""Reads that hang, as those of a storage that does not answer."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator

import pytest


class HangingRead:
    """A read that hangs when it is made for the `number`-th time, until the test ends."""

    def __init__(self, number: int) -> None:
        self._left = number
        self._released = threading.Event()
        self.is_hanging = threading.Event()
        self.signalled_at = 0.0

    def wait(self) -> None:
        """Hangs, if it is this read's turn."""
        self._left -= 1
        if self._left == 0:
            self.is_hanging.set()
            self._released.wait(60)

    def release(self) -> None:
        self._released.set()

    def signal_when_hanging(self, number: int, *, after: float = 0.5) -> None:
        """Sends a signal to this process when the read hangs and what was read ahead is used."""

        def send() -> None:
            self.is_hanging.wait(60)
            time.sleep(after)
            self.signalled_at = time.monotonic()
            os.kill(os.getpid(), number)

        threading.Thread(target=send, daemon=True).start()


@contextlib.contextmanager
def hanging_at(
    monkeypatch: pytest.MonkeyPatch, owner: type, method: str, number: int
) -> Iterator[HangingRead]:
    """Makes the `number`-th call of a method hang inside the block."""
    read, call = HangingRead(number), getattr(owner, method)

    def hang_or_call(*args, **kwargs):
        read.wait()
        return call(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, method, hang_or_call)
        try:
            yield read
        finally:
            read.release()
