"""Checks that no command reports a wrong number when a file of a run directory is mutated.

    python benchmarks/mutated_run_files.py [--cases 1000] [--seed 1] [--workers 4] [--only WORD]

Trains a study of two arms, and a run that stopped before its end. Each case mutates one file, in
the run of an arm and in the stopped run: metrics.jsonl, events.jsonl, recipe.yaml; progress.json,
MANIFEST.json, recipe.yaml of a checkpoint; results.json of the study. Then `report` (Markdown and
CSV), `lineage`, `verify` and `compare` read the study, and `train --resume` continues the stopped
run. Each has to end in one of these ways:

    same       prints what it printed before the mutation; a resumed run ends with the same bytes
    noted      prints something else, and a note or warning that says so
    refused    ends with a documented exit code and a message that names the file, its checkpoint or
               its run; `train` has changed no file
    unknowable prints another value, and nothing on the disk contradicts it (see `is_unknowable`)

All else is a violation: a traceback, an undocumented exit code, a hang, another value without a
word; `verify` that finds checkpoints or metrics intact although their bytes changed.

What this cannot show: `lineage` and `report` do not hash weights, so a changed digest of the
weights in MANIFEST.json is found by `verify` and `train` only; and a file that was changed together
with its digest is accepted by all.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

from data_faults import RECIPE, build
from file_mutations import JSON_FILE, JSON_LINES, YAML_FILE, Mutation
from forked_commands import TIMED_OUT, Ended, run_command, run_forked
from resume_after_kill import outcome

from rewarm.errors import RewarmError
from rewarm.recipe.recipe import load_recipe
from rewarm.training.loop import train

EXIT_CODES = {0, 2, 3, 4, 75, 130}
STUDY = """\
study: {study}
recipe: {recipe}
arms:
  one:
  two: {{schedule.lr: 3e-3}}
seeds: [1]
claims: {{a higher rate is worse upstream: 'final(upstream, two) > final(upstream, one)'}}
"""
SETTINGS = {
    "tokens: 65536": "tokens: 12288",
    "{log: 100, evaluate: null, save: 10}": "{log: 1, evaluate: 3, save: 4}",
}
NOTE = re.compile(
    r"warning|note\b|\bgap|incomplete|damaged|cannot be read|unreadable|missing|not a line"
    r"|no baseline|judged when|is not that of|was changed|changed since",
    re.IGNORECASE,
)
LAST, EARLIER = "checkpoints/step-00000012", "checkpoints/step-00000004"


class Target(NamedTuple):
    """A file that is mutated."""

    share: int
    """How many of a thousand cases mutate it."""
    mutations: dict[str, Mutation]


TARGETS = {
    "metrics.jsonl": Target(320, JSON_LINES),
    "events.jsonl": Target(130, JSON_LINES),
    "progress.json": Target(180, JSON_FILE),
    "MANIFEST.json": Target(150, JSON_FILE),
    "checkpoint recipe.yaml": Target(50, YAML_FILE),
    "recipe.yaml": Target(60, YAML_FILE),
    "results.json": Target(110, JSON_FILE),
}


class Case(NamedTuple):
    """A mutation of a file, in a run of the study and in the stopped run."""

    number: int
    target: str
    mutation: str
    seed: int
    is_earlier: bool
    """Whether a file of the first checkpoint is mutated, not of the last."""

    def paths(self, work: Path) -> list[Path]:
        """Returns the files to mutate, the study's first."""
        if self.target == "results.json":
            return [work / "study" / "results.json"]
        paths = []
        for run in (work / "study" / "one" / "1", work / "stopped"):
            checkpoints = sorted((run / "checkpoints").glob("step-*"))
            checkpoint = checkpoints[0 if self.is_earlier else -1]
            in_checkpoint = self.target in ("progress.json", "MANIFEST.json") or " " in self.target
            paths.append((checkpoint if in_checkpoint else run) / self.target.split()[-1])
        return paths

    def mutate(self, path: Path) -> None:
        TARGETS[self.target].mutations[self.mutation](path, random.Random(self.seed))


def choose_cases(count: int, seed: int) -> Iterator[Case]:
    """Yields cases: every mutation of a file in turn, files by their share."""
    rng = random.Random(seed)
    orders = {
        name: rng.sample(sorted(target.mutations), len(target.mutations))
        for name, target in TARGETS.items()
    }
    used = Counter[str]()
    names = [name for name, target in TARGETS.items() for _ in range(target.share)]
    rng.shuffle(names)
    for number in range(count):
        target = names[number % len(names)]
        mutation = orders[target][used[target] % len(orders[target])]
        used[target] += 1
        yield Case(number, target, mutation, rng.randrange(2**32), rng.random() < 0.2)


class Files:
    """A study and a stopped run, which are restored before each case."""

    def __init__(self, root: Path) -> None:
        """Trains them, and stores what the commands print of the undamaged files."""
        self.work, self.pristine = root / "work", root / "pristine"
        self.work.mkdir()
        build(root)
        recipe = RECIPE.format(run=self.work / "stopped", a=root / "a", b=root / "b")
        for before, after in SETTINGS.items():
            recipe = recipe.replace(before, after)
        sets = f"{{upstream: {{shards: {root}/a, tokens: 1280}}, b: {{shards: {root}/b}}}}"
        recipe = recipe.replace("\nbatch:", f"\n  validation: {sets}\nbatch:")
        self.recipe, self.study = root / "recipe.yaml", root / "study.yaml"
        self.recipe.write_text(recipe)
        self.study.write_text(STUDY.format(study=self.work / "study", recipe=self.recipe))
        self.train_command = ["train", str(self.recipe), "--resume"]
        ended = run_command(*self.train_command)
        assert ended.code == 0, ended.errors
        self.expected = outcome(self.work / "stopped")
        whole = (self.work / "stopped" / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        shutil.rmtree(self.work / "stopped")
        run_forked(lambda: train(load_recipe(self.recipe), stop_after_step=8))
        stopped = self.work / "stopped" / "metrics.jsonl"
        lines = stopped.read_bytes().splitlines(keepends=True)
        # As a kill leaves it: some lines after the last checkpoint.
        stopped.write_bytes(b"".join([*lines, *whole[len(lines) : len(lines) + 3]]))
        ended = run_command("compare", self.study, timeout=300)
        assert ended.code == 0, ended.errors
        self.commands: dict[str, list[object]] = {
            "report md": ["report", self.study, "--out", root / "report.md"],
            "report csv": ["report", self.study, "--out", root / "report.csv"],
            "lineage": ["lineage", self.work / "study"],
            "verify": ["verify", self.work / "study" / "one" / "1"],
            "compare": ["compare", self.study, "--json"],
        }
        shutil.copytree(self.work, self.pristine)
        self.reference = {name: self.run(name) for name in self.commands}
        for name, reference in self.reference.items():
            assert reference.code == 0, (name, reference.errors)
            assert reference == self.run(name), name

    def run(self, name: str) -> Ended:
        """Runs a command on the study; what it wrote to a file is its output."""
        words = self.commands[name]
        ended = run_command(*words, timeout=60 if name == "compare" else 15)
        if words[0] == "report" and ended.code == 0:
            ended = ended._replace(output=Path(str(words[-1])).read_text())
        return ended

    def restore(self) -> None:
        shutil.rmtree(self.work)
        shutil.copytree(self.pristine, self.work, symlinks=True)

    def original(self, path: Path) -> bytes:
        return (self.pristine / path.relative_to(self.work)).read_bytes()


def content(path: Path) -> bytes | None:
    """Returns the bytes of a regular file; None of anything else."""
    if not path.is_file() or path.is_symlink():
        return None
    return path.read_bytes()


def snapshot(folder: Path) -> dict[str, object]:
    """Returns the content of everything in a folder but its lock."""
    return {
        str(path.relative_to(folder)): content(path)
        for path in folder.rglob("*")
        if path.name != "lock"
    }


def judge(case: Case, files: Files, name: str, path: Path, ended: Ended) -> str:
    """Returns how a command that read the study ended."""
    if problem := failure(ended, path):
        return problem
    if ended.code:
        return "refused"
    reference = files.reference[name]
    if name == "verify" and must_be_noticed(case, files, path):
        return "VIOLATION: verify finds the changed file intact"
    if ended.output == reference.output:
        return "same"
    changed = changed_lines(reference.output, ended.output)
    added = [line[1:] for line in changed if line[0] == "+"]
    added += changed_lines(reference.errors, ended.errors)
    if any(NOTE.search(line) for line in added):
        return "noted"
    if is_unknowable(case, path, changed):
        return "unknowable"
    return f"VIOLATION: another value without a word: {' '.join(changed)[:300]}"


def failure(ended: Ended, path: Path) -> str:
    """Returns a violation if a command hung, failed unexpectedly, or did not name the damage."""
    text = ended.output + ended.errors
    if ended.code == TIMED_OUT:
        return "VIOLATION: hangs"
    if "Traceback" in text or ended.code not in EXIT_CODES or "does not expect this error" in text:
        return f"VIOLATION: exit {ended.code}: {ended.errors.strip()[-500:]}"
    names = [path.name, path.parent.name, "one/1", "stopped", "study"]
    if ended.code and not any(word in ended.errors for word in names):
        return f"VIOLATION: does not name the damage: {ended.errors.strip()[-500:]}"
    return ""


def must_be_noticed(case: Case, files: Files, path: Path) -> bool:
    """Returns whether bytes changed of which a checkpoint stores a digest."""
    now, before = path.read_bytes() if path.is_file() else None, files.original(path)
    if case.target == "metrics.jsonl":
        return now is None or not now.startswith(before)
    return case.target in ("progress.json", "checkpoint recipe.yaml") and now != before


def is_unknowable(case: Case, path: Path, changed: list[str]) -> bool:
    """Returns whether nothing on the disk contradicts the values that changed.

    That is so for the event log alone: no checkpoint has a digest of it, and it is the only record
    of times, of the machine and of measured rates. But a line that is no event must be noted, and
    so must a log without any start: the run has metrics, so it was started.
    """
    if case.target != "events.jsonl" or not path.is_file():
        return False
    *lines, cut_off = path.read_bytes().split(b"\n")
    kinds = [kind_of_event(line) for line in lines] + [kind_of_event(cut_off) or "cut off"]
    is_about_losses = any("/loss" in line or "forgetting" in line for line in changed)
    return None not in kinds and "start" in kinds and not is_about_losses


def kind_of_event(line: bytes) -> str | None:
    """Returns the kind of the event in a line; None if there is none."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    kind = event.get("kind") if isinstance(event, dict) else None
    return kind if isinstance(kind, str) else None


def changed_lines(before: str, after: str) -> list[str]:
    """Returns the lines that two texts do not share, with + or -."""
    difference = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    return [line for line in list(difference)[2:] if not line.startswith("@@")]


def judge_resume(files: Files, path: Path) -> str:
    """Resumes the stopped run, and returns how that ended."""
    run = files.work / "stopped"
    before = snapshot(run)
    ended = run_command(*files.train_command, timeout=60)
    if problem := failure(ended, path):
        return problem
    if ended.code:
        changed = sorted(set(before) ^ set(after := snapshot(run))) or [
            name for name in before if before[name] != after[name]
        ]
        return f"VIOLATION: refused, but changed {changed}" if changed else "refused"
    try:
        tensors, metrics = outcome(run)
    except (RewarmError, OSError, AssertionError) as error:
        return f"VIOLATION: resumed to {type(error).__name__}: {error}"
    if tensors != files.expected[0]:
        return "VIOLATION: resumed to other weights, optimizer state or progress"
    return "same" if metrics == files.expected[1] else "VIOLATION: resumed to other metrics"


def run_case(case: Case, files: Files) -> dict[str, str]:
    """Mutates the files of a case; returns how each command ended."""
    files.restore()
    paths = case.paths(files.work)
    for path in paths:
        case.mutate(path)
    verdicts = {
        name: judge(case, files, name, paths[0], files.run(name)) for name in files.commands
    }
    if len(paths) > 1:
        verdicts["train --resume"] = judge_resume(files, paths[1])
    return verdicts


def print_case(case: Case, verdicts: dict[str, str], root: Path) -> None:
    """Prints a line for a case, and one for each violation."""
    ways = ", ".join(f"{name} {verdict.partition(':')[0]}" for name, verdict in verdicts.items())
    where = ", first checkpoint" if case.is_earlier and "MANIFEST" in case.target else ""
    lines = [f"{case.number} {case.target}{where}: {case.mutation}: {ways}"]
    lines += [f"    {name}: {text}" for name, text in verdicts.items() if "VIOLATION" in text]
    print("\n".join(lines).replace(str(root), ""), flush=True)


def work_on(worker: int, options: argparse.Namespace, counts: Path) -> None:
    """Runs every `workers`-th case, and writes the counts of how commands ended."""
    tally = Counter[tuple[str, str]]()
    with tempfile.TemporaryDirectory() as folder:
        files = Files(Path(folder).resolve())
        for case in choose_cases(options.cases, options.seed):
            if case.number % options.workers != worker or options.only not in str(case):
                continue
            verdicts = run_case(case, files)
            print_case(case, verdicts, Path(folder).resolve())
            for name, verdict in verdicts.items():
                tally[name, verdict.partition(":")[0]] += 1
    counts.write_text(json.dumps([[*key, count] for key, count in tally.items()]))


def run_workers(options: argparse.Namespace, counts: list[Path]) -> None:
    """Starts a worker for each file of counts, and waits until all have ended."""
    children = []
    # On SIGTERM `finally` runs: no worker outlives this process.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        for worker, path in enumerate(counts):
            if not (process_id := os.fork()):
                end_with(work_on, worker, options, path)
            children.append(process_id)
        failed = [child for child in children if os.waitpid(child, 0)[1]]
        children.clear()
        assert not failed, "a worker failed"
    finally:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def end_with(function: Callable[..., object], *arguments: object) -> NoReturn:
    """Ends this fork after a function call: with exit code 0, or 1 after an exception."""
    code = 1
    try:
        function(*arguments)
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Runs all cases in several processes, and prints how often each command ended how."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--only", default="", help="Only cases whose description has this word.")
    options = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        counts = [Path(folder, str(worker)) for worker in range(options.workers)]
        run_workers(options, counts)
        tally = Counter[tuple[str, str]]()
        for path in counts:
            for name, verdict, count in json.loads(path.read_text()):
                tally[name, verdict] += count
    for name in dict.fromkeys(name for name, _ in tally):
        ways = (f"{count} {way}" for (of, way), count in sorted(tally.items()) if of == name)
        print(f"{name}: {', '.join(ways)}")
    violations = sum(count for (_, verdict), count in tally.items() if verdict == "VIOLATION")
    seconds = time.perf_counter() - started
    print(f"{options.cases} cases in {seconds:.0f} s: {violations} violations")
    sys.exit(bool(violations))


if __name__ == "__main__":
    main()
