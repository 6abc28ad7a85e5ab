"""The comparison tables, cell by cell, against hand-computed values."""

import math

from loss_histories import outcome

from rewarm.study.comparison_tables import claims_table, comparison_table, start_to_end_table
from rewarm.study.results_json import JudgedClaim
from rewarm.study.run_outcomes import StudyResults


def test_start_to_end_table():
    outcomes = {
        "rewarm": outcome(upstream=[5.0591, 5.8, 5.6161], downstream=[6.0, 4.0]),
        "constant": outcome(upstream=[5.0591, 5.0], downstream=[6.0, 6.5]),
    }
    table = start_to_end_table(outcomes)
    assert table.columns == [
        *("arm", "upstream loss", "forgetting", "downstream loss", "adaptation")
    ]
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["rewarm", "5.059 → 5.616", "+0.557", "6.000 → 4.000", "+2.000"],
        ["constant", "5.059 → 5.000", "-0.059", "6.000 → 6.500", "-0.500"],
    ]
    assert table.numeric_columns == [False, True, True, True, True]


def compare(outcomes, control=None):
    arms = list(dict.fromkeys(arm for arm, _ in outcomes))
    table = comparison_table(
        StudyResults(outcomes), "upstream", arms=arms, reference="a", control=control
    )
    return table, {row[0].text: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def test_comparison_table():
    table, rows = compare(
        {
            ("a", 1): outcome(upstream=[3.0, 3.4, 2.9]),
            ("a", 2): outcome(upstream=[3.0, 3.6, 2.7]),
            ("b", 1): outcome(upstream=[3.0, 2.5, 2.0]),
            ("b", 2): outcome(upstream=[3.0, 2.4, 2.0]),
            ("short", 1): outcome(upstream=[3.0, 3.5]),
        },
        control="short",
    )
    assert table.columns == [
        *("arm", "start", "final", "vs a", "vs short", "perplexity", "change", "peak rise"),
        *("tokens at peak", "recovered at", "mean loss"),
    ]
    assert {column: cell.text for column, cell in rows["a"].items()} == {
        "arm": "a",
        "start": "3.0000",
        "final": "2.8000 ± 0.1000",
        "vs a": "",
        "vs short": "",  # which has seen fewer tokens
        "perplexity": f"{(math.exp(2.9) + math.exp(2.7)) / 2:.2f}",
        "change": "-0.2000 ± 0.1000",
        "peak rise": "+0.5000 ± 0.1000",
        "tokens at peak": "100",
        "recovered at": "200",
        "mean loss": "3.2000 ± 0.0250",  # (3.0/2 + 3.4 + 2.9/2) / 2 = 3.175, and 3.225
    }
    assert rows["b"]["vs a"].text == "-0.8000 ± 0.1000"
    assert [
        rows["b"][column].text for column in ("peak rise", "tokens at peak", "recovered at")
    ] == ["—"] * 3
    assert rows["short"]["recovered at"] == ("never", math.inf, False)
    assert table.caption.endswith("short is the control, trained on old data.")


def test_seeds_that_do_not_recover_are_counted():
    _, rows = compare(
        {
            ("a", 1): outcome(upstream=[3.0, 3.4, 2.9]),
            ("a", 2): outcome(upstream=[3.0, 3.4, 3.1]),
        }
    )
    assert rows["a"]["recovered at"].text == "1 of 2 seeds"
    assert "vs a" not in rows["a"]  # there is nothing to compare with


def test_claims_table():
    judged = JudgedClaim(
        claim="final(x, a) < 3",
        verdict="held",
        effect={"mean": -0.1, "interval": (-0.2, -0.05)},
    )
    undecided = JudgedClaim(claim="final(x, b) < 3", verdict="undecided", why="not measured")
    table = claims_table({"a is low": judged, "b is low": undecided})
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["held", "a is low", "final(x, a) < 3", "-0.1000 [-0.2000, -0.0500]", ""],
        ["undecided", "b is low", "final(x, b) < 3", "", "not measured"],
    ]


def test_bits_per_byte_are_a_column_if_they_are_known():
    known = outcome(upstream=[3.0, 2.9])
    first, last = known.losses["upstream"].points
    points = [first._replace(bits_per_byte=1.1), last._replace(bits_per_byte=0.9876)]
    history = known.losses["upstream"]._replace(points=points)
    known = known._replace(losses={"upstream": history})
    table, rows = compare({("a", 1): known, ("b", 1): outcome(upstream=[3.0, 2.8])})
    assert (rows["a"]["bits per byte"].text, rows["b"]["bits per byte"].text) == ("0.9876", "")
    assert "Bits per byte of text: the final loss" in table.caption
    table, _ = compare({("a", 1): outcome(upstream=[3.0, 2.9])})
    assert "bits per byte" not in table.columns
