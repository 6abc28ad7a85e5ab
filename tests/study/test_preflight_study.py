"""A study is checked before any of it runs, and refused with everything that prevents it."""

import fcntl
import re
import shutil

import pytest
from training_runs import run

from rewarm.errors import CheckpointError, DataError, RecipeError, RewarmError
from rewarm.study.preflight_study import check_study
from rewarm.study.study_file import load_study

ARMS = "  a:\n  b: {schedule.peak_lr: 1e-3}\n"


@pytest.fixture
def write_study(recipe_text, tmp_path):
    """Writes a study of arms with two seeds, from a base that is not trained yet."""

    def write(arms: str = ARMS):
        model = recipe_text[recipe_text.index("model:") : recipe_text.index("data:")]
        base = f"model: {{base: {tmp_path}/study/bases/up}}\n"
        (tmp_path / "base.yaml").write_text(recipe_text)
        (tmp_path / "arm.yaml").write_text(recipe_text.replace(model, base))
        path = tmp_path / "study.yaml"
        path.write_text(
            f"study: {tmp_path}/study\nrecipe: arm.yaml\nbases: {{up: base.yaml}}\n"
            f"seeds: [1, 2]\narms:\n{arms}"
        )
        return path

    return write


def refusal(path) -> RewarmError:
    with pytest.raises(RewarmError) as error:
        check_study(load_study(path))
    return error.value


def test_a_study_passes_before_its_bases_are_trained(write_study, tmp_path):
    carry = "  carried: {optimizer.carry: true, data.carry: true}\n"
    check_study(load_study(write_study(ARMS + carry)))
    assert not (tmp_path / "study").exists()


def test_a_study_passes_after_its_bases_are_trained(write_study, recipe_text, tmp_path):
    path = write_study()
    run(recipe_text, tmp_path / "study" / "bases" / "up")
    check_study(load_study(path))


def test_problems_are_grouped_with_the_names_of_their_runs(write_study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arms = (
        "  no-corpus: {data.train.upstream.shards: nowhere}\n"
        "  neither:\n    data.train.upstream.shards: nowhere\n"
        "    data.validation.upstream.shards: nor-here\n"
    )
    error = refusal(write_study(ARMS + arms))
    assert isinstance(error, DataError)
    lines = str(error).splitlines()
    assert [line.partition(": no such folder")[0] for line in lines] == [
        "no-corpus/1, neither/1, no-corpus/2, neither/2: nowhere",
        "neither/1, neither/2: nor-here",
    ]


def test_of_many_runs_with_a_problem_two_are_named(write_study, tmp_path):
    arms = "".join(f"  arm-{i}: {{data.train.upstream.shards: nowhere}}\n" for i in range(9))
    path = write_study(ARMS + arms)
    some, *_ = str(refusal(path)).splitlines()
    assert some.startswith(
        f"arm-0/1, arm-1/1 and 16 more of 23 runs: {tmp_path}/nowhere: no such folder; expected "
        "a folder that `rewarm shard` wrote"
    )
    shards = tmp_path / "shards"
    path.write_text(path.read_text().replace("nowhere", str(shards)))
    for recipe in (tmp_path / "base.yaml", tmp_path / "arm.yaml"):
        lines = recipe.read_text().splitlines()
        changed = [
            re.sub(r"downstream: \{shards: [^,}]+", f"downstream: {{shards: {shards}", line)
            for line in lines
        ]
        recipe.write_text("\n".join(changed) + "\n")
    assert f"all 23 runs: {shards}: no such folder" in str(refusal(path))


def test_problems_of_bases_are_listed_first(write_study, tmp_path):
    path = write_study()
    base = tmp_path / "base.yaml"
    base.write_text(base.read_text().replace("upstream/train", "upstream/missing"))
    message = str(refusal(path))
    assert message.startswith("bases/up: ")
    assert "upstream/missing: no such folder" in message


@pytest.mark.parametrize(("order", "kind"), [(1, RecipeError), (-1, DataError)])
def test_the_exit_code_is_that_of_the_first_problem(write_study, tmp_path, order, kind):
    arms = ["  width: {precision: fp8}\n", "  corpus: {data.train.upstream.shards: nowhere}\n"]
    path = write_study("".join(arms[::order]))
    base = tmp_path / "base.yaml"
    base.write_text(base.read_text().replace("hidden: 32", "hidden: 36"))
    error = refusal(path)
    assert type(error) is kind
    assert len(str(error).splitlines()) == 2


def test_check_and_compare_refuse_alike_and_run_nothing(
    write_study, command, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = write_study(ARMS + "  c: {data.train.upstream.shards: nowhere}\n")
    checked, plan, message = command("check", path)
    compared, out, same_message = command("compare", path)
    assert checked == compared == 3
    assert message == same_message
    assert "c/1, c/2: nowhere: no such folder" in message
    assert "runs      3 arms × 2 seeds" in plan
    assert out == ""
    assert not (tmp_path / "study").exists()


def test_a_run_that_another_worker_has_locked_is_no_problem(write_study, tmp_path):
    path = write_study()
    directory = tmp_path / "study" / "a" / "1"
    (directory / "checkpoints").mkdir(parents=True)
    with (directory / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        check_study(load_study(path))


def test_a_run_that_was_stopped_is_no_problem_unless_its_recipe_changed(
    write_study, recipe_text, tmp_path
):
    path = write_study()
    base = tmp_path / "study" / "bases" / "up"
    run(recipe_text, base)
    shutil.rmtree(base / "checkpoints" / "step-00000020")
    check_study(load_study(path))
    (tmp_path / "base.yaml").write_text(recipe_text.replace("seed: 5", "seed: 6"))
    error = refusal(path)
    assert type(error) is CheckpointError
    assert "seed: 5 → 6" in str(error)


def test_a_complete_run_of_another_recipe_is_a_problem(write_study, recipe_text, tmp_path):
    path = write_study()
    run(recipe_text, tmp_path / "study" / "bases" / "up", seed=6)
    message = str(refusal(path))
    assert message.startswith("bases/up: ")
    assert "already complete, but by another recipe: seed: 6 → 5" in message


def test_a_recipe_of_the_user_is_not_replaced(write_study, recipe_text, tmp_path):
    """With `study: .`, the recipe of the base `up` would be written to bases/up.yaml."""
    path = write_study(ARMS)
    (tmp_path / "bases").mkdir()
    theirs = tmp_path / "bases" / "up.yaml"
    theirs.write_text(f"# Mine.\n{recipe_text}")
    path.write_text("study: .\nrecipe: bases/up.yaml\nbases: {up: bases/up.yaml}\narms: {a: }\n")
    error = refusal(path)
    assert f"{theirs}: rewarm did not write this file here, and the run would" in str(error)
    assert "name another folder as `study`" in str(error)


def test_runs_that_their_gpus_cannot_share_are_refused(write_study):
    """A batch has 16 sequences; one arm divides its weights among three GPUs."""
    plan = load_study(write_study(ARMS + "  three: {parallel.shard: 3}\n"))
    check_study(plan)  # on GPUs that are not known
    check_study(plan, gpus=3)
    with pytest.raises(RecipeError) as error:
        check_study(plan, gpus=4)
    expected = "parallel.shard: 3 does not divide 4 GPUs; try one of 1, 2, 4, or all"
    assert str(error.value) == f"three/1, three/2: {expected}"
    with pytest.raises(RecipeError, match="are 16 sequences of 64 tokens, fewer than 17 GPUs"):
        check_study(plan, gpus=17)
