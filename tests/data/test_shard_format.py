import gc
import hashlib
import io
import json
import os
import tarfile

import numpy as np
import pytest
import webdataset
from shard_folders import documents_of, flip_bit, write_old_shards
from text_corpora import write_texts

from rewarm.data.shard_format import Shard, read_shard_index
from rewarm.data.shard_source import ShardSource
from rewarm.data.sharding.shard_folder import ShardWriter
from rewarm.data.sharding.shard_writer import write_shards
from rewarm.data.stored_blocks import StoredBlocks
from rewarm.data.tokenizer import load_tokenizer
from rewarm.data.verify_shards import verify_shards
from rewarm.errors import DataError


@pytest.fixture
def tokenizer(tokenizer_json):
    return load_tokenizer(str(tokenizer_json))


@pytest.fixture
def folder(tmp_path, tokenizer):
    text = write_texts(tmp_path / "text.jsonl", "upstream", documents=40)
    write_shards([text], tmp_path / "out", tokenizer, shard_tokens=800)
    return tmp_path / "out"


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset does not close it
def test_webdataset_reads_the_same_documents(folder):
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    theirs = []
    for sample in webdataset.WebDataset(urls, shardshuffle=False).decode():
        ends = np.flatnonzero(np.unpackbits(sample["ends.npy"])) + 1
        theirs += np.split(sample["npy"], ends[:-1])
    gc.collect()
    ours = documents_of(folder)
    assert len(urls) > 2
    assert len(theirs) == len(ours) == 40
    assert all(
        a.dtype == np.uint16 and np.array_equal(a, b) for a, b in zip(theirs, ours, strict=True)
    )


def test_documents_decode_to_the_texts_and_end_with_end_of_text(folder, tmp_path, tokenizer):
    encoder = tokenizer.encoder
    texts = [json.loads(x)["text"] for x in (tmp_path / "text.jsonl").read_text().splitlines()]
    assert all(tokens[-1] == 0 and 0 not in tokens[:-1] for tokens in documents_of(folder))
    assert [encoder.decode(tokens[:-1].tolist()) for tokens in documents_of(folder)] == texts


def test_the_index_counts_documents_tokens_and_bytes(folder):
    index = read_shard_index(folder)
    assert index.documents == 40
    assert index.tokens == sum(len(tokens) for tokens in documents_of(folder))
    assert index.tokenizer.vocabulary == len(
        json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    )
    for shard_info in index.shards:
        assert shard_info.bytes == (folder / shard_info.name).stat().st_size


def member(name, data, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    if kind == tarfile.SYMTYPE:
        info.linkname, info.size = "/etc/passwd", 0
    return info, io.BytesIO(data)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def rewrite(folder, *members):
    """Replaces the first shard, and updates the index."""
    with tarfile.open(folder / "00000.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for info, data in members:
            tar.addfile(info, data)
    reindex(folder)


def rewrite_sample(folder, ends):
    tokens = npy(np.zeros(9, "u2"))
    rewrite(folder, member("a.npy", tokens), member("a.ends.npy", npy(ends)))


def rewrite_sizes(folder, size):
    """Makes the first member claim a size, with a header that is otherwise right."""
    info = tarfile.TarInfo("00000-000000.npy")
    info.size = size
    data = (folder / "00000.tar").read_bytes()
    (folder / "00000.tar").write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + data[512:])
    reindex(folder)


def reindex(folder):
    """Writes size and sha256 of the first shard into the index, as an attacker would."""
    data = (folder / "00000.tar").read_bytes()
    index = json.loads((folder / "index.json").read_text())
    index["shards"][0] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "index.json").write_text(json.dumps(index))


def truncate(folder):
    path = folder / "00000.tar"
    path.write_bytes(path.read_bytes()[:-2000])


def truncate_and_reindex(folder):
    path = folder / "00000.tar"
    path.write_bytes(path.read_bytes()[:2100])
    reindex(folder)


def break_header(folder):
    path = folder / "00000.tar"
    data = bytearray(path.read_bytes())
    data[126] = ord("z")  # in the size of the first member
    path.write_bytes(data)
    reindex(folder)


FAULTS = {
    "deleted": (lambda f: (f / "00000.tar").unlink(), "missing"),
    "truncated": (truncate, "bytes long, and the index says"),
    "truncated, and the index adapted": (
        truncate_and_reindex,
        "truncated: the end of the tar is missing",
    ),
    "flipped bit": (lambda f: flip_bit(f / "00000.tar"), "its sha256 differs from the index"),
    "empty": (lambda f: (f / "00000.tar").write_bytes(b""), "0 bytes long, and the index says"),
    "damaged header": (break_header, "damaged header"),
    "symlink": (lambda f: rewrite(f, member("a.npy", b"", tarfile.SYMTYPE)), "plain tar member"),
    "foreign": (lambda f: rewrite(f, member("a.jpg", b"x" * 99)), "not a one-dimensional .npy"),
    "two-dimensional": (
        lambda f: rewrite(f, member("a.npy", npy(np.zeros((2, 3), "u2")))),
        "not a one-dimensional .npy",
    ),
    "wrong dtype": (
        lambda f: rewrite(f, member("a.npy", npy(np.zeros(9, "u4")))),
        "holds u4, not uint16",
    ),
    "pickled": (
        lambda f: rewrite(f, member("a.npy", npy(np.array([{"a": 1}], dtype=object)))),
        "not a one-dimensional .npy",
    ),
    "ends of nothing": (
        lambda f: rewrite(f, member("a.ends.npy", npy(np.array([1], "u1")))),
        "does not follow the tokens whose ends it marks",
    ),
    "too few ends": (
        lambda f: rewrite_sample(f, np.array([1], "u1")),
        "does not mark the ends of 9 tokens",
    ),
    "no end of the last document": (
        lambda f: rewrite_sample(f, np.array([1, 0], "u1")),
        "does not mark the ends of 9 tokens",
    ),
    "tokens of ends": (
        lambda f: rewrite(f, member("a.npy", npy(np.zeros(9, "u1")))),
        "holds u1, not uint16",
    ),
    "size beyond the end": (
        lambda f: rewrite_sizes(f, 2**32),
        "truncated: the end of the tar is missing",
    ),
    "empty document": (
        lambda f: rewrite(f, member("a.npy", npy(np.zeros(0, "u2")))),
        "does not hold the 0 tokens",
    ),
    "fewer documents": (
        lambda f: rewrite(f, member("a.npy", npy(np.zeros(9, "u2")))),
        "1 documents of 9 tokens, and the index says",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_shard_is_named(folder, fault):
    damage, message = FAULTS[fault]
    damage(folder)
    index = read_shard_index(folder)
    with pytest.raises(DataError, match=r"00000\.tar") as error:
        Shard(folder, index.shards[0], index.dtype)
    assert message in str(error.value)
    assert "rewarm shard" in str(error.value)


def truncate_in_place(path):
    os.truncate(path, 1024)


@pytest.mark.parametrize(
    ("damage", "message"),
    [(truncate_in_place, "truncated while it is in use"), (flip_bit, "its sha256 differs")],
)
def test_a_shard_that_changes_while_it_is_open_is_refused(folder, damage, message):
    index = read_shard_index(folder)
    shard = Shard(folder, index.shards[0], index.dtype)
    damage(folder / "00000.tar")
    with pytest.raises(DataError, match=rf"00000\.tar: .*{message}"):
        list(shard)


def test_a_shard_that_was_touched_or_replaced_while_it_is_open_is_still_read(folder):
    index = read_shard_index(folder)
    path, shard = folder / "00000.tar", Shard(folder, index.shards[0], index.dtype)
    before = [tokens.tolist() for tokens in shard]
    os.utime(path, (0, 0))
    assert [tokens.tolist() for tokens in shard] == before
    path.rename(folder / "moved")
    path.write_bytes(b"")
    assert [tokens.tolist() for tokens in shard] == before


def test_each_document_is_where_its_end_says(folder):
    index = read_shard_index(folder)
    shard = Shard(folder, index.shards[0], index.dtype)
    ends = shard.document_ends()
    lengths = np.diff(ends, prepend=0)
    offsets = shard.offsets(ends - lengths)
    assert len(ends) == len(shard) == index.shards[0].documents
    for offset, length, tokens in zip(offsets.tolist(), lengths.tolist(), shard, strict=True):
        assert shard.read([offset], [length]).tolist() == tokens.tolist()
        assert shard.read([offset + 2], [3]).tolist() == tokens[1:4].tolist()
    assert shard.offsets(ends[:1] + 2).tolist() == [offsets[1] + 4]


def test_documents_of_any_length_come_back(tmp_path, tokenizer):
    """From one token to more than a sample holds, and as many samples as it takes."""
    draw = np.random.default_rng(0)
    lengths = [1, 2, 7, 8, 9, 70_000, 1, 65_535, 1, 65_536, *draw.integers(1, 300, 2000).tolist()]
    documents = [draw.integers(1, 200, length) for length in lengths]
    with ShardWriter(tmp_path, tokenizer, shard_tokens=250_000) as writer:
        for document in documents:
            writer.write_document(document)
        index = writer.finish()
    assert len(index.shards) > 1
    assert index.documents == len(documents)
    read = documents_of(tmp_path)
    assert all(map(np.array_equal, read, documents))
    for shard_info in index.shards:
        shard = Shard(tmp_path, shard_info, index.dtype)
        assert shard.document_ends()[-1] == shard_info.tokens


@pytest.mark.parametrize("length", [1, 2, 6, 60, 6000])
def test_documents_of_any_length_take_little_more_than_two_bytes_per_token(
    tmp_path, tokenizer, length
):
    ends = np.arange(length, 300_001, length)
    with ShardWriter(tmp_path, tokenizer, shard_tokens=10**6) as writer:
        writer.write(np.ones(ends[-1], np.uint32), ends, [b""] * len(ends), [1] * len(ends))
        (shard_info,) = writer.finish().shards
    assert shard_info.documents == 300_000 // length
    assert 2 < shard_info.bytes / shard_info.tokens < 2.2


def test_shards_of_the_old_format_are_read(folder, tmp_path):
    old = write_old_shards(tmp_path / "old", folder)
    with tarfile.open(old / "00000.tar") as tar:
        names = tar.getnames()
    assert names[:2] == ["00000-000000.npy", "00000-000001.npy"]
    for ours, theirs in zip(documents_of(folder), documents_of(old), strict=True):
        assert np.array_equal(ours, theirs)
    assert not verify_shards(old)[0].problems
    blocks = [list(StoredBlocks(ShardSource(str(path)), context=50)) for path in (folder, old)]
    assert np.array_equal(*blocks)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not an index of shards"),
        ("{}", "not an index of shards"),
        ('{"format": "other/9"}', "not an index of shards"),
    ],
)
def test_a_damaged_index_is_named(folder, text, message):
    (folder / "index.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_shard_index(folder)


def test_an_index_of_more_tokens_than_its_tars_can_hold_is_refused(folder):
    index = json.loads((folder / "index.json").read_text())
    index["shards"][0]["tokens"] = 10**9
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"not an index of shards: [^V]"):  # not "Value error"
        read_shard_index(folder)


def test_an_index_without_one_of_the_shards_is_out_of_date(folder):
    index = json.loads((folder / "index.json").read_text())
    left_out = index["shards"].pop(1)["name"]
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=f"out of date: {left_out} is in the folder"):
        read_shard_index(folder)


def test_an_index_cannot_name_a_file_outside_its_folder(folder):
    index = json.loads((folder / "index.json").read_text())
    index["shards"][0]["name"] = "../outside.tar"
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"shards\.0\.name"):
        read_shard_index(folder)


def test_errors_for_a_missing_folder_and_one_without_shards_differ(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        read_shard_index(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"an empty folder; expected .* \(index\.json\)$"):
        read_shard_index(tmp_path)
    (tmp_path / "x" / "train").mkdir(parents=True)
    (tmp_path / "x" / "train" / "index.json").touch()
    with pytest.raises(DataError, match=r"in its subfolders; .*; name .*/x/train$"):
        read_shard_index(tmp_path / "x")
    text = tmp_path / "x.jsonl"
    text.touch()
    with pytest.raises(DataError, match=f"a file; .*; write one: rewarm shard {text} --out DIR"):
        read_shard_index(text)
