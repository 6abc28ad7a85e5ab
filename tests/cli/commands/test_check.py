"""`rewarm check`: prints the plan, and refuses what training would refuse."""

import json
import re

import pytest
from planned_studies import write_study_with_base
from repository import ROOT
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


def test_an_automatic_microbatch_is_the_default(thousand_steps, tmp_path, command, monkeypatch):
    path = tmp_path / "recipe.yaml"
    path.write_text(thousand_steps.replace(", microbatch: 10", ""))
    _, out, _ = command("check", path)
    assert (  # the largest divisor of 100 with at most 2,048 tokens
        "batch       2 sequences × 1,000 tokens × 50 accumulated = 100,000 tokens; "
        "2 at once is auto on a CPU\n" in out
    )
    assert "1.21 GB logits\n" in out  # 12 bytes × 2,000 tokens × 50,304 rows
    monkeypatch.setattr("rewarm.estimates.run_plan._has_gpu", lambda: True)
    _, out, _ = command("check", path)
    assert "100 sequences × 1,000 tokens = 100,000 tokens, as many at once as fit" in out
    assert " logits, with one sequence at once\n" in out


@pytest.mark.parametrize(
    ("precision", "remark"),
    [
        ("fp32", ""),
        ("bf16", "; bf16 is slower than fp32 on most of them"),
        ("fp8", "; fp8 rounds as on a GPU there, and is slower than bf16 and fp32"),
    ],
)
def test_a_machine_without_a_gpu_is_remarked_on(
    thousand_steps, tmp_path, command, monkeypatch, precision, remark
):
    path = tmp_path / "recipe.yaml"
    path.write_text(thousand_steps.replace("1000", "1008").replace("100_000", "100_800"))
    monkeypatch.setattr("rewarm.estimates.run_plan._has_gpu", lambda: False)
    _, out, _ = command("check", path, "--set", f"precision={precision}")
    assert f"device      no GPU was found, so the run is on the CPU{remark}\n" in out
    assert "1 GPU" not in out
    monkeypatch.setattr("rewarm.estimates.run_plan._has_gpu", lambda: True)
    _, out, _ = command("check", path, "--set", f"precision={precision}")
    assert "no GPU was found" not in out


def test_check_and_plan_have_one_estimate_of_memory(thousand_steps, tmp_path, command, monkeypatch):
    path = tmp_path / "recipe.yaml"
    path.write_text(thousand_steps)
    by_device = {}
    for has_gpu, device, other in ((False, "CPU", "GPU"), (True, "GPU", "CPU")):
        monkeypatch.setattr("rewarm.estimates.run_plan._has_gpu", lambda found=has_gpu: found)
        _, checked, _ = command("check", path)
        _, planned, _ = command("plan", path)
        (here,) = re.findall(rf"memory +([\d.]+ [GM]B) at the peak on a {device}: ", checked)
        (elsewhere,) = re.findall(rf"\n +([\d.]+ [GM]B) on a {other}, ", checked)
        assert re.search(rf" {here} +[\d.]+ [GM]B\n", planned)  # the column of memory
        assert re.search(rf"\nmemory    on a {device}: .*; {elsewhere} on a {other}, ", planned)
        by_device |= {device: here, f"not {other}": elsewhere}
    assert by_device["CPU"] == by_device["not CPU"] != by_device["GPU"] == by_device["not GPU"]
    assert f" {by_device['GPU']} " in command("plan", path, "--gpu", "h100")[1]


def test_a_resume_is_planned(recipe_text, recipe_file, tmp_path, command):
    run(recipe_text, tmp_path / "run")
    code, out, _ = command("check", recipe_file, "--resume")
    assert code == 0
    assert "step-00000020: resumes after step 20" in out
    changed = ("--resume", "--set", "optimizer.weight_decay=0.2")
    assert command("check", recipe_file, *changed)[0] == 3
    code, _, err = command("check", recipe_file, *changed, "--accept-changes")
    assert (code, err) == (0, "")


def test_several_gpus(thousand_steps, tmp_path, command):
    path = tmp_path / "recipe.yaml"
    path.write_text(thousand_steps)
    _, out, _ = command("check", path, "--gpus", 4)
    assert "batch       100 sequences × 1,000 tokens = 100,000 tokens\n" in out
    assert "gpus        4 × 25 sequences, in 3 microbatches of 9\n" in out  # 25 / 10, rounded up
    assert "92.6% useful, the rest padding; none with batch.microbatch 5 or 25\n" in out
    assert "shard       1 " in out
    _, out, _ = command("check", path, "--gpus", 4, "--json", "--set", "parallel.shard=all")
    plan = RunPlan.model_validate_json(out)
    assert (plan.accumulation, plan.gpus.shard) == (3, 4)
    assert plan.memory.peak == plan.gpus.shards[-1].memory
    assert plan.memory.resting == 16 * PRESETS["pythia-14m"].parameters // 4


def test_gpus_that_cannot_share_a_run_are_one_error(thousand_steps, tmp_path, command):
    path = tmp_path / "recipe.yaml"
    path.write_text(thousand_steps)
    code, out, err = command("check", path, "--gpus", 4, "--set", "parallel.shard=3")
    assert (code, out) == (2, "")
    assert err == "parallel.shard: 3 does not divide 4 GPUs; try one of 1, 2, 4, or all\n"
    code, out, err = command("check", path, "--gpus", 101)
    assert (code, out) == (2, "")
    assert "100,000 are 100 sequences of 1,000 tokens, fewer than 101 GPUs" in err


@pytest.fixture
def study(tmp_path, thousand_steps):
    return write_study_with_base(tmp_path, thousand_steps)


def test_gpus_are_for_a_recipe(study, command):
    code, _, err = command("check", study, "--gpus", 2)
    assert code == 2
    assert "--gpus: is for a recipe" in err


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


@pytest.mark.slow
def test_the_papers_study_in_the_documentation_is_what_it_prints(command, monkeypatch):
    text = (ROOT / "docs" / "paper-study.md").read_text()
    monkeypatch.chdir(ROOT / "recipes")
    for line, printed in re.findall(r"\$ rewarm ([^\n]*)\n(.*?)```", text, re.DOTALL):
        code, out, _ = command(*line.split())
        assert (code, out) == (3 if line.startswith("check") else 0, printed)


def test_a_study_warns_of_the_arms_whose_rate_is_too_high(recipe_file, tmp_path, command):
    study = tmp_path / "study.yaml"
    study.write_text(
        f"study: {tmp_path}/runs\nrecipe: {recipe_file}\n"
        "arms: {a: , b: {schedule.peak_lr: 30}}\n"
    )
    code, out, _ = command("check", study)
    assert code == 0
    (warning,) = (line for line in out.splitlines() if line.startswith("warning"))
    assert "b: the learning rate is 30 at step 2; AdamW changes each weight by about" in warning


@pytest.mark.parametrize("name", ["train", "plot-schedule", "verify-resume"])
def test_a_study_is_named_as_such_where_a_recipe_is_expected(name, recipe_file, tmp_path, command):
    study = tmp_path / "study.yaml"
    study.write_text(f"study: runs\nrecipe: {recipe_file}\narms: {{a: }}\n")
    code, _, err = command(name, study)
    assert code == 2
    assert err.startswith(f"{study}: this is a study, and a recipe is expected here; run all its ")
    assert err.count("\n") == 1
