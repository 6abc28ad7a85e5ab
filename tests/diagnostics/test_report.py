"""The report as text of 80 columns and as JSON."""

import json

from rewarm.diagnostics import report
from rewarm.diagnostics.environment import Environment
from rewarm.diagnostics.finding import MachineProblem, ProbeResult
from rewarm.diagnostics.host import Limits

RESULTS = [
    ProbeResult("Limits", Limits(256, 512, None, [])),
    ProbeResult("Memory", None, "PermissionError: [Errno 13]"),
    ProbeResult("Environment", Environment({"LD_PRELOAD": " ".join(["/lib/x.so"] * 12)}, [])),
]


def test_sections_are_lines_of_80_columns():
    assert report.result_as_text(RESULTS[0]).splitlines() == [
        "Limits",
        "  open files        256, can be raised to 512",
        "  locked memory     unlimited",
    ]
    lines = report.result_as_text(RESULTS[2]).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[3].startswith(" " * 20 + "/lib/x.so")


def test_a_probe_that_failed_says_so():
    text = report.result_as_text(RESULTS[1])
    assert text == "Memory\n  not known         PermissionError: [Errno 13]"


def test_problems_are_numbered():
    text = report.problems_as_text(
        [MachineProblem("a", "b", "c"), MachineProblem("d", "e", "f " * 60)]
    )
    lines = text.splitlines()
    assert lines[:5] == [
        "2 problems found",
        "  1. found:    a",
        "     expected: b",
        "     try:      c",
        "  2. found:    d",
    ]
    assert max(map(len, lines)) <= 80
    assert report.problems_as_text([]) == "No problem found"


def test_json_has_fields_errors_and_problems():
    document = json.loads(json.dumps(report.as_json(RESULTS)))
    assert document["limits"]["open_files_hard"] == 512
    assert document["memory"] == {"error": "PermissionError: [Errno 13]"}
    assert [problem["found"] for problem in document["problems"]] == [
        "at most 512 files may be open",
        "Memory could not be examined: PermissionError: [Errno 13]",
    ]
