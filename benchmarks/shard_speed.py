"""`rewarm shard` beside `datasets.map` with the same tokenizer, by the length of the documents.

    python benchmarks/shard_speed.py TEXTS.jsonl.zst --tokenizer T [--lengths 6 60 600 6000]
        [--tokens 4M] [--repeats 3] [--against before=CLONE] [--large 1G]

The texts are cut into documents of about so many tokens, `--tokens` in all, as jsonl. All programs
read that file, tokenize every text with the same `tokenizers` and write tokens to disk, on all
cores, each in processes of its own whose start counts. `--against` names another clone of rewarm.
`datasets` is skipped, with a note, if it cannot be imported. With `--large`, the texts are repeated
to a file of that many bytes, which only `rewarm shard` reads: its peak memory should not grow with
the file. Figures are medians of interleaved repeats, with the spread.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from spread import spread

from rewarm.quantities import parse_count

ROOT = Path(__file__).resolve().parents[1]

_DATASETS = """
import os, sys
from datasets import load_dataset
from tokenizers import Tokenizer
encoder = Tokenizer.from_file(sys.argv[2])
def encode(batch):
    encodings = encoder.encode_batch_fast(batch["text"], add_special_tokens=False)
    return {"ids": [encoding.ids + [0] for encoding in encodings]}
texts = load_dataset("json", data_files=sys.argv[1], split="train", cache_dir=sys.argv[3])
texts.map(encode, batched=True, remove_columns=texts.column_names, num_proc=os.cpu_count())
"""


class Measurement(NamedTuple):
    """One run of a program."""

    seconds: float
    cpu_seconds: float
    """Of its processes together: what other work on the machine changes less."""
    peak_mb: float
    """Of its processes together."""
    written_bytes: int
    """Of tars, or of Arrow files."""
    tokens: int
    """That rewarm counted; 0 for others."""


def resident_mb(pid: int) -> float:
    """Returns the resident memory of a process and its children."""
    pids, total = [pid], 0.0
    while pids:
        pid = pids.pop()
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
            pids += [int(child) for child in children.split()]
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


def timed(command: list[str], clone: Path = ROOT) -> tuple[float, float, float]:
    """Returns the seconds, the CPU seconds and the peak memory, in MB, of a command."""
    environment = {**os.environ, "PYTHONPATH": str(clone), "HF_HUB_OFFLINE": "1"}
    memory: list[float] = [0.0]
    started, cpu_before = time.perf_counter(), child_cpu_seconds()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, cwd=clone
    )

    def watch() -> None:
        while process.poll() is None:
            memory.append(resident_mb(process.pid))
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, error = process.communicate()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{command[:4]} failed: {error.decode().strip().splitlines()[-1:]}")
    return time.perf_counter() - started, child_cpu_seconds() - cpu_before, max(memory)


def child_cpu_seconds() -> float:
    """Returns the CPU seconds of all processes started so far, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run_rewarm(texts: Path, tokenizer: str, out: Path, clone: Path) -> Measurement:
    """Runs `rewarm shard` of a clone."""
    command = [sys.executable, "-m", "rewarm", "shard", str(texts), "--tokenizer", tokenizer]
    times = timed([*command, "--out", str(out)], clone)
    shards = json.loads((out / "index.json").read_text())["shards"]
    size, tokens = (sum(shard[key] for shard in shards) for key in ("bytes", "tokens"))
    shutil.rmtree(out)
    return Measurement(*times, size, tokens)


def run_datasets(texts: Path, tokenizer: str, cache: Path) -> Measurement:
    """Runs `datasets.map`."""
    times = timed([sys.executable, "-c", _DATASETS, str(texts), tokenizer, str(cache)])
    size = sum(path.stat().st_size for path in cache.rglob("cache-*.arrow"))
    shutil.rmtree(cache)
    return Measurement(*times, size, 0)


def measure(texts: Path, options: argparse.Namespace, work: Path) -> dict[str, list[Measurement]]:
    """Runs the programs in turn."""
    clones = {name: Path(path) for name, path in (pair.split("=") for pair in options.against)}
    runs: dict[str, list[Measurement]] = {}
    for _ in range(options.repeats):
        for name, clone in {**clones, "rewarm": ROOT}.items():
            run = run_rewarm(texts, options.tokenizer, work / "out", clone.resolve())
            runs.setdefault(name, []).append(run)
        if importlib.util.find_spec("datasets"):
            run = run_datasets(texts, options.tokenizer, work / "cache")
            runs.setdefault("datasets.map", []).append(run)
    return runs


def cut_texts(source: Path, path: Path, tokenizer: str, length: int, tokens: int) -> None:
    """Writes documents of about `length` tokens, the last ones of the text left out."""
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(tokenizer)
    draw = random.Random(length)
    written = 0
    with path.open("w", encoding="utf-8") as file:
        for line in unpacked_lines(source).splitlines():
            text = json.loads(line)["text"]
            offsets = encoder.encode(text, add_special_tokens=False).offsets
            start = 0
            while start + 1 < len(offsets) and written < tokens:
                # End-of-text is one of the tokens; lengths vary by a third to either side.
                end = min(start + draw.randint(-(-2 * length // 3), 4 * length // 3), len(offsets))
                piece = text[offsets[start][0] : offsets[end - 1][1]]
                file.write(json.dumps({"text": piece}) + "\n")
                written += end - start + 1
                start = end
            if written >= tokens:
                return


def unpacked_lines(path: Path) -> bytes:
    """Returns at most 64 MiB of whole lines of a jsonl file, unpacked."""
    import zstandard

    with path.open("rb") as raw:
        compressed = path.suffix == ".zst"
        file = zstandard.ZstdDecompressor().stream_reader(raw) if compressed else raw
        data = file.read(2**26)
    return data[: data.rindex(b"\n") + 1]


def print_rows(length: int, texts: Path, runs: dict[str, list[Measurement]]) -> None:
    """Prints one row of the table for each program."""
    documents = texts.read_bytes().count(b"\n")
    tokens = runs["rewarm"][0].tokens
    for name, measurements in runs.items():
        seconds = [run.seconds for run in measurements]
        cpu_seconds = statistics.median(run.cpu_seconds for run in measurements)
        print(
            f"| {length} | {documents:,} | {tokens / documents:,.1f} | {name} "
            f"| {spread(seconds, 1)} | {cpu_seconds:.1f} "
            f"| {tokens / statistics.median(seconds):,.0f} "
            f"| {statistics.median(run.written_bytes for run in measurements) / tokens:.2f} "
            f"| {max(run.peak_mb for run in measurements):,.0f} |",
            flush=True,
        )


def measure_large(options: argparse.Namespace, work: Path) -> None:
    """Prints time and peak memory of `rewarm shard` on a file of `--large` bytes."""
    large = work / "large.jsonl"
    size = int(float(options.large.rstrip("G")) * 2**30)
    lines = unpacked_lines(options.texts)
    with large.open("wb") as file:
        while file.tell() < size:
            file.write(lines)
    run = run_rewarm(large, options.tokenizer, work / "large", ROOT)
    print(f"rewarm on {size:,} bytes: {run.seconds:.1f} s, peak memory {run.peak_mb:,.0f} MB")


def main() -> None:
    """Measures each length in turn and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("texts", type=Path)
    parser.add_argument("--tokenizer", required=True, help="a tokenizer.json")
    parser.add_argument("--lengths", type=int, nargs="*", default=[6, 60, 600, 6000])
    parser.add_argument("--tokens", type=parse_count, default=4_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--against", nargs="*", default=[], metavar="NAME=CLONE")
    parser.add_argument("--large", help="also measure memory on a file of this many bytes: 1G")
    options = parser.parse_args()
    options.tokenizer = str(Path(options.tokenizer).resolve())
    packages = ["rewarm", "tokenizers"]
    packages += ["datasets"] if importlib.util.find_spec("datasets") else []
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"{', '.join(f'{name} {version(name)}' for name in packages)}; {options.repeats} repeats"
    )
    if "datasets" not in packages:
        print("not importable here: datasets")
    print(
        "| tokens | documents | mean | program | seconds: median (lowest to highest) "
        "| CPU seconds | tokens/s | tar bytes/token | peak memory, MB |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as work:
        for length in options.lengths:
            texts = Path(work) / f"{length}.jsonl"
            cut_texts(options.texts, texts, options.tokenizer, length, options.tokens)
            print_rows(length, texts, measure(texts, options, Path(work)))
        if options.large:
            measure_large(options, Path(work))


if __name__ == "__main__":
    main()
