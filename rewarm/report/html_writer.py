"""Writes HTML safely: any text that is not `Markup` is escaped."""

from __future__ import annotations

import base64
from html import escape

from rewarm.errors import escape_unprintable


class Markup(str):
    """HTML that may be inserted without escaping."""

    __slots__ = ()


_VOID_ELEMENTS = {"meta", "br", "img", "line"}


def tag(name: str, /, *children: str, **attributes: str | float | bool | None) -> Markup:
    """Returns an HTML element.

    Args:
        name: the element's tag.
        children: the element's content; text that is not `Markup` is escaped.
        attributes: the element's attributes: `class_` is written class, `aria_label` aria-label;
            True writes an attribute without a value, False and None omit it.
    """
    attribute_text = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{_escape(value)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID_ELEMENTS and not children:
        return Markup(f"<{name}{attribute_text}{'/' if name != 'meta' else ''}>")
    return Markup(f"<{name}{attribute_text}>{join(*children)}</{name}>")


def join(*parts: str) -> Markup:
    """Returns the concatenated parts; text that is not `Markup` is escaped."""
    return Markup("".join(part if isinstance(part, Markup) else _escape(part) for part in parts))


def svg_image(svg: str, alternative: str, class_: str) -> Markup:
    """Returns an SVG as an image: a content security policy may forbid its inline styles.

    Args:
        svg: the SVG.
        alternative: what it shows, in words.
        class_: the CSS class of the image.
    """
    source = f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
    return tag("img", src=source, alt=alternative, class_=class_)


def _escape(value: object) -> str:
    return "\n".join(escape(escape_unprintable(line)) for line in str(value).split("\n"))
