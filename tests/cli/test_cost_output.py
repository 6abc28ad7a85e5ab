"""Speeds are measured once for runs that are equally fast; figures as they are printed."""

import re

import pytest

from recipes import recipe_of
from rewarm.cli.cost_output import print_cost, speed_by_measuring
from rewarm.estimates import measure_step_time
from rewarm.estimates.cost import CostEstimate, RunCost, RunHours
from rewarm.estimates.throughput import Speed
from rewarm.model.architecture import PRESETS


def test_what_changes_no_time_is_not_measured_again(thousand_steps, monkeypatch, capsys):
    measured = []

    def measure(recipe, architecture, evaluated):
        measured.append(evaluated)
        return Speed(step=1.0, evaluated_per_second=1.0, source="this test")

    monkeypatch.setattr(measure_step_time, "measure_step_time", measure)
    speed_of, small = speed_by_measuring(), PRESETS["pythia-14m"]
    for override in ("seed=1", "seed=2", "schedule.peak_lr=1e-3", "tokens=50M"):
        speed_of(recipe_of(thousand_steps, override), small, 0)
    assert len(measured) == 1
    assert "measuring 14,067,712 parameters, 100,000 tokens a step" in capsys.readouterr().err
    for override in ("precision=fp32", "data.context=500", "batch.microbatch=5", "memory=lean"):
        speed_of(recipe_of(thousand_steps, override), small, 0)
    speed_of(recipe_of(thousand_steps), small, 640)
    speed_of(recipe_of(thousand_steps), PRESETS["pythia-70m"], 0)
    assert len(measured) == 7


@pytest.fixture
def estimate():
    hours = RunHours(training=0.5, evaluating=0.02, saving=0.001, starting=0.001)
    cost = RunCost(
        name="runs/x", runs=1, device="GPU", gpus=1, tokens=10**8, steps=1000, flops=10**17,
        evaluations=0, evaluated=0, sequences=100, microbatch=10, time=hours, hours=hours.total,
        gpu_hours=hours.total, memory=2 * 10**9, memory_measured=True, checkpoints=1,
        memory_elsewhere=None,
        checkpoint_bytes=10**8, disk=10**8, source="10 tokens/s", problems=0,
    )  # fmt: skip
    return CostEstimate(
        gpus=1, runs=1, costs=[cost], tokens=10**8, flops=10**17, memory=2 * 10**9, disk=10**8,
        hours=hours.total, gpu_hours=hours.total, held_gpu_hours=hours.total,
    )  # fmt: skip


def test_notes_of_a_measured_run(estimate, capsys):
    print_cost(estimate, None)
    header, row, *notes = capsys.readouterr().out.splitlines()
    assert " ".join(header.split()) == "run tokens steps FLOPs time GPU hours memory disk"
    assert row.split()[:6] == ["runs/x", "100M", "1,000", "1.00e17", "31.3", "min"]
    assert notes == [
        "speed     10 tokens/s",
        "time      30.0 min of steps + 3.6 s of saves + 3.6 s of startup and exit",
        "FLOPs     6 per parameter in a matmul + 12 · layers · hidden · context a token; training",
        "memory    the peak of the process that took the steps, Python and torch included",
        "disk      1 checkpoint × 100.00 MB, 12 bytes a parameter; tokenizer and metrics not "
        "included",
    ]


def test_hours_of_a_cpu_are_no_gpu_hours(estimate, capsys):
    estimate.costs[0].device = "CPU"
    print_cost(estimate.model_copy(update={"price": 2.0, "cost": 1.0}), None)
    printed = capsys.readouterr().out
    assert "GPU" not in printed
    assert "\ncost      hours × 2\n" in printed


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_a_narrow_terminal_cuts_off_no_figure(estimate, capsys, monkeypatch, columns):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    monkeypatch.setenv("COLUMNS", str(columns))
    estimate.costs[0].name = "runs/of-a-long-name"
    print_cost(estimate, None)
    table = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).partition("speed")[0]
    figures = ["100M", "1,000", "1.00e17", "31.3 min", "0.522", "2.00 GB", "100.00 MB"]
    assert all(figure in table for figure in figures)
    assert "…" not in table


@pytest.mark.parametrize(
    ("problems", "text"), [(1, "1 problem prevents training"), (3, "3 problems prevent training")]
)
def test_problems_are_counted(estimate, capsys, problems, text):
    estimate.costs[0].problems = problems
    print_cost(estimate, None)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"problems  {text} here; `rewarm check` lists them"
