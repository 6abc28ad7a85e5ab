"""A self-contained HTML document, which may run only the scripts that are in it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files

from rewarm.report.html_writer import Markup, tag
from rewarm.version import __version__


def html_document(title: str, body: Markup, style: str, scripts: Sequence[str] = ()) -> str:
    """Returns a whole document.

    Its content security policy allows its own style and scripts, by their digests, and images that
    are data.

    Args:
        title: the title in the browser's tab.
        body: the element `body`, with the scripts in it.
        style: CSS.
        scripts: the scripts in the body.
    """
    allowed = " ".join(map(_policy_digest, scripts)) or "'none'"
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src {_policy_digest(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="generator", content=f"rewarm {__version__}"),
        tag("title", title),
        tag("style", Markup(style)),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def page_asset(name: str) -> str:
    """Returns the text of a style sheet or script of the package."""
    return files("rewarm.report").joinpath("assets", name).read_text(encoding="utf-8")


def _policy_digest(text: str) -> str:
    """Returns the digest by which a content security policy allows a script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
