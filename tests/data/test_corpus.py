import json
import random
import shutil
from collections import Counter

import numpy as np
import pytest
from shard_folders import CONTEXT, documents_of, open_corpus

from rewarm.data.corpus import Corpus, check_epochs
from rewarm.data.shard_format import ShardIndex, ShardInfo, TokenizerInfo
from rewarm.data.shard_source import ShardSource
from rewarm.errors import DataError


def test_a_block_is_context_plus_one_and_shares_one_token_with_the_next(corpora):
    corpus = open_corpus(corpora, "upstream")
    joined = corpus._open(0, 0)
    first, second = joined.block(0, CONTEXT), joined.block(1, CONTEXT)
    assert len(first) == CONTEXT + 1
    assert first[-1] == second[0]
    shard_info = corpus.index.shards[0]
    documents = [d.tolist() for d in documents_of(corpus.source.folder)[: shard_info.documents]]
    tokens = [
        token
        for block in range((shard_info.tokens - 1) // CONTEXT)
        for token in joined.block(block, CONTEXT)[:-1].tolist()
    ]
    # An independent check: the joined tokens are the documents, each once, in some order.
    remaining = Counter(map(tuple, documents))
    start = 0
    while 0 in tokens[start:]:
        end = tokens.index(0, start) + 1
        remaining[tuple(tokens[start:end])] -= 1
        start = end
    assert min(remaining.values()) >= 0
    assert sum(remaining.values()) <= 2  # in the incomplete block at the end


def test_an_epoch_gives_every_block_once_and_the_next_epoch_in_another_order(corpora):
    corpus = open_corpus(corpora, "downstream")
    windows = -(-len(corpus.index.shards) // 2)
    assert windows > 2
    size = corpus.blocks_per_epoch
    first, second = (
        [corpus.block(n).tobytes() for n in range(epoch * size, (epoch + 1) * size)]
        for epoch in range(2)
    )
    assert len(set(first)) == size
    assert first != second


def test_every_block_of_every_shard_is_read_once_per_epoch(corpora):
    corpus = open_corpus(corpora, "downstream")
    read = Counter(corpus.shard_of_block(n) for n in range(corpus.blocks_per_epoch))
    assert read == {s.name: (s.tokens - 1) // CONTEXT for s in corpus.index.shards}


def test_any_block_can_be_read_at_once(corpora):
    in_order = open_corpus(corpora, "upstream")
    sequence = [in_order.block(n).tolist() for n in range(3 * in_order.blocks_per_epoch)]
    for n in random.Random(0).sample(range(len(sequence)), 40):
        assert open_corpus(corpora, "upstream").block(n).tolist() == sequence[n]


def test_resuming_opens_one_window_of_shards(corpora):
    corpus = open_corpus(corpora, "downstream", lanes=2)
    corpus.block(corpus.blocks_per_epoch * 9 // 10)
    assert [len(window.opened_shards) for window in corpus._windows] == [1]
    assert len(corpus._windows[0].order.shards) <= 2


def test_sequential_is_the_stored_order(corpora):
    folder = corpora / "upstream" / "train"
    corpus = Corpus(
        "upstream", ShardSource(str(folder)), context=CONTEXT, seed=1, lanes=4, order="sequential"
    )
    documents, expected = documents_of(folder), []
    for shard_info in corpus.index.shards:
        joined = np.concatenate(documents[: shard_info.documents])
        documents = documents[shard_info.documents :]
        expected += [
            joined[start : start + CONTEXT + 1].tolist()
            for start in range(0, len(joined) - CONTEXT, CONTEXT)
        ]
    assert [corpus.block(n).tolist() for n in range(corpus.blocks_per_epoch)] == expected
    assert corpus.block(corpus.blocks_per_epoch).tolist() == expected[0]  # the next epoch


def test_skipped_blocks_are_left_out(corpora):
    source = ShardSource(str(corpora / "upstream" / "train"))
    rest = Corpus("upstream", source, context=CONTEXT, seed=1, lanes=2, skip=37)
    corpus = open_corpus(corpora, "upstream")
    for n in (0, 1, corpus.blocks_per_epoch):
        assert rest.block(n).tolist() == corpus.block(37 + n).tolist()


def test_a_shard_replaced_between_two_epochs_is_verified_again(corpora, tmp_path):
    folder = shutil.copytree(corpora / "third" / "train", tmp_path / "third" / "train")
    corpus = open_corpus(tmp_path, "third", lanes=1)
    for n in range(corpus.blocks_per_epoch):
        corpus.block(n)
    for path in folder.glob("*.tar"):
        damaged = path.read_bytes()[::-1]
        path.unlink()
        path.write_bytes(damaged)
    with pytest.raises(DataError, match="its sha256 differs from the index"):
        corpus.block(corpus.blocks_per_epoch)


def test_open_shards_are_those_of_two_windows(corpora):
    corpus = open_corpus(corpora, "downstream", lanes=2)
    assert corpus.most_open_shards == 4
    most = 0
    for n in range(2 * corpus.blocks_per_epoch):
        corpus.block(n)
        most = max(most, sum(len(window.opened_shards) for window in corpus._windows))
    assert most == 4
    assert open_corpus(corpora, "downstream", lanes=999).most_open_shards == 2 * len(
        corpus.index.shards
    )


def test_too_little_data_is_refused_with_the_arithmetic(corpora):
    with pytest.raises(
        DataError, match=r"too little data for corpus 'third'.*context \+ 1 = 10,001"
    ):
        open_corpus(corpora, "third", context=10_000)


def test_a_token_outside_the_vocabulary_is_refused(corpora, tmp_path):
    shutil.copytree(corpora / "third", tmp_path / "third")
    path = tmp_path / "third" / "train" / "index.json"
    index = json.loads(path.read_text())
    index["tokenizer"]["vocabulary"] = 1
    path.write_text(json.dumps(index))
    with pytest.raises(DataError, match="outside the tokenizer's vocabulary of 1;"):
        open_corpus(tmp_path, "third").block(0)


def test_more_epochs_than_allowed_are_refused_with_the_arithmetic():
    shard_info = ShardInfo(
        name="0.tar", documents=1, tokens=101, bytes=1000, sha256="0" * 64
    )  # 10 blocks of 10 + 1 tokens
    tokenizer_info = TokenizerInfo(digest="0", vocabulary=9, eos=0, eos_token="e")
    index = ShardIndex(tokenizer=tokenizer_info, dtype="uint16", shards=[shard_info])
    check_epochs("a", index, 20, context=10, max_epochs=2)
    check_epochs("a", index, 21, context=10, max_epochs=None)
    with pytest.raises(
        DataError, match=r"needs 210 tokens of it and it has 100: 2\.10 epochs, .* is 2;"
    ):
        check_epochs("a", index, 21, context=10, max_epochs=2)
