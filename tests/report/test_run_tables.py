"""The tables of runs, from metrics, events and recipes with known content."""

import json
import re

from written_runs import write_run

from rewarm.report.collect_runs import collect_runs
from rewarm.report.run_tables import environment_table, events_table, runs_table


def test_settings_that_differ_are_listed(tmp_path, command):
    write_run(tmp_path / "runs" / "a")
    write_run(tmp_path / "runs" / "b", peak=6e-4)
    out = tmp_path / "r.md"
    assert command("report", tmp_path / "runs", "--out", out)[0] == 0
    [table] = re.findall(r"## Differences.*?\n\n.*?\n\n(.*?)\n\n", out.read_text(), re.DOTALL)
    assert [line.split(" | ")[0] for line in table.splitlines()] == [
        *("| setting", "| ---", "| schedule.peak\\_lr", "| schedule.min\\_lr")
    ]
    assert "| 0.0003 | 0.0006 |" in table


def texts(table):
    return [[cell.text for cell in row] for row in table.rows]


def test_runs_events_and_environment(tmp_path):
    run = write_run(tmp_path / "a", points=30)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "spike", "step": 30, "loss": 7.25}) + "\n")
    starts = [{"kind": "start", "environment": {"torch": "2.5.1"}}] * 2
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in starts))
    collected = collect_runs([run])
    assert texts(runs_table(collected)) == [
        [
            *("a", "17", "complete", "61.44k", "1,000", "", "2", "0", f"{17:032d}"[:12]),
            str(run),
        ]
    ]
    assert texts(events_table(collected)) == [["a", "17", "30", "spike", "loss 7.25"]]
    assert texts(environment_table(collected)) == [["torch", "2.5.1", "all"]]
