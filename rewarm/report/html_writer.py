"""Writes HTML in which nothing but tags is ever markup: text that is not `Markup` is escaped."""

from __future__ import annotations

from html import escape

from rewarm.errors import visible


class Markup(str):
    """HTML, which stands in HTML as it is."""

    __slots__ = ()


_VOID = {"meta", "br", "line", "path", "circle", "rect"}


def tag(name: str, /, *inside: str, **attributes: str | float | bool | None) -> Markup:
    """Returns an element.

    Args:
        name: its tag.
        inside: what stands in it; what is not `Markup` is escaped.
        attributes: `class_` is class, `aria_label` aria-label; True is a bare one, False and None
            are left out.
    """
    said = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{_text(value)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID and not inside:
        return Markup(f"<{name}{said}{'/' if name != 'meta' else ''}>")
    return Markup(f"<{name}{said}>{join(*inside)}</{name}>")


def join(*parts: str) -> Markup:
    """Returns the parts one after the other; what is not `Markup` is escaped."""
    return Markup("".join(one if isinstance(one, Markup) else _text(one) for one in parts))


def _text(value: object) -> str:
    return "\n".join(escape(visible(line)) for line in str(value).split("\n"))
