"""The data of the curves, decoded as the page's script does it."""

import json
import re

import pytest
from written_runs import write_run

from rewarm.report.chart_data import PackedColumns, chart_data_json
from rewarm.report.collect_runs import collect_runs


def decoded(run):
    """The curves of a run in the data of a page, and a function that decodes one of its columns."""
    data = json.loads(chart_data_json(collect_runs([run])))
    [[curves]] = [arm["runs"] for arm in data["arms"]]

    def column(index):
        factor, divisor, differences = data["columns"][index]
        value, values = 0, []
        for difference in differences:
            value += difference or 0
            values.append(None if difference is None else value * factor / divisor)
        return values

    return curves, column


def test_packed_columns_decode_to_the_metrics(tmp_path):
    run = write_run(tmp_path / "a", points=200)
    curves, column = decoded(run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    train_lines = [line for line in lines if line["kind"] == "train"]
    assert column(curves["train"]["tokens"]) == [line["tokens"] for line in train_lines]
    losses = [line["loss"] for line in train_lines]
    assert column(curves["train"]["loss"]) == pytest.approx(losses, abs=5.1e-7)


def test_the_schedule_is_drawn_itself_with_the_applied_rates_as_points(tmp_path):
    """The logged lines of every 10th step have nothing of a warm-up of 5 steps."""
    schedule = {"name": "rewarm", "peak_lr": 4e-4, "min_lr": 1e-5, "warmup": "5 steps"}
    run = write_run(tmp_path / "a", points=200, settings={"schedule": schedule})
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if line["kind"] != "train" or line["step"] % 10 == 0]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in logged))
    measured = {"kind": "rate", "step": 1, "scheduled": 8e-5, "measured": 8.1e-5}
    unknown = {"kind": "rate", "step": 2, "scheduled": 1.6e-4, "measured": None}
    with (run / "events.jsonl").open("a") as events:
        events.write(json.dumps(measured) + "\n" + json.dumps(unknown) + "\n")
    curves, column = decoded(run)
    assert column(curves["schedule"]["step"]) == [*range(1, 201)]
    assert column(curves["schedule"]["tokens"]) == [2048 * step for step in range(1, 201)]
    rates = column(curves["schedule"]["lr"])
    warmup = [8e-5, 1.6e-4, 2.4e-4, 3.2e-4, 4e-4]
    assert rates[:5] == pytest.approx(warmup, abs=4e-8)
    assert (max(rates), rates[-1]) == (pytest.approx(4e-4), pytest.approx(1e-5, abs=4e-8))
    assert column(curves["applied"]["step"]) == [1, *range(10, 201, 10)]
    assert column(curves["applied"]["lr"])[0] == pytest.approx(8.1e-5, abs=4e-8)
    logged_rates = [line["lr"] for line in logged if line["kind"] == "train"]
    assert column(curves["applied"]["lr"])[1:] == pytest.approx(logged_rates, abs=4e-8)


def test_without_a_recipe_the_logged_rates_are_the_curve(tmp_path):
    run = write_run(tmp_path / "a", points=20, settings={"schedule": {"name": "uninstalled"}})
    curves, column = decoded(run)
    assert column(curves["schedule"]["step"]) == [*range(1, 21)]
    assert curves["schedule"] == curves["applied"]


def test_a_mean_over_seeds_is_rounded_once(tmp_path):
    """6.657475 is 6.6575; the mean of losses that were rounded before was shown as 6.6574."""
    columns = PackedColumns()
    index = columns.add_losses([6.65744, 6.65751])
    factor, divisor, (first, difference) = json.loads(str(columns))[index]
    decoded_losses = [first * factor / divisor, (first + difference) * factor / divisor]
    assert f"{sum(decoded_losses) / 2:.4f}" == f"{6.657475:.4f}" == "6.6575"


def test_a_missing_loss_is_a_gap(tmp_path):
    run = write_run(tmp_path / "a", points=3)
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(re.sub(r'"loss": [0-9.]+', '"loss": null', text, count=1))
    columns = json.loads(chart_data_json(collect_runs([run])))["columns"]
    assert [differences for _, _, differences in columns if None in differences]
