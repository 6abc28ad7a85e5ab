"""The progress of a run on the terminal: a live bar, or plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Container
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text
from typing_extensions import override

from rewarm.line_wrapping import wrap_line
from rewarm.quantities import format_clock

_NUMBERS = ("loss", "grad_norm", "lr", "speed", "mfu")
"""What is shown of a step, in this order."""
_HEADING = 8
"""Columns of the heading of a line that is printed when a run starts."""
_WIDTH_OF_OTHERS = 31
"""Columns of a bar besides its steps and numbers: `step `, ` ━━━━ `, ` 12:34:56 left`, and more."""


class NarrowProgress(Progress):
    """A bar with room for the `^C` that a terminal shows after it.

    In the last columns it would be wrapped into the next line, and the bar would be drawn there
    again.
    """

    def get_renderable(self) -> RenderableType:
        """Returns the bar, four columns narrower than the terminal."""
        return _Narrow(super().get_renderable())


class _Narrow:
    """Draws something four columns narrower than the terminal."""

    def __init__(self, renderable: RenderableType) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from console.render(
            self._renderable, options.update(width=max(1, options.max_width - 4))
        )


class ProgressLine:
    """A live bar on a terminal; plain lines elsewhere. A context manager."""

    def __init__(self, *, steps: int, done: int, console: Console | None = None) -> None:
        """Shows a run of `steps` steps, of which `done` are done."""
        # Progress goes to stderr, so that stdout stays for results.
        self._console = console or Console(stderr=True, highlight=False)
        self.is_live = self._console.is_terminal
        """Whether every step is shown."""
        self._steps = steps
        self._numbers: dict[str, str] = {}
        self._started = time.monotonic()
        self._first_step: tuple[int, float] | None = None
        """The first step that was shown, and when: steps are timed from there."""
        self._bar = NarrowProgress(
            TextColumn("step"),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[numbers]}", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
            TextColumn("left"),
            console=self._console,
            disable=not self.is_live,
            expand=True,
        )
        self._task: TaskID = self._bar.add_task("", total=steps, completed=done, numbers="starting")

    def __enter__(self) -> Self:
        with _ignore_closed_terminal():
            self._bar.start()
        return self

    def __exit__(
        self, _k: type[BaseException] | None, error: BaseException | None, _t: TracebackType | None
    ) -> None:
        self._bar.live.transient = error is not None  # a bar that was stopped half-way is cleared
        with _ignore_closed_terminal():
            self._bar.stop()

    def show_step(self, step: int, lr: float, loss: float | None) -> None:
        """Moves the bar, and shows the rate of a step, and the last loss that is known."""
        self._first_step = self._first_step or (step, time.monotonic())
        self._numbers["lr"] = f"lr {lr:.3e}"
        if loss is not None:
            self._numbers["loss"] = f"loss {loss:.4f}"
        self._update_bar(step)

    def show_training(self, step: int, metrics: dict[str, Any]) -> None:
        """Shows a line of training metrics."""
        self._numbers |= {
            "loss": f"loss {metrics['loss']:.4f}",
            "grad_norm": f"grad_norm {metrics['grad_norm']:.3g}",
            "lr": f"lr {metrics['lr']:.3e}",
            "speed": f"{metrics['tokens_per_second']:,.0f} tokens/s",
        }
        if metrics["mfu"] is not None:
            self._numbers["mfu"] = f"mfu {metrics['mfu']:.1%}"
        self._update_bar(step)
        if not self.is_live:
            numbers = "  ".join(self._in_order())
            self.print(f"step {step:,}/{self._steps:,}  {numbers}  {self._times(step)}")

    def _update_bar(self, step: int) -> None:
        numbers = "  ".join(self._fitting_numbers())
        with _ignore_closed_terminal():
            self._bar.update(self._task, completed=step, numbers=numbers)

    def _fitting_numbers(self) -> list[str]:
        """Returns the most important numbers, as many as leave room for a short bar."""
        steps = 2 * len(str(self._steps)) + 1
        room = self._console.width - steps - _WIDTH_OF_OTHERS
        chosen: list[str] = []
        for name in ("loss", "speed", "lr", "grad_norm", "mfu"):  # the most important first
            if len("  ".join([*self._in_order(chosen), self._numbers.get(name, "")])) <= room:
                chosen.append(name)
        return self._in_order(chosen)

    def _in_order(self, names: Container[str] = _NUMBERS) -> list[str]:
        """Returns those numbers that are known, in the order in which they are shown."""
        return [self._numbers[name] for name in _NUMBERS if name in names and name in self._numbers]

    def _times(self, step: int) -> str:
        """Returns the time since the start, and how long the remaining steps will take."""
        now = time.monotonic()
        text = f"{format_clock(now - self._started)} elapsed"
        if self._first_step and self._first_step[0] < step < self._steps:
            first, then = self._first_step
            left = (self._steps - step) * (now - then) / (step - first)
            text += f", {format_clock(left)} left"
        return text

    def show_evaluation(
        self,
        step: int,
        losses: dict[str, float],
        baseline: dict[str, float],
        of_average: dict[str, float] | None = None,
    ) -> None:
        """Shows the loss on every validation set, and its change since step 0.

        Args:
            step: the step.
            losses: by name of the set.
            baseline: the losses at step 0.
            of_average: the losses of the averaged weights, if the run has them.
        """
        numbers = "  ".join(
            f"{name} {loss:.4f}"
            + (f" ({loss - baseline[name]:+.4f})" if step and name in baseline else "")
            for name, loss in losses.items()
        )
        if of_average:
            numbers += "  averaged weights: "
            numbers += "  ".join(f"{name} {loss:.4f}" for name, loss in of_average.items())
        self.print(f"step {step:,}  evaluated: {numbers}")

    def print(self, line: str) -> None:
        """Prints a line above the bar."""
        with _ignore_closed_terminal():
            if self.is_live:
                self._console.print(Text(wrap_line(line, self._console.width, indent=_HEADING)))
            else:
                print(line, file=sys.stderr, flush=True)


class NoProgressLine(ProgressLine):
    """Shows nothing: another process does."""

    def __init__(self, *, steps: int, done: int, console: Console | None = None) -> None:
        """Takes the same arguments."""
        super().__init__(steps=steps, done=done, console=console or Console(quiet=True))

    @override
    def print(self, line: str) -> None:
        pass


def _ignore_closed_terminal() -> suppress:
    """Returns a context in which a closed terminal, or a log on a full disk, is no error."""
    return suppress(OSError, ValueError)  # a closed file is a ValueError
