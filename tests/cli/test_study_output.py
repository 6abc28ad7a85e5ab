"""What is printed of a study, before its runs and after them."""

import errno
import io
import json
import os
import re
from pathlib import Path

import pytest
from loss_histories import outcome
from planned_studies import write_study
from rich.console import Console

from rewarm.cli import study_output
from rewarm.cli.study_output import print_study_plan, run_and_print_study
from rewarm.errors import CheckpointError
from rewarm.report.collect_runs import CollectedRuns, RunRecord
from rewarm.report.loss_tables import validation_set_table
from rewarm.study.run_outcomes import StudyResults
from rewarm.study.runner import RunStatus
from rewarm.study.study_file import load_study
from rewarm.study.worker_gpus import divide_gpus


@pytest.fixture
def plan(tmp_path, thousand_steps):
    settings = """\
arms:
  a:
  b: {schedule.peak_lr: 1e-3}
seeds: [1, 2]
claims: {"a forgets less": "forgetting(upstream, a) < forgetting(upstream, b)"}
"""
    path = write_study(
        tmp_path, thousand_steps, "{upstream: {shards: x}, downstream: {shards: y}}", settings
    )
    return load_study(path)


def test_plan_lists_arms_runs_and_claims(plan, capsys, tmp_path):
    print_study_plan(plan)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["arm", "steps", "tokens", "starts", "from", "changes"]
    assert lines[1].split() == ["a", "1,000", "100M", "pythia-14m", "nothing"]
    assert lines[2].split() == ["b", "1,000", "100M", "pythia-14m", "schedule.peak_lr:", "0.001"]
    assert "batches   the same for a, b" in lines
    assert f"runs      2 arms × 2 seeds = 4 runs, 400M tokens, in {tmp_path}/runs" in lines
    assert "claim     a forgets less: forgetting(upstream, a) < forgetting(upstream, b)" in lines


def records_of(*arms):
    """Returns the run of each arm, without its content."""
    return [RunRecord(arm, 1, Path(), [], None, "", {}, None, [], [], []) for arm in arms]


def test_plan_says_what_its_seeds_decide_and_what_more_cost(plan, capsys, tmp_path):
    def seed_lines(*overrides):
        print_study_plan(load_study(tmp_path / "study.yaml", list(overrides)))
        lines = capsys.readouterr().out.splitlines()
        (hours,) = (float(line.split()[1]) for line in lines if line.startswith("hours"))
        notes = [line for line in lines if line.startswith(("seeds", "undecided"))]
        more = re.search(r" \((.*) GPU hours more\)", notes[0])
        return [notes[0].replace(more[0], ""), *notes[1:]], float(more[1]) / hours

    # Student's t / √n: 12.706 / √2 and 4.303 / √3.
    (line,), more = seed_lines()
    assert line == (
        "seeds     2: a claim is decided if its effect is above 8.98 standard deviations between "
        "seeds; with one seed more above 2.48"
    )
    assert more == pytest.approx(0.5, rel=0.01)
    (line,), more = seed_lines("seeds=[7]")
    assert line == (
        "seeds     1: none of the 1 claims can be decided, since one seed gives no interval; try "
        "--set 'seeds=[7, 8, 9]'"
    )
    assert more == pytest.approx(2, rel=0.01)
    (_, line), _ = seed_lines("claims={late: 'slope(upstream, a, last 20%) < 0'}")
    assert line == (
        "undecided late: slope of a takes 3 evaluations in that part of the run, which has 1; set "
        "every.evaluate, such as [{until: 1%, every: 20}, {every: 1000}]"
    )


@pytest.fixture
def finished_runs(monkeypatch, tmp_path):
    """Has the runner find four complete runs, and run nothing."""
    (tmp_path / "runs").mkdir()
    results = StudyResults(
        {
            ("a", 1): outcome(upstream=[2.0, 2.1, 2.2], downstream=[4.0, 3.0, 2.9]),
            ("a", 2): outcome(upstream=[2.0, 2.1, 2.4], downstream=[4.0, 3.0, 2.9]),
            ("b", 1): outcome(upstream=[2.0, 2.6, 2.5], downstream=[4.0, 3.2, 2.5]),
            ("b", 2): outcome(upstream=[2.0, 2.6, 2.9], downstream=[4.0, 3.1, 2.5]),
        }
    )
    monkeypatch.setattr(study_output.StudyRunner, "run_all", lambda *_, **__: None)
    monkeypatch.setattr(study_output.StudyRunner, "results", lambda _: results)


def test_results_are_printed_and_written(plan, finished_runs, capsys, tmp_path):
    run_and_print_study(plan, divide_gpus([], 1), as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "Losses on upstream",
        "arm   start            final            change         peak rise  recovered at"
        "              vs a",
        "a    2.0000  2.3000 ± 0.1000  +0.3000 ± 0.1000  +0.3000 ± 0.1000         never",
        "b    2.0000  2.7000 ± 0.2000  +0.7000 ± 0.2000  +0.7500 ± 0.1500         never"
        "  +0.4000 ± 0.1000",
    ]
    assert (
        "front     a, b: the Pareto front of upstream and downstream, where a lower loss on one "
        "costs loss on the other" in lines
    )
    assert "batches   seed 1: the same tokens for a, b" in lines
    assert lines[-1] == f"results   {tmp_path}/runs/results.json"
    header, claim = lines[-3:-1]
    assert header.split() == ["verdict", "effect", "name", "reason"]
    assert claim.split()[:2] == ["undecided", "-0.4000"]
    assert claim.endswith("a forgets less  the 95% interval contains 0")


def test_json_is_the_content_of_results_json(plan, finished_runs, capsys, tmp_path):
    run_and_print_study(plan, divide_gpus([], 1), as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "runs" / "results.json").read_text())
    assert printed["pareto"] == {"downstream": ["a", "b"]}


@pytest.mark.parametrize("runs_failed", [False, True])
def test_a_full_disk_keeps_the_old_results_and_prints_the_new_ones(
    plan, finished_runs, capsys, tmp_path, monkeypatch, runs_failed
):
    path = tmp_path / "runs" / "results.json"
    path.write_text("old")

    def fail(*_arguments, **_options):
        raise CheckpointError("1 of 4 runs failed")

    def full(*_arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if runs_failed:
        monkeypatch.setattr(study_output.StudyRunner, "run_all", fail)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError) as raised:
        run_and_print_study(plan, divide_gpus([], 1), as_json=False)
    assert f"{path}: cannot be written: No space left on device" in str(raised.value)
    assert ("1 of 4 runs failed\n" in str(raised.value)) == runs_failed
    assert path.read_text() == "old"
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]
    assert "Losses on upstream" in capsys.readouterr().out


def test_compare_and_report_show_the_same_cells(plan, finished_runs, capsys):
    results = study_output.StudyRunner(plan).results()
    collected = CollectedRuns("", [], "a", None, {}, {}, results)
    run_and_print_study(plan, divide_gpus([], 1), as_json=False)
    printed = capsys.readouterr().out
    for name in ("upstream", "downstream"):
        table = validation_set_table(collected._replace(records=records_of("a", "b")), name)
        for row in table.select("arm", "start", "final", "change", "peak rise").rows:
            line = r"\s+".join(re.escape(cell.text) for cell in row)
            assert re.search(rf"^{line}(?!\S)", printed, re.M), line


def test_the_gpus_of_a_running_run_are_shown(capsys):
    running = RunStatus("a/17", "running", 30, 100, gpus="4,5")
    with study_output._status_display() as show:
        show([running, RunStatus("b/17", "waiting", 0, 100)], "")
        show(
            [
                RunStatus("a/17", "done", 100, 100, loss=2.5),
                RunStatus("b/17", "running", 0, 100),
            ],
            "",
        )
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["a/17  running on GPU 4,5", "a/17  done  loss 2.5000", "b/17  running"]
    console = Console(width=80)
    console.print(study_output._status_table([running], height=20))
    assert "a/17  running on GPU 4,5  30/100" in capsys.readouterr().out


def test_a_request_to_stop_is_acknowledged_once_with_the_runs_that_are_saved(capsys):
    note = "SIGINT: saving the running runs; again to quit without saving"
    with study_output._status_display() as show:
        for _ in range(2):
            show([RunStatus("a/17", "saving", 30, 100), RunStatus("b/17", "waiting", 0, 100)], note)
    assert capsys.readouterr().err.splitlines() == [note, "a/17  saving"]


def shown_rows(statuses, height):
    console = Console(width=80, file=io.StringIO())
    console.print(study_output._status_table(statuses, height))
    return console.file.getvalue().splitlines()


def test_the_live_table_has_loss_speed_and_time_left_and_keeps_finished_runs():
    statuses = [
        RunStatus("a/17", "done", 100, 100, loss=2.5),
        RunStatus(
            *("a/18", "running", 30, 100),
            loss=2.75,
            tokens_per_second=12_345.6,
            seconds_left=3661.0,
        ),
        RunStatus("b/17", "waiting", 0, 100),
    ]
    rows = [" ".join(row.split()) for row in shown_rows(statuses, height=20)]
    assert rows == [
        "run state step loss tokens/s left",
        "a/17 done 100/100 2.5000",
        "a/18 running 30/100 2.7500 12,346 1:01:01",
        "b/17 waiting 0/100",
        "1 done, 1 running, 1 waiting",
    ]


def test_a_low_terminal_shows_the_runs_at_work_first():
    statuses = [RunStatus(f"a/{seed}", "done", 9, 9) for seed in range(20)]
    statuses += [RunStatus("b/1", "running", 3, 9), RunStatus("b/2", "waiting", 0, 9)]
    rows = shown_rows(statuses, height=6)
    assert [row.split()[0] for row in rows[1:3]] == ["b/1", "a/0"]
    assert rows[-1].strip() == "20 done, 1 running, 1 waiting"
    assert len(rows) == 6
