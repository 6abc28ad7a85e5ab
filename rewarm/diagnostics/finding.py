"""What a probe of the machine returns, and how a broken or hanging probe is kept from the rest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple, Protocol

from rewarm.errors import printable
from rewarm.reader_threads import ReaderThreads


class MachineProblem(NamedTuple):
    """What is wrong, as an error message says it."""

    found: str
    expected: str
    remedy: str


class Finding(Protocol):
    """What one probe found: a dataclass, whose fields are the JSON."""

    def facts(self) -> dict[str, str]:
        """Returns lines to print: label and value."""
        ...

    def problems(self) -> list[MachineProblem]:
        """Returns what is wrong."""
        ...


class ProbeResult(NamedTuple):
    """A titled part of the report; `finding` is None if its probe failed with `error`."""

    title: str
    finding: Finding | None
    error: str = ""

    def problems(self) -> list[MachineProblem]:
        """Returns what the probe found to be wrong, or that it failed."""
        if self.finding is not None:
            return self.finding.problems()
        return [
            MachineProblem(
                f"{self.title} could not be examined: {self.error}",
                "an answer: the report is incomplete without it",
                "fix what the message names; if rewarm is at fault, report it",
            )
        ]


def examine(title: str, probe: Callable[[], Finding]) -> ProbeResult:
    """Runs a probe; what it raises becomes the result's error."""
    try:
        return ProbeResult(title, probe())
    except Exception as error:  # one broken probe must not hide the others
        return ProbeResult(title, None, printable(f"{type(error).__name__}: {error}"))


def examine_within(seconds: float, title: str, probe: Callable[[], Finding]) -> ProbeResult:
    """The same in a thread that is abandoned after `seconds`: reading from a disk may hang."""
    thread = ReaderThreads(1, "rewarm-doctor")
    try:
        return thread.submit(examine, title, probe).result(seconds)
    except TimeoutError:
        return ProbeResult(title, None, f"no answer within {seconds:g} s")
    finally:
        thread.close()


def run_command(words: list[str], seconds: float) -> str:
    """Returns the stdout of a command.

    Raises:
        OSError: it cannot be started.
        RuntimeError: it failed; the text is the last line of its stderr, or its exit code.
        TimeoutError: it took longer than `seconds`; it and its child processes were killed.
    """
    with subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=seconds)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise TimeoutError(f"{words[0]}: no answer within {seconds:g} s") from None
            raise
    if process.returncode:
        lines = (errors.strip() or output.strip()).splitlines()
        raise RuntimeError(lines[-1] if lines else f"exit code {process.returncode}")
    return output


def run_module(name: str, seconds: float, *arguments: str) -> str:
    """The same for a module of this package, in another Python process."""
    return run_command([sys.executable, "-m", f"rewarm.diagnostics.{name}", *arguments], seconds)
