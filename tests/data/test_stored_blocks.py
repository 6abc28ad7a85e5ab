import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from shard_folders import documents_of, flip_bit

from rewarm.data.shard_source import ShardSource
from rewarm.data.stored_blocks import StoredBlocks
from rewarm.errors import DataError


@pytest.fixture
def folder(corpora):
    return corpora / "upstream" / "val"


def test_stored_blocks_are_the_documents_joined(folder):
    joined = np.concatenate(documents_of(folder))
    blocks = StoredBlocks(ShardSource(str(folder)), context=50)
    assert len(blocks) == len(list(blocks)) == (len(joined) - 1) // 50
    for number, block in enumerate(blocks):
        assert np.array_equal(block, joined[number * 50 : number * 50 + 51])


def test_stored_blocks_cover_at_most_the_given_tokens(folder):
    blocks = StoredBlocks(ShardSource(str(folder)), context=50, tokens=170)
    assert len(blocks) == len(list(blocks)) == 3
    assert blocks.tokens == 150


@pytest.mark.parametrize("tokens", [50, 170, 1000, None])
def test_open_shards_are_those_that_hold_the_blocks(folder, tokens):
    blocks = StoredBlocks(ShardSource(str(folder)), context=50, tokens=tokens)
    list(blocks)
    assert len(blocks._opened_shards) == blocks.most_open_shards


def test_stored_blocks_can_be_read_again_after_the_files_are_gone(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "val"))
    blocks = StoredBlocks(ShardSource(str(copy)), context=50)
    first = [block.tolist() for block in blocks]
    for path in copy.glob("*.tar"):
        path.unlink()
    assert [block.tolist() for block in blocks] == first


def test_less_than_one_block_is_refused(folder):
    with pytest.raises(DataError, match=r"on 40 tokens, less than one sequence of 50"):
        StoredBlocks(ShardSource(str(folder)), context=50, tokens=40)
    with pytest.raises(DataError, match=r"context \+ 1 = 1,000,001"):
        StoredBlocks(ShardSource(str(folder)), context=1_000_000)


def test_a_damaged_shard_is_named_when_it_is_read(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "val"))
    flip_bit(copy / "00000.tar")
    blocks = StoredBlocks(ShardSource(str(copy)), context=50)
    with pytest.raises(DataError, match=r"00000\.tar: changed since it was written"):
        list(blocks)


def test_a_token_outside_the_vocabulary_is_refused(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "val"))
    index = json.loads((copy / "index.json").read_text())
    index["tokenizer"]["vocabulary"] = 1
    (copy / "index.json").write_text(json.dumps(index))
    blocks = StoredBlocks(ShardSource(str(copy)), context=50)
    with pytest.raises(DataError, match=r"00000\.tar: token \d+ at position 0 is outside"):
        list(blocks)
