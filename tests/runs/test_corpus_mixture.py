"""Corpus weights that a resume changes hold from the step on at which it happens."""

import json
import shutil
from pathlib import Path

import pytest
from training_runs import metrics, recipe_with, run, trained_files

from rewarm.checkpoints.find_checkpoint import last_checkpoint
from rewarm.checkpoints.training_state import WeightChange, read_training_state
from rewarm.errors import CheckpointError, Preempted
from rewarm.runs.corpus_mixture import corpus_mixture, share_changes
from rewarm.runs.resolve_run import preflight

EVERY_STEP = {"every": "{log: 1, evaluate: null, save: 5}", "data__max_epochs": "null"}
CONTEXT, SEQUENCES = 64, 16


def weights(downstream, upstream):
    return {
        "data__train__downstream__weight": downstream,
        "data__train__upstream__weight": upstream,
    } | EVERY_STEP


NINETY_FIVE, HALF = weights(0.95, 0.05), weights(0.5, 0.5)


def stop_after(step, text, directory, **settings):
    with pytest.raises(Preempted):
        run(text, directory, until=step, **settings)


def upstream_blocks(directory):
    """Returns the upstream blocks read up to each step, by step, with a 0."""
    lines = metrics(directory, "train")
    return {0: 0} | {line["step"]: line["upstream/tokens"] // CONTEXT for line in lines}


@pytest.fixture
def half(recipe_text, tmp_path):
    """A run of 95/5 that was stopped after 10 of 20 steps."""
    stop_after(10, recipe_text, tmp_path / "run", **NINETY_FIVE)
    return tmp_path / "run"


def test_new_weights_hold_from_the_resume_on(recipe_text, half):
    run(recipe_text, half, resume=True, accept_changes=True, **HALF)
    read = upstream_blocks(half)
    assert read[10] == 8  # 5 % of 160 blocks
    assert [read[step] - read[10] for step in range(11, 21)] == [8 * n for n in range(1, 11)]


def test_a_changed_run_that_is_killed_and_resumed_reads_the_same(recipe_text, half, tmp_path):
    other = shutil.copytree(half, tmp_path / "other")
    whole = run(recipe_text, half, resume=True, accept_changes=True, **HALF)
    stop_after(13, recipe_text, other, resume=True, accept_changes=True, **HALF)
    stop_after(17, recipe_text, other, resume=True, **HALF)
    assert trained_files(run(recipe_text, other, resume=True, **HALF)) == trained_files(whole)
    change = WeightChange(step=10, blocks={"downstream": 152, "upstream": 8})
    assert read_training_state(whole).weight_change == change


def test_changes_accumulate(recipe_text, half):
    stop_after(14, recipe_text, half, resume=True, accept_changes=True, **HALF)
    run(recipe_text, half, resume=True, accept_changes=True, **weights(0.25, 0.75))
    read = upstream_blocks(half)
    assert [read[step] - read[step - 1] for step in (11, 14, 15, 20)] == [8, 8, 12, 12]
    assert read[20] == 8 + 4 * 8 + 6 * 12


def test_a_checkpoint_without_the_record_still_loads(recipe_text, half):
    path = last_checkpoint(half) / "progress.json"
    state = json.loads(path.read_text())
    assert state.pop("weight_change") is None
    path.write_text(json.dumps(state))
    (path.parent / "MANIFEST.json").unlink()  # its digest is of the file as it was
    assert read_training_state(path.parent).weight_change is None


def test_a_longer_budget_moves_weights_that_change_at_a_share_of_the_run(recipe_text, tmp_path):
    """Replay begins after 25 % of 20 steps; resumed after 7 of 40, again, and begins after 10."""
    later = weights(1, "[{from: 0, weight: 0}, {from: 25%, weight: 1}]")
    stop_after(7, recipe_text, tmp_path / "run", **later)
    run(recipe_text, tmp_path / "run", resume=True, accept_changes=True, tokens=40960, **later)
    read = upstream_blocks(tmp_path / "run")
    steps = [read[step] - read[step - 1] for step in range(1, 41)]
    assert steps == [0] * 5 + [8] * 2 + [0] * 3 + [8] * 30


def test_an_unchanged_recipe_changes_nothing(recipe_text, tmp_path):
    later = weights(1, "[{from: 0, weight: 0.1}, {from: 25%, weight: 1}]")
    whole = run(recipe_text, tmp_path / "whole", **later)
    stop_after(7, recipe_text, tmp_path / "run", **later)
    resumed = run(recipe_text, tmp_path / "run", resume=True, **later)
    assert trained_files(resumed) == trained_files(whole)
    assert read_training_state(resumed).weight_change is None


def test_the_resulting_mixture_is_listed_and_planned(recipe_text, half, recipe_file, command):
    text = recipe_text.replace(
        "weight: 70%", "weight: [{from: 0, weight: 1}, {from: 80%, weight: 3}]"
    )
    recipe_file.write_text(text.replace("weight: 30%", "weight: 1"))
    words = ["check", recipe_file, "--resume"]
    for name, value in EVERY_STEP.items():
        words += ["--set", f"{name.replace('__', '.')}={value}"]
    code, _, err = command(*words)
    assert code == 3
    assert "mixture of steps 11 to 16: downstream 95% → 50%, upstream 5% → 50%" in err
    assert "mixture of steps 17 to 20: downstream 95% → 75%, upstream 5% → 25%" in err
    code, out, _ = command(*words, "--accept-changes")
    assert code == 0
    # 8 blocks of the first 10 steps, half of the next 6, a quarter of the last 4.
    assert f"{(8 + 48 + 16) / 320:.1%} of the tokens: 4,608 tokens" in out
    assert "weight 1 from step 11; 512 tokens read before" in out
    assert "weight 1 from step 11, 3 from step 17; 9,728 tokens read before" in out


def test_epochs_count_what_was_read_before_the_change(recipe_text, half):
    """Of upstream, 8 blocks were read in 10 steps, and 80 will be in the next 10: 88, not 160."""
    recipe = recipe_with(recipe_text, half, **HALF)
    index = json.loads((Path(recipe.data.train["upstream"].shards) / "index.json").read_text())
    blocks = sum((shard["tokens"] - 1) // CONTEXT for shard in index["shards"])
    for limit, refused in ((89, False), (87, True)):
        settings = HALF | {"data__max_epochs": limit / blocks}
        recipe = recipe_with(recipe_text, half, **settings)
        problems = list(map(str, preflight(recipe, resume=True, accept_changes=True)))
        assert any("corpus 'upstream': the run needs 5,632" in p for p in problems) == refused


def test_a_new_batch_size_starts_the_weights_anew(recipe_text, half):
    """The recipe's step 16 is block 160 + 6 · 32 of the stream, not 16 · 32."""
    later = weights(1, "[{from: 0, weight: 1}, {from: 80%, weight: 3}]")
    recipe = recipe_with(recipe_text, half, batch__tokens=2048, tokens=40960, **later)
    change = WeightChange(step=10, blocks={"downstream": 152, "upstream": 8})
    mixture = corpus_mixture(recipe, change)
    assert mixture.blocks == 160 + 10 * 32
    assert mixture.weights["upstream"][-1] == (160 + 6 * 32, 3)
    assert mixture.blocks_needed()["upstream"] == 8 + 6 * 16 + 4 * 24


def test_only_changes_ahead_are_listed(recipe_text, tmp_path):
    early = weights(1, "[{from: 0, weight: 1}, {from: 25%, weight: 3}]")
    before, recipe = (recipe_with(recipe_text, tmp_path, **w) for w in (early, weights(1, 3)))
    assert list(share_changes(before, recipe, 10)) == []
    assert list(share_changes(before, recipe, 3)) == [
        "mixture of steps 4 to 5: downstream 50% → 25%, upstream 50% → 75%"
    ]


def test_a_change_is_refused_unless_it_is_accepted(recipe_text, half):
    with pytest.raises(CheckpointError, match="mixture of steps 11 to 20: downstream 95% → 50%"):
        run(recipe_text, half, resume=True, **HALF)
