import pytest
from tracked_lines import evaluate_line, send, train_line

pytest.importorskip("tensorboard")


def scalars(folder, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "trackers" / "tensorboard"))
    events.Reload()
    return [(point.step, point.value) for point in events.Scalars(name)]


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path):
    run, tracker = tmp_path / "run", {"tensorboard": {}}
    send(run, tracker, [evaluate_line(0), *map(train_line, (1, 2, 3, 4)), evaluate_line(4)])
    resumed = [*map(train_line, (3, 4, 5)), evaluate_line(5)]
    (event,) = send(run, tracker, resumed, kept=3, resumed_from=2)
    assert event == {"name": "tensorboard", "sent": 4, "dropped": 0, "error": None}
    assert scalars(run, "train/loss") == [(n, pytest.approx(5 / n)) for n in (1, 2, 3, 4, 5)]
    assert scalars(run, "evaluate/old/loss") == [(0, 2.5), (5, 7.5)]
