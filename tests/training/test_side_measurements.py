"""Tasks and text samples in a run: their figures, and that training does not notice them."""

import pytest
from local_tasks import TASKS, write_tasks
from training_runs import metrics, run, trained_files

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

    with harness_tasks._quiet():
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
