"""`rewarm report`: runs and studies on one page, or as Markdown, CSV or a picture for a paper."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewarm.errors import RewarmError

FORMATS = ("html", "md", "csv", "png", "svg")


def report(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_OR_STUDY...", help="Run directories, folders of them, or studies."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where to write; its ending says the format: .html, .md, .csv, .png, .svg.",
            show_default="report.html",
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option("--format", metavar="FORM", help="The format, if --out does not say it."),
    ] = None,
) -> None:
    """Show what came of runs and studies, on one page that needs nothing but itself."""
    said = form or (out.suffix.removeprefix(".") if out else "html")
    if said not in FORMATS:
        what = f"--format {form}" if form else f"--out {out}"
        raise typer.BadParameter(f"{what}: should be {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    print(write(paths, out or Path(f"report.{said}"), said))


def write(paths: list[Path], out: Path, form: str) -> str:
    """Writes a report, and returns a line about it.

    Raises:
        RewarmError: what `gather` raises, or the file cannot be written.
    """
    from rewarm.plots.loss_figure import save_losses
    from rewarm.report.collect_runs import collect_runs
    from rewarm.report.html_page import html_page
    from rewarm.report.text_exports import as_csv, as_markdown
    from rewarm.tables import plural

    found = collect_runs(paths)
    if form in ("png", "svg"):
        save_losses({arm: [one.directory for one in found.of(arm)] for arm in found.arms}, out)
    else:
        text = {"html": html_page, "md": as_markdown, "csv": as_csv}[form](found)
        try:
            out.write_text(text, encoding="utf-8")
        except OSError as error:
            raise RewarmError(f"{out}: cannot be written: {error.strerror}") from None
    arms, runs = plural(len(found.arms), "arm"), plural(len(found.records), "run")
    return f"{out}: {arms}, {runs}"
