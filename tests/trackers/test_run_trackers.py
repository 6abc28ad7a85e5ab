import json
import time

import pytest
from tracked_lines import RECORDING, evaluate_line, send, train_line
from training_runs import metrics, run

from rewarm.errors import Preempted, RecipeError
from rewarm.recipe.recipe import load_recipe
from rewarm.runs.metrics_file import read_events
from rewarm.runs.resolve_run import preflight
from rewarm.trackers import run_trackers
from rewarm.trackers.run_trackers import check_trackers, closing_warnings


@pytest.fixture
def recording(distribution):
    distribution("recording", RECORDING, "rewarm.trackers", recording="Recording")


def recorded(folder):
    lines = (folder / "trackers" / "recording" / "lines.jsonl").read_text().splitlines()
    return [tuple(json.loads(line)) for line in lines]


@pytest.mark.usefixtures("recording")
def test_a_run_sends_its_metrics_to_a_third_party_tracker(recipe_text, trained_run, tmp_path):
    tracked = run(recipe_text, tmp_path / "run", trackers="{recording: {mode: x}}")
    lines = metrics(tmp_path / "run")
    assert lines == metrics(trained_run)
    plain = trained_run / "checkpoints" / tracked.name
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (tracked / name).read_bytes() == (plain / name).read_bytes()
    points = recorded(tmp_path / "run")
    losses = [(line["step"], line["loss"]) for line in lines if line["kind"] == "train"]
    assert [(step, v["train/loss"]) for step, v in points if "train/loss" in v] == losses
    assert "evaluate/upstream/loss" in points[0][1]
    assert not any(name.endswith("/stream") for _, values in points for name in values)
    event = read_events(tmp_path / "run" / "events.jsonl").events[-1]
    assert event["kind"] == "tracker"
    assert (event["sent"], event["dropped"]) == (len(lines), 0)


@pytest.mark.usefixtures("recording")
def test_a_resumed_run_sends_each_line_once(recipe_text, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(Preempted):
        run(recipe_text, folder, until=12, trackers="{recording: {}}")
    run(recipe_text, folder, resume=True, trackers="{recording: {mode: changed}}")
    points = recorded(folder)
    assert len(points) == len(metrics(folder))
    assert len({(step, "train/loss" in values) for step, values in points}) == len(points)


@pytest.mark.usefixtures("recording")
def test_steps_that_are_taken_again_are_not_sent_again_and_missing_ones_are(tmp_path):
    folder, both = tmp_path / "run", {"recording": {}}
    first = [evaluate_line(0), *map(train_line, (1, 2, 3, 4, 5)), evaluate_line(5)]
    send(folder, both, first)
    # From the checkpoint of step 3; the tracker has all lines up to step 5.
    send(folder, both, [*map(train_line, (4, 5, 6)), evaluate_line(6)], kept=4, resumed_from=3)
    assert [step for step, _ in recorded(folder)] == [0, 1, 2, 3, 4, 5, 5, 6, 6]
    # What was queued when a run was killed is in metrics.jsonl.
    (folder / "trackers" / "recording" / "lines.jsonl").unlink()
    (folder / "trackers" / "recording" / "sent.json").unlink()
    (event,) = send(folder, both, [train_line(7)], kept=8, resumed_from=6)
    assert [step for step, _ in recorded(folder)] == [0, 1, 2, 3, 4, 5, 6, 6, 7]
    assert (event["sent"], event["dropped"]) == (1, 0)


@pytest.mark.usefixtures("recording")
def test_a_run_that_starts_again_is_another_one_for_trackers(tmp_path):
    ids = []
    for _ in range(2):
        send(tmp_path / "run", {"recording": {}}, [train_line(1)])
        ids.append(json.loads((tmp_path / "run" / "trackers" / "id.json").read_text())["id"])
    assert [step for step, _ in recorded(tmp_path / "run")] == [1, 1]
    assert ids[0] != ids[1]


def test_no_tracker_is_started_by_default(trained_run):
    assert not (trained_run / "trackers").exists()


def test_all_trackers_that_cannot_be_used_are_named_before_a_run(distribution, recipe_text):
    distribution("missing", "import library_that_is_not_there", "rewarm.trackers", missing="X")
    distribution("needy", f"{RECORDING}    key: int\n", "rewarm.trackers", needy="Recording")
    distribution("hanging", "import time; time.sleep(10**6)", "rewarm.trackers", hanging="X")
    distribution("ending", "import os; os._exit(0)", "rewarm.trackers", ending="X")
    names = ("missing", "needy", "ending", "wanbd")
    with pytest.raises(RecipeError) as raised:
        check_trackers({name: {} for name in names})
    assert raised.value.problems == [
        "trackers.missing: cannot be used: ModuleNotFoundError: No module named "
        "'library_that_is_not_there'; fix or uninstall missing",
        "trackers.needy.key: required, but missing",
        "trackers.ending: cannot be used: its process ended with code 0, without an answer; fix "
        "it, or remove it from the recipe",
        *(line for line in raised.value.problems if line.startswith("trackers.wanbd: no tracker")),
    ]
    assert len(raised.value.problems) == 4


def test_a_tracker_that_hangs_in_its_check_is_refused(distribution, monkeypatch):
    monkeypatch.setattr(run_trackers, "_CHECK_SECONDS", 1.0)
    distribution("hanging", "import time; time.sleep(10**6)", "rewarm.trackers", hanging="X")
    start = time.monotonic()
    with pytest.raises(RecipeError, match=r"trackers.hanging: cannot be used: did not answer for"):
        check_trackers({"hanging": {}})
    assert time.monotonic() - start < 10


def test_check_and_train_refuse_what_is_not_installed(recipe_file, command, monkeypatch):
    # The extra is not installed: modules of that name cannot be found.
    (recipe_file.parent / "absent").mkdir()
    (recipe_file.parent / "absent" / "mlflow.py").write_text("raise ModuleNotFoundError('mlflow')")
    monkeypatch.syspath_prepend(recipe_file.parent / "absent")
    recipe = load_recipe(recipe_file, ["trackers={mlflow: {}}"])
    (problem,) = preflight(recipe)
    assert "pip install 'rewarm[mlflow]'" in str(problem)
    for word in ("check", "train"):
        code, _, errors = command(word, recipe_file, "--set", "trackers={mlflow: {}}")
        assert code == 2
        assert "trackers.mlflow: cannot be used: ModuleNotFoundError" in errors


def test_warnings_have_the_number_of_dropped_lines():
    event = {"name": "x", "sent": 9, "dropped": 1, "error": None}
    assert closing_warnings([event, event | {"dropped": 0}]) == [
        "warning: tracker x: too slow; 1 line of 10 dropped; metrics.jsonl has them all"
    ]
