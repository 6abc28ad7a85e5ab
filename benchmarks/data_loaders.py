"""Loaders side by side on the same tokens: speed, time to the first batch, resume, memory.

    python benchmarks/data_loaders.py SHARDS [--context 2048] [--batch 64] [--seconds 4]

SHARDS is a folder that `rewarm shard` wrote. Peers that cannot be imported are skipped and named.
Every figure is from a separate process, the median of interleaved repeats, with the spread; input
that a peer needs (a flat file, MDS shards) is written once and not counted. All return batches of
token ids, shape (batch, context + 1), as 64-bit integers.

- rewarm: `BatchLoader` over the shards, shuffled, sha256 checked, digest of all tokens included.
- webdataset: `WebDataset(...).decode()`, documents joined and cut; it resumes by skipping.
- memmap: as nanoGPT: random offsets into one flat file of 16-bit tokens.
- streaming: mosaicml-streaming's StreamingDataset over blocks stored as MDS, shuffled.

With one or two workers, batches come from that many processes (torch's DataLoader), as these
libraries do it; rewarm uses threads of the training process.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from spread import spread

PEERS = {
    "rewarm": "rewarm",
    "webdataset": "webdataset",
    "memmap": "torch",
    "streaming": "streaming",
}


def rewarm(folder: Path, options: argparse.Namespace) -> Iterator[Any]:
    from rewarm.data.batch_loader import BatchLoader, DataPosition
    from rewarm.data.corpus import Corpus
    from rewarm.data.shard_source import ShardSource

    corpus = Corpus(
        "a", ShardSource(str(folder)), context=options.context, seed=1, lanes=options.lanes
    )
    skipped = corpus.blocks_per_epoch * options.resume // 100 // options.batch * options.batch
    stream = BatchLoader(
        [corpus], {"a": [(0, 1)]}, sequences=options.batch, position=DataPosition({"a": skipped})
    )
    return (batch.tokens for batch in stream.batches(options.workers))


def webdataset(folder: Path, options: argparse.Namespace) -> Iterator[Any]:
    import torch
    import webdataset as wds

    class Packed(torch.utils.data.IterableDataset):
        def __iter__(self) -> Iterator[np.ndarray]:
            urls = [str(path) for path in sorted(folder.glob("*.tar"))]
            documents = wds.WebDataset(urls, shardshuffle=False, workersplitter=wds.split_by_worker)
            documents = documents.decode().repeat()
            rest = np.empty(0, np.int64)
            for sample in documents:
                rest = np.concatenate([rest, sample["npy"].astype(np.int64)])
                while len(rest) > options.context:
                    yield rest[: options.context + 1]
                    rest = rest[options.context :]

    batches = iter(
        torch.utils.data.DataLoader(Packed(), options.batch, num_workers=options.workers)
    )
    shards = json.loads((folder / "index.json").read_text())["shards"]
    skipped = sum(shard["tokens"] for shard in shards) // options.context * options.resume // 100
    next(islice(batches, skipped // options.batch, None)) if skipped else None
    return batches


def memmap(folder: Path, options: argparse.Namespace) -> Iterator[Any]:
    import torch

    class Random(torch.utils.data.IterableDataset):
        def __iter__(self) -> Iterator[np.ndarray]:
            worker = torch.utils.data.get_worker_info()
            draw = np.random.default_rng(worker.id if worker else 0)
            data = np.memmap(Path(options.work) / "flat.bin", dtype=np.uint16, mode="r")
            while True:
                starts = draw.integers(0, len(data) - options.context - 1, options.batch)
                yield np.stack([data[s : s + options.context + 1].astype(np.int64) for s in starts])

    return iter(torch.utils.data.DataLoader(Random(), None, num_workers=options.workers))


def streaming(folder: Path, options: argparse.Namespace) -> Iterator[Any]:
    import torch
    from streaming import StreamingDataset

    class Blocks(StreamingDataset):
        def __getitem__(self, at: int) -> np.ndarray:
            return super().__getitem__(at)["tokens"].astype(np.int64)

    dataset = Blocks(local=str(Path(options.work) / "mds"), shuffle=True, batch_size=options.batch)
    if options.resume:
        skipped = len(dataset) * options.resume // 100
        dataset.load_state_dict(
            {"epoch": 0, "sample_in_epoch": skipped, "num_canonical_nodes": 1,
             "shuffle_seed": 9176, "initial_physical_nodes": 1}
        )  # fmt: skip

    def forever() -> Iterator[Any]:
        while True:
            yield from torch.utils.data.DataLoader(
                dataset, options.batch, num_workers=options.workers
            )

    return forever()


def prepare(folder: Path, work: Path, context: int) -> None:
    """Writes the peers' input: a flat file, and MDS shards of blocks."""
    from rewarm.data.shard_format import Shard, read_shard_index

    index = read_shard_index(folder)
    with (work / "flat.bin").open("wb") as flat:
        for shard in index.shards:
            for tokens in Shard(folder, shard, index.dtype):
                flat.write(tokens.tobytes())
    if importlib.util.find_spec("streaming"):
        from streaming import MDSWriter

        data = np.fromfile(work / "flat.bin", np.uint16)
        with MDSWriter(out=str(work / "mds"), columns={"tokens": "ndarray:uint16"}) as out:
            for at in range(0, len(data) - context - 1, context):
                out.write({"tokens": data[at : at + context + 1]})


def measure(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Runs one loader in this process."""
    started = time.perf_counter()
    batches = globals()[options.only](folder, options)
    first = next(batches)
    first_batch = time.perf_counter() - started
    assert tuple(first.shape) == (options.batch, options.context + 1), first.shape
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < options.seconds:
        next(batches)
        count += 1
    speed = count * options.batch * options.context / (time.perf_counter() - started)
    # Not getrusage's maximum, which a process inherits from its parent.
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    return {"first_batch_s": first_batch, "tokens_per_s": speed, "peak_mb": peak}


Case = tuple[str, int, int]
"""A loader, its workers, and the percentage of the data that it starts at."""
Results = dict[Case, list[dict[str, float]]]


def arguments() -> argparse.ArgumentParser:
    """Returns the parser of the command's arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lanes", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--resume", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    return parser


def measure_all(options: argparse.Namespace, peers: list[str], work: str) -> Results:
    """Runs every loader in turn, each in a separate process."""
    prepare(options.folder, Path(work), options.context)
    cases = [(p, w, r) for p in peers for w, r in ((0, 0), (1, 0), (2, 0), (1, 90))]
    results: Results = {case: [] for case in cases}
    for _ in range(options.repeats):
        for name, workers, resume in cases:
            command = [sys.executable, __file__, *sys.argv[1:], "--only", name]
            command += ["--workers", str(workers), "--resume", str(resume), "--work", work]
            process = subprocess.run(command, capture_output=True, text=True, check=False)
            if process.returncode:
                print(f"{name} failed: {process.stderr.strip().splitlines()[-1:]}")
                continue
            results[name, workers, resume].append(json.loads(process.stdout.splitlines()[-1]))
    return results


def main() -> None:
    """Measures every loader and prints the table."""
    options = arguments().parse_args()
    if options.only:
        print(json.dumps(measure(options.folder, options)), flush=True)
        os._exit(0)  # DataLoader workers would keep some peers alive for seconds
    peers = [name for name, module in PEERS.items() if importlib.util.find_spec(module)]
    with tempfile.TemporaryDirectory() as work:
        results = measure_all(options, peers, work)
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, {', '.join(_versions(peers))}; context {options.context}, "
        f"batch {options.batch}, {options.repeats} repeats: median (lowest to highest)"
    )
    missing = [name for name in PEERS if name not in peers]
    if missing:
        print(f"not importable here: {', '.join(missing)}")
    print("| loader | workers | from | M tokens/s | first batch, s | peak memory, MB |")
    print("|---|---|---|---|---|---|")
    for (name, workers, resume), runs in results.items():
        if runs:
            cells = [
                spread([run["tokens_per_s"] / 1e6 for run in runs], 1),
                spread([run["first_batch_s"] for run in runs], 2),
                spread([run["peak_mb"] for run in runs], 0),
            ]
            print(f"| {name} | {workers} | {resume} % | {' | '.join(cells)} |")
    if options.out:
        rows = [
            {"loader": n, "workers": w, "resume": r, "runs": x} for (n, w, r), x in results.items()
        ]
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


def _versions(peers: list[str]) -> list[str]:
    names = {"memmap": "numpy", "streaming": "mosaicml-streaming"}
    return [f"{names.get(peer, peer)} {version(names.get(peer, peer))}" for peer in peers]


if __name__ == "__main__":
    main()
