import gc
import hashlib
import io
import json
import tarfile
from itertools import pairwise

import numpy as np
import pytest
import webdataset
from text_corpora import write_texts

from rewarm.data.shard_format import Shard, read_shard_index
from rewarm.data.shard_writer import write_shards
from rewarm.data.tokenizer import load_tokenizer
from rewarm.errors import DataError


@pytest.fixture
def folder(tmp_path, tokenizer_json):
    text = write_texts(tmp_path / "text.jsonl", "upstream", documents=40)
    write_shards([text], tmp_path / "out", load_tokenizer(str(tokenizer_json)), shard_tokens=800)
    return tmp_path / "out"


def documents(folder):
    index = read_shard_index(folder)
    return [tokens for facts in index.shards for tokens in Shard(folder, facts, index.dtype)]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves it so
def test_plain_webdataset_reads_the_same_documents(folder):
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    plain = [sample["npy"] for sample in webdataset.WebDataset(urls, shardshuffle=False).decode()]
    gc.collect()
    ours = documents(folder)
    assert len(urls) > 2
    assert len(plain) == len(ours) == 40
    assert all(
        a.dtype == np.uint16 and np.array_equal(a, b) for a, b in zip(plain, ours, strict=True)
    )


def test_documents_decode_to_the_texts_and_end_with_end_of_text(folder, tmp_path, tokenizer_json):
    encoder = load_tokenizer(str(tokenizer_json)).encoder
    texts = [json.loads(x)["text"] for x in (tmp_path / "text.jsonl").read_text().splitlines()]
    assert all(tokens[-1] == 0 and 0 not in tokens[:-1] for tokens in documents(folder))
    assert [encoder.decode(tokens[:-1].tolist()) for tokens in documents(folder)] == texts


def test_the_index_counts_what_is_there(folder):
    index = read_shard_index(folder)
    assert index.documents == 40
    assert index.tokens == sum(len(tokens) for tokens in documents(folder))
    assert index.tokenizer.vocabulary == len(
        json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    )
    for facts in index.shards:
        assert facts.bytes == (folder / facts.name).stat().st_size


def test_sharding_twice_gives_the_same_bytes(folder, tmp_path, tokenizer_json):
    again = tmp_path / "again"
    write_shards(
        [tmp_path / "text.jsonl"], again, load_tokenizer(str(tokenizer_json)), shard_tokens=800
    )
    assert sorted(p.name for p in again.iterdir()) == sorted(p.name for p in folder.iterdir())
    assert all((again / p.name).read_bytes() == p.read_bytes() for p in folder.iterdir())


def test_the_validation_split_depends_on_content_and_not_on_order(tmp_path, tokenizer_json):
    said = load_tokenizer(str(tokenizer_json))
    text = write_texts(tmp_path / "text.jsonl", "third", documents=300)
    lines = text.read_text().splitlines(keepends=True)
    (tmp_path / "turned.jsonl").write_text("".join(reversed(lines)))
    sides = []
    for name in ("text", "turned"):
        out = tmp_path / f"out-{name}"
        write_shards([tmp_path / f"{name}.jsonl"], out, said, validation=0.2)
        sides.append({tokens.tobytes() for tokens in documents(out / "val")})
        train = {tokens.tobytes() for tokens in documents(out / "train")}
        assert not train & sides[-1]
    assert sides[0] == sides[1]
    assert 0.1 < len(sides[0]) / 300 < 0.3


def test_large_vocabularies_are_stored_in_32_bits(tmp_path, tokenizer_json):
    said = load_tokenizer(str(tokenizer_json))._replace(vocabulary=100_000)
    text = write_texts(tmp_path / "text.jsonl", "third", documents=3)
    index = write_shards([text], tmp_path / "out", said)["."]
    assert index.dtype == "uint32"
    assert documents(tmp_path / "out")[0].dtype == np.uint32


def test_a_folder_with_something_in_it_is_refused(folder, tmp_path, tokenizer_json):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(DataError, match="not empty"):
        write_shards([tmp_path / "text.jsonl"], folder, load_tokenizer(str(tokenizer_json)))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_bad_input_leaves_nothing_behind(tmp_path, tokenizer_json):
    text = write_texts(tmp_path / "text.jsonl", "third", documents=3)
    with text.open("a") as file:
        file.write('{"txt": "no text here"}\n')
    with pytest.raises(DataError, match=r"text\.jsonl:4: no text in field 'text' \(there are: txt"):
        write_shards([text], tmp_path / "out", load_tokenizer(str(tokenizer_json)))
    assert [path.name for path in tmp_path.iterdir()] == ["text.jsonl"]


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
    """Replaces the first tar, and makes the index agree."""
    with tarfile.open(folder / "00000.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for info, data in members:
            tar.addfile(info, data)
    reindex(folder)


def reindex(folder):
    """Makes size and sha256 in the index those of the first tar, as an attacker would."""
    data = (folder / "00000.tar").read_bytes()
    index = json.loads((folder / "index.json").read_text())
    index["shards"][0] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "index.json").write_text(json.dumps(index))


def truncate(folder):
    path = folder / "00000.tar"
    path.write_bytes(path.read_bytes()[:-2000])


def cut_and_reindex(folder):
    path = folder / "00000.tar"
    path.write_bytes(path.read_bytes()[:2100])
    reindex(folder)


def break_header(folder):
    path = folder / "00000.tar"
    data = bytearray(path.read_bytes())
    data[126] = ord("z")  # in the size of the first member
    path.write_bytes(data)
    reindex(folder)


def flip_a_token(folder):
    path = folder / "00000.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)


FAULTS = {
    "deleted": (lambda f: (f / "00000.tar").unlink(), "missing"),
    "truncated": (truncate, "bytes long, and the index says"),
    "cut, and the index agrees": (cut_and_reindex, "the tar's end is missing"),
    "flipped bit": (flip_a_token, "its sha256 is not the index's"),
    "empty": (lambda f: (f / "00000.tar").write_bytes(b""), "cannot be read"),
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
    damage, said = FAULTS[fault]
    damage(folder)
    index = read_shard_index(folder)
    with pytest.raises(DataError, match=r"00000\.tar") as error:
        Shard(folder, index.shards[0], index.dtype)
    assert said in str(error.value)
    assert "rewarm shard" in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not an index of shards"),
        ("{}", "not an index of shards"),
        ('{"format": "other/9"}', "not an index of shards"),
    ],
)
def test_a_damaged_index_is_named(folder, text, said):
    (folder / "index.json").write_text(text)
    with pytest.raises(DataError, match=said):
        read_shard_index(folder)


def test_an_index_that_leaves_a_tar_out_is_out_of_date(folder):
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


def test_a_missing_folder_and_a_folder_without_shards_are_told_apart(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        read_shard_index(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"no index\.json"):
        read_shard_index(tmp_path)


def test_shard_numbers_follow_each_other(folder):
    numbers = [int(path.stem) for path in sorted(folder.glob("*.tar"))]
    assert all(b == a + 1 for a, b in pairwise(numbers))
