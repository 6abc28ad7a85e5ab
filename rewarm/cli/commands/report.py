"""`rewarm report`: writes runs and studies as a page, as Markdown, as CSV or as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rewarm.cli.standard_streams import output_is_summary
from rewarm.errors import RewarmError
from rewarm.files import create_folder_of

FORMATS = ("html", "md", "csv", "png", "svg", "pdf")


def report(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_OR_STUDY",
            help="Run directories, folders of run directories, or studies.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The file to write, report.html by default; its suffix sets the format: .html, "
            ".md, .csv, or a figure: .png, .svg, .pdf. In a folder, report.html.",
        ),
    ] = None,
    report_format: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="FORMAT", help="The format, if the suffix of --out is another."
        ),
    ] = None,
) -> None:
    """Write the results of runs and studies to a self-contained page, or to another format.

    Example: rewarm report study.yaml --out report.html
    """
    out = out or Path(f"report.{report_format or 'html'}")
    if out.is_dir() or not (out.suffix or report_format):
        out = out / f"report.{report_format or 'html'}"
    output_format = report_format or out.suffix.removeprefix(".").lower()
    if output_format not in FORMATS:
        option = f"--format {report_format}" if report_format else f"--out {out}"
        kinds = "html, md and csv for the whole report; png, svg and pdf for its figure"
        raise typer.BadParameter(f"{option}: not a format of reports ({kinds})")
    output_is_summary()
    print(write_report(paths, out, output_format))


def write_report(paths: list[Path], out: Path, report_format: str) -> str:
    """Writes a report, and returns a line with its path and number of runs.

    Raises:
        RewarmError: see `collect_runs`; or the file cannot be written.
    """
    from rewarm.plots.figure_style import FIGURE_FORMATS
    from rewarm.plots.loss_figure import save_losses
    from rewarm.report.collect_runs import collect_runs
    from rewarm.report.html_page import html_page
    from rewarm.report.text_exports import as_csv, as_markdown
    from rewarm.table_cells import plural

    collected = collect_runs(paths)
    if report_format in FIGURE_FORMATS:
        directories = {
            arm: [record.directory for record in collected.records_of(arm)]
            for arm in collected.arms
        }
        save_losses(directories, out, report_format)
    else:
        render = {"html": html_page, "md": as_markdown, "csv": as_csv}[report_format]
        try:
            create_folder_of(out)
            out.write_text(render(collected), encoding="utf-8")
        except OSError as error:
            raise RewarmError(f"{out}: cannot be written: {error.strerror}") from None
    arms, runs = plural(len(collected.arms), "arm"), plural(len(collected.records), "run")
    return f"{out}: {arms}, {runs}"
