"""metrics.jsonl: a line cut off by a kill is left out, other damage is an error."""

import json

import pytest

from rewarm.errors import CheckpointError
from rewarm.runs.metrics_file import read_metrics

LINES = [{"kind": "train", "step": step, "loss": 2.5} for step in (1, 2, 3)]


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
    "line", ["", "{", "[]", "3", '{"step": 1}', '{"kind": "train"}', '{"kind": "a", "step": "1"}']
)
def test_damage_before_the_last_line_is_an_error(path, line):
    path.write_text(f"{line}\n{path.read_text()}")
    with pytest.raises(CheckpointError, match=r"metrics.jsonl:1: not a line of metrics"):
        read_metrics(path)


@pytest.mark.parametrize("content", [None, b"\xff"], ids=["missing", "not UTF-8"])
def test_a_file_that_cannot_be_read_is_an_error(path, content):
    path.unlink()
    if content:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"metrics.jsonl: cannot be read"):
        read_metrics(path)
