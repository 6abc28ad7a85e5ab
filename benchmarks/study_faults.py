"""What a study does when something is wrong: each fault through the real commands, twice.

    python benchmarks/study_faults.py [FAULT ...]

Builds small corpora in a temporary folder, injects one fault into a study of tiny models, and runs
`rewarm compare`; then does what the message asks for (or nothing, if it asks for nothing), and runs
it again. Prints a table: exit codes, messages, the arms in results.json, and which runs each start
trained. Three to four minutes on two cores.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from data_faults import build, rewarm

_RECIPE = """\
run: {run}
seed: {seed}
tokens: {tokens}
model: {model}
data:
  context: 64
  lanes: 1
  max_epochs: null
  train: {{downstream: {{shards: {root}/b}}}}
  validation:
    upstream: {{shards: {root}/a, tokens: 640}}
    downstream: {{shards: {root}/b, tokens: 640}}
batch: {{tokens: 1024, microbatch: 16}}
schedule: {{name: constant, lr: 1e-3}}
precision: fp32
every: {{log: 1, evaluate: 4, save: 50}}
"""
_NEW_WEIGHTS = "{architecture: {layers: 1, hidden: 16, heads: 1, vocabulary: 300, positions: 64}}"
_HANG_SECONDS = 120


class Start(NamedTuple):
    """What one `rewarm compare` did."""

    code: int | str
    message: str
    arms: str
    """The arms in results.json."""
    trained: str
    """The runs whose processes it started, and how many times."""

    def cells(self) -> str:
        """Returns the cells of the table."""
        return f"{self.code} | {self.message} | {self.arms} | {self.trained}"


class Study:
    """A study of tiny models in a folder of its own."""

    def __init__(
        self, root: Path, name: str, *, arms: str, settings: str = "", tokens: int = 8192,
        model: str = _NEW_WEIGHTS,
    ) -> None:  # fmt: skip
        """Writes the study file and its recipe."""
        self.folder = root / name
        self.runs = self.folder / "runs"
        self.folder.mkdir()
        write_recipe(self.folder / "recipe.yaml", root, tokens=tokens, model=model)
        self.file = self.folder / "study.yaml"
        self.file.write_text(f"study: runs\nrecipe: recipe.yaml\narms: {{{arms}}}\n{settings}")

    def log_of(self, arm: str) -> Path:
        """Returns the log of an arm's run."""
        return self.runs / arm / "17.log"

    def starts(self) -> dict[str, int]:
        """Returns how many times each run was started, by its events."""
        return {
            str(path.parent.relative_to(self.runs)): path.read_text().count('"kind": "start"')
            for path in sorted(self.runs.glob("*/*/events.jsonl"))
        }

    def compare(
        self, pattern: str = "", *options: object, threads: str = "1",
        meanwhile: Callable[[Study], None] = lambda _: None, processes: int = 1,
    ) -> Start:  # fmt: skip
        """Runs `rewarm compare`.

        Args:
            pattern: what to show of its messages; the last line by default.
            options: of the command line.
            threads: OMP_NUM_THREADS.
            meanwhile: called while it runs.
            processes: how many run at the same time; the last one's exit code is shown.
        """
        before = self.starts()
        command = [sys.executable, "-m", "rewarm", "compare", self.file, *options]
        environment = os.environ | {"OMP_NUM_THREADS": threads}
        started = [
            subprocess.Popen(
                [*map(str, command)], text=True, env=environment, start_new_session=True,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            )
            for _ in range(processes)
        ]  # fmt: skip
        code: int | str = ""
        messages = ""
        meanwhile(self)
        for process in started:
            try:
                messages = process.communicate(timeout=_HANG_SECONDS)[1]
                code = process.returncode
            except subprocess.TimeoutExpired:
                process.kill()  # it hangs, and trains nothing
                messages, code = process.communicate()[1], "hangs"
        reasons = re.findall(pattern, messages) if pattern else messages.strip().splitlines()[-1:]
        text = reasons[-1] if reasons else "(none)"
        for folder in (self.runs, self.folder.parent):
            text = text.replace(f"{folder}/", "").replace(f"{os.path.relpath(folder)}/", "")
        after = self.starts()
        trained = {run: after[run] - before.get(run, 0) for run in after}
        return Start(code, text.replace("|", "\\|"), self._arms(), _counts(trained))

    def _arms(self) -> str:
        path = self.runs / "results.json"
        if not path.is_file():
            return "no results.json"
        text = path.read_text()
        if "Infinity" in text or "NaN" in text:
            return "not valid JSON"
        arms = json.loads(text)["arms"]
        return ", ".join(arm for arm in arms if arms[arm]["seeds"]) or "none"


def _counts(trained: dict[str, int]) -> str:
    return ", ".join(f"{run} ({count})" for run, count in trained.items() if count) or "none"


def write_recipe(
    path: Path, root: Path, *, run: str = "unused", seed: int = 5, tokens: int = 8192,
    model: str = _NEW_WEIGHTS,
) -> Path:  # fmt: skip
    """Writes a recipe, and returns its path."""
    path.write_text(_RECIPE.format(run=run, seed=seed, tokens=tokens, model=model, root=root))
    return path


def worker_error(root: Path, workers: int) -> list[Start]:
    """A folder where the log of an arm belongs; removed before the second start."""
    study = Study(root, f"worker-error-{workers}", arms="a: , b: ")
    study.log_of("b").mkdir(parents=True)
    first = study.compare(r"b/17: .*", "--workers", workers)
    study.log_of("b").rmdir()
    return [first, study.compare("", "--workers", workers)]


def other_base(root: Path) -> list[Start]:
    """The base is trained again with another seed after one arm; the second start changes nothing.

    Before the third, the stale run is moved away.
    """
    base = root / "base"
    recipe = write_recipe(root / "base.yaml", root, run=str(base))
    assert rewarm("train", recipe).returncode == 0
    study = Study(root, "other-base", arms="a: ", model=f"{{base: {base}}}")
    first = study.compare()
    shutil.rmtree(base)
    write_recipe(root / "base.yaml", root, run=str(base), seed=6)
    assert rewarm("train", recipe).returncode == 0
    study.file.write_text(study.file.read_text().replace("a: ", "a: , b: "))
    second = study.compare(r"stale: .*?sha256.*?(?=;)")
    (study.runs / "a" / "17").rename(study.runs / "moved-away")
    return [first, second, study.compare()]


def other_recipe(root: Path) -> list[Start]:
    """The recipe of a complete arm is changed, then undone."""
    study = Study(root, "other-recipe", arms="a: ")
    first = study.compare()
    recipe = study.folder / "recipe.yaml"
    text = recipe.read_text()
    recipe.write_text(text.replace("lr: 1e-3", "lr: 2e-3"))
    second = study.compare(r"(?:stale: )?already complete.*?(?=; move)")
    recipe.write_text(text.replace("/a, tokens: 640", "/b, tokens: 640"))
    third = study.compare(r"(?:stale: )?already complete.*?(?=; move)")
    recipe.write_text(text)
    return [first, second, third, study.compare()]


def divided_by_zero(root: Path) -> list[Start]:
    """A claim that divides by zero, with two seeds."""
    zero = "(final(upstream, a) - final(upstream, a))"
    claim = f'claims: {{ratio: "final(downstream, a) / {zero} > 1"}}\n'
    study = Study(root, "zero", arms="a: ", settings=f"seeds: [17, 18]\n{claim}")
    return [study.compare(r"[A-Z]\w+Error.*|a/18  done"), study.compare()]


def arm_named_bases(root: Path) -> list[Start]:
    """An arm named `bases`; after each start the report is made, whose arms are shown."""
    study = Study(root, "named", arms="bases: , b: ")
    starts = []
    for start in (study.compare(), study.compare()):
        report = rewarm("report", study.file, "--out", study.folder / "report.md")
        line = (report.stdout.strip() or report.stderr.strip()).rpartition(": ")[2]
        starts.append(start._replace(message=f"report: {line}"))
    return starts


def failing_twice(root: Path) -> list[Start]:
    """An arm that diverges; two processes of two workers each work on the study."""
    arms = "a: {schedule: {name: constant, lr: 1e+30}}, b: "
    study = Study(root, "failing", arms=arms)
    first = study.compare(r"a/17: .*", "--workers", 2, processes=2)
    return [first, study.compare(r"a/17: .*", "--workers", 2)]


def killed_child(root: Path) -> list[Start]:
    """A run is killed by SIGKILL."""

    def kill(study: Study) -> None:
        log = study.log_of("a")
        while not (log.is_file() and "\nstep 20/" in log.read_text()):
            time.sleep(0.01)
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                arguments = (folder / "cmdline").read_bytes()
            except OSError:  # it has ended
                continue
            if b"killed/runs/a/17.yaml" in arguments:
                os.kill(int(folder.name), signal.SIGKILL)

    study = Study(root, "killed", arms="a: , b: {tokens: 8192}", tokens=307_200)
    return [study.compare(r"a/17: .*", meanwhile=kill), study.compare()]


def unwritable_results(root: Path) -> list[Start]:
    """A folder where results.json belongs; removed before the second start."""
    study = Study(root, "results", arms="a: ")
    (study.runs / "results.json" / "x").mkdir(parents=True)
    first = study.compare(r"results.json: .*|\w+Error.*")
    shutil.rmtree(study.runs / "results.json")
    return [first, study.compare()]


def other_threads(root: Path) -> list[Start]:
    """The study is started with one thread, and again with an arm more and two threads."""
    study = Study(root, "threads", arms="a: ")
    first = study.compare(r"threads   .*", threads="1")
    study.file.write_text(study.file.read_text().replace("a: ", "a: , b: "))
    second = study.compare(r"threads   .*", threads="2")
    notes = json.loads((study.runs / "results.json").read_text())["notes"]
    return [first, second._replace(message=" / ".join([second.message, *notes]))]


def status_cost(root: Path) -> list[str]:
    """Returns how long a look at eight runs takes whose metrics have 50,000 lines each."""
    from rewarm.study.runner import StudyRunner
    from rewarm.study.study_file import load_study

    arms = "abcdefgh"
    study = Study(root, "status", arms=", ".join(f"{arm}: " for arm in arms), tokens=1024 * 50_000)
    line = '{{"kind": "train", "step": {0}, "tokens": {0}, "loss": 2.5, "lr": 0.001}}\n'
    text = "".join(line.format(step) for step in range(1, 50_001))
    for arm in arms:
        (study.runs / arm / "17").mkdir(parents=True)
        (study.runs / arm / "17" / "metrics.jsonl").write_text(text)
    (study.runs / "locks").mkdir()
    runner = StudyRunner(load_study(study.file))
    times = []
    for _ in range(4):
        start = time.process_time()
        assert all(status.step == 50_000 for status in runner.statuses())
        times.append(time.process_time() - start)
    return [f"{1000 * seconds:.1f}" for seconds in times]


FAULTS: dict[str, Callable[[Path], list[Start]]] = {
    "13 OSError in a worker, 1 worker": lambda root: worker_error(root, 1),
    "13 OSError in a worker, 2 workers": lambda root: worker_error(root, 2),
    "14 base trained again": other_base,
    "14 recipe, then validation set, changed": other_recipe,
    "15 claim divides by zero": divided_by_zero,
    "16 arm named bases": arm_named_bases,
    "17 failing run, 2 × 2 workers": failing_twice,
    "19 run killed by SIGKILL": killed_child,
    "20 results.json cannot be written": unwritable_results,
    "22 other number of threads": other_threads,
}


def main(chosen: list[str]) -> None:
    """Prints the table."""
    header = ["fault", "start", "exit", "message", "arms in results.json", "runs trained (starts)"]
    print(f"| {' | '.join(header)} |", "|---" * len(header) + "|", sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        build(root)
        for name, inject in FAULTS.items():
            if chosen and name.split()[0] not in chosen:
                continue
            for number, start in enumerate(inject(root), start=1):
                print(f"| {name} | {number} | {start.cells()} |", flush=True)
        if not chosen or "18" in chosen:
            times = ", ".join(status_cost(root))
            print(f"\n18 eight runs of 50,000 lines each: {times} ms of CPU per look")


if __name__ == "__main__":
    main(sys.argv[1:])
