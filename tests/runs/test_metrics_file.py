"""metrics.jsonl: a line cut off by a kill is left out, other damage is an error."""

import json

import pytest

from rewarm.errors import CheckpointError
from rewarm.runs.metrics_file import LastStepReader, comparable_evaluations, read_metrics

LINES = [{"kind": "train", "step": step, "tokens": 64 * step, "loss": 2.5} for step in (1, 2, 3)]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return path


def test_lines_are_returned_in_order(path):
    assert read_metrics(path) == LINES


def test_a_last_line_that_was_cut_off_is_left_out(path):
    path.write_text(path.read_text() + '{"kind": "train", "st')
    assert read_metrics(path) == LINES


@pytest.mark.parametrize(
    "line",
    [
        *("", "{", "[]", "3", '{"step": 1}', '{"kind": "train"}', '{"kind": "a", "step": "1"}'),
        '{"kind": "train", "step": 1}',
        '{"kind": "train", "step": 1, "tokens": 1.5}',
        '{"kind": "train", "step": -1, "tokens": 1}',
        '{"kind": "train", "step": true, "tokens": 1}',
        '{"kind": "train", "step": 1, "tokens": 1, "loss": NaN}',
        '{"kind": "train", "step": 1, "tokens": 1, "loss": 1e999}',
        '{"kind": "train", "step": 1, "tokens": 1, "loss": "2.5"}',
        '{"kind": "evaluate", "step": 1, "tokens": 1, "upstream/loss": [2.5]}',
        '{"kind": "evaluate", "step": 1, "tokens": 1, "\\ud800/loss": 2.5}',
        '{"kind": "train", "step": 1, "tokens": 1, "stream": "\\ud800"}',
        '{"kind": "train", "step": 1' + 400 * "0" + "}",
        "[" * 100_000,
        "\ufffd",
    ],
)
def test_damage_before_the_last_line_is_an_error(path, line):
    path.write_text(f"{line}\n{path.read_text()}")
    with pytest.raises(
        CheckpointError, match=r"metrics.jsonl:1: not a line of metrics: .+; restore"
    ):
        read_metrics(path)


def test_a_line_that_is_twice_or_out_of_order_is_an_error(path):
    first, second, third = path.read_text().splitlines(keepends=True)
    for lines in ([first, first, second], [first, third, second]):
        path.write_text("".join(lines))
        with pytest.raises(CheckpointError, match=r"metrics.jsonl:[23]: the train line of step"):
            read_metrics(path)


def test_a_missing_file_is_an_error(path):
    path.unlink()
    with pytest.raises(CheckpointError, match=r"metrics.jsonl: cannot be read: No such file"):
        read_metrics(path)


def test_losses_on_data_that_was_replaced_are_left_out():
    def line(kind, step, **losses):
        values = {f"{name}/loss": loss for name, loss in losses.items()}
        return {"kind": kind, "step": step, "tokens": step, **values}

    lines = [
        line("evaluate", 0, upstream=3.0, downstream=5.0),
        line("evaluate", 5, upstream=3.1, downstream=4.0),
        line("baseline", 5, upstream=2.0),
        line("evaluate", 10, upstream=2.1, downstream=3.0),
    ]
    evaluations = comparable_evaluations(lines)
    assert [e.get("upstream/loss") for e in evaluations] == [None, 2.0, 2.1]
    assert [e["downstream/loss"] for e in evaluations] == [5.0, 4.0, 3.0]


def test_the_last_step_is_read_from_what_was_appended(path):
    reader = LastStepReader(path)
    assert reader.read() == 3
    with path.open("r+b") as file:  # lines that were read before are not read again
        file.write(b"x" * path.stat().st_size)
    with path.open("a") as file:
        file.write('{"kind": "train", "step": 4, "tokens": 256}\n{"kind": "train", "st')
        file.flush()
        assert reader.read() == 4
        file.write('ep": 5, "tokens": 320}\n')
    assert reader.read() == 5
    path.write_text('{"kind": "train", "step": 2, "tokens": 64}\n')  # resumed at an earlier step
    assert reader.read() == 2
    path.unlink()
    assert reader.read() == 0


def test_the_last_training_line_is_kept_while_others_are_appended(path):
    reader = LastStepReader(path)
    with path.open("a") as file:
        for kind, loss in (("train", 2.5), ("spike", 9.0), ("evaluate", 8.0)):
            file.write(json.dumps({"kind": kind, "step": 4, "tokens": 256, "loss": loss}) + "\n")
            file.flush()
            assert reader.read() == 4
            assert reader.last_training["loss"] == 2.5


def test_of_a_long_file_only_the_end_is_read(path):
    path.write_text("not a line of metrics\n" * 10_000 + json.dumps(LINES[2]) + "\n")
    assert LastStepReader(path).read() == 3
