"""What is lost when a run's disk, folder, clock or process fails: one real run for each trial.

    python benchmarks/disk_and_signal_faults.py [WORD...]

Builds two small corpora in a temporary folder, starts `rewarm train` as a user would, gets in its
way, and prints a table: the exit code, what was said, and what is left: the last whole checkpoint,
what `rewarm verify` finds, and whether `--resume` ends as the run that nothing happened to: the
same bytes of weights, moments and progress, the same metrics. Mounts need root; WORDs choose the
trials whose names have one of them.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from data_faults import RECIPE, build, rewarm
from resume_after_kill import outcome

from rewarm.checkpoints.find_checkpoint import last_checkpoint, list_checkpoints
from rewarm.runs.metrics_file import read_metrics

SMALL = {"tokens": "409600", "data.max_epochs": "null", "every": "{log: 10, save: 50}"}
# Saves that take so long that a signal can be aimed at them.
LARGE = {
    "model.architecture": "{layers: 8, hidden: 512, heads: 8, vocabulary: 300, positions: 64}",
    "tokens": "1536",
    "batch": "{tokens: 64, microbatch: 1}",
    "every": "{log: 1, save: 4}",
}
YESTERDAY = """\
import pathlib, time
for name, day in (("time", 86_400), ("time_ns", 86_400 * 10**9)):
    setattr(time, name, lambda now=getattr(time, name), day=day: now() - day)
pathlib.Path(__file__).with_name("was-read").touch()
"""
Ended = subprocess.CompletedProcess[str]


class NotMounted(Exception):
    """This machine does not let us mount anything."""


class Trials:
    """A recipe, the uninterrupted outcome of each of its sizes, and the rows so far."""

    def __init__(self, root: Path) -> None:
        self.root = root
        build(root)
        self.recipe = root / "recipe.yaml"
        self.recipe.write_text(RECIPE.format(run=root / "whole", a=root / "a", b=root / "b"))
        self.seconds: dict[str, float] = {}
        self.whole = {}
        for name, size in (("small", SMALL), ("large", LARGE)):
            began = time.perf_counter()
            ended = rewarm(*self.words(root / name, size))
            assert ended.returncode == 0, ended.stderr
            self.seconds[name] = time.perf_counter() - began
            self.whole[name] = outcome(root / name)

    def words(self, run: Path, size: dict[str, str], *more: str) -> list[str]:
        """Returns the words of a command that trains in `run`."""
        settings = [f"{name}={value}" for name, value in {"run": str(run), **size}.items()]
        told = [word for setting in settings for word in ("--set", setting)]
        return ["train", str(self.recipe), *told, *more]

    def start(
        self, run: Path, *more: str, size: dict[str, str] = SMALL, **environment: str
    ) -> subprocess.Popen[str]:
        """Starts a run, or goes on with it."""
        return subprocess.Popen(
            [sys.executable, "-m", "rewarm", *self.words(run, size, *more)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    def left(self, run: Path, size: str = "small", mend: Callable[[], object] = bool) -> str:
        """Returns what a failed run left, and how it ends when `mend` was called."""
        last = last_checkpoint(run)
        partial = [path.name for path in (run / "checkpoints").glob("*.partial")]
        found = [last.name if last else "no checkpoint", *partial]
        if last:
            found.append(f"verify {rewarm('verify', run).returncode}")
        mend()
        again = rewarm(*self.words(run, {"small": SMALL, "large": LARGE}[size], "--resume"))
        same = again.returncode == 0 and outcome(run) == self.whole[size]
        return ", ".join(found) + ("; resumed: same bytes" if same else f"; DIFFERS {again.stderr}")

    def row(self, trial: str, ended: Ended, left: str) -> None:
        """Prints one line of the table."""
        assert "Traceback" not in ended.stderr, ended.stderr
        assert "not an error that rewarm expects" not in ended.stderr, ended.stderr
        lines = ended.stderr.splitlines()
        told = [x for x in lines if x.startswith(("warning:", "error:"))] or lines[-1:] or ["-"]
        told = [line.replace(str(self.root), "") for line in dict.fromkeys([told[0], told[-1]])]
        said = " … ".join(line if len(line) < 190 else f"{line[:180]} [...]" for line in told)
        print(f"| {trial} | {ended.returncode} | {said} | {left} |", flush=True)


def ended(process: subprocess.Popen[str]) -> Ended:
    """Waits for the end of a process."""
    _, error = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, "", error)


def until(there: Callable[[], object], process: subprocess.Popen[str]) -> bool:
    """Waits until something is so; returns False when the process ended before."""
    while not there():
        if process.poll() is not None:
            return False
        time.sleep(0.0005)
    return True


@contextmanager
def mounted(folder: Path, *words: str) -> Iterator[None]:
    """A mount at a folder, for a while."""
    folder.mkdir(exist_ok=True)
    if subprocess.run(["mount", *words, str(folder)], capture_output=True, check=False).returncode:
        raise NotMounted
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def full_disk(trials: Trials, name: str, policy: str) -> None:
    """A disk with room for some checkpoints."""
    disk = trials.root / "disk"
    with mounted(disk, "-t", "tmpfs", "-o", "size=1m", "tmpfs"):
        filled(trials, name, disk, SMALL | {"on_save_error": policy})


def full_amid_a_file(trials: Trials, name: str) -> None:
    """A disk with room for two checkpoints, and for the tensors of a third but not for the rest."""
    disk, last = trials.root / "disk", last_checkpoint(trials.root / "small")
    assert last
    takes = sum(path.stat().st_blocks * 512 for path in last.iterdir())
    tensors = sum(path.stat().st_size for path in last.glob("*.safetensors"))
    with mounted(disk, "-t", "tmpfs", "-o", f"size={2 * takes + tensors + 40_000}", "tmpfs"):
        filled(trials, name, disk, SMALL)


def filled(trials: Trials, name: str, disk: Path, size: dict[str, str]) -> None:
    """A run on a disk that is too small, the same again, and again with room."""
    run = disk / "run"
    done = ended(trials.start(run, size=size))
    full = rewarm(*trials.words(run, size, "--resume"))
    assert full.returncode == 3, full.stderr
    trials.row(name, done, trials.left(run, mend=lambda: remount(disk, "size=50m")))
    trials.row(f"{name}: --resume while there is no room", full, "as before")


def disk_comes_back(trials: Trials, name: str) -> None:
    """A disk that is full for a while, and a SIGTERM when there is room again."""
    disk = trials.root / "disk"
    with mounted(disk, "-t", "tmpfs", "-o", "size=1m", "tmpfs"):
        run = disk / "run"
        process = trials.start(run, size=SMALL | {"every": "{log: 3, save: 50}"})
        until(lambda: last_checkpoint(run), process)
        (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free))
        time.sleep(0.5)
        (disk / "ballast").unlink()
        process.send_signal(signal.SIGTERM)
        done = ended(process)
        lines = len(read_metrics(run / "metrics.jsonl"))
        last = last_checkpoint(run)
        assert last
        whole = lines == int(last.name[5:]) // 3
        left = "every line of its metrics" if whole else f"ONLY {lines} lines of its metrics"
        trials.row(name, done, f"{last.name}, {left}")


def log_on_full_disk(trials: Trials, name: str) -> None:
    """What is said goes into a file on the disk that fills up."""
    disk = trials.root / "disk"
    with mounted(disk, "-t", "tmpfs", "-o", "size=1m", "tmpfs"):
        words = trials.words(disk / "run", SMALL)
        with (disk / "log").open("w") as log:
            process = subprocess.Popen([sys.executable, "-m", "rewarm", *words], stderr=log)
        until(lambda: last_checkpoint(disk / "run"), process)
        (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free))
        code = process.wait(timeout=300)
        said = (disk / "log").read_text()
        done = subprocess.CompletedProcess(words, code, "", said)
        trials.row(name, done, trials.left(disk / "run", mend=lambda: remount(disk, "size=50m")))


def read_only_before(trials: Trials, name: str) -> None:
    disk = trials.root / "disk"
    with mounted(disk, "-t", "tmpfs", "-o", "ro,size=9m", "tmpfs"):
        done = rewarm(*trials.words(disk / "run", SMALL))
        trials.row(name, done, "nothing was begun; "
                   + trials.left(disk / "run", mend=lambda: remount(disk, "rw")))  # fmt: skip


def read_only_midway(trials: Trials, name: str, policy: str) -> None:
    run = trials.root / f"read-only-{policy}"
    process = trials.start(run, size=SMALL | {"on_save_error": policy})
    until(lambda: len(list_checkpoints(run)) > 1, process)
    # A mount that covers the folder: files open for writing keep a whole disk from turning so.
    with mounted(run, "--bind", str(run)):
        remount(run, "bind,ro")
        done = ended(process)
        again = rewarm(*trials.words(run, SMALL, "--resume"))
        assert again.returncode == 3, again.stderr
        assert "cannot be written" in again.stderr, again.stderr
    trials.row(name, done, trials.left(run))


def two_at_once(trials: Trials, name: str) -> None:
    run = trials.root / "shared"
    both = [trials.start(run, "--resume") for _ in range(2)]
    first, second = sorted(map(ended, both), key=lambda one: one.returncode)
    assert first.returncode == 0, first.stderr
    trials.row(f"{name}: the one refused", second, "the other: exit 0, " + trials.left(run))


def clock_set_back(trials: Trials, name: str) -> None:
    """The second half runs a day before the first, whose files are all of tomorrow."""
    run, site = trials.root / "clock", trials.root / "site"
    process = trials.start(run)
    until(lambda: len(list_checkpoints(run)) > 3, process)
    process.send_signal(signal.SIGTERM)
    done = ended(process)
    assert done.returncode == 75, done.stderr
    ahead = time.time() + 86_400
    for path in run.rglob("*"):
        os.utime(path, (ahead, ahead))
    site.mkdir()
    (site / "sitecustomize.py").write_text(YESTERDAY)
    search = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    second = ended(trials.start(run, "--resume", PYTHONPATH=search))
    assert (site / "was-read").exists()
    same = outcome(run) == trials.whole["small"]
    last = last_checkpoint(run)
    verified = rewarm("verify", run).returncode
    trials.row(name, second, f"{last and last.name}, verify {verified}; the second half: "
               + ("same bytes" if same else "DIFFERS"))  # fmt: skip


def amid_a_save(trials: Trials, name: str, *signals: signal.Signals) -> None:
    """A signal while a checkpoint is half-written, and perhaps another one behind it."""
    for tries in range(1, 21):
        run = trials.root / f"{len(signals)}-{signals[0].name}-{tries}"
        process = trials.start(run, size=LARGE)
        partial = run / "checkpoints" / "step-00000004.partial" / "optimizer.safetensors"
        if not until(partial.exists, process):
            continue
        process.send_signal(signals[0])
        hit = partial.exists()
        sent = time.perf_counter()
        for more in signals[1:]:
            time.sleep(0.25)  # sooner, and it would be an echo of the first
            sent = time.perf_counter()
            process.send_signal(more)
        done = ended(process)
        took = time.perf_counter() - sent
        if hit:
            how = f"{name} (hit at try {tries}; gone {took:.2f} s behind the last signal)"
            return trials.row(how, done, trials.left(run, "large"))
    raise AssertionError("no signal hit a save")


def time_limit(trials: Trials, name: str) -> None:
    run, limit = trials.root / "limit", round(0.8 * trials.seconds["large"])
    began = time.perf_counter()
    done = ended(trials.start(run, "--time-limit", f"{limit}s", size=LARGE))
    took = time.perf_counter() - began
    trials.row(f"{name} {limit}s (gone after {took:.1f} s)", done, trials.left(run, "large"))


TRIALS: dict[str, Callable[[Trials, str], None]] = {
    "full disk, continue": lambda t, n: full_disk(t, n, "continue"),
    "full disk, stop": lambda t, n: full_disk(t, n, "stop"),
    "full disk in the middle of a save": full_amid_a_file,
    "disk full for half a second, then SIGTERM": disk_comes_back,
    "full disk, and what is said goes to a file there": log_on_full_disk,
    "read-only folder, new run": read_only_before,
    "folder turns read-only, continue": lambda t, n: read_only_midway(t, n, "continue"),
    "folder turns read-only, stop": lambda t, n: read_only_midway(t, n, "stop"),
    "two processes at once": two_at_once,
    "clock set back a day between two halves": clock_set_back,
    "SIGTERM during a save": lambda t, n: amid_a_save(t, n, signal.SIGTERM),
    "SIGTERM twice": lambda t, n: amid_a_save(t, n, signal.SIGTERM, signal.SIGTERM),
    "Ctrl-C twice": lambda t, n: amid_a_save(t, n, signal.SIGINT, signal.SIGINT),
    "--time-limit": time_limit,
}


def main() -> None:
    """Runs the trials."""
    os.environ["OMP_NUM_THREADS"] = "1"  # models this small are slower on two cores, if shared
    with tempfile.TemporaryDirectory() as work:
        trials = Trials(Path(work))
        print("| trial | exit | what the user saw | what is left |\n|---|---|---|---|", flush=True)
        for name, trial in TRIALS.items():
            if not sys.argv[1:] or any(word in name for word in sys.argv[1:]):
                try:
                    trial(trials, name)
                except NotMounted:
                    print(f"| {name} | - | not run: nothing can be mounted here | - |", flush=True)


if __name__ == "__main__":
    main()
