import json

import pytest
from repository import ROOT

from rewarm.data.shard_format import TokenizerInfo, read_shard_index
from rewarm.data.tokenizer import (
    check_context_fits,
    check_model_matches_shards,
    check_same_tokenizer,
    check_tokenizer_matches,
    check_vocabulary_fits,
    load_tokenizer,
)
from rewarm.errors import CheckpointError, DataError
from rewarm.model.architecture import Architecture

ARCHITECTURE = Architecture(layers=1, hidden=8, heads=1, vocabulary=512, positions=64)


@pytest.fixture
def tokenizer_info(corpora):
    return read_shard_index(corpora / "upstream" / "train").tokenizer


@pytest.fixture
def other_model(tokenizer_json, tmp_path):
    """Returns a folder with a tokenizer that has different merges."""
    document = json.loads(tokenizer_json.read_text())
    document["model"]["merges"].reverse()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(document))
    return tmp_path / "model"


def test_the_digest_does_not_depend_on_how_the_file_is_written(tokenizer_json, tmp_path):
    document = json.loads(tokenizer_json.read_text())
    document["model"]["merges"] = [  # older files store a merge as one string
        m if isinstance(m, str) else " ".join(m) for m in document["model"]["merges"]
    ]
    document["truncation"] = None
    other = tmp_path / "tokenizer.json"
    other.write_text(json.dumps(document, indent=4))
    assert load_tokenizer(str(other)).digest == load_tokenizer(str(tokenizer_json)).digest


def test_another_merge_order_gives_another_digest(tokenizer_json, other_model):
    assert load_tokenizer(str(other_model)).digest != load_tokenizer(str(tokenizer_json)).digest


def test_the_end_of_text_token_is_detected_or_named(tokenizer_json, tmp_path):
    assert load_tokenizer(str(tokenizer_json)).eos_token_id == 0
    document = json.loads(tokenizer_json.read_text().replace("<|endoftext|>", "[STOP]"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"no end-of-text token .* name it with --eos"):
        load_tokenizer(str(tmp_path))
    assert load_tokenizer(str(tmp_path), eos_token="[STOP]").eos_token_id == 0
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "[STOP]"}}')
    assert load_tokenizer(str(tmp_path)).eos_token == "[STOP]"


def test_a_file_and_its_folder_have_the_same_end_of_text_token(tokenizer_json, tmp_path):
    document = json.loads(tokenizer_json.read_text())
    document["added_tokens"].append(document["added_tokens"][0] | {"id": 512, "content": "<|end|>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    for name in (tmp_path, tmp_path / "tokenizer.json"):
        assert load_tokenizer(str(name)).eos_token == "<|end|>"
    assert load_tokenizer(str(tmp_path), "<|endoftext|>").eos_token == "<|endoftext|>"


def test_the_tokenizer_of_gpt_neox_has_the_published_ids():
    path = ROOT.parent / "shared" / "data" / "20B_tokenizer.json"
    if not path.exists():
        pytest.skip("../shared/data does not exist")
    tokenizer = load_tokenizer(str(path))
    assert (tokenizer.vocabulary, tokenizer.eos_token_id, tokenizer.eos_token) == (
        50_277,
        0,
        "<|endoftext|>",
    )
    assert tokenizer.encoder.encode("Hello world").ids == [12092, 1533]


def test_shard_folders_of_different_tokenizers_are_refused(corpora):
    index = read_shard_index(corpora / "upstream" / "train")
    other_info = index.tokenizer.model_copy(update={"digest": "f00" + index.tokenizer.digest})
    other = index.model_copy(update={"tokenizer": other_info})
    check_same_tokenizer({"a": index, "b": index})
    with pytest.raises(
        DataError, match=r"^c: written with a different tokenizer than a: 377 entries, "
    ):
        check_same_tokenizer({"a": index, "b": index, "c": other})


def test_a_vocabulary_larger_than_the_embedding_is_refused():
    info = TokenizerInfo(digest="0", vocabulary=512, eos=0, eos_token="e")
    check_vocabulary_fits(ARCHITECTURE, info, "data/a")
    info = info.model_copy(update={"vocabulary": 513})
    with pytest.raises(
        CheckpointError, match=r"^data/a: its tokenizer has 513 entries, and the model only 512 "
    ):
        check_vocabulary_fits(ARCHITECTURE, info, "data/a")


def test_a_context_longer_than_the_positions_is_refused():
    check_context_fits(ARCHITECTURE, 64)
    with pytest.raises(CheckpointError, match="65 tokens is longer than the model's 64 positions"):
        check_context_fits(ARCHITECTURE, 65)


def test_a_model_with_another_tokenizer_is_refused(corpora, other_model, tokenizer_info, tmp_path):
    check_tokenizer_matches(corpora / "upstream" / "train", tokenizer_info, "data/a")
    check_tokenizer_matches(tmp_path, tokenizer_info, "data/a")  # it has no tokenizer.json
    with pytest.raises(CheckpointError, match=r"^data/a: not written with the tokenizer of"):
        check_tokenizer_matches(other_model, tokenizer_info, "data/a")


def test_all_three_checks_of_a_model_against_shards_are_made(
    corpora, other_model, tokenizer_info, tmp_path
):
    small = ARCHITECTURE.model_copy(update={"vocabulary": 376})
    check_model_matches_shards(ARCHITECTURE, None, tokenizer_info, "data/a", 64)
    for architecture, directory, context, message in (
        (small, None, 64, "376 embedding rows"),
        (ARCHITECTURE, None, 65, "64 positions"),
        (ARCHITECTURE, other_model, 64, "tokenizer of"),
    ):
        with pytest.raises(CheckpointError, match=message):
            check_model_matches_shards(architecture, directory, tokenizer_info, "data/a", context)
