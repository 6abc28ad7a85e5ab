"""Tasks and text samples in reports: figures with their changes, and text that stays text."""

import csv
import io
import json
import shutil

import pytest

from rewarm.errors import CheckpointError
from rewarm.report.collect_runs import collect_runs
from rewarm.report.html_page import html_page
from rewarm.report.task_tables import tasks_table
from rewarm.report.text_exports import as_csv, as_markdown
from rewarm.runs.metrics_file import parse_line

HOSTILE = "</pre><script>alert(1)</script>\n\x1b[2J"


@pytest.fixture
def run(trained_run, tmp_path):
    """A run without checkpoints, to whose metrics lines were added."""
    folder = tmp_path / "arm"
    folder.mkdir()
    for name in ("recipe.yaml", "events.jsonl"):
        shutil.copy(trained_run / name, folder / name)
    lines = (trained_run / "metrics.jsonl").read_text().splitlines()
    for step, acc in ((0, 0.25), (20, 0.5)):
        figures = {"piqa/acc": acc, "piqa/acc_stderr": 0.125, "x/perplexity": None}
        lines.append(json.dumps({"kind": "tasks", "step": step, "tokens": step, **figures}))
        texts = {"prompts": ["one <b>", "two"], "texts": [f"{HOSTILE}{step}", ""]}
        lines.append(json.dumps({"kind": "sample", "step": step, "tokens": step, **texts}))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_the_table_has_the_last_figures_and_their_change(run):
    rows = [[cell.text for cell in row] for row in tasks_table(collect_runs([run])).rows]
    assert rows == [
        ["arm", "5", "20", "piqa", "acc", "0.5000", "0.1250", "+0.2500"],
        ["arm", "5", "20", "x", "perplexity", "", "", ""],
    ]
    assert "| arm | 5 | 20 | piqa | acc | 0.5000 | 0.1250 | +0.2500 |" in as_markdown(
        collect_runs([run])
    )


def test_samples_are_escaped_in_the_page(run):
    page = html_page(collect_runs([run]))
    assert "<script>alert" not in page
    assert "\x1b" not in page
    escaped = "&lt;/pre&gt;&lt;script&gt;alert(1)&lt;/script&gt;\n\\x1b[2J20"
    assert f"<strong>one &lt;b&gt;</strong>{escaped}</pre>" in page
    assert page.index("[2J20") < page.index("Earlier evaluations") < page.index("[2J0<")


def test_csv_has_figures_and_texts(run):
    rows = list(csv.DictReader(io.StringIO(as_csv(collect_runs([run])))))
    by_name = {
        (row["step"], row["name"]): row for row in rows if row["kind"] in ("tasks", "sample")
    }
    assert by_name["20", "piqa/acc"]["value"] == "0.5"
    assert by_name["20", "continuation of one <b>"]["text"] == f"{HOSTILE}20"


@pytest.mark.parametrize(
    "texts", [{}, {"prompts": ["a"], "texts": []}, {"prompts": ["a"], "texts": [1]}]
)
def test_a_line_of_samples_without_texts_is_refused(run, texts):
    line = json.dumps({"kind": "sample", "step": 21, "tokens": 21, **texts})
    with pytest.raises(ValueError, match="prompts and texts should be lists"):
        parse_line(line.encode())
    with (run / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(CheckpointError, match="not a line of metrics: prompts and texts should be"):
        collect_runs([run])
