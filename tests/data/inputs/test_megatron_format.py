import json
import struct
import tracemalloc
from itertools import chain, pairwise

import numpy as np
import pytest
from shard_folders import documents_of, file_contents
from text_inputs import reading, write_megatron

from rewarm.data.inputs.document_readers import ReadOptions, find_input_files, read_documents
from rewarm.data.inputs.megatron_format import read_megatron_documents
from rewarm.data.sharding.shard_writer import write_shards
from rewarm.data.tokenizer import load_tokenizer
from rewarm.errors import DataError


@pytest.fixture
def tokenizer(tokenizer_json):
    return load_tokenizer(str(tokenizer_json))


def token_lists(folder):
    return [tokens.tolist() for tokens in documents_of(folder)]


def test_documents_are_read_from_sequences(tmp_path):
    """The first document is the sequences (1 2) and (3), the second is (4 5 6)."""
    (tmp_path / "a.bin").write_bytes(np.array([1, 2, 3, 4, 5, 6], "<u2").tobytes())
    (tmp_path / "a.idx").write_bytes(
        b"MMIDIDX\x00\x00"
        + np.array([1], "<u8").tobytes()
        + bytes([8])
        + np.array([3, 3], "<u8").tobytes()
        + np.array([2, 1, 3], "<i4").tobytes()
        + np.array([0, 4, 6], "<i8").tobytes()
        + np.array([0, 2, 3], "<i8").tobytes()
    )
    documents = list(read_megatron_documents(tmp_path / "a.bin", reading()))
    assert [(d.content.tolist(), d.bytes_read, d.ends) for d in documents] == [
        ([1, 2, 3], 6, True),
        ([4, 5, 6], 12, True),
    ]
    assert documents[1].location == f"{tmp_path}/a.bin: document 2"


@pytest.mark.parametrize(("dtype", "code"), [("<u2", 8), ("<i4", 4)])
def test_shards_of_a_pile_tokenized_for_gpt_neox_hold_the_same_tokens(
    tmp_path, tokenizer, dtype, code
):
    sequences = [[5, 6, 7, 0], [8, 9], [10, 0], [], [11, 12]]
    # Documents: the first sequence; the second and third; the empty one; the last, without an end.
    write_megatron(tmp_path / "pile", dtype, code, sequences, [0, 1, 3, 4, 5])
    write_shards([tmp_path / "pile.bin"], tmp_path / "out", tokenizer)
    assert token_lists(tmp_path / "out") == [[5, 6, 7, 0], [8, 9, 10, 0], [11, 12, 0]]


def test_training_on_megatron_files_equals_training_on_their_text(
    tmp_path, corpora, tokenizer, recipe_file
):
    """Documents with end-of-text, as `preprocess_data.py --append-eod` of GPT-NeoX writes them."""
    from rewarm.recipe.recipe import load_recipe
    from rewarm.training.loop import train

    folder = corpora / "upstream" / "train"
    sequences = token_lists(folder)
    write_megatron(tmp_path / "pile", "<u2", 8, sequences, range(len(sequences) + 1))
    write_shards([tmp_path / "pile.bin"], tmp_path / "pile", tokenizer, shard_tokens=3000)
    contents, expected = file_contents(tmp_path / "pile"), file_contents(folder)
    # Of token ids, the index has no bytes of text.
    index = json.loads(contents.pop("index.json"))
    expected_index = json.loads(expected.pop("index.json"))
    for shard in expected_index["shards"]:
        assert shard.pop("text_bytes") > 0
    assert (contents, index) == (expected, expected_index)
    pile = f"data.train.upstream.shards={tmp_path}/pile"
    text, ids = (
        train(load_recipe(recipe_file, [f"run={tmp_path}/{name}", "tokens=2048", *more]))
        for name, more in (("text", []), ("ids", [pile]))
    )
    name = "model.safetensors"
    assert (text / name).read_bytes() == (ids / name).read_bytes()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.with_suffix(".idx").unlink(), "its index is missing"),
        (lambda p: p.with_suffix(".idx").write_bytes(b"nonsense"), "not an index of Megatron"),
        (
            lambda p: p.with_suffix(".idx").write_bytes(p.with_suffix(".idx").read_bytes()[:60]),
            "truncated",
        ),
        (lambda p: p.write_bytes(p.read_bytes()[:-2]), "refers to"),
    ],
)
def test_a_damaged_pair_is_named(tmp_path, tokenizer, damage, message):
    write_megatron(tmp_path / "pile", "<u2", 8, [[5, 6, 0], [7, 0]], [0, 1, 2])
    damage(tmp_path / "pile.bin")
    with pytest.raises(DataError, match=message):
        write_shards([tmp_path / "pile.bin"], tmp_path / "out", tokenizer)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("sequences", "option", "is_blocks"),
    [
        ([[1, 2], [3, 4], [5, 6]], "auto", True),
        ([[1, 2], [3, 4], [5]], "auto", True),
        ([[1, 2], [3, 4]], "auto", False),  # two documents may have one length
        ([[1, 2], [3, 4], [5, 6, 7]], "auto", False),
        ([[1, 2], [3, 4], [5, 6]], "document", False),
        ([[1, 2], [3]], "block", True),
    ],
)
def test_fixed_length_sequences_get_no_end_of_text(
    tmp_path, tokenizer, sequences, option, is_blocks
):
    write_megatron(tmp_path / "a", "<u2", 8, sequences, range(len(sequences) + 1))
    notices = []
    write_shards(
        [tmp_path / "a.bin"],
        tmp_path / "out",
        tokenizer,
        options=ReadOptions(sequences=option),
        on_notice=notices.append,
    )
    ending = [] if is_blocks else [0]
    stream = [token for tokens in token_lists(tmp_path / "out") for token in tokens]
    assert stream == [token for ids in sequences for token in (*ids, *ending)]
    assert len(notices) == is_blocks
    assert all("so no end-of-text is added to them" in notice for notice in notices)


def test_blocks_that_one_document_joins_are_read_one_by_one(tmp_path):
    write_megatron(tmp_path / "a", "<i4", 4, [[1, 2], [3, 4], [5, 6]], [0, 3])
    documents = list(read_megatron_documents(tmp_path / "a.bin", reading()))
    assert [(d.content.tolist(), d.ends) for d in documents] == [
        ([1, 2], False),
        ([3, 4], False),
        ([5, 6], False),
    ]


def test_documents_of_several_sequences_stay_documents(tmp_path):
    """Also if all sequences have one length, as lines of code may have."""
    write_megatron(tmp_path / "a", "<i4", 4, [[1, 2], [3, 4], [5, 6]], [0, 2, 2, 3])
    documents = list(read_megatron_documents(tmp_path / "a.bin", reading()))
    assert [(d.content.tolist(), d.ends) for d in documents] == [
        ([1, 2, 3, 4], True),
        ([], True),
        ([5, 6], True),
    ]


@pytest.mark.parametrize("entries", [1, 2, 3, 100])
@pytest.mark.parametrize("read_bytes", [2, 10, 1000])
def test_the_parts_in_which_files_are_read_do_not_matter(
    tmp_path, monkeypatch, entries, read_bytes
):
    monkeypatch.setattr("rewarm.data.inputs.megatron_index._ENTRIES", entries)
    monkeypatch.setattr("rewarm.data.inputs.megatron_format._READ_BYTES", read_bytes)
    sequences = [[], [1, 2, 3], [4], [], [5, 6], [7], [8, 9, 10, 11, 12], []]
    firsts = [0, 0, 2, 3, 3, 6, 8, 8]
    write_megatron(tmp_path / "a", "<u2", 8, sequences, firsts)
    documents = list(read_megatron_documents(tmp_path / "a.bin", reading()))
    expected = [list(chain.from_iterable(sequences[a:b])) for a, b in pairwise(firsts)]
    assert [document.content.tolist() for document in documents] == expected
    write_megatron(tmp_path / "b", "<u2", 8, [[1, 2]] * 6 + [[3]], range(8))
    blocks = list(read_megatron_documents(tmp_path / "b.bin", reading()))
    assert [(block.content.tolist(), block.bytes_read) for block in blocks] == [
        *(([1, 2], 4 * number) for number in range(1, 7)),
        ([3], 26),
    ]
    write_megatron(tmp_path / "c", "<i4", 4, [[1], [2, -3], [4]], range(4))
    documents = read_megatron_documents(tmp_path / "c.bin", reading())
    assert next(documents).content.tolist() == [1]
    with pytest.raises(DataError, match="document 2: a negative token id: -3"):
        next(documents)


@pytest.mark.parametrize("firsts", [[0, 2, 1, 3], [1, 3], [0, 2], [0, 4], [], [0, -1, 3]])
@pytest.mark.parametrize("entries", [1, 100])
def test_documents_that_do_not_cover_the_sequences_are_refused(
    tmp_path, monkeypatch, firsts, entries
):
    monkeypatch.setattr("rewarm.data.inputs.megatron_index._ENTRIES", entries)
    write_megatron(tmp_path / "a", "<u2", 8, [[1], [2], [3]], firsts)
    with pytest.raises(DataError, match="its documents do not cover its 3 sequences"):
        list(read_megatron_documents(tmp_path / "a.bin", reading()))


def test_memory_does_not_grow_with_the_index(tmp_path):
    count = 400_000
    lengths = np.full(count, 2, "<i4")
    np.full(2 * count, 7, "<u2").tofile(tmp_path / "a.bin")
    with (tmp_path / "a.idx").open("wb") as file:
        file.write(b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, count, count + 1))
        lengths.tofile(file)
        np.arange(0, 4 * count, 4, "<i8").tofile(file)
        np.arange(count + 1, dtype="<i8").tofile(file)
    tracemalloc.start()
    try:
        documents = read_megatron_documents(tmp_path / "a.bin", reading(sequences="document"))
        assert next(documents).content.tolist() == [7, 7]
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("extra", [b"\0", b"\0\0"])
def test_bytes_that_the_index_does_not_know_are_refused(tmp_path, extra):
    write_megatron(tmp_path / "a", "<u2", 8, [[5, 6, 0]], [0, 1])
    path = tmp_path / "a.bin"
    path.write_bytes(path.read_bytes() + extra)
    message = f"a.bin: {6 + len(extra)} bytes, and a.idx refers to 6 .* {len(extra)} too many"
    with pytest.raises(DataError, match=message):
        list(read_megatron_documents(path, reading()))


def test_every_truncation_of_the_pair_is_refused(tmp_path):
    write_megatron(tmp_path / "a", "<u2", 8, [[5, 6, 0], [7, 0]], [0, 1, 2])
    for path in (tmp_path / "a.bin", tmp_path / "a.idx"):
        whole = path.read_bytes()
        for size in range(len(whole)):
            path.write_bytes(whole[:size])
            with pytest.raises(DataError, match=r"a\.(bin|idx): "):
                list(read_megatron_documents(tmp_path / "a.bin", reading()))
        path.write_bytes(whole)


def test_an_index_whose_offsets_and_lengths_disagree_is_refused(tmp_path):
    write_megatron(tmp_path / "a", "<u2", 8, [[5, 6, 0], [7, 0]], [0, 1, 2])
    path = tmp_path / "a.idx"
    data = bytearray(path.read_bytes())
    data[34] ^= 1  # the length of the first sequence
    path.write_bytes(data)
    with pytest.raises(DataError, match="offsets of its sequences do not match their lengths"):
        list(read_megatron_documents(tmp_path / "a.bin", reading()))


@pytest.mark.parametrize("last_number", [2, 3])
def test_parts_of_one_bin_share_its_index(tmp_path, last_number):
    """As the preshuffled Pile is published: three parts, which end within a token."""
    sequences = [[i, i + 1, i + 2, i + 3, i + 4] for i in range(1, 50, 5)]
    write_megatron(tmp_path / "document", "<u2", 8, sequences, range(11))
    whole = tmp_path / "document.bin"
    data = whole.read_bytes()
    whole.unlink()
    for number, start in enumerate((0, 33, 66)):
        part = tmp_path / f"document-{number:05d}-of-{last_number:05d}.bin"
        part.write_bytes(data[start : start + 33 if number < 2 else None])
    files = find_input_files([tmp_path]).files
    documents = list(read_documents(files, "text"))
    assert [d.content.tolist() for d in documents] == sequences
    assert not any(d.ends for d in documents)
    assert documents[-1].bytes_read == len(data)
    with pytest.raises(DataError, match=r"document\.bin, of which 1 are given; .* to 0000[12] \("):
        list(read_documents(files[:1], "text"))
    files[0].write_bytes(b"")
    with pytest.raises(DataError, match=r"document\.bin: 67 bytes, .* refers to 100"):
        list(read_documents(files, "text"))
