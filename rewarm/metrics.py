"""Speed and utilisation of a run, and the screen on which its numbers appear."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)


class Meter:
    """Measures tokens/s between two readings, without the time that was spent on other things."""

    def __init__(self, flops_per_token: int, peak: float | None) -> None:
        self._flops_per_token = flops_per_token
        self._peak = peak
        self._tokens = 0
        self._waited = 0.0
        self._stalled = 0.0
        self._steps = 0
        self.step_seconds = 0.0
        """What a step took, on the average since the reading before the last one."""
        self._since = time.perf_counter()

    def count(self, tokens: int) -> None:
        """Adds the tokens of a step."""
        self._tokens += tokens
        self._steps += 1

    def stalled(self, seconds: float) -> None:
        """Adds seconds that a save kept training waiting."""
        self._stalled += seconds

    def read(self) -> dict[str, float | None]:
        """Returns tokens_per_second, mfu, data_wait, save_stall since the last reading.

        data_wait is the share of the time that was spent waiting for the stream; save_stall the
        seconds that saves kept training waiting, which do not count as time.
        """
        seconds = max(1e-9, time.perf_counter() - self._since)
        speed, waited, stalled = self._tokens / seconds, self._waited / seconds, self._stalled
        if self._steps:
            self.step_seconds = seconds / self._steps
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
        """Leaves out the time spent inside, having waited for the steps that are under way."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - started


class Screen:
    """A live bar on a terminal; plain lines elsewhere."""

    def __init__(self, *, steps: int, done: int, console: Console | None = None) -> None:
        # Progress goes to stderr, so that stdout stays for results.
        self._console = console or Console(stderr=True, highlight=False)
        self._live = self._console.is_terminal
        self._steps = steps
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[said]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=self._console,
            disable=not self._live,
            expand=True,
        )
        self._task: TaskID = self._bar.add_task("", total=steps, completed=done, said="starting")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, _k: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self, step: int) -> None:
        """Moves the bar."""
        self._bar.update(self._task, completed=step)

    def trained(self, step: int, numbers: dict[str, Any]) -> None:
        """Shows a line of training metrics."""
        said = (
            f"loss {numbers['loss']:.4f}  lr {numbers['lr']:.3e}  "
            f"{numbers['tokens_per_second']:,.0f} tokens/s"
        )
        if numbers["mfu"] is not None:
            said += f"  mfu {numbers['mfu']:.1%}"
        self._bar.update(self._task, completed=step, said=said)
        if not self._live:
            self.say(f"step {step:,}/{self._steps:,}  {said}")

    def evaluated(self, step: int, losses: dict[str, float], baseline: dict[str, float]) -> None:
        """Shows the loss of every validation set, and its change since step 0."""
        said = "  ".join(
            f"{name} {loss:.4f}"
            + (f" ({loss - baseline[name]:+.4f})" if step and name in baseline else "")
            for name, loss in losses.items()
        )
        self.say(f"step {step:,}  evaluated: {said}")

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        if self._live:
            self._console.print(line, markup=False, highlight=False)
        else:
            with suppress(OSError):  # a log on a full disk: what cannot be told can be trained
                print(line, file=sys.stderr, flush=True)
