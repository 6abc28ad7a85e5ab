import json
import random
import shutil
import threading
from collections import Counter
from fractions import Fraction
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewarm.data.batch_loader import BatchLoader, _generator, combine
from rewarm.data.corpus import Corpus, blocks_in_stored_order
from rewarm.data.mixture import Mixture
from rewarm.data.shard_format import Shard, read_shard_index
from rewarm.data.shard_source import ShardSource
from rewarm.errors import DataError

CONTEXT = 16


def corpus(corpora, name, seed=1, lanes=2, context=CONTEXT):
    return Corpus(
        name, ShardSource(str(corpora / name / "train")), context=context, seed=seed, lanes=lanes
    )


def stream(corpora, position=None, seed=1, **processes):
    weights = {"upstream": [(0, 0.3)], "downstream": [(0, 0.6)], "third": [(0, 0.1)]}
    return BatchLoader(
        [corpus(corpora, name, seed) for name in weights],
        weights,
        sequences=8,
        position=position,
        **processes,
    )


@given(st.data(), st.integers(1, 6), st.integers(1, 300))
def test_no_corpus_is_ever_a_whole_block_off(data, corpora, blocks):
    """Also when the weights change on the way, and some are 0 for a while."""
    changes = [0, *sorted(data.draw(st.sets(st.integers(1, 300), max_size=3)))]
    weights = {
        str(c): [(first, data.draw(st.integers(0 if c else 1, 999)) / 8) for first in changes]
        for c in range(corpora)
    }
    mix, taken = Mixture(weights), dict.fromkeys(weights, 0)
    exact = dict.fromkeys(weights, Fraction(0))
    for block in range(blocks):
        now = {name: [w for first, w in of if first <= block][-1] for name, of in weights.items()}
        for name in weights:
            exact[name] += Fraction(now[name]) / Fraction(sum(now.values()))
        taken[mix.next(taken)] += 1
        assert all(abs(taken[name] - exact[name]) < 1 for name in weights)


def test_five_percent_is_one_block_in_twenty():
    mix, taken = Mixture({"new": [(0, 0.95)], "old": [(0, 0.05)]}), {"new": 0, "old": 0}
    order = []
    for _ in range(1000):
        order.append(mix.next(taken))
        taken[order[-1]] += 1
    assert all(order[i : i + 20].count("old") == 1 for i in range(0, 1000, 20))


@pytest.mark.parametrize("world", [2, 4, 8])
def test_processes_share_the_rows_of_one_process(corpora, world):
    alone = list(islice(stream(corpora).batches(0), 5))
    parts = [list(islice(stream(corpora, rank=r, world=world).batches(0), 5)) for r in range(world)]
    for step, whole in enumerate(alone):
        for rank in range(world):
            assert np.array_equal(parts[rank][step].tokens, whole.tokens[rank::world])
            assert parts[rank][step].position.blocks == whole.position.blocks
        assert combine(part[step].position.digest for part in parts) == whole.position.digest


def test_a_block_is_context_plus_one_and_shares_one_token_with_the_next(corpora):
    one = corpus(corpora, "upstream")
    index = one.index
    joined = one._open(0, 0)
    first, second = joined.block(0, CONTEXT), joined.block(1, CONTEXT)
    assert len(first) == CONTEXT + 1
    assert first[-1] == second[0]
    documents = [d.tolist() for d in Shard(one.place.folder, index.shards[0], index.dtype)]
    whole = [
        token
        for block in range((index.shards[0].tokens - 1) // CONTEXT)
        for token in joined.block(block, CONTEXT)[:-1].tolist()
    ]
    # Independent of the stream: the joined tokens are the documents, each once, in some order.
    left = Counter(map(tuple, documents))
    at = 0
    while at < len(whole):
        end = whole.index(0, at) + 1 if 0 in whole[at:] else None
        if end is None:
            break
        left[tuple(whole[at:end])] -= 1
        at = end
    assert min(left.values()) >= 0
    assert sum(left.values()) <= 2  # the tail that fills no block


def test_an_epoch_gives_every_block_once_and_the_next_in_another_order(corpora):
    one = corpus(corpora, "downstream")
    windows = -(-len(one.index.shards) // 2)
    assert windows > 2
    epochs = [
        [one.block(n).tobytes() for n in range(e * one.blocks, (e + 1) * one.blocks)]
        for e in range(2)
    ]
    assert len(set(epochs[0])) == one.blocks
    assert epochs[0] != epochs[1]


def test_every_address_is_visited_once(corpora):
    one = corpus(corpora, "downstream")
    seen = Counter()
    for place in range(one.blocks):
        one.block(place)
        seen[one._window(0, place).address(place)] += 1
    sizes = [(s.tokens - 1) // CONTEXT for s in one.index.shards]
    assert seen == Counter((s, b) for s, size in enumerate(sizes) for b in range(size))


def test_any_block_can_be_reached_at_once(corpora):
    walked = corpus(corpora, "upstream")
    sequence = [walked.block(n).tolist() for n in range(3 * walked.blocks)]
    for n in random.Random(0).sample(range(len(sequence)), 40):
        assert corpus(corpora, "upstream").block(n).tolist() == sequence[n]


def test_resuming_opens_one_window_of_shards(corpora):
    one = corpus(corpora, "downstream", lanes=2)
    one.block(one.blocks * 9 // 10)
    assert [len(window.opened) for window in one._windows] == [1]
    assert len(one._windows[0]._shards) <= 2


def test_resume_at_any_step_continues_token_for_token(corpora):
    straight = list(islice(stream(corpora).batches(0), 60))
    for step in (1, 7, 31, 59):
        resumed = next(stream(corpora, straight[step - 1].position).batches(0))
        assert np.array_equal(resumed.tokens, straight[step].tokens)
        assert resumed.position == straight[step].position


def test_epochs_end_at_different_times_and_nothing_is_lost(corpora):
    taken = list(islice(stream(corpora).batches(0), 60))[-1].position.blocks
    assert sum(taken.values()) == 480
    assert taken == {"upstream": 144, "downstream": 288, "third": 48}


def test_the_digest_tells_streams_apart(corpora):
    first = next(stream(corpora).batches(0))
    assert first.position.digest == next(stream(corpora).batches(0)).position.digest
    assert first.position.digest != next(stream(corpora, seed=2).batches(0)).position.digest


def test_batches_are_inputs_and_targets(corpora):
    tokens = next(stream(corpora).batches(0)).tokens
    assert tokens.shape == (8, CONTEXT + 1)
    assert tokens.dtype == np.int64


def test_the_order_is_the_same_on_every_machine(corpora):
    # Seen once; a change would silently break the resume of every run that began before it.
    order = _generator(17, "upstream", 0, "shards").permutation(8)
    assert order.tolist() == [4, 6, 3, 2, 5, 1, 7, 0]


def test_sequential_is_the_stored_order(corpora):
    folder = corpora / "upstream" / "train"
    one = Corpus(
        "upstream", ShardSource(str(folder)), context=CONTEXT, seed=1, lanes=4, order="sequential"
    )
    index = read_shard_index(folder)
    expected = []
    for facts in index.shards:
        joined = np.concatenate(list(Shard(folder, facts, index.dtype)))
        expected += [
            joined[at : at + CONTEXT + 1].tolist()
            for at in range(0, len(joined) - CONTEXT, CONTEXT)
        ]
    assert [one.block(n).tolist() for n in range(one.blocks)] == expected
    assert one.block(one.blocks).tolist() == expected[0]  # and again from the beginning


CHANGING = {
    "upstream": [(0, 0.05), (200 * 8, 0.3)],  # from step 201 on
    "downstream": [(0, 0.9)],
    "third": [(0, 0.05)],
}


def reader(corpora, *, rank, world, workers, position):
    """One process of a run with three corpora, whose weights change, and several epochs."""
    parts = [corpus(corpora, name, lanes=3) for name in CHANGING]
    stream = BatchLoader(parts, CHANGING, sequences=8, position=position, rank=rank, world=world)
    return stream.batches(workers)


def test_one_digest_for_any_number_of_processes_threads_and_resumes(corpora):
    """400 batches: every combination sees the same tokens, and can prove it."""
    steps = 400
    alone = [
        batch
        for batch, _ in zip(
            reader(corpora, rank=0, world=1, workers=0, position=None), range(steps), strict=False
        )
    ]
    last = alone[-1].position
    assert last.blocks["downstream"] > corpus(corpora, "downstream").blocks  # an epoch ended
    assert abs(last.blocks["upstream"] - 8 * (200 * 0.05 + 200 * 0.3 / 1.25)) < 1
    resumes = sorted(random.Random(1).sample(range(1, steps), 20))
    for world in (1, 2, 4, 8):
        for workers in (0, 1, 3):
            digests, position = [], None
            for begin, end in pairwise([0, *resumes, steps]):
                parts = []
                for rank in range(world):
                    own = reader(
                        corpora, rank=rank, world=world, workers=workers, position=position
                    )
                    for step in range(begin, end):
                        batch = next(own)
                        if (step, workers) == (end - 1, 3):
                            assert np.array_equal(batch.tokens, alone[step].tokens[rank::world])
                    own.close()
                    parts.append(batch.position)
                digests = combine(part.digest for part in parts)
                position = parts[0]._replace(digest=digests)
                assert position == alone[end - 1].position
            assert digests == last.digest


def test_too_little_data_is_refused_with_the_arithmetic(corpora):
    with pytest.raises(
        DataError, match=r"too little data for corpus 'third'.*context \+ 1 = 10,001"
    ):
        corpus(corpora, "third", context=10_000)


def test_corpora_of_different_tokenizers_are_refused(corpora, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(corpora / "third", other / "third")
    path = other / "third" / "train" / "index.json"
    path.write_text(path.read_text().replace('"digest": "', '"digest": "f00'))
    with pytest.raises(DataError, match="written with another tokenizer"):
        BatchLoader(
            [corpus(corpora, "upstream"), corpus(other, "third")],
            {"upstream": [(0, 1)], "third": [(0, 1)]},
            sequences=2,
        )


def test_a_token_outside_the_vocabulary_is_refused(corpora, tmp_path):
    shutil.copytree(corpora / "third", tmp_path / "third")
    path = tmp_path / "third" / "train" / "index.json"
    index = json.loads(path.read_text())
    index["tokenizer"]["vocabulary"] = 1
    path.write_text(json.dumps(index))
    with pytest.raises(DataError, match="outside the tokenizer's vocabulary of 1;"):
        corpus(tmp_path, "third").block(0)


def test_stored_order_is_the_documents_joined(corpora):
    folder = corpora / "upstream" / "val"
    index = read_shard_index(folder)
    joined = np.concatenate(
        [tokens for facts in index.shards for tokens in Shard(folder, facts, index.dtype)]
    )
    blocks = list(blocks_in_stored_order(ShardSource(str(folder)), context=50, tokens=None))
    assert len(blocks) == (len(joined) - 1) // 50
    for number, block in enumerate(blocks):
        assert np.array_equal(block, joined[number * 50 : number * 50 + 51])
    assert len(list(blocks_in_stored_order(ShardSource(str(folder)), context=50, tokens=170))) == 3


def test_a_loader_that_is_closed_leaves_no_thread(corpora):
    batches = stream(corpora).batches(2)
    next(batches)
    batches.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("rewarm-loader")]
