import struct

import numpy as np
import pytest
from shard_folders import documents_of, file_contents

from rewarm.data.megatron_format import read_megatron_documents
from rewarm.data.shard_writer import write_shards
from rewarm.data.tokenizer import load_tokenizer
from rewarm.errors import DataError


@pytest.fixture
def tokenizer(tokenizer_json):
    return load_tokenizer(str(tokenizer_json))


def write_megatron(path, dtype, code, sequences, firsts):
    """Writes a .bin and .idx as the format is specified, independently of the reader."""
    data = b"".join(np.array(ids, dtype).tobytes() for ids in sequences)
    path.with_suffix(".bin").write_bytes(data)
    with path.with_suffix(".idx").open("wb") as idx:
        idx.write(b"MMIDIDX\x00\x00")
        idx.write(struct.pack("<Q", 1))
        idx.write(struct.pack("<B", code))
        idx.write(struct.pack("<Q", len(sequences)))
        idx.write(struct.pack("<Q", len(firsts)))
        at, width = 0, np.dtype(dtype).itemsize
        for ids in sequences:
            idx.write(struct.pack("<i", len(ids)))
        for ids in sequences:
            idx.write(struct.pack("<q", at))
            at += width * len(ids)
        for first in firsts:
            idx.write(struct.pack("<q", first))


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
    documents = list(read_megatron_documents(tmp_path / "a.bin"))
    assert [(tokens.tolist(), end) for tokens, end in documents] == [
        ([1, 2, 3], 6),
        ([4, 5, 6], 12),
    ]
    (tmp_path / "a.idx").unlink()
    with pytest.raises(DataError, match=r"a\.bin: its index is missing: a\.idx"):
        next(read_megatron_documents(tmp_path / "a.bin"))


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
    assert file_contents(tmp_path / "pile") == file_contents(folder)
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
