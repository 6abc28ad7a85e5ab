"""Reports as CSV; as Markdown, see test_collect_runs.py and test_run_tables.py."""

import csv
import json

from written_runs import HOSTILE, write_run

from rewarm.report.collect_runs import collect_runs
from rewarm.report.text_exports import as_markdown


def test_csv_has_every_number(tmp_path, command):
    run = write_run(tmp_path / "a", points=5)
    out = tmp_path / "r.csv"
    assert command("report", run, "--out", out)[0] == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    [loss] = [x for x in rows if (x["kind"], x["step"], x["name"]) == ("train", "3", "loss")]
    assert float(loss["value"]) == next(x["loss"] for x in lines if x["step"] == 3)
    assert {x["name"] for x in rows} >= {"lr", "grad_norm", "upstream/loss", "stream"}


def test_markdown_escapes_names_and_aligns_numbers(tmp_path):
    text = as_markdown(collect_runs([write_run(tmp_path / HOSTILE.replace("/", "∕"))]))
    assert "\n| arm | runs | upstream loss | forgetting |" in text
    assert "\n| --- | --: | --: | --: | --: | --: |\n" in text
    assert "| \\<∕script\\>\\<img src=x onerror=alert(1)\\> | 1 | 3.5000 |" in text
