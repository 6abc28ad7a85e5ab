"""Text in HTML is escaped; only markup is not."""

from written_runs import HOSTILE

from rewarm.report.html_writer import Markup, join, tag


def test_text_is_escaped_and_markup_is_not():
    escaped = "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;"
    assert join(HOSTILE, Markup("<br>")) == f"{escaped}<br>"
    assert tag("p", HOSTILE, tag("b", "x"), title=HOSTILE) == (
        f'<p title="{escaped}">{escaped}<b>x</b></p>'
    )


def test_attributes():
    assert tag("p", class_="a", aria_label='"') == '<p class="a" aria-label="&quot;"></p>'
    assert tag("p", hidden=True, tabindex=None, checked=False) == "<p hidden></p>"
    assert tag("line", x1=0) == '<line x1="0"/>'
    assert tag("meta", charset="utf-8") == '<meta charset="utf-8">'
