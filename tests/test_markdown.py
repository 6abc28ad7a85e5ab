"""Text as Markdown shows it, whatever it contains."""

from rewarm.markdown import escape_markdown, markdown_row


def test_text_has_no_markup_and_one_line():
    assert escape_markdown("a\n# *b* <i> & [c](d)") == "a \\# \\*b\\* \\<i\\> &amp; \\[c\\](d)"


def test_a_cell_cannot_end_its_row():
    assert markdown_row(["a|b", "https://me:secret@host"]) == "| a\\|b | https://\\*\\*\\*@host |"
