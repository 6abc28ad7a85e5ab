import sqlite3

import pytest
from tracked_lines import evaluate_line, send, train_line

from rewarm.trackers import process, run_trackers

pytest.importorskip("mlflow")
pytest.importorskip("sqlalchemy")


@pytest.mark.slow
def test_a_local_run_is_continued_with_each_step_once(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(process, "_START_SECONDS", 100.0)  # it creates its tables slowly
    monkeypatch.setattr(run_trackers, "_AT_MOST", 100.0)
    run, tracker = tmp_path / "run", {"mlflow": {"experiment": "x"}}
    send(run, tracker, [evaluate_line(0), *map(train_line, (1, 2, 3, 4))])
    send(run, tracker, [*map(train_line, (3, 4, 5)), evaluate_line(5)], kept=3, resumed_from=2)
    database = sqlite3.connect(run / "trackers" / "mlflow" / "mlflow.db")
    runs = database.execute("select name, status from runs").fetchall()
    losses = database.execute(
        "select step, value from metrics where key = 'train/loss' order by step"
    ).fetchall()
    params = dict(database.execute("select key, value from params").fetchall())
    database.close()
    assert runs == [("run", "FINISHED")]
    assert losses == [(step, 5 / step) for step in (1, 2, 3, 4, 5)]
    assert params == {"seed": "5", "data.context": "64"}
