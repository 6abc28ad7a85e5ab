"""Runs a study: every arm with every seed, one process per run, several at the same time.

```
 StudyPlan ── runs ──> worker: claim the next free run ── lock ──> rewarm train RUN.yaml --resume
                       (skip what is done or locked elsewhere)        └── its own run directory
```

All state of the runs is in the study's folder: a study that was killed continues from there, and
several machines that share the folder divide the runs among them.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, RLock, Thread
from typing import IO, Literal, NamedTuple

from rewarm import exit_codes
from rewarm.checkpoints.find_checkpoint import list_checkpoints
from rewarm.checkpoints.training_state import read_training_state
from rewarm.errors import CheckpointError, Preempted, RewarmError
from rewarm.files import try_lock
from rewarm.recipe.recipe import Recipe
from rewarm.runs.metrics_file import read_metrics
from rewarm.runs.recorded_metrics import check_metrics, metrics_of_checkpoint
from rewarm.runs.resume_changes import data_changes, read_saved_recipe, recipe_changes
from rewarm.stop_signals import REPEATED_SIGNALS, signals_to_handle
from rewarm.study.run_outcomes import StudyResults, read_outcome
from rewarm.study.study_file import StudyPlan, StudyRun
from rewarm.study.worker_gpus import WorkerGpus, worker_environment

_POLL_SECONDS = 0.5  # between two checks of the study's folder

RunState = Literal["waiting", "running", "elsewhere", "done", "failed"]
"""`elsewhere`: another process runs it."""


class RunStatus(NamedTuple):
    """The progress of a run."""

    name: str
    state: RunState
    step: int
    steps: int
    failure: str = ""
    """The last line of a failed run's log, or its error; empty for other runs."""
    gpus: str = ""
    """Of a running run, as `CUDA_VISIBLE_DEVICES` names them; empty for other runs, or on a CPU."""


def is_complete(recipe: Recipe) -> bool:
    """Returns whether a run is complete and was made by this recipe.

    Raises:
        CheckpointError: it is complete, but was made by another recipe or with other data; or it
            is damaged.
        DataError: the index of a dataset cannot be read.
    """
    directory = recipe.run_directory
    checkpoint = list_checkpoints(directory).get(recipe.steps)
    if checkpoint is None:
        return False
    saved, state = read_saved_recipe(checkpoint), read_training_state(checkpoint)
    if not state.is_complete(recipe.steps):
        return False
    if changes := [*recipe_changes(saved, state, recipe), *data_changes(recipe, state)]:
        raise CheckpointError(
            f"{directory}: already complete, but by another recipe: {'; '.join(changes[:3])}; "
            "move the run away, or undo the changes"
        )
    check_metrics(directory, metrics_of_checkpoint(checkpoint, state))
    return True


class StudyRunner:
    """Runs every run of a study that is not complete."""

    def __init__(self, plan: StudyPlan) -> None:
        """Prepares the runs of a study, without starting any."""
        self.plan = plan
        bases = [StudyRun("", 0, recipe, None) for recipe in plan.bases.values()]
        self._runs = {run.directory: run for run in [*bases, *plan.runs]}
        self._done: set[Path] = set()
        self._failures: dict[Path, RewarmError | str] = {}
        self._processes: dict[Path, subprocess.Popen[bytes] | None] = {}
        """The processes of this object's workers by run directory; None until started."""
        self._gpus: dict[Path, list[str]] = {}
        """The GPUs of each run that was started, by run directory."""
        self._claim_lock = RLock()
        self._stop = Event()
        self._locks = Path(plan.study.study) / "locks"

    def run_all(self, workers: WorkerGpus, show: Callable[[list[RunStatus]], None]) -> None:
        """Runs every run that is not complete, and returns when all have ended.

        Args:
            workers: the GPUs of each worker; each runs one run at a time.
            show: called with the status of every run, twice per second and at the end.

        Raises:
            Preempted: a signal asked to stop; the running runs are saved.
            RewarmError: some runs failed; all others are complete.
        """
        signals: list[int] = []

        def stop(number: int, _frame: object) -> None:
            signals.append(number)
            self._stop.set()
            if number in REPEATED_SIGNALS and len(signals) > 1:
                return  # a second signal would end the runs before they are saved
            for process in list(self._processes.values()):
                if process is not None:
                    process.send_signal(signal.SIGTERM)

        self._locks.mkdir(parents=True, exist_ok=True)
        handlers = {number: signal.signal(number, stop) for number in signals_to_handle()}
        count = len(workers.sets)
        threads = [Thread(target=self._worker, args=(gpus, count)) for gpus in workers.sets]
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                statuses = self.statuses()
                with contextlib.suppress(OSError):  # a closed terminal must not end the study
                    show(statuses)
                time.sleep(_POLL_SECONDS)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        statuses = self.statuses()
        with contextlib.suppress(OSError):
            show(statuses)
        if signals:
            raise _preempted(signals[0])
        if self._failures:
            raise self._failures_error()

    def statuses(self) -> list[RunStatus]:
        """Returns the progress of each run."""
        return [self._status(run) for run in self._runs.values()]

    def results(self) -> StudyResults:
        """Returns the outcomes of the runs that are complete."""
        outcomes = {
            (run.arm, run.seed): outcome
            for run in self.plan.runs
            if self._is_done(run) and (outcome := read_outcome(run.directory))
        }
        return StudyResults(outcomes)

    def _status(self, run: StudyRun) -> RunStatus:
        steps = run.recipe.steps
        if self._is_done(run):
            return RunStatus(run.name, "done", steps, steps)
        step = _last_step(run.directory)
        if run.directory in self._failures:
            failure = str(self._failures[run.directory])
            return RunStatus(run.name, "failed", step, steps, failure)
        with self._claim_lock:
            if run.directory in self._processes:
                gpus = ",".join(self._gpus[run.directory])
                return RunStatus(run.name, "running", step, steps, gpus=gpus)
            lock = self._lock(run)
            if lock is None:
                return RunStatus(run.name, "elsewhere", step, steps)
            lock.close()
        return RunStatus(run.name, "waiting", step, steps)

    def _is_done(self, run: StudyRun) -> bool:
        if run.directory in self._done:
            return True
        try:
            if is_complete(run.recipe):
                self._done.add(run.directory)
            return run.directory in self._done
        except RewarmError as error:
            self._failures[run.directory] = error
            return False

    def _worker(self, gpus: list[str], workers: int) -> None:
        """Runs one run after another, until all are done or failed."""
        while not self._stop.is_set():
            run_and_lock = self._claim_next(gpus)
            if run_and_lock is not None:
                self._train(*run_and_lock, workers)
            elif self._unfinished_runs():
                self._stop.wait(_POLL_SECONDS)  # until a base or another process's run is done
            else:
                return

    def _unfinished_runs(self) -> list[StudyRun]:
        """Returns the runs that are neither done nor failed."""
        return [
            run
            for run in self._runs.values()
            if not self._is_done(run) and run.directory not in self._failures
        ]

    def _claim_next(self, gpus: list[str]) -> tuple[StudyRun, IO[str]] | None:
        """Returns the next run that can start, with its lock, and gives it these GPUs.

        Returns None if no run can start now.
        """
        with self._claim_lock:
            for run in self._unfinished_runs():
                if run.directory in self._processes or not self._base_is_done(run):
                    continue
                lock = self._lock(run)
                if lock is None:
                    continue
                if self._is_done(run):  # by another process, after it was listed above
                    lock.close()
                    continue
                self._gpus[run.directory] = gpus
                self._processes[run.directory] = None
                return run, lock
        return None

    def _base_is_done(self, run: StudyRun) -> bool:
        """Returns whether a run's base is complete; marks the run as failed if its base failed."""
        if run.needs_base is None:
            return True
        base = self._runs[self.plan.bases[run.needs_base].run_directory]
        if base.directory in self._failures:
            self._failures[run.directory] = f"its base {run.needs_base} failed"
        return self._is_done(base)

    def _lock(self, run: StudyRun) -> IO[str] | None:
        """Acquires and returns a run's lock; None if another process holds it."""
        return try_lock(self._locks / f"{run.name.replace('/', '.')}.lock")

    def _train(self, run: StudyRun, lock: IO[str], workers: int) -> None:
        """Runs `rewarm train` in a process, waits until it ends, and records a failure."""
        recipe, log = recipe_file_of(run.directory), _sibling(run.directory, ".log")
        run.directory.parent.mkdir(parents=True, exist_ok=True)
        recipe.write_text(run.recipe.to_yaml(), encoding="utf-8")
        with lock, log.open("ab") as output:
            # The process inherits the lock, which stays held if only this process is killed.
            process = subprocess.Popen(
                [sys.executable, "-m", "rewarm", "train", str(recipe), "--resume"],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                pass_fds=[lock.fileno()],
                env=worker_environment(
                    self._gpus[run.directory], self._concurrent_runs(run, workers)
                ),
                start_new_session=True,  # Ctrl-C reaches it only once, through `stop`
            )
            self._processes[run.directory] = process
            if self._stop.is_set():
                process.send_signal(signal.SIGTERM)
            exit_code = process.wait()
            del self._processes[run.directory]
        if exit_code and not self._stop.is_set():
            self._failures[run.directory] = _last_line(log) or f"ended with exit code {exit_code}"

    def _concurrent_runs(self, run: StudyRun, workers: int) -> int:
        """Returns how many runs share the machine: only the bases if all arms wait for them."""
        all_arms_wait = not run.arm and all(other.needs_base for other in self.plan.runs)
        return min(workers, len(self.plan.bases)) if all_arms_wait else workers

    def _failures_error(self) -> RewarmError:
        lines = [
            f"{self._runs[directory].name}: {failure}; {_sibling(directory, '.log')}"
            for directory, failure in self._failures.items()
        ]
        summary = f"{len(lines)} of {len(self._runs)} runs failed, the others are done"
        return CheckpointError("\n  ".join([f"{summary}:", *lines]))


def _preempted(number: int) -> Preempted:
    error = Preempted(
        f"{signal.Signals(number).name}: stopped, everything saved; continue with the same command"
    )
    if number == signal.SIGINT:
        error.exit_code = exit_codes.INTERRUPTED
    return error


def recipe_file_of(directory: Path) -> Path:
    """Returns the file that a run of a study is started from: RUN.yaml beside its directory."""
    return _sibling(directory, ".yaml")


def _sibling(directory: Path, suffix: str) -> Path:
    return directory.with_name(directory.name + suffix)


def _last_step(directory: Path) -> int:
    try:
        lines = read_metrics(directory / "metrics.jsonl")
    except RewarmError:
        return 0
    return max((int(line["step"]) for line in lines), default=0)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
