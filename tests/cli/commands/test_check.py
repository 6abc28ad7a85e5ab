"""`rewarm check`: prints the plan, and refuses what training would refuse."""

import json
import re

import pytest
from planned_studies import write_study_with_base
from training_runs import run

from rewarm.estimates.run_plan import RunPlan, plan_run
from rewarm.estimates.throughput import MEASURED_SPEEDS
from rewarm.model.architecture import PRESETS
from rewarm.recipe.recipe import load_recipe
from rewarm.runs.resolve_run import resolve


def test_the_plan_is_printed_and_then_the_problems(recipe_file, command, tmp_path):
    code, out, err = command("check", recipe_file)
    assert (code, err) == (0, "")
    assert "20,480 tokens / 1,024 a step = 20 steps" in out
    assert not (tmp_path / "run").exists()
    code, out, err = command("check", recipe_file, "--set", "data.validation.upstream.shards=none")
    assert code == 3
    assert "20,480 tokens / 1,024 a step = 20 steps" in out
    assert "none: no such folder" in err


def test_json_is_the_plan(recipe_file, command):
    code, out, _ = command("check", recipe_file, "--json")
    assert code == 0
    printed = json.loads(out)
    assert printed["steps"] == 20
    assert printed["train"]["upstream"]["there"] > 10_000
    assert RunPlan.model_validate(printed) == plan_run(resolve(load_recipe(recipe_file)))
    code, out, _ = command(
        "check", recipe_file, "--json", "--set", "data.validation.upstream.shards=none"
    )
    assert code == 3
    assert len(json.loads(out)["problems"]) == 1


def test_an_automatic_microbatch_is_planned_without_a_number(thousand_steps, tmp_path, command):
    path = tmp_path / "recipe.yaml"
    path.write_text(thousand_steps)
    _, out, _ = command("check", path, "--set", "batch.microbatch=auto")
    assert "100 sequences × 1,000 tokens = 100,000 tokens, as many at once as fit" in out
    assert "603.65 MB logits, with one sequence at once\n" in out


def test_a_resume_is_planned(recipe_text, recipe_file, tmp_path, command):
    run(recipe_text, tmp_path / "run")
    code, out, _ = command("check", recipe_file, "--resume")
    assert code == 0
    assert "step-00000020: resumes after step 20" in out
    changed = ("--resume", "--set", "optimizer.weight_decay=0.2")
    assert command("check", recipe_file, *changed)[0] == 3
    code, _, err = command("check", recipe_file, *changed, "--accept-changes")
    assert (code, err) == (0, "")


@pytest.fixture
def study(tmp_path, thousand_steps):
    return write_study_with_base(tmp_path, thousand_steps)


def test_gpu_hours_of_a_study_where_a_speed_is_known(study, command):
    _, out, _ = command("check", study)
    (hours,) = re.findall(r"^hours     ([\d.]+) on one h100 \(rewarm plan --gpu h100\)$", out, re.M)
    flops = 650_000_000 * PRESETS["pythia-14m"].flops_per_token(1000)
    expected = flops / MEASURED_SPEEDS[0].flops_per_second / 3600
    assert float(hours) == pytest.approx(expected, rel=5e-3)
    recipe = study.with_name("recipe.yaml")
    recipe.write_text(recipe.read_text() + "precision: fp32\n")
    _, out, _ = command("check", study)
    assert "hours     rewarm plan --measure, on the machine that will run it" in out
