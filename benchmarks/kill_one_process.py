"""Kills one process of a run on several, and checks that the run ends like an undisturbed one.

    python benchmarks/kill_one_process.py [--kills 40] [--restarts 0] [--load 0] [--seed 1]

`--kills`: starts `rewarm train --gpus N --resume` and sends SIGKILL to one random rank or to the
launcher, while the run starts, trains, saves, or renames a checkpoint; then `rewarm verify` has to
find the run directory intact, and the same command continues. A run that ends has to have the
bytes and the metrics of one that was not killed. Runs with `parallel.shard` 1 and all alternate.
`--restarts`: as many runs with `--max-restarts 1`, of which one rank is killed once: they have to
end the same way by themselves. `--load` processes compute meanwhile.

Prints how many kills hit whom and what, the messages of the runs, how long the other processes
took to end, and what is wrong: nothing should be. Whatever takes longer than its limit counts as
hanging.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from resume_after_kill import outcome, training_command

from rewarm.cli.commands.verify import verify
from rewarm.errors import RewarmError

MOMENTS = ("starting", "training", "saving", "renaming")
END_LIMIT, RUN_LIMIT = 120.0, 600.0
"""Seconds until the other processes have ended after a kill; and of a whole run."""
POLL_SECONDS = 0.0005
STEPS = {"tokens": "40960"}  # 40 steps: logged each, saved every 2, evaluated every 3


class Reference(NamedTuple):
    """An undisturbed run."""

    starting: float
    """Seconds until its first step."""
    training: float
    """Seconds from then to its end."""
    outcome: object


class Run:
    """A run on several processes, in a session of its own."""

    def __init__(self, command: list[str], directory: Path) -> None:
        self.directory, self.log = directory, directory.with_suffix(".log")
        self._starts_before = self.starts()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, "--set", f"run={directory}"],
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        self.started = time.monotonic()

    def starts(self) -> int:
        """Returns how often the directory's run has started to train."""
        events = self.directory / "events.jsonl"
        return events.read_text().count('"kind": "start"') if events.exists() else 0

    def has_started(self, times: int = 1) -> bool:
        return self.starts() - self._starts_before >= times

    def is_saving(self) -> bool:
        return any((self.directory / "checkpoints").glob("*.partial"))

    def is_renaming(self) -> bool:
        return any((self.directory / "checkpoints").glob("*.partial/MANIFEST.json"))

    def wait_until(self, condition: Callable[[], bool], limit: float = RUN_LIMIT) -> bool:
        """Waits until a condition holds; returns False if the run ended before."""
        deadline = time.monotonic() + limit
        while not condition():
            if self.process.poll() is not None:
                return False
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(POLL_SECONDS)
        return True

    def ranks(self) -> list[int]:
        """Returns the process ids of the ranks that have been started, in order."""
        return sorted(pid for pid, command in self._processes() if b"spawn_main" in command)

    def _processes(self) -> Iterator[tuple[int, bytes]]:
        """Yields the processes of the session that have not ended, with their commands."""
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                state, _, _, session = (path / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) == self.process.pid and state != "Z":
                    yield int(path.name), (path / "cmdline").read_bytes()

    def wait_for_end(self, limit: float) -> float:
        """Waits until all processes have ended; returns the seconds that this took.

        Raises:
            TimeoutError: they have not ended in that time; they are killed.
        """
        waiting_since = time.monotonic()
        while self.process.poll() is None or any(self._processes()):
            if time.monotonic() - waiting_since > limit:
                for pid, _ in self._processes():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                raise TimeoutError
            time.sleep(0.01)
        return time.monotonic() - waiting_since

    def errors(self) -> list[str]:
        lines = self.log.read_text().splitlines()
        return [line for line in lines if line.startswith(("error:", "Traceback"))]


class Campaign:
    """Runs, kills, and what was wrong."""

    def __init__(self, root: Path, processes: int, random_numbers: random.Random) -> None:
        self.root, self.processes, self.random = root, processes, random_numbers
        self.command = training_command(root)
        self.command += [w for k, v in STEPS.items() for w in ("--set", f"{k}={v}")]
        self.command += ["--gpus", str(processes)]
        self.references: dict[str, Reference] = {}
        self.hits = Counter[tuple[str, str]]()
        """Kills by who was killed, and during what."""
        self.messages = Counter[str]()
        self.end_seconds: list[float] = []
        self.restart_seconds: list[float] = []
        self.kills = self.ended = self.restarted = 0
        self.problems: list[str] = []

    def start(self, name: str, shard: str, *more: str) -> Run:
        command = [*self.command, "--set", f"parallel.shard={shard}", *more]
        return Run(command, self.root / name)

    def run_undisturbed(self, shard: str) -> None:
        run = self.start(f"undisturbed-{shard}", shard)
        assert run.wait_until(run.has_started), run.log.read_text()
        first_step = time.monotonic()
        run.wait_for_end(RUN_LIMIT)
        assert run.process.returncode == 0, run.log.read_text()
        self.references[shard] = Reference(
            first_step - run.started, time.monotonic() - first_step, outcome(run.directory)
        )

    def kill(self, run: Run, shard: str, moment: str, victims: str) -> str | None:
        """Kills a process of a run at a moment; returns who it was, or None if the run has ended.

        `victims`: `any`, or `ranks` for a rank only.
        """
        reference = self.references[shard]
        if moment == "starting":
            time.sleep(self.random.uniform(0, reference.starting))
        else:
            if not run.wait_until(run.has_started):
                return None
            time.sleep(self.random.uniform(0, 0.6 * reference.training))
        if moment == "saving":
            if not run.wait_until(run.is_saving):
                return None
            time.sleep(self.random.uniform(0, 0.02))
        if moment == "renaming" and not run.wait_until(run.is_renaming):
            return None
        if victims == "ranks" and not run.wait_until(lambda: len(run.ranks()) == self.processes):
            return None
        ranks = run.ranks()
        candidates = [("launcher", run.process.pid)] if victims == "any" else []
        candidates += [(f"rank {rank}", pid) for rank, pid in enumerate(ranks)]
        victim, pid = self.random.choice(candidates)
        if run.process.poll() is not None:
            return None
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return None
        self.kills += 1
        hit = "starting" if not run.has_started() else "training"
        hit = "renaming" if run.is_renaming() else "saving" if run.is_saving() else hit
        self.hits[victim, hit] += 1
        return victim

    def check_directory(self, directory: Path) -> None:
        """Has `rewarm verify` read a run directory, if anything is in it."""
        if not (directory / "metrics.jsonl").exists():
            return
        try:
            with contextlib.redirect_stdout(None):
                verify(directory)
        except RewarmError as error:
            self.problems.append(f"unreadable: {error}")

    def kill_and_resume(self, name: str, shard: str) -> bool:
        """Starts or resumes a run and kills one process; returns whether the run is done."""
        run = self.start(name, shard)
        try:
            victim = self.kill(run, shard, self.random.choice(MOMENTS), "any")
            seconds = run.wait_for_end(END_LIMIT)
        except TimeoutError:
            self.problems.append(f"{name} hangs: {run.log.read_text()[-2000:]}")
            run.wait_for_end(END_LIMIT)
            return False
        self.check_directory(run.directory)
        if victim is None or run.process.returncode == 0:
            return self.check_end(run, shard)
        self.end_seconds.append(seconds)
        for error in run.errors() or ["no message"]:
            if victim != "launcher":
                self.messages[error.replace(str(self.root), "")[:110]] += 1
        return False

    def check_end(self, run: Run, shard: str) -> bool:
        """Compares a run that has ended with the undisturbed one."""
        if run.process.returncode:
            self.problems.append(f"{run.directory.name}: {run.log.read_text()[-2000:]}")
        elif outcome(run.directory) != self.references[shard].outcome:
            self.problems.append(f"{run.directory.name}: differs from the undisturbed run")
        else:
            self.ended += 1
        return True

    def kill_and_wait_for_restart(self, name: str, shard: str) -> None:
        """Kills a rank of a run that restarts by itself, and waits for the run's end."""
        run = self.start(name, shard, "--max-restarts", "1")
        problems, ended = len(self.problems), self.ended
        try:
            starts = 1
            victim = self.kill(run, shard, self.random.choice(MOMENTS), "ranks")
            killed = time.monotonic()
            starts += run.has_started()
            if victim and run.wait_until(lambda: run.has_started(starts)):
                self.restart_seconds.append(time.monotonic() - killed)
            run.wait_for_end(RUN_LIMIT)
        except TimeoutError:
            self.problems.append(f"{name} hangs: {run.log.read_text()[-2000:]}")
            run.wait_for_end(END_LIMIT)
            return
        self.check_directory(run.directory)
        self.check_end(run, shard)
        self.restarted += len(self.problems) == problems and self.ended > ended

    def report(self, restarts: int) -> None:
        rows = sorted(self.hits.items())
        print(f"{self.kills} kills, {self.ended} runs ended like the undisturbed ones")
        print("; ".join(f"{victim} {hit}: {count}" for (victim, hit), count in rows))
        if self.end_seconds:
            print(f"seconds until all processes had ended: {spread(self.end_seconds)}")
        if restarts:
            print(f"{self.restarted} of {restarts} runs restarted by themselves and ended the same")
        if self.restart_seconds:
            print(f"seconds from the kill to the next start: {spread(self.restart_seconds)}")
        for message, count in self.messages.most_common():
            print(f"{count} × {message}")
        print("\n".join(self.problems) or "nothing is wrong: no run directory was unreadable")


def spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Has processes compute, for the duration of a block."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def main() -> None:
    """Kills, resumes and compares runs, and prints what happened."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--restarts", type=int, default=0)
    parser.add_argument("--load", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # on which the last bits depend
    with tempfile.TemporaryDirectory() as work:
        campaign = Campaign(Path(work), options.processes, random.Random(options.seed))
        for shard in ("1", "all"):
            campaign.run_undisturbed(shard)
        number = 0
        with busy_processes(options.load):
            while campaign.kills < options.kills:
                done = campaign.kill_and_resume(f"killed-{number}", ("1", "all")[number % 2])
                number += done
                print(f"{campaign.kills} kills, {number} runs", file=sys.stderr, flush=True)
            for number in range(options.restarts):
                shard = ("1", "all")[number % 2]
                campaign.kill_and_wait_for_restart(f"restarted-{number}", shard)
                print(f"{number + 1} restarts", file=sys.stderr, flush=True)
        campaign.report(options.restarts)
    sys.exit(bool(campaign.problems))


if __name__ == "__main__":
    main()
