"""The complete tracker of docs/trackers.md, as a user would install it."""

import re
import tomllib

from repository import ROOT
from tracked_lines import evaluate_line, send, train_line

PAGE = (ROOT / "docs" / "trackers.md").read_text()


def block(kind):
    (found,) = re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return found


def test_the_tracker_of_the_page_works(distribution, tmp_path):
    project = tomllib.loads(block("toml"))["project"]
    (offered,) = project["entry-points"].values()
    assert offered == {"csv": "my_tracker:CsvTracker"}
    distribution("my_tracker", block("python"), "rewarm.trackers", csv="CsvTracker")
    (event,) = send(tmp_path / "run", {"csv": {}}, [evaluate_line(0), train_line(1), train_line(2)])
    assert event == {"name": "csv", "sent": 3, "dropped": 0, "error": None}
    written = (tmp_path / "run" / "trackers" / "csv" / "metric.csv").read_text()
    assert written == "1,5.0\n2,2.5\n"
