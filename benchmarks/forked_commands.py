"""Runs `rewarm` commands in forks of this process, which has imported PyTorch once.

A fork has its own process id, signal handlers and exit code, and starts in 30 ms instead of the
seconds that an interpreter needs. Scripts that run a thousand commands import this module first,
before any thread starts.
"""

from __future__ import annotations

import importlib
import os
import resource
import select
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a thread of the parent would be missing in a fork

from rewarm.cli.app import main

# What the commands import when they run; a fork need not import it again.
_IMPORTED_LATER = (
    *("tokenizers", "torch._dynamo", "transformers", "webdataset"),
    *("rewarm.cli.study_output", "rewarm.data.verify_shards", "rewarm.plots.loss_figure"),
    *("rewarm.report.html_page", "rewarm.report.text_exports", "rewarm.study.preflight_study"),
    *("rewarm.estimates.run_plan", "rewarm.training.loop"),
)
for _name in _IMPORTED_LATER:
    importlib.import_module(_name)

_MEMORY_LIMIT = 8 * 2**30  # a command that reads without end must not take the machine's memory

TIMED_OUT = -signal.SIGKILL
"""The exit code of a command that was killed because it did not end in time."""


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    """Its exit code; negative for a signal."""
    output: str
    errors: str


def run_command(*words: object, timeout: float = 60) -> Ended:
    """Runs `rewarm WORDS` in a fork; kills it after `timeout` seconds."""
    return run_forked(_command_line, list(map(str, words)), timeout=timeout)


def run_forked(function: Callable[..., object], *arguments: object, timeout: float = 60) -> Ended:
    """Calls a function in a fork; an exception becomes a traceback and exit code 1."""
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder, "out"), Path(folder, "err")
        sys.stdout.flush()
        sys.stderr.flush()
        process_id = os.fork()
        if not process_id:
            _call_and_exit(function, arguments, output, errors)
        code = _wait(process_id, timeout)
        printed = (
            path.read_text(errors="replace") if path.exists() else "" for path in (output, errors)
        )
        return Ended(code, *printed)


def _command_line(words: list[str]) -> None:
    sys.argv = ["rewarm", *words]
    main()


def _call_and_exit(
    function: Callable[..., object], arguments: tuple[object, ...], output: Path, errors: Path
) -> NoReturn:
    code = 1
    try:
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT, _MEMORY_LIMIT))
        os.setsid()  # a signal to the parent's group must not reach it twice
        for descriptor, path in ((1, output), (2, errors)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), descriptor)
        function(*arguments)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(process_id: int, timeout: float) -> int:
    descriptor = os.pidfd_open(process_id)
    try:
        if not select.select([descriptor], [], [], timeout)[0]:
            os.killpg(process_id, signal.SIGKILL)
        _, status = os.waitpid(process_id, 0)
    finally:
        os.close(descriptor)
    return os.waitstatus_to_exitcode(status)
