"""`rewarm plan`: its arithmetic by hand, its packing, and ten steps for real."""

import re
from functools import partial

import pytest
from repository import ROOT

from rewarm.errors import RewarmError
from rewarm.estimates import measure_step_time
from rewarm.estimates.cost import (
    CostEstimate,
    QueuedRun,
    estimate_recipe_cost,
    estimate_study_cost,
    makespan,
)
from rewarm.estimates.throughput import MEASURED_SPEEDS, Speed, speed_of_recipe, speed_on_gpu
from rewarm.model.architecture import PRESETS, Architecture
from rewarm.recipe.recipe import load_recipe
from rewarm.study.study_file import load_study

PAPER = ROOT / "recipes" / "pythia-410m-rewarm.yaml"


def on_h100(path, *overrides, gpus=1):
    made = load_recipe(path, list(overrides))
    return estimate_recipe_cost(made, gpus=gpus, on_gpu=True, speed_of=speed_on_gpu("h100"))


def test_the_papers_run_by_hand():
    bill = on_h100(PAPER)
    (cost,) = bill.costs
    # 24 layers of 12 · 1024² + 13 · 1024, the last norm, 50,304 rows of 1024: all that multiply.
    multiplied = 24 * (12 * 1024**2 + 13 * 1024) + 2 * 1024 + 50_304 * 1024
    assert cost.flops == 296_859_205_632 * (6 * multiplied + 12 * 24 * 1024 * 2048)
    assert cost.time.training == pytest.approx(473.9, abs=0.05)  # 296.859 B / 174 k / 3,600
    # 9,765 blocks of a set in 611 microbatches of 16 × 2,048, two sets, 133 times, at 522 k/s.
    assert cost.evaluated == 2 * 611 * 16 * 2048
    assert cost.time.evaluating == pytest.approx(133 * 2 * 611 * 32_768 / 522_000 / 3600)
    assert bill.hours == bill.gpu_hours == pytest.approx(473.92 + 2.83, abs=0.01)
    # Of every 20,000 steps 6, the last 3, and the one that is dropped when a new one is whole.
    assert (cost.checkpoints, cost.disk) == (10, 10 * 12 * 405_334_016)
    assert cost.source.startswith("174,000 tokens/s, pythia-410m on one h100, 16 × 2,048 at once")
    assert MEASURED_SPEEDS[0].mfu == pytest.approx(0.4796, abs=1e-4)


def test_another_shape_has_the_same_mfu_and_says_so():
    made = load_recipe(PAPER, ["model={preset: pythia-1b}"])
    speed = speed_of_recipe("h100", made, PRESETS["pythia-1b"])
    ratio = PRESETS["pythia-410m"].flops_per_token(2048) / PRESETS["pythia-1b"].flops_per_token(
        2048
    )
    assert 2_260_992 / speed.step == pytest.approx(174_000 * ratio)
    assert "at an MFU of 48.0% that was not measured for this shape and microbatch" in speed.source


def test_several_gpus_share_the_microbatches_of_a_step():
    one, eight, many = (on_h100(PAPER, gpus=gpus) for gpus in (1, 8, 100))
    training = one.costs[0].time.training
    assert eight.costs[0].time.training == pytest.approx(training * 9 / 69)  # 69 / 8 = 8.6
    assert many.costs[0].time.training == pytest.approx(training / 69)
    assert eight.gpu_hours == 8 * eight.hours == eight.held_gpu_hours


def test_only_the_checkpoints_that_stay_take_room():
    # Of 131 and the last: three, the last that is written beside them, every 50,000th.
    (cost,) = on_h100(PAPER, "keep={last: 3, every: 50k}").costs
    assert cost.checkpoints == 2 + 3 + 1
    assert on_h100(PAPER, "every.save=null").costs[0].checkpoints == 1


@pytest.mark.parametrize(("workers", "hours"), [(1, 8 + 3 + 9), (2, 8 + 3), (3, 8 + 3), (9, 8 + 3)])
def test_runs_are_packed_in_their_order_behind_their_bases(workers, hours):
    runs = [QueuedRun("slow", None, 8.0), QueuedRun("quick", None, 3.0)]
    runs += [
        QueuedRun("a", "slow", 3.0),
        QueuedRun("b", "quick", 3.0),
        QueuedRun("c", "quick", 3.0),
    ]
    assert makespan(runs, workers) == hours


def test_packing_by_hand():
    runs = [QueuedRun(str(hours), None, float(hours)) for hours in (5, 4, 3, 3)]
    assert makespan(runs, 2) == 8  # 5 + 3 beside 4 + 3
    assert makespan(runs, 4) == 5


@pytest.fixture
def arms(tmp_path, thousand_steps):
    """A study: a base, and two arms from it with two seeds."""
    (tmp_path / "recipe.yaml").write_text(thousand_steps)
    (tmp_path / "base.yaml").write_text(thousand_steps.replace("100M", "50M"))
    path = tmp_path / "study.yaml"
    model = f"model: {{base: {tmp_path}/runs/bases/up}}"
    path.write_text(
        f"study: {tmp_path}/runs\nrecipe: recipe.yaml\nbases: {{up: base.yaml}}\nseeds: [1, 2]\n"
        f"arms:\n  a: {{{model}}}\n  b: {{{model}, tokens: 200M}}\n"
    )
    return path


def test_a_study_on_several_gpus(arms):
    def speed_of(made, shape, evaluated):
        assert shape == PRESETS["pythia-14m"]  # the base's, which is still to be trained
        assert evaluated == 0
        return Speed(step=3.6, evaluated_per_second=1.0, source="a second hand")

    bill = partial(estimate_study_cost, load_study(arms), on_gpu=True, speed_of=speed_of)
    one, two = bill(gpus=1), bill(gpus=2)
    assert [(cost.name, cost.runs, cost.hours) for cost in one.costs] == [
        ("bases/up", 1, pytest.approx(0.5)),
        ("a", 2, pytest.approx(1.0)),
        ("b", 2, pytest.approx(2.0)),
    ]
    assert one.hours == one.gpu_hours == two.gpu_hours == pytest.approx(6.5)
    # Both wait for the base; then a/1, a/2, b/2 beside b/1.
    assert two.hours == pytest.approx(0.5 + 1 + 1 + 2)
    assert two.held_gpu_hours == pytest.approx(9.0)
    assert one.tokens == 650_000_000
    assert one.runs == 5


def test_check_of_a_study_says_hours_where_a_speed_is_known(arms, command):
    code, out, _ = command("check", arms)
    assert code == 0
    (hours,) = re.findall(r"^hours     ([\d.]+) on one h100 \(rewarm plan --gpu h100\)$", out, re.M)
    flops = 650_000_000 * PRESETS["pythia-14m"].flops_per_token(1000)
    assert float(hours) == pytest.approx(
        flops / MEASURED_SPEEDS[0].flops_per_second / 3600, rel=5e-3
    )
    arms.with_name("recipe.yaml").write_text(
        arms.with_name("recipe.yaml").read_text() + "precision: fp32\n"
    )
    _, out, _ = command("check", arms)
    assert "hours     rewarm plan --measure, on the machine that is to run it" in out


def test_the_command_prints_a_table_and_where_it_is_from(command):
    code, out, err = command("plan", PAPER, "--gpu", "h100", "--gpus", 8, "--price", 2.5)
    assert (code, err) == (0, "")
    head, row, *notes = out.splitlines()
    assert head.split("  ")[0] == "run"
    assert re.split(r"  +", row)[1:6] == ["296.86B", "131,296", "8.10e20", "62.2 h", "497.4"]
    keys = [line[:10].strip() for line in notes]
    assert keys == ["speed", "time", "GPUs", "FLOPs", "memory", "disk", "cost"]
    assert "the busiest runs 9 of a step's 69 microbatches of 16" in out
    code, out, _ = command("plan", PAPER, "--gpu", "h100", "--price", "2.5", "--json")
    bill = CostEstimate.model_validate_json(out)
    assert bill.cost == pytest.approx(2.5 * 476.75, abs=0.05)


def test_without_a_speed_it_says_the_rest(command):
    code, out, _ = command("plan", PAPER)
    assert code == 0
    assert "GPU hours" not in out.splitlines()[0]
    assert "time      name what to run on (--gpu h100), or --measure on this machine" in out


def test_what_does_not_fit_is_told(command):
    _, out, _ = command("plan", PAPER, "--gpu", "h100", "--set", "model={preset: pythia-12b}")
    assert "memory    more than the 80.00 GB of h100: at this microbatch it does not fit" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpu", "h1000"], "nothing was measured on it; did you mean 'h100'? (measured: h100)"),
        (["--gpu", "h100", "--measure"], "the speed is that of one or the other"),
        (["--price", "2"], "hours are needed for it"),
        (["--gpus", "0"], "greater than or equal to 1"),
        (["--gpu", "h100", "--set", "precision=fp16"], "no speed of h100 in fp16 is known"),
        (["--gpu", "h100", "--set", "compile=false"], "in bf16, not compiled is known"),
        (["--set", "sede=1"], "sede: no such setting"),
    ],
)
def test_what_cannot_be_planned_is_an_error_of_the_command_line(command, words, said):
    code, out, err = command("plan", PAPER, *words)
    assert (code, out) == (2, "")
    assert said in err


def test_a_base_that_is_nowhere(command, tmp_path):
    code, _, err = command("plan", PAPER, "--set", f"model={{base: {tmp_path}/nowhere}}")
    assert code == 3
    assert "nowhere: no such folder, and not a hub name" in err


TINY = Architecture(layers=2, hidden=32, heads=2, vocabulary=512, positions=64)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(measure_step_time, "MIN_SECONDS", 0.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_ten_steps_for_real(quick, recipe_file, command, tmp_path):
    # Neither its base nor its data is needed.
    changed = ("--set", "batch.microbatch=auto", "--set", "data.validation.downstream.tokens=1280")
    code, out, err = command("plan", recipe_file, "--measure", "--json", *changed)
    assert code == 0
    assert "measuring 58,240 parameters, 1,024 tokens a step" in err
    (cost,) = CostEstimate.model_validate_json(out).costs
    assert all(spent > 0 for spent in cost.time.model_dump().values())
    assert cost.microbatch == 16  # 2,048 tokens at once would be 32; the batch has 16
    assert cost.memory_measured
    assert 100e6 < cost.memory < 4e9
    assert re.match(r"[\d,]+ tokens/s: \d+ steps of a real run on this machine", cost.source)
    assert not (tmp_path / "run").exists()


def test_alike_runs_are_measured_once(quick, recipe_file, tmp_path, command):
    path = tmp_path / "study.yaml"
    path.write_text(
        f"study: {tmp_path}/runs\nrecipe: {recipe_file.name}\n"
        "arms: {a: , b: {schedule.peak_lr: 1e-3}}\n"
    )
    code, out, err = command("plan", path, "--measure", "--gpus", 2)
    assert code == 0
    assert err.count("measuring") == 1
    assert "memory    the peak of the process that took the steps" in out
    assert "(rewarm compare --workers 2)" in out


def test_what_cannot_be_measured_says_why(quick, recipe_file):
    made = load_recipe(recipe_file)
    with pytest.raises(RewarmError, match=r"ended with exit code 2: .*context: 64 is longer"):
        measure_step_time.measure_step_time(made, TINY.model_copy(update={"positions": 32}), 0)


def test_the_worked_example_is_what_it_prints(command, monkeypatch):
    readme = (ROOT / "docs" / "plan.md").read_text()
    monkeypatch.chdir(ROOT / "recipes")
    examples = re.findall(r"\$ rewarm (plan [^\n]*)\n(.*?)```", readme, re.DOTALL)
    assert len(examples) == 2
    for line, printed in examples:
        code, out, _ = command(*line.split())
        assert code == 0
        assert out == printed
