"""Tables and cells that every renderer shows."""

import pytest

from rewarm.table_cells import EMPTY, Cell, Table, count_cell, number_cell, plural, tokens_cell


def test_cells_hold_text_and_value():
    assert number_cell(0.5, ".1%") == ("50.0%", 0.5, False)
    assert number_cell(None, ".1%") == EMPTY
    assert count_cell(1234) == ("1,234", 1234, False)
    assert tokens_cell(1.5e6, 2e4) == ("1.5M ± 20k", 1.5e6, False)
    assert (plural(1, "arm"), plural(2, "arm")) == ("1 arm", "2 arms")


def test_columns_are_selected_by_name():
    table = Table("T", "", ["arm", "loss", "at"], [[Cell("a"), Cell("1", 1.0), EMPTY]])
    assert table.numeric_columns == [False, True, True]
    selected = table.select("at", "arm")
    assert (selected.columns, selected.rows) == (["at", "arm"], [[EMPTY, Cell("a")]])
    with pytest.raises(ValueError, match="not in list"):
        table.select("loss?")
