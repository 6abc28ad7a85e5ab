"""Breaks a long line between words, for a terminal, which would break it within one."""

from __future__ import annotations

import textwrap


def wrap_parts(parts: list[str], width: int) -> str:
    """Returns short texts joined by two spaces, with line breaks between them only.

    Args:
        parts: the texts.
        width: columns of the terminal; a longer text stays whole.

    >>> print(wrap_parts(["step 40", "lr 0.1 → 0.2", "loss 3.5"], 21))
    step 40  lr 0.1 → 0.2
    loss 3.5
    """
    lines = [""]
    for part in parts:
        joined = f"{lines[-1]}  {part}".lstrip()
        if len(joined) <= width or not lines[-1]:
            lines[-1] = joined
        else:
            lines.append(part)
    return "\n".join(lines)


def wrap_line(line: str, width: int, *, indent: int | None = None) -> str:
    """Returns a line with breaks between words, so that each part has at most `width` columns.

    A word that is longer than that, such as a path, stays whole: it can still be copied.

    Args:
        line: one line of text.
        width: columns of the terminal.
        indent: spaces before each further part; two more than the line itself has, if None.

    >>> print(wrap_line("memory  174 MB at the peak", 20, indent=8))
    memory  174 MB at
            the peak
    """
    if indent is None:
        indent = len(line) - len(line.lstrip()) + 2
    return textwrap.fill(
        line,
        width,
        subsequent_indent=" " * min(indent, width // 2),
        break_long_words=False,
        break_on_hyphens=False,
    )
