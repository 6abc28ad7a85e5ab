"""How a batch is divided among processes."""

import pytest

from rewarm.recipe.batch_split import divisors, microbatch_on_cpu, split_batch


@pytest.mark.parametrize(
    ("sequences", "processes", "microbatch", "parts", "size", "useful"),
    [
        (20, 1, 10, 2, 10, 1.0),
        (1104, 8, 23, 6, 23, 1.0),  # the paper's batch: 138 sequences for each of 8 GPUs
        (1104, 8, 16, 9, 16, 1104 / 1152),  # 95.8 %
        (20, 2, 8, 2, 5, 1.0),  # two parts of 5 rather than 8 and 2
        (10, 4, 8, 1, 3, 10 / 12),
        (8, 8, 8, 1, 1, 1.0),
        (5, 4, 1, 2, 1, 5 / 8),
    ],
)
def test_batch_is_divided_with_as_little_padding_as_possible(
    sequences, processes, microbatch, parts, size, useful
):
    split = split_batch(sequences, processes, microbatch)
    assert (split.parts, split.microbatch) == (parts, size)
    assert split.microbatch <= microbatch
    assert split.useful == pytest.approx(useful)
    assert split.computed >= sequences


@pytest.mark.parametrize("number", [1, 2, 12, 97, 1104])
def test_divisors(number):
    assert divisors(number) == [n for n in range(1, number + 1) if number % n == 0]


@pytest.mark.parametrize(
    ("sequences", "context", "microbatch"),
    [(16, 128, 16), (1104, 128, 16), (100, 1000, 2), (97, 128, 1), (8, 4096, 1)],
)
def test_a_cpu_runs_at_most_2048_tokens_at_once(sequences, context, microbatch):
    assert microbatch_on_cpu(sequences, context) == microbatch
