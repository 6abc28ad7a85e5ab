import gzip
import json

import pytest
from training_runs import metrics, recipe_with

from rewarm.errors import Preempted
from rewarm.recipe.profiled_steps import StepRange
from rewarm.training import profiler
from rewarm.training.loop import train
from rewarm.training.profiler import profiled


def traced_steps(path):
    data = path.read_bytes()
    events = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)["traceEvents"]
    assert any(event.get("name") == "aten::mm" for event in events)
    return sorted(
        int(event["name"].removeprefix("step "))
        for event in events
        if event.get("cat") == "user_annotation" and event["name"].startswith("step ")
    )


def test_a_trace_has_the_steps_and_changes_no_result(recipe_text, trained_run, tmp_path, capsys):
    recipe = recipe_with(recipe_text, tmp_path / "run")
    checkpoint = train(recipe, profile=StepRange(4, 6))
    trace = tmp_path / "run" / "traces" / "steps-4-6.json"
    assert traced_steps(trace) == [4, 5, 6]
    assert f"profile: steps 4:6 in {trace}; open it at" in capsys.readouterr().err
    assert metrics(tmp_path / "run") == metrics(trained_run)
    same = trained_run / "checkpoints" / checkpoint.name
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (checkpoint / name).read_bytes() == (same / name).read_bytes()


def test_a_stop_writes_the_steps_so_far(recipe_text, tmp_path):
    recipe = recipe_with(recipe_text, tmp_path / "run")
    with pytest.raises(Preempted):
        train(recipe, profile=StepRange(2, 20), stop_after_step=3)
    (trace,) = (tmp_path / "run" / "traces").iterdir()
    assert traced_steps(trace)[:2] == [2, 3]


def test_a_large_trace_is_compressed_and_none_is_replaced(tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(profiler, "_COMPRESSED_ABOVE", 10)
    lines = []
    for _ in range(2):
        for _ in profiled(range(1, 4), StepRange(2, 2), tmp_path, lines.append):
            torch.ones(2, 2) @ torch.ones(2, 2)
    names = sorted(path.name for path in (tmp_path / "traces").iterdir())
    assert len(names) == 2
    assert all(name.endswith(".gz") for name in names)
    assert all(traced_steps(tmp_path / "traces" / name) == [2] for name in names)


def test_all_steps_are_taken_whatever_is_profiled(tmp_path):
    lines = []
    for first, last in ((1, 3), (2, 9), (5, 6), (9, 12)):
        steps = profiled(range(5, 11), StepRange(first, last), tmp_path, lines.append)
        assert list(steps) == list(range(5, 11))
    assert lines[0] == "profile: steps 1:3 were taken before the resume; no trace is written"
    assert list(profiled(range(5, 11), None, tmp_path, lines.append)) == list(range(5, 11))


def test_a_trace_that_cannot_be_written_does_not_end_the_run(tmp_path):
    (tmp_path / "traces").write_text("a file")
    lines = []
    assert list(profiled(range(1, 3), StepRange(1, 1), tmp_path, lines.append)) == [1, 2]
    assert lines[0].startswith("warning: profile: the trace cannot be written: ")
