import threading
import time
from itertools import count

import pytest

from rewarm.data.prefetch import prefetch


def test_prefetch_keeps_the_order_and_raises_an_error_after_the_items_before_it():
    def items():
        yield from range(10)
        raise ValueError("here")

    ahead = prefetch(items(), depth=3)
    assert [next(ahead) for _ in range(10)] == list(range(10))
    with pytest.raises(ValueError, match="here"):
        next(ahead)


def test_prefetch_stops_its_thread():
    ahead = prefetch(count(), depth=2)
    assert next(ahead) == 0
    ahead.close()
    assert not any(thread.name.startswith("rewarm-prefetch") for thread in threading.enumerate())


def test_prefetch_leaves_an_iterator_that_hangs():
    released = threading.Event()

    def items():
        yield 0
        released.wait(60)

    ahead = prefetch(items())
    assert next(ahead) == 0
    started = time.monotonic()
    ahead.close()
    assert time.monotonic() - started < 10
    released.set()
