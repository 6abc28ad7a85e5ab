"""The progress of a run on the terminal: a live bar, or plain lines in a log."""

from __future__ import annotations

import sys
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
from typing_extensions import override


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
        self._live = self._console.is_terminal
        self._steps = steps
        self._bar = NarrowProgress(
            TextColumn("step"),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
            TextColumn("left"),
            console=self._console,
            disable=not self._live,
            expand=True,
        )
        self._task: TaskID = self._bar.add_task("", total=steps, completed=done, numbers="starting")

    def __enter__(self) -> Self:
        with _ignore_closed_terminal():
            self._bar.start()
        return self

    def __exit__(
        self, _k: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None
    ) -> None:
        with _ignore_closed_terminal():
            self._bar.stop()

    def show_step(self, step: int) -> None:
        """Moves the bar."""
        with _ignore_closed_terminal():
            self._bar.update(self._task, completed=step)

    def show_training(self, step: int, metrics: dict[str, Any]) -> None:
        """Shows a line of training metrics."""
        numbers = (
            f"loss {metrics['loss']:.4f}  lr {metrics['lr']:.3e}  "
            f"{metrics['tokens_per_second']:,.0f} tokens/s"
        )
        if metrics["mfu"] is not None:
            numbers += f"  mfu {metrics['mfu']:.1%}"
        with _ignore_closed_terminal():
            self._bar.update(self._task, completed=step, numbers=numbers)
        if not self._live:
            self.print(f"step {step:,}/{self._steps:,}  {numbers}")

    def show_evaluation(
        self, step: int, losses: dict[str, float], baseline: dict[str, float]
    ) -> None:
        """Shows the loss on every validation set, and its change since step 0."""
        numbers = "  ".join(
            f"{name} {loss:.4f}"
            + (f" ({loss - baseline[name]:+.4f})" if step and name in baseline else "")
            for name, loss in losses.items()
        )
        self.print(f"step {step:,}  evaluated: {numbers}")

    def print(self, line: str) -> None:
        """Prints a line above the bar."""
        with _ignore_closed_terminal():
            if self._live:
                self._console.print(line, markup=False, highlight=False)
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
