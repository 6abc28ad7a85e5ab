"""Installed versions and schedules."""

import sys
from importlib.metadata import version

from rewarm.diagnostics import software
from rewarm.diagnostics.software import Software, examine_software


def test_versions_of_this_environment():
    finding = examine_software()
    assert finding.packages["torch"] == version("torch")
    assert finding.rewarm.startswith(f"{version('rewarm')}, /")
    assert finding.python.endswith(sys.executable)
    assert finding.problems() == []
    assert finding.facts()["schedule plug-ins"] == "none"


def test_plugins_and_names_that_are_offered_twice(distribution):
    distribution("stairs", "", stairs="Stairs")
    distribution("more_stairs", "", stairs="Stairs", steps="Steps")
    finding = examine_software()
    assert finding.facts()["schedule plug-ins"] == "more_stairs 1.0, stairs 1.0"
    (problem,) = finding.problems()
    assert problem.found == "the schedule 'stairs' is offered by more_stairs 1.0 and stairs 1.0"


def test_unsupported_and_missing_packages(monkeypatch):
    lines = ["torch>=2.11,<2.14", "no-such-package>=1", "jsonschema>=99; extra == 'dev'"]
    monkeypatch.setattr(software, "requires", lambda _: lines)
    versions = {"torch": "2.10.0+cu128"}
    monkeypatch.setattr(software, "_version_of", versions.get)
    finding = Software("0.1.0", "3.11", "Linux", {}, software._unmet_requirements(), [])
    torch, missing = finding.problems()
    assert torch == ("torch 2.10.0+cu128", "torch <2.14,>=2.11", "pip install 'torch<2.14,>=2.11'")
    assert missing.found == "no-such-package is not installed"
