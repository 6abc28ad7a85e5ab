"""Starts the processes of a run on this machine, one per GPU, with PyTorch's elastic launcher.

```
 rewarm train --gpus 8 ─┬─ main thread: forwards signals, waits
                        └─ a thread: elastic agent ── starts, watches, restarts ──> 8 × run_worker
```
A worker returns its exit code as a value: the agent starts again what was killed or has crashed,
but not a run that was stopped, or whose recipe or data are wrong. The agent runs in a thread, since
in the main thread it would kill its workers 30 seconds after a signal, saved or not.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import Any
from uuid import uuid4

from rewarm import exit_codes
from rewarm.cli.process_setup import STARTED, STARTED_VARIABLE
from rewarm.cli.worker_process import has_ended_alone
from rewarm.errors import RecipeError, RewarmError
from rewarm.stop_signals import raise_if_stopped, signals_to_handle

_ONE_REQUEST = 0.2
"""Seconds within which several signals are one request to stop."""
_PROCESSES_PER_CORE = 4
"""Processes that may share a core where there is no GPU: to try what several do."""
_KILL_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def count_processes(gpus: str | None) -> int:
    """Returns how many processes a run has: one per GPU; one where there is no GPU.

    Args:
        gpus: a number, `all`, or None for as many as there are.

    Raises:
        RecipeError: there are fewer GPUs, or it is not a number.
    """
    import torch

    available = torch.cuda.device_count()
    if gpus in (None, "all"):
        return max(1, available)
    if not gpus or not (gpus.isascii() and gpus.isdecimal()) or int(gpus) == 0:
        raise RecipeError([f"--gpus {gpus}: expected a number of GPUs, or all"])
    most = _PROCESSES_PER_CORE * len(os.sched_getaffinity(0))
    if not available and int(gpus) > most:
        raise RecipeError(
            [f"--gpus {gpus}: no GPU is visible, and the CPU has cores for {most} processes"]
        )
    if available and int(gpus) > available:
        raise RecipeError(
            [
                f"--gpus {gpus}: {available} {'is' if available == 1 else 'are'} visible; use "
                "fewer, or see CUDA_VISIBLE_DEVICES and `rewarm doctor`"
            ]
        )
    return int(gpus)


def launch(
    run: Callable[[list[str]], int], arguments: list[str], processes: int, max_restarts: int
) -> int:
    """Runs a command line of rewarm in several processes, and returns its exit code.

    Args:
        run: a function of a module that runs a command line, and returns its exit code.
        arguments: the words after `rewarm`.
        processes: to start.
        max_restarts: how many times all of them are started again if one is killed or crashes.

    Raises:
        RewarmError: a process was killed.
    """
    cores = len(os.sched_getaffinity(0))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    os.environ[STARTED_VARIABLE] = str(STARTED)
    with tempfile.TemporaryDirectory(prefix="rewarm-") as folder:
        stopped = Path(folder) / "stopped"
        agent = _AgentThread(run, arguments, stopped, processes, max_restarts)
        signals = _ForwardedSignals(stopped)
        with signals:
            agent.start()
            while agent.is_alive():
                agent.join(0.1)
    if agent.codes is not None:
        return next((code for _, code in sorted(agent.codes.items()) if code), exit_codes.DONE)
    return _code_of_failure(agent, signals)


class _AgentThread(Thread):
    """Runs the elastic agent, and keeps the exit codes of its workers, or its error."""

    def __init__(
        self,
        run: Callable[[list[str]], int],
        arguments: list[str],
        stopped: Path,
        processes: int,
        max_restarts: int,
    ) -> None:
        super().__init__(daemon=True)
        self._run_command, self._arguments, self._stopped = run, arguments, stopped
        self._processes, self._max_restarts = processes, max_restarts
        self.codes: dict[int, int] | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        """Starts the workers, and waits for their end."""
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        # Its messages are about its own functions; what ended a run is said once, by `launch`.
        for module in ("torch.distributed.elastic", "torch.multiprocessing"):
            logging.getLogger(module).setLevel(logging.CRITICAL)
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=self._processes,
            run_id=uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=self._max_restarts,
            monitor_interval=0.1,
            start_method="spawn",
            logs_specs=DefaultLogsSpecs(log_dir=str(self._stopped.parent)),
        )
        try:
            launch_workers = elastic_launch(config, run_worker)
            self.codes = launch_workers(
                self._run_command, self._arguments, str(self._stopped), os.getpid()
            )
        except Exception as error:
            self.error = error


class _ForwardedSignals:
    """Forwards signals to the workers; a context manager that restores the handlers at its end."""

    def __init__(self, stopped: Path) -> None:
        """Takes a file to create at the first signal, so that no worker is started after it."""
        self._stopped = stopped
        self._first: tuple[int, float] | None = None

    @property
    def received(self) -> int | None:
        """The first signal that asked to stop."""
        return self._first and self._first[0]

    def __enter__(self) -> None:
        self._handlers = {
            number: signal.signal(number, self._forward) for number in signals_to_handle()
        }

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        is_second = self._first is not None and now - self._first[1] > _ONE_REQUEST
        self._first = self._first or (number, now)
        self._stopped.touch()
        for worker in multiprocessing.active_children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid or 0, signal.SIGKILL if is_second else number)
        if is_second:
            shutil.rmtree(self._stopped.parent, ignore_errors=True)
            os._exit(128 + number)


def _code_of_failure(agent: _AgentThread, signals: _ForwardedSignals) -> int:
    """Returns the exit code of a run that a worker ended without a result.

    Raises:
        RewarmError: it was killed.
        Preempted: a signal has stopped the run before its start.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if signals.received is not None:  # before the workers had handlers of their own
        raise_if_stopped([signals.received])
    if not isinstance(agent.error, ChildFailedError):
        raise RewarmError(f"the processes could not be started: {agent.error}") from agent.error
    # A rank that was killed comes first: the others have ended because of it.
    rank, failure = min(agent.error.failures.items(), key=lambda item: item[1].exitcode)
    if failure.exitcode >= 0:
        return failure.exitcode  # it has said why
    error = RewarmError(
        f"rank {rank} was killed ({signal.Signals(-failure.exitcode).name}), by the system for "
        "want of memory or by someone; what is saved is kept: run the same command again with "
        "--resume, or have it started again with --max-restarts"
    )
    raise error


def run_worker(
    run: Callable[[list[str]], int], arguments: list[str], stopped: str, launcher: int
) -> int:
    """Runs a command line as one of several processes, and returns its exit code.

    A process that has ended without an agreement with the others exits at once.

    Args:
        run: runs the command line.
        arguments: the words after `rewarm`.
        stopped: a file that exists once the run has been asked to stop.
        launcher: the process id of the launcher.
    """
    _end_with_launcher()
    if Path(stopped).exists() or os.getppid() != launcher:
        return exit_codes.STOPPED
    code = run(arguments)
    if has_ended_alone():
        os._exit(code)
    return code


def _end_with_launcher() -> None:
    """Has the system kill this process when its launcher is killed.

    It leaves the launcher's process group: a terminal sends its signals to the launcher only, which
    forwards them once.
    """
    os.setpgrp()
    libc: Any = ctypes.CDLL(None)
    libc.prctl(_KILL_WITH_PARENT, signal.SIGKILL)
