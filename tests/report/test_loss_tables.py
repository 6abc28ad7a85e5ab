"""The loss tables of a report, from metrics with known losses."""

import json
import math

import pytest
from written_runs import write_run

from rewarm.report.collect_runs import collect_runs
from rewarm.report.loss_tables import (
    final_losses,
    final_losses_table,
    fitted_lines_table,
    overtaking_table,
    pareto_arms,
    set_pairs,
    validation_set_table,
)


def test_runs_that_are_behind_are_counted(tmp_path):
    for seed in (1, 2, 3):
        write_run(tmp_path / "s" / "a" / str(seed), seed=seed)
    path = tmp_path / "s" / "a" / "3" / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:15]))
    [row] = final_losses_table(collect_runs([tmp_path / "s"])).rows
    assert row[1].text == "2 of 3"


def test_final_losses_table(tmp_path):
    table = final_losses_table(collect_runs([write_run(tmp_path / "a")]))
    # Upstream 3 + 0.5 x and downstream 2.5 + 2 exp(-2 x), for x from 0 to 1.
    final = 2.5 + 2 * math.exp(-2)
    assert table.columns == [
        *("arm", "runs", "upstream loss", "forgetting", "downstream loss", "adaptation")
    ]
    assert [cell.text for cell in table.rows[0]] == [
        *("a", "1", "3.5000", "+0.5000", f"{final:.4f}", f"{4.5 - final:+.4f}")
    ]


def test_arms_of_other_lengths_and_corpora_are_not_compared(tmp_path):
    shards = {"shards": "data/german"}
    validation = {"german": shards | {"role": "downstream"}}
    german = {"data": {"context": 128, "train": {"german": shards}, "validation": validation}}
    for arm, points, settings in (
        ("a", 30, {}),
        ("b", 30, {}),
        ("short", 20, {}),
        ("g", 30, german),
    ):
        run = write_run(tmp_path / "s" / arm / "1", points, seed=1, settings=settings)
        text = (run / "metrics.jsonl").read_text()
        text = text.replace('"downstream/loss"', '"german/loss": 9.0, "downstream/loss"')
        (run / "metrics.jsonl").write_text(text)
    collected = collect_runs([tmp_path / "s"])
    differences = validation_set_table(collected, "upstream").select("arm", "vs a").rows
    assert {arm.text: difference.text for arm, difference in differences} == {
        "a": "",
        "b": "+0.0000",
        "g": "+0.0000",
        "short": "",
    }
    assert set_pairs(collected) == [("upstream", "german"), ("upstream", "downstream")]
    assert [*final_losses(collected, ("upstream", "downstream"))] == ["a", "b", "short"]
    assert [*final_losses(collected, ("upstream", "german"))] == ["g"]
    assert "german adaptation" in final_losses_table(collected).columns


def test_forgetting_follows_the_role_whatever_the_set_is_called(tmp_path):
    """With one arm that replays the old text, which made its column an adaptation once."""
    code, docs = {"shards": "data/code/train"}, {"shards": "data/docs/train"}
    roles = {
        "docs": {"shards": "data/docs/val", "role": "upstream"},
        "code": {"shards": "data/code/val", "role": "downstream"},
    }
    for arm, train in (("plain", {"new": code}), ("replay", {"new": code, "docs": docs})):
        data = {"context": 128, "train": train, "validation": roles}
        run = write_run(tmp_path / "s" / arm / "1", seed=1, settings={"data": data})
        text = (run / "metrics.jsonl").read_text()
        text = text.replace("upstream/loss", "docs/loss").replace("downstream/loss", "code/loss")
        (run / "metrics.jsonl").write_text(text)
    collected = collect_runs([tmp_path / "s"])
    table = final_losses_table(collected)
    assert table.columns == ["arm", "runs", "docs loss", "forgetting", "code loss", "adaptation"]
    assert table.rows[0][3].text == "+0.5000"
    assert "Forgetting: the rise of the docs loss since before the first step" in table.caption
    assert "Adaptation: the fall of the code loss" in table.caption
    assert set_pairs(collected) == [("docs", "code")]
    assert [*final_losses(collected, ("docs", "code"))] == ["plain", "replay"]
    assert pareto_arms(collected, ("docs", "code")) == ["plain", "replay"]
    assert validation_set_table(collected, "docs").title == "Losses on docs (upstream)"


def shift_losses(run, name, change):
    """Changes the losses of a run on a validation set: `change(loss, step)`."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "evaluate":
            line[f"{name}/loss"] = change(line[f"{name}/loss"], line["step"])
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_overtaking_and_pareto_front(tmp_path):
    late, early = write_run(tmp_path / "late"), write_run(tmp_path / "early")
    # 0.3 above at step 0, falling by 0.02 a step: below from step 15 on.
    shift_losses(late, "downstream", lambda loss, step: loss + 0.3 - 0.02 * step)
    collected = collect_runs([late, early])
    [row] = overtaking_table(collected).rows
    assert [cell.text for cell in row[:3]] == ["downstream", "late", "early"]
    assert row[3].value == pytest.approx(15 * 2048)
    assert pareto_arms(collected, ("upstream", "downstream")) == ["late"]


def test_fitted_lines_table(tmp_path):
    run = write_run(tmp_path / "a")
    # Upstream is 3 + 0.5 x: a downstream loss of 4 - x is -2 upstream + 10.
    shift_losses(run, "downstream", lambda _loss, step: 4 - step / 30)
    [row] = fitted_lines_table(collect_runs([run])).rows
    assert [cell.text for cell in row] == ["downstream", "a", "-2.0000", "10.0000", "1.0000"]
