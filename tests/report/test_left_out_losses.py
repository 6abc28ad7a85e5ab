"""Arms of a report, each predicted from all others: which ones, tables, the page and its data."""

import json
import re
from itertools import accumulate

import pytest
from parsed_page import ParsedPage
from predicted_studies import ARMS, BATCH, STARTS, true_changes, write_arm
from synthetic_probes import Arm

from rewarm.report.collect_runs import collect_runs
from rewarm.report.html_left_out import left_out_section
from rewarm.report.html_page import html_page
from rewarm.report.left_out_losses import left_out_note, left_out_tables, predict_left_out_losses
from rewarm.report.text_exports import as_markdown


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Four arms that compare; an unfinished one, one of new weights, one from another base."""
    folder = tmp_path_factory.mktemp("study") / "study"
    for name, arm in ARMS.items():
        write_arm(folder / name, arm)
    write_arm(folder / "running", Arm(), tokens=900 * BATCH)
    write_arm(folder / "scratch", Arm(), model={"preset": "pythia-14m"})
    write_arm(folder / "elsewhere", Arm(), model={"base": "/models/other", "base_lr": 2e-4})
    results = {"arms": {arm: {} for arm in ARMS}, "reference": "peak", "claims": {}}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


@pytest.fixture(scope="module")
def collected(study):
    return collect_runs([study])


@pytest.fixture(scope="module")
def losses(collected):
    return predict_left_out_losses(collected)


@pytest.fixture(scope="module")
def page(collected):
    return html_page(collected)


def test_arms_that_compare_with_the_reference_are_predicted(losses):
    assert list(losses.predicted) == list(ARMS)
    assert losses.not_compared == ["elsewhere", "running", "scratch"]
    note = left_out_note(losses)
    assert "Each arm is predicted without its own losses" in note
    assert "Not among them: elsewhere, running, scratch." in note


def test_the_table_has_predicted_and_measured_losses(losses):
    upstream, downstream = left_out_tables(losses)
    assert (upstream.title, downstream.title) == (
        "Predicted upstream loss",
        "Predicted downstream loss",
    )
    for table, name in ((upstream, "upstream"), (downstream, "downstream")):
        rows = {row[0].text: dict(zip(table.columns, row, strict=True)) for row in table.rows}
        for arm, row in rows.items():
            change = true_changes(ARMS[arm], [400])[name][-1]
            assert row["measured"].value == pytest.approx(STARTS[name] + change)
            assert row["difference"].value == pytest.approx(
                row["predicted"].value - row["measured"].value
            )
            assert row["of change"].value == pytest.approx(abs(row["difference"].value / change))
        low, high = (float(bound) for bound in rows["half"]["80% interval"].text.split(" to "))
        assert low < rows["half"]["predicted"].value < high
        assert rows["half"]["outside of the other arms"].text == ""
        assert (
            "0.5 times the lowest of the arms" in rows["quarter"]["outside of the other arms"].text
        )
        assert "no arm has any" in rows["replay"]["outside of the other arms"].text
        assert " of 4 measured losses are within their interval." in table.caption


def test_the_page_has_a_section_with_charts_and_tables(page):
    parsed = ParsedPage(page)
    charts = [
        (attributes["data-chart"], attributes["data-set"])
        for tag, attributes in parsed.elements
        if tag == "figure" and "data-set" in attributes
    ]
    assert charts[-4:] == [
        ("predicted", "0"),
        ("residual", "0"),
        ("predicted", "1"),
        ("residual", "1"),
    ]
    assert "Predicted against measured" in parsed.texts
    assert any("Last losses as predicted: peak " in text for text in parsed.texts)


def test_the_data_of_the_page_has_both_losses(page, losses):
    text = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)[0]
    data = json.loads(text)
    arms = {arm["name"]: arm.get("left_out") for arm in data["arms"]}
    assert arms["running"] is None

    def column(index):
        factor, divisor, differences = data["columns"][index]
        return [value * factor / divisor for value in accumulate(differences)]

    loss = losses.predicted["half"].losses["downstream"]
    half = arms["half"]
    assert column(half["step"]) == [*range(40, 401, 40)]
    assert column(half["tokens"])[-1] == 400 * BATCH
    # The sets are those of the page, in the order of its charts.
    index = "1"
    assert column(half["sets"][index]["predicted"]) == pytest.approx(
        loss.predicted.loss.tolist(), abs=5.1e-7
    )
    assert column(half["sets"][index]["measured"]) == pytest.approx(
        loss.measured.tolist(), abs=5.1e-7
    )


def test_markdown_has_the_tables(study):
    text = as_markdown(collect_runs([study / name for name in ("peak", "half", "replay")]))
    assert "## Predicted upstream loss" in text
    assert "| arm | predicted | 80% interval | measured |" in text


@pytest.mark.parametrize("names", [("peak", "half"), ("elsewhere", "peak", "half", "replay")])
def test_without_three_arms_that_compare_there_is_no_section(study, names):
    collected = collect_runs([study / name for name in names])
    assert predict_left_out_losses(collected) is None
    assert left_out_section(collected, None) == ""
