"""Runs a study: every arm with every seed, one process per run, several at the same time.

```
 StudyPlan ── jobs ──> the next free job ── lock ──> rewarm train RUN.yaml --resume ──> exit code
                       (skip what is done or locked elsewhere)   └── its own run directory
```

All state of the runs is in the study's folder: a study that was killed continues from there, and
several machines that share the folder divide the runs among them. Only the main thread starts jobs
and changes their states; the other threads wait for the processes to end.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import IO, Literal, NamedTuple

from rewarm import exit_codes
from rewarm.errors import CheckpointError, Preempted
from rewarm.files import create_folder, try_lock
from rewarm.stop_signals import REPEATED_SIGNALS, signals_to_handle
from rewarm.study.job import Job
from rewarm.study.run_outcomes import StudyResults
from rewarm.study.study_plan import StudyPlan, StudyRun
from rewarm.study.worker_gpus import WorkerGpus, worker_environment

_POLL_SECONDS = 0.5  # between two checks of the study's folder

ShownState = Literal["waiting", "running", "saving", "elsewhere", "done", "failed"]
"""`saving`: it was asked to save and end; `elsewhere`: another process runs it."""


class RunStatus(NamedTuple):
    """The progress of a run."""

    name: str
    state: ShownState
    step: int
    steps: int
    failure: str = ""
    """Why a failed run failed; empty for other runs."""
    gpus: str = ""
    """Of a running run, as `CUDA_VISIBLE_DEVICES` names them; empty for other runs, or on a CPU."""
    loss: float | None = None
    """Of the last step that was logged."""
    tokens_per_second: float | None = None
    """Of a run at work, at that step."""
    seconds_left: float | None = None
    """At that speed, without evaluations and saves."""

    @property
    def is_at_work(self) -> bool:
        """Whether its process runs."""
        return self.state in ("running", "saving", "elsewhere")


class StudyRunner:
    """Runs every run of a study that is not complete."""

    def __init__(self, plan: StudyPlan) -> None:
        """Prepares the runs of a study, without starting any."""
        self.plan = plan
        bases = {name: Job(StudyRun("", 0, recipe, None)) for name, recipe in plan.bases.items()}
        arms = [Job(run, bases.get(run.needs_base or "")) for run in plan.runs]
        self._jobs = [*bases.values(), *arms]
        self._signals: list[int] = []
        self._locks = Path(plan.study.study) / "locks"

    def run_all(
        self,
        workers: WorkerGpus,
        show: Callable[[list[RunStatus], str], None],
        *,
        threads: int | None = None,
    ) -> None:
        """Runs every run that is not complete, and returns when all have ended.

        Args:
            workers: the GPUs of each worker; each runs one run at a time.
            show: called with the status of every run, twice per second and at the end, and with
                what a signal does to them; "" before one comes.
            threads: CPU threads of each run; None to leave the number to PyTorch.

        Raises:
            Preempted: a signal asked to stop; the running runs are saved.
            RewarmError: some runs failed; all others are complete.
        """
        create_folder(self._locks)
        free_gpus = list(workers.sets)
        with self._signals_forwarded(), ThreadPoolExecutor(len(free_gpus)) as executor:
            try:
                while not self._take_turn(free_gpus, executor, threads):
                    self._show(show)
                    self._wait()
            except BaseException:
                self._terminate()  # the executor waits until the runs are saved
                raise
        self._show(show)
        failed = [job for job in self._jobs if job.state == "failed"]
        if self._signals:
            raise _preempted(self._signals[0], failed)
        if failed:
            summary = f"{len(failed)} of {len(self._jobs)} runs failed, the others are done:"
            raise CheckpointError("\n  ".join([summary, *map(_failure_line, failed)]))

    def results(self) -> StudyResults:
        """Returns the outcomes of the runs that are complete."""
        outcomes = {(job.run.arm, job.run.seed): job.outcome for job in self._jobs if job.run.arm}
        return StudyResults({run: outcome for run, outcome in outcomes.items() if outcome})

    def statuses(self) -> list[RunStatus]:
        """Returns the progress of each run."""
        return [self._status(job) for job in self._jobs]

    def _take_turn(
        self, free_gpus: list[list[str]], executor: ThreadPoolExecutor, threads: int | None
    ) -> bool:
        """Records the runs that ended, starts those that can start; returns whether all ended."""
        for job in self._jobs:
            if job.state == "running" and job.exit_code and job.exit_code.done():
                free_gpus.append(job.gpus)
                job.finish(is_stopped=bool(self._signals))
        for job in self._jobs:
            with job.failing():
                job.refresh()
                if free_gpus and not self._signals and job.can_start and (lock := self._lock(job)):
                    environment = worker_environment(free_gpus[0], threads)
                    if job.start(lock, free_gpus[0], environment, executor):
                        del free_gpus[0]
        if self._signals:
            self._terminate()  # also what started while the first signal came
            return not any(job.state == "running" for job in self._jobs)
        return all(job.state in ("done", "failed") for job in self._jobs)

    def _wait(self) -> None:
        """Waits until a run ends, and not longer than until the folder should be checked again."""
        running = [job.exit_code for job in self._jobs if job.state == "running" and job.exit_code]
        if running:
            wait(running, _POLL_SECONDS, return_when=FIRST_COMPLETED)
        else:
            time.sleep(_POLL_SECONDS)  # until a run of another process is done

    def _show(self, show: Callable[[list[RunStatus], str], None]) -> None:
        statuses, note = self.statuses(), ""
        if self._signals:
            name = signal.Signals(self._signals[0]).name
            note = f"{name}: saving the running runs; again to quit without saving"
        with contextlib.suppress(OSError):  # a closed terminal must not end the study
            show(statuses, note)

    def _status(self, job: Job) -> RunStatus:
        step, steps, metrics = job.last_step(), job.run.recipe.steps, job.last_training
        state: ShownState = job.state
        if state == "done":
            step = steps
        elif state == "running" and self._signals:
            state = "saving"
        elif state == "waiting" and self._is_locked(job):
            state = "elsewhere"
        status = RunStatus(job.run.name, state, step, steps, job.failure, loss=metrics.get("loss"))
        if not status.is_at_work:
            return status
        gpus = ",".join(job.gpus) if state != "elsewhere" else ""
        if step == job.step_at_start:  # what is known of its speed is from an earlier start
            return status._replace(gpus=gpus)
        speed = metrics.get("tokens_per_second")
        left = (steps - step) * job.run.recipe.batch.tokens / speed if speed else None
        return status._replace(gpus=gpus, tokens_per_second=speed, seconds_left=left)

    def _lock(self, job: Job) -> IO[str] | None:
        """Acquires and returns a run's lock; None if another process holds it."""
        return try_lock(self._locks / f"{job.run.name.replace('/', '.')}.lock")

    def _is_locked(self, job: Job) -> bool:
        with contextlib.suppress(OSError):  # is reported when the job should start
            lock = self._lock(job)
            if lock is None:
                return True
            lock.close()
        return False

    @contextlib.contextmanager
    def _signals_forwarded(self) -> Iterator[None]:
        """Asks the running runs to save and end when a signal asks this process to."""

        def stop(number: int, _frame: object) -> None:
            self._signals.append(number)
            if number in REPEATED_SIGNALS and len(self._signals) > 1:
                return  # a second signal would end the runs before they are saved
            self._terminate(repeat=True)

        handlers = {number: signal.signal(number, stop) for number in signals_to_handle()}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _terminate(self, *, repeat: bool = False) -> None:
        """Asks the running runs to save and end; those that were asked before only if `repeat`."""
        for job in self._jobs:
            if job.state == "running":
                job.terminate(repeat=repeat)


def _failure_line(job: Job) -> str:
    return f"{job.run.name}: {job.failure}; {job.log}"


def _preempted(number: int, failed: list[Job]) -> Preempted:
    lines = [
        f"{signal.Signals(number).name}: stopped, everything saved; continue with the same command"
    ]
    if failed:
        lines = [
            f"{signal.Signals(number).name}: stopped; {len(failed)} runs failed, the others are "
            "saved; continue with the same command:",
            *map(_failure_line, failed),
        ]
    error = Preempted("\n  ".join(lines))
    if number == signal.SIGINT:
        error.exit_code = exit_codes.INTERRUPTED
    return error
