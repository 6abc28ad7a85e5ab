import json
import sqlite3

import pytest
from tracked_lines import evaluate_line, send, train_line

pytest.importorskip("trackio")


@pytest.mark.slow
def test_a_local_run_is_continued_with_each_step_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    run, tracker = tmp_path / "run", {"trackio": {"project": "x"}}
    send(run, tracker, [evaluate_line(0), *map(train_line, (1, 2, 3, 4))])
    send(run, tracker, [*map(train_line, (3, 4, 5)), evaluate_line(5)], kept=3, resumed_from=2)
    (path,) = (tmp_path / "trackio").glob("*.db")
    database = sqlite3.connect(path)
    rows = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
    database.close()
    run_id = json.loads((run / "trackers" / "id.json").read_text())["id"]
    assert {name for name, _, _ in rows} == {f"run-{run_id[:6]}"}
    points = [(step, json.loads(metrics)) for _, step, metrics in rows]
    losses = [(step, values["train/loss"]) for step, values in points if "train/loss" in values]
    assert losses == [(step, 5 / step) for step in (1, 2, 3, 4, 5)]
