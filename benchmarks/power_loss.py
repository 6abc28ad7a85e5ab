"""Checks that a run survives a power loss at any moment: it ends like an uninterrupted one.

    python benchmarks/power_loss.py [--points 50] [--seed 1]

Records the file-system calls of two real `rewarm train` processes with strace: a new run, and one
that is resumed after a kill. Each point is a prefix of these calls. What a disk may hold after a
power loss there is written into an empty folder, `rewarm train --resume` continues from it, and the
weights, the optimizer state, the progress and the metrics (without times) are compared byte for
byte with those of an uninterrupted run. What a disk may hold (POSIX promises no more than the
first; ext4 and XFS leave the others):

    synced       data up to the last fsync of its file, names up to the last fsync of their folder
    names        all names, and the data that was synced: new files are empty
    zeros        all names and lengths; bytes that were not synced are zero
    in order     names up to some call before the point, and some of the data that was not synced
    scattered    some of the names and some of the data that were not synced

A checkpoint whose save had completed must still be there. A refusal of `--resume` is a violation,
but with `scattered`, where it is counted: a journal does not lose names out of order. Pages of one
file always survive in order here, and nothing that was synced is lost.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from data_faults import RECIPE, build
from forked_commands import run_command
from resume_after_kill import outcome

SETTINGS = {
    "tokens": "24576",
    "every": "{log: 1, evaluate: 3, save: 4}",
    "keep": "{last: 2}",
}
CALLS = (
    "open,openat,creat,write,pwrite64,writev,pwritev,lseek,ftruncate,truncate,fallocate,"
    "copy_file_range,sendfile,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,"
    "symlinkat,unlink,unlinkat,rmdir,fsync,fdatasync,syncfs,sync,mmap"
)
IMPORTANT = r"metrics|step-|checkpoints|fsync run|MANIFEST|progress"
VARIANTS = ("synced", "names", "zeros", "in order", "scattered")


class Call(NamedTuple):
    """A system call that succeeded."""

    name: str
    arguments: list[str]
    result: str


def parse_trace(text: str) -> Iterator[Call]:
    """Yields the calls of a trace (strace -f -y -xx) in the order in which they returned."""
    unfinished: dict[str, str] = {}
    for line in text.splitlines():
        process, _, rest = line.partition(" ")
        rest = rest.lstrip()
        if rest.endswith("<unfinished ...>"):
            unfinished[process] = rest.removesuffix("<unfinished ...>").rstrip()
            continue
        if resumed := re.match(r"<\.\.\. \w+ resumed>", rest):
            rest = unfinished.pop(process) + rest[resumed.end() :]
        if match := re.fullmatch(r"(\w+)\((.*)\)\s+= ([^-].*)", rest):
            name, arguments, result = match.groups()
            yield Call(name, arguments.split(", "), result)


def unescape(text: str) -> str:
    """Returns a string as strace prints it: in quotes, each byte as an escape sequence."""
    return as_bytes(text).decode()


def as_bytes(text: str) -> bytes:
    assert not text.endswith("..."), "strace cut the data of a write"
    return bytes.fromhex(text.strip('"').replace("\\x", ""))


class File:
    """A regular file: its content, and what of it was synced."""

    def __init__(self, data: bytes = b"") -> None:
        self.data, self.synced = bytearray(data), data


@dataclass
class Folder:
    """A folder: its names, those that were synced, and the changes since."""

    names: dict[str, Node] = field(default_factory=dict)
    synced: dict[str, Node] = field(default_factory=dict)
    pending: list[tuple[int, Change]] = field(default_factory=list)

    def change(self, number: int, change: Change) -> None:
        change(self.names)
        self.pending.append((number, change))

    def sync(self) -> None:
        self.synced = dict(self.names)
        self.pending.clear()


Node = File | Folder
Change = Callable[[dict[str, Node]], object]


class Disk:
    """The files below a folder, as calls of a process leave them."""

    def __init__(self, root: Path) -> None:
        """Starts with the files that are there, all of them on the disk."""
        self.root = root
        self.top = self._load(root)
        self.offsets: dict[str, int] = {}
        self.number = 0

    def _load(self, path: Path) -> Folder:
        folder = Folder({
            child.name: self._load(child) if child.is_dir() else File(child.read_bytes())
            for child in path.iterdir()
        })  # fmt: skip
        folder.sync()
        return folder

    def find(self, path: Path) -> Node | None:
        """Returns what is at a path; None if it is outside the root, or there is nothing."""
        if not path.is_relative_to(self.root):
            return None
        node: Node | None = self.top
        for part in path.relative_to(self.root).parts:
            node = node.names.get(part) if isinstance(node, Folder) else None
        return node

    def apply(self, call: Call) -> str:
        """Applies a call; returns what it changed or synced, "" if nothing below the root."""
        self.number += 1
        handler = getattr(self, f"_{call.name}", None)
        if handler is None:
            assert not any(str(self.root) in path for path in paths_in(call)), call.name
            return ""
        return handler(call) or ""

    def _mmap(self, call: Call) -> str:
        shared_write = "PROT_WRITE" in call.arguments[2] and "MAP_SHARED" in call.arguments[3]
        assert not (shared_write and self._opened(call.arguments[4])), "writes through mmap"
        return ""

    def _openat(self, call: Call) -> str:
        descriptor, path = parse_descriptor(call.result)
        flags = call.arguments[2]
        if not path.is_relative_to(self.root) or path == self.root or "O_TMPFILE" in flags:
            return ""
        node, parent = self.find(path), self.find(path.parent)
        assert isinstance(parent, Folder)
        self.offsets[descriptor] = -1 if "O_APPEND" in flags else 0
        if node is None:
            created = File()
            parent.change(self.number, lambda names: names.__setitem__(path.name, created))
            return f"create {path.name}"
        if "O_TRUNC" in flags and isinstance(node, File):
            node.data.clear()
            return f"truncate {path.name}"
        return ""

    def _opened(self, descriptor: str) -> Node | None:
        return self.find(parse_descriptor(descriptor)[1]) if "<" in descriptor else None

    def _write(self, call: Call) -> str:
        data = as_bytes(call.arguments[1])[: int(call.result)]
        return self._store(call.arguments[0], data)

    def _store(self, descriptor: str, data: bytes, offset: int | None = None) -> str:
        file = self._opened(descriptor)
        if not isinstance(file, File):
            return ""
        number, path = parse_descriptor(descriptor)
        start = offset if offset is not None else self.offsets[number]
        start = len(file.data) if start < 0 else start
        file.data.extend(bytes(max(0, start - len(file.data))))
        file.data[start : start + len(data)] = data
        if offset is None and self.offsets[number] >= 0:
            self.offsets[number] = start + len(data)
        return f"write {path.name}"

    def _pwrite64(self, call: Call) -> str:
        descriptor, data, _, offset = call.arguments
        return self._store(descriptor, as_bytes(data)[: int(call.result)], int(offset))

    def _sendfile(self, call: Call) -> str:
        if not isinstance(self._opened(call.arguments[0]), File):
            return ""
        source = self._opened(call.arguments[1])
        path = parse_descriptor(call.arguments[1])[1]  # a tokenizer file beside the shards
        data = bytes(source.data) if isinstance(source, File) else path.read_bytes()
        start = int(call.arguments[2].partition("]")[0].removeprefix("["))
        return self._store(call.arguments[0], data[start : start + int(call.result)])

    def _lseek(self, call: Call) -> str:
        number, _ = parse_descriptor(call.arguments[0])
        if self.offsets.get(number, -1) >= 0 and isinstance(self._opened(call.arguments[0]), File):
            self.offsets[number] = int(call.result)
        return ""

    def _ftruncate(self, call: Call) -> str:
        file = self._opened(call.arguments[0])
        if not isinstance(file, File):
            return ""
        size = int(call.arguments[1])
        file.data[:] = file.data[:size].ljust(size, b"\0")
        return "truncate"

    def _mkdir(self, call: Call) -> str:
        path = Path(unescape(call.arguments[-2]))
        parent = self.find(path.parent)
        if not isinstance(parent, Folder):
            return ""
        created = Folder()
        parent.change(self.number, lambda names: names.__setitem__(path.name, created))
        return f"mkdir {path.name}"

    def _rename(self, call: Call) -> str:
        source, target = (Path(unescape(argument)) for argument in call.arguments)
        return self._move(source, target)

    def _renameat(self, call: Call) -> str:
        arguments = call.arguments
        return self._move(*(path_at(*arguments[start : start + 2]) for start in (0, 2)))

    _renameat2 = _renameat

    def _move(self, source: Path, target: Path) -> str:
        folder, new_folder = self.find(source.parent), self.find(target.parent)
        if not isinstance(folder, Folder) or folder is not new_folder:
            assert not isinstance(new_folder, Folder), f"renamed from {source} to {target}"
            return ""

        def move(names: dict[str, Node]) -> None:
            if source.name in names:
                names[target.name] = names.pop(source.name)

        folder.change(self.number, move)
        return f"rename {source.name} to {target.name}"

    def _unlink(self, call: Call) -> str:
        return self._delete(Path(unescape(call.arguments[0])))

    _rmdir = _unlink

    def _unlinkat(self, call: Call) -> str:
        return self._delete(path_at(*call.arguments[:2]))

    def _delete(self, path: Path) -> str:
        folder = self.find(path.parent)
        if not isinstance(folder, Folder):
            return ""
        folder.change(self.number, lambda names: names.pop(path.name, None))
        return f"delete {path.name}"

    def _fsync(self, call: Call) -> str:
        node, name = self._opened(call.arguments[0]), parse_descriptor(call.arguments[0])[1].name
        if isinstance(node, Folder):
            node.sync()
        elif isinstance(node, File):
            node.synced = bytes(node.data)
        return f"fsync {name}" if node else ""

    _fdatasync = _fsync

    def write_survivors(self, variant: str, random_numbers: random.Random) -> None:
        """Replaces the files below the root by what a power loss leaves of them."""
        shutil.rmtree(self.root)
        limit = random_numbers.randint(0, self.number)
        self._write_folder(self.top, self.root, variant, limit, random_numbers)

    def _write_folder(
        self, folder: Folder, path: Path, variant: str, limit: int, random_numbers: random.Random
    ) -> None:
        path.mkdir()
        names = dict(folder.synced)
        for number, change in folder.pending:
            survives = {
                "synced": False,
                "in order": number <= limit,
                "scattered": random_numbers.random() < 0.5,
            }
            if survives.get(variant, True):
                change(names)
        for name, node in names.items():
            if isinstance(node, Folder):
                self._write_folder(node, path / name, variant, limit, random_numbers)
            else:
                (path / name).write_bytes(surviving_data(node, variant, random_numbers))


def surviving_data(file: File, variant: str, random_numbers: random.Random) -> bytes:
    """Returns what a power loss leaves of the content of a file."""
    data, synced = bytes(file.data), file.synced
    if data == synced or variant in ("synced", "names"):
        return synced
    same = len(synced) if data.startswith(synced) else 0
    if variant == "zeros":
        return data[:same].ljust(len(data), b"\0")
    reached = random_numbers.randint(same, len(data))
    written, as_zeros = data[:reached], data[:reached].ljust(len(data), b"\0")
    return random_numbers.choice([synced, data, written, as_zeros])


def parse_descriptor(text: str) -> tuple[str, Path]:
    """Returns the number and the path of a descriptor, such as `3</path>` with escapes."""
    number, _, path = text.partition("<")
    path = path.removesuffix("(deleted)").rstrip(">")
    return number, Path(bytes.fromhex(path.replace("\\x", "")).decode() if "\\x" in path else path)


def path_at(descriptor: str, name: str) -> Path:
    return parse_descriptor(descriptor)[1] / unescape(name)


def paths_in(call: Call) -> list[str]:
    """Returns the paths of a call for which there is no handler."""
    texts = [text for text in (*call.arguments, call.result) if "\\x2f" in text]
    return [bytes.fromhex("".join(re.findall(r"\\x(..)", text))).decode() for text in texts]


class Recording(NamedTuple):
    """The calls of a process, and the files with which it started."""

    name: str
    before: Path
    calls: list[Call]
    changes: dict[int, str]
    """What each call changed or synced below the root, by the number of calls up to it."""


class Trial:
    """A recipe, the results of its uninterrupted run, and recordings of two others."""

    def __init__(self, work: Path) -> None:
        self.work, self.runs = work, work / "runs"
        build(work)
        recipe = RECIPE.format(run=self.runs / "run", a=work / "a", b=work / "b")
        (work / "recipe.yaml").write_text(recipe)
        settings = {**SETTINGS, "data.validation": f"{{a: {{shards: {work}/a, tokens: 1280}}}}"}
        overrides = [word for pair in settings.items() for word in ("--set", "=".join(pair))]
        self.command = ["train", str(work / "recipe.yaml"), *overrides]
        ended = run_command(*self.command, "--set", f"run={work}/reference")
        assert ended.code == 0, ended.errors
        self.expected = outcome(work / "reference")
        self.recordings: list[Recording] = []

    def record(self, name: str, *options: str) -> None:
        """Records a process that trains the run from the files that are there to its end."""
        before = self.work / f"before-{name}"
        shutil.copytree(self.runs, before)
        trace = self.work / f"{name}.trace"
        subprocess.run(
            ["strace", "-f", "-y", "-xx", "-s", "100000000", "--seccomp-bpf", "-o", str(trace),
             "-e", f"trace={CALLS}", sys.executable, "-m", "rewarm", *self.command, *options],
            check=True, capture_output=True,
        )  # fmt: skip
        calls = list(parse_trace(trace.read_text()))
        assert outcome(self.runs / "run") == self.expected
        disk = Disk(self.runs)
        disk.top = Disk(before).top
        changes = {n: done for n, call in enumerate(calls, start=1) if (done := disk.apply(call))}
        self.recordings.append(Recording(name, before, calls, changes))
        self._check_recording(disk)

    def _check_recording(self, disk: Disk) -> None:
        """Makes sure that the recorded calls lead to the files that the process has left."""
        after = {path: path.read_bytes() for path in self.runs.rglob("*") if path.is_file()}
        for folder in (path for path in self.runs.rglob("*") if path.is_dir()):
            node = disk.find(folder)
            assert isinstance(node, Folder), folder
            names = {path.name for path in folder.iterdir()}
            assert set(node.names) == names, f"{folder}: recorded {sorted(node.names)}, is {names}"
        for path, data in after.items():
            node = disk.find(path)
            assert isinstance(node, File), path
            assert node.data == data, f"{path}: the recording lacks a write"

    def leave_killed(self, recording: Recording, point: int) -> None:
        """Leaves the files that a kill at a point leaves: every call before it has its effect."""
        disk = self.disk_at(recording, point)
        for folder in disk_folders(disk.top):
            folder.sync()
        for file in disk_files(disk.top):
            file.synced = bytes(file.data)
        disk.write_survivors("synced", random.Random(0))

    def disk_at(self, recording: Recording, point: int) -> Disk:
        """Returns the disk after the first `point` calls of a recording."""
        disk = Disk(self.runs)
        disk.top = Disk(recording.before).top
        for call in recording.calls[:point]:
            disk.apply(call)
        return disk


def disk_folders(folder: Folder) -> Iterator[Folder]:
    yield folder
    for node in folder.names.values():
        if isinstance(node, Folder):
            yield from disk_folders(node)


def disk_files(folder: Folder) -> Iterator[File]:
    for inner in disk_folders(folder):
        yield from (node for node in inner.names.values() if isinstance(node, File))


def completed_saves(recording: Recording, point: int) -> set[str]:
    """Returns the checkpoints that were complete, on the disk and not deleted before a point."""
    renamed: set[str] = set()
    completed: set[str] = set()
    for number, change in recording.changes.items():
        if number > point:
            break
        if match := re.fullmatch(r"rename (step-\d+)\.partial to \1", change):
            renamed.add(match[1])
        elif match := re.match(r"rename (step-\d+) to ", change):
            renamed.discard(match[1])
            completed.discard(match[1])
        elif change == "fsync checkpoints":
            completed |= renamed
    started = (recording.before / "run" / "checkpoints").glob("step-????????")
    deleted = set(re.findall(r"rename (step-\d+) to ", "\n".join(
        change for number, change in recording.changes.items() if number <= point
    )))  # fmt: skip
    return completed | ({path.name for path in started} - deleted)


def choose_points(
    recordings: list[Recording], count: int, random_numbers: random.Random
) -> list[tuple[Recording, int, str]]:
    """Returns points right before and after calls of each kind, and variants for them."""
    by_kind: dict[str, list[tuple[Recording, int]]] = {}
    for recording in recordings:
        for number, change in recording.changes.items():
            kind = re.sub(r"\d{3,}", "N", re.sub(r"\.tmp\w+", ".tmp", change))
            by_kind.setdefault(kind, []).append((recording, number))
    important = [kind for kind in sorted(by_kind) if re.search(IMPORTANT, kind)]
    others = [kind for kind in sorted(by_kind) if kind not in important]
    for kinds in (important, others):
        random_numbers.shuffle(kinds)
    points = []
    for index in range(count):
        kinds = others if index % 3 == 2 else important
        recording, number = random_numbers.choice(by_kind[kinds[index % len(kinds)]])
        before = random_numbers.random() < 0.3
        points.append((recording, number - before, VARIANTS[index % len(VARIANTS)]))
    return points


def survive(trial: Trial, recording: Recording, point: int, variant: str, seed: int) -> str:
    """Resumes after a power loss at a point; returns "ok ...", "refused ..." or a violation."""
    random_numbers = random.Random(seed)
    trial.disk_at(recording, point).write_survivors(variant, random_numbers)
    run = trial.runs / "run"
    saved = max(completed_saves(recording, point), default="")
    if saved and not (run / "checkpoints" / saved / "MANIFEST.json").is_file():
        return f"VIOLATION: lost {saved}, whose save had completed"
    left = sorted(path.name for path in run.glob("checkpoints/step-*")) if run.exists() else []
    ended = run_command(*trial.command, "--resume", timeout=120)
    if ended.code == 3 and ended.errors.startswith("error:") and "Traceback" not in ended.errors:
        message = ended.errors.strip().replace(str(trial.work), "")
        return ("refused: " if variant == "scattered" else "VIOLATION: refused: ") + message
    if ended.code:
        return f"VIOLATION: exit {ended.code}: {ended.errors.strip()[-2000:]}"
    tensors, metrics = outcome(run)
    if tensors != trial.expected[0]:
        return "VIOLATION: weights, optimizer state or progress differ"
    if metrics != trial.expected[1]:
        kept = [(line["kind"], line["step"]) for line in metrics]
        wanted = [(line["kind"], line["step"]) for line in trial.expected[1]]
        missing = [item for item in wanted if item not in kept]
        repeated = [item for item, times in Counter(kept).items() if times > 1]
        return f"VIOLATION: metrics differ: missing {missing}, repeated {repeated}"
    return f"ok, from {', '.join(left) or 'nothing'}"


def main() -> None:
    """Records, cuts the power, resumes and compares; prints a line for each point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--points", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    random_numbers = random.Random(options.seed)
    counts = Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(Path(folder).resolve())
        trial.runs.mkdir()
        trial.record("new")
        new = trial.recordings[0]
        saves = [n for n, change in new.changes.items() if ".partial to step-" in change]
        trial.leave_killed(new, saves[len(saves) // 2] + 40)
        trial.record("resumed", "--resume")
        points = choose_points(trial.recordings, options.points, random_numbers)
        for index, (recording, point, variant) in enumerate(points):
            result = survive(trial, recording, point, variant, options.seed * 10_000 + index)
            counts[re.split(r"[:,]", result)[0]] += 1
            numbers = [n for n in recording.changes if n <= point]
            after = recording.changes[numbers[-1]] if numbers else "the start"
            print(f"{recording.name} run, after {after!r} ({variant}): {result}", flush=True)
    print(f"{options.points} power losses: "
          + ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())))  # fmt: skip
    sys.exit(bool(counts["VIOLATION"]))


if __name__ == "__main__":
    main()
