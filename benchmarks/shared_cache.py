"""Checks that processes can share a download cache that is too small for them.

    python benchmarks/shared_cache.py [--tries 20] [--accesses 150] [--kill]

Serves the shards of a small corpus over HTTP. In each try, two processes share an empty cache that
has room for two shards. Each opens random shards, keeps the last three of them open, and compares
what it reads with the shards on the disk; each open shard must stay in the cache. With `--kill`,
one of the two is killed after a random time, and another one takes its place.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from data_faults import build

from rewarm.data.shard_source import ShardSource
from rewarm.files import cache_dir

PROCESSES = 2
KEPT_OPEN = 3


class Outcome(NamedTuple):
    """What happened in all tries."""

    accesses: int
    downloads: int
    problems: Counter[str]
    """Errors, wrong tokens and evictions of open shards, by message."""
    leftovers: list[str]
    """Partial downloads and locks that were left after the last access of a try."""


def read_shards(url: str, folder: Path, accesses: int, seed: int) -> dict[str, Any]:
    """Opens random shards, and returns the number of accesses and the problems."""
    local, random_numbers = ShardSource(str(folder)), random.Random(seed)
    size = max(shard.bytes for shard in local.index.shards)
    remote = ShardSource(url, cache_bytes=2 * size)
    problems: Counter[str] = Counter()
    opened: dict[int, tuple[Any, os.stat_result | None]] = {}
    for _ in range(accesses):
        number = random_numbers.randrange(len(local.index.shards))
        path = remote.folder / local.index.shards[number].name
        try:
            opened.pop(number, None)
            shard = remote.open_shard(number)
            opened[number] = shard, path.stat()
            while len(opened) > KEPT_OPEN:
                opened.pop(next(iter(opened)))
            documents = zip(shard, local.open_shard(number), strict=True)
            if not all(np.array_equal(copy, original) for copy, original in documents):
                problems["wrong tokens"] += 1
        except Exception as error:
            problems[f"{type(error).__name__}: {error}"] += 1
        for other, (_, status) in opened.items():
            in_cache = remote.folder / local.index.shards[other].name
            with contextlib.suppress(OSError):
                if status and os.path.samestat(in_cache.stat(), status):
                    continue
            problems["an open shard was evicted"] += 1
            opened[other] = opened[other][0], None
            break
    return {"accesses": accesses, "problems": problems}


class _CountingServer(http.server.SimpleHTTPRequestHandler):
    downloads = 0

    def do_GET(self) -> None:
        _CountingServer.downloads += self.path.endswith(".tar")
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serves a folder; gives its URL."""
    handler = partial(_CountingServer, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def run_tries(folder: Path, tries: int, accesses: int, *, kill: bool, seed: int) -> Outcome:
    """Runs all tries on the shards of a folder."""
    random_numbers = random.Random(seed)
    problems, leftovers, total = Counter[str](), list[str](), 0
    _CountingServer.downloads = 0
    with served(folder) as url:
        for number in range(tries):
            with tempfile.TemporaryDirectory() as home:
                processes = [
                    _start(url, folder, accesses, home, seed=10 * number + process)
                    for process in range(PROCESSES)
                ]
                if kill:
                    time.sleep(random_numbers.uniform(0.5, 3))
                    processes.pop().send_signal(signal.SIGKILL)
                    processes.append(_start(url, folder, accesses, home, seed=10 * number + 9))
                for process in processes:
                    output, _ = process.communicate(timeout=600)
                    result = json.loads(output) if process.returncode == 0 else None
                    if result is None:
                        problems[f"a process ended with {process.returncode}"] += 1
                        continue
                    total += result["accesses"]
                    problems.update(result["problems"])
                left = [path for path in Path(home).rglob("*") if not path.is_dir()]
                leftovers += [p.name for p in left if p.suffix in (".partial", ".lock")]
    return Outcome(total, _CountingServer.downloads, problems, leftovers)


def _start(url: str, folder: Path, accesses: int, home: str, *, seed: int) -> subprocess.Popen[str]:
    words = ["--reader", url, str(folder), "--accesses", str(accesses), "--seed", str(seed)]
    return subprocess.Popen(
        [sys.executable, __file__, *words],
        env=os.environ | {"XDG_CACHE_HOME": home},
        stdout=subprocess.PIPE,
        text=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--accesses", type=int, default=150, help="of each process in a try")
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--reader", nargs=2, metavar=("URL", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reader:
        assert cache_dir().is_relative_to(os.environ["XDG_CACHE_HOME"])
        url, folder = options.reader
        print(json.dumps(read_shards(url, Path(folder), options.accesses, options.seed)))
        return
    with tempfile.TemporaryDirectory() as root:
        build(Path(root))
        started = time.perf_counter()
        outcome = run_tries(
            Path(root) / "a", options.tries, options.accesses, kill=options.kill, seed=options.seed
        )
        seconds = time.perf_counter() - started
    print(
        f"{options.tries} tries of {PROCESSES} processes, {outcome.accesses:,} accesses, "
        f"{outcome.downloads:,} downloads in {seconds:.0f} s; {outcome.problems.total():,} "
        f"problems; {len(outcome.leftovers)} partial files and locks left"
    )
    for problem, count in outcome.problems.most_common():
        print(f"{count:6,}  {problem}")


if __name__ == "__main__":
    main()
