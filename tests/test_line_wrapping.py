"""Long lines are broken between words, and never within one."""

import pytest

from rewarm.line_wrapping import wrap_line

PROBLEM = "  recipes/a.yaml:3:1: data.train.new.shards: /data/slimpajama/train: no such folder"


def test_parts_begin_below_the_text_and_not_below_its_heading():
    assert wrap_line("memory  one two three four", 16, indent=8).splitlines() == [
        "memory  one two",
        "        three",
        "        four",
    ]


@pytest.mark.parametrize("width", [30, 80, 120])
def test_no_word_is_broken_or_lost(width):
    parts = wrap_line(PROBLEM, width).splitlines()
    assert [word for part in parts for word in part.split()] == PROBLEM.split()
    assert all(len(part) <= width or len(part.split()) == 1 for part in parts)
    assert all(part.startswith("    ") for part in parts[1:])  # two more than the line has


def test_a_line_that_fits_is_not_changed():
    assert wrap_line(PROBLEM, 120) == PROBLEM
    assert wrap_line("", 80) == ""
