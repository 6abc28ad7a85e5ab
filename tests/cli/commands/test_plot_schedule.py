import csv
import json

import pytest

from rewarm.recipe.recipe import load_recipe


@pytest.fixture
def recipe(thousand_steps, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(thousand_steps)
    return path


def test_the_plot_is_drawn_in_the_terminal(command, recipe):
    code, out, err = command("plot-schedule", recipe)
    assert (code, err) == (0, "")
    assert "\x1b" not in out  # no colors in a pipe
    assert "end of warm-up 3e-4 100 10M" in " ".join(out.split())


@pytest.mark.parametrize("suffix", ["png", "svg", "csv", "json"])
def test_the_plot_is_saved_in_the_format_of_the_suffix(command, recipe, tmp_path, suffix):
    out = tmp_path / f"curve.{suffix}"
    assert command("plot-schedule", recipe, "--out", out) == (0, f"{out}: 1 curve\n", "")
    assert out.stat().st_size > 1000


def test_recipes_with_the_same_file_name_are_labeled_by_path(command, recipe, tmp_path):
    other = tmp_path / "other" / "r.yaml"
    other.parent.mkdir()
    other.write_text(recipe.read_text())
    out = tmp_path / "curves.csv"
    code, output, _ = command("plot-schedule", recipe, other, "--out", out, "--set", "tokens=20M")
    assert (code, output) == (0, f"{out}: 2 curves\n")
    labels = [line.split(",")[0] for line in out.read_text().splitlines()[1:]]
    assert labels == [str(recipe)] * 200 + [str(other)] * 200


def test_another_suffix_is_refused(command, recipe, tmp_path):
    code, _, err = command("plot-schedule", recipe, "--out", tmp_path / "curve.jpg")
    assert code == 2
    assert err.endswith("curve.jpg: should end in .png, .svg, .pdf, .csv or .json\n")


def test_a_folder_gets_a_picture(command, recipe, tmp_path):
    code, output, _ = command("plot-schedule", recipe, "--out", f"{tmp_path}/new/")
    assert (code, output) == (0, f"{tmp_path}/new/schedule.png: 1 curve\n")
    assert (tmp_path / "new" / "schedule.png").read_bytes().startswith(b"\x89PNG")


def test_a_zoomed_csv_has_every_step_of_its_part(command, recipe, tmp_path):
    out = tmp_path / "part.csv"
    budget = ("--set", "tokens=3B")  # 30,000 steps
    assert command("plot-schedule", recipe, *budget, "--zoom", "50%:", "--out", out)[0] == 0
    steps = [int(line.split(",")[1]) for line in out.read_text().splitlines()[1:]]
    assert steps == list(range(15_000, 30_001))


def test_rates_at_positions_are_printed(command, recipe):
    words = ("plot-schedule", recipe, "--at", "1,5%,100 steps,100M")
    code, out, err = command(*words)
    assert (code, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        ["recipe", "at", "step", "tokens", "progress", "rate"],
        ["r", "1", "1", "100,000", "0.1000%", "3e-6"],
        ["5%", "50", "5,000,000", "5.0000%", "1.5e-4"],
        ["100", "steps", "100", "10,000,000", "10.0000%", "3e-4"],
        ["100M", "1,000", "100,000,000", "100.0000%", "3e-5"],
    ]
    run = load_recipe(recipe)
    _, out, _ = command(*words, "--format", "csv")
    header, *rows = csv.reader(out.splitlines())
    assert header == ["recipe", "at", "step", "tokens", "progress", "lr"]
    assert [float(row[-1]) for row in rows] == [run.lr(step) for step in (1, 50, 100, 1000)]
    _, out, _ = command(*words, "--format", "json")
    rates = json.loads(out)
    assert [list(rate.values()) for rate in rates[:2]] == [
        ["r", "1", 1, 100_000, 0.001, run.lr(1)],
        ["r", "5%", 50, 5_000_000, 0.05, run.lr(50)],
    ]


def test_schedules_are_drawn_without_a_recipe(command):
    code, out, err = command(
        *("plot-schedule", "--schedule", "rewarm", "--tokens", "10B"),
        *("--schedule", "{name: rewarm, warmup: 5%}", "--set", "schedule.peak_lr=5x base"),
        *("--set", "schedule.min_lr=base", "--set", "model.base_lr=3e-5"),
    )
    assert (code, err) == (0, "")
    assert "── rewarm\n" in out
    assert "++ {name: rewarm, warmup: 5%}\n" in out
    text = " ".join(out.split())
    assert text.count("last 3e-5 4,768 10B") == 2
    assert text.count("end of warm-up 1.5e-4 ") == 2


def test_a_repeated_recipe_gets_a_numbered_label(command, recipe):
    _, out, _ = command("plot-schedule", recipe, recipe, "--at", "1", "--format", "csv")
    labels = [line.split(",")[0] for line in out.splitlines()[1:]]
    assert labels == [str(recipe), f"{recipe} (2)"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give a RECIPE to draw, or --schedule NAME --tokens COUNT"),
        (["R", "--tokens", "10B"], "--tokens needs --schedule"),
        (["--schedule", "constant"], "--schedule constant: needs a token budget"),
        (["--schedule", "constant", "--tokens", "1B"], "schedule.lr: required, but missing"),
        (["--schedule", "x", "--tokens", "1B"], "no schedule named 'x'"),
        (["R", "--at", "1001"], "--at 1001: 1001 is past the end of the run (1,000 steps"),
        (["R", "--at", "1,,2"], "--at 1,,2: '' should be a step"),
        (["R", "--at", "1", "--format", "xml"], "--format xml: should be table, csv or json"),
        (["R", "--format", "csv"], "--format needs --at"),
        (["R", "--at", "1", "--out", "x.csv"], "cannot be used with --out or --zoom"),
        (["R", "--at", "1", "--zoom", ":2%"], "cannot be used with --out or --zoom"),
        (["R", "--zoom", "5%:2%"], "--zoom 5%:2%: its last step, 20, is before its first step, 50"),
        (["R", "--zoom", ":101%"], "--zoom :101%: 101% is past the end of the run"),
        (["R", "R2"], "R2: no such file"),
    ],
)
def test_usage_errors_are_one_message(command, recipe, words, message):
    code, out, err = command("plot-schedule", *(recipe if word == "R" else word for word in words))
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert "Traceback" not in err


def test_no_color_turns_colors_off(command, recipe, monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # as on a terminal
    assert "\x1b[38;5;33m" in command("plot-schedule", recipe)[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in command("plot-schedule", recipe)[1]
