import io

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from text_inputs import arrow_file_of, arrow_of, parquet_of

from rewarm.data.inputs.document_readers import ReadOptions, find_input_files, read_documents
from rewarm.errors import DataError

TEXTS = ["one", "zwei", "три", "four", "five"]


def read(path, field="text", on_bad_record=None, **options):
    callbacks = {"on_bad_record": on_bad_record} if on_bad_record else {}
    files = find_input_files([path]).files
    documents = read_documents(files, field, options=ReadOptions(**options), **callbacks)
    return [document.content for document in documents]


def write(path, table, **options):
    if path.suffix == ".parquet":
        parquet.write_table(table, path, **options)
    else:
        with pyarrow.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    return path


@pytest.mark.parametrize("make", [arrow_of, arrow_file_of, parquet_of])
def test_every_truncation_is_refused(tmp_path, make):
    """Also between two batches, where Arrow's own reader finds a shorter stream."""
    path = tmp_path / ("a.parquet" if make is parquet_of else "a.arrow")
    whole = make(*TEXTS)
    path.write_bytes(whole)
    assert read(path) == TEXTS
    for size in range(0, len(whole), 8):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"a\.(arrow|parquet): "):
            read(path)
    path.write_bytes(whole + bytes(8))
    with pytest.raises(DataError, match=r"a\.(arrow|parquet): "):
        read(path)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_rows_are_selected_by_the_value_of_a_column_or_of_a_field_in_one(tmp_path, name):
    """SlimPajama is also published as parquet, with its source in a struct."""
    sources = [{"set": value, "n": i} for i, value in enumerate(["C4", "Book", None, "C4"])]
    table = pyarrow.table(
        {"meta": sources, "text": TEXTS[:4], "year": [1, 2, 3, 1], "a.b": list("xyyx")}
    )
    path = write(tmp_path / name, table)
    assert read(path, where=(("meta.set", "C4"),)) == ["one", "four"]
    assert read(path, where=(("meta.set", "null"),)) == ["три"]
    assert read(path, where=(("meta.set", "C4"), ("year", "1"), ("meta.n", "3"))) == ["four"]
    assert read(path, where=(("a.b", "y"), ("text", "zwei"))) == ["zwei"]
    with pytest.raises(
        DataError, match=rf"{name}: row 1: no field 'meta\.x' to compare with --where"
    ):
        read(path, where=(("meta.x", "C4"),))
    with pytest.raises(DataError, match="no field 'none' to compare"):
        read(path, where=(("none", "C4"),))


def test_feather_is_read_by_its_ending_and_version_1_is_refused(tmp_path):
    path = tmp_path / "a.feather"
    path.write_bytes(arrow_file_of(*TEXTS))
    assert read(path) == TEXTS
    path.write_bytes(b"FEA1" + bytes(100))
    with pytest.raises(DataError, match="Feather version 1"):
        read(path)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
@pytest.mark.parametrize(
    "type_",
    [
        pyarrow.large_string(),
        pyarrow.binary(),
        pyarrow.large_binary(),
        pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
        pyarrow.string_view(),
    ],
    ids=str,
)
def test_a_column_may_have_any_type_of_text(tmp_path, name, type_):
    column = pyarrow.array([*TEXTS, TEXTS[0], None]).cast(type_)
    records = []
    path = write(tmp_path / name, pyarrow.table({"text": column}))
    assert read(path, on_bad_record=records.append) == [*TEXTS, TEXTS[0]]
    assert records == [(f"{path}: row 7", "no text in column 'text': it is null")]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_values_that_are_not_utf8_are_bad_records(tmp_path, name):
    column = pyarrow.array([b"one", b"caf\xe9", b"\xef\xbb\xbfthree"])
    for binary in (column, column.view(pyarrow.string())):
        path = write(tmp_path / name, pyarrow.table({"text": binary}))
        records = []
        assert read(path, on_bad_record=records.append) == ["one", "three"]
        ((location, reason),) = records
        assert location == f"{path}: row 2"
        assert reason.startswith("not UTF-8 text: unexpected end of data at 3; if it is latin1")
        with pytest.raises(DataError, match="row 2: not UTF-8 text"):
            read(path)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_column_without_any_value_is_nulls(tmp_path, name):
    path = write(tmp_path / name, pyarrow.table({"text": [None, None]}))
    records = []
    assert read(path, on_bad_record=records.append) == []
    assert [record.location for record in records] == [f"{path}: row 1", f"{path}: row 2"]
    with pytest.raises(DataError, match="row 1: no text in column 'text': it is null"):
        read(path)


def test_a_column_and_a_field_of_one_path_are_refused(tmp_path):
    """Arrow reads both by the path of one."""
    table = pyarrow.table({"a.b": ["x"], "a": [{"b": "y"}]})
    path = write(tmp_path / "a.parquet", table)
    with pytest.raises(DataError, match=r"the column 'a\.b', and a field within another column,"):
        read(path, "a.b")
    assert read(write(tmp_path / "b.parquet", table.select(["a.b"])), "a.b") == ["x"]
    assert read(write(tmp_path / "a.arrow", table), "a.b") == ["x"]


def test_only_the_first_columns_are_listed(tmp_path):
    path = write(tmp_path / "a.arrow", pyarrow.table({f"{n}": ["x"] for n in range(500)}))
    with pytest.raises(DataError, match=r"\(found: 0, 1, .* 9 and 490 more\); see --field"):
        read(path)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
@pytest.mark.parametrize(("values", "found"), [([[1], [2]], "list<"), ([1, 2], "int64")])
def test_a_column_that_holds_no_text_is_refused_with_its_type(tmp_path, name, values, found):
    path = write(tmp_path / name, pyarrow.table({"text": values}))
    with pytest.raises(DataError, match=rf"no text in column 'text': it holds {found}"):
        read(path, on_bad_record=lambda _: None)


def test_a_dictionary_cannot_expand_beyond_the_limit(tmp_path):
    """A million rows that refer to one value of 1 MB: 3 kB of parquet, 1 TB of text."""
    indices = pyarrow.array(np.zeros(1_000_000, "int32"))
    values = pyarrow.DictionaryArray.from_arrays(indices, pyarrow.array(["a" * 1_000_000]))
    for name in ("a.parquet", "a.arrow"):
        path = write(tmp_path / name, pyarrow.table({"text": values}))
        with pytest.raises(DataError, match=r"expand to more than .*--max-expansion"):
            read(path)


def test_a_compressed_value_cannot_expand_beyond_the_limit(tmp_path):
    table = pyarrow.table({"text": ["a" * 20_000_000]})
    limits = {"max_document_bytes": 1_000_000, "max_expansion": 300}
    parquet_path = write(tmp_path / "a.parquet", table, compression="zstd")
    feather_path = tmp_path / "a.feather"
    options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
    with pyarrow.ipc.new_file(feather_path, table.schema, options=options) as writer:
        writer.write_table(table)
    for path in (parquet_path, feather_path):
        with pytest.raises(DataError, match=r"expand to more than 20,.*--max-expansion"):
            read(path, **limits)
        with pytest.raises(
            DataError, match=r"more than 1,000,000 bytes|a batch of 20,000,008 bytes"
        ):
            read(path, **limits | {"max_expansion": 1_000_000})
        assert len(read(path, max_document_bytes=30_000_000)) == 1


@pytest.mark.parametrize("compression", [None, "lz4"])
def test_a_batch_that_is_too_large_for_memory_is_refused(tmp_path, compression):
    table = pyarrow.table({"text": [f"{number}" * 900 for number in range(10)]})
    options = pyarrow.ipc.IpcWriteOptions(compression=compression)
    path = tmp_path / "a.arrow"
    for rows, message in ((10, r"the message at byte \d+: a batch of 9,\d+ bytes"), (2, None)):
        with pyarrow.ipc.new_stream(path, table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=rows)
        if message:
            with pytest.raises(DataError, match=message):
                read(path, max_document_bytes=1000)
        else:
            assert len(read(path, max_document_bytes=1000)) == 10


def test_compressed_feather_files_are_read(tmp_path):
    table = pyarrow.table({"id": list(range(5)), "text": TEXTS})
    for compression in ("lz4", "zstd"):
        options = pyarrow.ipc.IpcWriteOptions(compression=compression)
        with pyarrow.ipc.new_file(tmp_path / "a.feather", table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=2)
        assert read(tmp_path / "a.feather") == TEXTS


def test_rows_that_the_footer_does_not_count_are_refused(tmp_path):
    """One bit of the number of batches in the footer of an Arrow file."""
    whole = arrow_file_of(*TEXTS)
    path = tmp_path / "a.arrow"
    refused = 0
    for at in range(len(whole) - 200, len(whole) - 10):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 2]) + whole[at + 1 :])
        try:
            assert read(path) == TEXTS
        except DataError:
            refused += 1
    assert refused > 50


def test_values_of_parquet_row_groups_with_dictionaries_are_read(tmp_path):
    texts = [f"text {number % 7}" for number in range(3000)] + [f"{n}" for n in range(3000)]
    parquet.write_table(pyarrow.table({"text": texts}), file := io.BytesIO(), row_group_size=1700)
    path = tmp_path / "a.parquet"
    path.write_bytes(file.getvalue())
    assert read(path) == texts
