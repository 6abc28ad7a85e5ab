from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from rewarm.data.mixture import Mixture, merge_weights


@given(st.data(), st.integers(1, 6), st.integers(1, 300))
def test_every_corpus_stays_within_one_block_of_its_exact_share(data, corpora, blocks):
    """Also if the weights change during the run, and some are 0 for a while."""
    changes = [0, *sorted(data.draw(st.sets(st.integers(1, 300), max_size=3)))]
    weights = {
        str(corpus): [
            (first, data.draw(st.integers(0 if corpus else 1, 999)) / 8) for first in changes
        ]
        for corpus in range(corpora)
    }
    mixture, counts = Mixture(weights), dict.fromkeys(weights, 0)
    exact = dict.fromkeys(weights, Fraction(0))
    for block in range(blocks):
        current = {
            name: [weight for first, weight in pieces if first <= block][-1]
            for name, pieces in weights.items()
        }
        for name in weights:
            exact[name] += Fraction(current[name]) / Fraction(sum(current.values()))
        counts[mixture.next_corpus(counts)] += 1
        assert all(abs(counts[name] - exact[name]) < 1 for name in weights)


def test_a_weight_of_5_percent_gives_one_block_in_twenty():
    mixture = Mixture({"new": [(0, 0.95)], "old": [(0, 0.05)]})
    counts, order = {"new": 0, "old": 0}, []
    for _ in range(1000):
        order.append(mixture.next_corpus(counts))
        counts[order[-1]] += 1
    assert all(order[i : i + 20].count("old") == 1 for i in range(0, 1000, 20))


def test_exact_share_follows_a_change_of_weights():
    mixture = Mixture({"new": [(0, 1)], "old": [(0, 0), (10, 3)]})
    assert mixture.exact_shares(10) == {"new": 10, "old": 0}
    assert mixture.exact_shares(13) == {"new": Fraction(43, 4), "old": Fraction(9, 4)}


@given(st.data(), st.integers(1, 5), st.integers(0, 99), st.integers(1, 200))
def test_new_weights_hold_from_where_they_start(data, corpora, start_block, blocks):
    """They owe nothing for the blocks before, whichever corpora these were read from."""
    cuts = sorted(data.draw(st.lists(st.integers(0, start_block), min_size=4, max_size=4)))
    edges = [0, *cuts[: corpora - 1], start_block]
    start = {str(i): edges[i + 1] - edges[i] for i in range(corpora)}
    weights = {name: [(0, 1), (start_block // 2, data.draw(st.integers(1, 99)))] for name in start}
    mixture, counts = Mixture(weights, start), dict(start)
    total = sum(pieces[-1][1] for pieces in weights.values())
    for block in range(1, blocks + 1):
        counts[mixture.next_corpus(counts)] += 1
        for name, pieces in weights.items():
            exact = start[name] + Fraction(block * pieces[-1][1], total)
            assert abs(counts[name] - exact) < 1
            assert mixture.exact_shares(start_block + block)[name] == exact


def test_merged_weights_leave_out_what_held_before():
    weights = {"new": [(0, 1), (10, 3)], "old": [(0, 1), (20, 1)]}
    half, three = {"new": Fraction(1, 2), "old": Fraction(1, 2)}, Fraction(3, 4)
    changed = {"new": three, "old": 1 - three}
    assert merge_weights(weights) == [(0, half), (10, changed), (20, changed)]
    assert merge_weights(weights, 15) == [(15, changed), (20, changed)]
