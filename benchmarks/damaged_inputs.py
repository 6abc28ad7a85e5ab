"""What `rewarm shard` makes of damaged inputs: truncations and bit flips of a file of each format.

    python benchmarks/damaged_inputs.py                 # 2,000 of each format, some minutes
    python benchmarks/damaged_inputs.py --cases 50 --formats tar,parquet

A damaged file has to be read whole, with the right documents, or refused. What that can mean
depends on what the format stores twice:

* With a checksum over the content (gzip, xz, bzip2, zip, zstd with its checksum, parquet with
  checksums of its pages): the same documents, or refused.
* Without one, a flipped bit in a text is another text, which no reader can tell (`changed` in the
  table). Then the number of documents has to be the same; of token arrays without an index, whose
  documents end where an end-of-text is, the number of tokens; of zstd, where a bit of a reference
  exchanges a whole passage and with it the ends of lines, the number of bytes.
* A plain text that is cut between two records (of .jsonl: at the end of a line; of .txt: anywhere
  between two characters; of tokens without an index: anywhere between two) is a whole text
  (`cut between records`). Nothing else may be shorter.

Any other result, another error than `DataError`, a crash, more than 20 s or 1 GB fails.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import io
import json
import lzma
import multiprocessing
import random
import resource
import struct
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import zstandard
from pyarrow import parquet

from rewarm.data.inputs.document_readers import ReadOptions, find_input_files, read_documents
from rewarm.errors import DataError

MAX_SECONDS = 20
MAX_BYTES = 1_000_000_000
END_OF_TEXT = 0
OUTCOMES = ("right", "refused", "changed", "cut between records", "WRONG")


class InputFile(NamedTuple):
    """A whole file, and what damage to it can be told."""

    name: str
    data: bytes
    has_checksum: bool = False
    is_record: Callable[[bytes], bool] = lambda _: False
    """Whether a truncated content is a whole one of fewer records."""
    beside: tuple[str, bytes] | None = None
    """The name and content of a file beside it, which is not damaged."""
    counts_tokens: bool = False
    """Whether the number of tokens, not that of documents, has to stay."""
    content_size: Callable[[bytes], int] | None = None
    """The size of its content, which is all that has to stay if it is given."""


def texts(count: int = 40) -> list[str]:
    draw = random.Random(0)
    words = ("river", "lamp", "cloud", "table", "leaf", "stone", "rain", "noon", "œuvre", "три")
    return [" ".join(draw.choices(words, k=draw.randint(3, 40))) for _ in range(count)]


def json_lines() -> bytes:
    return "".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(texts())).encode()


def tar() -> bytes:
    with tarfile.open(fileobj=(file := io.BytesIO()), mode="w") as archive:
        for number, text in enumerate(texts()):
            data = text.encode() if number % 2 else json.dumps({"text": text}).encode()
            member = tarfile.TarInfo(f"{number:03d}.{'txt' if number % 2 else 'json'}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def zip_of(compression: int) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w", compression) as archive:
        for number, text in enumerate(texts()):
            archive.writestr(f"{number:03d}.txt", text)
    return file.getvalue()


def table() -> pyarrow.Table:
    return pyarrow.table({"id": list(range(len(texts()))), "text": texts()})


def parquet_of(**options: Any) -> bytes:
    parquet.write_table(table(), file := io.BytesIO(), row_group_size=15, **options)
    return file.getvalue()


def arrow_of(new: Callable[..., Any], **options: Any) -> bytes:
    with new(file := io.BytesIO(), table().schema, **options) as writer:
        writer.write_table(table(), max_chunksize=10)
    return file.getvalue()


def token_ids() -> list[list[int]]:
    draw = random.Random(1)
    return [
        [*(draw.randrange(1, 500) for _ in range(draw.randint(2, 60))), END_OF_TEXT]
        for _ in range(40)
    ]


def tokens() -> bytes:
    return np.concatenate(token_ids()).astype("<u2").tobytes()


def index() -> bytes:
    lengths = [len(ids) for ids in token_ids()]
    ends = 2 * np.cumsum(lengths)
    return b"".join(
        [
            b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, len(lengths), len(lengths) + 1),
            np.array(lengths, "<i4").tobytes(),
            np.array([0, *ends[:-1]], "<i8").tobytes(),
            np.arange(len(lengths) + 1, dtype="<i8").tobytes(),
        ]
    )


def npy() -> bytes:
    np.save(file := io.BytesIO(), np.concatenate(token_ids()).astype("<u2"))
    return file.getvalue()


def zstd(*, checksum: bool) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=checksum).compress(json_lines())


def content_size_of_zstd(data: bytes) -> int:
    return len(zstandard.ZstdDecompressor().decompress(data))


def is_whole_lines(data: bytes) -> bool:
    return data[-1:] in (b"\n", b"}", b"")


def is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def is_whole_tokens(data: bytes) -> bool:
    return len(data) % 2 == 0


def input_files() -> dict[str, InputFile]:
    lines, text = json_lines(), "\n".join(texts()).encode()
    return {
        "jsonl": InputFile("a.jsonl", lines, is_record=is_whole_lines),
        "txt": InputFile("a.txt", text, is_record=is_utf8),
        "jsonl.gz": InputFile("a.jsonl.gz", gzip.compress(lines, mtime=0), True),
        "jsonl.xz": InputFile("a.jsonl.xz", lzma.compress(lines), True),
        "jsonl.bz2": InputFile("a.jsonl.bz2", bz2.compress(lines), True),
        "jsonl.zst, checksum": InputFile("a.jsonl.zst", zstd(checksum=True), True),
        "jsonl.zst, no checksum": InputFile(
            "a.jsonl.zst", zstd(checksum=False), content_size=content_size_of_zstd
        ),
        "txt.gz": InputFile("a.txt.gz", gzip.compress(text, mtime=0), True),
        "tar": InputFile("a.tar", tar()),
        "tar.gz": InputFile("a.tar.gz", gzip.compress(tar(), mtime=0), True),
        "zip, deflated": InputFile("a.zip", zip_of(zipfile.ZIP_DEFLATED), True),
        "zip, stored": InputFile("a.zip", zip_of(zipfile.ZIP_STORED), True),
        "parquet, checksums": InputFile(
            "a.parquet", parquet_of(write_page_checksum=True, compression="zstd")
        ),
        "parquet, snappy": InputFile("a.parquet", parquet_of()),
        "parquet, plain": InputFile(
            "a.parquet", parquet_of(compression="none", use_dictionary=False)
        ),
        "arrow stream": InputFile("a.arrow", arrow_of(pyarrow.ipc.new_stream)),
        "arrow file": InputFile("a.arrow", arrow_of(pyarrow.ipc.new_file)),
        "feather, zstd": InputFile(
            "a.feather",
            arrow_of(pyarrow.ipc.new_file, options=pyarrow.ipc.IpcWriteOptions(compression="zstd")),
        ),
        "bin": InputFile("a.bin", tokens(), beside=("a.idx", index())),
        "idx": InputFile("a.idx", index(), beside=("a.bin", tokens())),
        "bin, raw": InputFile("a.bin", tokens(), is_record=is_whole_tokens, counts_tokens=True),
        "npy": InputFile("a.npy", npy(), counts_tokens=True),
    }


def read(folder: Path, *, is_raw: bool) -> list[Any]:
    """Returns the documents in a folder, tokens as lists."""
    options = ReadOptions(raw_tokens="uint16" if is_raw else None, end_of_text=END_OF_TEXT)
    files = find_input_files([folder]).files
    return [
        document.content if isinstance(document.content, str) else document.content.tolist()
        for document in read_documents(files, "text", options=options)
    ]


def damage(data: bytes, number: int, cases: int) -> tuple[str, bytes]:
    """Returns what is done in case `number`, and the damaged content."""
    draw = random.Random(number)
    if number % 2:
        at = draw.randrange(len(data))
        flipped = bytes([data[at] ^ 1 << draw.randrange(8)])
        return "flip", data[:at] + flipped + data[at + 1 :]
    every = max(1, 2 * len(data) // cases)  # spread evenly; all ends if there are enough cases
    return "cut", data[: min(len(data) - 1, number // 2 * every + draw.randrange(every))]


def outcome(file: InputFile, kind: str, damaged: bytes, whole: list[Any], folder: Path) -> str:
    """Reads a damaged file, and returns one of `OUTCOMES`, with the reason if it is WRONG."""
    (folder / file.name).write_bytes(damaged)
    started = time.monotonic()
    try:
        documents = read(folder, is_raw=file.name == "a.bin" and not file.beside)
    except DataError:
        result = "refused"
    except Exception as error:
        result = f"WRONG: {type(error).__name__}: {error}"
    else:
        result = judge(file, kind, damaged, documents, whole)
    seconds = time.monotonic() - started
    if seconds > MAX_SECONDS:
        return f"WRONG: {seconds:.0f} s"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return result if peak < MAX_BYTES else f"WRONG: {peak:,} bytes"


def judge(
    file: InputFile, kind: str, damaged: bytes, documents: list[Any], whole: list[Any]
) -> str:
    if documents == whole:
        return "right"
    if kind == "cut":
        return "cut between records" if file.is_record(damaged) else "WRONG: shorter"
    if file.has_checksum:
        return "WRONG: changed in spite of a checksum"
    if file.counts_tokens:
        same = sum(map(len, documents)) == sum(map(len, whole))
        return "changed" if same else "WRONG: another number of tokens"
    if file.content_size and file.content_size(damaged) == file.content_size(file.data):
        return "changed"
    return "changed" if len(documents) == len(whole) else f"WRONG: {len(documents)} documents"


def prepare(file: InputFile, folder: Path) -> list[Any]:
    """Writes a whole file, and what is beside it; returns its documents."""
    if file.beside:
        (folder / file.beside[0]).write_bytes(file.beside[1])
    (folder / file.name).write_bytes(file.data)
    return read(folder, is_raw=file.name == "a.bin" and not file.beside)


def run_cases(file: InputFile, numbers: range, cases: int, sent: Any) -> None:
    """Sends (number, kind, outcome, seconds, peak bytes) of each case; in a process of its own."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        whole = prepare(file, folder)
        for number in numbers:
            kind, damaged = damage(file.data, number, cases)
            started = time.monotonic()
            result = outcome(file, kind, damaged, whole, folder)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            sent.send((number, kind, result, time.monotonic() - started, peak))
    sent.send(None)


def campaign(file: InputFile, cases: int) -> tuple[Counter[tuple[str, str]], list[str], str]:
    """Returns counts by (kind, outcome), what went wrong, and the longest time and highest peak."""
    counts, wrong = Counter[tuple[str, str]](), list[str]()
    longest, highest, number = 0.0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        prepare(file, Path(folder))  # an error here is one of this script
    while number < cases:
        received, sent = multiprocessing.Pipe(duplex=False)
        numbers = range(number, cases)
        process = multiprocessing.Process(target=run_cases, args=(file, numbers, cases, sent))
        process.start()
        sent.close()
        while True:
            try:
                result = received.recv() if received.poll(MAX_SECONDS + 5) else ...
            except EOFError:
                result = ...
            if result is None:
                number = cases
                break
            if result is ...:  # it hangs, or has crashed
                process.kill()
                counts[damage(file.data, number, cases)[0], "WRONG"] += 1
                process.join()
                wrong.append(f"case {number}: crash or hang, exit code {process.exitcode}")
                number += 1
                break
            number, kind, message, seconds, peak = result
            longest, highest = max(longest, seconds), max(highest, peak)
            counts[kind, message.partition(":")[0]] += 1
            if message.startswith("WRONG"):
                wrong.append(f"case {number}: {kind}: {message}")
            number += 1
        process.join()
    return counts, wrong, f"{longest:.2f} s | {highest / 1e6:.0f} MB"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=2000, help="of each format, half of them cuts")
    parser.add_argument("--formats", help="some of the formats, separated by commas")
    chosen = parser.parse_args(arguments)
    files = input_files()
    names = list(files)
    if chosen.formats:
        names = [name for name in names if name.partition(",")[0] in chosen.formats.split(",")]
    print("| format | bytes | truncations: " + " / ".join(OUTCOMES), end=" | ")
    print("bit flips: " + " / ".join(OUTCOMES), end=" | longest | peak memory |\n")
    print("|---|---:|---|---|---:|---:|")
    all_wrong = []
    for name in names:
        counts, wrong, limits = campaign(files[name], chosen.cases)
        cuts, flips = (
            " / ".join(str(counts[kind, result]) for result in OUTCOMES) for kind in ("cut", "flip")
        )
        print(f"| {name} | {len(files[name].data):,} | {cuts} | {flips} | {limits} |", flush=True)
        all_wrong += [f"{name}: {message}" for message in wrong]
    print("\n".join(all_wrong[:100]))
    return 1 if all_wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
