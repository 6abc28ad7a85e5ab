"""The charts that the page's script draws, and their text alternatives."""

from parsed_page import ParsedPage
from written_runs import write_run

from rewarm.report.collect_runs import collect_runs
from rewarm.report.html_charts import chart_section


def test_every_chart_has_a_text_alternative(tmp_path):
    page = ParsedPage(chart_section(collect_runs([write_run(tmp_path / "a", 10)])))
    charts = [attributes["data-chart"] for tag, attributes in page.elements if tag == "figure"]
    assert charts == ["set", "set", "loss", "lr"]
    ids = {attributes.get("id") for _, attributes in page.elements}
    plots = [attributes for _, attributes in page.elements if attributes.get("class") == "plot"]
    assert all(plot["aria-labelledby"] in ids for plot in plots)
    assert all(plot["aria-describedby"] in ids for plot in plots)
    assert any(text.startswith("a from 3.000 to 3.500. Arrow keys") for text in page.texts)


def test_seeds_can_be_hidden_only_if_an_arm_has_several(tmp_path):
    write_run(tmp_path / "s" / "a" / "1", seed=1)
    assert 'id="seeds"' not in chart_section(collect_runs([tmp_path / "s"]))
    write_run(tmp_path / "s" / "a" / "2", seed=2)
    assert 'id="seeds"' in chart_section(collect_runs([tmp_path / "s"]))
