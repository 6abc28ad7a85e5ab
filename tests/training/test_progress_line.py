"""A bar on a terminal, lines elsewhere; a log that cannot be written never ends a run."""

import contextlib
import errno
import io
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from rewarm.training.progress_line import ProgressLine

NUMBERS = {
    "loss": 2.5,
    "grad_norm": 0.8125,
    "lr": 3e-4,
    "tokens_per_second": 1234.5,
    "mfu": None,
}


@pytest.fixture
def clock(monkeypatch):
    """Has the progress line take its time from a list, whose only number may be changed."""
    now = [0.0]
    time = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr("rewarm.training.progress_line.time", time)
    return now


def drawn_rows(shown):
    """Returns every row that was drawn on a terminal, without escape sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue()).replace("\r", "\n").splitlines()


def test_a_terminal_shows_a_bar_with_loss_rate_speed_and_time_left():
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=100)
    with ProgressLine(steps=40, done=10, console=console) as line:
        line.show_training(20, NUMBERS)
        line.show_evaluation(20, {"upstream": 2.0}, {"upstream": 1.5})
        line._bar.refresh()
    text = shown.getvalue()
    for part in ("20/40", "loss 2.5000", "lr 3.000e-04", "tokens/s", "left", "(+0.5000)"):
        assert part in text


def test_without_a_terminal_there_are_plain_lines_with_elapsed_and_remaining_time(capsys, clock):
    with ProgressLine(steps=4000, done=0) as line:
        clock[0] = 60.0  # the first step compiles, so the remaining time counts from its end
        line.show_step(1, 1e-4, None)
        clock[0] = 79.0
        line.show_training(20, NUMBERS | {"mfu": 0.4})
        line.show_evaluation(0, {"upstream": 2.0}, {"upstream": 2.0})
        clock[0] = 60.0 + 3999
        line.show_training(4000, NUMBERS)
    assert capsys.readouterr().err.splitlines() == [
        "step 20/4,000  loss 2.5000  grad_norm 0.812  lr 3.000e-04  1,234 tokens/s  mfu 40.0%  "
        "1:19 elapsed, 1:06:20 left",  # 3,980 steps of a second
        "step 0  evaluated: upstream 2.0000",
        "step 4,000/4,000  loss 2.5000  grad_norm 0.812  lr 3.000e-04  1,234 tokens/s  mfu 40.0%  "
        "1:07:39 elapsed",
    ]


def test_the_bar_has_the_loss_of_each_step_from_the_first_on():
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=80)
    with ProgressLine(steps=400, done=0, console=console) as line:
        for step, loss in ((1, None), (2, 2.75), (3, 2.625)):  # a GPU has the first one later
            line.show_step(step, 1e-4 * step, loss)
            line._bar.refresh()
        line.show_training(4, NUMBERS)
    rows = drawn_rows(shown)
    for step, numbers in (
        (1, "lr 1.000e-04"),
        (2, "loss 2.7500  lr 2.000e-04"),
        (3, "loss 2.6250  lr 3.000e-04"),
        (4, "loss 2.5000  lr 3.000e-04  1,234 tokens/s"),
    ):
        assert any(re.search(rf" {step}/400 .*━ {re.escape(numbers)} ", row) for row in rows), step
    assert "starting" not in rows[-1]


@pytest.mark.parametrize(
    ("width", "steps", "numbers"),
    [
        (80, 400, "loss 2.5000  lr 3.000e-04  1,234 tokens/s"),
        (80, 131_836, "loss 2.5000  1,234 tokens/s"),
        (120, 131_836, "loss 2.5000  grad_norm 0.812  lr 3.000e-04  1,234 tokens/s  mfu 40.0%"),
    ],
)
def test_a_bar_is_one_row_with_the_numbers_that_fit(width, steps, numbers):
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=width)
    with ProgressLine(steps=steps, done=0, console=console) as line:
        line.show_training(20, NUMBERS | {"mfu": 0.4})
    row = drawn_rows(shown)[-1]
    assert f"━ {numbers} " in row
    assert row.endswith(" left")
    assert len(row.rstrip()) <= width - 4


def test_a_bar_that_was_stopped_half_way_is_cleared():
    def last_rows(error):
        shown = io.StringIO()
        console = Console(file=shown, force_terminal=True, width=80)
        with contextlib.suppress(RuntimeError), ProgressLine(steps=9, done=3, console=console):
            if error:
                raise error
        return shown.getvalue()[-30:]

    assert "\x1b[1A\x1b[2K" in last_rows(RuntimeError())
    assert "\x1b[1A" not in last_rows(None)


def test_a_full_disk_under_the_printed_log_does_not_end_the_run(recipe_file, command, monkeypatch):
    class FullDisk(io.StringIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sys.stderr", FullDisk())
    assert command("train", recipe_file)[0] == 0
    assert command("train", recipe_file)[0] == 3  # it has checkpoints; the message cannot be shown


def test_the_bar_leaves_room_for_the_interrupt_that_a_terminal_shows():
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=80)
    with ProgressLine(steps=19531, done=10, console=console) as line:
        line.show_training(20, NUMBERS)
    rows = drawn_rows(shown)
    assert 70 < max(map(len, rows)) <= 76
    assert any("20/19531" in row for row in rows)  # the bar is what gets shorter
