"""Numbers of each step on the host, without a wait for the step that was just started."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

MAX_STEPS_UNREAD = 8
"""Steps for which the host may be ahead of the number that it reads; 0 on a CPU."""


class DelayedNumber:
    """Reads a number of each step.

    From a GPU it is copied to pinned memory, and read when the copy is complete: at the latest
    before the number of `MAX_STEPS_UNREAD` steps later is copied. A CPU has it at once.
    """

    def __init__(self, device: torch.device) -> None:
        """Allocates the memory that is copied to."""
        self._on_gpu = device.type == "cuda"
        self._copies: deque[tuple[Tensor, Any]] = deque()
        """Each with the event that marks its completion; the oldest first."""
        self._unused = [
            torch.zeros((), pin_memory=True) for _ in range(MAX_STEPS_UNREAD if self._on_gpu else 0)
        ]

    def add(self, number: Tensor) -> list[float]:
        """Adds the number of the next step, shape (); returns those that have become readable."""
        if not self._on_gpu:
            return [number.item()]
        readable = []
        if not self._unused:
            self._copies[0][1].synchronize()
        while self._copies and self._copies[0][1].query():
            copy, _ = self._copies.popleft()
            readable.append(copy.item())
            self._unused.append(copy)
        copy = self._unused.pop()
        copy.copy_(number, non_blocking=True)
        self._copies.append((copy, torch.cuda.current_stream().record_event()))
        return readable
