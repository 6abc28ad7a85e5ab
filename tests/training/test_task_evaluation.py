"""`rewarm eval --tasks`: the figures of the harness's own command; what is kept, and what not."""

import json
import shutil

import pytest
from lm_eval.__main__ import cli_evaluate
from local_tasks import write_tasks

from rewarm.training import harness_tasks
from rewarm.training.harness_tasks import HarnessTasks

NAMES = "tiny_choice,tiny_last_word,tiny_rolling,tiny_generate"


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """The tasks that were measured, and not kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names, measure = [], HarnessTasks.measure

    def note(tasks, model, name, **settings):
        names.append(name)
        return measure(tasks, model, name, **settings)

    monkeypatch.setattr(HarnessTasks, "measure", note)
    return names


def test_figures_are_those_of_lm_eval_and_are_kept(
    trained_run, tmp_path, command, measured, monkeypatch
):
    tasks = write_tasks(tmp_path / "tasks")
    checkpoint = trained_run / "checkpoints" / "step-00000020"
    words = ["eval", trained_run, "--tasks", NAMES, "--include-path", tasks, "--json"]
    code, output, errors = command(*words)
    assert code == 0, errors
    [figures] = json.loads(output)
    assert figures.pop("checkpoint") == str(trained_run)
    assert measured == NAMES.split(",")

    # The harness's own command.
    monkeypatch.setattr("sys.argv", [
        "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={checkpoint}",
        "--tasks", NAMES, "--include_path", str(tasks), "--batch_size", "8", "--device", "cpu",
        "--output_path", str(tmp_path / "out"),
    ])  # fmt: skip
    with harness_tasks.quiet_harness():
        cli_evaluate()
    [path] = (tmp_path / "out").rglob("results_*.json")
    expected = harness_tasks._figures_of(json.loads(path.read_text()))
    assert {"tiny_choice/acc", "tiny_choice/acc_stderr", "tiny_last_word/perplexity"} <= (
        figures.keys() & expected.keys()
    )
    bootstrapped = "tiny_last_word/perplexity_stderr"
    assert figures.pop(bootstrapped) == pytest.approx(expected.pop(bootstrapped), rel=0.1)
    # Batches of several tasks together: the last bits of sums may differ.
    assert figures == pytest.approx(expected, rel=1e-6)

    # Another path to the same weights; then another task, question, checkpoint.
    copied = shutil.copytree(checkpoint, tmp_path / "copied")
    measured.clear()
    code, output, errors = command(*words[:1], copied, *words[2:])
    assert json.loads(output)[0].items() >= figures.items()
    assert f"note: measured before (--again repeats it): {NAMES.replace(',', ', ')}" in errors
    assert measured == []
    data = tasks / "questions.jsonl"
    data.write_text(data.read_text().replace('"answer": 0', '"answer": 1'))
    command("eval", copied, "--tasks", "tiny_choice", "--include-path", tasks)
    command("eval", f"{trained_run}@10", "--tasks", "tiny_choice", "--include-path", tasks)
    words = ["eval", copied, "--tasks", "tiny_choice", "--include-path", tasks]
    command(*words, "--limit", 3)
    command(*words, "--again")
    assert measured == ["tiny_choice"] * 4
    code, table, _ = command("eval", f"{trained_run}@10", trained_run, *words[2:])
    assert code == 0
    assert table.split()[:7] == ["checkpoint", "task", "metric", "value", "±", "s.e.", "vs"]
    assert measured == ["tiny_choice"] * 4


def test_what_was_measured_before_an_error_is_kept(trained_run, tmp_path, command, measured):
    tasks = write_tasks(tmp_path / "tasks")
    data = "tiny_choice,tiny_broken"
    text = (tasks / "tiny_generate.yaml").read_text().replace("tiny_generate", "tiny_broken")
    broken = text.replace("max_gen_toks: 8", "max_gen_toks: 100")  # of 64 positions
    (tasks / "tiny_broken.yaml").write_text(broken)
    for measured_now in (["tiny_choice", "tiny_broken"], ["tiny_broken"]):
        measured.clear()
        code, _, errors = command("eval", trained_run, "--tasks", data, "--include-path", tasks)
        assert code == 3
        assert "error: task tiny_broken" in errors
        assert "Traceback" not in errors
        assert measured == measured_now


def test_bad_input_is_one_message(trained_run, tmp_path, command, monkeypatch):
    code, _, errors = command("eval", trained_run)
    assert code == 2
    assert "nothing to measure: give --data NAME=DIR, or --tasks" in " ".join(errors.split())
    code, _, errors = command("eval", trained_run, "--tasks", "x", "--include-path", tmp_path / "x")
    assert code == 3
    assert "no such folder; expected a folder with tasks" in errors
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.tasks", None)
    code, _, errors = command("eval", trained_run, "--tasks", "x")
    assert code == 3
    assert errors.count("\n") == 1
    assert "pip install 'rewarm[lm-eval]'" in errors
