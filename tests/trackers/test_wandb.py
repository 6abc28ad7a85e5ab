import json

import pytest
from tracked_lines import evaluate_line, send, train_line
from wandb_file import history

pytest.importorskip("wandb")


@pytest.mark.slow
def test_an_offline_run_is_continued_under_its_id(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    run, tracker = tmp_path / "run", {"wandb": {"project": "x"}}
    send(run, tracker, [evaluate_line(0), *map(train_line, (1, 2, 3, 4))])
    send(run, tracker, [*map(train_line, (3, 4, 5)), evaluate_line(5)], kept=3, resumed_from=2)
    ids, rows = history(run)
    assert ids == {json.loads((run / "trackers" / "id.json").read_text())["id"]}
    losses = [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert losses == [(step, 5 / step) for step in (1, 2, 3, 4, 5)]
    assert [row["step"] for row in rows if "evaluate/old/loss" in row] == [0, 5]


def test_the_mode_of_the_environment_has_precedence(monkeypatch):
    from rewarm.trackers.wandb import Wandb

    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert Wandb().actual_mode == "offline"
    assert Wandb(mode="online").actual_mode == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert Wandb(mode="online").actual_mode == "disabled"
    monkeypatch.setenv("WANDB_MODE", "somewhere")
    with pytest.raises(ValueError, match="WANDB_MODE should be offline, online or disabled, got"):
        _ = Wandb().actual_mode
