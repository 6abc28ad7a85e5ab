"""Reports as CSV; as Markdown, see test_collect_runs.py and test_run_tables.py."""

import csv
import json

import pytest
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


def test_text_has_a_column_of_its_own_in_csv(trained_run, tmp_path, command):
    out = tmp_path / "r.csv"
    assert command("report", trained_run, "--out", out)[0] == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert all(bool(row["value"]) != bool(row["text"]) for row in rows)
    assert {row["name"] for row in rows if row["text"]} == {"stream"}
    numbers = {row["name"]: float(row["value"]) for row in rows if row["value"]}
    assert numbers["lr"] == pytest.approx(1e-3)  # of the last step
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_csv(out)
    assert frame["value"].dtype == float
    lines = map(json.loads, (trained_run / "metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert frame[frame["name"] == "loss"]["value"].tolist() == pytest.approx(losses)


def test_markdown_escapes_names_and_aligns_numbers(tmp_path):
    text = as_markdown(collect_runs([write_run(tmp_path / HOSTILE.replace("/", "∕"))]))
    assert "\n| arm | runs | upstream loss | forgetting |" in text
    assert "\n| --- | --: | --: | --: | --: | --: |\n" in text
    assert "| \\<∕script\\>\\<img src=x onerror=alert(1)\\> | 1 | 3.5000 |" in text
