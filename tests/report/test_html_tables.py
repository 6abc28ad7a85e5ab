"""Tables as HTML: sort values, alignment, CSS classes."""

import math

from rewarm.report.html_tables import html_tables
from rewarm.table_cells import Cell, Table


def test_cells_have_sort_values_and_classes():
    row = [
        Cell("not held"),
        Cell("1,000", 1000.0),
        Cell("never", math.inf),
        Cell("w" * 31, quiet=True),
    ]
    html = html_tables(Table("Title", "Caption.", ["verdict", "tokens", "at", "path"], [row]))
    assert '<td><span class="verdict not">not held</span></td>' in html
    assert '<td class="number" data-value="1000">1,000</td>' in html
    assert '<td class="number" data-value="Infinity">never</td>' in html
    assert f'<td class="long quiet">{"w" * 31}</td>' in html
    assert '<th scope="col" class="number">tokens</th>' in html


def test_a_table_without_rows_is_left_out():
    assert html_tables(Table("Title", "Caption.", ["arm"], [])) == ""
