"""A run of a study as a job with one state: waiting, running, done or failed."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Literal

from rewarm import exit_codes
from rewarm.errors import RewarmError
from rewarm.files import FileStamp, atomic_write
from rewarm.runs.metrics_file import METRICS_FILE, LastStepReader
from rewarm.study.run_outcomes import RunOutcome, read_outcome
from rewarm.study.stale_runs import check_started_from_base, is_complete
from rewarm.study.study_plan import StudyRun

_STOPPED = (exit_codes.STOPPED, exit_codes.INTERRUPTED, -signal.SIGTERM)
"""Exit codes of a run that was asked to stop: saved, or ended before it had begun."""


class Job:
    """One run of a study, its state, and its process while it runs.

    Only one thread may change it.
    """

    def __init__(self, run: StudyRun, base: Job | None = None) -> None:
        """Prepares a job.

        Args:
            run: the run.
            base: the job of the study's base that the run starts from, if any.
        """
        self.run = run
        self.state: Literal["waiting", "running", "done", "failed"] = "waiting"
        self.failure = ""
        """Why it failed; empty in other states."""
        self.outcome: RunOutcome | None = None
        """What it has measured, once it is done."""
        self.gpus: list[str] = []
        """Of its last worker."""
        self.step_at_start = 0
        """The last step in its metrics when its last process started."""
        self.exit_code: Future[int] | None = None
        """Of its last process."""
        self.log = beside_run(run.directory, ".log")
        self._base = base
        self._process: subprocess.Popen[bytes] | None = None
        self._is_terminated = False
        self._lock: IO[str] | None = None
        self._log_start = 0
        self._steps = LastStepReader(run.directory / METRICS_FILE)
        self._failure_file = beside_run(run.directory, ".failure")
        self._earlier_failure = _stamp(self._failure_file)

    @property
    def can_start(self) -> bool:
        """Whether it waits for nothing."""
        return self.state == "waiting" and (self._base is None or self._base.state == "done")

    @property
    def last_training(self) -> dict[str, Any]:
        """The last line of training metrics that `last_step` has read; empty if there is none."""
        return self._steps.last_training or {}

    def last_step(self) -> int:
        """Returns the last step in its metrics."""
        return self._steps.read()

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """Marks the job as failed if an error is raised inside."""
        try:
            yield
        except Exception as error:  # whatever it is, the other runs go on, and it is reported
            self._fail(_describe(error, self.run.directory))

    def refresh(self) -> None:
        """Changes the state of a waiting job if it is complete, or if its base failed.

        A complete run whose base is to be trained again waits for it, to be compared with it.

        Raises:
            RewarmError: see `is_complete`.
        """
        if self.state != "waiting" or (self._base and self._base.state in ("waiting", "running")):
            return
        if is_complete(self.run.recipe):
            self.outcome = read_outcome(self.run.directory)
            self.state = "done"
        elif self._base and self._base.state == "failed":
            self._fail(f"its base {self._base.run.name} failed")

    def start(
        self,
        lock: IO[str],
        gpus: list[str],
        environment: dict[str, str],
        executor: ThreadPoolExecutor,
    ) -> bool:
        """Starts `rewarm train` and returns True; False if another process has ended the run.

        Args:
            lock: the lock of the run, which is released when its process has ended.
            gpus: the GPUs of the worker.
            environment: the environment of the process.
            executor: waits for the process to end.

        Raises:
            RewarmError, OSError: it cannot start.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(lock)
            self.refresh()  # it may have ended since the lock was tried
            failure = _stamp(self._failure_file)
            if failure and failure != self._earlier_failure:
                reason = self._failure_file.read_text(encoding="utf-8", errors="replace")
                self._fail(f"in another process: {reason.strip()}")
            if self.state != "waiting":
                return False
            check_started_from_base(self.run.recipe)
            recipe = recipe_file_of(self.run.directory)
            recipe.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(recipe, self.run.recipe.to_yaml())
            self._failure_file.unlink(missing_ok=True)
            with self.log.open("ab") as output:
                self._log_start = output.tell()
                # The process inherits the lock, which stays held if only this process is killed.
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "rewarm", "train", str(recipe), "--resume"],
                    stdout=output,
                    stderr=output,
                    stdin=subprocess.DEVNULL,
                    pass_fds=[lock.fileno()],
                    env=environment,
                    start_new_session=True,  # Ctrl-C reaches it only once, through `terminate`
                )
            self.state, self.gpus, self._lock = "running", gpus, lock
            self.step_at_start = self.last_step()
            self.exit_code = executor.submit(self._process.wait)
            stack.pop_all()  # `finish` releases the lock
            return True

    def terminate(self, *, repeat: bool) -> None:
        """Asks the process to save and end; again only if `repeat`."""
        if self._process is not None and (repeat or not self._is_terminated):
            self._is_terminated = True
            self._process.send_signal(signal.SIGTERM)

    def finish(self, *, is_stopped: bool) -> None:
        """Records how the process ended, and releases the lock.

        Args:
            is_stopped: whether it was asked to stop.
        """
        assert self.exit_code is not None
        assert self._lock is not None
        code = self.exit_code.result()
        with self._lock, self.failing():
            self.state = "waiting"
            if is_stopped and code in _STOPPED:
                return
            if code == exit_codes.DONE:
                self.refresh()
            if self.state == "waiting":
                self._fail(self._failure_of_process(code))
            if self.failure:  # while the lock is held: another process would run it again
                atomic_write(self._failure_file, self.failure + "\n")

    def _fail(self, reason: str) -> None:
        """Marks the job as failed; the first reason stays."""
        self.state, self.failure = "failed", self.failure or reason

    def _failure_of_process(self, code: int) -> str:
        if code < 0:
            name = signal.Signals(-code).name
            hint = " (by the system, if memory ran out: see dmesg)"
            return (
                f"killed by {name}{hint if -code == signal.SIGKILL else ''} after step "
                f"{self.last_step():,}; the same command continues it"
            )
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode("utf-8", errors="replace").strip().splitlines()
        errors = [index for index, line in enumerate(lines) if line.startswith("error: ")]
        message = " ".join(line.strip() for line in lines[errors[-1] if errors else -1 :])
        return message or f"ended with exit code {code} and no message"


def _describe(error: Exception, directory: Path) -> str:
    """Returns why a run failed, from an error outside its process."""
    if isinstance(error, RewarmError):
        return str(error)
    if isinstance(error, OSError):
        return (
            f"{error.filename or directory}: {error.strerror or error}; check the path, its "
            "permissions and the free disk space"
        )
    return f"{type(error).__name__}: {error}"


def _stamp(path: Path) -> FileStamp | None:
    """Returns the stamp of a file; None if it does not exist."""
    try:
        return FileStamp.of(path.stat())
    except OSError:
        return None


def recipe_file_of(directory: Path) -> Path:
    """Returns the file that a run of a study is started from: RUN.yaml beside its directory."""
    return beside_run(directory, ".yaml")


def beside_run(directory: Path, suffix: str) -> Path:
    """Returns the file of a run beside its directory with a suffix, such as `.log`."""
    return directory.with_name(directory.name + suffix)
