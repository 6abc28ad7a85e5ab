"""Tokenizers of other formats than tokenizer.json."""

import json

import pytest

from rewarm.data.tokenizer import load_tokenizer
from rewarm.errors import DataError


@pytest.mark.parametrize("name", ["nowhere/tokenizer.json", "/no/such/folder", "a b"])
def test_a_missing_tokenizer_is_named(name):
    with pytest.raises(DataError, match="no such file"):
        load_tokenizer(name)


def test_a_damaged_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="not a tokenizer that can be read"):
        load_tokenizer(str(tmp_path))


def test_a_huge_id_is_refused_before_memory_is_allocated_for_it(tokenizer_json, tmp_path):
    document = json.loads(tokenizer_json.read_text())
    document["model"]["vocab"]["huge"] = 2**24
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="an id is above 16,777,215"):
        load_tokenizer(str(tmp_path))


@pytest.fixture
def gpt2_folder(tokenizer_json, tmp_path):
    """Returns a folder with vocab.json and merges.txt, as GPT-2 was published."""
    model = json.loads(tokenizer_json.read_text())["model"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    return tmp_path


def test_a_folder_with_vocabulary_and_merges_is_converted(gpt2_folder, tokenizer_json, caplog):
    (gpt2_folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}'
    )
    converted, original = load_tokenizer(str(gpt2_folder)), load_tokenizer(str(tokenizer_json))
    assert converted.digest == original.digest
    text = "The cat, it's 12 words\n\nor  so: é"
    assert converted.encoder.encode(text).ids == original.encoder.encode(text).ids
    assert "vocab.json converted by transformers' GPT2Tokenizer" in caplog.text


def test_vocabulary_and_merges_without_a_class_are_read_as_those_of_gpt2(
    gpt2_folder, tokenizer_json, caplog
):
    converted, original = load_tokenizer(str(gpt2_folder)), load_tokenizer(str(tokenizer_json))
    assert (converted.digest, converted.eos_token_id) == (original.digest, original.eos_token_id)
    text = "The cat, it's 12 words\n\nor  so: é<|endoftext|>"
    assert converted.encoder.encode(text).ids == original.encoder.encode(text).ids
    assert converted.encoder.decode(converted.encoder.encode("a é").ids) == "a é"
    assert "read as GPT-2's byte-level BPE" in caplog.text


@pytest.mark.parametrize(
    ("vocabulary", "merges", "reason"),
    [
        ({"a": 0, "b": 1, "ab": 2}, "#version: 0.2\na b\n", "all characters for bytes"),
        (None, "a b\n", "does not begin with #version"),
        (None, "#version: 0.2\nthe nowhere\n", "only merges.txt, vocab.json: "),
        ({"a": 2**40}, "#version: 0.2\n", "an id is above 16,777,215"),
        ([], "#version: 0.2\n", "all characters for bytes"),
    ],
)
def test_files_of_another_kind_than_gpt2_need_their_class(gpt2_folder, vocabulary, merges, reason):
    (gpt2_folder / "merges.txt").write_text(merges)
    if vocabulary is not None:
        (gpt2_folder / "vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(DataError, match=rf"{reason}.* name the tokenizer's class in tokenizer_con"):
        load_tokenizer(str(gpt2_folder))


def test_the_class_of_a_vocabulary_is_what_converts_it(tmp_path):
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[UNK]", "[SEP]", "[CLS]", "[PAD]", "the", "</s>"])
    )
    with pytest.raises(DataError, match=r"only vocab\.txt: .* name the tokenizer's class"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    assert load_tokenizer(str(tmp_path)).encoder.encode("the", add_special_tokens=False).ids == [4]


PIECE, TRAINER = b"\x0a\x05piece", b"\x12\x03x=1"
"""Messages of a sentencepiece model: the number of their field, their length, their content."""


@pytest.mark.parametrize("content", [b"", b"hello", b"{}", PIECE, PIECE * 2 + TRAINER[:-1]])
def test_a_damaged_sentencepiece_model_is_named(tmp_path, content):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(DataError, match=r"tokenizer\.model: damaged, or no sentencepiece model"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("is_installed", [True, False])
def test_a_sentencepiece_model_names_what_to_install(tmp_path, monkeypatch, is_installed):
    (tmp_path / "spiece.model").write_bytes(PIECE * 3 + TRAINER)

    def fail(*_, **__):
        raise ValueError("of a kind that is not known")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", fail)
    monkeypatch.setattr("transformers.utils.is_sentencepiece_available", lambda: is_installed)
    advice = "kind that is not known; name the" if is_installed else "pip install sentencepiece"
    with pytest.raises(DataError, match=rf"no tokenizer\.json, .*spiece\.model.*{advice}"):
        load_tokenizer(str(tmp_path))
