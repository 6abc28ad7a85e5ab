import io

import numpy as np
import pytest

from rewarm.data.inputs.document_readers import ReadOptions, find_input_files, read_documents
from rewarm.errors import DataError

STREAM = [5, 6, 0, 7, 0, 0, 8]


def npy_of(values, dtype) -> bytes:
    np.save(file := io.BytesIO(), np.array(values, dtype))
    return file.getvalue()


def read(path, **options):
    documents = read_documents(
        find_input_files([path]).files, "text", options=ReadOptions(**options)
    )
    return [(document.content.tolist(), document.ends) for document in documents]


@pytest.mark.parametrize(
    ("name", "data", "raw_tokens"),
    [
        ("a.bin", np.array(STREAM, "<u2").tobytes(), "uint16"),
        ("a.npy", np.array(STREAM, "<u4").tobytes(), "uint32"),
        ("a.npy", npy_of(STREAM, "<u2"), None),
        ("a.npy", npy_of(STREAM, "<i8"), None),
        ("a.npy", npy_of(STREAM, "<u2"), "uint16"),
    ],
)
def test_a_token_stream_is_divided_after_each_end_of_text(tmp_path, name, data, raw_tokens):
    path = tmp_path / name
    path.write_bytes(data)
    assert read(path, raw_tokens=raw_tokens, end_of_text=0) == [
        ([5, 6, 0], True),
        ([7, 0], True),
        ([0], True),
        ([8], False),
    ]
    assert read(path, raw_tokens=raw_tokens) == [(STREAM, False)]


def test_a_document_longer_than_what_is_read_at_once_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("rewarm.data.inputs.token_arrays._READ_TOKENS", 2)
    path = tmp_path / "a.npy"
    path.write_bytes(npy_of(STREAM, "<u2"))
    assert [ids for ids, _ in read(path, end_of_text=0)] == [[5, 6, 0], [7, 0], [0], [8]]
    assert [ids for ids, _ in read(path, end_of_text=99, max_document_bytes=16)] == [
        [5, 6, 0, 7],
        [0, 0, 8],
    ]


def test_locations_and_bytes_are_those_of_the_file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(np.array(STREAM, "<u2").tobytes())
    options = ReadOptions(raw_tokens="uint16", end_of_text=0)
    documents = list(read_documents([path], "text", options=options))
    assert [document.bytes_read for document in documents] == [6, 10, 12, 14]
    assert documents[1].location == f"{path}: document 2"


@pytest.mark.parametrize(
    ("name", "data", "options", "message"),
    [
        ("a.bin", b"\0\0", {}, r"a\.bin: its index is missing: a\.idx; .*--raw-tokens uint16"),
        ("a.npy", b"\0\0", {}, r"a\.npy: no header of NumPy; .*--raw-tokens uint16"),
        ("a.bin", b"\0\0\0", {"raw_tokens": "uint16"}, "3 bytes of tokens are no whole number"),
        ("a.bin", b"\xff\xff\xff\xff", {"raw_tokens": "int32"}, "document 1: a negative token id"),
        ("a.bin", np.array([20240520, 1], "<i4").tobytes(), {}, "a token file of llm.c"),
        ("a.npy", npy_of([[1, 2]], "<u2"), {}, r"dtype <u2 and shape \(1, 2\); one row of"),
        ("a.npy", npy_of([1.5], "<f4"), {}, r"dtype <f4 and shape \(1,\); one row of"),
        ("a.npy", npy_of([1, 2], ">u2"), {}, r"dtype >u2 and shape \(2,\); .*little-endian"),
        ("a.npy", npy_of([1, 2], "<u2").replace(b"shape", b"shapo"), {}, "damaged: its header"),
        ("a.npy", npy_of([2**40], "<i8"), {}, "token id 1,099,511,627,776"),
        ("a.npy", npy_of([1, 2], "<u2") + b"\0", {}, "its header states 2 tokens of 2 bytes"),
    ],
)
def test_what_cannot_be_told_or_is_damaged_is_refused(tmp_path, name, data, options, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name, **options)


def test_every_truncation_of_a_npy_is_refused(tmp_path):
    path = tmp_path / "a.npy"
    whole = npy_of(STREAM, "<u2")
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"a\.npy: "):
            read(path)
