import json

import pytest
from repository import ROOT

from rewarm.data.tokenizer import load_tokenizer
from rewarm.errors import DataError


def test_one_tokenizer_in_two_spellings_is_one(tokenizer_json, tmp_path):
    data = json.loads(tokenizer_json.read_text())
    data["model"]["merges"] = [  # older files spell a merge as one string
        m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]
    ]
    data["truncation"] = None
    other = tmp_path / "tokenizer.json"
    other.write_text(json.dumps(data, indent=4))
    assert load_tokenizer(str(other)).digest == load_tokenizer(str(tokenizer_json)).digest


def test_another_merge_order_is_another_tokenizer(tokenizer_json, tmp_path):
    data = json.loads(tokenizer_json.read_text())
    data["model"]["merges"].reverse()
    other = tmp_path / "tokenizer.json"
    other.write_text(json.dumps(data))
    assert load_tokenizer(str(other)).digest != load_tokenizer(str(tokenizer_json)).digest


def test_the_end_of_text_token_is_found_or_asked_for(tokenizer_json, tmp_path):
    assert load_tokenizer(str(tokenizer_json)).eos == 0
    data = json.loads(tokenizer_json.read_text().replace("<|endoftext|>", "[STOP]"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match=r"no end-of-text token .* name it with --eos"):
        load_tokenizer(str(tmp_path))
    assert load_tokenizer(str(tmp_path), eos="[STOP]").eos == 0
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "[STOP]"}}')
    assert load_tokenizer(str(tmp_path)).eos_token == "[STOP]"


@pytest.mark.parametrize("name", ["nowhere/tokenizer.json", "/no/such/folder", "a b"])
def test_a_missing_tokenizer_is_named(name):
    with pytest.raises(DataError, match="no such file"):
        load_tokenizer(name)


def test_a_damaged_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="not a tokenizer that can be read"):
        load_tokenizer(str(tmp_path))


def test_the_neox_tokenizer_is_the_one_we_know():

    path = ROOT.parent / "shared" / "data" / "20B_tokenizer.json"
    if not path.exists():
        pytest.skip("../shared/data is not here")
    said = load_tokenizer(str(path))
    assert (said.vocabulary, said.eos, said.eos_token) == (50_277, 0, "<|endoftext|>")
    assert said.encoder.encode("Hello world").ids == [12092, 1533]
