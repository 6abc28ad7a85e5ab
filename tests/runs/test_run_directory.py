"""The run directory: metrics survive full disks and kills; leftovers are removed and reported."""

import fcntl
import json
import math
import os
import shutil
import time
from pathlib import Path
from threading import Event, Thread

import pytest
from training_runs import act_after_step, metrics, run, signal_in_step, trained_files

from rewarm.checkpoints.find_checkpoint import list_checkpoints
from rewarm.checkpoints.manifest import MetricsRecord, build_manifest, metrics_record
from rewarm.checkpoints.retention import prune_checkpoints
from rewarm.checkpoints.training_state import TrainingState
from rewarm.errors import CheckpointError, Preempted
from rewarm.files import try_lock
from rewarm.recipe.training_settings import KeepSettings
from rewarm.runs.run_directory import RunDirectory


def state_at(step: int) -> TrainingState:
    empty = ("blocks", "carried", "corpora", "baseline", "losses", "guard", "schedule")
    return TrainingState(
        step=step,
        tokens=step,
        lrs=None,
        stream="0" * 32,
        lineage=[],
        rewarm="0",
        **{name: {} for name in empty},
    )


def write_checkpoint(checkpoint: Path, state: TrainingState, record: MetricsRecord) -> None:
    checkpoint.mkdir()
    for name in ("config.json", "model.safetensors", "optimizer.safetensors", "recipe.yaml"):
        (checkpoint / name).touch()
    (checkpoint / "progress.json").write_text(state.model_dump_json())
    (checkpoint / "MANIFEST.json").write_text(json.dumps(build_manifest(checkpoint, record)))


def test_one_process_at_a_time_opens_it(tmp_path):
    with RunDirectory(tmp_path / "run") as directory:
        assert directory.checkpoints.is_dir()
        with (tmp_path / "run" / "lock").open("a") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(CheckpointError, match="in use by another process"):
            RunDirectory(tmp_path / "run")
    with RunDirectory(tmp_path / "run"):
        pass


def test_another_last_checkpoint_than_expected_is_refused(tmp_path):
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000010"
    checkpoint.mkdir(parents=True)
    (checkpoint / "MANIFEST.json").touch()
    with pytest.raises(CheckpointError, match="another process saved step-00000010 while this one"):
        RunDirectory(tmp_path / "run")
    with RunDirectory(tmp_path / "run", checkpoint):  # the refused one holds no lock
        pass


def test_metrics_after_the_resumed_step_are_removed(tmp_path):
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000010"
    with RunDirectory(tmp_path / "run") as directory:
        directory.prepare("", state_at(0))
        directory.log_metrics("train", step=5, tokens=5, loss=math.nan)
        directory.log_metrics("train", step=10, tokens=10, loss=2.5)
        record = directory.metrics.record()
        directory.log_metrics("train", step=15, tokens=15, loss=2.5)
    write_checkpoint(checkpoint, state_at(10), record)
    with RunDirectory(tmp_path / "run", checkpoint) as directory:
        messages = directory.prepare("run: x\n", state_at(10))
        directory.log_event("start", step=10)
    assert messages == ["metrics.jsonl: 1 line after step 10 removed; those steps are taken again"]
    assert metrics(tmp_path / "run") == [
        {"kind": "train", "step": 5, "tokens": 5, "loss": None},
        {"kind": "train", "step": 10, "tokens": 10, "loss": 2.5},
    ]
    assert (tmp_path / "run" / "recipe.yaml").read_text() == "run: x\n"
    event = json.loads((tmp_path / "run" / "events.jsonl").read_text())
    assert event.items() >= {"kind": "start", "step": 10}.items()


def test_metrics_wait_until_the_disk_has_space(tmp_path):
    with RunDirectory(tmp_path / "run") as directory:
        directory.prepare("", state_at(0))

        class FullDisk:
            def __init__(self, file):
                self.file = file

            def __getattr__(self, name):
                return getattr(self.file, name)

            def write(self, data):
                return self.file.write(data[:5])

        writer = directory.metrics
        file, writer._file = writer._file, FullDisk(writer._file)
        directory.log_metrics("train", step=1, tokens=1)
        with pytest.raises(CheckpointError, match="No space left"):
            directory.metrics.sync()  # no checkpoint may be ahead of the metrics
        assert "No space left" in directory.flush_metrics()
        assert metrics(directory.path) == []  # a partial line is ignored, as after a kill
        writer._file = file
        directory.log_metrics("train", step=2, tokens=2)
        directory.metrics.sync()
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2]


def test_a_checkpoint_is_not_ahead_of_the_metrics(recipe_text, tmp_path, monkeypatch):
    """The disk is full when lines are due, and no longer when the run is stopped."""
    run(recipe_text, tmp_path / "straight")
    log_metrics = RunDirectory.log_metrics

    def log_on_a_full_disk(*args, **values):
        with monkeypatch.context() as patch:
            patch.setattr(RunDirectory, "flush_metrics", lambda _: "No space left on device")
            log_metrics(*args, **values)

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "log_metrics", log_on_a_full_disk)
        signal_in_step(patch, 7)
        with pytest.raises(Preempted):
            run(recipe_text, tmp_path / "stopped")
    run(recipe_text, tmp_path / "stopped", resume=True)
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "straight")


def test_a_run_directory_that_cannot_be_written_is_reported(recipe_text, tmp_path, monkeypatch):
    rename = Path.rename

    def refuse_recipe(path, target):
        if Path(target).name == "recipe.yaml":
            raise PermissionError(13, "Permission denied")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse_recipe)
        with pytest.raises(CheckpointError, match="run: cannot be written: Permission denied; wh"):
            run(recipe_text, tmp_path / "run")
    run(recipe_text, tmp_path / "run", tokens=1024)


def test_partly_written_checkpoints_are_removed_and_reported(recipe_text, tmp_path, capsys):
    run(recipe_text, tmp_path / "run", tokens=10240)
    partial = tmp_path / "run" / "checkpoints" / "step-00000099.partial"
    partial.mkdir()
    run(recipe_text, tmp_path / "run", resume=True, accept_changes=True)
    assert "step-00000099.partial: incomplete, removed" in capsys.readouterr().err
    assert not partial.exists()


def test_a_run_directory_that_is_renamed_is_noticed_and_not_split(
    recipe_text, tmp_path, monkeypatch
):
    straight = run(recipe_text, tmp_path / "straight")
    with monkeypatch.context() as patch:
        act_after_step(patch, 7, lambda: (tmp_path / "run").rename(tmp_path / "moved"))
        with pytest.raises(CheckpointError, match=r"run: moved to .*/moved while the run was us"):
            run(recipe_text, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    resumed = run(recipe_text, tmp_path / "moved", resume=True)
    assert trained_files(resumed) == trained_files(straight)
    assert metrics(tmp_path / "moved") == metrics(tmp_path / "straight")


def test_a_run_directory_that_is_deleted_ends_the_run(recipe_text, tmp_path, monkeypatch):
    act_after_step(monkeypatch, 7, lambda: shutil.rmtree(tmp_path / "run"))
    with pytest.raises(CheckpointError, match="run: deleted or moved while the run was using it"):
        run(recipe_text, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("replaced", [False, True])
def test_metrics_that_are_deleted_or_replaced_are_noticed_and_restored(
    recipe_text, tmp_path, monkeypatch, replaced
):
    straight = run(recipe_text, tmp_path / "straight")
    path = tmp_path / "run" / "metrics.jsonl"

    def delete():
        path.unlink()
        if replaced:
            path.write_text("mine\n")

    with monkeypatch.context() as patch:
        act_after_step(patch, 7, delete)
        with pytest.raises(
            CheckpointError, match=r"metrics.jsonl: deleted or replaced .* are saved in .*.jsonl"
        ) as raised:
            run(recipe_text, tmp_path / "run")
    if replaced:
        assert path.read_text() == "mine\n"
        saved = Path(str(raised.value).partition("are saved in ")[2].partition(";")[0])
        saved.rename(path)
    resumed = run(recipe_text, tmp_path / "run", resume=True)
    assert trained_files(resumed) == trained_files(straight)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "straight")


def test_a_lock_that_is_deleted_is_locked_again(recipe_text, tmp_path, monkeypatch):
    lock = tmp_path / "run" / "lock"
    act_after_step(monkeypatch, 7, lock.unlink)
    run(recipe_text, tmp_path / "run")
    assert lock.exists()


def test_a_lock_that_another_process_has_taken_ends_the_run(recipe_text, tmp_path, monkeypatch):
    lock, locks = tmp_path / "run" / "lock", []

    def take_lock():
        lock.unlink()
        locks.append(try_lock(lock))

    act_after_step(monkeypatch, 7, take_lock)
    with pytest.raises(CheckpointError, match="in use by another process"):
        run(recipe_text, tmp_path / "run")
    locks[0].close()


def test_leftovers_of_a_complete_run_are_removed(recipe_text, tmp_path, capsys):
    run(recipe_text, tmp_path / "run", tokens=2048)
    leftover = tmp_path / "run" / "checkpoints" / "step-00000001.deleting"
    leftover.mkdir()
    (leftover / "model.safetensors").touch()
    run(recipe_text, tmp_path / "run", tokens=2048, resume=True)
    assert "step-00000001.deleting: incomplete, removed" in capsys.readouterr().err
    assert not leftover.exists()


def test_a_folder_in_the_place_of_a_checkpoint_is_set_aside(
    recipe_text, tmp_path, monkeypatch, capsys
):
    straight = run(recipe_text, tmp_path / "straight")
    place = tmp_path / "run" / "checkpoints" / "step-00000020"

    def leave_a_folder():
        place.mkdir()
        (place / "mine").touch()

    act_after_step(monkeypatch, 12, leave_a_folder)
    last = run(recipe_text, tmp_path / "run")
    assert trained_files(last) == trained_files(straight)
    assert (place.with_name("step-00000020.set-aside") / "mine").exists()
    assert "kept as step-00000020.set-aside" in capsys.readouterr().err


def test_every_reader_reports_an_incomplete_checkpoint(
    trained_run, recipe_file, corpora, tmp_path, command
):
    directory = Path(shutil.copytree(trained_run, tmp_path / "run"))
    incomplete = directory / "checkpoints" / "step-00000020"
    (incomplete / "MANIFEST.json").unlink()
    recipe = (*("train", recipe_file), *("--set", f"run={tmp_path / 'other'}"))
    for words in (
        ("eval", directory, "--data", f"upstream={corpora}/upstream/val"),
        ("eval", incomplete, "--data", f"upstream={corpora}/upstream/val"),
        ("lineage", directory),
        ("lineage", tmp_path),
        ("report", directory, "--out", tmp_path / "report.html"),
        ("verify", directory),
        (*recipe, "--set", f"model={{base: {directory}}}"),
        (*recipe, "--set", f"model={{base: {incomplete}}}"),
    ):
        code, _, err = command(*words)
        assert (code, words) == (3, words)
        assert "step-00000020" in err
        assert "MANIFEST.json" in err
    assert not (tmp_path / "report.html").exists()
    code, _, _ = command("eval", f"{directory}@10", "--data", f"a={corpora}/upstream/val")
    assert code == 0


@pytest.mark.slow
def test_readers_beside_a_run_that_prunes_report_no_damage(trained_run, corpora, tmp_path, command):
    """A thread saves and deletes checkpoints as training does, only faster."""
    directory = Path(shutil.copytree(trained_run, tmp_path / "run"))
    checkpoints = directory / "checkpoints"
    stop = Event()

    def save_and_prune():
        step = 20
        while not stop.is_set():
            last, step = step, step + 1
            new = checkpoints / f"step-{step:08d}"
            copy = Path(shutil.copytree(checkpoints / f"step-{last:08d}", f"{new}.partial"))
            progress = json.loads((copy / "progress.json").read_text()) | {"step": step}
            (copy / "progress.json").write_text(json.dumps(progress))
            (copy / "MANIFEST.json").unlink()
            manifest = build_manifest(copy, metrics_record(checkpoints / f"step-{last:08d}"))
            (copy / "MANIFEST.json").write_text(json.dumps(manifest))
            Path(f"{new}.partial").rename(new)
            prune_checkpoints(directory, KeepSettings(last=1), None)

    thread = Thread(target=save_and_prune)
    thread.start()
    try:
        for _ in range(15):
            for words in (
                ("verify", directory),
                ("lineage", directory),
                ("eval", directory, "--data", f"upstream={corpora}/upstream/val"),
            ):
                code, _, err = command(*words)
                assert code == 0, err
                assert all(line.startswith("measured with") for line in err.splitlines())
    finally:
        stop.set()
        thread.join()


def test_metrics_that_are_cut_in_place_are_noticed(recipe_text, tmp_path, monkeypatch):
    path = tmp_path / "run" / "metrics.jsonl"
    act_after_step(monkeypatch, 7, lambda: os.truncate(path, 10))
    with pytest.raises(
        CheckpointError, match=r"10 bytes long, and the run has written [\d,]+: changed"
    ):
        run(recipe_text, tmp_path / "run")
    assert list(list_checkpoints(tmp_path / "run")) == [9]


def test_checkpoints_that_are_moved_are_noticed(recipe_text, tmp_path, monkeypatch):
    folder = tmp_path / "run" / "checkpoints"

    def move_when_saved():
        while not list_checkpoints(tmp_path / "run"):  # that of step 10
            time.sleep(0.01)
        folder.rename(tmp_path / "elsewhere")

    act_after_step(monkeypatch, 12, move_when_saved)
    with pytest.raises(CheckpointError, match=r"checkpoints: moved to .*/elsewhere while the run"):
        run(recipe_text, tmp_path / "run")
    assert list((tmp_path / "elsewhere").iterdir())
    assert max(list_checkpoints(tmp_path / "run")) >= 12  # what was reached is saved


def test_a_checkpoint_under_the_name_of_another_step_is_reported_by_every_reader(
    trained_run, recipe_file, corpora, tmp_path, command
):
    directory = Path(shutil.copytree(trained_run, tmp_path / "run"))
    checkpoints = directory / "checkpoints"
    shutil.copytree(checkpoints / "step-00000010", checkpoints / "step-00000030")
    recipe = ("check", recipe_file, "--set", f"run={tmp_path / 'other'}")
    for words in (
        ("verify", directory),
        ("lineage", directory),
        ("report", directory, "--out", tmp_path / "report.html"),
        ("eval", directory, "--data", f"upstream={corpora}/upstream/val"),
        (*recipe, "--set", f"model={{base: {directory}}}"),
        ("train", recipe_file, "--resume"),
    ):
        code, _, err = command(*words)
        assert (code, words) == (3, words)
        assert "step-00000030: its progress.json is of step 10" in err
