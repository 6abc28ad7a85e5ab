"""Which checkpoints a run keeps (`keep`), and the deletion of the others."""

import errno
import json
import random
from pathlib import Path

import pytest
from training_runs import run

from recipes import recipe_of
from rewarm.checkpoints.find_checkpoint import list_checkpoints
from rewarm.checkpoints.retention import kept_steps, most_checkpoints_at_once, prune_checkpoints
from rewarm.recipe.periodic_work import EverySettings
from rewarm.recipe.training_settings import KeepSettings

STEPS = [2, 4, 6, 8, 10]


@pytest.mark.parametrize(
    ("keep", "branch_step", "kept"),
    [
        ({}, None, {2, 4, 6, 8, 10}),
        ({"every": 4}, None, {2, 4, 6, 8, 10}),  # without `last` all are kept
        ({"last": 1}, None, {10}),
        ({"last": 9}, None, {2, 4, 6, 8, 10}),
        ({"last": 2, "every": 4}, None, {4, 8, 10}),
        ({"last": 1}, 6, {6, 10}),
    ],
)
def test_kept_steps(keep, branch_step, kept):
    assert kept_steps(KeepSettings(**keep), STEPS, branch_step) == kept


def test_most_checkpoints_at_once_counts_the_one_being_written(thousand_steps):
    every_100 = ("every.save=100",)  # 10 checkpoints
    assert most_checkpoints_at_once(recipe_of(thousand_steps, *every_100)) == 10
    assert most_checkpoints_at_once(recipe_of(thousand_steps, *every_100, "keep={last: 2}")) == 3


def test_most_checkpoints_at_once_is_the_count_of_those_kept(plugins, thousand_steps):
    """Against the list of all checkpoints, of which those to keep are chosen."""
    draw = random.Random(0)
    for _ in range(6):
        steps = draw.randint(20, 60)
        wsd = recipe_of(
            thousand_steps,
            f"tokens={steps * 100_000}",
            "schedule={name: wsd, start_lr: 0, peak_lr: 3e-4, min_lr: 0, warmup: 1 step, "
            f"decay: {draw.randint(2, steps - 5)} steps}}",
        )
        for _ in range(50):
            save, last, every = (draw.choice([None, draw.randint(1, n)]) for n in (12, 9, 24))
            recipe = wsd.model_copy(
                update={
                    "every": EverySettings(save=save),
                    "keep": KeepSettings(last=last, every=every),
                }
            )
            earlier = {*range(save, steps, save)} if save else set()
            earlier |= {recipe.branch_step}
            assert recipe.checkpoint_count == len(earlier) + 1
            kept = kept_steps(recipe.keep, sorted(earlier), recipe.branch_step)
            assert most_checkpoints_at_once(recipe) == len(kept) + 1


def test_a_run_keeps_the_newest_and_every_so_many_steps(recipe_text, tmp_path):
    renamed = tmp_path / "run" / "checkpoints" / "before-the-holidays"
    renamed.mkdir(parents=True)
    run(recipe_text, tmp_path / "run", every__save=2, keep="{last: 2, every: 8}")
    assert list(list_checkpoints(tmp_path / "run")) == [8, 16, 18, 20]
    assert renamed.is_dir()
    events = map(json.loads, (tmp_path / "run" / "events.jsonl").read_text().splitlines())
    removed = [name for event in events if event["kind"] == "save" for name in event["removed"]]
    assert removed == [f"step-{step:08d}" for step in (2, 4, 6, 10, 12, 14)]


def test_a_checkpoint_that_cannot_be_deleted_does_not_end_the_run(
    recipe_text, tmp_path, monkeypatch
):
    rename = Path.rename

    def refuse_to_rename_step_4(path, target):
        if Path(target).name == "step-00000004.deleting":
            raise PermissionError(errno.EPERM, "Operation not permitted")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse_to_rename_step_4)
    run(recipe_text, tmp_path / "run", every__save=2, keep="{last: 1}")
    assert list(list_checkpoints(tmp_path / "run")) == [4, 20]


def test_only_complete_checkpoints_are_deleted(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    for name in ("step-00000001", "step-00000002", "step-00000003", "step-00000004.partial"):
        (checkpoints / name).mkdir(parents=True)
    for name in ("step-00000001", "step-00000003"):
        (checkpoints / name / "MANIFEST.json").touch()
    assert prune_checkpoints(tmp_path, KeepSettings(last=1), None) == ["step-00000001"]
    assert sorted(path.name for path in checkpoints.iterdir()) == [
        "step-00000002",
        "step-00000003",
        "step-00000004.partial",
    ]
