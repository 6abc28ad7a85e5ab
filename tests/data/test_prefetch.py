import threading
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
    assert not any(thread.name == "rewarm-prefetch" for thread in threading.enumerate())
