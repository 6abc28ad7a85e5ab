"""A bar on a terminal, lines elsewhere; a log that cannot be written never ends a run."""

import errno
import io
import re

from rich.console import Console

from rewarm.training.progress_line import ProgressLine

NUMBERS = {"loss": 2.5, "lr": 3e-4, "tokens_per_second": 1234.5, "mfu": None}


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


def test_without_a_terminal_there_are_plain_lines(capsys):
    with ProgressLine(steps=40, done=0) as line:
        line.show_step(19)
        line.show_training(20, NUMBERS | {"mfu": 0.4})
        line.show_evaluation(0, {"upstream": 2.0}, {"upstream": 2.0})
    assert capsys.readouterr().err.splitlines() == [
        "step 20/40  loss 2.5000  lr 3.000e-04  1,234 tokens/s  mfu 40.0%",
        "step 0  evaluated: upstream 2.0000",
    ]


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
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue()).replace("\r", "\n")
    widths = [len(row) for row in drawn.splitlines()]
    assert 70 < max(widths) <= 76
    assert "20/19531" in drawn  # the bar is what gets shorter
