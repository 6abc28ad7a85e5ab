"""How several GPUs share the paper's batch of 1,104 sequences, by hand."""

import pytest
from repository import ROOT

from rewarm.estimates.gpu_plan import gpu_lines, plan_gpus
from rewarm.model.architecture import PRESETS
from rewarm.recipe.recipe import load_recipe


def planned(gpus, *overrides):
    recipe = load_recipe(ROOT / "recipes" / "pythia-410m-rewarm.yaml", list(overrides))
    return plan_gpus(recipe, PRESETS["pythia-410m"], gpus=gpus, triton=True)


@pytest.mark.parametrize(
    ("gpus", "microbatch", "sequences", "parts", "size", "useful", "microbatches", "other_gpus"),
    [
        (8, 16, 138, 9, 16, 1104 / (8 * 9 * 16), [6, 23], []),
        (8, 23, 138, 6, 23, 1.0, [23], []),
        (6, 16, 184, 12, 16, 1104 / (6 * 12 * 16), [8, 23], []),
        (64, 16, 18, 2, 9, 1104 / (64 * 2 * 9), [], [48, 69]),  # 17.25 sequences each
        (512, 16, 3, 1, 3, 1104 / (512 * 3), [], [368, 552]),
        (1104, 16, 1, 1, 1, 1.0, [1], []),
    ],
)
def test_sequences_microbatches_and_padding(
    gpus, microbatch, sequences, parts, size, useful, microbatches, other_gpus
):
    plan = planned(gpus, f"batch.microbatch={microbatch}")
    assert (plan.sequences, plan.microbatches, plan.microbatch) == (sequences, parts, size)
    assert plan.useful == pytest.approx(useful)
    assert plan.unpadded_microbatches == microbatches
    assert plan.unpadded_gpus == other_gpus


@pytest.mark.parametrize(
    ("gpus", "shard", "sizes"),
    [
        (8, "1", [1, 2, 4, 8]),
        (12, "all", [1, 2, 4, 12]),
        (3, "1", [1, 3]),
        (64, "16", [1, 2, 4, 8, 16, 64]),  # groups within a node of 8, all, and the recipe's
    ],
)
def test_which_shards_are_compared(gpus, shard, sizes):
    plan = planned(gpus, f"parallel.shard={shard}")
    assert [each.shard for each in plan.shards] == sizes
    assert plan.shard == (gpus if shard == "all" else int(shard))


def test_text():
    lines = gpu_lines(planned(8, "parallel.shard=all"), automatic=False)
    assert lines[:2] == [
        ("gpus", "8 × 138 sequences, in 9 microbatches of 16"),
        ("", "95.8% useful, the rest padding; none with batch.microbatch 6 or 23"),
    ]
    headings, texts = zip(*lines[2:], strict=True)
    assert headings == ("shard", "", "", "", "")
    # 2 · 4 · 405,334,016 · 7 / 8 bytes for replicas: tests/estimates/test_communication.py.
    assert texts[0].startswith("1    35.09 GB a GPU,   2.84 GB sent in 8.9 ms")
    assert texts[3].startswith("all ")
    assert texts[3].endswith(" ms  < parallel.shard")
    assert all(len(text) <= 80 - 12 for text in texts)


@pytest.mark.parametrize(
    ("gpus", "first", "second"),
    [
        (512, "512 × 3 sequences at most, all at once",
         "71.9% useful, the rest padding; none with 368 or 552 GPUs"),
        (64, "64 × 18 sequences at most, in 2 microbatches of 9",
         "95.8% useful, the rest padding; none with 48 or 69 GPUs"),
    ],
)  # fmt: skip
def test_text_where_the_gpus_do_not_divide_the_batch(gpus, first, second):
    assert gpu_lines(planned(gpus), automatic=False)[:2] == [("gpus", first), ("", second)]


def test_text_of_an_automatic_microbatch():
    lines = gpu_lines(planned(8, "batch.microbatch=auto"), automatic=True)
    assert lines[0] == ("gpus", "8 × 138 sequences, as many at once as fit")
    assert lines[1][0] == "shard"
    assert lines[-1][1].startswith("per step, with one sequence at once, by arithmetic; ")


def test_documentation_shows_what_is_printed():
    lines = [f"{heading:<12}{text}" for heading, text in gpu_lines(planned(8), automatic=False)]
    assert "\n".join(lines) in (ROOT / "docs" / "recipes.md").read_text()
