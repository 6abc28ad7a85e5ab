"""Docstrings of the code as Markdown of the site."""

from __future__ import annotations

import inspect
import re
import textwrap


def markdown(docstring: str) -> str:
    r"""Returns a docstring as Markdown: its sections as lists, its examples as blocks.

    >>> print(markdown('Adds.\n\nRaises:\n    ValueError: no number,\n        or none.'))
    Adds.
    <BLANKLINE>
    **Raises**
    <BLANKLINE>
    * `ValueError`: no number, or none.
    """
    text = inspect.cleandoc(docstring)
    text = re.sub(
        r"^(Args|Raises|Returns|Yields):\n((?:[ ].*\n?|\n(?= ))+)", _list, text, flags=re.M
    )
    return re.sub(r"(?:^>>>.*\n?(?:^(?!```)\S.*\n?)*)+", _block, text, flags=re.M).strip()


def _list(match: re.Match[str]) -> str:
    entries = re.split(r"\n(?! )", textwrap.dedent(match[2]).strip())
    items = [re.sub(r"^([\w.*]+):", r"`\1`:", " ".join(entry.split())) for entry in entries]
    return f"**{match[1]}**\n\n" + "\n".join(f"* {item}" for item in items) + "\n"


def _block(match: re.Match[str]) -> str:
    return f"```pycon\n{match[0].strip()}\n```\n"


def definition(term: str, facts: str, text: str) -> str:
    """Returns an entry of a definition list: a term, and what is known of it."""
    body = "\n\n".join(filter(None, [f"*{facts}*" if facts else "", markdown(text)])) or "–"
    return f"`{term}`\n\n:   " + body.replace("\n", "\n    ")


def one_line(text: str | None) -> str:
    """Returns a text with single spaces for its line breaks."""
    return " ".join((text or "").split())


def page(parts: list[str]) -> str:
    """Returns the parts of a page that are not empty, as one text."""
    return "\n\n".join(filter(None, parts)) + "\n"
