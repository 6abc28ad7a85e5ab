import random
import shutil
import threading
from itertools import islice, pairwise

import numpy as np
import pytest
from shard_folders import CONTEXT, open_corpus

from rewarm.data.batch_loader import BatchLoader
from rewarm.errors import DataError


def loader(corpora, position=None, seed=1, **processes):
    weights = {"upstream": [(0, 0.3)], "downstream": [(0, 0.6)], "third": [(0, 0.1)]}
    return BatchLoader(
        [open_corpus(corpora, name, seed=seed) for name in weights],
        weights,
        sequences=8,
        position=position,
        **processes,
    )


def digest_of_all(positions):
    """Returns the digest of the whole stream, given the positions of all processes."""
    return f"{sum(int(position.digest, 16) for position in positions) % 2**128:032x}"


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_processes_share_the_rows_of_one_process(corpora, world_size):
    alone = list(islice(loader(corpora).batches(0), 5))
    ranks = [
        list(islice(loader(corpora, rank=rank, world_size=world_size).batches(0), 5))
        for rank in range(world_size)
    ]
    for step, batch in enumerate(alone):
        for rank in range(world_size):
            assert np.array_equal(ranks[rank][step].tokens, batch.tokens[rank::world_size])
            assert ranks[rank][step].position.blocks_read == batch.position.blocks_read
        digest = digest_of_all(batches[step].position for batches in ranks)
        assert digest == batch.position.digest


def test_resume_at_any_step_continues_token_for_token(corpora):
    uninterrupted = list(islice(loader(corpora).batches(0), 60))
    for step in (1, 7, 31, 59):
        resumed = next(loader(corpora, uninterrupted[step - 1].position).batches(0))
        assert np.array_equal(resumed.tokens, uninterrupted[step].tokens)
        assert resumed.position == uninterrupted[step].position


def test_epochs_end_at_different_times_and_nothing_is_lost(corpora):
    counts = list(islice(loader(corpora).batches(0), 60))[-1].position.blocks_read
    assert sum(counts.values()) == 480
    assert counts == {"upstream": 144, "downstream": 288, "third": 48}


def test_digests_of_different_streams_differ(corpora):
    first = next(loader(corpora).batches(0))
    assert first.position.digest == next(loader(corpora).batches(0)).position.digest
    assert first.position.digest != next(loader(corpora, seed=2).batches(0)).position.digest


def test_batches_are_inputs_and_targets(corpora):
    tokens = next(loader(corpora).batches(0)).tokens
    assert tokens.shape == (8, CONTEXT + 1)
    assert tokens.dtype == np.int64


def test_transform_is_applied_and_does_not_change_the_digest(corpora):
    batch = next(loader(corpora).batches(1))
    transformed = next(loader(corpora).batches(1, transform=lambda tokens: tokens + 1))
    assert np.array_equal(transformed.tokens, batch.tokens + 1)
    assert transformed.position == batch.position


def test_shards_of_batch_are_the_shards_of_its_blocks(corpora):
    batches = loader(corpora).batches(0)
    before = list(islice(batches, 7))[-1].position
    after = next(batches).position
    expected = {
        name: {
            open_corpus(corpora, name).shard_of_block(n)
            for n in range(before.blocks_read[name], after.blocks_read[name])
        }
        for name in before.blocks_read
    }
    assert loader(corpora).shards_of_batch(before) == {
        name: sorted(shards) for name, shards in expected.items() if shards
    }


CHANGING = {
    "upstream": [(0, 0.05), (200 * 8, 0.3)],  # from step 201 on
    "downstream": [(0, 0.9)],
    "third": [(0, 0.05)],
}


def changing_batches(corpora, *, rank, world_size, workers, position):
    """Returns the batches of one process; the weights of the corpora change during the run."""
    parts = [open_corpus(corpora, name, lanes=3) for name in CHANGING]
    return BatchLoader(
        parts, CHANGING, sequences=8, position=position, rank=rank, world_size=world_size
    ).batches(workers)


@pytest.mark.slow
def test_one_digest_for_any_number_of_processes_threads_and_resumes(corpora):
    """Each combination reads the same 400 batches, which the digest proves."""
    steps = 400
    whole = changing_batches(corpora, rank=0, world_size=1, workers=0, position=None)
    alone = list(islice(whole, steps))
    last = alone[-1].position
    # The downstream corpus has begun a second epoch.
    assert last.blocks_read["downstream"] > open_corpus(corpora, "downstream").blocks_per_epoch
    assert abs(last.blocks_read["upstream"] - 8 * (200 * 0.05 + 200 * 0.3 / 1.25)) < 1
    resumes = sorted(random.Random(1).sample(range(1, steps), 20))
    for world_size in (1, 2, 4, 8):
        for workers in (0, 1, 3):
            position = None
            for begin, end in pairwise([0, *resumes, steps]):
                positions = []
                for rank in range(world_size):
                    batches = changing_batches(
                        corpora,
                        rank=rank,
                        world_size=world_size,
                        workers=workers,
                        position=position,
                    )
                    for step in range(begin, end):
                        batch = next(batches)
                        if (step, workers) == (end - 1, 3):
                            rows = alone[step].tokens[rank::world_size]
                            assert np.array_equal(batch.tokens, rows)
                    batches.close()
                    positions.append(batch.position)
                position = positions[0]._replace(digest=digest_of_all(positions))
                assert position == alone[end - 1].position
            assert position == last


def test_corpora_of_different_tokenizers_are_refused(corpora, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(corpora / "third", other / "third")
    path = other / "third" / "train" / "index.json"
    path.write_text(path.read_text().replace('"digest": "', '"digest": "f00'))
    with pytest.raises(DataError, match="written with a different tokenizer"):
        BatchLoader(
            [open_corpus(corpora, "upstream"), open_corpus(other, "third")],
            {"upstream": [(0, 1)], "third": [(0, 1)]},
            sequences=2,
        )


def test_a_position_of_other_corpora_is_refused(corpora):
    position = next(loader(corpora).batches(0)).position
    with pytest.raises(DataError, match="position is of corpora upstream, downstream, third, and"):
        BatchLoader(
            [open_corpus(corpora, "upstream")],
            {"upstream": [(0, 1)]},
            sequences=2,
            position=position,
        )


def test_closing_the_batches_stops_the_threads(corpora):
    batches = loader(corpora).batches(2)
    next(batches)
    batches.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("rewarm-loader")]
