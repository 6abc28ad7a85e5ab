"""Tables printed in a pipe: whole rows, no markup."""

import re

import pytest

from rewarm.cli.terminal_tables import (
    plain_table,
    print_notes,
    print_result_table,
    print_table,
)
from rewarm.table_cells import Cell, Table


def test_rows_in_a_pipe_are_whole_lines(capsys):
    table = plain_table("name", "description")
    table.add_row("[bold]", "long " * 60)
    print_table(table)
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "description"]
    assert row == f"[bold]  {'long ' * 60}".rstrip()


def test_numbers_of_a_result_table_are_right_aligned(capsys):
    rows = [[Cell("a"), Cell("1.5", 1.5)], [Cell("bb"), Cell("10.25", 10.25)]]
    table = Table("Losses", "", ["arm", "loss"], rows)
    print_result_table(table, show_title=False)
    assert capsys.readouterr().out.splitlines() == ["arm   loss", "a      1.5", "bb   10.25"]
    print_result_table(table)
    assert capsys.readouterr().out.splitlines()[0] == "Losses"


def test_a_terminal_shows_long_lines_with_a_hanging_indent(capsys, monkeypatch):
    lines = ["memory    35 GB at the peak, of 80", "step   1  lr 3e-4"]
    print_notes(lines, indent=10)
    assert capsys.readouterr().out.splitlines() == lines  # in a pipe
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    monkeypatch.setenv("COLUMNS", "24")
    print_notes(lines, indent=10)
    assert capsys.readouterr().out.splitlines() == [
        "memory    35 GB at the",
        "          peak, of 80",
        "step   1  lr 3e-4",
    ]


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (60, ["runs/long-name/checkpoints/step-10  code  1.0000  2.0000"]),
        (50, ["runs/long-name/checkpoints/  code  1.0000  2.0000", "step-10"]),
        (36, [f"runs/long-name/  code  {i}.0000\ncheckpoints/\nstep-10" for i in (1, 2)]),
    ],
)
def test_long_names_are_broken_after_slashes(capsys, monkeypatch, width, expected):
    row = [
        Cell("runs/long-name/checkpoints/step-10"),
        Cell("code"),
        *(Cell(f"{i}.0000", i) for i in (1, 2)),
    ]
    table = Table("Losses", "", ["checkpoint", "set", "loss", "rise"], [row])
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    monkeypatch.setenv("COLUMNS", str(width))
    print_result_table(table, show_title=False, names=2)
    printed = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    lines = [line.rstrip() for line in printed.splitlines()]
    lines = [line for line in lines if not line.startswith("checkpoint ")]
    assert lines == "\n".join(expected).splitlines()


def test_a_narrow_terminal_shows_a_wide_result_table_in_parts(capsys, monkeypatch):
    columns = ["arm", "start", "final", "change"]
    names = ("rewarm", "no-warmup")
    rows = [[Cell(name), *(Cell(f"{i}.0000 ± 0.1000", i) for i in (1, 2, 3))] for name in names]
    table = Table("Losses", "", columns, rows)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    for width, widths in ((80, [60]), (50, [43, 26])):
        monkeypatch.setenv("COLUMNS", str(width))
        print_result_table(table)
        printed = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
        title, *lines = printed.splitlines()
        assert title == "Losses"
        assert [len(line.rstrip()) for line in lines[::3]] == widths
        assert all(line.startswith(("arm ", "rewarm ", "no-warmup ")) for line in lines)
        text = " ".join(lines)
        assert [text.count(f" {i}.0000 ± 0.1000") for i in (1, 2, 3)] == [2, 2, 2]  # none is cut
