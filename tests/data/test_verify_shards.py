import json
import re

import pytest
from shard_folders import flip_bit
from text_corpora import write_texts

from rewarm.data.sharding.shard_writer import write_shards
from rewarm.data.tokenizer import load_tokenizer
from rewarm.data.verify_shards import find_overlap, verify_shards
from rewarm.errors import DataError


@pytest.fixture
def tokenizer(tokenizer_json):
    return load_tokenizer(str(tokenizer_json))


def test_intact_train_and_val_folders_have_no_problems(corpora):
    reports = verify_shards(corpora / "upstream")
    assert [report.folder.name for report in reports] == ["train", "val"]
    assert not any(report.problems for report in reports)


def test_every_damaged_shard_is_named(tmp_path, tokenizer):
    text = write_texts(tmp_path / "a.jsonl", "upstream", documents=60)
    write_shards([text], tmp_path / "out", tokenizer, shard_tokens=1000)
    for name in ("00001.tar", "00002.tar"):
        flip_bit(tmp_path / "out" / name)
    (report,) = verify_shards(tmp_path / "out")
    assert len(report.shard_index.shards) > 3
    first, second = report.problems
    assert "00001.tar: changed since it was written" in first
    assert "00002.tar: changed since it was written" in second


def test_a_token_outside_the_vocabulary_is_named(tmp_path, tokenizer):
    text = write_texts(tmp_path / "a.jsonl", "upstream", documents=3)
    write_shards([text], tmp_path / "out", tokenizer)
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    index["tokenizer"]["vocabulary"] = 1
    (tmp_path / "out" / "index.json").write_text(json.dumps(index))
    (report,) = verify_shards(tmp_path / "out")
    assert re.search(
        r"00000\.tar: token \d+ at position 0 is outside the tokenizer's vocabulary of 1;",
        report.problems[0],
    )


def test_a_folder_without_an_index_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"an empty folder; expected .* \(index\.json\)"):
        verify_shards(tmp_path)
    (tmp_path / "00000.tar").touch()
    with pytest.raises(DataError, match=r"something else; expected .* \(index\.json\)"):
        verify_shards(tmp_path)


def test_overlap_finds_equal_documents_in_two_folders(tmp_path, tokenizer):
    lines = write_texts(tmp_path / "a.jsonl", "upstream", documents=20).read_text().splitlines()
    (tmp_path / "b.jsonl").write_text("\n".join([*lines[5:8], '{"text": "of its own"}']) + "\n")
    for name in "ab":
        write_shards([tmp_path / f"{name}.jsonl"], tmp_path / name, tokenizer, shard_tokens=300)
    pairs = find_overlap(tmp_path / "a", tmp_path / "b")
    assert len(pairs) == 3
    assert [second.rsplit(":")[-1] for _, second in pairs] == ["0", "1", "2"]
    assert len(find_overlap(tmp_path / "b", tmp_path / "b")) == 4
