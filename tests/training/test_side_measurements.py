"""Tasks and text samples in a run: their figures, and that training does not notice them."""

import os
import random
import signal

import numpy as np
import pytest
import torch
from local_tasks import TASKS, write_tasks
from process_group import run_processes
from training_runs import metrics, run, trained_files

from rewarm.errors import DataError, Preempted, RecipeError
from rewarm.recipe.measurement_settings import TaskSettings
from rewarm.training import harness_tasks


def without(kinds, lines):
    return [line for line in lines if line["kind"] not in kinds]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


def of_harness(checkpoint, tasks, names, device="cpu"):
    """The figures of the harness's own `hf` model on a checkpoint."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    with harness_tasks.quiet_harness():
        results = simple_evaluate(
            model="hf",
            model_args={"pretrained": str(checkpoint)},
            tasks=list(names),
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            device=device,
            batch_size=4,
            bootstrap_iters=100,
        )
    return harness_tasks._figures_of(results)


@pytest.mark.slow
def test_tasks_of_a_run_have_the_figures_of_the_harness_and_change_nothing(
    recipe_text, tmp_path, tasks
):
    plain = run(recipe_text, tmp_path / "plain")
    settings = f"{{names: [{', '.join(TASKS)}], include: {tasks}}}"
    prompts = "{prompts: [ein neues Korpus, the learning rate], tokens: 8}"
    measured = run(
        recipe_text, tmp_path / "measured", tasks=settings, sample=prompts, every__tasks=10
    )
    lines = metrics(tmp_path / "measured")
    assert without(("tasks", "sample"), lines) == metrics(tmp_path / "plain")
    weights, plain_weights = trained_files(measured), trained_files(plain)
    del weights["progress.json"], plain_weights["progress.json"]  # it has the recipe's lineage
    assert weights == plain_weights

    by_step = {line["step"]: line for line in lines if line["kind"] == "tasks"}
    assert list(by_step) == [0, 10, 20]
    for step, checkpoint in ((10, measured.with_name("step-00000010")), (20, measured)):
        expected = of_harness(checkpoint, tasks, TASKS)
        assert {"tiny_choice/acc", "tiny_choice/acc_stderr", "tiny_rolling/bits_per_byte"} <= (
            expected.keys()
        )
        figures = {name: by_step[step][name] for name in expected}
        assert figures == pytest.approx(expected, rel=1e-5)
    assert by_step[0]["tiny_last_word/perplexity"] > 2 * by_step[20]["tiny_last_word/perplexity"]

    samples = {line["step"]: line for line in lines if line["kind"] == "sample"}
    assert list(samples) == [0, 5, 10, 15, 20]
    assert samples[20]["prompts"] == ["ein neues Korpus", "the learning rate"]
    assert samples[0]["texts"] != samples[20]["texts"]


@pytest.mark.slow  # the harness reads the definitions of all its tasks
def test_a_task_that_does_not_exist_is_one_error(recipe_text, tmp_path, tasks):
    with pytest.raises(RecipeError, match="task tiny_choise: the harness has no such task; did y"):
        run(recipe_text, tmp_path / "a", tasks=f"{{names: [tiny_choise], include: {tasks}}}")


def test_a_task_without_its_data_is_one_error(recipe_text, tmp_path):
    folder = write_tasks(tmp_path / "tasks")
    (folder / "questions.jsonl").unlink()
    with pytest.raises(DataError, match="task tiny_choice: its data or its definition cannot be"):
        run(recipe_text, tmp_path / "b", tasks=f"{{names: [tiny_choice], include: {folder}}}")


def test_a_measurement_that_fails_does_not_stop_training(
    recipe_text, tmp_path, tasks, monkeypatch, capsys
):
    def fail(*_arguments, **_settings):
        raise ValueError("no answer")

    monkeypatch.setattr(harness_tasks.HarnessTasks, "measure", fail)
    settings = f"{{names: [tiny_choice], include: {tasks}}}"
    run(recipe_text, tmp_path / "run", tasks=settings, tokens=2048)
    assert metrics(tmp_path / "run", "tasks") == []
    assert metrics(tmp_path / "run", "evaluate")[-1]["step"] == 2
    warning = "step 2  warning: the tasks were not measured: ValueError: no answer; training contin"
    assert warning in capsys.readouterr().err


def test_a_stop_in_a_measurement_is_made_up_for(recipe_text, tmp_path, tasks, monkeypatch):
    settings = {
        "tasks": f"{{names: [tiny_choice], include: {tasks}}}",
        "sample": "{prompts: [ein neues], tokens: 8}",
        "every__tasks": 10,
    }
    whole = tmp_path / "whole"
    run(recipe_text, whole, **settings)
    stopped = tmp_path / "stopped"
    measure, calls = harness_tasks.HarnessTasks.measure, []

    def measure_and_terminate(*arguments, **keywords):
        calls.append(arguments)
        if len(calls) == 2:  # the first was before step 1
            os.kill(os.getpid(), signal.SIGTERM)
        return measure(*arguments, **keywords)

    monkeypatch.setattr(harness_tasks.HarnessTasks, "measure", measure_and_terminate)
    with pytest.raises(
        Preempted, match=r"step 10, .* its evaluation was stopped and will be repea"
    ):
        run(recipe_text, stopped, **settings)
    run(recipe_text, stopped, resume=True, **settings)
    assert metrics(stopped) == metrics(whole)


def test_random_numbers_stay_as_they_were(tasks):
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    harness_tasks.HarnessTasks(TaskSettings(names=("tiny_choice",), include=str(tasks)))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]


@pytest.mark.slow
def test_several_processes_share_the_requests_of_tasks(recipe_text, tmp_path, tasks):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_text)
    options = [
        "--set", f"tasks={{names: [{', '.join(TASKS)}], include: {tasks}}}",
        "--set", "sample={prompts: [ein neues Korpus, the learning rate], tokens: 8}",
        "--set", "tokens=5120",
    ]  # fmt: skip
    words = ["train", str(recipe), *options, "--set"]
    alone = run_processes(tmp_path / "1", 1, *words, f"run={tmp_path}/alone")
    assert alone.codes == [0], alone.errors
    two = run_processes(
        tmp_path / "2", 2, *words, f"run={tmp_path}/two", "--set", "parallel.shard=all"
    )
    assert two.codes == [0, 0], two.errors
    for one, other in zip(
        metrics(tmp_path / "alone", "tasks"), metrics(tmp_path / "two", "tasks"), strict=True
    ):
        assert other.pop("kind") == one.pop("kind")
        assert other == pytest.approx(one, rel=1e-3)
    assert metrics(tmp_path / "alone", "sample") == metrics(tmp_path / "two", "sample")
    plain = run_processes(
        tmp_path / "3", 2, "train", str(recipe), "--set", f"run={tmp_path}/plain",
        "--set", "parallel.shard=all", "--set", "tokens=5120",
    )  # fmt: skip
    assert plain.codes == [0, 0], plain.errors
    measured = without(("tasks", "sample"), metrics(tmp_path / "two"))
    assert measured == metrics(tmp_path / "plain")
