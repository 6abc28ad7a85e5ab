"""Bytes of text that tokens stand for: counted, or in the index of the shards."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from shard_folders import documents_of
from tokenizers import Tokenizer as Encoder
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from rewarm.data.shard_format import ShardIndex, read_shard_index
from rewarm.data.shard_source import ShardSource
from rewarm.data.sharding.shard_writer import write_shards
from rewarm.data.stored_blocks import StoredBlocks
from rewarm.data.text_bytes import byte_lengths
from rewarm.data.tokenizer import load_tokenizer

TEXTS = [
    "the learning rate is raised again, and then it decays",
    "Ünï cödé – “naïve” 日本語 🙂  and   spaces\n\n\tdef f(x):\n        return x",
    "a",
    "it decays to its end; the rate of a run is raised " * 9,
]


@pytest.fixture
def tokenizer(tokenizer_json):
    return load_tokenizer(str(tokenizer_json))


def shards_of(texts, folder, tokenizer, **settings):
    """Writes texts as shards; returns their source."""
    path = folder.with_suffix(".jsonl")
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    write_shards([path], folder, tokenizer, **settings)
    return ShardSource(str(folder))


def word_tokenizer(folder):
    """A tokenizer whose tokens are words: the spaces between them are in none."""
    encoder = Encoder(models.WordLevel(unk_token="[UNK]"))
    encoder.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(special_tokens=["[UNK]", "</s>"])
    encoder.train_from_iterator(TEXTS, trainer)
    folder.mkdir()
    encoder.save(str(folder / "tokenizer.json"))
    return load_tokenizer(str(folder))


def test_the_index_has_the_bytes_of_the_texts(tmp_path, tokenizer):
    index = shards_of(TEXTS, tmp_path / "x", tokenizer, shard_tokens=30).index
    assert len(index.shards) > 1
    sizes = [len(text.encode()) for text in TEXTS]
    assert sum(shard.text_bytes for shard in index.shards) == sum(sizes)
    documents = iter(sizes)
    for shard in index.shards:
        assert shard.text_bytes == sum(next(documents) for _ in range(shard.documents))


def test_an_index_of_an_earlier_version_is_read_and_has_the_same_digest(tmp_path, tokenizer):
    source = shards_of(TEXTS, tmp_path / "x", tokenizer)
    path = tmp_path / "x" / "index.json"
    content = json.loads(path.read_text())
    for shard in content["shards"]:
        del shard["text_bytes"]
    path.write_text(json.dumps(content))
    old = read_shard_index(tmp_path / "x")
    assert old.shards[0].text_bytes is None
    assert old.digest() == source.index.digest()
    assert "text_bytes" not in old.to_json()
    assert ShardIndex.model_validate_json(source.index.to_json()) == source.index


def test_the_bytes_of_exactly_the_measured_tokens_are_counted(tmp_path, tokenizer):
    source = shards_of(TEXTS, tmp_path / "x", tokenizer)
    joined = np.concatenate(documents_of(tmp_path / "x"))
    for context, tokens in ((10, None), (7, 50), (16, 16)):
        blocks = StoredBlocks(source, context=context, tokens=tokens)
        list(blocks)
        measured = joined[1 : blocks.tokens + 1].tolist()
        # Each token alone, as the bytes that it stands for: a character may be cut.
        alphabet = bytes_of_characters()
        expected = b"".join(
            bytes(alphabet[c] for c in tokenizer.encoder.id_to_token(token))
            for token in measured
            if token != tokenizer.eos_token_id
        )
        assert blocks.text_bytes == (len(expected), True)
    whole = StoredBlocks(source, context=1)
    list(whole)
    first = tokenizer.encoder.id_to_token(int(joined[0]))
    assert whole.text_bytes.size == sum(len(t.encode()) for t in TEXTS) - len(first)


def bytes_of_characters():
    """GPT-2's table: which byte each character of a byte-level token stands for."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}


def test_of_another_tokenizer_the_mean_of_the_shards_counts(tmp_path):
    tokenizer = word_tokenizer(tmp_path / "words")
    assert byte_lengths(tokenizer) is None
    source = shards_of(TEXTS, tmp_path / "x", tokenizer)
    blocks = StoredBlocks(source, context=5, tokens=40)
    list(blocks)
    shard = source.index.shards[0]
    assert blocks.text_bytes == (pytest.approx(shard.text_bytes * 40 / shard.tokens), False)


def test_bytes_are_counted_in_old_shards_and_in_token_ids_too(tmp_path, tokenizer):
    source = shards_of(TEXTS, tmp_path / "x", tokenizer)
    counted = StoredBlocks(source, context=8)
    list(counted)
    shards = [shard.model_copy(update={"text_bytes": None}) for shard in source.index.shards]
    source.index = source.index.model_copy(update={"shards": shards})
    blocks = StoredBlocks(source, context=8)
    assert blocks.text_bytes is None  # before the tokens are read
    list(blocks)
    assert blocks.text_bytes == counted.text_bytes
    # Without the tokenizer beside the shards, nothing tells.
    copy = Path(shutil.copytree(tmp_path / "x", tmp_path / "copy"))
    (copy / "tokenizer.json").unlink()
    source.folder = copy
    alone = StoredBlocks(source, context=8)
    list(alone)
    assert alone.text_bytes is None


def test_tokenizers_that_change_the_text_have_no_fixed_bytes(tokenizer):
    def changed(**parts):
        encoder = Encoder.from_str(tokenizer.encoder.to_str())
        for name, part in parts.items():
            setattr(encoder, name, part)
        return byte_lengths(tokenizer._replace(encoder=encoder))

    assert changed(normalizer=normalizers.NFC()) is not None
    assert changed(normalizer=normalizers.StripAccents()) is None
    assert changed(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)) is None
    split = pre_tokenizers.Split(" ", "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    assert changed(pre_tokenizer=pre_tokenizers.Sequence([split, byte_level])) is not None
    assert changed(decoder=decoders.Metaspace()) is None


def test_a_set_is_read_from_disk_once(tmp_path, tokenizer, monkeypatch):
    source = shards_of(TEXTS, tmp_path / "x", tokenizer)
    blocks = StoredBlocks(source, context=8)
    first = [block.tolist() for block in blocks]
    monkeypatch.setattr(StoredBlocks, "_read_blocks", lambda _: pytest.fail("read again"))
    assert [block.tolist() for block in blocks] == first
