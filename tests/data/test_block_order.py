from collections import Counter

from rewarm.data.block_order import BlockOrder

SIZES = [3, 0, 5, 4, 2]  # blocks of each shard


def block_order(*, seed=17, lanes=2, order="shuffled", sizes=SIZES):
    return BlockOrder(seed=seed, corpus="upstream", shard_blocks=sizes, lanes=lanes, order=order)


def addresses(order, numbers):
    return [order.window_of_block(number).address(number) for number in numbers]


def test_the_order_is_the_same_on_every_machine():
    # Recorded values; a change would silently break the resume of every earlier run.
    assert block_order(sizes=[1] * 8).shard_order(0).tolist() == [4, 6, 3, 2, 5, 1, 7, 0]


def test_every_epoch_has_every_address_once_in_a_new_order():
    order = block_order()
    every = Counter((shard, block) for shard, size in enumerate(SIZES) for block in range(size))
    first, second = (addresses(order, range(e * 14, (e + 1) * 14)) for e in range(2))
    assert Counter(first) == Counter(second) == every
    assert first != second


def test_windows_of_lanes_shards_partition_the_sequence():
    order = block_order(lanes=2)
    windows, number = [], 0
    while number < order.blocks_per_epoch:
        windows.append(order.window_of_block(number))
        assert windows[-1].block_indices.start == number
        number = windows[-1].block_indices.stop
    assert number == sum(SIZES)
    assert [len(window.shards) for window in windows] == [2, 2, 1]
    assert sorted(shard for window in windows for shard in window.shards) == list(range(5))
    for window in windows:
        assert {window.address(n).shard for n in window.block_indices} <= set(window.shards)


def test_sequential_order_is_the_stored_order():
    order = block_order(order="sequential", lanes=4)
    stored = [(shard, block) for shard, size in enumerate(SIZES) for block in range(size)]
    assert addresses(order, range(28)) == stored * 2
    assert order.document_order(1, 0, 4).tolist() == [0, 1, 2, 3]


def test_seed_changes_the_order():
    assert addresses(block_order(), range(14)) != addresses(block_order(seed=18), range(14))
