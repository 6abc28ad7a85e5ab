"""Bytes and seconds of a step's collectives, by hand."""

import pytest

from rewarm.estimates.communication import (
    H100_LINKS,
    Collective,
    LinkSpeeds,
    collectives_of_step,
    communication_of_step,
)
from rewarm.model.architecture import PRESETS, Architecture

# A layer has 4 · 8² + 4 · 8 + 2 · 8 · 32 + 8 + 32 + 4 · 8 = 872; outside are 2 · 100 · 8 + 2 · 8.
TINY = Architecture(layers=3, hidden=8, heads=1, vocabulary=100, rotary=0.25)
LAYER, ROOT = 4 * 872, 4 * 1616


def sent(gpus, shard, parts):
    return communication_of_step(TINY, gpus=gpus, shard=shard, parts=parts).bytes_sent


def test_replicas_reduce_their_gradient_once_whatever_the_number_of_microbatches():
    assert sent(4, 1, 1) == sent(4, 1, 9) == 2 * (3 * LAYER + ROOT) * 3 // 4


def test_shards_gather_layers_twice_and_the_root_once_in_every_microbatch():
    one = (3 * 3 * LAYER + 2 * ROOT) * 3 // 4  # with the reduce-scatter
    assert sent(4, 4, 1) == one
    assert sent(4, 4, 5) == 5 * one


def test_groups_of_shards_reduce_a_part_of_the_gradient_between_them():
    within = 5 * (3 * 3 * LAYER + 2 * ROOT) // 2
    assert sent(6, 2, 5) == within + 2 * (3 * LAYER + ROOT) // 2 * 2 // 3


def test_one_gpu_sends_nothing():
    assert communication_of_step(TINY, gpus=1, shard=1, parts=3) == (0, 0)


def test_a_410m_gradient_on_eight_gpus():
    """2.8 GB in about 8 ms: 2 · 4 · 405,334,016 · 7 / 8 at 370 GB/s, and 25 times 14 steps."""
    communication = communication_of_step(PRESETS["pythia-410m"], gpus=8, shard=1, parts=9)
    assert communication.bytes_sent == 2 * 4 * 405_334_016 * 7 // 8
    assert communication.seconds == pytest.approx(0.007668 + 25 * 14 * 3.4e-6, abs=1e-6)


def test_gathers_of_12b_on_eight_gpus():
    """2 · 4 · 11.327 B in the layers and 4 · 0.519 B outside, · 7 / 8, at 370 GB/s."""
    collectives = collectives_of_step(PRESETS["pythia-12b"], gpus=8, shard=8, parts=1)
    seconds = sum(c.seconds(H100_LINKS) for c in collectives if c.kind == "all-gather")
    assert seconds == pytest.approx(0.2192 + 73 * 7 * 3.4e-6, abs=0.0001)


@pytest.mark.parametrize(
    ("gpus", "stride", "total", "nodes"),
    [
        (8, 1, 8, 1),
        (3, 2, 6, 1),
        (4, 1, 64, 1),
        (2, 4, 64, 1),
        (3, 1, 12, 2),  # GPUs 6, 7 and 8 are on two nodes
        (64, 1, 64, 8),
        (8, 8, 64, 8),
        (16, 4, 64, 8),
    ],
)
def test_nodes_that_a_collective_spans(gpus, stride, total, nodes):
    assert H100_LINKS.nodes_of(gpus, stride, total) == nodes


LINKS = LinkSpeeds(8, 100.0, 10.0, 1.0, 5.0)


@pytest.mark.parametrize(
    ("collective", "seconds"),
    [
        # 7 / 8 of 800 bytes at 100 bytes/s; 7 steps of 1 s.
        (Collective("all-gather", 1, 800, 8, 1), 7 + 7),
        (Collective("reduce-scatter", 3, 800, 8, 1), 3 * (7 + 7)),
        (Collective("all-reduce", 1, 800, 8, 1), 14 + 14),
        # 15 / 16 of 1,600 bytes through 8 cards of 10 bytes/s; 14 steps of 1 s and 1 of 5 s.
        (Collective("all-gather", 1, 1600, 16, 2), 1500 / 80 + 14 + 5),
        # Through one card of a node each, at 10 bytes/s; a tree of 3 levels, up and down.
        (Collective("all-reduce", 1, 800, 8, 8), 1400 / 10 + 6 * 5),
    ],
)
def test_seconds(collective, seconds):
    assert collective.seconds(LINKS) == pytest.approx(seconds)
