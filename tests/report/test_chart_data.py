"""The data of the curves, decoded as the page's script does it."""

import json
import re

import pytest
from written_runs import write_run

from rewarm.report.chart_data import chart_data_json
from rewarm.report.collect_runs import collect_runs


def test_packed_columns_decode_to_the_metrics(tmp_path):
    run = write_run(tmp_path / "a", points=200)
    data = json.loads(chart_data_json(collect_runs([run])))
    [[curves]] = [arm["runs"] for arm in data["arms"]]

    def column(index):
        factor, divisor, differences = data["columns"][index]
        value, values = 0, []
        for difference in differences:
            value += difference or 0
            values.append(None if difference is None else value * factor / divisor)
        return values

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    train_lines = [line for line in lines if line["kind"] == "train"]
    assert column(curves["train"]["tokens"]) == [line["tokens"] for line in train_lines]
    losses = [line["loss"] for line in train_lines]
    assert column(curves["train"]["loss"]) == pytest.approx(losses, abs=5.1e-5)
    rates = [line["lr"] for line in train_lines]
    assert column(curves["train"]["lr"]) == pytest.approx(rates, abs=3e-4 * 1e-4)


def test_a_missing_loss_is_a_gap(tmp_path):
    run = write_run(tmp_path / "a", points=3)
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(re.sub(r'"loss": [0-9.]+', '"loss": null', text, count=1))
    columns = json.loads(chart_data_json(collect_runs([run])))["columns"]
    assert [differences for _, _, differences in columns if None in differences]
