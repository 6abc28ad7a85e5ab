import numpy as np
import pytest

from rewarm.data.sharding import shard_folder
from rewarm.data.sharding.shard_folder import ShardWriter
from rewarm.data.tokenizer import load_tokenizer
from rewarm.errors import DataError


@pytest.fixture
def tokenizer(tokenizer_json):
    return load_tokenizer(str(tokenizer_json))


def test_notes_are_appended_for_each_shard(tmp_path, tokenizer, monkeypatch):
    """Writing them anew for each shard takes time that grows with the square of their number."""
    written = []
    monkeypatch.setattr(
        shard_folder, "atomic_write", lambda path, content: written.append(len(content))
    )
    with ShardWriter(tmp_path, tokenizer, shard_tokens=2) as writer:
        for _ in range(50):
            writer.write_document(np.array([1, 0]))
        assert not written
    assert (tmp_path / "finished.jsonl").read_text().count("\n") == 50


def test_a_token_outside_the_vocabulary_is_not_written(tmp_path, tokenizer):
    for token in (tokenizer.vocabulary, 70_000, -1):
        with (
            ShardWriter(tmp_path, tokenizer, 100) as writer,
            pytest.raises(DataError, match=rf"token {token} at position 1 is outside"),
        ):
            writer.write_document(np.array([0, token]))
    assert not list(tmp_path.iterdir())
