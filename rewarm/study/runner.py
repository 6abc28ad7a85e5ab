"""Runs a study: every arm with every seed, one process each, by as many workers as there are.

```
 Plan ── jobs ──> worker: take the next that is free ── lock ──> rewarm train ARM/SEED.yaml --resume
                     skip what is done, or somebody else's             └── its own run directory
```

What is done, is at work or is left is read from the folder alone, so a study that was killed goes
on where it was, and several machines that share the folder share the work.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, RLock, Thread
from typing import IO, NamedTuple

from rewarm.checkpoints.find_checkpoint import list_checkpoints
from rewarm.errors import CheckpointError, Preempted, RewarmError
from rewarm.recipe.recipe import Recipe
from rewarm.runs.metrics_file import read_metrics
from rewarm.runs.resume_changes import recipe_changes
from rewarm.study.outcomes import StudyResults, read_outcome
from rewarm.study.study_file import StudyPlan, StudyRun

_PAUSE = 0.5  # seconds between two looks at the folder


class RunStatus(NamedTuple):
    """How far a run is."""

    name: str
    what: str
    """`waiting`, `running`, `elsewhere` (another process has it), `done` or `failed`."""
    step: int
    steps: int
    why: str = ""
    """Of a failed one, the last line that it said."""


def is_complete(recipe: Recipe) -> bool:
    """Returns whether a run is complete, as this recipe would have it.

    Raises:
        CheckpointError: it is complete, but was made by another recipe; or it is damaged.
    """
    directory = Path(recipe.run)
    last = list_checkpoints(directory).get(recipe.steps)
    if last is None:
        return False
    if different := recipe_changes(last, recipe):
        raise CheckpointError(
            f"{directory}: is complete, by another recipe: {'; '.join(different[:3])}; move it "
            "away, or take the changes back"
        )
    return True


class StudyRunner:
    """The work on a study."""

    def __init__(self, plan: StudyPlan) -> None:
        """Takes the study; nothing is begun."""
        self.plan = plan
        trained = [StudyRun("", 0, recipe, None) for recipe in plan.bases.values()]
        self._jobs = {job.directory: job for job in [*trained, *plan.jobs]}
        self._done: set[Path] = set()
        self._failed: dict[Path, RewarmError | str] = {}
        self._mine: dict[Path, subprocess.Popen[bytes] | None] = {}
        self._taking = RLock()
        self._stop = Event()
        self._root = Path(plan.study.study)

    def work(self, workers: int, show: Callable[[list[RunStatus]], None]) -> None:
        """Does all that is left to do.

        Args:
            workers: how many runs at once.
            show: is given the states now and then, and at the end.

        Raises:
            Preempted: a signal asked to stop; the runs at work are saved.
            RewarmError: runs failed; all others are done.
        """
        asked: list[int] = []

        def stop(number: int, _frame: object) -> None:
            asked.append(number)
            self._stop.set()
            for process in list(self._mine.values()):
                if process is not None:
                    process.send_signal(signal.SIGTERM)

        (self._root / "locks").mkdir(parents=True, exist_ok=True)
        before = {one: signal.signal(one, stop) for one in (signal.SIGINT, signal.SIGTERM)}
        threads = [Thread(target=self._worker, args=(index, workers)) for index in range(workers)]
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                show(self.states())
                time.sleep(_PAUSE)
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)
        show(self.states())
        if asked:
            error = Preempted(
                f"{signal.Signals(asked[0]).name}: stopped, everything saved; go on "
                "with the same command"
            )
            error.exit_code = 130 if asked[0] == signal.SIGINT else 75
            raise error
        if self._failed:
            raise self._failures()

    def states(self) -> list[RunStatus]:
        """Returns how far each run is."""
        return [self._state(job) for job in self._jobs.values()]

    def results(self) -> StudyResults:
        """Returns what came of the runs that are complete."""
        ran = {
            (job.arm, job.seed): found
            for job in self.plan.jobs
            if self._is_done(job) and (found := read_outcome(job.directory))
        }
        return StudyResults(ran)

    def _state(self, job: StudyRun) -> RunStatus:
        steps = job.recipe.steps
        if self._is_done(job):
            return RunStatus(job.name, "done", steps, steps)
        if job.directory in self._failed:
            why = str(self._failed[job.directory])
            return RunStatus(job.name, "failed", _step(job.directory), steps, why)
        with self._taking:
            if job.directory in self._mine:
                return RunStatus(job.name, "running", _step(job.directory), steps)
            free = self._lock(job)
            if free is not None:
                free.close()
        what = "waiting" if free else "elsewhere"
        return RunStatus(job.name, what, _step(job.directory), steps)

    def _is_done(self, job: StudyRun) -> bool:
        if job.directory in self._done:
            return True
        try:
            if is_complete(job.recipe):
                self._done.add(job.directory)
            return job.directory in self._done
        except RewarmError as error:
            self._failed[job.directory] = error
            return False

    def _worker(self, index: int, workers: int) -> None:
        """Takes one run after the other, until none is left that could be begun."""
        while not self._stop.is_set():
            taken = self._take()
            if taken is not None:
                self._run(*taken, index, workers)
            elif self._left():
                self._stop.wait(_PAUSE)  # for a base, or for what another process has
            else:
                return

    def _left(self) -> list[StudyRun]:
        """Returns the runs that are neither done, nor failed, nor waiting for one that failed."""
        return [
            job
            for job in self._jobs.values()
            if not self._is_done(job) and job.directory not in self._failed
        ]

    def _take(self) -> tuple[StudyRun, IO[str]] | None:
        """Returns the next run that can be begun, and the lock that keeps others from it."""
        with self._taking:
            for job in self._left():
                if job.directory in self._mine:
                    continue
                if job.needs is not None:
                    base = self._jobs[Path(self.plan.bases[job.needs].run)]
                    if base.directory in self._failed:
                        self._failed[job.directory] = f"its base {job.needs} failed"
                    if not self._is_done(base):
                        continue
                lock = self._lock(job)
                if lock is None:
                    continue
                if self._is_done(job):  # by somebody, since the look at it above
                    lock.close()
                    continue
                self._mine[job.directory] = None
                return job, lock
        return None

    def _lock(self, job: StudyRun) -> IO[str] | None:
        """Returns a run's lock, or None while another has it."""
        path = self._root / "locks" / f"{job.name.replace('/', '.')}.lock"
        lock = path.open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            return None
        return lock

    def _run(self, job: StudyRun, lock: IO[str], index: int, workers: int) -> None:
        recipe, log = _beside(job.directory, ".yaml"), _beside(job.directory, ".log")
        job.directory.parent.mkdir(parents=True, exist_ok=True)
        recipe.write_text(job.recipe.to_yaml(), encoding="utf-8")
        with lock, log.open("ab") as said:
            # The lock goes on into the process: it stays taken if this one is killed alone.
            process = subprocess.Popen(
                [sys.executable, "-m", "rewarm", "train", str(recipe), "--resume"],
                stdout=said,
                stderr=said,
                stdin=subprocess.DEVNULL,
                pass_fds=[lock.fileno()],
                env=_environment(index, self._at_once(job, workers)),
                start_new_session=True,  # Ctrl-C reaches it through `stop` alone, once
            )
            self._mine[job.directory] = process
            if self._stop.is_set():
                process.send_signal(signal.SIGTERM)
            code = process.wait()
            del self._mine[job.directory]
        if code and not self._stop.is_set():
            self._failed[job.directory] = _last_line(log) or f"ended with exit code {code}"

    def _at_once(self, job: StudyRun, workers: int) -> int:
        """Returns how many runs are at work beside each other: while arms wait, bases alone."""
        waits = not job.arm and all(one.needs for one in self.plan.jobs)
        return min(workers, len(self.plan.bases)) if waits else workers

    def _failures(self) -> RewarmError:
        lines = [
            f"{self._jobs[directory].name}: {why}; {_beside(directory, '.log')}"
            for directory, why in self._failed.items()
        ]
        count = f"{len(lines)} of {len(self._jobs)} runs failed, the others are done"
        return CheckpointError("\n  ".join([f"{count}:", *lines]))


def _beside(directory: Path, ending: str) -> Path:
    return directory.with_name(directory.name + ending)


def _environment(index: int, at_once: int) -> dict[str, str]:
    """Returns the environment of a run: a GPU of its own, or its share of the cores."""
    environment = dict(os.environ)
    gpus = _gpus()
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
    elif at_once > 1:
        # More threads than cores wait for each other, many times as long as they compute. The last
        # bits of a run on a CPU depend on its threads: set OMP_NUM_THREADS to fix them.
        share = max(1, (os.cpu_count() or 1) // at_once)
        environment.setdefault("OMP_NUM_THREADS", str(share))
    return environment


def _gpus() -> list[str]:
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is not None:
        return [one for one in said.split(",") if one.strip()]
    return [path.name.removeprefix("nvidia") for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]


def _step(directory: Path) -> int:
    try:
        lines = read_metrics(directory / "metrics.jsonl")
    except RewarmError:
        return 0
    return max((int(line["step"]) for line in lines), default=0)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
