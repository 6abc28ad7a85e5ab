"""Which checkpoints a run keeps (`keep`), and the deletion of the others."""

import errno
import json
import random
from pathlib import Path

import pytest
from training_runs import metrics, run

from recipes import recipe_of, recipe_problems
from rewarm.checkpoints.best_checkpoint import best_step
from rewarm.checkpoints.find_checkpoint import (
    list_checkpoints,
    locate_base,
    resolve_checkpoint_reference,
)
from rewarm.checkpoints.retention import kept_steps, most_checkpoints_at_once, prune_checkpoints
from rewarm.checkpoints.training_state import TrainingState
from rewarm.errors import CheckpointError, Preempted
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


def losses(run_directory):
    """The sum of both losses after each step that a run has evaluated."""
    lines = metrics(run_directory, "evaluate")
    return {line["step"]: line["upstream/loss"] + line["downstream/loss"] for line in lines}


BEST = {
    **{"every__save": 4, "every__evaluate": 4, "keep": "{last: 1, best: upstream+downstream}"},
    # The rate rises so far that the losses do.
    "schedule": "{name: rewarm, start_lr: 0.01, peak_lr: 3, min_lr: 3, warmup: 0.9}",
}


def test_the_best_checkpoint_is_kept_and_found(recipe_text, tmp_path):
    directory = tmp_path / "run"
    run(recipe_text, directory, **BEST)
    values = {step: value for step, value in losses(directory).items() if step and step % 4 == 0}
    best = min(values, key=values.get)
    assert best < 16  # one that `last` would not have kept
    assert list(list_checkpoints(directory)) == [best, 20]
    assert resolve_checkpoint_reference(directory, "best").name == f"step-{best:08d}"
    assert locate_base(f"{directory}@best").directory.name == f"step-{best:08d}"


def test_a_killed_and_resumed_run_keeps_the_best_checkpoint(recipe_text, tmp_path):
    directory = tmp_path / "run"
    run(recipe_text, directory, **BEST)
    whole = list(list_checkpoints(directory))
    with pytest.raises(Preempted):
        run(recipe_text, tmp_path / "killed", until=10, **BEST)
    run(recipe_text, tmp_path / "killed", resume=True, **BEST)
    # Step 10 was saved on the stop and is pruned: it was not evaluated.
    assert list(list_checkpoints(tmp_path / "killed")) == whole


def write_states(directory, losses_by_step):
    """Writes checkpoints that have nothing but a training state; None for not evaluated."""
    for step, loss in losses_by_step.items():
        folder = directory / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        measured = {"losses": {"a": loss}, "losses_step": step} if loss is not None else {}
        state = STATE.model_copy(update={"step": step, **measured})
        (folder / "progress.json").write_text(state.model_dump_json())
    return {step: directory / "checkpoints" / f"step-{step:08d}" for step in sorted(losses_by_step)}


STATE = TrainingState(
    step=0, tokens=0, lrs=None, blocks={}, carried={}, stream="0" * 32, corpora={}, baseline={},
    losses={"a": 1.0}, losses_step=1, guard={}, schedule={}, lineage=[], rewarm="0.1.0",
    validation={"a": "data"},
)  # fmt: skip


def test_only_losses_of_the_own_weights_and_of_the_same_data_are_compared(tmp_path):
    checkpoints = write_states(tmp_path, {2: 3.0, 4: None, 6: 2.0, 8: 2.0, 10: None})
    assert best_step(checkpoints, ["a"]) == 6  # not 4 or 10, whose loss is of step 1; not 8
    assert best_step(checkpoints, ["a", "b"]) is None
    assert best_step({}, ["a"]) is None
    path = checkpoints[6] / "progress.json"
    path.write_text(path.read_text().replace('"data"', '"other data"'))
    assert best_step(checkpoints, ["a"]) == 8
    path.write_text("damaged")
    with pytest.raises(CheckpointError, match=r"progress\.json: cannot be read"):
        best_step(checkpoints, ["a"])
    for checkpoint in checkpoints.values():
        (checkpoint / "MANIFEST.json").touch()
    assert prune_checkpoints(tmp_path, KeepSettings(last=1, best="a"), None) == []


@pytest.mark.parametrize(
    ("keep", "every", "problem"),
    [
        ("{best: upstream+downstraem}", "{}", "no validation set named 'downstraem'; did you mean"),
        ("{best: other}", "{}", "no validation set named 'other'"),
        ("{best: a + }", "{}", "keep.best"),
        ("{best: upstream+upstream}", "{}", "names a validation set twice"),
        ("{best: upstream}", "{save: 6, evaluate: 4, log: 1}", None),
        ("{best: upstream}", "{save: 7, evaluate: 4}", "the last one, 20, is both evaluated and"),
        ("{best: upstream}", "{save: 4, evaluate: null}", "is both evaluated and saved"),
        ("{best: upstream}", "{save: null, evaluate: null}", None),
    ],
)
def test_best_is_checked_with_the_recipe(recipe_text, keep, every, problem):
    changes = (f"keep={keep}", f"every={every}")
    if problem is None:
        assert recipe_of(recipe_text, *changes).keep.best_sets == ("upstream",)
        return
    [found] = recipe_problems(recipe_text, *changes)
    assert problem in found


def test_best_without_the_setting_is_refused(recipe_text, tmp_path):
    run(recipe_text, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"run@best: the run's recipe has no keep\.best"):
        locate_base(f"{tmp_path / 'run'}@best")
