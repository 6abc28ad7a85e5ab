"""Builds the documentation as a site: `python docs/site/build_site.py [--out site]`.

The pages keep their paths, so a relative link means the same here as in the repository:

```
README.md, docs/*.md, CONTRIBUTING.md, ...  ─┐
docs/reference/*.md, written from the code  ─┴─► build/site/pages ─► zensical ─► SITE/VERSION
```

Every VERSION has a folder of its own, and `versions.json` beside them fills the version selector.
Needs the extra `docs`.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from reference_pages import reference_pages

ROOT = Path(__file__).parents[2]

NAVIGATION = {
    "Home": "README.md",
    "Tutorial": "docs/tutorial.md",
    "How to": [
        "docs/how-to/continue-pythia.md",
        "docs/how-to/replay.md",
        "docs/how-to/extend-the-budget.md",
        "docs/how-to/branch-before-decay.md",
        "docs/schedules.md",
        "docs/how-to/run-on-a-cluster.md",
        "docs/how-to/come-from-other-tools.md",
        "docs/how-to/evaluate.md",
    ],
    "Guides": [
        "docs/recipes.md",
        "docs/learning-rates.md",
        "docs/data.md",
        "docs/inputs.md",
        "docs/checkpoints.md",
        "docs/studies.md",
        "docs/reports.md",
        "docs/evaluation.md",
        "docs/trackers.md",
        "docs/plan.md",
        "docs/multi-gpu.md",
    ],
    "Reference": [
        "docs/reference/commands.md",
        "docs/reference/settings.md",
        "docs/reference/schedules.md",
        "docs/reference/python.md",
        "docs/reference/exit-codes.md",
        "docs/run-directory.md",
        "docs/schedules-reference.md",
    ],
    "Plug-ins": ["plugins/README.md"],
    "Explanation": [
        "docs/paper.md",
        "docs/paper-study.md",
        "docs/cpu-mini.md",
        "docs/architecture.md",
    ],
    "Measurements": ["docs/measured.md", "docs/gpu.md"],
    "Project": ["CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs/releasing.md"],
}
"""The order of the pages. Others are added: those of docs/ to Guides, of plugins/ to Plug-ins."""

_FILES = (
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CITATION.cff", "LICENSE"),
    *("plugins/README.md", "recipes/slurm", "recipes/kubernetes", "docs"),
    *(path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("plugins/*/README.md"))),
)
"""What is copied: pages, and the files that they link to."""

_IGNORED = shutil.ignore_patterns("*.py", "*.toml", "__pycache__", "quickstart-runs")


def main() -> None:
    """Builds the site in a folder, beside the versions that are there."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site" / "versions")
    parser.add_argument(
        "--version", default=version, help="the folder in OUT; default: %(default)s"
    )
    arguments = parser.parse_args()
    work = ROOT / "build" / "site"
    write_sources(work)
    build(work)
    publish(work / "site", arguments.out, arguments.version)
    print(arguments.out / arguments.version / "index.html")


def write_sources(work: Path) -> None:
    """Writes zensical's configuration and all pages, the generated ones among them, to a folder."""
    pages = work / "pages"
    shutil.rmtree(pages, ignore_errors=True)
    for name in _FILES:
        source, target = ROOT / name, pages / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=_IGNORED)
        else:
            shutil.copyfile(source, target)
    for name, text in reference_pages().items():
        path = pages / "docs" / "reference" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    # The page of cpu-mini.md is cpu-mini.html; the report of that name beside it gets another one.
    reports = [path for path in pages.rglob("*.html") if path.with_suffix(".md").exists()]
    for path in pages.rglob("*.md"):
        text = as_python_markdown(path.read_text(encoding="utf-8"))
        for report in reports:
            text = text.replace(f"({report.name})", f"({report.stem}-report.html)")
        path.write_text(text, encoding="utf-8")
    for report in reports:
        report.rename(report.with_stem(f"{report.stem}-report"))
    config = (ROOT / "docs" / "site" / "zensical.toml").read_text(encoding="utf-8")
    entries = ",\n".join(f"  {entry}" for entry in navigation_entries(pages))
    nav = f"nav = [\n{entries},\n]"
    (work / "zensical.toml").write_text(config.replace("# navigation", nav), encoding="utf-8")


def navigation(pages: Path) -> dict[str, str | list[str]]:
    """Returns `NAVIGATION` with the pages that it does not name."""
    parts = (part if isinstance(part, list) else [part] for part in NAVIGATION.values())
    named = {name for part in parts for name in part}
    page_names = [path.relative_to(pages).as_posix() for path in sorted(pages.rglob("*.md"))]
    complete: dict[str, str | list[str]] = dict(NAVIGATION)
    for title, folder in (("Guides", "docs/"), ("Plug-ins", "plugins/")):
        others = [name for name in page_names if name.startswith(folder) and name not in named]
        complete[title] = [*NAVIGATION[title], *others]
    return complete


def navigation_entries(pages: Path) -> Iterator[str]:
    """Yields each part of the navigation as an entry of `nav`, in TOML."""
    for title, part in navigation(pages).items():
        # A list or a text is written in JSON as in TOML.
        yield f"{{ {json.dumps(title)} = {json.dumps(part)} }}"


def as_python_markdown(text: str) -> str:
    r"""Returns Markdown as GitHub reads it with the blank lines that Python-Markdown needs.

    >>> print(as_python_markdown("Sizes:\n| a |\n|---|\n| 1 |\n"))
    Sizes:
    <BLANKLINE>
    | a |
    |---|
    | 1 |
    <BLANKLINE>
    """
    lines: list[str] = []
    in_block = False
    for line in text.split("\n"):
        if line.lstrip().startswith("```"):
            in_block = not in_block
        starts_table = line.startswith("|") and lines and lines[-1][:1] not in ("", "|")
        if starts_table and not in_block:  # GitHub needs no blank line before a table
            lines.append("")
        lines.append(line)
    return "\n".join(lines)


def build(work: Path) -> None:
    """Runs zensical; a warning, such as a link to nothing, ends the program with its output."""
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    completed = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    output = completed.stdout + completed.stderr
    if completed.returncode or re.search("warning", output, re.IGNORECASE):
        sys.exit(output or f"zensical ended with exit code {completed.returncode}")


def publish(built: Path, out: Path, version: str) -> None:
    """Moves a site to its version's folder; updates the list of versions and the start page."""
    out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(out / version, ignore_errors=True)
    shutil.move(built, out / version)
    versions = sorted(
        (path.parent.name for path in out.glob("*/index.html")), key=_version_key, reverse=True
    )
    newest = versions[0]
    listed = [
        {"version": name, "title": name, "aliases": ["latest"] if name == newest else []}
        for name in versions
    ]
    (out / "versions.json").write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
    (out / "index.html").write_text(
        '<!doctype html><meta charset="utf-8"><title>rewarm</title>'
        f'<meta http-equiv="refresh" content="0; url={newest}/index.html">'
        f'<a href="{newest}/index.html">rewarm {newest}</a>\n',
        encoding="utf-8",
    )


def _version_key(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


if __name__ == "__main__":
    main()
