from io import StringIO

import pytest

from rewarm.plots.figure_style import add_legend, line_style, save_figure


def legend_texts(labels):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    lines = add_legend(figure, [(label, line_style(i)) for i, label in enumerate(labels)])
    return lines, [text.get_text().strip() for text in figure.legends[0].get_texts()]


def test_the_first_five_curves_have_distinct_colors_and_dashes():
    styles = [line_style(i) for i in range(5)]
    assert len({style["color"] for style in styles}) == 5
    assert len({style["ls"] for style in styles}) == 5


def test_legend_keeps_labels_that_matplotlib_would_hide():
    assert legend_texts(["_a", "$b$"]) == (1, ["_a", "$b$"])


def test_long_and_unprintable_labels_are_wrapped_and_escaped():
    lines, [text] = legend_texts(["long-" * 30 + "\x1b[1m"])
    assert lines == 2
    assert text.replace("\n", "") == "long-" * 30 + "\\x1b[1m"


@pytest.mark.parametrize("text_as_paths", [True, False])
def test_the_same_figure_gives_the_same_svg(text_as_paths):
    from matplotlib.figure import Figure

    def draw():
        figure = Figure()
        figure.subplots().plot([1, 2], label="a")
        figure.suptitle("$title$")
        return figure

    files = [StringIO(), StringIO()]
    for file in files:
        save_figure(draw, file, file_format="svg", text_as_paths=text_as_paths)
    assert files[0].getvalue() == files[1].getvalue()
    assert (">$title$</text>" in files[0].getvalue()) != text_as_paths


@pytest.mark.parametrize(("file_format", "start"), [("pdf", b"%PDF-1."), ("png", b"\x89PNG")])
def test_a_figure_is_saved_in_a_new_folder_in_the_format_asked_for(tmp_path, file_format, start):
    from matplotlib.figure import Figure

    files = [tmp_path / "new" / name for name in ("a", "b.other")]
    for file in files:
        save_figure(Figure, file, file_format=file_format)
    first, second = (file.read_bytes() for file in files)
    assert first.startswith(start)
    assert first == second
