"""All probes in order, and their results as text or JSON."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rewarm.diagnostics.disk import examine_disk
from rewarm.diagnostics.environment import examine_environment
from rewarm.diagnostics.finding import MachineProblem, ProbeResult, examine, examine_within
from rewarm.diagnostics.gpu import Gpus, examine_gpus
from rewarm.diagnostics.host import examine_compiler, examine_cpu, examine_limits, examine_memory
from rewarm.diagnostics.links import examine_links
from rewarm.diagnostics.software import examine_software

_SECONDS = 20.0
"""For each probe in this process; those of GPUs are processes with time limits of their own."""

_COLUMNS = 80
_LABEL_COLUMNS = 17


def examine_machine(folder: Path) -> Iterator[ProbeResult]:
    """Yields the result of each probe as soon as it is known.

    Args:
        folder: where runs would be written.
    """
    yield examine_within(_SECONDS, "Software", examine_software)
    gpu_result = examine("GPU", examine_gpus)
    yield gpu_result
    torch = gpu_result.finding.torch if isinstance(gpu_result.finding, Gpus) else None
    gpus = len(torch.devices) if torch else 0
    if torch and gpus > 1:
        yield examine("Links between GPUs", lambda: examine_links(torch))
    yield from (
        examine_within(_SECONDS, title, probe)
        for title, probe in (
            ("CPU", lambda: examine_cpu(gpus)),
            ("Memory", lambda: examine_memory(gpus)),
            ("Limits", examine_limits),
            ("Compiler", lambda: examine_compiler(gpus)),
            ("Disk", lambda: examine_disk(folder)),
            ("Environment", examine_environment),
        )
    )


def result_as_text(result: ProbeResult) -> str:
    """Returns a title, and a line for each fact."""
    facts = result.finding.facts() if result.finding else {"not known": result.error}
    return "\n".join([result.title, *(_fact_as_text(*fact) for fact in facts.items())])


def _fact_as_text(label: str, value: str) -> str:
    indent = " " * (2 + _LABEL_COLUMNS + 1)
    return _wrap(value, f"  {label:<{_LABEL_COLUMNS}} ", indent)


def all_problems(results: list[ProbeResult]) -> list[MachineProblem]:
    """Returns the problems that all probes found."""
    return [problem for result in results for problem in result.problems()]


def problems_as_text(problems: list[MachineProblem]) -> str:
    """Returns the problems as a numbered list."""
    if not problems:
        return "No problem found"
    lines = [f"{len(problems)} problem{'s' if len(problems) > 1 else ''} found"]
    for number, problem in enumerate(problems, 1):
        lines += [
            _wrap(problem.found, f"{number:3}. found:    ", " " * 15),
            _wrap(problem.expected, "     expected: ", " " * 15),
            _wrap(problem.remedy, "     try:      ", " " * 15),
        ]
    return "\n".join(lines)


def _wrap(text: str, start: str, indent: str) -> str:
    return textwrap.fill(
        text,
        _COLUMNS,
        initial_indent=start,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def as_json(results: list[ProbeResult]) -> dict[str, Any]:
    """Returns the fields of each finding by its title, or its error, and the list of problems."""
    report: dict[str, Any] = {
        result.title.lower().replace(" ", "_"): _fields(result.finding)
        if result.finding
        else {"error": result.error}
        for result in results
    }
    return report | {"problems": [problem._asdict() for problem in all_problems(results)]}


def _fields(finding: Any) -> dict[str, Any]:
    return dataclasses.asdict(finding)
