"""What a user sees when data is damaged: each fault through the real commands, and what is lost.

    python benchmarks/data_faults.py

Builds two small corpora in a temporary folder, breaks one thing at a time, trains (or shards) with
the real commands, and prints a table: the message, the exit code, and whether the resumed run, with
the fault fixed, ends with exactly the weights of a run without the fault.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

RECIPE = """\
run: {run}
seed: 5
tokens: 65536
model: {{architecture: {{layers: 1, hidden: 16, heads: 1, vocabulary: 300, positions: 64}}}}
data:
  context: 64
  lanes: 1
  train:
    a: {{shards: {a}, weight: 50%}}
    b: {{shards: {b}, weight: 50%}}
batch: {{tokens: 1024, microbatch: 16}}
schedule: {{name: constant, lr: 1e-3}}
precision: fp32
every: {{log: 100, evaluate: null, save: 10}}
"""


def rewarm(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs the command as a user does."""
    command = [sys.executable, "-m", "rewarm", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def build(root: Path) -> None:
    """Writes two byte-level tokenizers, two texts, and their shards."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    for name, first in (("tokenizer", "<|endoftext|>"), ("other", "</s>")):
        words = {word: number for number, word in enumerate([first, *letters])}
        encoder = Tokenizer(models.BPE(words, []))
        encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        encoder.decoder = decoders.ByteLevel()
        encoder.save(str(root / f"{name}.json"))
    for name in "ab":
        random_numbers = random.Random(name)
        texts = ("".join(random_numbers.choices("abcdefgh ", k=400)) for _ in range(250))
        (root / f"{name}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
        shard(root, name, root / name)


def shard(root: Path, name: str, out: Path, tokenizer: str = "tokenizer") -> None:
    """Shards one of the texts."""
    ended = rewarm(
        "shard", root / f"{name}.jsonl", "--out", out, "--tokenizer", root / f"{tokenizer}.json",
        "--shard-size", "9000",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr


def tar(folder: Path) -> Path:
    """Returns the tar that every epoch opens last, after some steps of training."""
    return folder / LATE


LATE = "00000.tar"


def rewrite(
    folder: Path, name: str, data: bytes, kind: bytes = tarfile.REGTYPE, count: int = 1
) -> None:
    """Replaces the members of the tar, and updates its size and sha256 in the index."""
    size = tar(folder).stat().st_size
    with tarfile.open(tar(folder), "w", format=tarfile.USTAR_FORMAT) as out:
        for _ in range(count):
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, 0 if kind == tarfile.SYMTYPE else len(data)
            info.linkname = "/etc/passwd" if kind == tarfile.SYMTYPE else ""
            out.addfile(info, io.BytesIO(data))
    os.truncate(tar(folder), size)  # an index with more tokens than bytes would be refused
    reindex(folder)


def reindex(folder: Path) -> None:
    """Updates the index to the bytes of the tar, so that the change is not detected by sha256."""
    index = json.loads((folder / "index.json").read_text())
    data = tar(folder).read_bytes()
    for shard in index["shards"]:
        if shard["name"] == LATE:
            shard |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "index.json").write_text(json.dumps(index))


def npy(array: np.ndarray) -> bytes:
    """Returns an array as the bytes of a .npy file."""
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def flip(folder: Path) -> None:
    """Changes one bit in the middle of a tar."""
    data = bytearray(tar(folder).read_bytes())
    data[len(data) // 2] ^= 1
    tar(folder).write_bytes(data)


def edit_index(folder: Path, change: Callable[[dict], None]) -> None:
    """Changes index.json."""
    index = json.loads((folder / "index.json").read_text())
    change(index)
    (folder / "index.json").write_text(json.dumps(index))


FAULTS: dict[str, Callable[[Path], object]] = {
    "truncated tar": lambda f: os.truncate(tar(f), 5000),
    "truncated tar, index updated to it": lambda f: (os.truncate(tar(f), 20_000), reindex(f)),
    "one bit flipped": flip,
    "tar deleted": lambda f: tar(f).unlink(),
    "tar empty": lambda f: os.truncate(tar(f), 0),
    "zero-length member": lambda f: rewrite(f, "x.npy", b""),
    "wrong dtype": lambda f: rewrite(f, "x.npy", npy(np.zeros(9, np.float32))),
    "token id ≥ vocabulary": lambda f: rewrite_ids(f, 299),
    "duplicate names in a tar": lambda f: rewrite(f, "x.npy", npy(np.ones(9, np.uint16)), count=2),
    "symbolic link in a tar": lambda f: rewrite(f, "x.npy", b"", tarfile.SYMTYPE),
    "foreign member": lambda f: rewrite(f, "x.jpg", b"JFIF" * 200),
    "index out of date": lambda f: edit_index(f, lambda i: i["shards"].pop()),
    "index is not JSON": lambda f: (f / "index.json").write_text("{"),
    "index deleted": lambda f: (f / "index.json").unlink(),
}


def rewrite_ids(folder: Path, token: int) -> None:
    """Writes a tar with the right counts and a token that the tokenizer does not have."""
    index = json.loads((folder / "index.json").read_text())
    shard = next(shard for shard in index["shards"] if shard["name"] == LATE)
    with tarfile.open(tar(folder), "w", format=tarfile.USTAR_FORMAT) as out:
        for number in range(shard["documents"]):
            rest = shard["tokens"] - shard["documents"] + 1
            data = npy(np.full(rest if number == 0 else 1, token, np.uint16))
            info = tarfile.TarInfo(f"{number:05d}.npy")
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    reindex(folder)


def weights(run: Path) -> str:
    """Returns a digest of the last checkpoint's weights."""
    last = sorted((run / "checkpoints").glob("step-*"))[-1]
    return hashlib.sha256((last / "model.safetensors").read_bytes()).hexdigest()


def row(fault: str, ended: subprocess.CompletedProcess[str], lost: str, root: Path) -> None:
    """Prints one line of the table."""
    errors = [x for x in ended.stderr.splitlines() if "error" in x or x.startswith("--set")]
    message = (errors or ended.stderr.splitlines() or ["-"])[-1].replace(str(root), "")
    assert "Traceback" not in ended.stderr, ended.stderr
    print(
        f"| {fault} | {message.removeprefix('error: ')[:230]} | {ended.returncode} | {lost} |",
        flush=True,
    )


class Faulty(http.server.SimpleHTTPRequestHandler):
    """A server that always fails on one tar, as `fault` says."""

    fault = ""

    def do_GET(self) -> None:
        if not self.path.endswith(LATE) or not self.fault:
            super().do_GET()
        elif self.fault == "404":
            self.send_error(404)
        else:
            data = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:3000])
            self.wfile.flush()
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


class FaultyRuns:
    """Trains a recipe with a fault in corpus a, fixes the fault and resumes."""

    def __init__(self, root: Path) -> None:
        """Builds the corpora and trains without a fault."""
        global LATE  # noqa: PLW0603 - which tar is opened last depends on the corpora
        self.root, self.recipe, self.corpus = root, root / "recipe.yaml", root / "a"
        build(root)
        from rewarm.data.corpus import Corpus
        from rewarm.data.shard_source import ShardSource

        corpus = Corpus("a", ShardSource(str(self.corpus)), context=64, seed=5, lanes=1)
        LATE = corpus.shard_of_block(450)  # of the 512 that the run takes of it
        self.recipe.write_text(RECIPE.format(run=root / "whole", a=self.corpus, b=root / "b"))
        assert rewarm("train", self.recipe).returncode == 0
        self.expected = weights(root / "whole")
        shutil.copytree(self.corpus, root / "a-good")

    def restore(self) -> None:
        """Replaces corpus a by its undamaged copy."""
        shutil.rmtree(self.corpus)
        shutil.copytree(self.root / "a-good", self.corpus)

    def print_row(self, fault: str, shards: object, fix: Callable[[], object]) -> None:
        """Trains with a fault, resumes without it, and prints a row."""
        run = self.root / "run"
        for folder in (run, self.root / "cache"):
            shutil.rmtree(folder, ignore_errors=True)
        command = ["train", self.recipe, "--resume", "--set", f"run={run}"]
        command += ["--set", f"data.train.a.shards={shards}"]
        ended = rewarm(*command)
        saved = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
        fix()
        resumed = rewarm(*command, "--accept-changes")
        same = resumed.returncode == 0 and weights(run) == self.expected
        saved_at = f"saved at {saved[-1]}; " if saved else "refused before step 1; "
        lost = "nothing: same weights once fixed" if same else resumed.stderr.strip()[-90:]
        row(fault, ended, saved_at + lost, self.root)


def main() -> None:
    """Prints a row for each fault."""
    with tempfile.TemporaryDirectory() as work:
        root = Path(work)
        os.environ["XDG_CACHE_HOME"] = str(root / "cache")
        runs = FaultyRuns(root)
        print("| fault | what the user saw | exit | lost |\n|---|---|---|---|")
        for fault, damage in FAULTS.items():
            damage(root / "a")
            runs.print_row(fault, root / "a", runs.restore)
        shutil.rmtree(root / "a")
        shard(root, "a", root / "a", tokenizer="other")
        runs.print_row("shards of another tokenizer", root / "a", runs.restore)
        pipe = rewarm("train", runs.recipe, "--set", "data.train.a.shards=pipe:cat x")
        row("`pipe:` URL", pipe, "nothing: refused", root)
        http_faults(runs)
        sharding_faults(root)


def http_faults(runs: FaultyRuns) -> None:
    """Reads a corpus from a server that fails."""
    handler = functools.partial(Faulty, directory=str(runs.root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/a"
        for Faulty.fault in ("404", "connection closed in mid-transfer"):
            runs.print_row(f"HTTP: {Faulty.fault}", url, lambda: setattr(Faulty, "fault", ""))
        server.shutdown()


def sharding_faults(root: Path) -> None:
    """Kills sharding, and fills the disk while sharding."""
    large = root / "large.jsonl"
    large.write_text((root / "a.jsonl").read_text() * 60)
    command = ["shard", large, "--tokenizer", root / "tokenizer.json", "--shard-size", "100k"]
    rewarm(*command, "--out", root / "straight")

    def same(out: Path) -> bool:
        names = sorted(path.name for path in (root / "straight").iterdir())
        return names == sorted(path.name for path in out.iterdir()) and all(
            (out / name).read_bytes() == (root / "straight" / name).read_bytes() for name in names
        )

    full_command = [
        sys.executable,
        "-m",
        "rewarm",
        *map(str, command),
        "--out",
        str(root / "killed"),
    ]
    process = subprocess.Popen(
        full_command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while len(list((root / "killed.partial").glob("*.tar"))) < 5:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    _, error = process.communicate()
    killed = subprocess.CompletedProcess(full_command, process.returncode, "", error or "Killed")
    rewarm(*command, "--out", root / "killed")
    lost = "nothing: same bytes when repeated" if same(root / "killed") else "differs"
    row("killed while sharding", killed, lost, root)

    small = root / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)], check=False
    )
    if mounted.returncode:
        print("| disk full while sharding | not run: no tmpfs can be mounted here | - | - |")
        return
    ended = rewarm(*command, "--out", small / "out")
    subprocess.run(["mount", "-o", "remount,size=200m", str(small)], check=True)
    rewarm(*command, "--out", small / "out")
    lost = "nothing: same bytes once there is space" if same(small / "out") else "differs"
    row("disk full while sharding", ended, lost, root)
    subprocess.run(["umount", str(small)], check=True)


if __name__ == "__main__":
    main()
