"""Speed and utilization of a run: tokens/s, MFU, and time spent waiting."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class SpeedMeter:
    """Measures tokens/s between two readings, without the time that other work took."""

    def __init__(self, flops_per_token: int, peak: float | None) -> None:
        self._flops_per_token = flops_per_token
        self._peak = peak
        self._tokens = 0
        self._waited = 0.0
        self._stalled = 0.0
        self._steps = 0
        self._step_seconds = 0.0
        self._since = time.perf_counter()

    def count(self, tokens: int) -> None:
        """Adds the tokens of a step."""
        self._tokens += tokens
        self._steps += 1

    def add_stall(self, seconds: float) -> None:
        """Adds seconds that training waited for a save."""
        self._stalled += seconds

    @property
    def step_seconds(self) -> float:
        """What a step took on average, between the last two readings; until then, since the start.

        A time limit needs it before the first reading.
        """
        if self._step_seconds or not self._steps:
            return self._step_seconds
        return (time.perf_counter() - self._since) / self._steps

    def reset(self) -> None:
        """Starts a new interval."""
        self.read()

    def read(self) -> dict[str, float | None]:
        """Returns tokens_per_second, mfu, data_wait, save_stall since the last reading.

        data_wait is the share of the time that was spent waiting for the batch loader; save_stall
        the seconds that training waited for saves, which do not count as time.
        """
        seconds = max(1e-9, time.perf_counter() - self._since)
        speed, waited, stalled = self._tokens / seconds, self._waited / seconds, self._stalled
        if self._steps:
            self._step_seconds = seconds / self._steps
        self._tokens, self._steps, self._waited, self._stalled = 0, 0, 0.0, 0.0
        self._since = time.perf_counter()
        mfu = speed * self._flops_per_token / self._peak if self._peak else None
        return {
            "tokens_per_second": round(speed, 1),
            "mfu": mfu and round(mfu, 4),
            "data_wait": round(waited, 4),
            "save_stall": round(stalled, 4),
        }

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time spent inside as waiting for data."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - started

    @contextmanager
    def paused(self, device: torch.device) -> Iterator[None]:
        """Leaves out the time spent inside; waits first for the steps that are still running."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - started
