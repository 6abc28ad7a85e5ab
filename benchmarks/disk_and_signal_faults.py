"""What is lost when a run's disk, folder, clock or process fails: one real run per trial.

    python benchmarks/disk_and_signal_faults.py [WORD...]

Builds two small corpora in a temporary folder, starts `rewarm train`, causes a failure, and prints
a table: the exit code, the messages, and what is left: the last complete checkpoint, the result of
`rewarm verify`, and whether `--resume` ends like the undisturbed run: the same bytes of weights,
optimizer state and progress, the same metrics. Mounts need root; WORDs select the trials whose
names contain one of them.
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
# Saves that take long enough to send a signal during one.
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
    """Mounting is not permitted on this machine."""


class Trials:
    """A recipe, and the results of an undisturbed run of each size."""

    def __init__(self, root: Path) -> None:
        self.root = root
        build(root)
        self.recipe = root / "recipe.yaml"
        self.recipe.write_text(RECIPE.format(run=root / "whole", a=root / "a", b=root / "b"))
        self.seconds: dict[str, float] = {}
        self.expected = {}
        for name, size in (("small", SMALL), ("large", LARGE)):
            started = time.perf_counter()
            ended = rewarm(*self.arguments(root / name, size))
            assert ended.returncode == 0, ended.stderr
            self.seconds[name] = time.perf_counter() - started
            self.expected[name] = outcome(root / name)

    def arguments(self, run: Path, size: dict[str, str], *more: str) -> list[str]:
        """Returns the arguments of a command that trains in `run`."""
        settings = [f"{name}={value}" for name, value in {"run": str(run), **size}.items()]
        overrides = [word for setting in settings for word in ("--set", setting)]
        return ["train", str(self.recipe), *overrides, *more]

    def start(
        self, run: Path, *more: str, size: dict[str, str] = SMALL, **environment: str
    ) -> subprocess.Popen[str]:
        """Starts or resumes a run."""
        return subprocess.Popen(
            [sys.executable, "-m", "rewarm", *self.arguments(run, size, *more)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    def leftovers(self, run: Path, size: str = "small", fix: Callable[[], object] = bool) -> str:
        """Returns what a failed run left, and how it ends after `fix` was called."""
        last = last_checkpoint(run)
        partial = [path.name for path in (run / "checkpoints").glob("*.partial")]
        parts = [last.name if last else "no checkpoint", *partial]
        if last:
            parts.append(f"verify {rewarm('verify', run).returncode}")
        fix()
        resumed = rewarm(*self.arguments(run, {"small": SMALL, "large": LARGE}[size], "--resume"))
        same = resumed.returncode == 0 and outcome(run) == self.expected[size]
        return ", ".join(parts) + (
            "; resumed: same bytes" if same else f"; DIFFERS {resumed.stderr}"
        )

    def row(self, trial: str, ended: Ended, left: str) -> None:
        """Prints one line of the table."""
        assert "Traceback" not in ended.stderr, ended.stderr
        assert "rewarm does not expect this error" not in ended.stderr, ended.stderr
        lines = ended.stderr.splitlines()
        messages = [x for x in lines if x.startswith(("warning:", "error:"))] or lines[-1:] or ["-"]
        ends = dict.fromkeys([messages[0], messages[-1]])
        shown = [line.replace(str(self.root), "") for line in ends]
        text = " … ".join(line if len(line) < 190 else f"{line[:180]} [...]" for line in shown)
        print(f"| {trial} | {ended.returncode} | {text} | {left} |", flush=True)


def ended(process: subprocess.Popen[str]) -> Ended:
    """Waits for the end of a process."""
    _, error = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, "", error)


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str]) -> bool:
    """Waits until a condition holds; returns False if the process ended before."""
    while not condition():
        if process.poll() is not None:
            return False
        time.sleep(0.0005)
    return True


@contextmanager
def mounted(folder: Path, *words: str) -> Iterator[None]:
    """Mounts something at a folder, for the duration of a block."""
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
    """Trains on a disk with space for some checkpoints."""
    disk = trials.root / "disk"
    with mounted(disk, "-t", "tmpfs", "-o", "size=1m", "tmpfs"):
        train_on_full_disk(trials, name, disk, SMALL | {"on_save_error": policy})


def full_during_a_save(trials: Trials, name: str) -> None:
    """Trains on a disk with space for two checkpoints and only the tensors of a third."""
    disk, last = trials.root / "disk", last_checkpoint(trials.root / "small")
    assert last
    checkpoint_bytes = sum(path.stat().st_blocks * 512 for path in last.iterdir())
    tensors = sum(path.stat().st_size for path in last.glob("*.safetensors"))
    with mounted(
        disk, "-t", "tmpfs", "-o", f"size={2 * checkpoint_bytes + tensors + 40_000}", "tmpfs"
    ):
        train_on_full_disk(trials, name, disk, SMALL)


def train_on_full_disk(trials: Trials, name: str, disk: Path, size: dict[str, str]) -> None:
    """Trains on a disk that is too small, resumes on it, and resumes after it has grown."""
    run = disk / "run"
    result = ended(trials.start(run, size=size))
    on_full_disk = rewarm(*trials.arguments(run, size, "--resume"))
    assert on_full_disk.returncode == 3, on_full_disk.stderr
    trials.row(name, result, trials.leftovers(run, fix=lambda: remount(disk, "size=50m")))
    trials.row(f"{name}: --resume on the full disk", on_full_disk, "as before")


def full_for_a_while(trials: Trials, name: str) -> None:
    """Fills the disk for a while, and sends SIGTERM when there is space again."""
    disk = trials.root / "disk"
    with mounted(disk, "-t", "tmpfs", "-o", "size=1m", "tmpfs"):
        run = disk / "run"
        process = trials.start(run, size=SMALL | {"every": "{log: 3, save: 50}"})
        wait_until(lambda: last_checkpoint(run), process)
        (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free))
        time.sleep(0.5)
        (disk / "ballast").unlink()
        process.send_signal(signal.SIGTERM)
        result = ended(process)
        lines = len(read_metrics(run / "metrics.jsonl"))
        last = last_checkpoint(run)
        assert last
        whole = lines == int(last.name[5:]) // 3
        left = "every line of its metrics" if whole else f"ONLY {lines} lines of its metrics"
        trials.row(name, result, f"{last.name}, {left}")


def log_on_full_disk(trials: Trials, name: str) -> None:
    """Writes the run's output to a file on the disk that fills up."""
    disk = trials.root / "disk"
    with mounted(disk, "-t", "tmpfs", "-o", "size=1m", "tmpfs"):
        arguments = trials.arguments(disk / "run", SMALL)
        with (disk / "log").open("w") as log:
            process = subprocess.Popen([sys.executable, "-m", "rewarm", *arguments], stderr=log)
        wait_until(lambda: last_checkpoint(disk / "run"), process)
        (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free))
        code = process.wait(timeout=300)
        output = (disk / "log").read_text()
        result = subprocess.CompletedProcess(arguments, code, "", output)
        trials.row(
            name, result, trials.leftovers(disk / "run", fix=lambda: remount(disk, "size=50m"))
        )


def read_only_before(trials: Trials, name: str) -> None:
    disk = trials.root / "disk"
    with mounted(disk, "-t", "tmpfs", "-o", "ro,size=9m", "tmpfs"):
        result = rewarm(*trials.arguments(disk / "run", SMALL))
        trials.row(name, result, "nothing was started; "
                   + trials.leftovers(disk / "run", fix=lambda: remount(disk, "rw")))  # fmt: skip


def read_only_midway(trials: Trials, name: str, policy: str) -> None:
    run = trials.root / f"read-only-{policy}"
    process = trials.start(run, size=SMALL | {"on_save_error": policy})
    wait_until(lambda: len(list_checkpoints(run)) > 1, process)
    # A bind mount of the folder: open files keep a whole disk from being remounted read-only.
    with mounted(run, "--bind", str(run)):
        remount(run, "bind,ro")
        result = ended(process)
        resumed = rewarm(*trials.arguments(run, SMALL, "--resume"))
        assert resumed.returncode == 3, resumed.stderr
        assert "cannot be written" in resumed.stderr, resumed.stderr
    trials.row(name, result, trials.leftovers(run))


def two_at_once(trials: Trials, name: str) -> None:
    run = trials.root / "shared"
    both = [trials.start(run, "--resume") for _ in range(2)]
    first, second = sorted(map(ended, both), key=lambda process: process.returncode)
    assert first.returncode == 0, first.stderr
    trials.row(f"{name}: the one refused", second, "the other: exit 0, " + trials.leftovers(run))


def clock_set_back(trials: Trials, name: str) -> None:
    """Resumes with the clock set back a day, so that all files are from the future."""
    run, site = trials.root / "clock", trials.root / "site"
    process = trials.start(run)
    wait_until(lambda: len(list_checkpoints(run)) > 3, process)
    process.send_signal(signal.SIGTERM)
    result = ended(process)
    assert result.returncode == 75, result.stderr
    tomorrow = time.time() + 86_400
    for path in run.rglob("*"):
        os.utime(path, (tomorrow, tomorrow))
    site.mkdir()
    (site / "sitecustomize.py").write_text(YESTERDAY)
    python_path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    second = ended(trials.start(run, "--resume", PYTHONPATH=python_path))
    assert (site / "was-read").exists()
    same = outcome(run) == trials.expected["small"]
    last = last_checkpoint(run)
    verified = rewarm("verify", run).returncode
    trials.row(name, second, f"{last and last.name}, verify {verified}; the second half: "
               + ("same bytes" if same else "DIFFERS"))  # fmt: skip


def signals_during_a_save(trials: Trials, name: str, *signals: signal.Signals) -> None:
    """Sends a signal while a checkpoint is half-written, and optionally more signals after it."""
    for tries in range(1, 21):
        run = trials.root / f"{len(signals)}-{signals[0].name}-{tries}"
        process = trials.start(run, size=LARGE)
        partial = run / "checkpoints" / "step-00000004.partial" / "optimizer.safetensors"
        if not wait_until(partial.exists, process):
            continue
        process.send_signal(signals[0])
        hit = partial.exists()
        sent = time.perf_counter()
        for next_signal in signals[1:]:
            time.sleep(0.25)  # sooner, it would count as a copy of the first
            sent = time.perf_counter()
            process.send_signal(next_signal)
        result = ended(process)
        seconds = time.perf_counter() - sent
        if hit:
            title = f"{name} (try {tries}; exited {seconds:.2f} s after the last signal)"
            return trials.row(title, result, trials.leftovers(run, "large"))
    raise AssertionError("no signal was sent during a save")


def time_limit(trials: Trials, name: str) -> None:
    run, limit = trials.root / "limit", round(0.8 * trials.seconds["large"])
    started = time.perf_counter()
    result = ended(trials.start(run, "--time-limit", f"{limit}s", size=LARGE))
    seconds = time.perf_counter() - started
    trials.row(
        f"{name} {limit}s (exited after {seconds:.1f} s)", result, trials.leftovers(run, "large")
    )


TRIALS: dict[str, Callable[[Trials, str], None]] = {
    "full disk, continue": lambda t, n: full_disk(t, n, "continue"),
    "full disk, stop": lambda t, n: full_disk(t, n, "stop"),
    "disk full during a save": full_during_a_save,
    "disk full for half a second, then SIGTERM": full_for_a_while,
    "full disk, output to a file on it": log_on_full_disk,
    "read-only folder, new run": read_only_before,
    "folder turns read-only, continue": lambda t, n: read_only_midway(t, n, "continue"),
    "folder turns read-only, stop": lambda t, n: read_only_midway(t, n, "stop"),
    "two processes at once": two_at_once,
    "clock set back a day between two halves": clock_set_back,
    "SIGTERM during a save": lambda t, n: signals_during_a_save(t, n, signal.SIGTERM),
    "SIGTERM twice": lambda t, n: signals_during_a_save(t, n, signal.SIGTERM, signal.SIGTERM),
    "Ctrl-C twice": lambda t, n: signals_during_a_save(t, n, signal.SIGINT, signal.SIGINT),
    "--time-limit": time_limit,
}


def main() -> None:
    """Runs the trials."""
    os.environ["OMP_NUM_THREADS"] = "1"  # small models are slower on two shared cores
    with tempfile.TemporaryDirectory() as work:
        trials = Trials(Path(work))
        print("| trial | exit | what the user saw | what is left |\n|---|---|---|---|", flush=True)
        for name, trial in TRIALS.items():
            if not sys.argv[1:] or any(word in name for word in sys.argv[1:]):
                try:
                    trial(trials, name)
                except NotMounted:
                    print(f"| {name} | - | not run: mounting is not permitted | - |", flush=True)


if __name__ == "__main__":
    main()
