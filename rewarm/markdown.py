"""Text and rows of tables as Markdown; names in them may come from untrusted files."""

from __future__ import annotations

from collections.abc import Iterable

from rewarm.errors import printable


def escape_markdown(text: str) -> str:
    """Returns a text escaped as Markdown, on one line; credentials in URLs are left out."""
    escaped = printable(text.replace("\n", " ")).replace("&", "&amp;")
    for character in "\\`*_[]|<>#":
        escaped = escaped.replace(character, f"\\{character}")
    return escaped


def markdown_row(cells: Iterable[str]) -> str:
    """Returns a row of a Markdown table, with its cells escaped."""
    return f"| {' | '.join(map(escape_markdown, cells))} |"
