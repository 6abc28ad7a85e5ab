import gzip
import json
import random
import tarfile

import numpy as np
import pyarrow
import pytest
import zstandard
from pyarrow import parquet
from shard_folders import documents_of
from text_corpora import write_texts
from text_inputs import arrow_of, lines, parquet_of, tar_of

from rewarm.data.inputs.document_readers import find_input_files, read_documents
from rewarm.data.sharding.shard_writer import write_shards
from rewarm.data.tokenizer import load_tokenizer
from rewarm.errors import DataError


def read(path, field: str = "text") -> list[str]:
    return [document.content for document in read_documents(find_input_files([path]).files, field)]


THREE = ("one", "zwei\nLinien", "три")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", lines(*THREE)),
        ("blank.jsonl", b"\n" + lines("one") + b"  \n\n" + lines("zwei\nLinien", "три").strip()),
        ("crlf.jsonl", lines(*THREE).replace(b"\n", b"\r\n")),
        ("a.jsonl.zst", zstandard.compress(lines(*THREE))),
        ("frames.jsonl.zst", b"".join(zstandard.compress(lines(text)) for text in THREE)),
        ("a.jsonl.gz", gzip.compress(lines(*THREE), mtime=0)),
        ("members.jsonl.gz", b"".join(gzip.compress(lines(text), mtime=0) for text in THREE)),
        ("a.parquet", parquet_of(*THREE)),
        ("a.arrow", arrow_of(*THREE)),
        (
            "a.tar",
            tar_of(
                {
                    "0.txt": b"one",
                    "0.png": b"\x89PNG",
                    "1.json": lines("zwei\nLinien"),
                    "2.txt": "три".encode(),
                }
            ),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_file_format(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    assert read(path) == list(THREE)
    *_, last = read_documents([path], "text")
    assert 0 < last.bytes_read <= len(data)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_byte_order_mark_is_dropped(tmp_path, name):
    data = b"one" if name == "a.txt" else lines("one")
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + data)
    assert read(tmp_path / name) == ["one"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda text: text.encode("utf-16"), "(?i)utf-16"),
        (lambda text: text.encode("utf-16-le") + b"\n\0", "(?i)utf-16"),
        (lambda text: text.encode() + bytes(4096), "a download that was not completed"),
        (lambda text: text.encode("latin1"), r"latin1|'utf-8' codec can't decode byte 0xe9"),
    ],
)
def test_text_in_another_encoding_is_refused_with_the_reason(tmp_path, name, change, hint):
    text = "café" if name == "a.txt" else '{"text": "café"}\n{"text": "two"}'
    (tmp_path / name).write_bytes(change(text))
    with pytest.raises(DataError, match=hint):
        read(tmp_path / name)


def test_bad_records_are_left_out_if_the_caller_returns(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines("one") + b'{"text": null}\n{"text": [1]}\n{\n' + lines("two"))
    records = []
    documents = list(read_documents([path], "text", on_bad_record=records.append))
    assert [document.content for document in documents] == ["one", "two"]
    assert [(location, reason.partition(": ")[2]) for location, reason in records] == [
        (f"{path}:2", "it is null"),
        (f"{path}:3", "it is an array"),
        (f"{path}:4", records[2].reason.partition(": ")[2]),
    ]
    assert [document.location for document in documents] == [f"{path}:1", f"{path}:5"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", lines("one", "two")[:-9], r":2: not a line of JSON: .* truncated; copy or"),
        ("a.txt", "één café".encode()[:-1], "unexpected end of data at 9; .* truncated within a"),
    ],
)
def test_a_file_that_ends_within_a_record_is_damaged(tmp_path, name, data, message):
    """Not a bad record, which may be left out; a compressed file says where it ends."""
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        list(read_documents([path], "text", on_bad_record=lambda _: None))
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(data, mtime=0))
    records = []
    documents = list(read_documents([packed], "text", on_bad_record=records.append))
    assert (len(documents), len(records)) == (name == "a.jsonl", 1)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.json", b'[{"text": "x"}]', r"one JSON array; .* jq -c '\.\[\]' a\.json > NEW\.jsonl"),
        ("a.jsonl.gz", gzip.compress(b'[\n {"text": "x"}\n]', mtime=0), "one JSON array"),
        ("a.json", b'\n{\n "text": "x"\n}', r"several lines each; .* jq -c \. a\.json"),
    ],
)
def test_json_that_is_not_one_object_per_line_is_refused_with_what_converts_it(
    tmp_path, name, data, message
):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        list(read_documents([tmp_path / name], "text", on_bad_record=lambda _: None))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "x", "id": ' + "9" * 5000 + "}", "a number of more than 4,300 digits"),
        ('{"text": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('"x"', "(found: a string)"),
        ("{}", "(found: none)"),
        (json.dumps(dict.fromkeys(map(str, range(12)))), "8, 9 and 2 more); see --field"),
        ('{"\\u001b[31m": 1, "\\ud800": 2}', r"(found: '\x1b[31m', '\ud800')"),
        (json.dumps({"k" * 1000: 1}), f"(found: {'k' * 60}...)"),
    ],
)
def test_the_reason_for_a_bad_line_is_short_and_plain(tmp_path, line, reason):
    (tmp_path / "a.jsonl").write_text(lines("x").decode() + line + "\n")
    with pytest.raises(DataError) as raised:
        read(tmp_path / "a.jsonl")
    assert reason in str(raised.value)
    assert len(str(raised.value)) < 400


def test_a_field_may_be_nested(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"meta": {"text": "one"}}\n{"meta.text": "two", "meta": {"text": "x"}}\n')
    assert read(path, "meta.text") == ["one", "two"]
    for field, found in (("meta.body", "meta"), ("meta.text.more", "meta"), ("meta.", "meta")):
        with pytest.raises(DataError, match=rf"a\.jsonl:1: .* \(found: {found}\)"):
            read(path, field)


def test_a_txt_file_is_one_document(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("één\r\ntwee\n".encode())
    assert read(path) == ["één\r\ntwee\n"]


def test_megatron_files_give_token_ids(tmp_path):
    (tmp_path / "a.bin").write_bytes(np.array([1, 2, 3], "<u2").tobytes())
    (tmp_path / "a.idx").write_bytes(
        b"MMIDIDX\x00\x00"
        + np.array([1], "<u8").tobytes()
        + bytes([8])
        + np.array([1, 2], "<u8").tobytes()
        + np.array([3], "<i4").tobytes()
        + np.array([0], "<i8").tobytes()
        + np.array([0, 1], "<i8").tobytes()
    )
    assert [content.tolist() for content in read(tmp_path / "a.bin")] == [[1, 2, 3]]


def test_the_field_can_be_chosen(tmp_path):
    for name, data in (
        ("a.jsonl", lines("x").replace(b'"text"', b'"body"')),
        ("a.parquet", parquet_of("x")),
    ):
        (tmp_path / name).write_bytes(data)
    assert read(tmp_path / "a.jsonl", "body") == ["x"]
    with pytest.raises(DataError, match="row 1: no text in column 'id'"):
        read(tmp_path / "a.parquet", "id")


def test_files_in_folders_are_read_in_the_order_of_their_paths(tmp_path):
    for name in ("b/2.jsonl", "b/10.jsonl", "a/z.jsonl", "c.jsonl", "a/notes.md", "b/x.jsonl.bak"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(lines(name))
    assert read(tmp_path) == ["a/z.jsonl", "b/10.jsonl", "b/2.jsonl", "c.jsonl"]


def test_inputs_are_read_in_the_order_given_and_their_bytes_add_up(tmp_path):
    paths = []
    for name, texts in (("z.jsonl", ("1", "2")), ("a.jsonl", ("3",)), ("m.txt", ("4",))):
        paths.append(tmp_path / name)
        paths[-1].write_bytes(lines(*texts) if name.endswith("l") else b"4")
    documents = list(read_documents(find_input_files(paths).files, "text"))
    assert [document.content for document in documents] == ["1", "2", "3", "4"]
    sizes = [path.stat().st_size for path in paths]
    ends = [document.bytes_read for document in documents]
    assert ends == sorted(ends)
    assert ends[1:] == [sizes[0], sum(sizes[:2]), sum(sizes)]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", lines("x") + b'{"text": \n', "a.jsonl:2: not a line of JSON: Expecting value"),
        ("a.jsonl", lines("x") + b"\n[1]\n", "a.jsonl:3: no text in field 'text' (found: an array"),
        ("a.jsonl", b'{"body": 1, "id": 2}', "a.jsonl:1: no text in field 'text' (found: body"),
        ("a.jsonl", b'{"text": null}', "a.jsonl:1: no text in field 'text'"),
        ("a.jsonl", b'{"text": "caf\xe9"}', "a.jsonl:1: not a line of JSON: 'utf-8' codec"),
        ("a.jsonl", b'{"text": ' + b"[" * 100_000, "a.jsonl:1: not a line of JSON"),
        (
            "a.jsonl.gz",
            gzip.compress(lines("x") + b"{", mtime=0),
            "a.jsonl.gz:2: not a line of JSON",
        ),
        ("a.jsonl.zst", zstandard.compress(lines("x") + b"{"), "a.jsonl.zst:2: not a line of JSON"),
        ("a.jsonl.gz", b"plain", "a.jsonl.gz: damaged gzip: "),
        ("a.jsonl.zst", b"plain", "a.jsonl.zst: damaged zstd"),
        ("a.txt", b"caf\xe9", "a.txt: not UTF-8 text: unexpected end of data at 3"),
        ("a.tar", b"plain", "a.tar: not a tar that can be read"),
        ("a.tar", tar_of({"x.json": b"{"}), "a.tar:x.json: not a line of JSON"),
        ("a.tar", tar_of({"x.txt": b"\xff"}), "a.tar:x.txt: not UTF-8 text"),
        ("a.parquet", b"plain", "a.parquet: cannot be read: Parquet"),
        ("a.parquet", parquet_of("x")[:-9], "a.parquet: cannot be read: Parquet"),
        ("a.arrow", b"plain", "a.arrow: cannot be read"),
    ],
)
def test_an_error_names_the_damaged_line(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError) as raised:
        read(path)
    assert str(raised.value).startswith(f"{tmp_path}/{message}")


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_missing_column_is_refused_with_the_columns_found(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(parquet_of("x") if name.endswith("parquet") else arrow_of("x"))
    with pytest.raises(DataError, match=r"no column 'body' \(found: id, text\); see --field"):
        read(path, "body")


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_a_truncated_file_is_never_read_as_a_shorter_one(tmp_path, pack):
    draw = random.Random(1)
    whole = pack(lines(*(f"{draw.random()}" for _ in range(20_000))))
    path = tmp_path / f"a.jsonl.{'gz' if pack is gzip.compress else 'zst'}"
    for part in (0.1, 0.5, 0.9):
        path.write_bytes(whole[: int(part * len(whole))])
        with pytest.raises(DataError, match=r"a\.jsonl\.(gz|zst)"):
            read(path)


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_a_flipped_bit_is_a_data_error_or_harmless(tmp_path, pack):
    draw = random.Random(1)
    documents = [f"{draw.random()}" for _ in range(200)]
    whole = pack(lines(*documents))
    path = tmp_path / f"a.jsonl.{'gz' if pack is gzip.compress else 'zst'}"
    messages = []
    for at in range(10, len(whole), 97):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 6]) + whole[at + 1 :])
        try:
            read(path)
        except DataError as error:
            messages.append(str(error))
    assert len(messages) > 5
    assert all(message.startswith(str(path)) for message in messages)


def test_half_a_surrogate_is_not_text(tmp_path):
    """JSON can express half a surrogate pair, but UTF-8 cannot encode it."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines("x") + b'{"text": "\\ud800"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: "):
        read(path)


def test_missing_and_unknown_inputs_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.docx").touch()
    for name, message in (
        ("none.jsonl", "no such file"),
        ("empty", r"no text in this folder \(looked for \.jsonl, "),
        ("a.docx", r"this file format cannot be read \(supported: \.jsonl, "),
    ):
        with pytest.raises(DataError, match=f"{name}: {message}"):
            find_input_files([tmp_path / name])


def test_a_folder_named_like_a_file_is_named(tmp_path):
    (tmp_path / "in" / "a.jsonl").mkdir(parents=True)
    with pytest.raises(DataError, match=r"a\.jsonl: "):
        read(tmp_path / "in")


def test_a_link_in_a_tar_of_text_is_not_followed(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("evil.txt")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(DataError, match=r"a\.tar:evil\.txt: not a plain file"):
        read(tmp_path / "a.tar")


def test_every_file_format_gives_the_same_shards(tmp_path, tokenizer_json):
    tokenizer = load_tokenizer(str(tokenizer_json))
    jsonl = write_texts(tmp_path / "a.jsonl", "third", documents=9).read_text()
    texts = [json.loads(line)["text"] for line in jsonl.splitlines()]
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(jsonl.encode(), mtime=0))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(jsonl.encode()))
    table = pyarrow.table({"text": texts})
    parquet.write_table(table, tmp_path / "d.parquet")
    saved = tmp_path / "saved"
    saved.mkdir()  # as datasets.save_to_disk lays it out
    with (
        (saved / "data-00000-of-00001.arrow").open("wb") as file,
        pyarrow.ipc.new_stream(file, table.schema) as stream,
    ):
        stream.write_table(table, max_chunksize=2)
    with tarfile.open(tmp_path / "e.tar", "w") as tar:
        for number, text in enumerate(texts):
            member = tmp_path / "member"
            if number % 2:
                member.write_text(text)
            else:
                member.write_text(json.dumps({"text": text}))
            tar.add(member, f"{number:03d}.{'txt' if number % 2 else 'json'}")
        tar.add(member, "000.meta")
    folder = tmp_path / "folder"
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number:03d}.txt").write_text(text)
    expected = None
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.parquet", "saved", "e.tar", "folder"):
        write_shards([tmp_path / name], tmp_path / f"out-{name}", tokenizer)
        documents = [tokens.tolist() for tokens in documents_of(tmp_path / f"out-{name}")]
        assert len(documents) == 9
        assert documents == (expected := expected or documents), name
