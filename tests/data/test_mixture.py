from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from rewarm.data.mixture import Mixture


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
