"""`rewarm shard` beside `datasets.map` with the same tokenizer: tokens/s per core, peak memory.

    python benchmarks/sharding.py TEXTS.jsonl[.zst] --tokenizer T [--repeats 3] [--large 1G]

Both read the file, tokenize every text with the same `tokenizers` and write tokens to disk, on all
cores. `datasets` is skipped, with a note, if it cannot be imported. With `--large`, the texts are
repeated to a file of that many bytes, which only `rewarm shard` then reads: its peak memory should
not grow with the file. Figures are medians of interleaved repeats, with the spread.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path

from spread import spread

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


def peak_mb(process: subprocess.Popen[bytes], samples: list[float]) -> None:
    """Records the resident memory of a process and its children, 20 times a second."""
    while process.poll() is None:
        pids, total = [process.pid], 0.0
        while pids:
            pid = pids.pop()
            try:
                tasks = Path(f"/proc/{pid}/task/{pid}/children").read_text()
                pids += [int(child) for child in tasks.split()]
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20
            except (FileNotFoundError, ProcessLookupError):
                continue
        samples.append(total)
        time.sleep(0.05)


def timed(command: list[str]) -> tuple[float, float]:
    """Returns the seconds and the peak memory, in MB, of a command."""
    memory: list[float] = [0.0]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    watcher = threading.Thread(target=peak_mb, args=(process, memory))
    watcher.start()
    _, error = process.communicate()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{command[:4]} failed: {error.decode().strip().splitlines()[-1:]}")
    return time.perf_counter() - started, max(memory)


Measurements = dict[str, list[tuple[float, float]]]
"""The (seconds, peak MB) of each repeat, by program."""


def measure(
    rewarm: list[str], options: argparse.Namespace, peers: list[str], work: Path
) -> tuple[Measurements, int]:
    """Runs the programs in turn; returns the measurements and the number of tokens."""
    runs: Measurements = {name: [] for name in peers}
    texts, tokens = str(options.texts), 0
    for repeat in range(options.repeats):
        out = work / f"out{repeat}"
        runs["rewarm"].append(timed([*rewarm, texts, "--out", str(out)]))
        index = json.loads((out / "index.json").read_text())
        tokens = sum(shard["tokens"] for shard in index["shards"])
        if "datasets" in peers:
            cache = str(work / f"cache{repeat}")
            command = [sys.executable, "-c", _DATASETS, texts, options.tokenizer, cache]
            runs["datasets"].append(timed(command))
    return runs, tokens


def measure_large(rewarm: list[str], options: argparse.Namespace, work: Path) -> None:
    """Prints time and peak memory of `rewarm shard` on a file of `--large` bytes."""
    large = work / "large.jsonl"
    size = int(float(options.large.rstrip("G")) * 2**30)
    lines = unpacked_lines(options.texts)
    with large.open("wb") as file:
        while file.tell() < size:
            file.write(lines)
    seconds, memory = timed([*rewarm, str(large), "--out", str(work / "large")])
    print(f"rewarm on {size:,} bytes: {seconds:.1f} s, peak memory {memory:,.0f} MB")


def main() -> None:
    """Runs both in turn and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("texts", type=Path)
    parser.add_argument("--tokenizer", required=True, help="a tokenizer.json")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--large", help="also measure memory on a file of this many bytes: 1G")
    options = parser.parse_args()
    rewarm = [sys.executable, "-m", "rewarm", "shard", "--tokenizer", options.tokenizer]
    peers = ["rewarm", *(["datasets"] if importlib.util.find_spec("datasets") else [])]
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as work:
        runs, tokens = measure(rewarm, options, peers, Path(work))
        print(
            f"{platform.machine()}, {cores} cores, Python {platform.python_version()}, "
            f"{', '.join(f'{name} {version(name)}' for name in [*peers, 'tokenizers'])}; "
            f"{tokens:,} tokens; {options.repeats} repeats: median (lowest to highest)"
        )
        if "datasets" not in peers:
            print("not importable here: datasets")
        print("| | seconds | tokens/s per core | peak memory, MB |\n|---|---|---|---|")
        for name, measurements in runs.items():
            seconds, memory = (list(column) for column in zip(*measurements, strict=True))
            speed = tokens / statistics.median(seconds) / cores
            peak = statistics.median(memory)
            print(f"| {name} | {spread(seconds, 1)} | {speed:,.0f} | {peak:,.0f} |")
        if options.large:
            measure_large(rewarm, options, Path(work))


def unpacked_lines(path: Path) -> bytes:
    """Returns at most 64 MiB of whole lines of a jsonl file, unpacked."""
    import zstandard

    with path.open("rb") as raw:
        compressed = path.suffix == ".zst"
        file = zstandard.ZstdDecompressor().stream_reader(raw) if compressed else raw
        data = file.read(2**26)
    return data[: data.rindex(b"\n") + 1]


if __name__ == "__main__":
    main()
