"""`rewarm` in processes of its own that start at once.

Importing PyTorch takes seconds. A fork server imports it once per session and forks a process for
each command: it has its own process id, signal handlers and exit code, and can be killed. What the
start of an interpreter itself has to show is tested with `subprocess`.
"""

import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload([
    "rewarm.cli.app", "rewarm.training.loop", "transformers", "torch._dynamo", "webdataset",
])  # fmt: skip


def _main(
    words: list[str],
    cwd: Path,
    environment: dict[str, str],
    output: Path,
    errors: Path,
    before: Callable[[], None] | None,
) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, path in ((1, output), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), descriptor)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)
    sys.argv = ["rewarm", *words]
    if before:
        before()
    from rewarm.cli.app import main

    main()


class RewarmProcess:
    """A command line of rewarm in a process of its own, and what it has printed so far.

    What it prints goes to files in `folder`; it runs in `cwd`, by default that of the test.
    `before`, a function of a module, is called in it first.
    """

    def __init__(
        self,
        folder: Path,
        *words: object,
        cwd: Path | None = None,
        environment: dict[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        self._output, self._errors = folder / "process.out", folder / "process.err"
        for path in (self._output, self._errors):
            path.unlink(missing_ok=True)
        arguments = (
            *(list(map(str, words)), cwd or Path.cwd(), os.environ | (environment or {})),
            *(self._output, self._errors, before),
        )
        self._process = _SERVER.Process(target=_main, args=arguments)
        self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        return self._output.read_text() if self._output.exists() else ""

    @property
    def errors(self) -> str:
        return self._errors.read_text() if self._errors.exists() else ""

    def is_running(self) -> bool:
        return self._process.exitcode is None

    def wait_for(self, text: str) -> bool:
        """Waits until `text` is on stderr; returns False if the process ended without it."""
        while text not in self.errors:
            if not self.is_running():
                return text in self.errors
            time.sleep(0.005)
        return True

    def signal(self, number: int) -> None:
        """Sends a signal; does nothing if the process has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, number)

    def wait(self, timeout: float = 60) -> int:
        """Waits for the end; returns the exit code, negative for a signal."""
        self._process.join(timeout)
        assert self._process.exitcode is not None, f"still running after {timeout} s"
        return self._process.exitcode
