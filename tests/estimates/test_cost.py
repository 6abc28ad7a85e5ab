"""The arithmetic of costs by hand, and how a study's runs are spread over GPUs."""

from functools import partial

import pytest
from planned_studies import write_study_with_base
from repository import ROOT

from rewarm.errors import RecipeError
from rewarm.estimates.cost import (
    QueuedRun,
    RunHours,
    estimate_recipe_cost,
    estimate_study_cost,
    makespan,
)
from rewarm.estimates.throughput import Speed, speed_on_gpu
from rewarm.model.architecture import PRESETS
from rewarm.recipe.recipe import load_recipe
from rewarm.study.study_file import load_study

PAPER = ROOT / "recipes" / "pythia-410m-rewarm.yaml"


def cost_on_h100(*overrides, gpus=1):
    recipe = load_recipe(PAPER, list(overrides))
    return estimate_recipe_cost(recipe, gpus=gpus, on_gpu=True, speed_of=speed_on_gpu("h100"))


def test_the_papers_run_by_hand():
    estimate = cost_on_h100()
    (cost,) = estimate.costs
    # 24 layers of 12 · 1024² + 13 · 1024, the last norm, 50,304 rows of 1024: all in matmuls.
    in_matmuls = 24 * (12 * 1024**2 + 13 * 1024) + 2 * 1024 + 50_304 * 1024
    assert cost.flops == 296_859_205_632 * (6 * in_matmuls + 12 * 24 * 1024 * 2048)
    assert cost.time.training == pytest.approx(473.9, abs=0.05)  # 296.859 B / 174 k / 3,600
    # 9,765 blocks of a set in 611 microbatches of 16 × 2,048, two sets, 197 times, at 522 k/s.
    assert cost.evaluated == 2 * 611 * 16 * 2048
    assert cost.time.evaluating == pytest.approx(197 * 2 * 611 * 32_768 / 522_000 / 3600)
    assert estimate.hours == estimate.gpu_hours == pytest.approx(473.92 + 4.20, abs=0.01)
    # Of every 20,000 steps 6, the last 3, and the one that is deleted when a new one is complete.
    assert (cost.checkpoints, cost.disk) == (10, 10 * 12 * 405_334_016)
    assert cost.source.startswith("174,000 tokens/s, pythia-410m on one h100, 16 × 2,048 at once")


def test_several_gpus_share_the_sequences_of_a_step():
    one, eight, many = (cost_on_h100(gpus=gpus).costs[0] for gpus in (1, 8, 512))
    assert one.time.communicating == 0
    # 138 sequences of 1,104 each, in 9 microbatches of 16, so 144 with padding.
    assert eight.time.training == pytest.approx(one.time.training * 144 / 1104)
    assert many.time.training == pytest.approx(one.time.training * 3 / 1104)
    # 2.84 GB of gradients at 370 GB/s and 25 times 14 steps of a ring, 131,296 times.
    seconds = 2 * 4 * 405_334_016 * 7 / 8 / 370e9 + 25 * 14 * 3.4e-6
    assert eight.time.communicating == pytest.approx(131_296 * seconds / 3600)
    # 9,765 blocks of a set in 77 rounds of 8 × 16.
    assert eight.evaluated == 2 * 77 * 128 * 2048
    assert eight.gpu_hours == 8 * eight.hours
    assert eight.hours - eight.time.overlapped == pytest.approx(eight.time.communicating)


def test_communication_cannot_hide_more_than_the_computing():
    time = RunHours(training=2.0, communicating=3.0, evaluating=0.5, saving=0.0, starting=0.0)
    assert (time.total, time.overlapped) == (5.5, 3.5)


def test_a_measured_microbatch_is_the_one_that_gpus_share():
    def speed_of(recipe, architecture, evaluated):
        return Speed(step=8.0, evaluated_per_second=1.0, source="this test", microbatch=6)

    recipe = load_recipe(PAPER, ["batch.microbatch=auto", "parallel.shard=all"])
    estimate = estimate_recipe_cost(recipe, gpus=8, on_gpu=True, speed_of=speed_of)
    (cost,) = estimate.costs
    assert (cost.microbatch, cost.sharing.microbatches, cost.sharing.useful) == (6, 23, 1.0)
    assert cost.time.training == pytest.approx(131_296 * 1.0 / 3600)


def test_an_automatic_microbatch_leaves_the_communication_of_shards_unknown():
    message = "batch.microbatch: what auto becomes is not known here, and the communication of "
    with pytest.raises(RecipeError, match=message):
        cost_on_h100("batch.microbatch=auto", "parallel.shard=all", gpus=8)
    assert cost_on_h100("batch.microbatch=auto", gpus=8).hours > 0  # gradients are reduced once


def test_only_the_checkpoints_that_are_kept_need_disk():
    # Of 131 and the last: three, the last that is written beside them, every 50,000th.
    (cost,) = cost_on_h100("keep={last: 3, every: 50k}").costs
    assert cost.checkpoints == 2 + 3 + 1
    assert cost_on_h100("every.save=null").costs[0].checkpoints == 1


@pytest.mark.parametrize(("workers", "hours"), [(1, 8 + 3 + 9), (2, 8 + 3), (3, 8 + 3), (9, 8 + 3)])
def test_runs_wait_for_their_bases(workers, hours):
    runs = [QueuedRun("slow", None, 8.0), QueuedRun("quick", None, 3.0)]
    runs += [
        QueuedRun("a", "slow", 3.0),
        QueuedRun("b", "quick", 3.0),
        QueuedRun("c", "quick", 3.0),
    ]
    assert makespan(runs, workers) == hours


def test_makespan_by_hand():
    runs = [QueuedRun(str(hours), None, float(hours)) for hours in (5, 4, 3, 3)]
    assert makespan(runs, 2) == 8  # 5 + 3 beside 4 + 3
    assert makespan(runs, 4) == 5


def test_a_study_on_several_gpus(tmp_path, thousand_steps):
    def speed_of(recipe, architecture, evaluated):
        assert architecture == PRESETS["pythia-14m"]  # the base's, which is still to be trained
        assert evaluated == 0
        return Speed(step=3.6, evaluated_per_second=1.0, source="this test")

    plan = load_study(write_study_with_base(tmp_path, thousand_steps))
    estimate = partial(estimate_study_cost, plan, on_gpu=True, speed_of=speed_of)
    one, two = estimate(gpus=1), estimate(gpus=2)
    assert [(cost.name, cost.runs, cost.hours) for cost in one.costs] == [
        ("bases/up", 1, pytest.approx(0.5)),
        ("a", 2, pytest.approx(1.0)),
        ("b", 2, pytest.approx(2.0)),
    ]
    assert one.hours == one.gpu_hours == two.gpu_hours == pytest.approx(6.5)
    # Both wait for the base; then a/1, a/2, b/2 beside b/1.
    assert two.hours == pytest.approx(0.5 + 1 + 1 + 2)
    assert two.held_gpu_hours == pytest.approx(9.0)
    assert one.tokens == 650_000_000
    assert one.runs == 5


def test_problems_are_counted_and_do_not_prevent_an_estimate(thousand_steps, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(thousand_steps)  # none of its data is here
    recipe = load_recipe(path)
    estimate = estimate_recipe_cost(recipe, gpus=1, on_gpu=True, speed_of=speed_on_gpu("h100"))
    assert estimate.costs[0].problems == 2
    assert estimate.tokens == 100_000_000
