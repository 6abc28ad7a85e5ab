import bz2
import gzip
import json
import lzma
import time

import pytest
import zstandard
from text_inputs import lines

from rewarm.data.inputs.document_readers import ReadOptions, find_input_files, read_documents
from rewarm.errors import DataError

PACKERS = {
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}


def read(path, **options):
    files = find_input_files([path]).files
    documents = read_documents(files, "text", options=ReadOptions(**options))
    return [document.content for document in documents]


@pytest.mark.parametrize("ending", PACKERS)
def test_each_compression_is_read_whole_or_refused(tmp_path, ending):
    pack = PACKERS[ending]
    path = tmp_path / f"a.jsonl{ending}"
    whole = pack(lines("one", "two", "three"))
    for data in (whole, pack(lines("one", "two")) + pack(lines("three"))):
        path.write_bytes(data)
        assert read(path) == ["one", "two", "three"]
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"a\.jsonl\.\w+: damaged \w+: truncated"):
            read(path)


@pytest.mark.parametrize("ending", PACKERS)
def test_what_follows_the_first_stream_is_not_ignored(tmp_path, ending):
    """`lzma` and `bz2` take a damaged second stream for the end."""
    path = tmp_path / f"a.jsonl{ending}"
    second = bytearray(PACKERS[ending](lines("two")))
    second[1] ^= 1
    path.write_bytes(PACKERS[ending](lines("one")) + second)
    with pytest.raises(DataError, match=rf"a\.jsonl\{ending}: damaged "):
        read(path)


def test_padding_after_a_stream_is_allowed(tmp_path):
    path = tmp_path / "a.jsonl.xz"
    path.write_bytes(lzma.compress(lines("one")) + bytes(8) + lzma.compress(lines("two")))
    assert read(path) == ["one", "two"]


def test_a_zstd_window_may_be_two_gigabytes(tmp_path):
    parameters = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(compressor.compress(lines("one")) + compressor.flush())
    assert read(path) == ["one"]


@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize("unit", [b"\0", b"\n", lines("a" * 1000)])
def test_a_bomb_is_refused_until_its_limit_is_raised(tmp_path, ending, unit):
    """gzip's ratio is at most 1,000: a third of each one's ratio is allowed here."""
    count = 4_000_000 // len(unit)
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(PACKERS[ending](unit * count))
    allowed = 4_000_000 // path.stat().st_size // 3
    limits = {"max_document_bytes": 1_000_000, "max_expansion": allowed}
    with pytest.raises(DataError, match=r"--max-(expansion|document)"):
        read(path, **limits)
    if unit != b"\0":
        documents = read(path, **limits | {"max_expansion": 1_000_000})
        assert len(documents) == (0 if unit == b"\n" else count)


def test_long_lines_take_linear_time(tmp_path):
    """With the square of the length, four times the length takes sixteen times as long."""
    seconds = []
    for size in (2_500_000, 10_000_000):
        path = tmp_path / "a.jsonl.zst"
        text = "".join(f"{number} " for number in range(size // 8))
        path.write_bytes(zstandard.compress(json.dumps({"text": text}).encode()))
        started = time.process_time()
        assert read(path) == [text]
        seconds.append(time.process_time() - started)
    assert seconds[1] < 10 * seconds[0]


def test_lines_are_counted_across_chunks_and_blank_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("rewarm.data.inputs.decompression._CHUNK", 7)
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines("one") + b"\n" * 20 + b"  \n" + lines("two") + b"\r\n" + lines("three"))
    documents = list(read_documents([path], "text"))
    assert [(document.content, document.location) for document in documents] == [
        ("one", f"{path}:1"),
        ("two", f"{path}:23"),
        ("three", f"{path}:25"),
    ]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl"])
def test_a_document_beyond_the_limit_is_refused_until_it_is_raised(tmp_path, name):
    data = lines("x" * 2000) if name == "a.jsonl" else b"x" * 2000
    path = tmp_path / name
    path.write_bytes(gzip.compress(data, mtime=0) if name.endswith("gz") else data)
    with pytest.raises(DataError, match=r"a document of more than 1,000 bytes; .*--max-document"):
        read(path, max_document_bytes=1000)
    assert len(read(path, max_document_bytes=3000)) == 1


def test_a_sparse_text_is_refused_at_once(tmp_path):
    for name in ("a.txt", "a.jsonl"):
        path = tmp_path / name
        with path.open("wb") as file:
            file.truncate(2**40)
        with pytest.raises(DataError, match="--max-document"):
            read(path, max_document_bytes=10_000_000)
